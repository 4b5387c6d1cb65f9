"""The extension over a real socket: plugins that join, want, refuse, dawdle, vanish and talk nonsense."""

import asyncio
import contextlib
import logging
import socket
import stat
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from crinoid.core.api.errors import ConfigurationError, Refused
from crinoid.core.api.hooks.extension import ContainerView, PodView
from crinoid.core.api.testing.fakes import FakeKernel, fake_host
from crinoid.core.api.values.adjustment import OciDevice, OciDeviceRule, OciHook, OciMount, Rlimit
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata
from crinoid.core.api.values.pod import LinuxResources, PodConfig, PodMetadata
from crinoid.core.api.values.runtime import ContainerStatus, ExitStatus
from crinoid.plugins.extensions.nri import NriExtension
from crinoid.plugins.extensions.nri.options import NriOptions
from crinoid.plugins.extensions.nri.plugin import split_sync
from crinoid.plugins.extensions.nri.wire import nri_pb2
from support.nri_plugin import NriPlugin, PluginError, subscribe
from support.patience import patient

SPEC: dict[str, Any] = {
    "process": {
        "args": ["run"],
        "env": ["A=1", "B=2"],
        "user": {"uid": 1, "gid": 2, "additionalGids": [2]},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}],
        "oomScoreAdj": 7,
    },
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
    "hooks": {"poststop": [{"path": "/x", "args": ["x"], "timeout": 3}]},
    "annotations": {"spec": "1"},
    "linux": {
        "cgroupsPath": "/pods/c",
        "namespaces": [{"type": "mount"}, {"type": "ipc", "path": "/ns/ipc"}],
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "uid": 0}],
        "resources": {
            "cpu": {"shares": 5, "cpus": "0"},
            "memory": {"limit": 9, "swappiness": 0},
            "pids": {"limit": 4},
            "devices": [{"allow": False, "access": "rwm"}],
        },
    },
}


def a_pod(name: str = "p1", namespace: str = "shop", **annotations: str) -> PodView:
    metadata = PodMetadata(name, namespace, f"uid-{name}")
    config = PodConfig(metadata=metadata, labels={"l": "1"}, annotations=annotations, cgroup_parent="/kube")
    return PodView(name, config, "runc", ("10.1.0.2",), {"network": Path("/ns/net")}, f"/kube/{name}")


def a_container(name: str = "c1", pod: PodView | None = None, **fields: Any) -> ContainerView:
    config = ContainerConfig(metadata=ContainerMetadata("app"), image="img:1", labels={"k": "v"})
    return ContainerView(name, pod or a_pod(), config, "sha256:1", "img@sha256:2", spec=SPEC, **fields)


