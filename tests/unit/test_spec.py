"""Marker keys become a spec: parsing, merging, ceilings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_crate.errors import SpecError
from pytest_crate.spec import (
    KEYS,
    CrateSpec,
    Layer,
    Mount,
    build_spec,
    format_size,
    parse_cpuset,
    parse_mount,
    parse_size,
)


def spec_of(**keys: object) -> CrateSpec:
    return build_spec([Layer(origin="@pytest.mark.crate", values=keys, directory="/project")])


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("256m", 256 << 20),
        ("1.5g", 3 << 29),
        ("64M", 64 << 20),
        ("64MB", 64 << 20),
        ("64MiB", 64 << 20),
        ("512k", 512 << 10),
        ("4096", 4096),
        ("4096b", 4096),
        (268435456, 268435456),
        (" 1 g ", 1 << 30),
    ],
)
def test_a_size_is_in_binary_units(text: object, size_bytes: int) -> None:
    """A size has Docker's units, which are powers of 1024; a plain number is bytes."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("value", ["lots", "", "m", "-1", "1t", "1 2", "1e3", None, True, 1.5, -1, "٣m", 1 << 63])
def test_what_is_not_a_size_is_refused(value: object) -> None:
    """Anything else is no size, rather than a guess."""
    if value == "٣m":
        # Digits of other scripts are digits to Python's int(), and so to us.
        assert parse_size(value) == 3 << 20
        return
    with pytest.raises(ValueError):  # noqa: PT011 - the value is the whole message
        parse_size(value)


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_a_number_of_bytes_is_itself(size_bytes: int) -> None:
    """A whole number of bytes is kept exactly, as a number and as text without a unit."""
    assert parse_size(size_bytes) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(512, "512 B"), (64 << 20, "64 MiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1024 GiB")]
)
def test_a_size_is_shown_with_its_unit(size_bytes: int, text: str) -> None:
    """Sizes are shown in the largest unit that leaves a number of at least one."""
    assert format_size(size_bytes) == text


def test_a_spec_is_in_base_units() -> None:
    """Every key becomes a field in bytes, microseconds or numbers."""
    spec = spec_of(memory="64m", swap="1m", cpus=0.5, cpuset="0-1", pids=32, timeout=1.5, tmpfs="8m", user=1000)
    assert spec.memory_bytes == 64 << 20
    assert spec.swap_bytes == 1 << 20
    assert spec.cpu_quota_usec == 50_000
    assert spec.cpuset == (0, 1)
    assert spec.pids == 32
    assert spec.timeout_usec == 1_500_000
    assert spec.tmpfs_bytes == 8 << 20
    assert spec.user == "1000"
    assert spec.asked == {"memory", "swap", "cpus", "cpuset", "pids", "timeout", "tmpfs", "user"}


