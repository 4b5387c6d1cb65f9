"""The command itself: with no daemon it reads what one has left, and it says so when there is nothing."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crinoid.core.api.timeline import stage
from crinoid.core.cli.main import main
from crinoid.core.state import timeline_log
from crinoid.core.state.timelines import Timelines

POD = "a" * 64


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node whose daemon has left the timeline of a pod."""
    monkeypatch.setattr(timeline_log, "LEAST_FREE_BYTES", 0)
    file = tmp_path / "config.toml"
    file.write_text(f'root = "{tmp_path}/root"\nrun = "{tmp_path}/run"\nserver.socket = "{tmp_path}/run/none.sock"\n')

    async def record() -> None:
        timelines = Timelines(tmp_path / "root", 1 << 20)
        with timelines.recording("RunPodSandbox", ["ns/web", "web", POD]), stage('network "default" (bridge) attach'):
            await asyncio.sleep(0.002)

    asyncio.run(record())
    return file


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["explain", *map(str, arguments)])


def test_without_a_daemon_the_files_are_read(config: Path) -> None:
    for subject in ("web", "ns/web", POD[:8]):
        done = run(subject, "--config", config)
        assert done.exit_code == 0, done.output
        assert f"pod ns/web {POD[:13]}" in done.output
        assert 'RunPodSandbox: network "default" (bridge) attach' in done.output
    (act,) = json.loads(run("web", "-o", "json", "--config", config).output)
    assert (act["act"], act["code"]) == ("RunPodSandbox", "OK")


def test_what_is_not_known_is_said(config: Path) -> None:
    done = run("nobody", "--config", config)
    assert done.exit_code == 1
    assert "nothing is known of 'nobody'" in done.output
    assert "of an id the first 8 characters are wanted" in done.output
    assert "are wanted" not in run("somebody", "--config", config).output


def test_without_files_the_daemon_is_what_is_missing(config: Path, tmp_path: Path) -> None:
    (tmp_path / "root" / "timeline").rename(tmp_path / "elsewhere")
    done = run("web", "--config", config)
    assert done.exit_code == 1
    assert "there is no socket" in done.output


def test_flags_of_the_dry_run_need_it(config: Path) -> None:
    assert run("web", "--ask-extensions", "--config", config).exit_code == 2
