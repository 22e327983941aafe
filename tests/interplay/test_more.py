"""Many small plugins: order and choice of tests, environment, mocks, network, checks, scenarios."""

from __future__ import annotations

import json

import pytest

from tests.comparing import without_varying
from tests.inner import BothWays, InnerRun, RunInner


def test_mock(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest-mock: function-scoped patches inside, wider ones outside, spies, stubs, comparisons that fail."""
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.fixture(scope="module")
        def wide(module_mocker): module_mocker.patch("os.getlogin", return_value="wide")
        def test_wide(wide): assert os.getlogin() == "wide"
        def test_still(): assert os.getlogin() == "wide"
        def test_own(mocker): mocker.patch("os.getcwd", return_value="/own"); assert os.getcwd() == "/own"
        def test_undone(): assert os.getcwd() != "/own"
        def test_spy(mocker):
            spy = mocker.spy(os.path, "join"); os.path.join("a", "b"); spy.assert_called_once_with("a", "b")
            assert spy.spy_return == "a/b"
        def test_fails(mocker):
            stub = mocker.stub(name="stub"); stub(1, key="a"); stub.assert_called_once_with(2, key="b")
        def test_not_called(mocker): mocker.Mock().method.assert_called()
        """
    )
    run = both_ways("-rA", plugins=["pytest_mock"])
    assert run.outcomes() == {"passed": 5, "failed": 2}


@pytest.mark.parametrize("scope", ["function", "class", "module"])
def test_randomly(pytester: pytest.Pytester, both_ways: BothWays, scope: str) -> None:
    """pytest-randomly: the same order, the same random numbers in bodies and fixtures, crates shared or not."""
    pytester.makepyfile(
        """
        import random, pytest
        @pytest.fixture(scope="module")
        def wide(): return random.random()
        @pytest.fixture
        def own(): return random.random()
        @pytest.mark.parametrize("number", range(6))
        def test_numbers(number, wide, own): print(wide, own, random.random())
        class TestClass:
            def test_one(self): print(random.getrandbits(32))
            def test_two(self): print(random.getrandbits(32))
        """
    )
    run = both_ways("-rP", "--randomly-seed=77", f"--crate-scope={scope}", plugins=["randomly"])
    assert run.outcomes() == {"passed": 8}
    numbers = [int(name[-2]) for name in _names(run) if name.endswith("]")]
    assert numbers != sorted(numbers)


def _names(run: InnerRun) -> list[str]:
    return [report["nodeid"] for report in run.reports if report["when"] == "call"]


