"""Cgroups of v2 as containers and operators make them: frozen, of threads, nested, limited in number and depth."""

import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from crinoid.core.api.linux import cgroups
from integration.conftest import RUNTIMES, Node
from integration.pods import QUICK, Pod, refused, until

pytestmark = pytest.mark.skipif(cgroups.version() != 2, reason="of cgroup v2 alone")


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pod(node: Node, runtime: str) -> Pod:
    return Pod(node, node.run_pod(handler=QUICK[runtime]))


@pytest.fixture
def parent(node: Node) -> Iterator[Path]:
    """A pod's cgroup as a kubelet makes it; nothing is left in it when the pods are gone."""
    path = Path(f"/sys/fs/cgroup/crt{secrets.token_hex(3)}")
    path.mkdir()
    yield path
    node.remove_pods()
    with suppress(FileNotFoundError):
        (path / "threads").rmdir()
    until(lambda: not any(one.is_dir() for one in path.iterdir()))
    path.rmdir()


def run_in(node: Node, runtime: str, parent: Path) -> Pod:
    linux = {"cgroup_parent": str(parent).removeprefix("/sys/fs/cgroup")}
    return Pod(node, node.run_pod(handler=QUICK[runtime], linux=linux))


def directory(pod: Pod, container: str) -> Path:
    return Path(f"/sys/fs/cgroup{pod.node.daemon.cgroup}/{pod.id}/{container}")


def below(above: Path, name: str, kind: str = "") -> Path:
    made = above / name
    made.mkdir()
    if kind:
        (made / "cgroup.type").write_text(kind)
    return made


def commands(path: Path) -> list[str]:
    """What runs in a cgroup and below."""
    pids = cgroups.processes(str(path).removeprefix("/sys/fs/cgroup"))
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip() for pid in pids]


def check_its_end(pod: Pod, container: str) -> None:
    """It is stopped soon, and nothing of it or of its pod is left."""
    began = time.monotonic()
    pod.node.call("StopContainer", container_id=container, timeout=1)
    assert pod.node.status(container)["exit_code"] == 137
    assert time.monotonic() - began < 20
    pod.node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    assert not directory(pod, container).parent.exists()


def test_a_frozen_container_answers(pod: Pod) -> None:
    container = pod.start("sleep", "1000")
    switch = directory(pod, container) / "cgroup.freeze"
    switch.write_text("1")
    until(lambda: "frozen 1" in (directory(pod, container) / "cgroup.events").read_text())
    with refused("FAILED_PRECONDITION", "is paused"):
        pod.node.execute(container, "true", timeout=3)
    assert pod.node.call("ContainerStats", container_id=container)["stats"]["cpu"]
    switch.write_text("0")
    assert pod.node.execute(container, "true")[0] == 0
    switch.write_text("1")
    check_its_end(pod, container)


def test_a_child_cgroup_is_frozen(pod: Pod) -> None:
    container = pod.start("sh", "-c", "sleep 1000 & sleep 1001 & wait")
    above = directory(pod, container)
    until(lambda: len(commands(above)) == 3)
    child = below(above, "child")
    below(child, "grandchild")
    (child / "cgroup.procs").write_text((above / "cgroup.procs").read_text().split()[-1])
    (child / "cgroup.freeze").write_text("1")
    assert pod.node.execute(container, "true")[0] == 0
    check_its_end(pod, container)


def test_nothing_starts_where_all_is_frozen(node: Node, runtime: str, parent: Path) -> None:
    """runc and crun stand still there; a client heard of it by its own deadline."""
    (parent / "cgroup.freeze").write_text("1")
    with refused("FAILED_PRECONDITION", "is frozen: nothing starts in it until somebody thaws it"):
        run_in(node, runtime, parent)
    (parent / "cgroup.freeze").write_text("0")
    pod = run_in(node, runtime, parent)
    pod.sh("true")
    (parent / "cgroup.freeze").write_text("1")
    with refused("FAILED_PRECONDITION", "is frozen"):
        pod.create("true")


def test_a_container_with_a_cgroup_of_threads(pod: Pod) -> None:
    """Then the kernel takes no process into a new cgroup beside it that is not of threads, as an exec's."""
    container = pod.start("sleep", "1000")
    above = directory(pod, container)
    below(above, "threads", "threaded")
    assert (above / "cgroup.type").read_text() == "domain threaded\n"
    assert pod.node.execute(container, "sh", "-c", "exit 3")[0] == 3
    with refused("DEADLINE_EXCEEDED", "had not ended"):
        pod.node.execute(container, "sh", "-c", "setsid sleep 555 & sleep 777", timeout=2)
    assert commands(above) == ["sleep 1000"]
    check_its_end(pod, container)


def test_pods_among_cgroups_of_threads(node: Node, runtime: str, parent: Path) -> None:
    """All that the pod has is of threads there, where the kernel lists no processes and kills none by one word."""
    below(parent, "threads", "threaded")
    pod = run_in(node, runtime, parent)
    container = pod.start("sh", "-c", "sleep 1000 & sleep 1001")
    assert pod.node.execute(container, "true")[0] == 0
    until(lambda: len(commands(parent)) == 3)
    pod.node.call("StopContainer", container_id=container, timeout=1)
    assert [one for one in commands(parent) if one.startswith("sleep")] == []
    node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    assert [one.name for one in parent.iterdir() if one.is_dir()] == ["threads"]


def test_a_container_that_holds_others(pod: Pod) -> None:
    """As docker or systemd in a container: all moves into a cgroup below, and controllers are switched on for it."""
    container = pod.start("sleep", "1000")
    above = directory(pod, container)
    inner = below(above, "init")
    (inner / "cgroup.procs").write_text((above / "cgroup.procs").read_text().strip())
    for name in (above / "cgroup.controllers").read_text().split():
        with suppress(OSError):
            (above / "cgroup.subtree_control").write_text(f"+{name}")
    assert pod.node.execute(container, "true")[0] == 0
    with refused("DEADLINE_EXCEEDED", "had not ended"):
        pod.node.execute(container, "sh", "-c", "setsid sleep 555 & sleep 777", timeout=2)
    assert commands(above) == ["sleep 1000"]
    assert pod.node.call("ContainerStats", container_id=container)["stats"]["cpu"]
    check_its_end(pod, container)


@pytest.mark.parametrize("name", ["cgroup.max.depth", "cgroup.max.descendants"])
def test_a_container_that_may_have_no_cgroup_below(pod: Pod, name: str) -> None:
    container = pod.start("sleep", "1000")
    (directory(pod, container) / name).write_text("0")
    assert pod.node.execute(container, "true")[0] == 0
    with refused("DEADLINE_EXCEEDED", "had not ended"):
        pod.node.execute(container, "sh", "-c", "setsid sleep 555 & sleep 777", timeout=2)
    assert commands(directory(pod, container)) == ["sleep 1000"]
    check_its_end(pod, container)


@pytest.mark.parametrize("name", ["cgroup.max.depth", "cgroup.max.descendants"])
def test_a_pod_that_may_have_no_cgroup_below(node: Node, runtime: str, parent: Path, name: str) -> None:
    (parent / name).write_text("0")
    with refused("RESOURCE_EXHAUSTED", "temporarily unavailable.*limit of processes or cgroups|is reached"):
        run_in(node, runtime, parent).create("true")
    node.remove_pods()
    (parent / name).write_text("max")
    run_in(node, runtime, parent).sh("true")
