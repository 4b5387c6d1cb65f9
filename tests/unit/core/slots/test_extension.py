"""Extensions by their slots: whose deadline counts, what a refusal overrules, and that an end is told to all."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import ConfigurationError, DeadlineExceeded, DriverError, Refused
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, PodView
from crinoid.core.api.testing.fakes import FakeExtension, fake_host
from crinoid.core.api.values.adjustment import OciHook
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata
from crinoid.core.api.values.pod import LinuxResources, PodConfig, PodMetadata
from crinoid.core.config.models import ExtensionSlotConfig
from crinoid.core.slots.binding import adopt
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.extension import ExtensionSlot, ExtensionSlots

POD = PodView("p", PodConfig(metadata=PodMetadata("pod", "ns", "uid")), "")
CONTAINER = ContainerView("c", POD, ContainerConfig(metadata=ContainerMetadata("app")), "sha256:1")


class Patient(FakeExtension):
    deadline_s = 7.0


def a_slot(driver: FakeExtension, **config: Any) -> ExtensionSlot:
    installed = InstalledDriver(
        role="extension", name="fake", distribution="fakes", version="1", target="x:y", api_version=API_VERSION
    )
    table = ExtensionSlotConfig(driver="fake", **config)
    return ExtensionSlot(adopt(driver, installed, table, driver.host), table)


@pytest.fixture
def drivers(tmp_path: Path) -> tuple[FakeExtension, FakeExtension]:
    first, second = (FakeExtension(NoOptions(), fake_host(tmp_path, name)) for name in ("first", "second"))
    return first, second


def test_the_configured_deadline_wins_over_the_drivers_own(tmp_path: Path) -> None:
    host = fake_host(tmp_path)
    slots = [
        a_slot(FakeExtension(NoOptions(), host)),
        a_slot(Patient(NoOptions(), host)),
        a_slot(Patient(NoOptions(), host), deadline_s=2),
    ]
    assert [slot._deadlines.of("pod_started") for slot in slots] == [5.0, 7.0, 2.0]


class Guard(FakeExtension):
    on_failure = "fail"


async def test_a_driver_may_say_that_its_failure_fails_the_act_and_the_configuration_wins(tmp_path: Path) -> None:
    for config, fails in (({}, True), ({"on_failure": "ignore"}, False)):
        guard = Guard(NoOptions(), fake_host(tmp_path))
        guard.fail("pod_starting", DriverError("broken"))
        slots = ExtensionSlots([a_slot(guard, **config)])
        if fails:
            with pytest.raises(DriverError, match="broken"):
                await slots.pod_starting(POD)
        else:
            await slots.pod_starting(POD)


def test_what_a_driver_can_t_say_of_its_failures(tmp_path: Path) -> None:
    class Odd(FakeExtension):
        on_failure = "panic"

    with pytest.raises(ConfigurationError, match="'panic'"):
        a_slot(Odd(NoOptions(), fake_host(tmp_path)))


async def test_a_refusal_is_never_ignored(drivers: tuple[FakeExtension, FakeExtension]) -> None:
    slots = ExtensionSlots([a_slot(driver, on_failure="ignore") for driver in drivers])
    drivers[0].fail("pod_starting", DriverError("broken"), Refused("no"))
    await slots.pod_starting(POD)
    with pytest.raises(Refused, match=r'"first" .*pod_starting: no'):
        await slots.pod_starting(POD)
    assert drivers[1].hooks_called == ("pod_starting",)


@pytest.mark.parametrize("policy", ["ignore", "fail"])
@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1), BaseException("own")])
async def test_what_ends_a_task_is_a_failure(
    drivers: tuple[FakeExtension, FakeExtension], policy: str, error: BaseException
) -> None:
    slots = ExtensionSlots([a_slot(driver, on_failure=policy) for driver in drivers])
    drivers[0].fail("pod_starting", error)
    if policy == "ignore":
        await slots.pod_starting(POD)
    else:
        with pytest.raises(DriverError, match=rf"\"first\" .*pod_starting: {type(error).__name__}"):
            await slots.pod_starting(POD)
    drivers[0].fail("pod_removed", error)
    await slots.pod_removed(POD)  # an end is told to all, whatever the policy
    assert drivers[1].hooks_called == (("pod_starting",) if policy == "ignore" else ()) + ("pod_removed",)


@pytest.mark.parametrize("policy", ["ignore", "fail"])
async def test_what_makes_no_sense_is_a_failure(drivers: tuple[FakeExtension, FakeExtension], policy: str) -> None:
    slots = ExtensionSlots([a_slot(driver, on_failure=policy) for driver in drivers])
    drivers[0].adjustment = ContainerAdjustment(oci_hooks=(OciHook("later", "/x"),))
    drivers[1].adjustment = good = ContainerAdjustment(args=("x",))
    if policy == "ignore":
        assert await slots.adjust_container(CONTAINER) == (("second", good),)
        return
    words = r"\"first\" .*adjust_container: asks for an invalid adjustment: oci_hooks: stage 'later' of /x is none of"
    with pytest.raises(DriverError, match=words):
        await slots.adjust_container(CONTAINER)


@pytest.mark.parametrize("unified", [{"../other/memory.max": "1"}, {"memory.max": 1}], ids=["path", "type"])
async def test_limits_that_make_no_sense_are_a_failure(
    drivers: tuple[FakeExtension, FakeExtension], unified: dict[str, Any]
) -> None:
    slots = ExtensionSlots([a_slot(driver, on_failure="fail") for driver in drivers])
    drivers[0].resources = LinuxResources(unified=unified)
    with pytest.raises(DriverError, match=r"\"first\" .*container_updating: asks for invalid limits"):
        await slots.container_updating(CONTAINER, LinuxResources(cpu_shares=1))


async def test_each_is_asked_about_what_the_one_before_made(drivers: tuple[FakeExtension, FakeExtension]) -> None:
    slots = ExtensionSlots([a_slot(driver) for driver in drivers])
    drivers[0].resources = LinuxResources(cpu_shares=2)
    assert await slots.container_updating(CONTAINER, LinuxResources(cpu_shares=1)) == LinuxResources(cpu_shares=2)
    assert drivers[1].calls[-1].arguments["resources"] == LinuxResources(cpu_shares=2)


async def test_an_end_is_told_to_all(drivers: tuple[FakeExtension, FakeExtension]) -> None:
    slots = ExtensionSlots([a_slot(driver, on_failure="fail") for driver in drivers])
    for hook in ("pod_stopping", "pod_stopped", "pod_removed"):
        drivers[0].fail(hook, Refused("never"))
        await getattr(slots, hook)(POD)
    drivers[0].fail("container_removed", DriverError("broken"))
    await slots.container_removed(CONTAINER)
    assert drivers[1].hooks_called == ("pod_stopping", "pod_stopped", "pod_removed", "container_removed")


async def test_a_hook_that_hangs_is_cut_off(drivers: tuple[FakeExtension, FakeExtension]) -> None:
    drivers[0].hang("pod_starting")
    with pytest.raises(DeadlineExceeded, match=r"no answer after 0\.05 s"):
        await ExtensionSlots([a_slot(drivers[0], on_failure="fail", deadline_s=0.05)]).pod_starting(POD)


def test_without_extensions_there_is_nothing_to_tell() -> None:
    assert not ExtensionSlots()
