"""Who takes over: one at a time. What happens then is in ``integration/test_takeover.py``."""

import asyncio
import os
from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import Config
from crinoid.core.daemon.takeover import Handover, command, only_successor
from support.patience import patient


def test_of_several_successors_one_takes_over(tmp_path: Path) -> None:
    config = Config(root=tmp_path / "root", run=tmp_path / "run")
    (config.run / "pods").mkdir(parents=True)
    with only_successor(config):
        with pytest.raises(ConfigurationError, match="another crinoid is taking over"), only_successor(config):
            pass
        with only_successor(Config(root=tmp_path / "root", run=tmp_path / "elsewhere")):
            pass
    with only_successor(config):
        pass


async def test_a_command_that_fails_is_answered(tmp_path: Path) -> None:
    """Whatever it raises: who has asked would wait for a minute, and be told that no daemon runs."""

    async def fail(_: str) -> str:
        raise ValueError("a defect")

    config = Config(root=tmp_path / "root", run=tmp_path / "run")
    config.run.mkdir()
    handover = Handover(config, os.getpid())
    handover.commands["trace"] = fail
    await handover.listen()
    try:
        with pytest.raises(ConfigurationError, match="trace has failed: ValueError: a defect"):
            await asyncio.wait_for(command(config, "trace start 1 1"), patient(20))
    finally:
        handover.close()