def test_order_repeat_dependency(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest-order, pytest-repeat, pytest-dependency: what depends on a failed test is skipped."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.order(3)
        @pytest.mark.dependency(depends=["fails"])
        def test_needs_failed(): raise AssertionError
        @pytest.mark.order(2)
        @pytest.mark.dependency(depends=["passes"])
        def test_needs_passed(): pass
        @pytest.mark.order(1)
        @pytest.mark.dependency(name="fails")
        def test_fails(): assert 0
        @pytest.mark.order(0)
        @pytest.mark.dependency(name="passes")
        def test_passes(): pass
        @pytest.mark.order("last")
        @pytest.mark.repeat(3)
        def test_again(): pass
        """
    )
    run = both_ways("-v", plugins=["pytest_order", "repeat", "dependency"])
    assert run.outcomes() == {"passed": 5, "failed": 1, "skipped": 1}
    order = [name.partition("::test_")[2] for name in _names(run)]
    assert order[:4] == ["passes", "fails", "needs_passed", "again[1-3]"]


def test_env_and_freezer(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest-env's variables are there; pytest-freezer stops the clock of the body, not of pytest."""
    pytester.makeini("[pytest]\nenv =\n    FROM_INI=set\n    D:KEPT=default\n")
    pytester.makepyfile(
        """
        import datetime, os, pytest, subprocess, time
        def test_env(): assert (os.environ["FROM_INI"], os.environ["KEPT"]) == ("set", "given")
        def test_program(): assert subprocess.check_output(["sh", "-c", "echo $FROM_INI"]) == b"set\\n"
        def test_freezer(freezer):
            freezer.move_to("2001-02-03")
            assert datetime.date.today() == datetime.date(2001, 2, 3)
            freezer.tick(60)
            assert time.gmtime().tm_min == 1
        @pytest.mark.freeze_time("1999-12-31")
        def test_marker(): assert datetime.datetime.now().year == 1999
        def test_fails(freezer): freezer.move_to("2001-02-03"); assert datetime.date.today().year == 2002
        def test_back(): assert datetime.date.today().year > 2020
        """
    )
    run = both_ways("-rA", plugins=["env", "freezer"], env={"KEPT": "given"})
    assert run.outcomes() == {"passed": 5, "failed": 1}


def test_socket(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest-socket's own refusals are the same, although a crate would refuse anyway."""
    pytester.makepyfile(
        """
        import pytest, socket
        def test_disabled(): socket.socket()
        @pytest.mark.enable_socket
        def test_enabled():
            server = socket.create_server(("127.0.0.1", 0))
            socket.create_connection(server.getsockname()).close()
        @pytest.mark.allow_hosts(["127.0.0.1"])
        def test_host(): socket.create_connection(("192.0.2.1", 80), timeout=1)
        def test_fixture(socket_enabled): socket.socket().close()
        """
    )
    run = both_ways("--disable-socket", "-rA", plugins=["socket"])
    assert (run.outcomes()["passed"], run.outcomes()["failed"]) == (2, 2)


def test_check(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest-check: all failed checks of a test, those beside an assertion, in xfail, with a limit of them."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_check import check
        def test_several():
            check.equal(1, 2, "first"); check.is_in(3, [4]); check.greater(5, 4)
            with check: assert "a" == "b"
        def test_with_assert(): check.equal(1, 2); assert 0, "afterwards"
        def test_passes(): check.equal(1, 1)
        @pytest.mark.xfail
        def test_xfails(): check.equal(1, 2)
        def test_inside_xfail(): check.equal(1, 2, xfail="known")
        def test_fixture(check): check.is_none(1)
        @pytest.fixture
        def late(): yield; check.equal(7, 8)
        def test_late(late): pass
        """
    )
    run = both_ways("-rA", plugins=["check"])
    assert run.outcomes()["xfailed"] == 2


SHOP = """
    @daily
    Feature: Shop
      What is sold

      @slow
      Scenario: Buying
        Given there are 5 apples
        When I buy 2
        Then 3 are left
      Scenario: Too many
        Given there are 1 apples
        When I buy 2
        Then 3 are left
        And 3 are left
      Scenario Outline: Several
        Given there are <start> apples
        When I buy <bought>
        Then <left> are left
        Examples:
        | start | bought | left |
        | 12    | 5      | 7    |
        | 5     | 5      | 0    |
      Rule: Nothing is for free
        Scenario: Nothing
          Given there are 1 apples
          Then 1 are left
"""

STEPS = """
    import pytest
    from pytest_bdd import given, parsers, scenarios, then, when
    scenarios("shop.feature")
    @given(parsers.parse("there are {count:d} apples"), target_fixture="apples")
    def apples(count): return {"count": count}
    @when(parsers.parse("I buy {count:d}"))
    def buy(apples, count): apples["count"] -= count
    @then(parsers.parse("{count:d} are left"))
    def left(apples, count): assert apples["count"] == count
    def test_without_steps(): pass
"""


def test_bdd(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest-bdd: scenarios from a feature file, outlines, rules, a step that fails."""
    pytester.makefile(".feature", shop=SHOP)
    pytester.makepyfile(STEPS)
    ini = "-omarkers=daily\nslow"
    run = both_ways("-v", ini, plugins=["pytest-bdd"])
    assert run.outcomes() == {"passed": 5, "failed": 1}
    # Its own report shows every step as it went, in crates too.
    run = both_ways("-vv", ini, "--gherkin-terminal-reporter", plugins=["pytest-bdd"])
    assert run.text.count("Given there are") == 5


def test_bdd_cucumber(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest-bdd: the report for Cucumber has the same steps, each with its outcome and a duration."""
    pytester.makefile(".feature", shop=SHOP)
    pytester.makepyfile(STEPS)
    found = []
    for way in ("plain", "crated"):
        all_ = ("--crate-all",) if way == "crated" else ()
        run_inner("--cucumber-json=cucumber.json", "-omarkers=daily\nslow", *all_, way=way, plugins=["pytest-bdd"])
        (feature,) = json.loads(without_varying((pytester.path / "cucumber.json").read_text()))
        results = [step["result"] for scenario in feature["elements"] for step in scenario["steps"]]
        assert all(result.pop("duration") > 0 for result in results if result["status"] == "passed")
        for result in results:
            result.pop("duration", None)
        found.append(feature)
    assert found[0] == found[1]
    assert [result["status"] for result in results].count("failed") == 2


def test_httpserver(pytester: pytest.Pytester, both_ways: BothWays, run_inner: RunInner) -> None:
    """pytest-httpserver: its session-wide server serves each test in its own crate, at the same address."""
    pytester.makepyfile(
        """
        import urllib.error, urllib.request, pytest
        def read(url):
            with urllib.request.urlopen(url, timeout=10) as answer: return answer.read()
        def test_get(httpserver):
            httpserver.expect_request("/a").respond_with_data("answer")
            assert read(httpserver.url_for("/a")) == b"answer"
            httpserver.check()
        def test_nothing_left(httpserver):
            with pytest.raises(urllib.error.HTTPError): read(httpserver.url_for("/a"))
            with pytest.raises(AssertionError): httpserver.check_assertions()
        def test_fails(httpserver):
            httpserver.expect_ordered_request("/first").respond_with_data("a")
            assert read(httpserver.url_for("/first")) == b"{}"
        """
    )
    # Ports and times of requests differ from run to run.
    run = both_ways("--tb=line", "-p", "no:logging", plugins=["pytest_httpserver"])
    assert run.outcomes() == {"passed": 2, "failed": 1}
    pytester.makepyfile(
        """
        import urllib.request, pytest
        @pytest.mark.crate(network="host")
        def test_on_the_hosts_network(httpserver):
            httpserver.expect_request("/b").respond_with_data("there too")
            with urllib.request.urlopen(httpserver.url_for("/b"), timeout=10) as answer:
                assert answer.read() == b"there too"
        """
    )
    assert run_inner(plugins=["pytest_httpserver"]).outcomes()["passed"] == 1


def test_split(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest-split: durations stored from crated runs name every test; groups are the same for the same file."""
    pytester.makepyfile("import pytest\n@pytest.mark.parametrize('n', range(6))\ndef test_it(n): pass\n")
    stored = pytester.path / ".test_durations"
    run_inner("--crate-all", "--store-durations", plugins=["pytest-split"])
    durations = json.loads(stored.read_text())
    assert len(durations) == 6
    stored.write_text(json.dumps({name: number + 1.0 for number, name in enumerate(sorted(durations))}))
    groups = []
    for way in ((), ("--crate-all",)):
        for group in ("1", "2"):
            run = run_inner(*way, "--splits=2", f"--group={group}", plugins=["pytest-split"])
            groups.append(_names(run))
    assert groups[:2] == groups[2:]
    assert sorted(groups[0] + groups[1]) == sorted(durations)


def test_all_together(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Every plugin of this directory loaded at once: the outcomes are those of the plain run."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\ntrio_mode = false")
    pytester.makepyfile(
        """
        import asyncio, pytest
        @pytest.mark.parametrize("number", range(3))
        def test_numbers(number, mocker, benchmark): assert benchmark.pedantic(lambda: number) < 2
        @pytest.mark.asyncio
        async def test_async(): await asyncio.sleep(0)
        def test_snapshot(snapshot): assert 1 == snapshot
        @pytest.mark.flaky(reruns=1)
        def test_flaky(): assert 0
        def test_skips(): pytest.skip("x")
        """
    )
    found = []
    for way in ("plain", "crated"):
        options = ["--crate-all"] if way == "crated" else []
        run = run_inner(*options, "--randomly-seed=3", "-p", "no:sugar", "-p", "no:pretty", way=way)
        found.append([(report["nodeid"], report["when"], report["outcome"]) for report in run.reports])
    assert found[1] == found[0]
    assert len({nodeid for nodeid, _, _ in found[0]}) == 7
