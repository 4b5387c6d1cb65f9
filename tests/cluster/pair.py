"""Two nodes with a cable between them, each with a runtime and a kubelet; the control plane is on the first."""

from dataclasses import dataclass
from pathlib import Path

from cluster.control_plane import ControlPlane, forward
from cluster.kubelet import Kubelet
from cluster.place import Place
from support.containerd import Containerd
from support.daemon import Daemon

Runtime = Daemon | Containerd


@dataclass(frozen=True)
class Pair:
    """``kubelets`` and ``runtimes`` are those of the nodes ``node`` and ``second``."""

    cluster: ControlPlane
    kubelets: tuple[Kubelet, Kubelet]
    runtimes: tuple[Runtime, Runtime]

    @classmethod
    def of(cls, binaries: Path, first: tuple[Place, Runtime], second: tuple[Place, Runtime]) -> "Pair":
        """Make a pair that is not started yet."""
        kubeconfig = first[0].directory / "kubeconfig.json"
        one, other = (
            Kubelet(binaries / "kubelet", place, runtime.socket, kubeconfig=kubeconfig, node=node)
            for node, (place, runtime) in (("node", first), ("second", second))
        )
        cluster = ControlPlane(binaries, first[0], one, first[1], pods_in="10.88.0.0/16")
        return cls(cluster, (one, other), (first[1], second[1]))

    def start(self) -> None:
        """Start the control plane and both kubelets, and wait until both nodes take pods."""
        self.join()
        for kubelet in self.kubelets:
            self.cluster.wait_for_node(kubelet)

    def join(self) -> None:
        """Start them, and do not wait for the nodes."""
        for kubelet in self.kubelets:
            forward(kubelet.place)
        self.cluster.start_programs()
        for kubelet in self.kubelets:
            kubelet.start()

    def end(self) -> None:
        """Kill all, and undo what they made."""
        self.kubelets[1].end()
        self.cluster.end()
