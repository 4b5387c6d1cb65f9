"""Pytest as the guest runs it: it records each test's end, leaves out what has ended already, and stops in time.

    python tests/vm/record.py FILE SECONDS [OPTION OF PYTEST...] TEST...

FILE has a JSON object a line: ``{"test": "a.py::test_b", "outcome": "passed", "reason": "", "seconds": 1.5}``. A test
begins as ``started`` and ends as one of ``ENDS``; its last line counts. To have it run again, append another outcome.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ENDS = ("passed", "failed", "skipped", "xfailed")


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Return each test's last line."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {entry["test"]: entry for entry in map(json.loads, lines)}


def append(results: Path, test: str, outcome: str, reason: str = "", seconds: float = 0) -> None:
    """Write a line, at once."""
    entry = {"test": test, "outcome": outcome, "reason": reason, "seconds": round(seconds, 1)}
    with results.open("a") as file:
        file.write(json.dumps(entry) + "\n")


class Recorder:
    """Ends of tests, as they come."""

    def __init__(self, results: Path, budget_s: float) -> None:
        self._results, self._end = results, time.monotonic() + budget_s
        self._reports: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what has ended."""
        done = {test for test, entry in read(self._results).items() if entry["outcome"] in ENDS}
        out = [item for item in items if item.nodeid in done]
        items[:] = [item for item in items if item.nodeid not in done]
        config.hook.pytest_deselected(items=out)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Let a test that is over the budget be the last one: what a session shares is then undone in its name."""
        if nextitem is None or time.monotonic() < self._end:
            return None
        item.session.shouldstop = "there is no more time"
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return True

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Record a start."""
        self._reports = []
        append(self._results, nodeid, "started")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what set-up, call and tear-down came to."""
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Record the end: by the worst of the three."""
        worst = max(self._reports, key=lambda report: (report.failed, report.skipped))
        outcome = "xfailed" if worst.skipped and hasattr(worst, "wasxfail") else worst.outcome
        append(self._results, nodeid, outcome, _reason(worst), sum(report.duration for report in self._reports))


def _reason(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    if hasattr(report, "wasxfail"):
        return report.wasxfail
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else f"{report.when}: {report.longreprtext}"


if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[3:], plugins=[Recorder(Path(sys.argv[1]), float(sys.argv[2]))]))
