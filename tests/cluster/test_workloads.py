"""What people do with a cluster: workloads of every kind, services, and kubectl's commands.

All of it was seen with containerd too (``CLUSTER_RUNTIME=containerd``), but for what that is too old for.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.kubelet import Json, wait_for
from cluster.test_static_pods import container, is_in, is_ready, pod, state_of
from support.containerd import Containerd
from support.patience import patient

HANDLERS = ("runc", "crun")
WEB = "mkdir /web; hostname > /web/name; exec httpd -f -p 80 -h /web"
# As PID 1 it has to say itself that SIGTERM ends it.
STAY = "trap 'exit 0' TERM; echo here; sleep 100000 & wait"


@pytest.fixture(autouse=True)
def _clean(cluster: ControlPlane) -> Iterator[None]:
    for handler in HANDLERS:
        cluster.make("RuntimeClass", handler, handler=handler)
    yield
    cluster.clear()


def template(cluster: ControlPlane, label: str, *command: str, of_container: Json | None = None, **spec: Any) -> Json:
    """What the pods of a workload are made from."""
    made = pod("", container(cluster.place, *command, **(of_container or {})), **spec)["spec"]
    return {"metadata": {"labels": {"app": label}}, "spec": made}


def workload(label: str, template: Json, **spec: Any) -> Json:
    """The specification of a workload."""
    return {"spec": {"selector": {"matchLabels": {"app": label}}, "template": template, **spec}}


def run(cluster: ControlPlane, name: str, *containers: Json, **spec: Any) -> None:
    """Make a pod by itself."""
    cluster.make("Pod", name, **{key: value for key, value in pod(name, *containers, **spec).items() if key == "spec"})


def run_staying(cluster: ControlPlane, name: str, **more: Any) -> None:
    """Make a pod that runs on, and wait until it is ready."""
    run(cluster, name, container(cluster.place, "sh", "-c", STAY, **more))
    cluster.until("Pod", name, is_ready)


def events_of(cluster: ControlPlane, name: str) -> list[str]:
    return [reason for reason, _ in cluster.events(name)]


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_service_of_a_deployment(cluster: ControlPlane, mode: str) -> None:
    probe = {"httpGet": {"path": "/name", "port": 80}, "periodSeconds": 1}
    name = f"web-{mode}"
    made = template(cluster, name, "sh", "-c", WEB, of_container={"readinessProbe": probe})
    cluster.make("Deployment", name, **workload(name, made, replicas=2))
    cluster.make("Service", name, spec={"selector": {"app": name}, "ports": [{"port": 8080, "targetPort": 80}]})
    service = cluster.get("Service", name)
    assert service is not None
    # wget of a static busybox looks names up, and falls over it
    get = f"printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {service['spec']['clusterIP']} 8080 | tail -n 1"
    run_staying(cluster, f"{name}-client")
    cluster.until("Deployment", name, lambda found: found["status"].get("readyReplicas") == 2)
    expected = {one["metadata"]["name"] for one in cluster.pods(f"app={name}")}
    seen: set[str] = set()

    def ask() -> bool:
        with contextlib.suppress(AssertionError):
            seen.add(cluster.kubectl("exec", f"{name}-client", "--", "sh", "-c", get).strip() or "nothing")
        return seen >= expected

    with cluster.proxy(mode):
        wait_for(ask, lambda: f"{seen} of {expected}\n" + cluster.tail("kube-proxy"), patient(60))


def test_a_deployment_is_rolled_over(cluster: ControlPlane) -> None:
    made = template(cluster, "rolled", "sh", "-c", STAY)
    cluster.make("Deployment", "rolled", **workload("rolled", made, replicas=2))
    cluster.until("Deployment", "rolled", lambda found: found["status"].get("availableReplicas") == 2)
    before = {one["metadata"]["name"] for one in cluster.pods("app=rolled")}
    cluster.kubectl("set", "env", "deployment/rolled", "NEW=1")
    cluster.kubectl("rollout", "status", "deployment/rolled", "--timeout=100s")
    wait_for(
        lambda: (
            len(cluster.pods("app=rolled")) == 2
            and not before & {one["metadata"]["name"] for one in cluster.pods("app=rolled")}
        ),
        lambda: str(cluster.events()),
        patient(60),
    )


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_daemon_set_of_a_runtime_class(cluster: ControlPlane, handler: str) -> None:
    name = f"everywhere-{handler}"
    made = template(cluster, name, "sh", "-c", STAY, runtimeClassName=handler)
    cluster.make("DaemonSet", name, **workload(name, made))
    cluster.until("DaemonSet", name, lambda found: found["status"].get("numberReady") == 1)
    [one] = cluster.pods(f"app={name}")
    assert cluster.kubectl("exec", one["metadata"]["name"], "--", "echo", "well") == "well\n"


def test_an_unknown_handler(cluster: ControlPlane) -> None:
    cluster.make("RuntimeClass", "unknown", handler="unknown")
    run(cluster, "unknown-handler", container(cluster.place, "true"), runtimeClassName="unknown")
    wait_for(lambda: "FailedCreatePodSandBox" in events_of(cluster, "unknown-handler"), str, patient(60))
    [message, *_] = [words for reason, words in cluster.events("unknown-handler") if reason == "FailedCreatePodSandBox"]
    assert "unknown" in message


def test_a_stateful_set(cluster: ControlPlane) -> None:
    made = template(cluster, "state", "sh", "-c", STAY)
    cluster.make("StatefulSet", "state", **workload("state", made, serviceName="state", replicas=2))
    cluster.until("StatefulSet", "state", lambda found: found["status"].get("readyReplicas") == 2)
    before = cluster.get("Pod", "state-0")
    assert before is not None
    assert cluster.kubectl("exec", "state-1", "--", "hostname") == "state-1\n"
    cluster.kubectl("delete", "pod", "state-0", "--wait")
    after = cluster.until(
        "Pod", "state-0", lambda found: found["metadata"]["uid"] != before["metadata"]["uid"] and is_ready(found)
    )
    assert after["spec"]["hostname"] == "state-0"


def test_jobs(cluster: ControlPlane) -> None:
    def job(name: str, *command: str, **spec: Any) -> None:
        made = template(cluster, name, *command, restartPolicy="Never")
        cluster.make("Job", name, spec={"template": made, **spec})

    job("good", "sh", "-c", "exit 0", completions=4, parallelism=2)
    job("bad", "sh", "-c", "exit 3", backoffLimit=0)
    job("missing", "/no/such", backoffLimit=0)
    done = cluster.until("Job", "good", lambda found: found["status"].get("completionTime"))
    assert done["status"]["succeeded"] == 4
    for name in ("bad", "missing"):
        failed = cluster.until("Job", name, lambda found: found["status"].get("failed"))
        assert failed["status"]["failed"] == 1


def test_kubectl_exec(cluster: ControlPlane) -> None:
    run_staying(cluster, "exec")
    assert cluster.kubectl("exec", "-i", "exec", "--", "cat", given="in\n") == "in\n"
    assert "exit code 7" in cluster.kubectl("exec", "exec", "--", "sh", "-c", "exit 7", succeeds=False)
    assert "/no/such" in cluster.kubectl("exec", "exec", "--", "/no/such", succeeds=False)
    assert len(cluster.kubectl("exec", "exec", "--", "head", "-c", "3000000", "/dev/zero")) == 3_000_000


def test_kubectl_logs(cluster: ControlPlane) -> None:
    script = "for n in 1 2 3; do echo line $n; sleep 1; done; echo end >&2"
    run(cluster, "logs", container(cluster.place, "sh", "-c", script), restartPolicy="Never")
    cluster.until("Pod", "logs", lambda found: found["status"].get("containerStatuses", [{}])[0].get("containerID"))
    assert cluster.kubectl("logs", "-f", "logs") == "line 1\nline 2\nline 3\nend\n"
    assert cluster.kubectl("logs", "--tail=1", "logs") == "end\n"


def test_kubectl_cp(cluster: ControlPlane) -> None:
    directory = cluster.place.directory / "copied"
    (directory / "in").mkdir(parents=True)
    (directory / "in" / "file").write_bytes(bytes(range(256)) * 4096)
    run_staying(cluster, "cp")
    cluster.kubectl("cp", str(directory / "in"), "cp:/tmp/there")
    cluster.kubectl("cp", "cp:/tmp/there", str(directory / "out"))
    assert (directory / "out" / "file").read_bytes() == (directory / "in" / "file").read_bytes()


def test_kubectl_port_forward(cluster: ControlPlane) -> None:
    run(cluster, "forward", container(cluster.place, "sh", "-c", WEB))
    cluster.until("Pod", "forward", is_ready)
    command = [*cluster.place.prefix, str(cluster.binaries / "kubectl"), f"--kubeconfig={cluster.kubeconfig}"]
    with subprocess.Popen(
        [*command, "port-forward", "forward", ":80"], stdout=subprocess.PIPE, text=True
    ) as forwarding:
        try:
            assert forwarding.stdout is not None
            port = forwarding.stdout.readline().split(":")[1].split()[0]
            for _ in range(3):
                assert cluster.place.fetch(f"http://127.0.0.1:{port}/name") == b"forward\n"
        finally:
            forwarding.kill()


def test_kubectl_debug(cluster: ControlPlane) -> None:
    run_staying(cluster, "debugged")
    cluster.kubectl(
        *("debug", "debugged", f"--image={cluster.place.images}/busybox:1", "--target=app", "--container=debugger"),
        *("--profile=general", "--", "sh", "-c", "ps -o args"),
    )

    def has_ended(found: Json) -> bool:
        [status] = found["status"].get("ephemeralContainerStatuses") or [{}]
        return "terminated" in status.get("state", {})

    cluster.until("Pod", "debugged", has_ended)
    assert "trap" in cluster.kubectl("logs", "debugged", "--container=debugger")


def test_a_node_is_drained(cluster: ControlPlane) -> None:
    made = template(cluster, "drained", "sh", "-c", STAY)
    cluster.make("Deployment", "drained", **workload("drained", made, replicas=2))
    cluster.make("DaemonSet", "remains", **workload("remains", template(cluster, "remains", "sh", "-c", STAY)))
    cluster.until("Deployment", "drained", lambda found: found["status"].get("availableReplicas") == 2)
    cluster.until("DaemonSet", "remains", lambda found: found["status"].get("numberReady") == 1)
    before = {one["metadata"]["name"] for one in cluster.pods("app=drained")}
    printed = cluster.kubectl("drain", "node", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=100s")
    assert all(f"pod/{name} evicted" in printed for name in before)
    cluster.kubectl("uncordon", "node")
    cluster.until("Deployment", "drained", lambda found: found["status"].get("availableReplicas") == 2)
    assert len(cluster.pods("app=remains")) == 1


@pytest.mark.parametrize("handler", HANDLERS)
def test_resize_in_place(cluster: ControlPlane, handler: str) -> None:
    if handler == "crun" and isinstance(cluster.runtime, Containerd):
        pytest.skip("crun over containerd 1.6 is not tried")
    name = f"resized-{handler}"
    of = {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}}
    run(cluster, name, container(cluster.place, "sh", "-c", STAY, resources=of), runtimeClassName=handler)
    before = state_id(cluster.until("Pod", name, is_ready))
    more = {"requests": {"cpu": "150m", "memory": "32Mi"}, "limits": {"cpu": "400m", "memory": "96Mi"}}
    change = {"spec": {"containers": [{"name": "app", "resources": more}]}}
    path = f"/api/v1/namespaces/default/pods/{name}/resize"
    cluster.ask("PATCH", path, change, "application/strategic-merge-patch+json")

    def is_resized(found: Json) -> bool:
        [status] = found["status"]["containerStatuses"]
        return bool(status.get("resources", {}).get("limits") == more["limits"])

    after = cluster.until("Pod", name, is_resized)
    assert state_id(after) == before
    limit = cluster.kubectl(
        "exec",
        name,
        "--",
        "sh",
        "-c",
        "cat /sys/fs/cgroup/memory*/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true",
    )
    assert limit.split() == [str(96 << 20)]


def state_id(found: Json) -> tuple[str, int]:
    """What changes when a container is restarted."""
    [status] = found["status"]["containerStatuses"]
    return status["containerID"], status["restartCount"]


@pytest.mark.parametrize("handler", HANDLERS)
def test_user_namespaces(cluster: ControlPlane, handler: str) -> None:
    if isinstance(cluster.runtime, Containerd):
        pytest.skip("containerd 1.6 has no user namespaces")
    name = f"mapped-{handler}"
    script = "cat /proc/self/uid_map; touch /v/mine && stat -c %u /v/mine"
    mounts: Json = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    run(
        cluster,
        name,
        container(cluster.place, "sh", "-c", script, **mounts),
        hostUsers=False,
        restartPolicy="Never",
        runtimeClassName=handler,
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    cluster.until("Pod", name, is_in("Succeeded"))
    inside, outside, length, owner = cluster.kubectl("logs", name).split()
    assert (inside, length, owner) == ("0", "65536", "0")
    assert int(outside) >= 65536


def test_a_configuration_that_comes_late(cluster: ControlPlane) -> None:
    env = [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}]
    run(cluster, "late", container(cluster.place, "sh", "-c", "echo $K", env=env), restartPolicy="Never")

    def waits(found: Json) -> bool:
        statuses = found["status"].get("containerStatuses")
        return bool(statuses) and state_of(found).get("reason") == "CreateContainerConfigError"

    found = cluster.until("Pod", "late", waits)
    assert state_of(found)["message"] == 'configmap "late" not found'
    cluster.make("ConfigMap", "late", data={"k": "value"})
    cluster.until("Pod", "late", is_in("Succeeded"))
    assert cluster.kubectl("logs", "late") == "value\n"


def test_statistics_by_way_of_the_api_server(cluster: ControlPlane) -> None:
    run_staying(cluster, "counted")

    def counted() -> bool:
        summary = cluster.ask("GET", "/api/v1/nodes/node/proxy/stats/summary")
        [of_pod] = [one for one in summary["pods"] if one["podRef"]["name"] == "counted"] or [{}]
        return bool(of_pod.get("memory", {}).get("workingSetBytes"))

    wait_for(counted, cluster.kubelet.tail, patient(60))
