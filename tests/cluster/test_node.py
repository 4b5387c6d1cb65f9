"""What a kubelet has its runtime do for the node: logs, garbage, statistics, devices, checkpoints."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from cluster.kubelet import Json, Kubelet, wait_for
from cluster.place import Place
from cluster.test_static_pods import container, is_in, is_ready, pod, state_of
from support.containerd import Containerd
from support.cri import Cri
from support.daemon import Daemon, cgroup_directories
from support.images import Entry, build_busybox
from support.patience import patient

TESTS = Path(__file__).parent.parent


@pytest.fixture
def cri(runtime: Daemon | Containerd) -> Iterator[Cri]:
    client = Cri(runtime.socket)
    yield client
    client.close()


@pytest.fixture
def ordinary(kubelet: Kubelet) -> Iterator[Kubelet]:
    """The kubelet, which a test may restart with other settings."""
    yield kubelet
    kubelet.restart()


def drop(kubelet: Kubelet, name: str) -> None:
    """Take a pod away, and wait until it is gone."""
    kubelet.drop(name)
    wait_for(lambda: name not in kubelet.pods(), kubelet.tail, patient(60))


def test_no_line_is_lost_when_logs_are_rotated(ordinary: Kubelet, place: Place) -> None:
    kubelet = ordinary
    kubelet.restart(containerLogMaxSize="50Ki", containerLogMaxFiles=20, containerLogMonitorInterval="3s")
    script = "n=0; while [ $n -lt 9000 ]; do echo line $n; n=$((n+1)); [ $((n % 500)) != 0 ] || sleep 1; done"
    kubelet.run(pod("talks", container(place, "sh", "-c", script), restartPolicy="Never"))
    kubelet.until("talks", is_in("Succeeded"), 120)
    [directory] = (place.directory / "pod-logs").glob("default_talks-node_*/app")
    files = sorted(directory.iterdir(), key=lambda path: (path.name == "0.log", path.name))
    assert len(files) > 2
    lines = [line for path in files for line in _text(path).splitlines()]
    assert [line.split(" ", 3)[3] for line in lines] == [f"line {number}" for number in range(9000)]
    drop(kubelet, "talks")


def _text(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()


def test_dead_containers_are_collected(ordinary: Kubelet, place: Place, cri: Cri) -> None:
    kubelet = ordinary
    kubelet.restart(
        featureGates={"KubeletCrashLoopBackOffMax": True}, crashLoopBackOff={"maxContainerRestartPeriod": "1s"}
    )
    kubelet.run(pod("again", container(place, "sh", "-c", "exit 1")))
    kubelet.until("again", lambda found: _restarts(found) >= 5, 120)

    def dead() -> list[Json]:
        labels = {"io.kubernetes.pod.name": "again-node"}
        return list(cri.call("ListContainers", filter={"label_selector": labels})["containers"])

    wait_for(lambda: len(dead()) <= 2, lambda: json.dumps(dead()), patient(90))
    drop(kubelet, "again")


def _restarts(found: Json) -> int:
    return max((one["restartCount"] for one in found["status"].get("containerStatuses", ())), default=0)


def test_statistics_by_the_runtime(ordinary: Kubelet, place: Place, runtime: Daemon | Containerd) -> None:
    if not isinstance(runtime, Daemon):
        pytest.skip("containerd 1.6 does not know all that the gate asks for")
    kubelet = ordinary
    kubelet.restart(featureGates={"PodAndContainerStatsFromCRI": True})
    kubelet.run(pod("counted", container(place, "sh", "-c", "echo here; sleep 1000")))
    kubelet.until("counted", is_ready)

    def summary() -> Json | None:
        found = place.fetch_json(f"http://{kubelet.address}:10255/stats/summary")["pods"]
        [one] = [one for one in found if one["podRef"]["name"] == "counted-node"] or [None]
        return one if one and one.get("cpu", {}).get("usageNanoCores") is not None else None

    found = wait_for(summary, kubelet.tail, patient(90))
    assert found["memory"]["workingSetBytes"] > 0
    assert found["network"]["name"] == "eth0"
    assert found["process_stats"]["process_count"] >= 1
    [app] = found["containers"]
    assert app["cpu"]["usageCoreNanoSeconds"] > 0
    assert app["rootfs"]["usedBytes"] >= 0
    assert app["logs"]["usedBytes"] > 0
    metrics = place.fetch(f"http://{kubelet.address}:10255/metrics/cadvisor").decode()
    of_pod = [line for line in metrics.splitlines() if 'pod="counted-node"' in line]
    for name in ("container_cpu_usage_seconds_total", "container_memory_working_set_bytes"):
        assert any(line.startswith(name) and 'container="app"' in line for line in of_pod), of_pod
    assert any(line.startswith("container_network_receive_bytes_total") for line in of_pod)
    drop(kubelet, "counted")


def test_a_checkpoint(kubelet: Kubelet, place: Place, runtime: Daemon | Containerd) -> None:
    if not isinstance(runtime, Daemon):
        pytest.skip("containerd 1.6 has no checkpoints by the API")
    kubelet.run(pod("frozen", container(place, "sleep", "1000")))
    kubelet.until("frozen", is_ready)
    url = f"https://{kubelet.address}:10250/checkpoint/default/frozen-node/app"
    answer = place.run("curl", "--silent", "--insecure", "--request", "POST", url)
    if '"items"' in answer:
        [path] = json.loads(answer)["items"]
        assert Path(path).stat().st_size > 0
    else:
        assert "criu" in answer, answer
    assert kubelet.statuses("frozen")["app"]["restartCount"] == 0
    drop(kubelet, "frozen")


def test_a_full_disk_takes_pods_and_unused_images(cluster: ControlPlane) -> None:
    place, kubelet = cluster.place, cluster.kubelet
    layout = place.directory / "layout"
    build_busybox(layout, "unused:1", extra=[Entry(path="unused", content=b"unused")])
    place.network.call(lambda: place.registry.push(layout, "unused:1", "cluster/unused:1"))
    unused = {"image": f"{place.images}/unused:1"}
    client = Cri(cluster.runtime.socket)
    client.call("PullImage", image=unused)
    cluster.make("Pod", "evicted", spec=pod("evicted", container(place, "sleep", "1000"))["spec"])
    cluster.until("Pod", "evicted", is_ready)
    kubelet.restart(evictionHard={"nodefs.available": "99%"}, imageMinimumGCAge="0s")
    try:
        cluster.until("Pod", "evicted", lambda found: found["status"].get("reason") == "Evicted", 120)
        wait_for(lambda: not client.call("ImageStatus", image=unused).get("image"), kubelet.tail, patient(90))
    finally:
        client.close()
        kubelet.restart()
        cluster.wait_for_node()
        cluster.clear()


def working_set(top: str, container_id: str) -> int:
    """Return a container's working set as its cgroup below a top one tells it: usage less what can go at once."""
    identifier = container_id.rpartition("/")[2]
    [directory] = [
        path
        for one in cgroup_directories(top)
        for path in one.rglob(f"*{identifier}*")
        if (path / "memory.stat").exists()
    ]
    [usage] = [path for name in ("memory.usage_in_bytes", "memory.current") if (path := directory / name).exists()]
    stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    return int(usage.read_text()) - int(stat.get("total_inactive_file", stat["inactive_file"]))


