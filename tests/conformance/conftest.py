"""Which runtime the suite runs against, and the fixtures of its tests.

``pytest tests/conformance --cri-endpoint unix:///run/x.sock`` is for any runtime that can pull the test images. Without
that option it starts our daemon in a network namespace of its own; ``--cri-peer containerd`` (``make test-peers``)
starts Debian's containerd instead, to compare with. On a slow machine ``CRINOID_TEST_SLOWNESS=10`` makes every wait ten
times as long.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance import images
from conformance.node import Node, Pod
from integration.conftest import write_conflist
from support import cgroup_namespace, network_namespace
from support.containerd import Containerd
from support.cri import Cri
from support.daemon import Daemon
from support.network_namespace import NetworkNamespace
from support.registry import RunningRegistry, running_registry

PEERS = ("containerd",)
OPTIONS = {
    "--cri-endpoint": "unix:// socket of the runtime to test; without it the suite starts one",
    "--cri-image-endpoint": "unix:// socket of its ImageService, if that is another",
    "--cri-runtime-handler": "runtime handler of the pods; empty is the default one",
    "--cri-image-prefix": "registry and path where the images of conformance/images.py are (plain names below it); "
    "without it, a plain http registry on 127.0.0.1 is started and filled",
    "--cri-cgroup-parent": "cgroup below which pods get theirs, in the form of the runtime's cgroup driver",
    "--cri-directory": "directory on the node for logs and volumes; without it, pytest's own",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; they are there when tests/conformance is named on the command line."""
    group = parser.getgroup("cri", "the runtime under test")
    for name, text in OPTIONS.items():
        group.addoption(name, default="", help=text)
    group.addoption("--cri-peer", default="", choices=PEERS, help="runtime to start in place of crinoid")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Name the runtime in each test's id: marks of differences go by it."""
    if "runtime_under_test" in metafunc.fixturenames:
        metafunc.parametrize("runtime_under_test", [_name_of_runtime(metafunc.config)], scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of differences have to fail: a peer that gets better is news. All but the external runtime need root."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if "conformance" not in item.path.parts or callspec is None:
            continue
        runtime = callspec.params.get("runtime_under_test")
        strict = not _option(item.config, "endpoint")
        for marker in item.iter_markers("differs"):
            if runtime in marker.kwargs:
                item.add_marker(pytest.mark.xfail(reason=marker.kwargs[runtime], strict=strict))
        for marker in item.iter_markers("differs_at_times"):
            if runtime in marker.kwargs:
                item.add_marker(pytest.mark.xfail(reason=marker.kwargs[runtime], strict=False))
        item.add_marker(pytest.mark.integration)
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="real containers need root"))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a runtime is started with."""

    directory: Path
    network: NetworkNamespace
    registry: RunningRegistry
    images: str
    handler: str

    def cgroups(self) -> AbstractContextManager[tuple[str, ...]]:
        """What crun needs on a hybrid host; its mount namespace would hide the tests' mounts from the others."""
        return cgroup_namespace.held() if self.handler == "crun" else contextlib.nullcontext(())


