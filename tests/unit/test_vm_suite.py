"""What runs the tests in virtual machines: without a machine, over tests that are made up."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

VM = Path(__file__).parents[1] / "vm"
TESTS = """
import time, pytest

@pytest.fixture(scope="session")
def shared():
    yield
    raise RuntimeError("left over")

@pytest.mark.parametrize("number", range(3))
def test_slow(shared, number):
    time.sleep(0.2)

@pytest.mark.skip(reason="not here")
def test_skipped():
    pass

@pytest.mark.xfail(reason="known")
def test_known():
    assert 0

def test_wrong():
    assert 1 == 2
"""


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(VM))
    return importlib.import_module("suite")


def run(directory: Path, budget: str) -> int:
    (directory / "test_it.py").write_text(TESTS)
    command = [sys.executable, str(VM / "record.py"), str(directory / "results"), budget, "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # what is installed takes a second to load
    done = subprocess.run([*command, "test_it.py"], cwd=directory, env=environment, check=False, capture_output=True)
    return done.returncode


def outcomes(directory: Path) -> list[tuple[str, str]]:
    entries = map(json.loads, (directory / "results").read_text().splitlines())
    return [(entry["test"].partition("::")[2], entry["outcome"]) for entry in entries if entry["outcome"] != "started"]


def test_a_machine_stops_when_its_budget_is_spent(tmp_path: Path) -> None:
    """What is shared is undone in the last test's name; the next machine does the rest, and only that."""
    assert run(tmp_path, "0") == 2
    assert outcomes(tmp_path) == [("test_slow[0]", "failed")]
    assert "left over" in (tmp_path / "results").read_text()
    assert run(tmp_path, "1000") == 1
    rest = [("test_slow[1]", "passed"), ("test_slow[2]", "passed"), ("test_skipped", "skipped")]
    assert outcomes(tmp_path)[1:] == [*rest, ("test_known", "xfailed"), ("test_wrong", "failed")]
    before = outcomes(tmp_path)
    assert run(tmp_path, "1000") == 5
    assert outcomes(tmp_path) == before


def test_machines_follow_until_none_is_stopped(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, record = tmp_path / "results", suite.record
    ends = iter([("a::one", "passed", 2), ("a::two", "started", 124), ("b::three", "skipped", 0)])

    def boot(options: argparse.Namespace, path: Path) -> int:
        test, outcome, status = next(ends)
        record.append(path, test, outcome, "because")
        return status

    monkeypatch.setattr(suite, "boot", boot)
    assert suite.run(argparse.Namespace(), results) == 0
    assert next(ends, None) is None
    entries = record.read(results)
    assert [entry["outcome"] for entry in entries.values()] == ["passed", "failed", "skipped"]
    text = suite.sum_up(entries)
    assert "FAILED a::two\nthe machine ended in it, with status 124" in text
    assert "skipped 1: because" in text
    assert text.endswith("1 passed, 1 failed, 1 skipped, 0 xfailed")


def test_a_machine_that_does_nothing_is_the_last(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "boot", lambda *_: 2)
    assert suite.run(argparse.Namespace(), tmp_path / "results") == 2
