"""Runtimes whose pods are more than namespaces, and whose images are for a platform of their own."""

import asyncio
import dataclasses
from collections.abc import Callable

import pytest

from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import InvalidArgument, NotImplementedHere, Refused, Unavailable
from crinoid.core.api.testing.fakes import FakeGuestRuntime, fake_host
from crinoid.core.api.values.image import Descriptor
from crinoid.core.api.values.pod import LinuxResources, NamespaceMode
from crinoid.core.api.values.runtime import RuntimeTraits
from crinoid.core.lifecycle.streams import StreamService
from crinoid.core.state.records import PodState
from support.patience import patient
from unit.core.lifecycle.conftest import IMAGE, FakeNode, a_container, a_pod

WASM = dataclasses.replace(IMAGE, id="sha256:" + "2" * 64, platform="wasi/wasm")


@pytest.fixture
async def guests(fake_node: FakeNode) -> FakeGuestRuntime:
    """The node's runtime, whose pods are guests from now on; of the image, it has one for each platform."""
    await fake_node.crash()
    fake_node.runtime = FakeGuestRuntime(NoOptions(), fake_host(fake_node.directory, "runc"))
    await fake_node.start()
    fake_node.now.store.images.put(WASM)
    return fake_node.runtime


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(patient(20)):
        while not true():  # noqa: ASYNC110  # there is no event for all of it
            await asyncio.sleep(0.001)


async def test_a_guest_that_ends_leaves_a_pod_that_is_not_ready(fake_node: FakeNode, guests: FakeGuestRuntime) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    await fake_node.crash()
    await fake_node.start()
    assert fake_node.now.pods.get(pod).state is PodState.READY
    guests.lose_guest(pod, "the guest has panicked")
    await until(lambda: fake_node.now.pods.get(pod).state is PodState.NOT_READY)
    await fake_node.now.pods.remove(pod)
    assert guests.guests == ()


