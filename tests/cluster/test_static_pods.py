"""Pods of a kubelet by itself: what it makes of the runtime's answers is what their users see.

Every word that is compared here was seen with containerd too (``CLUSTER_RUNTIME=containerd``).
"""

from typing import Any

import pytest

from cluster.kubelet import Json, Kubelet, wait_for
from cluster.place import NODE_IP, Place
from support.containerd import Containerd
from support.daemon import Daemon
from support.patience import patient

only_crinoid = "it is about crinoid"


def container(place: Place, *command: str, name: str = "app", **more: Any) -> Json:
    """A container of a manifest."""
    return {"name": name, "image": f"{place.images}/busybox:1", "command": list(command)} | more


def pod(name: str, *containers: Json, **spec: Any) -> Json:
    """A pod's manifest."""
    spec = {"terminationGracePeriodSeconds": 1, "containers": list(containers)} | spec
    return {"metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"}, "spec": spec}


def is_ready(found: Json) -> bool:
    conditions = {one["type"]: one["status"] for one in found["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


def is_in(phase: str) -> Any:
    return lambda found: found["status"]["phase"] == phase


def state_of(found: Json, name: str = "app") -> Json:
    """Return a container's state: what it is in, with its words but for times and ids."""
    [status] = [one for one in found["status"]["containerStatuses"] if one["name"] == name]
    [(kind, words)] = status["state"].items()
    unsteady = ("startedAt", "finishedAt", "containerID")
    return {"is": kind} | {key: value for key, value in words.items() if key not in unsteady}


def test_a_pod_with_all_that_pods_have(kubelet: Kubelet, place: Place) -> None:
    script = "echo started; touch /shared/ready; trap 'exit 0' TERM; sleep 1000 & wait"
    probe = {"exec": {"command": ["cat", "/shared/ready"]}, "periodSeconds": 1}
    app = container(
        place,
        *("sh", "-c", script),
        env=[{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        ports=[{"containerPort": 80, "hostPort": 8088}],
        volumeMounts=[{"name": "shared", "mountPath": "/shared"}, {"name": "memory", "mountPath": "/memory"}],
        readinessProbe=probe,
        livenessProbe=probe,
        startupProbe=probe,
        lifecycle={"postStart": {"exec": {"command": ["touch", "/shared/posted"]}}},
        securityContext={"readOnlyRootFilesystem": True, "runAsUser": 1000},
        resources={"limits": {"memory": "64Mi", "cpu": "500m"}},
    )
    web = container(
        place, "sh", "-c", "cd /shared; exec httpd -f -p 80", name="web", volumeMounts=app["volumeMounts"][:1]
    )
    init = container(place, "sh", "-c", "touch /shared/initialised", name="init", volumeMounts=app["volumeMounts"][:1])
    side = container(place, "sleep", "1000", name="side", restartPolicy="Always")
    volumes = [{"name": "shared", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]
    context = {"fsGroup": 2000, "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}]}
    kubelet.run(pod("all", app, web, initContainers=[init, side], volumes=volumes, securityContext=context))
    found = kubelet.until("all", is_ready)
    statuses = kubelet.statuses("all")
    assert statuses["init"]["state"]["terminated"]["reason"] == "Completed"
    assert "running" in statuses["side"]["state"]
    assert found["status"]["podIP"].startswith("10.88.0.")
    assert kubelet.execute("all", "app", "env").count("POD=all-node") == 1
    assert place.fetch(f"http://{found['status']['podIP']}/initialised") == b""
    assert place.fetch(f"http://{NODE_IP}:8088/posted") == b""
    assert kubelet.container_log("all", "app") == "started\n"
    kubelet.drop("all")
    wait_for(lambda: "all" not in kubelet.pods(), kubelet.tail, patient(60))


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("done", ("true",), {"reason": "Completed", "exitCode": 0}),
        ("fails", ("sh", "-c", "exit 3"), {"reason": "Error", "exitCode": 3}),
        ("as-killed", ("sh", "-c", "exit 137"), {"reason": "Error", "exitCode": 137}),
        ("missing", ("/no/such",), {"reason": "StartError", "exitCode": 128}),
        ("no-file", ("/etc/passwd",), {"reason": "StartError", "exitCode": 128}),
    ],
)
def test_how_a_container_that_is_not_restarted_ends(
    kubelet: Kubelet, place: Place, name: str, command: tuple[str, ...], expected: Json
) -> None:
    kubelet.run(pod(name, container(place, *command), restartPolicy="Never"))
    found = kubelet.until(name, is_in("Succeeded" if expected["exitCode"] == 0 else "Failed"))
    state = state_of(found)
    assert {key: state[key] for key in expected} == expected
    if expected["reason"] == "StartError":
        assert command[0] in state["message"]
    kubelet.drop(name)


def test_out_of_memory(kubelet: Kubelet, place: Place) -> None:
    eat = container(place, "sh", "-c", "exec tail /dev/zero", resources={"limits": {"memory": "16Mi"}})
    kubelet.run(pod("oom", eat, restartPolicy="Never"))
    state = state_of(kubelet.until("oom", is_in("Failed")))
    assert (state["reason"], state["exitCode"]) == ("OOMKilled", 137)
    kubelet.drop("oom")


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("no-tag", "{}/busybox:none", "not found"),
        ("no-registry", "127.0.0.1:9/x:1", "connection refused"),
        ("no-host", "nowhere.invalid/x:1", "nowhere.invalid"),
        ("no-name", "UPPER:1", "InvalidImageName"),
    ],
)
def test_images_that_are_not_there(kubelet: Kubelet, place: Place, name: str, image: str, words: str) -> None:
    kubelet.run(pod(name, container(place, "true", image=image.format(place.images), imagePullPolicy="IfNotPresent")))

    def waits(found: Json) -> bool:
        state = state_of(found) if found["status"].get("containerStatuses") else {}
        return state.get("reason") in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RegistryUnavailable")

    state = state_of(kubelet.until(name, waits))
    assert words.lower() in f"{state['reason']} {state['message']}".lower()
    kubelet.drop(name)


def test_a_host_name_without_a_cluster_domain(kubelet: Kubelet, place: Place) -> None:
    spec = {"hostname": "web", "subdomain": "shop", "setHostnameAsFQDN": True, "restartPolicy": "Never"}
    kubelet.run(pod("fqdn", container(place, "hostname"), **spec))
    kubelet.until("fqdn", is_in("Succeeded"))
    assert kubelet.container_log("fqdn", "app") == "web.shop.default.svc.\n"
    kubelet.drop("fqdn")


@pytest.mark.parametrize(
    ("name", "spec", "command"),
    [
        ("host-network", {"hostNetwork": True}, "test -e /sys/class/net/node0"),
        ("host-pids", {"hostPID": True}, "ps | grep -q kubelet"),
        ("host-ipc", {"hostIPC": True}, "true"),
        ("one-pid-namespace", {"shareProcessNamespace": True}, "test $(ps -o args | wc -l) -gt 3"),
        ("user-namespace", {"hostUsers": False}, "grep -q ' 65536$' /proc/self/uid_map"),
    ],
)
def test_namespaces(
    kubelet: Kubelet, place: Place, runtime: Daemon | Containerd, name: str, spec: Json, command: str
) -> None:
    if name == "user-namespace" and not isinstance(runtime, Daemon):
        pytest.skip("containerd 1.6 has no user namespaces")
    kubelet.run(pod(name, container(place, "sh", "-c", command), restartPolicy="Never", **spec))
    found = kubelet.until(name, lambda found: found["status"]["phase"] in ("Succeeded", "Failed"))
    assert found["status"]["phase"] == "Succeeded", state_of(found)
    kubelet.drop(name)


def test_a_container_that_crashes_is_restarted_later_and_later(kubelet: Kubelet, place: Place) -> None:
    kubelet.run(pod("crash", container(place, "sh", "-c", "echo why > /dev/termination-log; exit 4")))

    def backs_off(found: Json) -> bool:
        return bool(found["status"].get("containerStatuses")) and state_of(found).get("reason") == "CrashLoopBackOff"

    [status] = kubelet.until("crash", backs_off)["status"]["containerStatuses"]
    last = status["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"], last["message"]) == (4, "Error", "why\n")
    kubelet.drop("crash")


def test_pods_outlive_the_runtime_and_the_kubelet(kubelet: Kubelet, place: Place, runtime: Daemon | Containerd) -> None:
    if not isinstance(runtime, Daemon):
        pytest.skip(only_crinoid)
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 20}
    kubelet.run(pod("lasting", container(place, "sleep", "1000", livenessProbe=probe)))
    kubelet.until("lasting", is_ready)
    before = kubelet.statuses("lasting")["app"]
    runtime.kill()
    runtime.start()
    kubelet.until("lasting", is_ready)
    kubelet.kill()
    kubelet.start()
    kubelet.until("lasting", is_ready)
    after = kubelet.statuses("lasting")["app"]
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    kubelet.drop("lasting")
    wait_for(lambda: "lasting" not in kubelet.pods(), kubelet.tail, patient(60))
