"""How the daemon ends when something of it does not: with the exit code of what ended it."""

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.api.errors import ConfigurationError, StateUnavailable
from crinoid.core.api.linux import memory
from crinoid.core.config.models import Config
from crinoid.core.config.origins import Origins
from crinoid.core.config.paths import ConfigPaths
from crinoid.core.daemon import logs, serve
from crinoid.core.slots.selection import ValidSlot, check


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (None, 0),
        (StateUnavailable("the disk is full"), os.EX_TEMPFAIL),
        (ConfigurationError("no such driver"), os.EX_CONFIG),
        (ValueError("a defect"), 1),
    ],
)
async def test_tasks_that_do_not_end_change_no_exit_code(
    failure: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd starts the daemon again after 75, and not after 78: docs/state.md."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr(serve, "_CANCEL_S", 0.01)
    ended = asyncio.Event()

    async def hang() -> None:
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ended.wait()

    hanging = asyncio.create_task(hang(), name="hangs")
    await asyncio.sleep(0)
    node: Any = SimpleNamespace(threads=SimpleNamespace(left_behind=list))
    others = asyncio.all_tasks() - {hanging, asyncio.current_task()}
    assert not others
    await serve._end(node, lambda: None, failure)
    ended.set()
    await hanging
    assert codes == [code]


def test_drivers_are_imported_before_the_loop_runs_and_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty slots take a quarter of a second of processor time: some seconds on a busy node."""
    for module, name in ((os, "umask"), (serve, "_take_descriptors"), (memory, "limit_arenas")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(logs, "set_up", lambda _: None)
    loops: list[object] = []

    def look(config: Config, origins: Origins) -> tuple[ValidSlot, ...]:
        loops.append(asyncio._get_running_loop())
        return check(config, origins)

    monkeypatch.setattr(serve, "check", look)
    file = tmp_path / "config.toml"
    file.write_text(f"root = '{tmp_path}/root'\nrun = '{tmp_path}/run'\n[network]\ndriver = 'nonsense'\n")
    with pytest.raises(ConfigurationError, match="nonsense"):
        serve.serve(ConfigPaths.at(file))
    assert loops == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
