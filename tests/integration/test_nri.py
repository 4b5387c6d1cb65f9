"""NRI plugins at a real socket and real containers: what they are told, change, refuse, and what becomes of it."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.plugins.extensions.nri.wire import nri_pb2
from integration.conftest import RUNTIMES, Node
from integration.own_nodes import own_node
from integration.pods import Pod, refused, until
from support.daemon import cgroup_directories
from support.foreign_cgroup import foreign_cgroup
from support.nri_plugin import NriPlugin, PluginError, subscribe
from support.patience import patient

Join = Callable[..., NriPlugin]
LIFE = subscribe(*(number for number in range(1, 12) if number not in (8, 9)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nri")


@pytest.fixture(scope="module")
def nri_node(directory: Path) -> Iterator[Node]:
    options = (
        f"socket = '{directory}/nri.sock', plugin_dir = '{directory}/plugins', plugin_config_dir = '{directory}/conf'"
    )
    slow = "slow = { deadline_s = 0.5, on_failure = 'fail', namespaces = ['slow'] }"
    plugins = f"plugins = {{ {slow}, patient = {{ deadline_s = 60, namespaces = ['patient'] }} }}"
    cdi = f"[pods]\ncdi_spec_dirs = ['{directory}/cdi']\n"
    (directory / "cdi").mkdir()
    edits = {"env": ["CDI=yes"]}
    document = {"cdiVersion": "0.6.0", "kind": "a.b/c", "devices": [{"name": "d", "containerEdits": edits}]}
    (directory / "cdi" / "x.json").write_text(json.dumps(document))
    extension = f"[extensions.nri]\ndriver = 'nri'\noptions = {{ {options}, deadline_s = 5, {plugins} }}\n"
    with own_node(directory / "node", cdi + extension) as node:
        yield node


@pytest.fixture
def join(nri_node: Node, directory: Path) -> Iterator[Join]:
    """Connect a plugin with handlers by method; all hang up at the end of the test."""
    plugins: list[NriPlugin] = []

    def connect(name: str = "test", index: str = "10", events: int = 0, **handlers: Any) -> NriPlugin:
        plugin = NriPlugin(name, index, handlers, events)
        plugins.append(plugin)
        return plugin.connect(directory / "nri.sock")

    yield connect
    for plugin in plugins:
        plugin.close()
    nri_node.remove_pods()
    assert nri_node.daemon.query("SELECT owner, kind, key FROM ledger") == []


@pytest.fixture(params=RUNTIMES)
def pod(nri_node: Node, request: pytest.FixtureRequest) -> Pod:
    return Pod(nri_node, nri_node.run_pod(handler=request.param))


def adjusting(**wanted: Any) -> Callable[[Any], Any]:
    return lambda _request: nri_pb2.CreateContainerResponse(adjust=nri_pb2.ContainerAdjustment(**wanted))


def runtime_spec(pod: Pod, container: str) -> dict[str, Any]:
    verbose = pod.node.call("ContainerStatus", container_id=container, verbose=True)
    spec: dict[str, Any] = json.loads(verbose["info"]["info"])["runtimeSpec"]
    return spec


def test_a_life_is_told_in_order(nri_node: Node, join: Join) -> None:
    plugin = join(events=LIFE)
    pod = nri_node.run_pod("life", labels={"a": "b"})
    container = nri_node.run_container(pod, "sleep", "100")
    nri_node.call("StopContainer", container_id=container, timeout=0)
    nri_node.call("StopPodSandbox", pod_sandbox_id=pod)
    nri_node.call("StopPodSandbox", pod_sandbox_id=pod)
    nri_node.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert plugin.methods(pod, container) == [
        *("RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"),
        *("StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"),
    ]
    (ran,) = plugin.requests("RunPodSandbox")
    assert (ran.pod.name, ran.pod.namespace, ran.pod.labels["a"]) == ("life", "test", "b")
    (created,), (started,) = plugin.requests("CreateContainer"), plugin.requests("PostStartContainer")
    assert (list(created.container.args), created.container.state) == (["sleep", "100"], nri_pb2.CONTAINER_UNKNOWN)
    assert (started.container.state, started.container.pid > 1) == (nri_pb2.CONTAINER_RUNNING, True)
    (stopped,) = plugin.requests("StopContainer")
    assert (stopped.container.state, stopped.container.exit_code) == (nri_pb2.CONTAINER_STOPPED, 137)


def test_limits_of_a_pod_are_told(nri_node: Node, join: Join) -> None:
    plugin = join(events=subscribe(nri_pb2.UPDATE_POD_SANDBOX, nri_pb2.POST_UPDATE_POD_SANDBOX))
    pod = nri_node.run_pod("resized")
    nri_node.call("UpdatePodSandboxResources", pod_sandbox_id=pod, resources={"cpu_shares": 333})
    assert plugin.methods(pod) == ["UpdatePodSandbox", "PostUpdatePodSandbox"]
    (asked,), (done,) = plugin.requests("UpdatePodSandbox"), plugin.requests("PostUpdatePodSandbox")
    assert asked.linux_resources.cpu.shares.value == 333
    assert done.pod.linux.pod_resources.cpu.shares.value == 333


def test_two_that_want_the_same_leave_nothing(nri_node: Node, join: Join) -> None:
    pod = nri_node.run_pod("contested")
    first = join("one", "10", CreateContainer=adjusting(args=["sleep", "1"]))
    join("two", "20", CreateContainer=adjusting(args=["sleep", "2"]))
    before = nri_node.daemon.query("SELECT count(*) FROM ledger")
    with refused("FAILED_PRECONDITION", "NRI plugins 10-one and 20-two both set Args of container"):
        nri_node.create(pod, "sleep", "100")
    assert nri_node.call("ListContainers")["containers"] == []
    assert nri_node.daemon.query("SELECT count(*) FROM ledger") == before
    assert first.methods()[-2:] == ["StopContainer", "RemoveContainer"]
    first.close()
    assert first.closed.wait(patient(60))
    nri_node.create(pod, "sleep", "100")


def test_adjustments_are_found_inside(pod: Pod, join: Join, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    hooked = tmp_path / "hooked"
    join(
        CreateContainer=adjusting(
            annotations={"made.by/nri": "1"},
            env=[{"key": "ADDED", "value": "by nri"}, {"key": "-GONE"}, {"key": "KEPT", "value": "new"}],
            mounts=[
                {"destination": "/mnt/nri", "type": "bind", "source": str(tmp_path), "options": ["bind", "ro"]},
                {"destination": "-/etc/hosts"},
            ],
            hooks={"create_runtime": [{"path": "/bin/touch", "args": ["touch", str(hooked)]}]},
            rlimits=[{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}],
            CDI_devices=[{"name": "a.b/c=d"}],
            linux={
                "devices": [{"path": "/dev/nri", "type": "c", "major": 1, "minor": 5, "file_mode": {"value": 0o640}}],
                "oom_score_adj": {"value": 321},
                "resources": {"cpu": {"shares": {"value": 123}}, "pids": {"limit": 50}},
            },
        )
    )
    script = """
        echo $ADDED/$GONE/$KEPT/$CDI; cat /mnt/nri/file; echo; ulimit -Sn; ulimit -Hn
        stat -c '%t:%T %a' /dev/nri; cat /proc/self/oom_score_adj; grep -c /etc/hosts /proc/self/mounts
    """
    container = pod.start("sh", "-c", script, envs=[{"key": "GONE", "value": "b2xk"}, {"key": "KEPT", "value": "b2xk"}])
    assert pod.node.wait_exit(container)["exit_code"] == 1, "grep -c finds none"
    lines = pod.node.log(container).splitlines()
    assert lines == ["by nri//new/yes", "from the host", "77", "88", "1:5 640", "321", "0"]
    assert hooked.exists()
    spec = runtime_spec(pod, container)
    assert spec["annotations"]["made.by/nri"] == "1"
    assert (spec["linux"]["resources"]["cpu"]["shares"], spec["linux"]["resources"]["pids"]["limit"]) == (123, 50)
    limits = pod.node.status(container)["resources"]["linux"]
    assert int(limits["cpu_shares"]) == 123


def test_another_command_and_another_cgroup(nri_node: Node, join: Join) -> None:
    cgroup = f"/{nri_node.daemon.name}/elsewhere/c"
    join(CreateContainer=adjusting(args=["sleep", "99"], linux={"cgroups_path": cgroup}))
    pod = Pod(nri_node, nri_node.run_pod("other"))
    process = Path(f"/proc/{pod.pid(pod.start('sleep', '100'))}")
    assert (process / "cmdline").read_bytes() == b"sleep\x0099\0"
    assert cgroup in (process / "cgroup").read_text()


def test_a_cgroup_that_is_somebody_elses_is_refused(pod: Pod, join: Join) -> None:
    """The runtime would take it over: what is in it, and the cgroup itself, would end with the container."""
    with foreign_cgroup() as (cgroup, process):
        plugin = join(CreateContainer=adjusting(linux={"cgroups_path": cgroup}))
        with refused("FAILED_PRECONDITION", f"NRI plugin 10-test wants cgroup '{cgroup}', .* is there already"):
            pod.start("sleep", "100")
        assert process.poll() is None
        inside = f"{pod.node.daemon.cgroup}/{pod.id}"
        for path, words in (("relative", "cgroup"), (inside, "has to be the container's own id")):
            plugin.handlers["CreateContainer"] = adjusting(linux={"cgroups_path": path})
            with refused("FAILED_PRECONDITION", f"NRI plugin 10-test\\b.*{words}"):
                pod.create("sleep", "100")
        plugin.handlers["CreateContainer"] = adjusting(linux={"cgroups_path": f"{cgroup}/new/one"})
        container = pod.start("sleep", "100")
        assert f"{cgroup}/new/one\n" in Path(f"/proc/{pod.pid(container)}/cgroup").read_text()
        pod.node.call("RemoveContainer", container_id=container)
        assert process.poll() is None
        assert cgroup_directories(cgroup), "it is as it was"
        assert not cgroup_directories(f"{cgroup}/new")


def test_a_refusal_leaves_nothing(nri_node: Node, join: Join) -> None:
    def refuse(_request: Any) -> None:
        raise PluginError("over my dead body")

    plugin = join(RunPodSandbox=refuse)
    with refused("FAILED_PRECONDITION", "NRI plugin 10-test: RunPodSandbox of pod .*: over my dead body"):
        nri_node.run_pod("refused")
    assert plugin.methods()[-3:] == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
    assert nri_node.call("ListPodSandbox")["items"] == []
    assert nri_node.daemon.query("SELECT owner FROM ledger") == []
    plugin.handlers.clear()
    pod = nri_node.run_pod("refused")
    plugin.handlers["CreateContainer"] = refuse
    with refused("FAILED_PRECONDITION", r"CreateContainer of container .* \(app\): over my dead body"):
        nri_node.create(pod, "sleep", "100")
    assert plugin.methods()[-2:] == ["StopContainer", "RemoveContainer"]
    assert nri_node.call("ListContainers")["containers"] == []
    plugin.handlers = {
        "ValidateContainerAdjustment": lambda _: nri_pb2.ValidateContainerAdjustmentResponse(reject=True)
    }
    with refused("FAILED_PRECONDITION", "10-test rejects the adjustment"):
        nri_node.create(pod, "sleep", "100")
    plugin.handlers.clear()
    nri_node.create(pod, "sleep", "100")


def test_limits_are_the_plugins(nri_node: Node, join: Join) -> None:
    pod = nri_node.run_pod("limits")
    first = nri_node.run_container(pod, "sleep", "100", name="first")
    second = nri_node.run_container(pod, "sleep", "100", name="second")

    def change(request: Any) -> Any:
        updates = [(request.container.id, 333), (second, 444)]
        return nri_pb2.UpdateContainerResponse(
            update=[
                {"container_id": one, "linux": {"resources": {"cpu": {"shares": {"value": shares}}}}}
                for one, shares in updates
            ]
        )

    plugin = join(UpdateContainer=change)
    nri_node.call("UpdateContainerResources", container_id=first, linux={"cpu_shares": 222})
    assert _shares(nri_node, first) == 333
    assert _shares(nri_node, second) == 444
    (post,) = plugin.requests("PostUpdateContainer")
    assert post.container.linux.resources.cpu.shares.value == 333
    wanted = {"container_id": second, "linux": {"resources": {"cpu": {"shares": {"value": 555}}}}}
    missing = {"container_id": "none", "linux": {"resources": {"cpu": {"shares": {"value": 555}}}}}
    answer = plugin.update_containers(wanted, missing)
    assert [update.container_id for update in answer.failed] == ["none"]
    assert _shares(nri_node, second) == 555


def test_a_container_is_evicted(nri_node: Node, join: Join) -> None:
    pod = nri_node.run_pod("evicted")
    container = nri_node.run_container(pod, "sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
    until(lambda: nri_node.log(container) == "ready\n")
    plugin = join()
    plugin.update_containers(evict=({"container_id": container, "reason": "a test"},))
    assert nri_node.wait_exit(container)["exit_code"] == 3
    until(lambda: "StopContainer" in plugin.methods(container))
    assert "an NRI plugin evicts it: a test" in nri_node.daemon.log.read_text()


def test_a_slow_plugin_holds_up_its_own_pods_alone(nri_node: Node, join: Join) -> None:
    release = threading.Event()
    slow = join("slow", "05", RunPodSandbox=lambda _: release.wait(patient(10)))
    pod = nri_node.run_pod("quick")
    assert nri_node.output(pod, "echo", "quick") == "quick\n"
    assert slow.methods() == ["Configure", "Synchronize"]
    metadata = {"name": "batch", "namespace": "slow", "uid": "uid-batch", "attempt": 0}
    with refused("FAILED_PRECONDITION", "05-slow: RunPodSandbox .* no answer after 0.5 s; its on_failure is fail"):
        nri_node.run_pod("batch", metadata=metadata)
    release.set()
    assert slow.closed.wait(patient(60)), "who does not answer is disconnected"
    nri_node.run_pod("batch", metadata=metadata)


def test_nobody_else_waits_while_a_plugin_thinks(nri_node: Node, join: Join) -> None:
    """Other pods are made, run and removed, and other plugins are asked about them."""
    reached, release = threading.Event(), threading.Event()

    def think(_request: Any) -> None:
        reached.set()
        release.wait(50)

    join("patient", "05", RunPodSandbox=think)
    other = join("other", "06")
    metadata = {"name": "thinking", "namespace": "patient", "uid": "uid-thinking", "attempt": 0}
    made: list[str] = []
    thinking = threading.Thread(target=lambda: made.append(nri_node.run_pod("thinking", metadata=metadata)))
    thinking.start()
    assert reached.wait(patient(20))
    pod = nri_node.run_pod("quick")
    assert nri_node.output(pod, "echo", "quick") == "quick\n"
    nri_node.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert other.methods(pod)[-1] == "RemovePodSandbox"
    assert not made
    release.set()
    thinking.join(patient(20))
    assert made


def test_a_plugin_that_joins_late_misses_nothing(nri_node: Node, join: Join) -> None:
    pod = nri_node.run_pod("late")
    known = [nri_node.run_container(pod, "sleep", "100", name=f"before{number}") for number in range(2)]
    reached, release = threading.Event(), threading.Event()

    def wait(request: Any) -> Any:
        reached.set()
        release.wait(patient(10))
        return nri_pb2.SynchronizeResponse(more=request.more)

    joined: list[NriPlugin] = []
    joining = threading.Thread(target=lambda: joined.append(join("late", "20", Synchronize=wait)))
    joining.start()
    assert reached.wait(patient(60))
    made: list[str] = []
    making = threading.Thread(target=lambda: made.append(nri_node.run_container(pod, "sleep", "100", name="meanwhile")))
    making.start()
    release.set()
    joining.join(patient(20))
    making.join(patient(20))
    after = nri_node.run_container(pod, "sleep", "100", name="after")
    (plugin,) = joined
    synced = {one.id for one in plugin.requests("Synchronize")[0].containers}
    told = {one.container.id for one in plugin.requests("CreateContainer")}
    assert synced == set(known)
    assert told == {*made, after}
    assert [one.id for one in plugin.requests("Synchronize")[0].pods] == [pod]


def test_containers_outlive_the_daemon_and_plugins_learn_of_them_again(nri_node: Node, join: Join) -> None:
    pod = nri_node.run_pod("outlives")
    container = nri_node.run_container(pod, "sleep", "100")
    first = join()
    nri_node.daemon.stop()
    assert first.closed.wait(patient(60))
    assert first.methods()[-1] == "Shutdown"
    nri_node.daemon.start()
    second = join()
    (sync,) = second.requests("Synchronize")
    assert [one.id for one in sync.containers] == [container]
    assert sync.containers[0].state == nri_pb2.CONTAINER_RUNNING
    nri_node.daemon.kill()
    nri_node.daemon.start()
    third = join()
    nri_node.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert third.methods(pod, container) == ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"]


def _shares(node: Node, container: str) -> int:
    return int(node.status(container)["resources"]["linux"]["cpu_shares"])