@pytest.fixture(scope="session")
def node_of_session(
    runtime_under_test: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    directory = Path(_option(request.config, "directory") or tmp_path_factory.mktemp(runtime_under_test))
    with contextlib.ExitStack() as stack:
        if _option(request.config, "endpoint"):
            node = stack.enter_context(_external(request.config, runtime_under_test, directory))
        else:
            start = {"crinoid": _crinoid, "containerd": _containerd}[runtime_under_test]
            handler = _option(request.config, "runtime_handler")
            node = stack.enter_context(start(stack.enter_context(_surroundings(directory, handler))))
            node.handler = handler
        for name in images.CONFIGS:
            node.pull(name)
        yield node
        node.remove_pods()


@pytest.fixture
def node(node_of_session: Node) -> Iterator[Node]:
    """The runtime; pods that the test ran are removed after it."""
    before = len(node_of_session.pods)
    yield node_of_session
    node_of_session.remove_pods(before)


@pytest.fixture(scope="module")
def pod(node_of_session: Node) -> Iterator[Pod]:
    """A pod for a module's containers."""
    yield node_of_session.run_pod()
    node_of_session.remove_pods()


@pytest.fixture(scope="module")
def idle(node_of_session: Node, pod: Pod) -> str:
    """A running container that a module's tests may look at and execute in."""
    return node_of_session.idle(pod)


@contextlib.contextmanager
def _surroundings(directory: Path, handler: str) -> Iterator[Surroundings]:
    """A network namespace with a registry in it, and a bridge for pods."""
    with network_namespace.held() as network, contextlib.ExitStack() as stack:
        write_conflist(directory / "net.d", "conform0", "10.87.0.0/24", directory / "ipam")
        registry = network.call(lambda: stack.enter_context(running_registry(directory / "registry")))
        prefix = network.call(lambda: images.publish(directory / "layout", registry))
        yield Surroundings(directory, network, registry, prefix, handler)


@contextlib.contextmanager
def _crinoid(given: Surroundings) -> Iterator[Node]:
    # CNI's binaries cost each pod twice what all else of it does: they are for test_networking alone, by its handler.
    config = (
        "[network]\ndriver = 'bridge'\noptions = { subnets = ['10.88.0.0/24'] }\n"
        f"[networks.cni]\ndriver = 'cni'\noptions = {{ conf_dir = '{given.directory / 'net.d'}' }}\n"
        "[runtimes.crun]\ndriver = 'crun'\n[runtimes.cni]\ndriver = 'runc'\nnetwork = 'cni'\n"
        "[runtimes.crun-cni]\ndriver = 'crun'\nnetwork = 'cni'\n"
        f"[registries.distribution]\ndriver = 'distribution'\noptions = {{ plain_http = ['{given.registry.host}'] }}"
    )
    with given.cgroups() as prefix:
        daemon = Daemon(given.directory / "daemon", config, (*given.network.prefix, *prefix))
        try:
            daemon.start(is_forked=False)  # this one as it is started elsewhere, with an interpreter of its own
            node = Node(daemon.cri, "crinoid", given.images, given.directory, given.network, daemon.cgroup)
            node.cni_handler = f"{given.handler}-cni".removeprefix("-")
            yield node
            daemon.clean()
            assert daemon.leftovers() == []
        finally:
            daemon.end()


@contextlib.contextmanager
def _containerd(given: Surroundings) -> Iterator[Node]:
    with given.cgroups() as prefix:
        command = (*given.network.prefix, *prefix)
        pause = f"{given.images}/pause:1"
        peer = Containerd(given.directory / "peer", given.directory / "net.d", given.registry.host, pause, command)
        try:
            peer.start()
            cri = Cri(peer.socket)
            yield Node(cri, "containerd", given.images, given.directory, given.network, peer.cgroup)
            cri.close()
        finally:
            peer.end()
        assert peer.leftovers() == []


@contextlib.contextmanager
def _external(config: pytest.Config, name: str, directory: Path) -> Iterator[Node]:
    with contextlib.ExitStack() as stack:
        cri = Cri(_socket(config, "endpoint"), _socket(config, "image_endpoint") or None)
        stack.callback(cri.close)
        prefix = _option(config, "image_prefix")
        if not prefix:
            prefix = images.publish(directory / "layout", stack.enter_context(running_registry(directory / "registry")))
        parent, handler = _option(config, "cgroup_parent"), _option(config, "runtime_handler")
        yield Node(cri, name, prefix, directory, NetworkNamespace(), parent, handler)


def _name_of_runtime(config: pytest.Config) -> str:
    if not _option(config, "endpoint"):
        return _option(config, "peer") or "crinoid"
    cri = Cri(_socket(config, "endpoint"))
    try:
        return str(cri.call("Version")["runtime_name"])
    finally:
        cri.close()


def _socket(config: pytest.Config, name: str) -> Path:
    return Path(_option(config, name).removeprefix("unix://"))


def _option(config: pytest.Config, name: str) -> str:
    return str(getattr(config.option, f"cri_{name}", ""))
