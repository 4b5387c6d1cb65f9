"""A node's disk loses power during pulls and pods' lives: what was answered is there, and no byte of it is wrong."""

import os
import subprocess
import sys
from pathlib import Path

from support.patience import patient

TESTS = Path(__file__).parents[1]


def test_a_few_power_cuts() -> None:
    """Many more are in ``make chaos``; a process of its own has a mount namespace of its own."""
    command = [sys.executable, "-m", "chaos.power", "--lives", "1", "--rounds", "1", "--cuts", "2"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patient(100), check=False)
    assert (done.returncode, "2 cuts, 0 wrong" in done.stdout) == (0, True), done.stdout + done.stderr
