"""The exit code of ``suites.run`` is that of the suite, and tells of failures that the suite itself let pass."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from suites import run
from with_systemd.unit import seconds_of

PASSED = '<testcase name="[It] works" status="passed" time="1"/>'
FAILED = '<testcase name="[It] breaks" status="failed" time="1"><failure message="why"/></testcase>'
PREPARED = '<testcase name="[BeforeSuite]" status="passed" time="1"/>'


@pytest.mark.parametrize(
    ("own", "cases", "expected"),
    [
        (0, PASSED, 0),
        (3, PASSED, 3),
        (0, PASSED + FAILED, 1),
        (3, FAILED, 3),
        (0, PREPARED, 1),  # nothing ran
        (0, None, 1),
        (2, None, 2),
    ],
)
def test_a_suite_that_fails_is_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int, cases: str | None, expected: int
) -> None:
    results = tmp_path / "results"
    critest = tmp_path / "critest"
    write = "" if cases is None else f"echo '<testsuites>{cases}</testsuites>' >{results}/junit.xml\n"
    critest.write_text(f"#!/bin/sh\n{write}exit {own}\n")
    critest.chmod(0o755)

    @contextlib.contextmanager
    def node(given: argparse.Namespace, directory: Path) -> Iterator[run.Suite]:
        place: Any = SimpleNamespace(prefix=())  # of a node only these are asked
        runtime: Any = SimpleNamespace(socket=tmp_path / "x.sock")
        yield run.Suite(given, place, runtime)

    monkeypatch.setattr(run, "_node", node)
    arguments = ["critest", "--binaries", tmp_path, "--registry", tmp_path, "--results", results]
    monkeypatch.setattr(sys, "argv", ["run", *map(str, arguments)])
    assert run.main() == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1min", 60), ("1min 30s", 90), ("10min", 600), ("1min 13.800s", 73.8), ("1h 1min 500ms", 3660.5), ("0", 0)],
)
def test_a_time_span_of_systemd_is_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)