async def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Run something blocking of a plugin."""
    return await asyncio.to_thread(function, *arguments, **named)


class Nri:
    """An extension over a fake kernel, and its plugins."""

    def __init__(self, directory: Path, **options: Any) -> None:
        paths = {
            "socket": directory / "nri.sock",
            "plugin_dir": directory / "plugins",
            "plugin_config_dir": directory / "conf",
        }
        self.config = NriOptions(**{**paths, "deadline_s": 30, "registration_deadline_s": 30, **options})
        self.driver = NriExtension(self.config, fake_host(directory, "nri"))
        self.kernel = FakeKernel()
        self.plugins: list[NriPlugin] = []

    async def join(self, name: str, index: str = "00", **handlers: Any) -> NriPlugin:
        events = handlers.pop("events", 0)
        plugin = NriPlugin(name, index, handlers, events)
        self.plugins.append(plugin)
        await call(plugin.connect, self.config.socket)
        return plugin

    def run(self, pod: PodView) -> PodView:
        self.kernel.known_pods.append(pod)
        return pod

    def have(self, container: ContainerView) -> ContainerView:
        self.kernel.known_containers.append(container)
        return container


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    made: list[Nri] = []

    async def start(**options: Any) -> Nri:
        nri = Nri(tmp_path, **options)
        made.append(nri)
        await nri.driver.connect(nri.kernel)
        return nri

    yield start
    for nri in made:
        for plugin in nri.plugins:
            plugin.close()
        await nri.driver.close()
        assert not nri.config.socket.exists()


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # of another thread
            await asyncio.sleep(0.005)


def adjusting(**wanted: Any) -> Callable[[Any], Any]:
    return lambda _request: nri_pb2.CreateContainerResponse(adjust=nri_pb2.ContainerAdjustment(**wanted))


def an_update(container: str, ignore: bool = False, **cpu: Any) -> Any:
    limits = nri_pb2.LinuxResources(cpu=nri_pb2.LinuxCPU(**cpu))
    return nri_pb2.ContainerUpdate(container_id=container, linux={"resources": limits}, ignore_failure=ignore)


async def test_a_plugin_is_configured_and_learns_what_there_is(make: Any) -> None:
    nri = await make()
    nri.run(a_pod())
    nri.have(a_container(state=ContainerStatus.RUNNING, pid=42, resources=LinuxResources(cpu_shares=6)))
    nri.have(a_container("ended", state=ContainerStatus.STOPPED))
    plugin = await nri.join("watcher", "07")
    assert plugin.methods() == ["Configure", "Synchronize"]
    (configure,) = plugin.requests("Configure")
    assert (configure.runtime_name, configure.registration_timeout, configure.request_timeout) == (
        "crinoid",
        30_000,
        30_000,
    )
    (sync,) = plugin.requests("Synchronize")
    (pod,), (container,) = sync.pods, sync.containers
    assert (pod.id, pod.name, pod.namespace, pod.uid, list(pod.ips)) == ("p1", "p1", "shop", "uid-p1", ["10.1.0.2"])
    assert (pod.runtime_handler, pod.linux.cgroup_parent, pod.labels["l"]) == ("runc", "/kube", "1")
    assert (container.id, container.name, container.pod_sandbox_id, container.pid) == ("c1", "app", "p1", 42)
    assert container.state == nri_pb2.CONTAINER_RUNNING


async def test_a_container_is_told_whole(make: Any) -> None:
    nri = await make()
    plugin = await nri.join("watcher")
    await nri.driver.adjust_container(a_container())
    (request,) = plugin.requests("CreateContainer")
    seen, linux = request.container, request.container.linux
    assert (list(seen.args), list(seen.env), seen.mounts[0].options[0]) == (["run"], ["A=1", "B=2"], "nosuid")
    assert (seen.hooks.poststop[0].path, seen.hooks.poststop[0].timeout.value) == ("/x", 3)
    assert (seen.user.uid, list(seen.user.additional_gids), seen.rlimits[0].hard) == (1, [2], 2)
    assert (seen.image.name, seen.image.digest, seen.image.config_digest) == ("img:1", "sha256:2", "sha256:1")
    assert (dict(seen.labels), dict(seen.annotations)) == ({"k": "v"}, {"spec": "1"})
    assert [(one.type, one.path) for one in linux.namespaces] == [("mount", ""), ("ipc", "/ns/ipc")]
    assert (linux.devices[0].minor, linux.devices[0].HasField("uid"), linux.devices[0].HasField("gid")) == (
        3,
        True,
        False,
    )
    assert (linux.oom_score_adj.value, linux.cgroups_path) == (7, "/pods/c")
    resources = linux.resources
    assert (resources.cpu.shares.value, resources.cpu.cpus, resources.memory.limit.value) == (5, "0", 9)
    assert (resources.memory.HasField("swappiness"), resources.pids.limit, resources.devices[0].allow) == (
        True,
        4,
        False,
    )


async def test_the_whole_life_is_told_in_order_and_once(make: Any) -> None:
    nri = await make()
    plugin = await nri.join("watcher", events=subscribe(*range(1, nri_pb2.VALIDATE_CONTAINER_ADJUSTMENT)))
    pod, container, driver = a_pod(), a_container(), nri.driver
    await driver.pod_starting(pod)
    await driver.pod_started(nri.run(pod))
    await driver.adjust_container(container)
    await driver.container_created(nri.have(container))
    await driver.container_starting(container)
    await driver.container_started(container)
    await driver.container_updating(container, LinuxResources(cpu_shares=2))
    await driver.container_updated(container)
    await driver.pod_updating(pod, LinuxResources(cpu_shares=3), None)
    await driver.pod_updated(pod)
    await driver.container_exited(container, ExitStatus(0, 1))
    await driver.pod_stopping(pod)
    await driver.container_removed(container)
    await driver.pod_removed(pod)
    assert plugin.methods()[2:] == [
        *("RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"),
        *("UpdateContainer", "PostUpdateContainer", "UpdatePodSandbox", "PostUpdatePodSandbox", "StopContainer"),
        *("StopPodSandbox", "RemoveContainer", "RemovePodSandbox"),
    ]
    assert plugin.requests("UpdateContainer")[0].linux_resources.cpu.shares.value == 2
    assert plugin.requests("UpdatePodSandbox")[0].linux_resources.cpu.shares.value == 3
    assert not plugin.requests("UpdatePodSandbox")[0].HasField("overhead_linux_resources")


async def test_what_came_to_nothing_is_stopped_and_removed(make: Any) -> None:
    nri = await make()
    plugin = await nri.join("watcher", events=subscribe(nri_pb2.STOP_CONTAINER, nri_pb2.REMOVE_CONTAINER, 2, 3))
    await nri.driver.pod_starting(a_pod())
    await nri.driver.pod_removed(a_pod())
    await nri.driver.adjust_container(a_container())
    await nri.driver.container_removed(a_container())
    assert plugin.methods()[2:] == ["StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer"]


async def test_every_adjustment_is_understood(make: Any) -> None:
    nri = await make()
    linux = nri_pb2.LinuxContainerAdjustment(
        devices=[{"path": "/dev/y", "type": "c", "major": 1, "file_mode": {"value": 0o600}}, {"path": "-/dev/x"}],
        resources=nri_pb2.LinuxResources(
            memory={"limit": {"value": 100}, "reservation": {"value": 50}, "swappiness": {"value": 0}},
            cpu={"shares": {"value": 10}, "cpus": "1", "realtime_period": {"value": 3}},
            hugepage_limits=[{"page_size": "2MB", "limit": 4}],
            unified={"memory.high": "1"},
            rdt_class={"value": "gold"},
            pids={"limit": 9},
            devices=[{"allow": True, "type": "b", "major": {"value": 8}, "access": "r"}],
        ),
        cgroups_path="/other",
        oom_score_adj={"value": 0},
        io_priority=nri_pb2.LinuxIOPriority(**{"class": nri_pb2.IOPRIO_CLASS_BE, "priority": 3}),
        seccomp_policy={
            "default_action": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["kexec"], "action": "SCMP_ACT_LOG"}],
        },
        namespaces=[{"type": "-ipc"}, {"type": "network", "path": "/ns/net"}],
        sysctl={"net.a": "1", "-net.b": ""},
        net_devices={"eth7": nri_pb2.LinuxNetDevice(name="fast")},
        scheduler={"policy": nri_pb2.SCHED_FIFO, "priority": 5, "flags": [nri_pb2.SCHED_FLAG_RECLAIM]},
        memory_policy={"mode": nri_pb2.MPOL_BIND, "nodes": "0"},
    )
    await nri.join(
        "wants",
        CreateContainer=adjusting(
            annotations={"a": "1", "-spec": ""},
            mounts=[
                {"destination": "/m", "type": "tmpfs", "source": "t", "options": ["ro"]},
                {"destination": "-/proc"},
            ],
            env=[{"key": "C", "value": "3"}, {"key": "-A"}],
            hooks={"create_runtime": [{"path": "/h", "args": ["h"], "timeout": {"value": 2}}]},
            rlimits=[{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}],
            CDI_devices=[{"name": "a.b/c=d"}],
            args=["walk"],
            linux=linux,
        ),
    )
    found = await nri.driver.adjust_container(a_container())
    assert (found.annotations, found.removed_annotations) == ((("a", "1"),), ("spec",))
    assert (found.oci_mounts, found.removed_mounts) == ((OciMount("/m", "tmpfs", "t", ("ro",)),), ("/proc",))
    assert (found.envs, found.removed_envs, found.args) == ((("C", "3"),), ("A",), ("walk",))
    assert found.oci_hooks == (OciHook("createRuntime", "/h", ("h",), (), 2),)
    assert (found.rlimits, found.cdi_devices) == ((Rlimit("RLIMIT_CPU", 1, 2),), ("a.b/c=d",))
    assert found.oci_devices == (OciDevice(path="/dev/y", type="c", major=1, file_mode=0o600),)
    assert found.removed_devices == ("/dev/x",)
    assert found.oci_device_rules == (OciDeviceRule(allow=True, type="b", major=8, access="r"),)
    assert (found.cgroup, found.oom_score_adj) == ("/other", 0)
    assert found.resources == LinuxResources(
        memory_limit_bytes=100,
        memory_swap_limit_bytes=100,
        cpu_shares=10,
        cpuset_cpus="1",
        hugepage_limits={"2MB": 4},
        unified={"memory.high": "1"},
    )
    assert found.spec_patch == {
        "process": {
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
            "scheduler": {"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RECLAIM"]},
        },
        "linux": {
            "resources": {
                "memory": {"reservation": 50, "swappiness": 0},
                "cpu": {"realtimePeriod": 3},
                "pids": {"limit": 9},
            },
            "sysctl": {"net.a": "1", "net.b": None},
            "netDevices": {"eth7": {"name": "fast"}},
            "intelRdt": {"closID": "gold"},
            "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"},
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["kexec"], "action": "SCMP_ACT_LOG"}],
            },
            "namespaces": [{"type": "mount"}, {"type": "network", "path": "/ns/net"}],
        },
    }


async def test_without_wishes_nothing_is_adjusted(make: Any) -> None:
    nri = await make()
    await nri.join("quiet")
    assert await nri.driver.adjust_container(a_container()) is None


async def test_plugins_are_asked_by_index_and_see_what_came_before(make: Any) -> None:
    nri = await make()
    second = await nri.join("b", "20", CreateContainer=adjusting(env=[{"key": "-X"}, {"key": "X", "value": "2"}]))
    await nri.join("a", "10", CreateContainer=adjusting(env=[{"key": "X", "value": "1"}, {"key": "A", "value": "9"}]))
    found = await nri.driver.adjust_container(a_container())
    assert list(second.requests("CreateContainer")[0].container.env) == ["B=2", "X=1", "A=9"]
    assert (found.envs, found.removed_envs) == ((("A", "9"), ("X", "2")), ("X",))
    assert found.authors == (("NRI plugin 10-a", "Env A"), ("NRI plugin 20-b", "Env X"))


@pytest.mark.parametrize(
    "wanted",
    [
        {"env": [{"key": "X", "value": "1"}]},
        {"annotations": {"x": "1"}},
        {"mounts": [{"destination": "/x"}]},
        {"args": ["x"]},
        {"rlimits": [{"type": "RLIMIT_CPU"}]},
        {"CDI_devices": [{"name": "a.b/c=d"}]},
        {"linux": {"devices": [{"path": "/dev/x", "type": "c"}]}},
        {"linux": {"cgroups_path": "/x"}},
        {"linux": {"oom_score_adj": {"value": 1}}},
        {"linux": {"sysctl": {"x": "1"}}},
        {"linux": {"rdt": {"clos_id": {"value": "x"}}}},
        {"linux": {"resources": {"cpu": {"shares": {"value": 1}}}}},
        {"linux": {"resources": {"unified": {"x": "1"}}}},
        {"linux": {"resources": {"pids": {"limit": 1}}}},
    ],
)
async def test_two_plugins_may_not_set_the_same(make: Any, wanted: Any) -> None:
    nri = await make()
    for index in ("10", "20"):
        await nri.join("p", index, CreateContainer=adjusting(**wanted))
    with pytest.raises(Refused, match=r"NRI plugins 10-p and 20-p both set [A-Z].* of container c1"):
        await nri.driver.adjust_container(a_container())


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"env": [{"key": "A=B"}]}, "envs: 'A=B' is no name of a variable"),
        ({"mounts": [{"destination": "/"}]}, "oci_mounts: '/' is no path below /"),
        ({"rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]}, "rlimits: RLIMIT_CPU"),
        ({"hooks": {"poststop": [{"path": "x"}]}}, "oci_hooks: 'x' is no absolute path"),
        ({"linux": {"cgroups_path": "/a/../../b"}}, "cgroup: '/a/../../b'"),
        ({"linux": {"devices": [{"path": "/dev/x", "type": "z"}]}}, "oci_devices: /dev/x is of type 'z'"),
        ({"linux": {"scheduler": {"policy": 99}}}, "99"),
        ({"linux": {"resources": {"blockio_class": {"value": "x"}}}}, "no classes are defined here"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_says_whose_it_is(make: Any, wanted: Any, words: str) -> None:
    nri = await make()
    await nri.join("sane", "10", CreateContainer=adjusting(args=["x"]))
    plugin = await nri.join("odd", "20", CreateContainer=adjusting(**wanted))
    with pytest.raises(Refused) as caught:
        await nri.driver.adjust_container(a_container())
    assert words in caught.value.message
    assert "20-odd" in caught.value.message
    assert "c1" in caught.value.message
    assert not plugin.closed.is_set()


async def test_a_command_in_place_of_anothers(make: Any) -> None:
    nri = await make()
    await nri.join("a", "10", CreateContainer=adjusting(args=["walk"]))
    second = await nri.join("b", "20", CreateContainer=adjusting(args=["", "run", ""]))
    found = await nri.driver.adjust_container(a_container())
    assert list(second.requests("CreateContainer")[0].container.args) == ["walk"]
    assert found.args == ("run", "")


async def test_a_rule_of_no_type_is_for_all_devices(make: Any) -> None:
    nri = await make()
    rule = {"allow": False, "access": "w"}
    await nri.join("a", CreateContainer=adjusting(linux={"resources": {"devices": [rule]}}))
    found = await nri.driver.adjust_container(a_container())
    assert found.oci_device_rules == (OciDeviceRule(allow=False, type="a", access="w"),)


async def test_hooks_add_up(make: Any) -> None:
    nri = await make()
    for index in ("10", "20"):
        await nri.join("p", index, CreateContainer=adjusting(hooks={"poststop": [{"path": f"/{index}"}]}))
    found = await nri.driver.adjust_container(a_container())
    assert [hook.path for hook in found.oci_hooks] == ["/10", "/20"]


def refuse(_request: Any) -> None:
    raise PluginError("I don't like it")


@pytest.mark.parametrize("policy", ["ignore", "fail"])
async def test_a_refusal_counts_whatever_the_policy(make: Any, policy: str) -> None:
    nri = await make(on_failure=policy)
    plugin = await nri.join(
        "no", **dict.fromkeys(("RunPodSandbox", "CreateContainer", "StartContainer", "UpdateContainer"), refuse)
    )
    with pytest.raises(Refused, match="NRI plugin 00-no: RunPodSandbox of pod p1: I don't like it"):
        await nri.driver.pod_starting(a_pod())
    for act in (nri.driver.adjust_container, nri.driver.container_starting):
        with pytest.raises(Refused, match=r"of container c1 \(app\): I don't like it"):
            await act(a_container())
    with pytest.raises(Refused):
        await nri.driver.container_updating(a_container(), LinuxResources())
    assert not plugin.closed.is_set(), "a refusal is no failure"


async def test_an_end_can_not_be_refused(make: Any) -> None:
    nri = await make(on_failure="fail")
    ends = ("StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox")
    plugin = await nri.join("no", **dict.fromkeys(ends, refuse))
    await nri.driver.pod_starting(a_pod())
    await nri.driver.adjust_container(a_container())
    await nri.driver.container_removed(a_container())
    await nri.driver.pod_removed(a_pod())
    assert set(ends) <= set(plugin.methods())


async def test_a_plugin_that_is_late_is_ignored_and_disconnected(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    nri = await make(plugins={"slow": {"deadline_s": 0.1}})
    slow = await nri.join("slow", "10", CreateContainer=lambda _: threading.Event().wait(2))
    await nri.join("quick", "20", CreateContainer=adjusting(args=["x"]))
    found = await nri.driver.adjust_container(a_container())
    assert found.args == ("x",)
    assert (
        "NRI plugin 10-slow: CreateContainer of container c1 (app): CreateContainer had no answer after 0.1 s"
        in caplog.text
    )
    await eventually(slow.closed.is_set)


async def test_silent_plugins_cost_one_deadline_together(make: Any) -> None:
    """And once: they are disconnected. Those that answer are told one after the other, in their order."""
    nri = await make(plugins={f"silent{number}": {"deadline_s": 2} for number in range(6)})
    told, release = list[str](), threading.Event()
    for number in range(6):
        await nri.join(f"silent{number}", f"1{number}", RunPodSandbox=lambda _: release.wait(20))
    for index in ("05", "50", "40"):
        await nri.join("quick", index, RunPodSandbox=lambda _, index=index: told.append(index))
    began = asyncio.get_running_loop().time()
    await nri.driver.pod_starting(a_pod())
    assert asyncio.get_running_loop().time() - began < 8, "one after the other they would take 12 s"
    assert told == ["05", "40", "50"]
    began = asyncio.get_running_loop().time()
    await nri.driver.pod_stopping(a_pod())
    assert asyncio.get_running_loop().time() - began < 1.5
    release.set()


def shares_of(shares: int) -> Any:
    return nri_pb2.UpdateContainerResponse(update=[an_update("c1", shares={"value": shares})])


async def test_silent_plugins_of_a_chain_cost_one_deadline_together(make: Any) -> None:
    """They are asked in order, as each is to see what those before want; who does not answer holds up nobody."""
    nri = await make(plugins={f"{kind}{number}": {"deadline_s": 2} for kind in "cu" for number in range(6)})
    release = threading.Event()
    for kind, method in (("c", "CreateContainer"), ("u", "UpdateContainer")):
        for number in range(6):
            await nri.join(f"{kind}{number}", f"1{number}", **{method: lambda _: release.wait(20)})
    creates, updates = adjusting(env=[{"key": "X", "value": "1"}]), lambda _: shares_of(7)
    await nri.join("first", "05", CreateContainer=creates, UpdateContainer=updates)
    last = await nri.join("last", "40", CreateContainer=adjusting(args=["x"]))
    began = asyncio.get_running_loop().time()
    found = await nri.driver.adjust_container(a_container())
    limits = await nri.driver.container_updating(a_container(), LinuxResources(cpu_shares=2))
    assert asyncio.get_running_loop().time() - began < 12, "one after the other they would take 24 s"
    assert (found.args, found.envs) == (("x",), (("X", "1"),))
    assert limits is not None
    assert limits.cpu_shares == 7
    assert "X=1" in last.requests("CreateContainer")[0].container.env
    assert last.methods().count("CreateContainer") == 1
    assert last.requests("UpdateContainer")[0].linux_resources.cpu.shares.value == 7
    release.set()


async def test_who_was_asked_too_early_for_a_late_answer_is_asked_again(make: Any) -> None:
    """Its first answer is void, a refusal as well: it had not seen what the late one wants."""
    nri = await make(plugins={"late": {"deadline_s": 2}})
    nri.have(a_container("c9", state=ContainerStatus.RUNNING))
    asked = threading.Event()

    def answers_late(request: Any) -> Any:
        asked.wait(20)
        return adjusting(env=[{"key": "LATE", "value": "1"}])(request)

    def wants_to_see(request: Any) -> Any:
        asked.set()
        if "LATE=1" not in request.container.env:
            raise PluginError("I have not seen it")
        evicted = [nri_pb2.ContainerEviction(container_id="c9")]
        return nri_pb2.CreateContainerResponse(adjust={"args": ["seen"]}, evict=evicted)

    await nri.join("late", "10", CreateContainer=answers_late)
    ends = subscribe(nri_pb2.CREATE_CONTAINER, nri_pb2.STOP_CONTAINER, nri_pb2.REMOVE_CONTAINER)
    sees = await nri.join("sees", "20", events=ends, CreateContainer=wants_to_see)
    found = await nri.driver.adjust_container(a_container())
    assert (found.args, found.envs) == (("seen",), (("LATE", "1"),))
    assert sees.methods()[2:] == ["CreateContainer", "StopContainer", "RemoveContainer", "CreateContainer"]
    await eventually(lambda: [one[0] for one in nri.kernel.stopped] == ["c9"])


async def test_a_late_answer_without_changes_has_nobody_asked_again(make: Any) -> None:
    nri = await make(plugins={"late": {"deadline_s": 2}})
    asked = threading.Event()
    await nri.join("late", "10", CreateContainer=lambda _: asked.wait(20) and None)

    def answer(request: Any) -> Any:
        asked.set()
        return adjusting(args=["x"])(request)

    quick = await nri.join("quick", "20", CreateContainer=answer)
    assert (await nri.driver.adjust_container(a_container())).args == ("x",)
    assert quick.methods().count("CreateContainer") == 1


async def test_a_late_refusal_counts(make: Any) -> None:
    nri = await make(plugins={"late": {"deadline_s": 2}})
    asked = threading.Event()

    def answers_late(request: Any) -> Any:
        asked.wait(20)
        return refuse(request)

    await nri.join("late", "10", CreateContainer=answers_late)
    await nri.join("quick", "20", CreateContainer=lambda _: asked.set())
    with pytest.raises(Refused, match="10-late"):
        await nri.driver.adjust_container(a_container())


async def test_what_all_want_together_is_bounded_too(make: Any) -> None:
    """It is a refusal, which counts; as a failure of the extension ``on_failure`` would have all of them ignored."""
    nri = await make()
    for index in ("10", "20"):
        mounts = [{"destination": f"/{index}/{number}", "type": "tmpfs", "source": "t"} for number in range(2100)]
        await nri.join("many", index, CreateContainer=adjusting(mounts=mounts))
    with pytest.raises(Refused, match=r"NRI plugins 10-many, 20-many together make .*there are 4200, more than 4096"):
        await nri.driver.adjust_container(a_container())


@pytest.mark.parametrize(
    "limits",
    [
        nri_pb2.LinuxResources(unified={"../other/memory.max": "1"}),
        nri_pb2.LinuxResources(cpu={"cpus": "1," * 30_000}),
        nri_pb2.LinuxResources(cpu={"quota": {"value": -7}}),
        nri_pb2.LinuxResources(memory={"swap": {"value": -7}}),
        nri_pb2.LinuxResources(hugepage_limits=[{"page_size": "../2MB", "limit": 1}]),
    ],
    ids=["unified", "cpus", "quota", "swap", "hugepages"],
)
async def test_limits_that_make_no_sense_are_refused_by_the_plugins_name(make: Any, limits: Any) -> None:
    nri = await make()
    nri.have(a_container("c1", state=ContainerStatus.RUNNING))
    update = nri_pb2.ContainerUpdate(container_id="c1", linux={"resources": limits})
    answer = nri_pb2.UpdateContainerResponse(update=[update])
    plugin = await nri.join("odd", "10", UpdateContainer=lambda _: answer)
    with pytest.raises(Refused, match="NRI plugin 10-odd wants invalid limits of container c1"):
        await nri.driver.container_updating(a_container(), LinuxResources(cpu_shares=2))
    with pytest.raises(PluginError, match="invalid limits"):
        await call(plugin.update_containers, update)
    assert nri.kernel.updated == []


async def test_who_comes_after_a_refusal_is_not_asked(make: Any) -> None:
    nri = await make()
    await nri.join("no", "10", RunPodSandbox=refuse)
    later = await nri.join("later", "20")
    with pytest.raises(Refused):
        await nri.driver.pod_starting(a_pod())
    assert "RunPodSandbox" not in later.methods()


async def test_a_plugin_that_is_late_fails_the_act_where_the_site_says_so(make: Any) -> None:
    nri = await make(plugins={"slow": {"deadline_s": 0.1, "on_failure": "fail"}})
    await nri.join("slow", RunPodSandbox=lambda _: threading.Event().wait(2))
    with pytest.raises(Refused, match=r"no answer after 0\.1 s; its on_failure is fail"):
        await nri.driver.pod_starting(a_pod())


async def test_a_plugin_that_hangs_up_meanwhile_is_ignored(make: Any) -> None:
    nri = await make()
    plugin: Any = await nri.join("gone", CreateContainer=lambda _: plugin.close())
    assert await nri.driver.adjust_container(a_container()) is None


async def test_a_slow_plugin_stalls_nobody_who_does_not_need_it(make: Any) -> None:
    """Peers hold one lock for all."""
    nri = await make(plugins={"slow": {"namespaces": ["batch"]}, "marked": {"annotation": "x.y/"}})
    release, reached = threading.Event(), threading.Event()

    def wait(_request: Any) -> None:
        reached.set()
        release.wait(25)

    slow = await nri.join("slow", CreateContainer=wait)
    marked = await nri.join("marked", "20", events=subscribe(nri_pb2.CREATE_CONTAINER))
    batch = asyncio.create_task(nri.driver.adjust_container(a_container("slow1", a_pod("b1", "batch"))))
    await call(reached.wait, 20)
    async with asyncio.timeout(20):
        await nri.driver.adjust_container(a_container("c2"))
        await nri.driver.adjust_container(a_container("c3", a_pod("p3", **{"x.y/z": "1"})))
    assert not batch.done()
    release.set()
    await batch
    assert [request.container.id for request in slow.requests("CreateContainer")] == ["slow1"]
    assert [request.container.id for request in marked.requests("CreateContainer")] == ["c3"]


async def test_a_plugin_gets_one_request_at_a_time(make: Any) -> None:
    nri = await make()
    lock, overlaps = threading.Lock(), []

    def check(_request: Any) -> None:
        if not lock.acquire(blocking=False):
            overlaps.append(1)
            return
        threading.Event().wait(0.02)
        lock.release()

    await nri.join("one", CreateContainer=check)
    await asyncio.gather(*(nri.driver.adjust_container(a_container(f"c{number}")) for number in range(5)))
    assert overlaps == []


async def test_nobody_waits_for_ever_for_a_busy_plugin(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("crinoid.plugins.extensions.nri.plugin.TURN_S", 0.1)
    nri = await make()
    release, reached = threading.Event(), threading.Event()

    def wait(_request: Any) -> None:
        reached.set()
        release.wait(25)

    await nri.join("busy", CreateContainer=wait)
    first = asyncio.create_task(nri.driver.adjust_container(a_container("c1")))
    await call(reached.wait, 20)
    assert await nri.driver.adjust_container(a_container("c2")) is None
    assert "it is too busy: its turn did not come after 0.1 s" in caplog.text
    release.set()
    await first


async def test_a_plugin_may_not_flood_the_runtime(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crinoid.plugins.extensions.nri.ttrpc._MAX_CALLS", 0)
    nri = await make()
    with pytest.raises(PluginError, match="0 calls are under way"):
        await nri.join("floods")


@pytest.mark.parametrize(
    "flood",
    [
        struct.pack(">II", 7, 0),
        struct.pack(">II", 7, 1) + b"x",
        struct.pack(">II", 1, 0),
        struct.pack(">II", 1, 10) + struct.pack(">IIBB", 0, 1, 2, 0),
        struct.pack(">II", 1, 10) + struct.pack(">IIBB", 0, 3, 9, 0),
        struct.pack(">II", 2, 10) + struct.pack(">IIBB", 0, 1, 9, 0),
        struct.pack(">II", 2, 10) + struct.pack(">IIBB", 0, 1, 1, 0),
        struct.pack(">II", 2, 1) + b"x",
    ],
    ids=[
        "no connection",
        "no connection, data",
        "empty pieces",
        "answers",
        "odd answers",
        "odd calls",
        "calls",
        "bytes",
    ],
)
async def test_a_flood_holds_up_nobody(make: Any, flood: bytes) -> None:
    """Whatever a plugin sends without a pause: the loop goes round meanwhile, and other plugins are asked."""
    nri = await make()
    ended, worst = threading.Event(), 0.0

    def send() -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(nri.config.socket))
        connection.settimeout(0.5)
        with contextlib.suppress(OSError):
            while not ended.is_set():
                connection.sendall(flood * 5000)
        connection.close()

    sending = asyncio.create_task(call(send))
    other = await nri.join("other", CreateContainer=adjusting(args=["x"]))
    for number in range(20):
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0)
        worst = max(worst, asyncio.get_running_loop().time() - began)
        assert (await nri.driver.adjust_container(a_container(f"c{number}"))).args == ("x",)
    ended.set()
    await sending
    assert worst < patient(1)
    assert not other.closed.is_set()


async def test_a_container_is_evicted_once_however_often_it_is_asked_for(make: Any) -> None:
    nri = await make()
    plugin = await nri.join("evicts")
    nri.have(a_container())
    many = tuple({"container_id": "c1", "reason": "r"} for _ in range(4000))
    await call(lambda: plugin.update_containers(evict=many))
    await eventually(lambda: nri.kernel.stopped)
    assert len(nri.kernel.stopped) == 1
    with pytest.raises(PluginError, match="at most 4096 containers"):
        await call(lambda: plugin.update_containers(evict=many * 2))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            {"mounts": [{"destination": f"/m/{number}", "type": "tmpfs"} for number in range(5000)]},
            "oci_mounts: .* 5000",
        ),
        ({"env": [{"key": f"A{number}"} for number in range(20_000)]}, "env: there are 20000"),
        ({"mounts": [{"destination": "/" + "m" * 5000, "type": "tmpfs"}]}, "longer than 4095 bytes"),
        ({"env": [{"key": "A", "value": "x" * (1 << 17)}]}, "envs: they have one of 131074 bytes"),
        ({"args": ["x"] * 300_000}, "args: they have 3000000 bytes"),
        ({"linux": {"resources": {"cpu": {"cpus": "0," * 50_000}}}}, "resources: cpuset_cpus is 100000 characters"),
        ({"linux": {"resources": {"unified": {"memory.high": "x" * 5000}}}}, "unified of memory.high is 5000 bytes"),
        ({"linux": {"sysctl": {"../x": "1"}}}, "linux.sysctl has"),
        ({"linux": {"namespaces": [{"type": "nothing"}]}}, "linux.namespaces has"),
        ({"linux": {"seccomp_policy": {"default_action": "ALLOW"}}}, "linux.seccomp has the action 'ALLOW'"),
        ({"hooks": {"prestart": [{"path": "/" + "x" * 300}]}}, "a part of more than 255 bytes"),
        ({"linux": {"cgroups_path": "/"}}, "cgroup: '/' is neither"),
    ],
)
async def test_an_adjustment_is_bounded_as_a_request_is(make: Any, wanted: Any, words: str) -> None:
    nri = await make()
    await nri.join("much", CreateContainer=adjusting(**wanted))
    began = asyncio.get_running_loop().time()
    with pytest.raises(Refused, match=f"NRI plugin 00-much makes an invalid adjustment to container c1 .*{words}"):
        await nri.driver.adjust_container(a_container())
    assert asyncio.get_running_loop().time() - began < patient(5)


async def test_a_required_plugin_must_be_there(make: Any) -> None:
    nri = await make(plugins={"guard": {"required": True, "namespaces": ["shop"]}})
    with pytest.raises(Refused, match="NRI plugin guard is required for container c1"):
        await nri.driver.adjust_container(a_container())
    await nri.driver.container_removed(a_container())
    other = a_container("c2", a_pod("p2", "other"))
    await nri.driver.adjust_container(other)
    await nri.driver.container_created(other)
    await nri.join("guard")
    await nri.driver.adjust_container(a_container("c3"))


async def test_validators_judge_what_the_others_want(make: Any) -> None:
    nri = await make()
    verdict = nri_pb2.ValidateContainerAdjustmentResponse(reject=True, reason="too much")
    await nri.join("wants", "10", CreateContainer=adjusting(args=["x"]))
    judge = await nri.join(
        "judge",
        "20",
        events=subscribe(nri_pb2.VALIDATE_CONTAINER_ADJUSTMENT),
        ValidateContainerAdjustment=lambda _: verdict,
    )
    with pytest.raises(Refused, match=r"20-judge rejects the adjustment of container c1 .*: too much"):
        await nri.driver.adjust_container(a_container())
    (request,) = judge.requests("ValidateContainerAdjustment")
    assert (list(request.container.args), list(request.adjust.args)) == (["run"], ["x"])
    assert request.owners.owners["c1"].simple[nri_pb2.Args] == "10-wants"
    assert [(plugin.name, plugin.index) for plugin in request.plugins] == [("wants", "10")]


async def test_updates_of_others_are_done(make: Any) -> None:
    nri = await make()
    nri.have(a_container("c0", state=ContainerStatus.RUNNING))
    answer = [an_update("c0", shares={"value": 5}), an_update("none", True, shares={"value": 5})]
    await nri.join(
        "wants",
        CreateContainer=lambda _: nri_pb2.CreateContainerResponse(update=answer),
        StopContainer=lambda _: nri_pb2.StopContainerResponse(update=[an_update("c0", cpus="1")]),
        UpdateContainer=lambda _: nri_pb2.UpdateContainerResponse(
            update=[an_update("c1", shares={"value": 7}), an_update("c0", shares={"value": 6})]
        ),
    )
    await nri.driver.adjust_container(a_container())
    changed = await nri.driver.container_updating(a_container(), LinuxResources(cpu_shares=2, memory_limit_bytes=9))
    assert changed == LinuxResources(cpu_shares=7, memory_limit_bytes=9)
    await nri.driver.container_exited(a_container(), ExitStatus(0, 1))
    assert nri.kernel.updated == [
        ("c0", LinuxResources(cpu_shares=5)),
        ("c0", LinuxResources(cpu_shares=6)),
        ("c0", LinuxResources(cpuset_cpus="1")),
    ]


async def test_the_container_in_the_making_can_not_be_updated(make: Any) -> None:
    nri = await make()
    update = an_update("c1", shares={"value": 5})
    await nri.join("wants", CreateContainer=lambda _: nri_pb2.CreateContainerResponse(update=[update]))
    with pytest.raises(Refused, match="00-wants updates container c1 while it is being made"):
        await nri.driver.adjust_container(a_container())


async def test_a_plugin_updates_and_evicts_by_itself(make: Any) -> None:
    nri = await make()
    nri.have(a_container("c0", state=ContainerStatus.RUNNING))
    plugin = await nri.join("acts")
    updates = (
        an_update("c0", shares={"value": 3}),
        an_update("x", shares={"value": 3}),
        an_update("y", True, cpus="1"),
    )
    evict = (nri_pb2.ContainerEviction(container_id="c0", reason="hungry"),)
    answer = await call(plugin.update_containers, *updates, evict=evict)
    assert [update.container_id for update in answer.failed] == ["x"]
    assert nri.kernel.updated == [("c0", LinuxResources(cpu_shares=3))]
    await eventually(lambda: nri.kernel.stopped == [("c0", "an NRI plugin evicts it: hungry")])


async def test_an_answer_may_evict(make: Any) -> None:
    nri = await make()
    nri.have(a_container("c0", state=ContainerStatus.RUNNING))
    eviction = nri_pb2.ContainerEviction(container_id="c0")
    await nri.join("acts", CreateContainer=lambda _: nri_pb2.CreateContainerResponse(evict=[eviction]))
    await nri.driver.adjust_container(a_container())
    await eventually(lambda: [name for name, _reason in nri.kernel.stopped] == ["c0"])


async def test_what_is_made_while_a_plugin_synchronizes_is_not_lost(make: Any) -> None:
    nri = await make()
    release, reached = threading.Event(), threading.Event()

    def wait(request: Any) -> Any:
        reached.set()
        release.wait(25)
        return nri_pb2.SynchronizeResponse(more=request.more)

    begun = asyncio.create_task(nri.driver.adjust_container(a_container("before")))
    await begun  # its plugins were asked, but it is not on record yet
    joining = asyncio.create_task(nri.join("late", Synchronize=wait))
    await asyncio.sleep(0.1)
    assert not reached.is_set(), "it waits for what is being made"
    nri.have(a_container("before", state=ContainerStatus.CREATED))
    created = asyncio.create_task(nri.driver.container_created(a_container("before")))
    await call(reached.wait, 20)
    meanwhile = asyncio.create_task(nri.driver.adjust_container(a_container("meanwhile")))
    ended = asyncio.create_task(nri.driver.container_exited(a_container("before"), ExitStatus(0, 1)))
    await asyncio.sleep(0.05)
    assert not meanwhile.done()
    release.set()
    plugin = await joining
    await asyncio.gather(created, meanwhile, ended)
    (sync,) = plugin.requests("Synchronize")
    assert [container.id for container in sync.containers] == ["before"]
    assert plugin.methods("before") == ["StopContainer"]
    assert plugin.methods("meanwhile") == ["CreateContainer", "ValidateContainerAdjustment"]
    assert plugin.methods().index("Synchronize") == 1


async def test_many_containers_are_told_in_several_messages(make: Any) -> None:
    nri = await make()
    long = {**SPEC, "process": {**SPEC["process"], "args": ["x" * 100_000]}}
    names = [f"c{number}" for number in range(50)]
    for name in names:
        view = a_container(name, state=ContainerStatus.RUNNING)
        nri.have(ContainerView(name, view.pod, view.config, view.image_id, state=view.state, spec=long))
    nri.run(a_pod())
    plugin = await nri.join("patient")
    syncs = plugin.requests("Synchronize")
    assert [sync.more for sync in syncs] == [True] * (len(syncs) - 1) + [False]
    assert len(syncs) > 2
    assert [container.id for sync in syncs for container in sync.containers] == names


def test_a_list_is_split_between_its_members() -> None:
    pods = [nri_pb2.PodSandbox(id=str(number) * 20) for number in range(5)]
    parts = split_sync(pods, [nri_pb2.Container(id="c" * 500)], most=80)
    assert [(len(part.pods), len(part.containers), part.more) for part in parts] == [
        (2, 0, True),
        (2, 0, True),
        (1, 0, True),
        (0, 1, False),
    ]
    assert [(len(part.pods), part.more) for part in split_sync([], [])] == [(0, False)]


async def test_large_messages_come_through_both_ways(make: Any) -> None:
    """ttrpc has messages of up to 4 MiB, which peers read in pieces."""
    nri = await make()
    text = "x" * 3_000_000
    spec = {**SPEC, "process": {**SPEC["process"], "env": [f"LONG={text}"]}}
    plugin = await nri.join("much", CreateContainer=adjusting(annotations={"long": text}))
    view = a_container()
    large = ContainerView(view.container_id, view.pod, view.config, view.image_id, spec=spec)
    found = await nri.driver.adjust_container(large)
    assert found.annotations == (("long", text),)
    assert list(plugin.requests("CreateContainer")[0].container.env) == [f"LONG={text}"]


@pytest.mark.parametrize("policy", ["ignore", "fail"])
async def test_messages_that_are_too_large_are_no_answers(make: Any, policy: str) -> None:
    nri = await make(on_failure=policy)
    text = "x" * (4 << 20)
    plugin = await nri.join("much", CreateContainer=adjusting(annotations={"long": text}))
    if policy == "ignore":
        assert await nri.driver.adjust_container(a_container()) is None
    else:
        with pytest.raises(
            Refused, match=r"CreateContainer: the plugin sends a message of 4\d+ bytes, more than ttrpc"
        ):
            await nri.driver.adjust_container(a_container())
    await eventually(plugin.closed.is_set)
    await nri.driver.container_removed(a_container())
    plugin = await nri.join("much")
    view = a_container("c2")
    large = ContainerView("c2", view.pod, view.config, view.image_id, spec={"process": {"args": [text]}})
    if policy == "ignore":
        assert await nri.driver.adjust_container(large) is None
    else:
        with pytest.raises(Refused, match=r"a request of 4\d+ bytes is more than ttrpc takes"):
            await nri.driver.adjust_container(large)
    await eventually(plugin.closed.is_set)


async def test_a_plugin_that_dies_and_comes_back_is_told_everything_anew(make: Any) -> None:
    nri = await make()
    first: Any = await nri.join("again", StartContainer=lambda _: first.close())
    await nri.driver.adjust_container(a_container())
    await nri.driver.container_created(nri.have(a_container(state=ContainerStatus.CREATED)))
    await nri.driver.container_starting(a_container())
    await eventually(first.closed.is_set)
    await nri.driver.adjust_container(a_container("c2"))
    await nri.driver.container_created(nri.have(a_container("c2", state=ContainerStatus.CREATED)))
    second = await nri.join("again")
    assert [one.id for one in second.requests("Synchronize")[0].containers] == ["c1", "c2"]
    await nri.driver.container_exited(a_container(), ExitStatus(0, 1))
    assert second.methods("c1") == ["StopContainer"]
    assert first.methods("c2") == []


@pytest.mark.parametrize(
    ("handler", "deadline_s", "words"),
    [
        (refuse, 30, "NRI plugin 00-bad is not used: Synchronize: I don't like it"),
        (lambda _request: threading.Event().wait(1), 0.2, "Synchronize had no answer after 0.2 s"),
    ],
    ids=["refuses", "is late"],
)
async def test_a_plugin_that_can_not_be_synchronized_is_not_used(
    make: Any, caplog: pytest.LogCaptureFixture, handler: Any, deadline_s: float, words: str
) -> None:
    nri = await make(synchronization_deadline_s=deadline_s)
    plugin = NriPlugin("bad", handlers={"Synchronize": handler})
    nri.plugins.append(plugin)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(nri.config.socket))
    plugin.attach(connection)
    await call(plugin.register)
    assert await call(plugin.closed.wait, 20)
    await eventually(lambda: words in caplog.text)
    assert await nri.driver.adjust_container(a_container()) is None


@pytest.mark.parametrize("answer", [b"\xff\xff", b"\x0a\xff"], ids=["no message", "cut off"])
async def test_an_answer_that_can_not_be_read_is_none(
    make: Any, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    class Garbage(Message):
        def SerializeToString(self, **_: Any) -> bytes:  # noqa: N802  # protobuf's
            return answer

    nri = await make()
    plugin = await nri.join("odd", CreateContainer=lambda _request: Garbage())
    assert await nri.driver.adjust_container(a_container()) is None
    assert "00-odd: CreateContainer of container c1 (app): CreateContainer: Error parsing message" in caplog.text
    await eventually(plugin.closed.is_set)


async def test_a_plugin_from_before_each_step_had_a_call(make: Any) -> None:
    def missing(_request: Any) -> None:
        raise PluginError("no such method", 12)

    nri = await make()
    plugin = await nri.join("old", RunPodSandbox=missing, PostCreateContainer=missing, CreateContainer=missing)
    await nri.driver.pod_starting(a_pod())
    await nri.driver.container_created(a_container())
    changes = plugin.requests("StateChange")
    assert [(change.event, change.pod.id, change.container.id) for change in changes] == [
        (nri_pb2.RUN_POD_SANDBOX, "p1", ""),
        (nri_pb2.POST_CREATE_CONTAINER, "p1", "c1"),
    ]
    with pytest.raises(Refused, match="no such method"):
        await nri.driver.adjust_container(a_container())


@pytest.mark.parametrize(
    ("name", "index", "words"),
    [("", "00", "plugin_name ''"), ("a b", "00", "plugin_name"), ("a", "7", "plugin_idx '7'")],
)
async def test_a_bad_registration_is_refused(make: Any, name: str, index: str, words: str) -> None:
    nri = await make()
    with pytest.raises(PluginError, match=words):
        await nri.join(name, index)


async def test_events_that_do_not_exist_are_refused(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    nri = await make()
    plugin = NriPlugin("odd", events=1 << 20)
    nri.plugins.append(plugin)
    # It is hung up on, before or after its registration is answered.
    with pytest.raises((AssertionError, EOFError), match=r"never synchronized|hung up"):
        plugin.synchronized.wait = lambda _timeout: plugin.closed.wait(20) and False  # type: ignore[method-assign,assignment,misc]
        await call(plugin.connect, nri.config.socket)
    assert "NRI plugin 00-odd is not used: it subscribes to events that don't exist: 0x100000" in caplog.text


NONSENSE = [
    b"\xff" * 64,
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack(">II", 2, 1 << 30),
    struct.pack(">II", 2, 10) + struct.pack(">IIBB", 5 << 20, 1, 1, 0),
    struct.pack(">II", 1, 14) + struct.pack(">IIBB", 4, 1, 2, 0) + b"\xff\xff\xff\xff",
    struct.pack(">II", 2, 14) + struct.pack(">IIBB", 4, 1, 1, 0) + b"\xff\xff\xff\xff",
]


@pytest.mark.parametrize("data", NONSENSE, ids=range(len(NONSENSE)))
async def test_nonsense_ends_one_connection_and_nothing_else(make: Any, data: bytes) -> None:
    nri = await make(registration_deadline_s=1)
    reader, writer = await asyncio.open_unix_connection(nri.config.socket)
    writer.write(data)
    async with asyncio.timeout(60):
        await reader.read()
    writer.close()
    await nri.join("sane")


async def test_a_plugin_can_do_nothing_before_it_is_configured(make: Any) -> None:
    nri = await make()
    plugin = NriPlugin("early", handlers={"Configure": lambda _: threading.Event().wait(0.3)})
    nri.plugins.append(plugin)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(nri.config.socket))
    plugin.attach(connection)
    with pytest.raises(PluginError, match="register first"):
        await call(plugin.update_containers, an_update("c0", cpus="1"))
    with pytest.raises(PluginError, match="is not served"):
        await call(plugin.call, "Anything", nri_pb2.Empty())


LAUNCHED = """#!{python}
import sys, os, socket, pathlib
sys.path[:0] = {path!r}
from support.nri_plugin import NriPlugin
plugin = NriPlugin(os.environ["NRI_PLUGIN_NAME"], os.environ["NRI_PLUGIN_IDX"])
plugin.attach(socket.socket(fileno=int(os.environ["NRI_PLUGIN_SOCKET"])))
plugin.register()
plugin.synchronized.wait()
pathlib.Path({out!r}).write_text(plugin.requests("Configure")[0].config + " " + " ".join(sorted(os.environ)))
plugin.closed.wait()
"""


async def test_plugins_of_the_directory_are_started_and_ready_at_once(make: Any, tmp_path: Path) -> None:
    directory, out = tmp_path / "plugins", tmp_path / "out"
    directory.mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.conf").write_text("level: 3")
    script = LAUNCHED.format(python=sys.executable, path=[path for path in sys.path if path], out=str(out))
    (directory / "05-mine").write_text(script)
    (directory / "05-mine").chmod(0o755)
    (directory / "06-broken").write_text("#!/no/such/program\n")
    (directory / "06-broken").chmod(0o755)
    (directory / "README").write_text("no plugin")
    await make(registration_deadline_s=20)
    await eventually(out.exists)
    assert out.read_text().startswith("level: 3 ")
    assert {"NRI_PLUGIN_IDX", "NRI_PLUGIN_NAME", "NRI_PLUGIN_SOCKET"} <= set(out.read_text().split())


async def test_a_mute_plugin_does_not_keep_the_node_from_starting(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plugins").mkdir()
    mute = tmp_path / "plugins" / "07-mute"
    mute.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 100\n")
    mute.chmod(0o755)
    nri = await make(registration_deadline_s=3)
    assert "NRI plugin 07-mute is not used: it did not register after 3 s" in caplog.text
    pid = int((tmp_path / "pid").read_text())
    await nri.driver.close()
    assert not Path(f"/proc/{pid}").exists()


async def test_plugins_learn_that_the_daemon_stops(tmp_path: Path) -> None:
    nri = Nri(tmp_path)
    await nri.driver.connect(nri.kernel)
    plugin = await nri.join("watcher")
    await nri.driver.close()
    assert plugin.methods()[-1] == "Shutdown"
    assert await call(plugin.closed.wait, 20)
    await nri.driver.close()


async def test_a_served_socket_is_left_to_the_daemon_that_serves_it(make: Any, tmp_path: Path) -> None:
    """The second starts no plugin either: those of a directory would be asked twice."""
    first = await make()
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/05-mine").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "plugins/05-mine").chmod(0o755)
    inode = first.config.socket.stat().st_ino
    second = Nri(tmp_path)
    with pytest.raises(ConfigurationError, match=f"another daemon serves {first.config.socket}"):
        await second.driver.connect(second.kernel)
    await second.driver.close()
    assert first.config.socket.stat().st_ino == inode
    assert not (tmp_path / "started").exists()
    await first.join("one")


async def test_a_successors_socket_is_left_alone(make: Any) -> None:
    first = await make()
    first.config.socket.unlink()
    second = await make()
    await first.driver.close()
    await second.join("one")
    await second.driver.close()
    assert not second.config.socket.exists()


async def test_a_dead_socket_is_replaced_and_what_is_none_is_not(make: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "nri.sock"))
    nri = await make()
    found = nri.config.socket.stat()
    assert (stat.S_ISSOCK(found.st_mode), stat.S_IMODE(found.st_mode)) == (True, 0o600)
    await nri.driver.close()
    nri.config.socket.write_text("mine")
    with pytest.raises(ConfigurationError, match="no socket"):
        await nri.driver.connect(nri.kernel)
    assert nri.config.socket.read_text() == "mine"
    nri.config.socket.unlink()
