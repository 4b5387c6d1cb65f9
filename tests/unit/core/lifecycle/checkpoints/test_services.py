"""Checkpoints over fake drivers: whatever fails, and at whatever step, nothing is left and nothing stays frozen."""

import asyncio
import errno
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crinoid.core.api.errors import (
    AlreadyExists,
    CrinoidError,
    DeadlineExceeded,
    DriverError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from crinoid.core.api.linux.bulkheads import current_call
from crinoid.core.api.values.checkpoint import RestoreRequest
from crinoid.core.api.values.runtime import ContainerStatus
from crinoid.core.config.models import Config, PodsConfig
from crinoid.core.lifecycle.checkpoints import archive, capture
from crinoid.core.lifecycle.checkpoints.source import CheckpointSources
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.queries import PodFilter
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.state.records import ContainerState
from unit.core.lifecycle.conftest import IMAGE, FakeNode, a_container, a_pod

STEPS = [
    ("runtime", "check_checkpoint"),
    ("snapshotter", "create_snapshot"),
    ("runtime", "pause"),
    ("runtime", "checkpoint"),
]


async def running(node: FakeNode, pod: str, name: str = "app") -> str:
    """Run a container; leave in its bundle what the driver would have."""
    container = await node.now.containers.create(pod, a_container(name), None)
    spec = node.runtime.requests[container].spec
    (node.config.run / "containers" / container / "config.json").write_text(json.dumps(spec))
    await node.now.containers.start(container)
    return container


async def states(node: FakeNode) -> set[ContainerStatus]:
    records = list(node.now.store.containers)
    return {(await node.runtime.state(record.handle)).status for record in records}


def owners(node: FakeNode) -> list[str]:
    return [entry.owner for entry in node.now.store.ledger.entries() if entry.owner.startswith("checkpoint")]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    directory = tmp_path / "output"
    directory.mkdir()
    return directory


async def test_the_whole_way_of_a_container(fake_node: FakeNode, output: Path) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await running(fake_node, pod)
    location = output / "c.tar"
    await fake_node.now.checkpoints.container(container, str(location), 0)
    assert [path.name for path in output.iterdir()] == ["c.tar"]
    assert await states(fake_node) == {ContainerStatus.RUNNING}
    assert owners(fake_node) == []
    hooks = [hook for hook in fake_node.runtime.hooks_called if hook in ("pause", "checkpoint", "resume")]
    assert hooks == ["pause", "checkpoint", "resume"]

    restored = await fake_node.now.containers.create(pod, replace(a_container("again"), image=str(location)), None)
    assert fake_node.now.containers.get(restored).state is ContainerState.CREATED
    assert restored not in fake_node.runtime.requests, "nothing runs before it is started"
    await fake_node.now.containers.start(restored)
    record = fake_node.now.containers.get(restored)
    assert (record.state, record.checkpoint, record.pid > 0) == (ContainerState.RUNNING, None, True)
    (restoring,) = [call.arguments["request"] for call in fake_node.runtime.calls if call.hook == "restore"]
    assert isinstance(restoring, RestoreRequest)
    assert restoring.former_cgroup == fake_node.now.containers.get(container).handle.cgroup
    fake_node.runtime.finish(restored, 3)
    await fake_node.now.pods.remove(pod)
    assert fake_node.now.store.ledger.entries() == []
    assert not list((fake_node.config.root / "checkpoints").iterdir())


@pytest.mark.parametrize("error", [DriverError("no luck"), FailedPrecondition("not now"), Unsupported("no criu")])
@pytest.mark.parametrize(("role", "hook"), STEPS)
async def test_a_step_that_fails(fake_node: FakeNode, output: Path, role: str, hook: str, error: CrinoidError) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    containers = [await running(fake_node, pod, name) for name in ("one", "two")]
    getattr(fake_node, role).fail(hook, error)
    with pytest.raises(type(error)):
        await fake_node.now.checkpoints.container(containers[0], str(output / "c.tar"), 0)
    getattr(fake_node, role).fail(hook, error)
    with pytest.raises(type(error)):
        await fake_node.now.checkpoints.pod(pod, str(output), containers, {})
    assert list(output.iterdir()) == []
    assert owners(fake_node) == []
    assert await states(fake_node) == {ContainerStatus.RUNNING}
    await fake_node.now.checkpoints.pod(pod, str(output), containers, {})


async def test_no_thread_of_the_daemons_own_goes_where_a_request_says(
    fake_node: FakeNode, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hang there, and the daemon's own are for everybody."""
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await running(fake_node, pod)
    asyncio.get_running_loop().set_default_executor(fake_node.now.threads)
    found: dict[str, set[str]] = {}

    def noted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            made = current_call()
            found.setdefault(name, set()).add(made.behalf.owner if made else "")
            return function(*arguments)

        return call

    for module, names in (
        (
            capture,
            ("_check_location", "_check_directory", "_write_documents", "_publish", "write_diff", "sync_directory"),
        ),
        (archive, ("pack",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    await fake_node.now.checkpoints.pod(pod, str(output), [container], {})
    await fake_node.now.checkpoints.container(container, str(output / "c.tar"), 0)
    assert len(found) == 7
    assert "" not in set.union(*found.values()), found


async def test_a_time_that_passes(fake_node: FakeNode, output: Path) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await running(fake_node, pod)
    fake_node.runtime.hang("checkpoint")
    with pytest.raises(DeadlineExceeded, match=r"given up after 0\.2 s"):
        await fake_node.now.checkpoints.container(container, str(output / "c.tar"), 0.2)
    assert list(output.iterdir()) == []
    assert await states(fake_node) == {ContainerStatus.RUNNING}


async def test_all_are_frozen_before_one_is_captured(fake_node: FakeNode, output: Path) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    containers = [await running(fake_node, pod, name) for name in ("one", "two")]
    await fake_node.now.checkpoints.pod(pod, str(output), containers, {})
    hooks = [hook for hook in fake_node.runtime.hooks_called if hook in ("pause", "checkpoint", "resume")]
    assert hooks == ["pause", "pause", "checkpoint", "checkpoint", "resume", "resume"]
    assert sorted(path.name for path in output.iterdir()) == ["one-0.tar", "pod.dump", "pod.options", "two-1.tar"]


async def test_a_daemon_that_is_killed_meanwhile(fake_node: FakeNode, output: Path) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await running(fake_node, pod)
    fake_node.runtime.hang("checkpoint")
    task = asyncio.create_task(fake_node.now.checkpoints.pod(pod, str(output), [container], {}))
    async with asyncio.timeout(60):
        while "checkpoint" not in fake_node.runtime.hooks_called:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await fake_node.crash()
    assert task.done()
    assert list(output.iterdir()) != []
    fake_node.runtime.hang("checkpoint", hangs=False)
    await fake_node.start()
    assert await states(fake_node) == {ContainerStatus.RUNNING}
    assert list(output.iterdir()) == []
    assert owners(fake_node) == []


async def test_a_container_that_waits_for_its_restore_outlives_the_daemon(fake_node: FakeNode, output: Path) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    location = output / "c.tar"
    await fake_node.now.checkpoints.container(await running(fake_node, pod), str(location), 0)
    one, two = [
        await fake_node.now.containers.create(pod, replace(a_container(name), image=str(location)), None)
        for name in ("one", "two")
    ]
    location.unlink()
    await fake_node.crash()
    await fake_node.start()
    assert fake_node.now.containers.get(one).state is ContainerState.CREATED
    await fake_node.now.containers.start(one)
    assert fake_node.now.containers.get(one).state is ContainerState.RUNNING
    await fake_node.now.containers.stop(two, 10)
    assert fake_node.now.containers.get(two).exit_code == 137
    with pytest.raises(FailedPrecondition):
        await fake_node.now.containers.start(two)


async def test_a_restore_that_fails_has_ended(fake_node: FakeNode, output: Path) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    location = output / "c.tar"
    await fake_node.now.checkpoints.container(await running(fake_node, pod), str(location), 0)
    restored = await fake_node.now.containers.create(pod, replace(a_container("again"), image=str(location)), None)
    fake_node.runtime.fail("restore", DriverError("no luck"))
    with pytest.raises(DriverError, match="no luck"):
        await fake_node.now.containers.start(restored)
    record = fake_node.now.containers.get(restored)
    assert (record.state, record.reason, record.exit_code) == (ContainerState.EXITED, "StartError", 128)


async def test_a_pod_goes_on(fake_node: FakeNode, output: Path) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    containers = [await running(fake_node, pod, name) for name in ("one", "two")]
    await fake_node.now.checkpoints.pod(pod, str(output), containers, {})
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    await fake_node.now.pods.remove(pod)
    wanted = [a_container("two"), a_container("one")]
    restored, made = await fake_node.now.restorer.restore(str(output), a_pod(), "", {}, wanted)
    assert set(made) == {"one", "two"}
    assert {record.pod_id for record in fake_node.now.store.containers} == {restored}
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}
    for container in made.values():
        await fake_node.now.containers.start(container)
    await fake_node.now.pods.remove(restored)
    assert fake_node.now.store.ledger.entries() == []


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"command": ("/other",)}, InvalidArgument, "args was"),
        ({"working_dir": "/tmp"}, InvalidArgument, "cwd was"),
        ({"envs": (("NEW", "1"),)}, InvalidArgument, "environment differs in NEW"),
        ({"image": "docker.io/test/absent:1"}, NotFound, "absent"),
        ({"tty": True}, InvalidArgument, "tty"),
    ],
)
async def test_another_container_than_the_one_that_was(
    fake_node: FakeNode, output: Path, change: dict[str, Any], kind: type[CrinoidError], words: str
) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    await fake_node.now.checkpoints.pod(pod, str(output), [await running(fake_node, pod)], {})
    await fake_node.now.pods.remove(pod)
    with pytest.raises(kind, match=words):
        await fake_node.now.restorer.restore(str(output), a_pod(), "", {}, [replace(a_container("app"), **change)])
    assert fake_node.now.pods.list(PodFilter()) == []
    assert fake_node.now.store.ledger.entries() == []


