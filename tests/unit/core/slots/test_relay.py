"""A relay is a driver like any other, and passes everything on."""

from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api import API_VERSION
from crinoid.core.api.hooks.conformance import find_defects, hooks_of
from crinoid.core.api.testing.fakes import fake_host
from crinoid.core.api.values.runtime import ContainerHandle, RuntimeFeatures, RuntimeTraits
from crinoid.core.config.models import DeadlinesConfig, RuntimeSlotConfig
from crinoid.core.slots.binding import adopt
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.relay import relay
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.runtime import RuntimeSlot

DEADLINES = DeadlinesConfig().runtime
HANDLE = ContainerHandle("c", "p", Path("/x"), "/y")


@pytest.mark.parametrize("role", ROLES)
def test_it_has_the_hooks_as_they_are_specified(role: str) -> None:
    specification = ROLES[role].specification
    driver = relay(specification, hooks_of(specification), lambda *_: None)
    assert find_defects(driver, specification) == ()


async def test_calls_are_passed_on_by_name(tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, object]]] = []
    answers = {"probe": RuntimeFeatures(name="far", version="1")}

    async def later(answer: object) -> object:
        return answer

    def ask(hook: str, arguments: dict[str, object]) -> Any:
        asked.append((hook, arguments))
        return RuntimeTraits(mounts_root=True) if hook == "traits" else later(answers.get(hook))

    hooks = {*hooks_of(ROLES["runtime"].specification)} - {"pause"}
    driver = relay(ROLES["runtime"].specification, hooks, ask)
    installed = InstalledDriver("runtime", "far", "far", "1", "x:y", API_VERSION)
    slot = RuntimeSlot(adopt(driver, installed, RuntimeSlotConfig(driver="far"), fake_host(tmp_path)), DEADLINES)
    assert slot.traits().mounts_root
    assert (await slot.probe()).name == "far"
    await slot.kill(HANDLE, 9, everyone=True)
    assert asked[-1] == ("kill", {"handle": HANDLE, "signal": 9, "everyone": True})
    assert not slot.implements("pause")
    assert slot.implements("resume")
