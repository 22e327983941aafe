"""Which items get a crate, and of which spec: decided once, after collection."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import pytest

from pytest_crate.errors import ImageError, SpecError
from pytest_crate.plugin import options, private
from pytest_crate.spec import CrateSpec, Layer, build_spec

SPEC = pytest.StashKey[CrateSpec]()
"""On an item: the spec of its crate; items without one have no crate."""

ONE_CRATE = "crate_sandbox"
FIXTURES = frozenset({ONE_CRATE, "crate_sandbox_factory"})


def rides(item: pytest.Item) -> bool:
    """Return whether the item's body runs inside its crate."""
    return SPEC in item.stash and not drives(item)


def drives(item: pytest.Item) -> bool:
    """Return whether the item runs outside and drives crates through a fixture."""
    return private.is_driven_by(item, FIXTURES)


def drives_one(item: pytest.Item) -> bool:
    """Return whether the item drives a crate of its spec as it is, which is made when the item is set up."""
    return private.is_driven_by(item, frozenset({ONE_CRATE}))


def assign(config: pytest.Config, items: Iterable[pytest.Item], find_image: ImageFinder) -> int:
    """Give each item that wants a crate its spec; return how many there are.

    :param find_image: checks a reference of an image.
    :raises pytest.UsageError: it names each test, key and value at fault.
    """
    layers = list(options.default_layers(config))
    ceilings = options.ceilings(config)
    faults: dict[str, None] = {}
    count = 0
    built: dict[tuple[object, ...], CrateSpec] = {}
    for item in items:
        marks = list(item.iter_markers("crate"))
        driving = drives(item)
        if not driving and (config.getoption("crate_off") or not (marks or config.getoption("crate_all"))):
            continue
        try:
            key = tuple(id(mark) for mark in marks)
            if key not in built:
                own = [_mark_layer(config, mark) for mark in reversed(marks)]
                built[key] = build_spec([*layers, *own], ceilings)
            spec = _adjusted(item, built[key])
            check(spec, find_image)
        except (SpecError, ImageError) as error:
            faults[f"{item.nodeid}: {error}"] = None
            continue
        item.stash[SPEC] = spec
        count += 1
    if faults:
        raise pytest.UsageError(*_summarized(list(faults)))
    return count


def changed(item: pytest.Item, keys: Mapping[str, object], *, origin: str) -> CrateSpec:
    """Return the spec that an item would have with one more marker, of the given keys.

    :raises SpecError: a key is unknown, a value does not parse or is above its ceiling.
    """
    config = item.config
    own = [_mark_layer(config, mark) for mark in reversed(list(item.iter_markers("crate")))]
    added = Layer(origin=origin, values=keys, directory=str(config.rootpath))
    spec = build_spec([*options.default_layers(config), *own, added], options.ceilings(config))
    return _adjusted(item, spec)


def _adjusted(item: pytest.Item, spec: CrateSpec) -> CrateSpec:
    """Return what conftest files and plugins make of a spec; it must be one, and within the ceilings.

    :raises SpecError: it isn't.
    """
    answer: object = item.config.hook.pytest_crate_spec(item=item, spec=spec)
    if answer is None:
        return spec
    origin = "hook pytest_crate_spec"
    if not isinstance(answer, CrateSpec):
        raise SpecError(origin=origin, key="return value", value=answer, expected="a CrateSpec or None")
    highest = build_spec([], options.ceilings(item.config))
    for key, field in LIMITS.items():
        value, most = getattr(answer, field), getattr(highest, field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SpecError(origin=origin, key=field, value=value, expected="a whole number above 0, or None")
        if f"{key}" in options.ceilings(item.config) and (value is None or value > most):
            raise SpecError(origin=origin, key=field, value=value, expected=f"at most crate_{key}_ceiling, {most}")
    return answer


LIMITS = {
    "memory": "memory_bytes",
    "cpus": "cpu_quota_usec",
    "pids": "pids",
    "timeout": "timeout_usec",
    "tmpfs": "tmpfs_bytes",
}
"""The keys that can have a ceiling, and their fields."""


def _mark_layer(config: pytest.Config, mark: pytest.Mark) -> Layer:
    if mark.args:
        raise SpecError(
            origin="@pytest.mark.crate", key="(positional)", value=mark.args[0], expected='keys, such as memory="256m"'
        )
    return Layer(origin="@pytest.mark.crate", values=mark.kwargs, directory=str(config.rootpath))


class ImageFinder:
    """Finds the file or directory that an image's reference means, without opening it; remembers answers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._names: Mapping[str, str] | None = None
        self._found: dict[str, str] = {}

    def __call__(self, reference: str) -> str:
        """Return the path.

        :raises ImageError: there is no such image.
        """
        if reference not in self._found:
            self._found[reference] = self._find(reference)
        return self._found[reference]

    def _find(self, reference: str) -> str:
        from pytest_crate.images import read_image_names, resolve_reference

        answer: object = self._config.hook.pytest_crate_image_source(reference=reference)
        if answer is not None:
            if not isinstance(answer, (str, os.PathLike)) or not os.path.exists(answer):
                raise ImageError(
                    reference, f"hook pytest_crate_image_source gave {answer!r}, which is no existing path"
                )
            return os.fspath(answer)
        root = str(self._config.rootpath)
        if self._names is None:
            pyproject = os.path.join(root, "pyproject.toml")
            self._names = read_image_names(pyproject) if os.path.exists(pyproject) else {}
        return resolve_reference(reference, names=self._names, directory=root)


def check(spec: CrateSpec, find_image: ImageFinder) -> None:
    """Check what can be known before a test runs: the image, the mounts and the CPUs are there.

    :raises ImageError: the image is missing.
    :raises SpecError: a mount's source or a CPU is missing.
    """
    if spec.image is not None:
        find_image(spec.image)
    if spec.mounts or spec.cpuset:
        from pytest_crate.sandbox import host_view

        host_view.verify(spec, origin="crate")


def _summarized(faults: list[str]) -> list[str]:
    shown = faults[:20]
    if len(faults) > len(shown):
        shown.append(f"... and {len(faults) - len(shown)} more")
    return shown
