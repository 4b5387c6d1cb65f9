"""What a container's or pod's reference means."""

from typing import Any

import pytest

from crinoid.core.api.errors import InvalidArgument, NotFound
from crinoid.core.cli.ctl.directory import Directory


def pod(pod_id: str, name: str, namespace: str = "default", created: int = 1, uid: str = "") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "uid": uid or pod_id, "attempt": 0}
    return {"id": pod_id, "metadata": metadata, "created_at": str(created)}


def container(container_id: str, name: str, pod_id: str, created: int = 1) -> dict[str, Any]:
    labels = {"io.kubernetes.pod.name": "labelled", "io.kubernetes.pod.namespace": "by-kubelet"}
    return {
        "id": container_id,
        "pod_sandbox_id": pod_id,
        "metadata": {"name": name, "attempt": 0},
        "created_at": str(created),
        "labels": labels,
    }


@pytest.fixture
def directory() -> Directory:
    pods = [
        pod("aaa1", "web"),
        pod("aaa2", "db"),
        pod("bbb1", "db", "other"),
        pod("ccc1", "old", created=1, uid="u"),
        pod("ccc2", "old", created=2, uid="u"),
    ]
    containers = [
        container("111", "app", "aaa1", created=1),
        container("112", "app", "aaa1", created=2),
        container("210", "store", "aaa2"),
        container("220", "store", "bbb1"),
        container("330", "112x", "gone"),
    ]
    return Directory({one["id"]: one for one in containers}, {one["id"]: one for one in pods})


@pytest.mark.parametrize(
    ("reference", "container_id"),
    [
        ("111", "111"),
        ("app", "112"),  # the newest attempt in its pod
        ("web/app", "112"),
        ("other/db/store", "220"),
        ("21", "210"),
        ("112x", "330"),  # a name comes before the beginning of an id
    ],
)
def test_a_container_is_found(directory: Directory, reference: str, container_id: str) -> None:
    assert directory.find_container(reference)["id"] == container_id


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("store", InvalidArgument, r"could be any of these.*\n  210  default/db/store\n  220  other/db/store$"),
        ("2", InvalidArgument, r"could be any of these.*\n  210  default/db/store\n  220  other/db/store$"),
        ("db/store", InvalidArgument, r"could be any of these.*\n  aaa2  default/db\n  bbb1  other/db$"),
        ("web/store", NotFound, "no container 'web/store'"),
        ("nobody/app", NotFound, "no pod 'nobody'"),
        ("", NotFound, "no container ''"),
    ],
)
def test_what_is_not_one_container_is_told(
    directory: Directory, reference: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        directory.find_container(reference)


@pytest.mark.parametrize(
    ("reference", "pod_id"), [("aaa1", "aaa1"), ("web", "aaa1"), ("other/db", "bbb1"), ("old", "ccc2"), ("b", "bbb1")]
)
def test_a_pod_is_found(directory: Directory, reference: str, pod_id: str) -> None:
    assert directory.find_pod(reference)["id"] == pod_id


def test_the_owner_comes_from_the_pod_and_else_from_labels(directory: Directory) -> None:
    assert directory.owner(directory.containers["220"]) == ("db", "other")
    assert directory.owner(directory.containers["330"]) == ("labelled", "by-kubelet")
