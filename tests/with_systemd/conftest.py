"""A node whose daemon is a unit of systemd, where systemd is the machine's first process.

``make test-systemd`` makes such a machine: a virtual one, with cgroup v2 (tests/vm/run.py).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from crinoid.core.api.linux import cgroups
from integration import conftest
from integration.conftest import BUSYBOX, Node
from integration.pods import Pod
from support import cgroup_namespace
from support.images import build_busybox
from support.registry import RunningRegistry
from with_systemd.unit import UnitDaemon, start_time, systemctl

RUNTIMES = ("runc",) if cgroup_namespace.is_hybrid() else conftest.RUNTIMES  # crun refuses hybrid hosts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where systemd does not run."""
    for item in items:
        if "with_systemd" not in item.path.parts:
            continue
        item.add_marker(pytest.mark.integration)
        item.add_marker(pytest.mark.timeout(1200))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="units need root"))
        elif not Path("/run/systemd/system").is_dir():
            item.add_marker(pytest.mark.skip(reason="systemd does not run here; make test-systemd makes a machine"))


@pytest.fixture(scope="session")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnitDaemon]:
    directory = tmp_path_factory.mktemp("unit")
    build_busybox(directory / "layouts/busybox", BUSYBOX)
    config = f"""
        log.format = "auto"
        log.level = "info"
        network.driver = "host"
        pods.cgroup_driver = "{"auto" if cgroups.version() == 2 else "systemd"}"
        [registries.layout]
        driver = "layout"
        options = {{ directory = "{directory}/layouts" }}
    """
    if "crun" in RUNTIMES:
        config += '[runtimes.crun]\ndriver = "crun"\n'
    daemon = UnitDaemon(directory / "daemon", config)
    try:
        daemon.install()
        daemon.start()
        yield daemon
        if daemon.state != "active":  # a test has stopped it as the last one
            daemon.start()
        for pod in daemon.cri.call("ListPodSandbox")["items"]:
            daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod["id"])
        daemon.stop()
        assert daemon.leftovers() == []
    finally:
        daemon.end()


@pytest.fixture(scope="session")
def node_of_session(unit: UnitDaemon, tmp_path_factory: pytest.TempPathFactory) -> Node:
    directory = tmp_path_factory.mktemp("node")
    node = Node(unit, directory, RunningRegistry(""), "", directory / "logs")
    node.pull()
    return node


@pytest.fixture
def node(node_of_session: Node, unit: UnitDaemon) -> Iterator[Node]:
    """The node; what a test has left of its pods is removed after it."""
    if unit.state != "active":
        unit.start()
    before = {pod["id"] for pod in node_of_session.call("ListPodSandbox")["items"]}
    yield node_of_session
    if unit.state != "active":
        unit.start()
    for pod in node_of_session.call("ListPodSandbox")["items"]:
        if pod["id"] not in before:
            node_of_session.call("RemovePodSandbox", pod_sandbox_id=pod["id"])


@dataclass
class Living:
    """Containers that nothing of systemd's may end: one of each runtime."""

    pod: Pod
    containers: dict[str, tuple[int, str]]

    def check(self) -> None:
        """They are the processes that they were, they run, and the daemon knows."""
        for container, (pid, started) in self.containers.items():
            assert start_time(pid) == started
            assert self.pod.node.status(container)["state"] == "CONTAINER_RUNNING"


@pytest.fixture(scope="session")
def living(node_of_session: Node) -> Living:
    found: dict[str, tuple[int, str]] = {}
    for runtime in RUNTIMES:
        pod = Pod(node_of_session, node_of_session.run_pod(f"living-{runtime}", handler=runtime))
        container = pod.start("sleep", "100000")
        pid = pod.pid(container)
        found[container] = pid, start_time(pid)
    return Living(pod, found)


@pytest.fixture
def lives(living: Living) -> Iterator[Living]:
    """Proof that a test ends no container."""
    yield living
    living.check()


@pytest.fixture
def slices(unit: UnitDaemon) -> Iterator[str]:
    """A prefix of slices, which are all gone after the test."""
    yield unit.name
    systemctl("stop", f"{unit.name}.slice")
