"""What extensions can change and refuse, and what they may ask of the kernel."""

import asyncio
import copy
import time
from typing import Any

import pytest

from crinoid.core.api.errors import DriverError, FailedPrecondition, InvalidArgument, NotFound, Refused
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView
from crinoid.core.api.values.adjustment import OciDevice, OciHook, OciMount, Rlimit
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata, DeviceMapping, VolumeMount
from crinoid.core.api.values.pod import LinuxResources, NamespaceMode
from crinoid.core.api.values.runtime import ContainerStatus
from crinoid.core.lifecycle.containers.adjustment import adjust_config, adjust_spec, merge_patch
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from crinoid.core.state.records import ContainerState
from support.patience import patient
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod

Json = dict[str, Any]
SPEC: Json = {
    "process": {"args": ["a"], "env": ["PATH=/bin", "A=1"], "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}]},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
        {"destination": "/data/x", "type": "bind", "source": "/x", "options": ["ro"]},
    ],
    "annotations": {"a": "1", "b": "2"},
    "linux": {"devices": [{"path": "/dev/old", "type": "c"}], "resources": {"devices": [{"allow": False}]}},
}


def changed(*changes: ContainerAdjustment) -> Json:
    spec = copy.deepcopy(SPEC)
    adjust_spec(spec, changes)
    return spec


def test_a_configuration_takes_what_it_can_say() -> None:
    config = ContainerConfig(
        metadata=ContainerMetadata("app"),
        command=("run",),
        args=("fast",),
        envs=(("A", "1"), ("B", "1")),
        mounts=(VolumeMount(container_path="/a/", host_path="/x"), VolumeMount(container_path="/b", host_path="/x")),
        devices=(DeviceMapping("/dev/a", "/dev/null"),),
        annotations={"a": "1", "b": "1"},
        resources=LinuxResources(cpu_shares=2, memory_limit_bytes=5, unified={"x": "1"}),
    )
    change = ContainerAdjustment(
        args=("walk", "slowly"),
        envs=(("B", "2"),),
        removed_envs=("A",),
        mounts=(VolumeMount(container_path="/b", host_path="/y"),),
        removed_mounts=("/a",),
        removed_devices=("/dev/a",),
        annotations=(("c", "1"),),
        removed_annotations=("a",),
        cdi_devices=("a.b/c=d",),
        resources=LinuxResources(cpu_shares=4, unified={"y": "2"}),
        oom_score_adj=7,
    )
    found = adjust_config(config, [change])
    assert (found.command, found.args) == (("walk", "slowly"), ())
    assert found.envs == (("B", "1"), ("B", "2"))  # the last one wins in the specification
    assert [(mount.container_path, mount.host_path) for mount in found.mounts] == [("/b", "/y")]
    assert (found.devices, found.cdi_devices) == ((), ("a.b/c=d",))
    assert found.annotations == {"b": "1", "c": "1"}
    assert found.resources == LinuxResources(
        cpu_shares=4, memory_limit_bytes=5, oom_score_adj=7, unified={"x": "1", "y": "2"}
    )


def test_a_specification_loses_what_is_removed_unless_it_was_just_added() -> None:
    first = ContainerAdjustment(
        removed_envs=("A", "PATH"),
        removed_mounts=("/proc", "/data/x/"),
        removed_devices=("/dev/old",),
        removed_annotations=("a", "b"),
        envs=(("A", "1"),),
        annotations=(("a", "1"),),
    )
    second = ContainerAdjustment(mounts=(VolumeMount(container_path="/data/x", host_path="/x"),))
    spec = changed(first, second)
    assert spec["process"]["env"] == ["A=1"]
    assert [mount["destination"] for mount in spec["mounts"]] == ["/data/x"]
    assert (spec["linux"]["devices"], spec["annotations"]) == ([], {"a": "1"})


def test_a_specification_takes_mounts_devices_hooks_and_limits() -> None:
    spec = changed(
        ContainerAdjustment(
            oci_mounts=(OciMount("/data/x", "tmpfs", "tmpfs", ("rslave",)), OciMount("/data", "bind", "/d", ("bind",))),
            oci_devices=(
                OciDevice(path="/dev/old", type="b", major=1, minor=2, file_mode=0o600, gid=0, permissions="r"),
                OciDevice(path="/dev/pipe", type="p"),
            ),
            oci_hooks=(OciHook("poststop", "/bin/x", ("x", "y"), (), 3), OciHook("poststop", "/bin/z")),
            rlimits=(Rlimit("RLIMIT_CORE", 5, 6), Rlimit("RLIMIT_CPU", 7, 8)),
            oom_score_adj=400,
        )
    )
    assert [mount["destination"] for mount in spec["mounts"]] == ["/proc", "/data", "/data/x"]
    assert spec["linux"]["rootfsPropagation"] == "rslave"
    old = {"path": "/dev/old", "type": "b", "major": 1, "minor": 2, "fileMode": 0o600, "gid": 0}
    assert spec["linux"]["devices"] == [old, {"path": "/dev/pipe", "type": "p"}]
    assert spec["linux"]["resources"]["devices"][1:] == [
        {"allow": True, "type": "b", "major": 1, "minor": 2, "access": "r"}
    ]
    assert spec["hooks"] == {
        "poststop": [{"path": "/bin/x", "args": ["x", "y"], "timeout": 3}, {"path": "/bin/z"}],
    }
    assert spec["process"]["rlimits"] == [
        {"type": "RLIMIT_CORE", "soft": 5, "hard": 6},
        {"type": "RLIMIT_CPU", "soft": 7, "hard": 8},
    ]
    assert spec["process"]["oomScoreAdj"] == 400