def test_what_metrics_server_asks_for_is_what_the_cgroup_says(cluster: ControlPlane) -> None:
    script = "head -c 30000000 /dev/zero > /dev/shm/kept; echo kept; trap 'exit 0' TERM; sleep 1000 & wait"
    cluster.make("Pod", "metered", spec=pod("metered", container(cluster.place, "sh", "-c", script))["spec"])
    try:
        found = cluster.until("Pod", "metered", is_ready)
        wait_for(lambda: cluster.kubectl("logs", "metered") == "kept\n", cluster.kubelet.tail, patient(30))
        [status] = found["status"]["containerStatuses"]
        counted = working_set(cluster.kubelet.name, status["containerID"])
        assert counted > 30_000_000
        series = 'container_memory_working_set_bytes{container="app",namespace="default",pod="metered"}'
        told = wait_for(lambda: _is_close(cluster, series, counted), lambda: _series(cluster), patient(60))
        summary = cluster.ask("GET", "/api/v1/nodes/node/proxy/stats/summary?only_cpu_and_memory=true")
        [of_pod] = [one for one in summary["pods"] if one["podRef"]["name"] == "metered"]
        [of_container] = of_pod["containers"]
        assert abs(of_container["memory"]["workingSetBytes"] - told) < 2_000_000
        assert of_container["cpu"]["usageCoreNanoSeconds"] > 0
        assert 'container_cpu_usage_seconds_total{container="app",namespace="default",pod="metered"}' in _series(
            cluster
        )
    finally:
        cluster.clear()


