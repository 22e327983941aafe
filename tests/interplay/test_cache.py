"""pytest's own cache: what a test stores in it is there in the next test and in the next run."""

from __future__ import annotations

import pytest

from tests.inner import BothWays


def test_stored(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """By the fixture and by the config; the next test of the run and the next run find it."""
    pytester.makepyfile(
        """
        def test_first(cache, pytestconfig):
            cache.set("own/number", (cache.get("own/number", 0)) + 1)
            pytestconfig.cache.set("own/nested", {"list": [1, None, "\\u2603"]})
        def test_second(cache):
            print("number", cache.get("own/number", 0))
            assert cache.get("own/nested", None) == {"list": [1, None, "\\u2603"]}
        """
    )
    both_ways("-rP", plugins=[])
    again = both_ways("-rP", plugins=[])
    assert again.of("test_second")["sections"] == [["Captured stdout call", "number 2\n"]]
