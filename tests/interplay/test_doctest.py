"""Doctests in modules and in text files."""

from __future__ import annotations

import pytest

from tests.inner import BothWays


@pytest.mark.parametrize("more", [(), ("--doctest-continue-on-failure", "--doctest-report=ndiff")])
def test_doctests(pytester: pytest.Pytester, both_ways: BothWays, more: tuple[str, ...]) -> None:
    """Passed, failed, raising and skipped ones; the namespace fixture, fixtures in text files, one failure or all."""
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture(autouse=True)
        def names(doctest_namespace): doctest_namespace["number"] = 42
        @pytest.fixture(scope="session")
        def wide(): return "wide"
        """
    )
    pytester.makepyfile(
        module='''
        """A module.

        >>> number
        42
        """
        def double(value):
            """
            >>> double(2)
            4
            >>> double(3)
            5
            >>> double(4)
            9
            >>> print("said")
            said
            """
            return 2 * value
        def breaks():
            """
            >>> breaks()
            1
            """
            raise ValueError("no")
        def skipped():
            """
            >>> skipped()  # doctest: +SKIP
            1
            """
        def private():
            """
            >>> import os
            >>> state = os.environ.setdefault("SET_BY_A_DOCTEST", "x")
            >>> state
            'x'
            """
        '''
    )
    pytester.maketxtfile(
        test_text="""
        >>> getfixture("wide")
        'wide'
        >>> number + 1
        43
        >>> 1 / 0
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
        """,
        notes=">>> 1 + 1\n3\n",
    )
    run = both_ways("--doctest-modules", "--doctest-glob=*.txt", "-rA", *more, plugins=[])
    assert run.outcomes() == {"passed": 3, "failed": 3, "skipped": 1}
