"""A kubelet over crinoid, or over a peer: by programs that the caller names, as none of them is in this repository.

``CLUSTER_BINARIES`` is a directory with ``kubelet``. With ``CLUSTER_RUNTIME=containerd`` the same tests run over
Debian's containerd: the words that a pod's users see have to be the same.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.addons import CNI_BIN, NET_D, NODE_DNS
from cluster.control_plane import PROGRAMS, ControlPlane
from cluster.kubelet import Kubelet
from cluster.pair import Pair
from cluster.place import Place, place_in
from support.containerd import Containerd
from support.daemon import Daemon

RUNTIME = os.environ.get("CLUSTER_RUNTIME", "crinoid")
DEFAULT_HANDLER = os.environ.get("CLUSTER_HANDLER", "runc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where there is no kubelet, and say what is missing."""
    for item in items:
        if "cluster" not in item.path.parts:
            continue
        item.add_marker(pytest.mark.integration)
        item.add_marker(pytest.mark.timeout(300))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="real containers need root"))
        elif not (_binaries() / "kubelet").is_file():
            item.add_marker(pytest.mark.skip(reason="CLUSTER_BINARIES names no directory with a kubelet"))


def _binaries() -> Path:
    return Path(os.environ.get("CLUSTER_BINARIES", "/nonexistent"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("cluster")) as place:
        yield place


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The directory of the programs that the caller has."""
    return _binaries()


@pytest.fixture(scope="session")
def runtime(place: Place) -> Iterator[Daemon | Containerd]:
    """The runtime that the tests are about; at the end nothing of it may be left."""
    with _runtime_in(place) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def kubelet(place: Place, runtime: Daemon | Containerd) -> Iterator[Kubelet]:
    kubelet = Kubelet(_binaries() / "kubelet", place, runtime.socket)
    try:
        kubelet.start()
        yield kubelet
    finally:
        kubelet.end()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster of one node, in a place of its own."""
    _need(*PROGRAMS)
    with place_in(tmp_path_factory.mktemp("node")) as place, _runtime_in(place) as runtime:
        kubeconfig = place.directory / "kubeconfig.json"
        cluster = ControlPlane(
            _binaries(), place, Kubelet(_binaries() / "kubelet", place, runtime.socket, kubeconfig=kubeconfig), runtime
        )
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.end()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A cluster of two nodes, each with a CNI network of its own, and routes between them as a cloud has them."""
    with _pair_in(tmp_path_factory) as pair:
        first, second = (kubelet.place for kubelet in pair.kubelets)
        first.run("ip", "route", "add", "10.88.1.0/24", "via", second.address)
        second.run("ip", "route", "add", "10.88.0.0/24", "via", first.address)
        pair.start()
        yield pair


@pytest.fixture(scope="module")
def bare_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two nodes that wait for the network add-on of their cluster; with kube-proxy, by which add-ons find the API."""
    _need(*PROGRAMS)
    if RUNTIME != "crinoid":
        pytest.skip("add-ons are tried on crinoid alone")
    directories = f"""
        network.options.cni.conf_dir = "{NET_D}"
        network.options.cni.bin_dirs = ["{CNI_BIN}", "/usr/lib/cni"]
    """
    with _pair_in(tmp_path_factory, directories) as pair:
        pair.cluster.allocates = True
        for kubelet in pair.kubelets:
            kubelet.settings = {"clusterDNS": [NODE_DNS], "clusterDomain": "cluster.local"}
        pair.join()
        with pair.cluster.proxy("iptables"), pair.cluster.proxy("iptables", pair.kubelets[1]):
            yield pair


@contextlib.contextmanager
def _pair_in(tmp_path_factory: pytest.TempPathFactory, network: str = "") -> Iterator[Pair]:
    _need(*PROGRAMS)
    with (
        place_in(tmp_path_factory.mktemp("node")) as first,
        place_in(tmp_path_factory.mktemp("second"), first, "10.88.1.0/24") as second,
        _runtime_in(first, network) as one,
        _runtime_in(second, network) as other,
    ):
        pair = Pair.of(_binaries(), (first, one), (second, other))
        try:
            yield pair
        finally:
            pair.end()


def _need(*programs: str) -> None:
    if missing := [name for name in programs if not (_binaries() / name).is_file()]:
        pytest.skip(f"CLUSTER_BINARIES has no {', '.join(missing)}")


@contextlib.contextmanager
def _runtime_in(place: Place, network: str = "") -> Iterator[Daemon | Containerd]:
    with contextlib.ExitStack() as stack:
        if RUNTIME == "containerd":
            peer = Containerd(
                place.directory / "peer", place.cni_conf, place.registry.host, f"{place.images}/pause:1", place.prefix
            )
            stack.callback(peer.end)
            peer.start()
            yield peer
            return
        config = f"""
            network.options.fallback = "none"
            {network or f'network.options.cni.conf_dir = "{place.cni_conf}"'}
            pods.default_runtime = "{DEFAULT_HANDLER}"
            pods.cdi_spec_dirs = ["{place.directory}/cdi"]
            [registries.distribution]
            driver = "distribution"
            options = {{ plain_http = ["{place.registry.host}"] }}
            [runtimes.crun]
            driver = "crun"
        """
        daemon = Daemon(place.directory / "daemon", config, place.prefix)
        stack.callback(daemon.end)
        daemon.start()
        yield daemon
        daemon.clean()
        assert daemon.leftovers() == []
