"""Containers of Kubernetes that another runtime still has here: nobody ends them once the kubelet has moved on."""

import json
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config

_AREA = Area("other runtimes")
_ADVICE = "drain the node and remove its pods by the other runtime before the kubelet uses crinoid: docs/moving.md"
# Where containerd keeps a directory of each container until it is removed, by what brings it along.
_CONTAINERD = {
    "containerd": "run/containerd",
    "containerd of k3s": "run/k3s/containerd",
    "containerd of MicroK8s": "var/snap/microk8s/common/run/containerd",
}
_CRIO_CONTAINERS = "run/containers/storage/overlay-containers"
_CRIO_MARK = "io.kubernetes.cri-o.ContainerType"
_MOST_BYTES = 1 << 20


def examine_other_runtimes(_config: Config, root: Path = Path("/")) -> Iterator[Finding]:
    """Look for other runtimes' containers and sockets."""
    crio = [path for path in _list(root / _CRIO_CONTAINERS) if _is_of_crio(path / "userdata/config.json")]
    findings = [
        *(
            _judge(name, _list(run / "io.containerd.runtime.v2.task/k8s.io"), run / "containerd.sock")
            for name, run in ((name, root / directory) for name, directory in _CONTAINERD.items())
        ),
        _judge("CRI-O", crio, root / "run/crio/crio.sock"),
        _judge("cri-dockerd", [], root / "run/cri-dockerd.sock"),
    ]
    found = [finding for finding in findings if finding is not None]
    yield from found or [_AREA.ok("containers", "none of Kubernetes by containerd, CRI-O or cri-dockerd")]


def _judge(name: str, containers: list[Path], socket: Path) -> Finding | None:
    serves = f"its socket {socket} is there" if socket.is_socket() else "it serves no more"
    if containers:
        return _AREA.warning(name, f"has {len(containers)} containers of Kubernetes on this node; {serves}", _ADVICE)
    return _AREA.ok(name, f"has no container of Kubernetes on this node; {serves}") if socket.is_socket() else None


def _list(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.is_dir()]
    except OSError:
        return []


def _is_of_crio(config: Path) -> bool:
    """Podman has its containers in the same place."""
    try:
        with config.open("rb") as file:
            return _CRIO_MARK in (json.loads(file.read(_MOST_BYTES)).get("annotations") or {})
    except (OSError, ValueError, AttributeError):
        return False
