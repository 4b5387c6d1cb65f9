"""Containers of Kubernetes that another runtime left on the node are found by its run directories."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.cli.check.findings import Verdict
from crinoid.core.cli.check.other_runtimes import examine_other_runtimes
from crinoid.core.config.models import Config


def look(root: Path) -> list[tuple[Verdict, str, str]]:
    return [(one.verdict, one.name, one.detail) for one in examine_other_runtimes(Config(), root)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    yield tmp_path


def serve(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path.relative_to(Path.cwd())))


def test_a_node_without_another_runtime(root: Path) -> None:
    assert look(root) == [(Verdict.OK, "containers", "none of Kubernetes by containerd, CRI-O or cri-dockerd")]


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("run/containerd", "containerd"),
        ("run/k3s/containerd", "containerd of k3s"),
        ("var/snap/microk8s/common/run/containerd", "containerd of MicroK8s"),
    ],
)
def test_containers_of_containerd(root: Path, directory: str, name: str) -> None:
    tasks = root / directory / "io.containerd.runtime.v2.task"
    (tasks / "k8s.io/one").mkdir(parents=True)
    (tasks / "k8s.io/two").mkdir()
    (tasks / "moby/three").mkdir(parents=True)  # Docker's are no matter of the kubelet's
    assert look(root) == [(Verdict.WARNING, name, "has 2 containers of Kubernetes on this node; it serves no more")]
    serve(root / directory / "containerd.sock")
    [(verdict, _, detail)] = look(root)
    assert verdict is Verdict.WARNING
    assert detail.endswith(f"its socket {root / directory}/containerd.sock is there")


def test_containers_of_crio_beside_those_of_podman(root: Path) -> None:
    for name, annotations in (("a", {"io.kubernetes.cri-o.ContainerType": "sandbox"}), ("b", {"io.podman": "1"})):
        userdata = root / "run/containers/storage/overlay-containers" / name / "userdata"
        userdata.mkdir(parents=True)
        (userdata / "config.json").write_text(json.dumps({"annotations": annotations}))
    (root / "run/containers/storage/overlay-containers/c/userdata").mkdir(parents=True)
    (root / "run/containers/storage/overlay-containers/c/userdata/config.json").write_text("[")
    assert look(root) == [(Verdict.WARNING, "CRI-O", "has 1 containers of Kubernetes on this node; it serves no more")]


@pytest.mark.parametrize("path", ["run/crio/crio.sock", "run/cri-dockerd.sock", "run/containerd/containerd.sock"])
def test_a_runtime_that_has_nothing(root: Path, path: str) -> None:
    serve(root / path)
    [(verdict, _, detail)] = look(root)
    assert (verdict, "has no container of Kubernetes on this node" in detail) == (Verdict.OK, True)
