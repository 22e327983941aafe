from __future__ import annotations

from pytest_crate.report import header_line


def test_the_header_names_what_enforces() -> None:
    """One line names cgroup version, how its parent was got, privilege, root and kernel."""
    line = header_line(
        kernel_release="6.8.0-45-generic",
        cgroup_version=2,
        cgroup_parent="systemd scope",
        rootless=True,
        rootfs="overlay",
    )
    assert line == "crate: cgroup v2 (systemd scope), rootless, overlay, kernel 6.8"


def test_a_payload_of_root_without_a_user_namespace_stands_out() -> None:
    """Where the kernel allows none, the crate's root is the host's, and the header says so."""
    line = header_line(kernel_release="6.8.0", cgroup_version=1, user_namespace=False)
    assert line == "crate: cgroup v1, root WITHOUT a user namespace, kernel 6.8"


def test_what_is_not_enforced_stands_out() -> None:
    """Missing limits are named, with what becomes of the tests that need them."""
    line = header_line(
        kernel_release="5.4.0", cgroup_version=1, rootfs="overlay", not_enforced=["cpus", "swap"], unsupported="run"
    )
    assert line == (
        "crate: cgroup v1, root, overlay, kernel 5.4; NOT enforced: cpus, swap (tests that need it RUN UNSANDBOXED)"
    )


def test_a_host_without_cgroups_says_so() -> None:
    """Without any cgroup there is no version to name, and a release of another form is shown whole."""
    line = header_line(kernel_release="unknown", cgroup_version=None, cgroup_parent="x", not_enforced=["memory"])
    assert line == "crate: NO cgroup, root, kernel unknown; NOT enforced: memory (tests that need it fail)"


def test_crate_off_is_loud() -> None:
    """With --crate-off the line says that nothing is enforced, not what could be."""
    line = header_line(kernel_release="6.8.0", cgroup_version=2, off=True)
    assert line == "crate: OFF (--crate-off): marked tests run UNSANDBOXED, no limit is enforced"