def test_defaults() -> None:
    """A spec of nothing has 512 tasks, no swap, no network, and nothing asked for."""
    spec = spec_of()
    assert (spec.pids, spec.swap_bytes, spec.network, spec.memory_bytes) == (512, 0, "none", None)
    assert spec.asked == frozenset()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory", "lots"),
        ("memory", "1k"),
        ("memory", True),
        ("cpus", 0),
        ("cpus", "nan"),
        ("cpus", 0.001),
        ("cpus", "inf"),
        ("cpuset", "1-0"),
        ("cpuset", ""),
        ("cpuset", "a"),
        ("pids", 0),
        ("pids", "many"),
        ("pids", True),
        ("timeout", -1),
        ("timeout", "soon"),
        ("timeout", 1_000_000_000.5),
        ("pids", 4_194_305),
        ("tmpfs", "1k"),
        ("image", ""),
        ("network", "bridge"),
        ("network", []),
        ("mounts", "data:/data"),
        ("mounts", ["a:b:c:d"]),
        ("mounts", ["data:relative"]),
        ("mounts", ["data:/"]),
        ("mounts", ["data:/proc"]),
        ("mounts", ["data://proc/sys"]),
        ("mounts", ["data://"]),
        ("mounts", ["//dev"]),
        ("mounts", ["data:/dev/../sys/kernel"]),
        ("mounts", ["/dev"]),
        ("env", ["A=1"]),
        ("env", {"A": 1}),
        ("env", {"A=B": "1"}),
        ("env", {"A": "nul\0"}),
        ("clean_env", "yes"),
        ("hostname", "-box"),
        ("hostname", "b" * 65),
        ("user", -1),
        ("user", "a b"),
        ("workdir", "src"),
        ("cap_add", "net_admin"),
        ("cap_add", ["fly"]),
        ("seccomp", 0),
    ],
)
def test_a_value_that_does_not_parse_is_named(key: str, value: object) -> None:
    """The error has the place, the key, the value and what would be right."""
    with pytest.raises(SpecError) as caught:
        spec_of(**{key: value})
    error = caught.value
    assert (error.origin, error.key, error.value) == ("@pytest.mark.crate", key, value)
    assert f"{key}={value!r}" in str(error)
    assert error.expected in str(error)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("pids", 4_194_305, "a number of tasks from 1 to 4194304"),
        ("timeout", 1e300, "a number of seconds above 0, at most 1000000000"),
        ("tmpfs", "1k", "at least 4k"),
        ("memory", "1k", "at least 4k"),
    ],
)
def test_a_value_out_of_bounds_is_told_the_bound(key: str, value: object, bound: str) -> None:
    """What is too much or too little is an error that says how much would be right."""
    with pytest.raises(SpecError) as caught:
        spec_of(**{key: value})
    assert caught.value.expected.endswith(bound)


def test_the_bounds_themselves_are_valid() -> None:
    """The largest number of tasks and the longest timeout are accepted, the latter to the microsecond."""
    spec = spec_of(pids=4_194_304, timeout=1_000_000_000, tmpfs="4k")
    assert (spec.pids, spec.timeout_usec, spec.tmpfs_bytes) == (4_194_304, 10**15, 4096)


def test_numbers_may_be_text() -> None:
    """A number that is written as text, as in an ini file, is that number."""
    assert spec_of(timeout="10", cpus="0.5", pids="64", memory="8192", user="1000") == spec_of(
        timeout=10, cpus=0.5, pids=64, memory=8192, user=1000
    )


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    """A misspelt key is an error that lists every key, and has the nearest first where one is near."""
    with pytest.raises(SpecError, match=r"expected a known key, 'memory' perhaps: 'memory', 'swap'") as caught:
        spec_of(memmory="64m")
    assert all(repr(key) in str(caught.value) for key in KEYS)
    with pytest.raises(SpecError, match="expected a known key: 'memory'"):
        spec_of(disk="1g")


def test_a_nearer_layer_wins_key_by_key() -> None:
    """Function over class over ini, each key by itself."""
    spec = build_spec(
        [
            Layer(origin="ini", values={"memory": "1g", "pids": 10, "timeout": 5}),
            Layer(origin="class", values={"memory": "2g", "cpus": 1}),
            Layer(origin="function", values={"memory": "3g"}),
        ]
    )
    assert (spec.memory_bytes, spec.pids, spec.cpu_quota_usec, spec.timeout_usec) == (3 << 30, 10, 100_000, 5_000_000)


def test_variables_and_mounts_merge_one_by_one() -> None:
    """A nearer variable or mount of the same name replaces the wider one; the others stay."""
    spec = build_spec(
        [
            Layer(origin="ini", values={"env": {"A": "1", "B": "1"}, "mounts": ["/a:/x", "/b:/y"]}),
            Layer(origin="mark", values={"env": {"B": None, "C": "2"}, "mounts": ["/c:/x:rw"]}),
        ]
    )
    assert dict(spec.env) == {"A": "1", "B": None, "C": "2"}
    assert [str(mount) for mount in spec.mounts] == ["/b:/y:ro", "/c:/x:rw"]


