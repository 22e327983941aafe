"""How other people's suites are run: the wheel under test, the cache, and the table of results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity import results
from tests.parity.running import Workplace, build_wheel
from tests.parity.suites import Suite
from tests.parity.verdict import Verdict, describe, judge

CHECKOUT = Path(__file__).parents[2]

_VERDICTS = pytest.StashKey[dict[str, Verdict]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity")
    group.addoption("--parity-short", action="store_true", help="only the suites of the table marked short")
    group.addoption("--parity-scope", default="function", help="which tests share a crate: function, class, module")
    group.addoption("--parity-update", action="store_true", help="write what was seen into docs/parity-results.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_VERDICTS] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("parity_short"):
        kept = [item for item in items if "suite" not in _params(item) or _params(item)["suite"].short]
        items[:] = kept


def _params(item: pytest.Item) -> dict[str, Suite]:
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(CHECKOUT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def cache(tests_cache: Path) -> Path:
    """Where suites and their environments are kept."""
    return tests_cache / "parity"


@pytest.fixture
def compare(wheel: Path, cache: Path, pytestconfig: pytest.Config) -> Callable[[Suite], Verdict]:
    """Run a suite plain and in crates, in one process and on two workers, and compare."""
    # -n 0: some suites' own settings ask for workers.
    one, two = ("-n", "0"), ("-n", "2")
    crates = ("--crate-all", f"--crate-scope={pytestconfig.getoption('parity_scope')}")

    def run(suite: Suite) -> Verdict:
        with Workplace(suite, cache, wheel).prepared() as place:
            if suite.on_workers:
                plain = [place.run("plain -n 2", *two), place.run("plain -n 2 again", *two)]
                crated = [place.run("crates -n 2", *crates, *two)]
            else:
                plain = [place.run("plain", *one), place.run("plain again", *one), place.run("plain -n 2", *two)]
                crated = [place.run("crates", *crates, *one), place.run("crates -n 2", *crates, *two)]
        verdict = judge(suite, plain, crated)
        (place.directory / "verdict.txt").write_text(describe(suite, verdict))
        pytestconfig.stash[_VERDICTS][suite.name] = verdict
        return verdict

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    verdicts = config.stash[_VERDICTS]
    for line in results.lines(verdicts):
        terminalreporter.write_line(line)
    if config.getoption("parity_update"):
        results.update(CHECKOUT / "docs" / "parity-results.md", verdicts)