def _series(cluster: ControlPlane) -> str:
    """Return what a kubelet serves at ``/metrics/resource``, which metrics-server reads."""
    return str(cluster.ask("GET", "/api/v1/nodes/node/proxy/metrics/resource"))


def _is_close(cluster: ControlPlane, series: str, expected: int) -> float:
    """Return a metric's value if it is near to what is expected, else nothing: a kubelet keeps values for a while."""
    lines = [line.split() for line in _series(cluster).splitlines() if line.startswith(series)]
    values = [float(value) for _, value, *_ in lines]
    return next((value for value in values if abs(value - expected) < 2_000_000), 0.0)


def test_devices_of_a_plugin_by_cdi(cluster: ControlPlane) -> None:
    if not isinstance(cluster.runtime, Daemon):
        pytest.skip("containerd 1.6 knows no CDI devices")
    place = cluster.place
    (place.directory / "cdi").mkdir(exist_ok=True)
    devices = [
        {"name": name, "containerEdits": {"env": [f"FOUND_{name.upper()}=1"], "deviceNodes": [_node(name)]}}
        for name in ("one", "two")
    ]
    spec: Json = {"cdiVersion": "0.6.0", "kind": "tests.example/widget", "devices": devices}
    (place.directory / "cdi" / "widget.json").write_text(json.dumps(spec))
    command: list[str] = [
        *place.prefix,
        sys.executable,
        "-m",
        "cluster.device_plugin",
        "tests.example/widget",
        spec["kind"],
    ]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(TESTS)}) as plugin:
        try:
            _use_devices(cluster)
        finally:
            plugin.kill()
            cluster.clear()


def _node(name: str) -> Json:
    return {"path": f"/dev/widget-{name}", "hostPath": "/dev/zero", "type": "c", "major": 1, "minor": 5}


def _use_devices(cluster: ControlPlane) -> None:
    script = "echo $ALLOCATED $FOUND_ONE$FOUND_TWO; head -c 3 /dev/widget-$ALLOCATED | wc -c"
    of = {"limits": {"tests.example/widget": 1}}
    for name in ("uses-a", "uses-b"):
        spec = pod(name, container(cluster.place, "sh", "-c", script, resources=of), restartPolicy="Never")["spec"]
        cluster.make("Pod", name, spec=spec)
    said = []
    for name in ("uses-a", "uses-b"):
        found = cluster.until("Pod", name, lambda found: found["status"]["phase"] in ("Succeeded", "Failed"), 90)
        assert found["status"]["phase"] == "Succeeded", (state_of(found), cluster.kubectl("logs", name))
        said.append(cluster.kubectl("logs", name).split())
    assert sorted(said) in ([["one", "1", "3"], ["two", "1", "3"]], [["one", "1", "3"]] * 2, [["two", "1", "3"]] * 2)
