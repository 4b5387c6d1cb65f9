"""A reload that fails when all is made: what is made then is closed. The rest is in ``integration/test_reload.py``."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.api.errors import Refused
from crinoid.core.config.loader import Loaded
from crinoid.core.config.models import Config
from crinoid.core.config.origins import NO_ORIGINS
from crinoid.core.daemon.reload import NewSlots, Reload
from support.patience import patient


class Made:
    """A slot that is made for the reload; as an extension it refuses to be connected."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told
        self.binding = SimpleNamespace(hooks=object())

    async def call(self, hook: str, *_: object, **__: object) -> None:
        self.told.append(f"{self.name} {hook}")
        if hook == "connect":
            raise Refused("no licence")

    async def close(self) -> None:
        self.told.append(f"{self.name} close")

    async def end(self) -> None:
        self.told.append(f"{self.name} end")


async def test_what_was_made_for_a_reload_that_fails_is_closed(tmp_path: Path) -> None:
    told: list[str] = []
    former, source, extension = Made("former", told), Made("source", told), Made("extension", told)
    loaded = Loaded(Config(root=tmp_path / "root", run=tmp_path / "run"), NO_ORIGINS, ())
    slots: Any = SimpleNamespace(extensions=SimpleNamespace(slots=(former,)), registries={})
    new: Any = NewSlots({"source": source}, (extension,))  # type: ignore[arg-type,dict-item]
    images: Any = SimpleNamespace(settle_pulls=lambda: asyncio.sleep(0))
    kernel: Any = object()
    reload = Reload(loaded, lambda: loaded, images, slots, lambda _: lambda: new, kernel)
    with pytest.raises(Refused):
        await reload.apply()
    async with asyncio.timeout(patient(20)):
        while "extension end" not in told:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
    assert told == ["extension connect", "source close", "extension close", "source end", "extension end"]
    assert slots.registries == {}
    assert slots.extensions.slots == (former,)
    assert reload.loaded is loaded
