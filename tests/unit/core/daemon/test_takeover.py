"""Who takes over: one at a time. What happens then is in ``integration/test_takeover.py``."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli import upgrade as upgrading
from crinoid.core.config.models import Config
from crinoid.core.daemon.directories import TAKEOVER_SOCKET
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


async def test_a_daemon_that_has_much_to_do_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was said not to run after two seconds, as on a machine where everything starts at once."""
    config = Config(root=tmp_path / "root", run=tmp_path / "run")
    config.run.mkdir()
    file = tmp_path / "config.toml"
    file.write_text(f"root = '{config.root}'\nrun = '{config.run}'\n")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await asyncio.sleep(2.5)
        writer.write(b"1\n")
        writer.close()

    with subprocess.Popen(["true"]) as successor:
        monkeypatch.setattr(upgrading, "start_orphan", lambda *_: successor.pid)
        async with await asyncio.start_unix_server(answer, config.run / TAKEOVER_SOCKET):
            found = await asyncio.to_thread(CliRunner().invoke, upgrading.upgrade, ["--config", str(file)])
            successor.wait()
            reaped = await asyncio.to_thread(CliRunner().invoke, upgrading.upgrade, ["--config", str(file)])
    assert "has ended, see its log; process 1 serves on" in str(found.exception)
    assert str(reaped.exception) == str(found.exception)


def test_a_daemon_that_cant_be_started_is_told_with_its_program(tmp_path: Path) -> None:
    """As where a new environment has taken the place of the one that upgrades; it was a ValueError about ''."""
    program = str(tmp_path / "python")
    with pytest.raises(ConfigurationError, match=f"the new daemon can't be started: {program}: No such file"):
        upgrading.start_orphan([program, "-m", "crinoid"], {})
