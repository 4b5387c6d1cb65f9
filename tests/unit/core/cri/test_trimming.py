"""Memory is given back after connections that took much, and not after others."""

import asyncio

import pytest

from crinoid.core.api.linux import memory
from crinoid.core.cri import trimming
from crinoid.core.cri.trimming import Trimmer


async def test_trims_once_when_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    size, trimmed = [50 << 20], []

    def trim() -> None:
        trimmed.append(size[0])
        size[0] = 52 << 20

    monkeypatch.setattr(trimming, "_PAUSE_S", 0.001)
    monkeypatch.setattr(trimming, "_resident_bytes", lambda: size[0])
    monkeypatch.setattr(memory, "trim", trim)
    trimmer = Trimmer()
    for grown in (50 << 20, 60 << 20, 100 << 20, 60 << 20):
        size[0] = grown
        for _ in range(5):
            trimmer.note()
        async with asyncio.timeout(10):
            while trimmer._timer is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert trimmed == [100 << 20]
    trimmer.close()
