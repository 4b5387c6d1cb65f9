"""Paths are looked at by a process that may hang; here a shell that never ends stands in for it."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import Unavailable
from crinoid.core.api.linux import probes
from crinoid.core.api.linux.probes import PathProbes
from crinoid.core.api.testing.patience import patient

HANGS = 'for path; do case "$path" in */dead*) exec sleep 60;; esac; echo; done'


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the look hang at every path that has ``dead`` in it."""
    monkeypatch.setattr(probes, "_LOOK", HANGS)


async def test_whatever_answers_is_well(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    names = ("there", "fifo", "loop", "absent", "a b", "-e", "$(false)", "new\nline", "b\udcff")
    await PathProbes(patient(20)).require([*(f"{tmp_path}/{name}" for name in names), "relative", "", "/nul\0"], "x")


async def test_a_thousand_paths(tmp_path: Path) -> None:
    await PathProbes(patient(20)).require((f"{tmp_path}/{number:01000}" for number in range(1000)), "x")


@pytest.mark.usefixtures("dead")
async def test_the_one_that_hangs_is_named() -> None:
    looks = PathProbes(0.3)
    for paths in (["/dead"], ["/a", "/dead", "/z"], ["/a", "/b/dead", "/b/dead2"]):
        with pytest.raises(Unavailable, match=rf"^volume: {min(path for path in paths if 'dead' in path)} has not"):
            await looks.require(paths, "volume")


@pytest.mark.usefixtures("dead")
async def test_callers_share_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    spawn = probes.spawn

    def counted(*args: Any, **more: Any) -> Any:
        started.append(args)
        return spawn(*args, **more)

    monkeypatch.setattr(probes, "spawn", counted)
    looks = PathProbes(0.3)
    calls = [asyncio.create_task(looks.describe_hung(["/dead"])) for _ in range(5)]
    said = await asyncio.gather(*calls)
    assert len(started) == 1
    assert all(one is not None and one.startswith("/dead has not answered for") for one in said)


async def test_a_path_where_not_even_a_kill_helps_costs_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an uninterruptible wait: the signal changes nothing until the wait is over."""
    monkeypatch.setattr(probes, "_LOOK", 'read -r _ <"$1.fifo"; echo')
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"probe-{os.getpid()}"
    fifo = Path(f"{folder}.fifo")
    os.mkfifo(fifo)
    monkeypatch.setattr("crinoid.core.api.linux.process.Process.kill", lambda *_: None)
    looks = PathProbes(0.2)
    try:
        said = await looks.describe_hung([str(folder)])
        assert said is not None
        async with asyncio.timeout(0.1):  # at once
            said = await looks.describe_hung(["/other", str(folder)])
        assert said is not None
        assert said.startswith(f"{folder} has not answered for 0 s")
    finally:
        fifo.write_text("go on\n")
        fifo.unlink()
    async with asyncio.timeout(patient(10)):
        while str(folder) in looks._hung:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await looks.describe_hung(["/other"]) is None
