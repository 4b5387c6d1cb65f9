"""How lines of the log look, and whether it is systemd's journal that they go to."""

import logging
import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from crinoid.core.config.models import LogConfig
from crinoid.core.daemon import logs
logs.set_up(LogConfig(level="debug", format=sys.argv[1]))
log = logging.getLogger("a.b")
log.debug("one"); log.info("two"); log.warning("three\\nfour"); log.critical("five")
try:
    raise ValueError("six")
except ValueError:
    log.exception("seven")
"""


def lines(form: str, *, journal: bool) -> list[str]:
    """Return what the program writes to a pipe, which is the journal's or not."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino if journal else 1}"}
    with os.fdopen(reading) as pipe:
        subprocess.run([sys.executable, "-c", PROGRAM, form], stderr=writing, env=environment, check=True, timeout=60)
        os.close(writing)
        return pipe.read().splitlines()


def test_lines_of_the_journal_carry_their_priority_and_no_time() -> None:
    found = lines("auto", journal=True)
    assert found[:6] == ["<7>a.b: one", "<6>a.b: two", "<4>a.b: three", "<4>four", "<2>a.b: five", "<3>a.b: seven"]
    assert found[6] == "<3>Traceback (most recent call last):"
    assert found[-1] == "<3>ValueError: six"


def test_json_in_the_journal_has_its_priority_too() -> None:
    assert lines("json", journal=True)[1].startswith('<6>{"time": ')


@pytest.mark.parametrize("form", ["auto", "json"])
def test_a_pipe_that_is_not_the_journal_gets_json(form: str) -> None:
    assert lines(form, journal=False)[1].startswith('{"time": ')


def test_the_console_form_has_the_time() -> None:
    assert lines("console", journal=False)[2].endswith(f"{logging.getLevelName(30)} a.b: three")
