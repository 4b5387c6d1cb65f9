"""What has ended, and whose it is."""

from typing import Any

from crinoid.core.cli.ctl.directory import Directory
from crinoid.core.cli.ctl.prune import find_ended

KUBELETS = {"io.kubernetes.pod.uid": "u"}


def pod(pod_id: str, state: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"id": pod_id, "state": f"SANDBOX_{state}", "labels": labels or {}}


def container(container_id: str, pod_id: str, state: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"id": container_id, "pod_sandbox_id": pod_id, "state": f"CONTAINER_{state}", "labels": labels or {}}


def test_what_runs_and_what_a_kubelet_made_is_left() -> None:
    pods = [pod("up", "READY"), pod("down", "NOTREADY"), pod("theirs", "NOTREADY", KUBELETS)]
    containers = [
        container("runs", "up", "RUNNING"),
        container("new", "up", "CREATED"),
        container("ended", "up", "EXITED"),
        container("with-its-pod", "down", "EXITED"),
        container("kept-for-logs", "up", "EXITED", KUBELETS),
    ]
    directory = Directory({one["id"]: one for one in containers}, {one["id"]: one for one in pods})

    def ids(found: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> list[list[str]]:
        return [[one["id"] for one in kind] for kind in found]

    assert ids(find_ended(directory, with_kubelets=False)) == [["down"], ["ended"]]
    assert ids(find_ended(directory, with_kubelets=True)) == [["down", "theirs"], ["ended", "kept-for-logs"]]
