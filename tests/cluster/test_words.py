"""The words by which a pod's users, and their scripts, see what became of it: phase, reasons, exit codes and events.

They are the same over containerd, where the tests run with ``CLUSTER_RUNTIME=containerd``, but for the rows that say
why not (docs/differences.md).
"""

from typing import Any

import pytest

from cluster.kubelet import Json, Kubelet
from cluster.place import Place
from cluster.test_static_pods import container, pod, state_of
from support.containerd import Containerd
from support.daemon import Daemon

NEVER = {"restartPolicy": "Never"}
ENDS, STARTS = ["Created", "Started"], ["Created", "Failed"]
CASES: dict[str, tuple[Json, Json, tuple[str, str | None, int | None], list[str]]] = {
    # name: of the container, of the pod's spec, (phase, reason, exit code), events but for the image's
    "completed": ({"command": ["true"]}, NEVER, ("Succeeded", "Completed", 0), ENDS),
    "error": ({"command": ["sh", "-c", "exit 3"]}, NEVER, ("Failed", "Error", 3), ENDS),
    "no-program": ({"command": ["/no/such"]}, NEVER, ("Failed", "StartError", 128), STARTS),
    "not-on-the-path": ({"command": ["nosuch"]}, NEVER, ("Failed", "StartError", 128), STARTS),
    "a-file": ({"command": ["/etc/passwd"]}, NEVER, ("Failed", "StartError", 128), STARTS),
    "a-directory": ({"command": ["/etc"]}, NEVER, ("Failed", "StartError", 128), STARTS),
    "relative": ({"command": ["true"], "workingDir": "tmp"}, NEVER, ("Failed", "StartError", 128), STARTS),
    "over-the-root": (
        {"command": ["true"], "volumeMounts": [{"name": "v", "mountPath": "/"}]},
        {**NEVER, "volumes": [{"name": "v", "emptyDir": {}}]},
        ("Failed", "StartError", 128),
        STARTS,
    ),
    "over-a-file": (
        {"command": ["true"], "volumeMounts": [{"name": "v", "mountPath": "/etc/passwd"}]},
        {**NEVER, "volumes": [{"name": "v", "emptyDir": {}}]},
        ("Failed", "StartError", 128),
        STARTS,
    ),
    "no-profile": (
        {
            "command": ["true"],
            "securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "none.json"}},
        },
        NEVER,
        ("Pending", "CreateContainerError", None),
        ["Failed"],
    ),
    "root-not-allowed": (
        {"command": ["true"], "securityContext": {"runAsNonRoot": True}},
        NEVER,
        ("Pending", "CreateContainerConfigError", None),
        ["Failed"],
    ),
    "post-start": (
        {"command": ["sleep", "100"], "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "exit 7"]}}}},
        NEVER,
        ("Failed", "Error", 137),
        ["Created", "Started", "FailedPostStartHook", "Killing"],
    ),
    "not-alive": (
        {
            "command": ["sleep", "100"],
            "livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 2},
        },
        {},
        ("Running", "CrashLoopBackOff", None),
        ["Created", "Started", "Unhealthy", "Killing", "BackOff"],
    ),
}
UNLIKE_CONTAINERD: dict[str, tuple[Json, Json, tuple[str, str | None, int | None], list[str]]] = {
    # a pod with less than was asked for is found out by nobody
    "no-capability": (
        {"command": ["true"], "securityContext": {"capabilities": {"add": ["NONSENSE"]}}},
        NEVER,
        ("Pending", "CreateContainerError", None),
        ["Failed"],
    ),
    # the API has a reason of its own for it, which containerd does not use
    "no-registry": (
        {"command": ["true"], "image": "127.0.0.1:9/x:1"},
        NEVER,
        ("Pending", "RegistryUnavailable", None),
        ["Failed"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_words(kubelet: Kubelet, place: Place, name: str) -> None:
    _compare(kubelet, place, name, *CASES[name])


@pytest.mark.parametrize("name", UNLIKE_CONTAINERD)
def test_words_of_our_own(kubelet: Kubelet, place: Place, runtime: Daemon | Containerd, name: str) -> None:
    if not isinstance(runtime, Daemon):
        pytest.skip("containerd says something else here")
    _compare(kubelet, place, name, *UNLIKE_CONTAINERD[name])


def _compare(
    kubelet: Kubelet,
    place: Place,
    name: str,
    of_container: Json,
    of_pod: Json,
    words: tuple[str, str | None, int | None],
    events: list[str],
) -> None:
    kubelet.run(pod(name, container(place, **of_container), **of_pod))

    def told(found: Json) -> Any:
        if not found["status"].get("containerStatuses"):
            return None
        state = state_of(found)
        return found["status"]["phase"], state.get("reason"), state.get("exitCode")

    try:
        kubelet.until(name, lambda found: told(found) == words)
        seen = [
            reason for reason, _ in kubelet.events(name) if reason not in ("Pulling", "Pulled", "MissingClusterDNS")
        ]
        assert list(dict.fromkeys(seen))[: len(events)] == events
    finally:
        kubelet.drop(name)
