"""Fakes and noops are drivers like any other, and fakes do as their roles' hooks say."""

import asyncio
import inspect
from pathlib import Path

import pytest

from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from crinoid.core.api.testing import fakes, noops
from crinoid.core.api.values.image import Descriptor, ImageReference
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest, ContainerStatus
from crinoid.core.api.values.snapshot import LayerDescriptor
from crinoid.core.config.models import SlotConfig
from crinoid.core.slots.binding import adopt
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.roles import ROLES

HANDLE = ContainerHandle("c1", "p1", Path("/bundle"), "/cgroup")
REQUEST = ContainerRequest(handle=HANDLE, spec={})
GUEST = frozenset({"traits", "wait_pod", "update_pod", "pod_stats", "forward_port"})
LEFT_OUT = {"snapshotter": {"bring_layer"}, "runtime": GUEST}


@pytest.mark.parametrize("kind", [fakes, noops])
@pytest.mark.parametrize("role", ROLES)
def test_each_fits_the_hooks_of_its_role(kind: object, role: str, tmp_path: Path) -> None:
    prefix = "Fake" if kind is fakes else "Noop"
    factory = getattr(kind, prefix + role.capitalize())
    host = fakes.fake_host(tmp_path)
    binding = adopt(
        factory(NoOptions(), host), InstalledDriver(role, "x", "d", "1", "d:D"), SlotConfig(driver="x"), host
    )
    assert binding.implemented >= ROLES[role].hooks - ROLES[role].optional
    if kind is fakes:
        assert binding.implemented == ROLES[role].hooks - LEFT_OUT.get(role, set()), "a fake leaves nothing else out"


def test_a_runtime_of_guests_is_a_fake_of_its_own(tmp_path: Path) -> None:
    host = fakes.fake_host(tmp_path)
    fake = fakes.FakeGuestRuntime(NoOptions(), host)
    binding = adopt(fake, InstalledDriver("runtime", "x", "d", "1", "d:D"), SlotConfig(driver="x"), host)
    assert binding.implemented == ROLES["runtime"].hooks - {"exec_sync"}


async def test_a_snapshotter_that_brings_layers_is_a_fake_of_its_own(tmp_path: Path) -> None:
    host = fakes.fake_host(tmp_path)
    fake = fakes.FakeBringingSnapshotter(NoOptions(), host)
    binding = adopt(fake, InstalledDriver("snapshotter", "x", "d", "1", "d:D"), SlotConfig(driver="x"), host)
    assert binding.implemented == ROLES["snapshotter"].hooks
    reference = ImageReference.parse("registry.test/app:1")
    layers = [
        LayerDescriptor(f"sha256:{n}", None, f"sha256:{n}", Descriptor("m", "sha256:b", 1), reference) for n in "12"
    ]
    fake.brings = {layers[0].chain_id}
    assert [await fake.bring_layer(layer) for layer in layers] == [True, False]
    assert await fake.list_layers() == ((layers[0].chain_id, None),)


@pytest.fixture
def runtime(tmp_path: Path) -> fakes.FakeRuntime:
    return fakes.FakeRuntime(NoOptions(), fakes.fake_host(tmp_path))


async def test_a_container_goes_through_its_states(runtime: fakes.FakeRuntime) -> None:
    assert (await runtime.state(HANDLE)).status is ContainerStatus.ABSENT
    process = await runtime.create(REQUEST)
    assert process.pid >= fakes.FIRST_FAKE_PID
    assert (await runtime.state(HANDLE)).status is ContainerStatus.CREATED
    await runtime.start(HANDLE)
    waiting = asyncio.create_task(runtime.wait(HANDLE))
    runtime.finish("c1", 3)
    assert (await waiting).exit_code == 3
    state = await runtime.state(HANDLE)
    assert (state.status, state.pid) == (ContainerStatus.STOPPED, 0)
    for _ in range(2):
        await runtime.delete(HANDLE)
    with pytest.raises(NotFound):
        await runtime.wait(HANDLE)


async def test_a_container_is_made_and_started_once(runtime: fakes.FakeRuntime) -> None:
    await runtime.create(REQUEST)
    with pytest.raises(AlreadyExists):
        await runtime.create(REQUEST)
    await runtime.start(HANDLE)
    with pytest.raises(FailedPrecondition):
        await runtime.start(HANDLE)


async def test_a_signal_ends_a_container_unless_it_is_ignored(runtime: fakes.FakeRuntime) -> None:
    await runtime.create(REQUEST)
    runtime.ignores_sigterm = True
    await runtime.kill(HANDLE, 15, False)
    assert (await runtime.state(HANDLE)).status is ContainerStatus.CREATED
    await runtime.kill(HANDLE, 9, True)
    assert (await runtime.wait(HANDLE)).exit_code == 137


async def test_a_waiter_that_is_cancelled_leaves_the_others(runtime: fakes.FakeRuntime) -> None:
    await runtime.create(REQUEST)
    first, second = (asyncio.create_task(runtime.wait(HANDLE)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    runtime.finish("c1")
    assert (await second).exit_code == 0


async def test_a_fake_fails_as_often_as_it_is_told(tmp_path: Path) -> None:
    network = fakes.FakeNetwork(NoOptions(), fakes.fake_host(tmp_path))
    network.fail("status", Unavailable("once"))
    with pytest.raises(Unavailable):
        await network.status()
    assert (await network.status()).ready
    assert network.hooks_called == ("status", "status")


async def test_garbage_is_what_nobody_owns(tmp_path: Path) -> None:
    network = fakes.FakeNetwork(NoOptions(), fakes.fake_host(tmp_path))
    requests = [NetworkRequest(pod_id=name, metadata=PodMetadata(name, "n", name), netns=None) for name in "ab"]
    for request in requests:
        await network.attach(request, await network.plan(request))
    assert len({attachment.addresses for attachment in network.attached.values()}) == 2
    await network.collect_garbage(((requests[0], {}),))
    assert list(network.attached) == ["a"]


async def test_a_layer_that_carries_another_can_not_be_removed(tmp_path: Path) -> None:
    snapshotter = fakes.FakeSnapshotter(NoOptions(), fakes.fake_host(tmp_path))
    for chain_id, parent in (("one", None), ("two", "one")):
        target = await snapshotter.prepare_layer(chain_id, parent)
        assert target.directory.is_dir()
        await snapshotter.commit_layer(target.key, chain_id, parent)
    with pytest.raises(FailedPrecondition):
        await snapshotter.remove_layer("one")
    await snapshotter.remove_layer("two")
    await snapshotter.remove_layer("one")
    assert await snapshotter.list_layers() == ()


def test_the_parameters_of_fakes_are_those_of_the_hooks() -> None:
    others = {"bring_layer": fakes.FakeBringingSnapshotter} | dict.fromkeys(GUEST, fakes.FakeGuestRuntime)
    for name, role in ROLES.items():
        for hook in role.hooks:
            fake = others.get(hook) or getattr(fakes, f"Fake{name.capitalize()}")
            wanted = inspect.signature(getattr(role.specification, hook)).parameters
            assert list(inspect.signature(getattr(fake, hook)).parameters) == list(wanted), f"{name} {hook}"