def test_thousands_of_mounts_and_devices_are_added_at_once() -> None:
    """Each once took a look at all the others: 4,000 held up the node for twenty seconds."""
    mounts = tuple(OciMount(f"/m/{number % 2000}", "tmpfs", str(number)) for number in range(4096))
    devices = tuple(OciDevice(path=f"/dev/d{number}", type="c", major=1, minor=number) for number in range(4096))
    began = time.process_time()
    spec = changed(ContainerAdjustment(oci_mounts=mounts, oci_devices=devices))
    assert time.process_time() - began < patient(2)
    assert [one["source"] for one in spec["mounts"] if one["destination"] == "/m/7"] == ["4007"]
    assert len(spec["mounts"]) == 2 + 2000
    assert len(spec["linux"]["devices"]) == 1 + 4096


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": [1]}, {"a": [2]}, {"a": [2]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"e": 1}, {"a": {"bb": {"ccc": None}}}, {"e": 1, "a": {"bb": {}}}),
        ([1], {"a": "b", "c": None}, {"a": "b"}),
    ],
)
def test_merge_patches_are_those_of_the_rfc(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


async def test_an_adjustment_reaches_the_runtime_and_the_record(fake_node: FakeNode) -> None:
    fake_node.extension.adjustment = ContainerAdjustment(
        envs=(("A", "1"),),
        cgroup="/elsewhere/c",
        resources=LinuxResources(cpu_shares=77),
        spec_patch={"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}, "process": {"cwd": "/x"}},
    )
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    request = fake_node.runtime.requests[container]
    assert "A=1" in request.spec["process"]["env"]
    assert (request.handle.cgroup, request.spec["linux"]["cgroupsPath"]) == ("/elsewhere/c", "/elsewhere/c")
    assert (request.spec["process"]["cwd"], request.seccomp) == ("/x", None)
    assert request.spec["linux"]["resources"]["cpu"] == {"shares": 77}
    record = fake_node.now.containers.get(container)
    assert (record.resources.cpu_shares, record.handle.cgroup) == (77, "/elsewhere/c")
    assert record.config == a_container()
    assert await fake_node.now.containers.create(pod, a_container(), None) == container, "a retry finds it"


async def test_a_cgroup_of_an_adjustment_ends_with_its_container(fake_node: FakeNode) -> None:
    fake_node.extension.adjustment = ContainerAdjustment(cgroup="/else/where/c")
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    assert fake_node.machine.marks["/else/where/c"] == container
    await fake_node.now.containers.remove(container)
    assert not {one for one in fake_node.machine.cgroups if one.startswith("/else")}


@pytest.mark.parametrize("author", ["", "NRI plugin 10-test"])
async def test_a_cgroup_that_is_there_is_refused(fake_node: FakeNode, author: str) -> None:
    """The runtime would take it over, and kill and remove what is in it."""
    fake_node.machine.cgroups |= {"/foreign", "/foreign/inner"}
    pod = await fake_node.now.pods.run(a_pod(), "")
    other = await fake_node.now.containers.create(pod, a_container("other"), None)
    before = set(fake_node.machine.cgroups)
    for cgroup in ("/foreign", "/foreign/inner", f"/crinoid/{pod}", "/crinoid", f"/crinoid/{pod}/{other}/inner"):
        fake_node.extension.adjustment = ContainerAdjustment(cgroup=cgroup, author=author)
        with pytest.raises(Refused, match=f"^{author or 'extension .watcher.'} wants cgroup .{cgroup}"):
            await fake_node.now.containers.create(pod, a_container(), None)
        assert (fake_node.machine.cgroups, fake_node.machine.killed) == (before, [])


async def test_an_adjuster_sees_the_whole_specification(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    (call,) = [call for call in fake_node.extension.calls if call.hook == "adjust_container"]
    view = call.arguments["container"]
    assert isinstance(view, ContainerView)
    assert (view.container_id, view.state, view.image_id[:8]) == (container, ContainerStatus.ABSENT, "sha256:1")
    assert (view.spec["process"]["args"], view.pod.cgroup_parent) == (["/run"], f"/crinoid/{pod}")


async def test_a_pod_is_seen_by_nobody_until_extensions_agree(fake_node: FakeNode) -> None:
    fake_node.extension.hang("pod_starting")
    running = asyncio.create_task(fake_node.now.pods.run(a_pod(), ""))
    while "pod_starting" not in fake_node.extension.hooks_called:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert fake_node.now.pods.list(PodFilter()) == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    fake_node.extension.hang("pod_starting", False)


async def test_what_is_refused_ends_with_removal(fake_node: FakeNode) -> None:
    fake_node.extension.fail("pod_starting", Refused("not here"))
    with pytest.raises(Refused, match="not here"):
        await fake_node.now.pods.run(a_pod(), "")
    assert fake_node.extension.hooks_called[-2:] == ("pod_starting", "pod_removed")
    pod = await fake_node.now.pods.run(a_pod(), "")
    for hook in ("adjust_container", "container_created"):
        fake_node.extension.fail(hook, Refused("not so"))
        with pytest.raises(Refused, match="not so"):
            await fake_node.now.containers.create(pod, a_container(), None)
        assert fake_node.extension.hooks_called[-2:] == (hook, "container_removed")
    fake_node.runtime.fail("create", DriverError("no luck"))
    with pytest.raises(DriverError):
        await fake_node.now.containers.create(pod, a_container(), None)
    assert fake_node.extension.hooks_called[-2:] == ("adjust_container", "container_removed")
    assert fake_node.now.containers.list(ContainerFilter()) == []


async def test_a_start_can_be_refused(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    fake_node.extension.fail("container_starting", Refused("not now"))
    with pytest.raises(Refused, match="not now"):
        await fake_node.now.containers.start(container)
    record = fake_node.now.containers.get(container)
    assert (record.state, record.reason) == (ContainerState.EXITED, "StartError")
    assert fake_node.extension.hooks_called[-2:] == ("container_starting", "container_exited")
    assert "start" not in fake_node.runtime.hooks_called


async def test_an_end_is_not_held_up(fake_node: FakeNode) -> None:
    """The fake's slot has ``on_failure = "fail"``."""
    pod = await fake_node.now.pods.run(a_pod(), "")
    await fake_node.now.containers.create(pod, a_container(), None)
    for hook in ("pod_stopping", "pod_stopped", "container_exited", "container_removed", "pod_removed"):
        fake_node.extension.fail(hook, Refused("never"))
    await fake_node.now.pods.remove(pod)
    assert fake_node.machine.is_empty


async def test_new_limits_are_the_extensions(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    fake_node.extension.resources = LinuxResources(cpu_shares=9)
    await fake_node.now.containers.update(container, LinuxResources(cpu_shares=5), {})
    assert fake_node.now.containers.get(container).resources.cpu_shares == 9
    fake_node.extension.fail("container_updating", Refused("no more"))
    with pytest.raises(Refused):
        await fake_node.now.containers.update(container, LinuxResources(cpu_shares=5), {})
    assert fake_node.extension.hooks_called[-2:] == ("container_updated", "container_updating")


async def test_the_kernel_tells_updates_and_stops(fake_node: FakeNode) -> None:
    kernel = fake_node.extension.kernel
    assert kernel is not None
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    await fake_node.now.containers.start(container)
    assert [view.pod_id for view in kernel.pods()] == [pod]
    (view,) = await kernel.containers()
    assert (view.container_id, view.pod.pod_id, view.state) == (container, pod, ContainerStatus.RUNNING)
    await kernel.update_container(container, LinuxResources(memory_limit_bytes=1 << 20))
    assert fake_node.now.containers.get(container).resources.memory_limit_bytes == 1 << 20
    assert "container_updating" not in fake_node.extension.hooks_called
    with pytest.raises(InvalidArgument, match="unified"):
        await kernel.update_container(container, LinuxResources(unified={"../other/memory.max": "1"}))
    await kernel.stop_container(container, "a test")
    assert fake_node.now.containers.get(container).state is ContainerState.EXITED
    with pytest.raises(FailedPrecondition):
        await kernel.update_container(container, LinuxResources(cpu_shares=2))
    with pytest.raises(NotFound):
        await kernel.update_container("none", LinuxResources(cpu_shares=2))
    await kernel.stop_container(container, "again")


async def test_an_end_is_told_before_the_removal_that_follows_at_once(fake_node: FakeNode) -> None:
    """Here the end of other processes in a shared PID namespace comes between."""
    pod = await fake_node.now.pods.run(a_pod(pid=NamespaceMode.NODE), "")
    container = await fake_node.now.containers.create(pod, a_container(pid=NamespaceMode.NODE), None)
    await fake_node.now.containers.start(container)
    gate, enter = asyncio.Event(), fake_node.runtime._enter

    async def slowly(hook: str, **arguments: object) -> None:
        if hook == "kill":
            await gate.wait()
        await enter(hook, **arguments)

    fake_node.runtime._enter = slowly  # type: ignore[method-assign]
    fake_node.runtime.finish(container, 0)
    while fake_node.now.containers.get(container).state is not ContainerState.EXITED:  # noqa: ASYNC110  # a turn each
        await asyncio.sleep(0)
    removing = asyncio.create_task(fake_node.now.containers.remove(container))
    await asyncio.sleep(0.05)
    gate.set()
    await removing
    assert fake_node.extension.hooks_called[-2:] == ("container_exited", "container_removed")
