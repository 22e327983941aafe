"""unittest's own ways: class set-up, clean-ups, subtests, skips, expected failures, async cases."""

from __future__ import annotations

import importlib.util

import pytest

from tests.comparing import without_varying
from tests.inner import BothWays, RunInner

SUBTESTS = importlib.util.find_spec("_pytest.subtests") is not None

SUITE = """
import asyncio, unittest

def setUpModule(): print("module up")
def tearDownModule(): print("module down")

class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.made = ["class"]; cls.addClassCleanup(print, "class cleaned"); print("class up")
    @classmethod
    def tearDownClass(cls): print("class down", cls.made)
    def setUp(self): self.made = [*self.made, "own"]; self.addCleanup(print, "cleaned"); print("up")
    def tearDown(self): print("down")
    def test_passes(self): self.assertEqual(self.made, ["class", "own"])
    def test_fails(self): self.assertEqual([1], [2], "said")
    def test_raises(self): raise ValueError("plain")
    def test_skips(self): self.skipTest("not now")
    @unittest.skip("never")
    def test_skipped(self): raise AssertionError
    @unittest.expectedFailure
    def test_expected(self): self.fail("as foreseen")
    @unittest.expectedFailure
    def test_unexpected(self): pass
    def test_subtests(self):
        for number in range(4):
            with self.subTest("each", number=number): self.assertNotEqual(number, 5)
    def test_subtests_skip(self):
        for number in range(3):
            with self.subTest(number=number):
                if number == 1: self.skipTest("one")
    def test_logs(self):
        with self.assertLogs("crate", "INFO") as logs:
            import logging; logging.getLogger("crate").info("noted")
        self.assertEqual(logs.output, ["INFO:crate:noted"])

class SkippedInSetUpClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("not this class")
    def test_never(self): raise AssertionError

class FailsInSetUpClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise ValueError("no class")
    def test_never(self): raise AssertionError

class FailsInTearDown(unittest.TestCase):
    def tearDown(self): raise ValueError("late")
    def test_passes(self): pass
    def test_fails(self): self.fail("early")

class FailsInCleanup(unittest.TestCase):
    def setUp(self): self.addCleanup(self.break_down)
    def break_down(self): raise ValueError("cleanup")
    def test_passes(self): pass

class Async(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self): self.loop = asyncio.get_running_loop()
    async def asyncTearDown(self): await asyncio.sleep(0)
    async def test_same_loop(self): self.assertIs(asyncio.get_running_loop(), self.loop)
    async def test_fails(self): await asyncio.sleep(0); self.fail("async")
    async def test_context(self):
        await self.enterAsyncContext(asyncio.timeout(30))
"""


def test_unittest(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Everything that a case can do has the same reports, with pytest's own subtests where it has them."""
    pytester.makepyfile(SUITE)
    run = both_ways("-rA", plugins=[])
    assert run.outcomes()["skipped"] >= 3
    assert run.outcomes()["xfailed"] == 1


def test_failed_subtests_of_a_case(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Each failed subtest of a case has its report, and the test fails.

    The letter of its progress is on the terminal. Without a crate pytest writes it while it captures, and so into the
    test's captured output: the one thing that differs.
    """
    pytester.makepyfile(
        """
        import unittest
        class Base(unittest.TestCase):
            def test_subtests(self):
                for number in range(4):
                    with self.subTest("each", number=number): self.assertNotEqual(number % 2, 1)
        """
    )
    plain = run_inner("-rA", plugins=[])
    crated = run_inner("--crate-all", "-rA", way="crated", plugins=[])
    compared = ("nodeid", "when", "outcome", "longrepr", "kind")
    facts = [[{name: report[name] for name in compared} for report in run.reports] for run in (plain, crated)]
    assert without_varying(str(facts[0])) == without_varying(str(facts[1]))
    assert plain.outcomes() == crated.outcomes()
    assert sum(report["outcome"] == "failed" for report in crated.reports) == (2 if SUBTESTS else 1)
    letters = ["Captured stdout call", "uu"]
    said = [[section for report in run.reports for section in report["sections"]] for run in (plain, crated)]
    assert said == [[letters] * 2 if SUBTESTS else [], []]
    assert ("test_failed_subtests_of_a_case.py uu." in crated.text) == SUBTESTS


def test_subtests(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """The subtests fixture, pytest's own or before pytest 9 pytest-subtests': passed, failed and skipped ones."""
    pytester.makepyfile(
        """
        import pytest
        def test_fixture(subtests):
            for number in range(3):
                with subtests.test("each", number=number):
                    print("number", number)
                    assert number != 1
            with subtests.test("skips"): pytest.skip("not now")
        def test_passes(subtests):
            with subtests.test(msg="one"): pass
        def test_fails(subtests):
            with subtests.test(msg="one"): assert 0
            assert 1 == 2
        """
    )
    run = both_ways("-rA", plugins=[] if SUBTESTS else ["subtests"])
    # The last report is the test's own. A failed subtest fails its test in pytest 9.
    own = [report for report in run.reports if report["nodeid"].endswith("::test_fixture") and report["when"] == "call"]
    assert own[-1]["outcome"] == ("failed" if SUBTESTS else "passed")
    assert [report["outcome"] for report in own[:-1]] == ["passed", "failed", "passed", "skipped"]
