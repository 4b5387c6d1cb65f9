"""Checkpoints over fake drivers: whatever fails, and at whatever step, nothing is left and nothing stays frozen."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import (
    AlreadyExists,
    CrinoidError,
    DeadlineExceeded,
    DriverError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from crinoid.core.api.values.checkpoint import RestoreRequest
from crinoid.core.api.values.runtime import ContainerStatus
from crinoid.core.lifecycle.queries import PodFilter
from crinoid.core.state.records import ContainerState
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod

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
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


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
