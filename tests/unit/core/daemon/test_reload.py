"""A reload that fails when all is made, and what one that does not says. The rest: ``integration/test_reload.py``."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.api.errors import Refused, Unavailable
from crinoid.core.config.loader import Loaded
from crinoid.core.config.models import Config
from crinoid.core.config.origins import NO_ORIGINS
from crinoid.core.daemon import logs
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


@pytest.mark.parametrize("other", [{"driver": "another"}, {"enabled": False}])
async def test_a_deadline_of_an_extension_that_stays_as_it_is_has_not_changed(
    tmp_path: Path, other: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to be changed, at each reload again."""
    monkeypatch.setattr(logs, "set_up", lambda _: None)

    def loaded(**keys: object) -> Loaded:
        extensions = {"audit": {"driver": "audit", "deadline_s": 1.0, **keys}}
        places = {"root": tmp_path / "root", "run": tmp_path / "run"}
        return Loaded(Config.model_validate({**places, "extensions": extensions}), NO_ORIGINS, ())

    former: Any = Made("audit", [])
    former.config, new = loaded().config.extensions["audit"], loaded(deadline_s=2.0, **other)
    extensions: Any = SimpleNamespace(slots=(former,))
    slots: Any = SimpleNamespace(extensions=extensions, registries={}, change_deadlines=lambda _: None)
    made: Any = NewSlots({}, (former,))
    images: Any = SimpleNamespace(settle_pulls=lambda: asyncio.sleep(0), reconfigure=lambda _: None)
    kernel: Any = object()
    reload = Reload(loaded(), lambda: new, images, slots, lambda _: lambda: made, kernel)
    for _ in range(2):
        said, _, kept = await reload.apply()
        assert said == "nothing has changed that can change at once"
        assert {*kept.rpartition(": ")[2].split(", ")} == {f"extensions.audit.{key}" for key in ("deadline_s", *other)}


async def test_a_reload_that_the_daemons_end_overtakes_comes_to_nothing(tmp_path: Path) -> None:
    """What it makes would be closed by nobody: drivers' processes, in directories that are another daemon's by then."""
    told: list[str] = []
    former, source, extension = Made("former", told), Made("source", told), Made("extension", told)
    loaded = Loaded(Config(root=tmp_path / "root", run=tmp_path / "run"), NO_ORIGINS, ())
    slots: Any = SimpleNamespace(extensions=SimpleNamespace(slots=(former,)), registries={})
    new: Any = NewSlots({"source": source}, (extension,))  # type: ignore[arg-type,dict-item]
    images: Any = SimpleNamespace(settle_pulls=lambda: asyncio.sleep(0))
    kernel: Any = object()
    begun, go_on = threading.Event(), threading.Event()

    def prepare(_: Loaded) -> Any:
        begun.set()
        go_on.wait(patient(20))
        return lambda: new

    reload = Reload(loaded, lambda: loaded, images, slots, prepare, kernel)
    applying = asyncio.create_task(reload.apply())
    await asyncio.to_thread(begun.wait, patient(20))
    closing = asyncio.create_task(reload.close())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(closing, patient(20))
    with pytest.raises(Unavailable, match="another takes over"):
        await applying
    async with asyncio.timeout(patient(20)):
        while "extension end" not in told:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
    assert told == ["source close", "extension close", "source end", "extension end"]
    assert slots.extensions.slots == (former,)
    with pytest.raises(Unavailable):
        await reload.apply()
