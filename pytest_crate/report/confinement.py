"""Which doors a crate's spec opens in the default confinement."""

from __future__ import annotations

from collections.abc import Mapping


def loosened(spec: Mapping[str, object]) -> list[str]:
    """Return the loosenings of a spec in words, such as ``["cap_add net_admin", "network host"]``; often none.

    :param spec: as :meth:`pytest_crate.spec.CrateSpec.to_json` gives it.
    """
    added, mounts = spec.get("cap_add"), spec.get("mounts")
    names = [f"cap_add {name}" for name in added] if isinstance(added, (list, tuple)) else []
    if spec.get("seccomp") is False:
        names.append("seccomp off")
    if spec.get("network") == "host":
        names.append("network host")
    if isinstance(mounts, (list, tuple)) and any(str(mount).endswith(":rw") for mount in mounts):
        names.append("mounts rw")
    return names
