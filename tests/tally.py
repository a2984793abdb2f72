"""Pytest plugin for the lanes and CI, which counts the tests that pass and lists those that ran.

``python -m pytest -p tests.tally --without-torch --at-least=1000 --ran=FILE``
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

NO_TORCH = "No module named 'torch'"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tally")
    group.addoption("--without-torch", action="store_true", help="Skip tests that fail because torch is missing.")
    group.addoption("--at-least", type=int, default=0, help="Fail if fewer tests pass.")
    group.addoption("--ran", type=Path, help="Append the ids of the tests that ran to this file.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-torch"):
        config.pluginmanager.register(WithoutTorch())
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist sees its own tests only
        config.pluginmanager.register(Tally(config.getoption("--at-least"), config.getoption("--ran")))


class WithoutTorch:
    """Skips test modules and tests that fail because torch is missing. Other failures remain failures."""

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.failed and needs_torch(report.call):
            skip(report, collector.path)
            forget(collector.path)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed and needs_torch(call):
            skip(report, item.path)
        return report


def needs_torch(call: pytest.CallInfo[object]) -> bool:
    """Whether the import of torch failed, in this process or in one whose error the test raises."""
    error = call.excinfo.value if call.excinfo else None
    while error:
        if NO_TORCH in str(error) + str(getattr(error, "stderr", "")):
            return True
        error = error.__cause__ or error.__context__
    return False


def skip(report: pytest.CollectReport | pytest.TestReport, path: Path) -> None:
    report.outcome = "skipped"
    report.longrepr = (str(path), 0, "Skipped: needs torch")


def forget(path: Path) -> None:
    """Remove a partially imported module, so that its next import fails for the same reason."""
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(path)]:
        del sys.modules[name]


class Tally:
    """Counts the tests that pass and records those that ran."""

    def __init__(self, at_least: int, ran: Path | None) -> None:
        self.at_least, self.ran, self.passed = at_least, ran, set[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        if self.ran and report.when == "call" and not report.skipped:
            with self.ran.open("a") as ids:
                ids.write(f"{report.nodeid}\n")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if len(self.passed) < self.at_least:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if len(self.passed) < self.at_least:
            terminalreporter.write_line(f"{len(self.passed)} tests passed, expected at least {self.at_least}", red=True)
