"""A pytest plugin (`-p record_results --gpu-results FILE`) that writes a line of JSON for each test as it ends.

A line at once, and not a file at the end: a driver that crashes takes the process, but not what was found before.
"""

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption("--gpu-results", metavar="FILE", help="append one line of JSON for each test to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the writer where a file is named."""
    place = config.getoption("--gpu-results")
    if place:
        config.pluginmanager.register(_Writer(Path(place)))


class _Writer:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._write(report.nodeid, report.outcome, 0.0, _why(report), ())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self._write(report.nodeid, report.outcome, report.duration, _why(report), report.user_properties)

    def _write(self, test: str, outcome: str, seconds: float, why: str, measured: object) -> None:
        row = {"test": test, "outcome": outcome, "seconds": round(seconds, 3), "why": why, "measured": dict(measured)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _why(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Returns the reason of a skip, or the last lines of a failure; nothing for what passed."""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return "\n".join(str(report.longrepr).splitlines()[-12:]) if report.longrepr else ""
