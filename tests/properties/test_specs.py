"""Whatever stands in markers and options: a spec, or an error that says what is wrong."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_crate.errors import SpecError
from pytest_crate.spec import CEILING_KEYS, KEYS, CrateSpec, Layer, build_spec

ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5)
VALUES = ODD | st.lists(ODD, max_size=3) | st.dictionaries(st.text(max_size=5), ODD, max_size=3)
LAYERS = st.dictionaries(st.sampled_from(sorted(KEYS)) | st.text(max_size=10), VALUES, max_size=4)

# Valid values of keys that replace each other whole.
PLAIN = st.fixed_dictionaries(
    {},
    optional={
        "memory": st.integers(1 << 20, 1 << 40) | st.sampled_from(["64m", "1.5g", "unlimited"]),
        "pids": st.integers(1, 1000),
        "timeout": st.integers(1, 1000),
        "hostname": st.from_regex(r"[a-z]{1,10}", fullmatch=True),
        "network": st.sampled_from(["none", "host"]),
        "seccomp": st.booleans(),
    },
)


@settings(deadline=None)
@given(st.lists(LAYERS, max_size=3), st.dictionaries(st.sampled_from(sorted(CEILING_KEYS)), VALUES, max_size=2))
def test_any_layers_are_a_spec_or_an_error_of_the_users(
    layers: list[dict[str, object]], ceilings: dict[str, object]
) -> None:
    """No value makes anything but a spec, whose published form is JSON, or the user's error."""
    try:
        spec = build_spec([Layer(origin="here", values=values) for values in layers], ceilings)
    except SpecError:
        return
    assert isinstance(spec, CrateSpec)
    json.dumps(spec.to_json())


@settings(deadline=None)
@given(st.lists(PLAIN, max_size=4))
def test_the_nearest_layer_wins(layers: list[dict[str, object]]) -> None:
    """Layers merged key by key are what one layer would be with, for each key, the nearest value."""
    merged = {key: value for values in layers for key, value in values.items()}
    many = build_spec([Layer(origin="m", values=values) for values in layers])
    assert many == build_spec([Layer(origin="m", values=merged)])


@settings(deadline=None)
@given(st.lists(PLAIN, max_size=3), st.integers(1 << 20, 1 << 40))
def test_nothing_exceeds_a_ceiling(layers: list[dict[str, object]], ceiling: int) -> None:
    """A spec has at most the ceiling's memory, or is refused."""
    with contextlib.suppress(SpecError):
        spec = build_spec([Layer(origin="m", values=values) for values in layers], {"memory": ceiling})
        assert spec.memory_bytes is not None
        assert spec.memory_bytes <= ceiling