async def test_a_pod_that_is_there_is_not_taken_along(fake_node: FakeNode, output: Path) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    fake_node.now.pods.acknowledge(pod)
    await fake_node.now.checkpoints.pod(pod, str(output), [await running(fake_node, pod)], {})
    with pytest.raises(AlreadyExists):
        await fake_node.now.restorer.restore(str(output), a_pod(), "", {}, [a_container("app")])
    assert [record.id for record in fake_node.now.pods.list(PodFilter())] == [pod]


@pytest.mark.parametrize(
    ("location", "words"),
    [("/" + "n" * 5000, "name too long"), ("/tmp/" + "n" * 300, "name too long"), ("/tmp/a\0b", "location")],
)
async def test_a_place_that_can_not_be(fake_node: FakeNode, location: str, words: str) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await running(fake_node, pod)
    with pytest.raises(InvalidArgument, match=words):
        await fake_node.now.checkpoints.container(container, location, 0)
    with pytest.raises(InvalidArgument):
        await fake_node.now.checkpoints.pod(pod, location, [container], {})
    with pytest.raises(InvalidArgument):
        await fake_node.now.restorer.restore(location, a_pod("other"), "", {}, [a_container("app")])
    assert await states(fake_node) == {ContainerStatus.RUNNING}


async def test_a_full_disk_is_said_to_be_full(fake_node: FakeNode, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        (disk / "filler").write_bytes(bytes(60 << 10))
        (disk / "output").mkdir()
        pod = await fake_node.now.pods.run(a_pod(), "")
        container = await running(fake_node, pod)
        with pytest.raises(ResourceExhausted, match="can't be written"):
            await fake_node.now.checkpoints.container(container, str(disk / "c.tar"), 0)
        with pytest.raises(ResourceExhausted, match="can't be written"):
            await fake_node.now.checkpoints.pod(pod, str(disk / "output"), [container], {})
        assert sorted(path.name for path in disk.rglob("*")) == ["filler", "output"]
        assert await states(fake_node) == {ContainerStatus.RUNNING}
        assert owners(fake_node) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("allowed", "goes"), [((), False), (("docker.io/test/*",), True), (("docker.io/test/img@*", "other/*"), False)]
)
def test_which_images_may_be_restored(tmp_path: Path, allowed: tuple[str, ...], goes: bool) -> None:
    record = replace(IMAGE, annotations={"org.criu.checkpoint.container.name": "app"})
    images = cast("ImageService", SimpleNamespace(find=lambda _name: record))
    config = Config(root=tmp_path, run=tmp_path, pods=PodsConfig(checkpoint_images=allowed))
    sources = CheckpointSources(config, images, cast("Resources", None))
    if goes:
        assert sources.find(a_container()) is not None
        return
    with pytest.raises(FailedPrecondition, match=r"pods\.checkpoint_images"):
        sources.find(a_container())


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.ENOENT, FailedPrecondition)])
def test_a_place_that_can_not_be_written(number: int, kind: type[CrinoidError]) -> None:
    """Such as one in /proc: the request's own, so no error that says nothing."""
    error = capture._unwritten(Path("/proc/self"), OSError(number, "no"))
    assert type(error) is kind
