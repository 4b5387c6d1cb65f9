"""How the daemon ends when something of it does not: with the exit code of what ended it."""

import asyncio
import contextlib
import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.api.errors import ConfigurationError, StateUnavailable
from crinoid.core.daemon import serve


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