async def test_the_end_of_a_guest_that_is_stopped_is_no_news(
    fake_node: FakeNode, guests: FakeGuestRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    await fake_node.now.pods.stop(pod)
    assert guests.guests == ()
    assert "not ready any more" not in caplog.text
    await fake_node.now.pods.remove(pod)
    assert fake_node.now.store.ledger.entries() == []


@pytest.mark.parametrize("error", [Unavailable("no memory for a guest"), None])
async def test_a_pod_that_is_not_made_leaves_no_guest(
    fake_node: FakeNode, guests: FakeGuestRuntime, error: Unavailable | None
) -> None:
    """The guest is there in part when start_pod fails, and whole when an extension refuses the pod after it."""
    if error is None:
        fake_node.extension.fail("pod_starting", Refused("not this one"))
    else:
        guests.fail("start_pod", error)
    with pytest.raises((Unavailable, Refused)):
        await fake_node.now.pods.run(a_pod(), "")
    assert guests.guests == ()
    assert fake_node.now.store.ledger.entries() == []


async def test_a_daemon_that_is_killed_leaves_no_guest_without_a_pod(
    fake_node: FakeNode, guests: FakeGuestRuntime
) -> None:
    guests.hang("start_pod")
    running = asyncio.ensure_future(fake_node.now.pods.run(a_pod(), ""))
    await until(lambda: guests.guests)
    await fake_node.crash()
    with pytest.raises(asyncio.CancelledError):
        await running
    await fake_node.start()
    assert guests.guests == ()


async def test_limits_and_statistics_of_a_pod(fake_node: FakeNode, guests: FakeGuestRuntime) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    limits = LinuxResources(memory_limit_bytes=1 << 30)
    await fake_node.now.pods.update(pod, limits, None)
    call = next(call for call in guests.calls if call.hook == "update_pod")
    assert (call.arguments["resources"], call.arguments["overhead"]) == (limits, None)
    usage = (await fake_node.now.stats.pod(pod)).usage
    assert usage is not None
    assert usage.cpu_ns == 4711
    guests.fail("update_pod", Unavailable("the guest does not answer"))
    with pytest.raises(Unavailable, match="the guest does not answer"):
        await fake_node.now.pods.update(pod, LinuxResources(cpu_shares=2), None)
    assert fake_node.now.pods.get(pod).resources == limits, "what was not done is not on record"
    guests.fail("pod_stats", Unavailable("the guest does not answer"))
    assert (await fake_node.now.stats.pod(pod)).usage is None


async def test_a_port_of_a_guest(fake_node: FakeNode, guests: FakeGuestRuntime) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    connection = await StreamService(fake_node.now.containers, fake_node.now.pods).connect(pod, 80)
    (there,) = guests.forwarded
    with connection, there:
        assert not connection.getblocking()
        await asyncio.get_running_loop().sock_sendall(connection, b"hello")
        assert there.recv(5) == b"hello"


async def test_a_runtime_without_exec_says_so(fake_node: FakeNode, guests: FakeGuestRuntime) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    await fake_node.now.containers.start(container)
    with pytest.raises(NotImplementedHere, match="has no exec_sync: its driver can't execute commands"):
        await fake_node.now.containers.exec_sync(container, ("ls",), None)


async def test_a_name_means_the_image_for_the_runtimes_platform(fake_node: FakeNode, guests: FakeGuestRuntime) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    assert fake_node.now.containers.get(container).image_id == WASM.id
    native = dataclasses.replace(a_container("other"), image=IMAGE.id)
    with pytest.raises(InvalidArgument, match=r'is for linux/\w+, and runtime handler "runc" runs wasi/wasm'):
        await fake_node.now.containers.create(pod, native, None)


async def test_an_artifact_that_the_runtime_runs(fake_node: FakeNode, guests: FakeGuestRuntime) -> None:
    """The first file is the program of a container that names none."""
    pod = await fake_node.now.pods.run(a_pod(), "")
    titled = {"org.opencontainers.image.title": "app.wasm"}
    artifact = dataclasses.replace(
        IMAGE,
        id="sha256:" + "3" * 64,
        tags=("docker.io/test/module:1",),
        config="{}",
        artifact="application/x.wasm",
        layers=(Descriptor("application/wasm", "sha256:" + "4" * 64, 1, titled),),
    )
    fake_node.now.store.images.put(artifact)
    images = fake_node.now.images
    images.check_platform(artifact, "runc")
    assert images.defaults_of(artifact).entrypoint == ("/app.wasm",)
    other = dataclasses.replace(artifact, id="sha256:" + "5" * 64, tags=("docker.io/test/x:1",), artifact="text/plain")
    fake_node.now.store.images.put(other)
    with pytest.raises(InvalidArgument, match="artifact of type text/plain: mount it as a volume"):
        await fake_node.now.containers.create(pod, dataclasses.replace(a_container(), image="test/x:1"), None)


async def test_processes_that_a_guest_shares(fake_node: FakeNode, guests: FakeGuestRuntime) -> None:
    """Without an init process of the node's, and without a PID namespace of the container's own."""
    guests.told = RuntimeTraits(shares_processes=True)
    config = a_pod()
    shared = dataclasses.replace(config.security.namespaces, pid=NamespaceMode.POD)
    config = dataclasses.replace(config, security=dataclasses.replace(config.security, namespaces=shared))
    pod = await fake_node.now.pods.run(config, "")
    assert fake_node.now.pods.get(pod).init is None
    wanted = a_container()
    wanted = dataclasses.replace(wanted, security=dataclasses.replace(wanted.security, namespaces=shared))
    container = await fake_node.now.containers.create(pod, wanted, None)
    assert list(guests.requests) == [container], "it is the only one that was made"
    kinds = [one["type"] for one in guests.requests[container].spec["linux"]["namespaces"]]
    assert "pid" not in kinds
    assert "network" in kinds


async def test_a_runtime_that_mounts_roots_itself(fake_node: FakeNode, guests: FakeGuestRuntime) -> None:
    guests.told = RuntimeTraits(mounts_root=True)
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    request = guests.requests[container]
    assert request.root_mounts
    root = request.handle.bundle / "rootfs"
    assert root.is_dir()
    assert root not in fake_node.machine.mounts
    assert str(root) not in {entry.key for entry in fake_node.now.store.ledger.entries(container)}
