"""The words by which a pod's users, and their scripts, see what became of it: phase, reasons, exit codes and events.

They are the same over containerd, where the tests run with ``CLUSTER_RUNTIME=containerd``, but for the rows that say
why not (docs/differences.md). With ``CLUSTER_WORDS=docs/words.json`` what was said is kept there, whole, by runtime;
``make docs`` makes docs/words.md of it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import DEFAULT_HANDLER, RUNTIME
from cluster.kubelet import Json, Kubelet, wait_for
from cluster.place import Place
from cluster.test_static_pods import container, pod, state_of
from support.containerd import Containerd
from support.daemon import Daemon
from support.patience import patient

Words = tuple[tuple[str, str | None, int | None], list[str]]
NEVER = {"restartPolicy": "Never"}
ENDS, STARTS = ["Created", "Started"], ["Created", "Failed"]


def _probed(kind: str, *command: str) -> Json:
    """A container that lives, with a probe that fails."""
    probe = {"exec": {"command": list(command)}, "periodSeconds": 1, "failureThreshold": 2}
    return {"command": ["sleep", "100"], kind: probe}


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
    "out-of-memory": (
        {"command": ["tail", "/dev/zero"], "resources": {"limits": {"memory": "16Mi"}}},
        NEVER,
        ("Failed", "OOMKilled", 137),
        ENDS,
    ),
    "crashes": ({"command": ["sh", "-c", "exit 4"]}, {}, ("Running", "CrashLoopBackOff", None), [*ENDS, "BackOff"]),
    "no-tag": (
        {"command": ["true"], "image": "{images}/busybox:none"},
        NEVER,
        ("Pending", "ImagePullBackOff", None),
        ["Failed", "BackOff"],
    ),
    "never-pulled": (
        {"command": ["true"], "image": "{images}/busybox:none", "imagePullPolicy": "Never"},
        NEVER,
        ("Pending", "ErrImageNeverPull", None),
        ["ErrImageNeverPull", "Failed"],
    ),
    "no-name": (
        {"command": ["true"], "image": "UPPER:1"},
        NEVER,
        ("Pending", "InvalidImageName", None),
        ["InspectFailed", "Failed"],
    ),
    "not-ready": (_probed("readinessProbe", "false"), {}, ("Running", None, None), [*ENDS, "Unhealthy"]),
    "not-started": (
        _probed("startupProbe", "false"),
        {},
        ("Running", "CrashLoopBackOff", None),
        [*ENDS, "Unhealthy", "Killing", "BackOff"],
    ),
    "slow-probe": (_probed("readinessProbe", "sleep", "10"), {}, ("Running", None, None), [*ENDS, "Unhealthy"]),
    "no-such-probe": (_probed("readinessProbe", "/no/such"), {}, ("Running", None, None), [*ENDS, "Unhealthy"]),
    "nobody-listens": (
        {"command": ["sleep", "100"], "readinessProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 1}},
        {},
        ("Running", None, None),
        [*ENDS, "Unhealthy"],
    ),
    "no-directory": (
        {"command": ["true"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
        {**NEVER, "volumes": [{"name": "v", "hostPath": {"path": "/no/such", "type": "Directory"}}]},
        ("Pending", "ContainerCreating", None),
        ["FailedMount"],
    ),
    "bad-sysctl": (
        {"command": ["true"]},
        {**NEVER, "securityContext": {"sysctls": [{"name": "net.ipv4.ping_group_range", "value": "nonsense"}]}},
        ("Pending", "ContainerCreating", None),
        ["FailedCreatePodSandBox"],
    ),
}
# crun itself takes a relative directory
BY_CRUN: dict[str, Words] = {"relative": (("Succeeded", "Completed", 0), ENDS)}
# Where containerd's words are others: of the container, of the pod's spec, ours, and containerd's
UNLIKE: dict[str, tuple[Json, Json, Words, Words]] = {
    # a pod with less than was asked for is found out by nobody
    "no-capability": (
        {"command": ["true"], "securityContext": {"capabilities": {"add": ["NONSENSE"]}}},
        NEVER,
        (("Pending", "CreateContainerError", None), ["Failed"]),
        (("Succeeded", "Completed", 0), ENDS),
    ),
    # the API has a reason of its own for it, which containerd does not use
    "no-registry": (
        {"command": ["true"], "image": "127.0.0.1:9/x:1"},
        NEVER,
        (("Pending", "RegistryUnavailable", None), ["Failed"]),
        (("Pending", "ErrImagePull", None), ["Failed"]),
    ),
    "no-host": (
        {"command": ["true"], "image": "nowhere.invalid/x:1"},
        NEVER,
        (("Pending", "RegistryUnavailable", None), ["Failed"]),
        (("Pending", "ErrImagePull", None), ["Failed"]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_words(kubelet: Kubelet, place: Place, name: str) -> None:
    of_container, of_pod, words, events = CASES[name]
    expected = BY_CRUN.get(name, (words, events)) if DEFAULT_HANDLER == "crun" else (words, events)
    _compare(kubelet, place, name, of_container, of_pod, expected)


@pytest.mark.parametrize("name", UNLIKE)
def test_words_of_our_own(kubelet: Kubelet, place: Place, runtime: Daemon | Containerd, name: str) -> None:
    of_container, of_pod, ours, peers = UNLIKE[name]
    _compare(kubelet, place, name, of_container, of_pod, ours if isinstance(runtime, Daemon) else peers)


def _compare(kubelet: Kubelet, place: Place, name: str, of_container: Json, of_pod: Json, words: Words) -> None:
    of_container = {
        **of_container,
        "image": of_container.get("image", "{images}/busybox:1").format(images=place.images),
    }
    kubelet.run(pod(name, container(place, **of_container), **of_pod))
    expected, events = words
    states: list[Json] = []

    def told(found: Json) -> Any:
        if not found["status"].get("containerStatuses"):
            return None
        states.append(state_of(found))
        return found["status"]["phase"], states[-1].get("reason"), states[-1].get("exitCode")

    def seen() -> list[str]:
        unsaid = ("Pulling", "Pulled", "MissingClusterDNS")
        return list(dict.fromkeys(reason for reason, _ in kubelet.events(name) if reason not in unsaid))

    try:
        kubelet.until(name, lambda found: told(found) == expected, 90)
        wait_for(lambda: seen()[: len(events)] == events, lambda: f"{seen()} are not {events}", patient(60))
        _record(name, place, states[-1], kubelet.events(name))
    finally:
        kubelet.drop(name)


def _record(name: str, place: Place, state: Json, events: list[tuple[str, str]]) -> None:
    """Keep the words for docs/words.md, without what no other run has; an event that comes again counts once."""
    if "CLUSTER_WORDS" not in os.environ:
        return
    path = Path(os.environ["CLUSTER_WORDS"])
    table = json.loads(path.read_text()) if path.exists() else {}
    told = ((key, str(value)) for key, value in state.items() if key in ("reason", "exitCode", "message"))
    rows = [*told, *((f"event {reason}", message) for reason, message in events if reason != "MissingClusterDNS")]
    steady = list(dict.fromkeys((what, _steady(text, place)) for what, text in rows))
    table.setdefault(name, {})[RUNTIME] = steady
    path.write_text(json.dumps(table, indent=1) + "\n")


def _steady(text: str, place: Place) -> str:
    for found, instead in (
        (re.escape(place.registry.host), "REGISTRY"),
        (re.escape(str(place.directory)), "DIRECTORY"),
        (r"\b[0-9a-f]{64}\b|\b[0-9a-f]{8,12}(?=_default| of)", "ID"),
        (r"\bcrt[0-9a-f]{6}\b", "NODE"),
        (r"\b[0-9.]+m?s\b", "TIME"),
        (r"\b\d+(\.\d+){3}:53\b", "NAMESERVER"),
        (r"\b(192\.168\.99|10\.88\.0)\.\d+(:\d{5})?", "ADDRESS"),
    ):
        text = re.sub(found, instead, text)
    return text