@pytest.mark.parametrize("key", ["memory", "cpus", "pids", "timeout", "tmpfs"])
def test_unlimited_lifts_a_wider_limit(key: str) -> None:
    """None and "unlimited" take a wider layer's limit away."""
    wide = Layer(origin="ini", values={key: 8192})
    for value in (None, "unlimited"):
        lifted = build_spec([wide, Layer(origin="mark", values={key: value})])
        assert lifted == build_spec([Layer(origin="mark", values={key: None})])


def test_nothing_exceeds_its_ceiling() -> None:
    """More than the ceiling is an error that names the ceiling; exactly as much is fine."""
    assert build_spec([Layer(origin="m", values={"memory": "1g"})], {"memory": "1g"}).memory_bytes == 1 << 30
    with pytest.raises(SpecError, match="at most crate_memory_ceiling = 1g"):
        build_spec([Layer(origin="m", values={"memory": "2g"})], {"memory": "1g"})


@pytest.mark.parametrize("values", [{}, {"memory": None}])
def test_without_a_limit_the_ceiling_is_the_limit(values: dict[str, object]) -> None:
    """No limit, by default or asked for, would be more than the ceiling."""
    assert build_spec([Layer(origin="m", values=values)], {"memory": "1g"}).memory_bytes == 1 << 30


def test_a_ceiling_below_the_default_lowers_the_default() -> None:
    """The built-in 512 tasks are nobody's wish: a lower ceiling is no error."""
    assert build_spec([], {"pids": "100"}).pids == 100


def test_a_ceiling_that_does_not_parse_is_named() -> None:
    """The ini option is the origin of the error."""
    with pytest.raises(SpecError, match="crate_memory_ceiling"):
        build_spec([], {"memory": "lots"})


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("data:/data", Mount(source="/project/data", target="/data", writable=False)),
        ("data://data", Mount(source="/project/data", target="/data", writable=False)),
        ("data:/data:ro", Mount(source="/project/data", target="/data", writable=False)),
        ("/srv/../data:/d/:rw", Mount(source="/data", target="/d", writable=True)),
        ("/data", Mount(source="/data", target="/data", writable=False)),
        ("/data:rw", Mount(source="/data", target="/data", writable=True)),
        ("data", Mount(source="/project/data", target="/project/data", writable=False)),
    ],
)
def test_a_mount(text: str, mount: Mount) -> None:
    """``src[:dst][:ro|rw]``: read-only by default, a relative source is the layer's."""
    assert parse_mount(text, "/project") == mount


def test_an_unknown_capability_is_named() -> None:
    """Of several capabilities, those that there aren't are named."""
    with pytest.raises(SpecError, match=r"not known: fly, swim$"):
        build_spec([Layer(origin="x", values={"cap_add": ["net_admin", "swim", "cap_fly"]})])


@given(st.sets(st.integers(min_value=0, max_value=99_000), min_size=1, max_size=20))
def test_a_cpuset_lists_its_cpus(cpus: set[int]) -> None:
    """A list of CPU numbers, in any order, is that set of CPUs."""
    assert parse_cpuset(",".join(map(str, cpus))) == tuple(sorted(cpus))
    assert parse_cpuset(f"{min(cpus)}-{min(cpus) + 3}") == tuple(range(min(cpus), min(cpus) + 4))


@pytest.mark.parametrize(
    ("reference", "image"),
    [("debian12", "debian12"), ("./r.tar", "/project/r.tar"), ("../r.tar", "/r.tar"), ("/r.tar", "/r.tar")],
)
def test_an_image_path_is_relative_to_its_layer(reference: str, image: str) -> None:
    """What starts like a path is one, from the layer's directory; anything else is a name."""
    assert spec_of(image=reference).image == image


def test_published_specs_keep_secrets() -> None:
    """A report tells which variables are set or removed, never a value."""
    data = spec_of(env={"TOKEN": "hunter2", "GONE": None}).to_json()
    assert data["env"] == {"TOKEN": "(set)", "GONE": None}
    assert "hunter2" not in str(data)
