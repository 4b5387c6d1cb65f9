"""What crinoid did not make is never killed in or removed, wherever its path comes from."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import RUNTIMES, Node
from integration.own_nodes import own_node
from integration.pods import QUICK, refused, until
from support.daemon import cgroup_directories
from support.foreign_cgroup import foreign_cgroup

CONTAINER_PIDS = {"security_context": {"namespace_options": {"pid": "CONTAINER"}}}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pods_of_one_parent_do_not_end_each_other(node: Node, runtime: str) -> None:
    """The first has it made, and goes first; the last takes it along."""
    parent = f"/{node.daemon.name}-shared/parent"
    linux = {"cgroup_parent": parent} | CONTAINER_PIDS
    first, second = (node.run_pod(name, QUICK[runtime], linux=linux) for name in ("first", "second"))
    node.run_container(first, "sleep", "100")
    survivor = node.run_container(second, "sleep", "100")
    node.call("RemovePodSandbox", pod_sandbox_id=first)
    assert node.execute(survivor, "echo", "alive") == (0, "alive\n", "")
    node.call("RemovePodSandbox", pod_sandbox_id=second)
    assert not cgroup_directories(f"/{node.daemon.name}-shared")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_parent_that_was_there_stays(node: Node, runtime: str) -> None:
    with foreign_cgroup() as (cgroup, process):
        pod = node.run_pod("given", QUICK[runtime], linux={"cgroup_parent": cgroup} | CONTAINER_PIDS)
        node.run_container(pod, "sleep", "100")
        node.call("RemovePodSandbox", pod_sandbox_id=pod)
        assert process.poll() is None
        assert [
            path.name for directory in cgroup_directories(cgroup) for path in directory.iterdir() if path.is_dir()
        ] == []


def test_a_pod_is_not_put_into_anothers_cgroup(node: Node) -> None:
    pod = node.run_pod("outer", QUICK["runc"])
    inside = {"cgroup_parent": f"{node.daemon.cgroup}/{pod}/inner"} | CONTAINER_PIDS
    with refused("INVALID_ARGUMENT", f"cgroup_parent .* lies in the cgroup of pod {pod}"):
        node.run_pod("inner", QUICK["runc"], linux=inside)


@pytest.mark.parametrize("name", ["cgroup.procs", "tasks/x", "memory.limit_in_bytes", "a\nb", "d/" * 1500])
def test_a_parent_that_the_kernel_can_not_have_is_refused_at_once(node: Node, name: str) -> None:
    """1,500 cgroups in each other took 40 s to make, and as long to remove, with the event loop held for seconds."""
    linux = {"cgroup_parent": f"{node.daemon.cgroup}/{name}"} | CONTAINER_PIDS
    with refused("INVALID_ARGUMENT", "is not the path of a cgroup|is a file, by which the kernel"):
        node.run_pod("odd", QUICK["runc"], linux=linux)
    made = cgroup_directories(f"{node.daemon.cgroup}/{name.partition('/')[0]}")
    assert [path for path in made if path.is_dir()] == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_records_that_name_anothers_cgroup_end_nothing_in_it(tmp_path: Path, runtime: str) -> None:
    """Rows of the ledger and a container's record, as an older version or a damaged disk may have left them."""
    with own_node(tmp_path) as node, foreign_cgroup() as (cgroup, process):
        pod = node.run_pod("damaged", runtime)
        container = node.run_container(pod, "sleep", "100")
        pid = int(json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])["pid"])
        node.daemon.kill()
        own = f"{node.daemon.cgroup}/{pod}/{container}"
        for table in ("containers SET body = replace(body", "ledger SET data = replace(data"):
            node.daemon.change(f"UPDATE {table}, '{own}', '{cgroup}')")
        rows = [(owner, json.dumps({"made": [cgroup], "above": [cgroup]})) for owner in (pod, "deferred", "0" * 64)]
        rows.append((pod, "no JSON"))
        for owner, data in rows:
            _add_row(node, owner, "cgroup", cgroup, data)
        node.daemon.start()
        with refused("FAILED_PRECONDITION", f"cgroup '{cgroup}' is not container {container}'s own"):
            node.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 222})
        node.call("RemovePodSandbox", pod_sandbox_id=pod)
        assert process.poll() is None
        assert {path.name for path in cgroup_directories(cgroup)} == {cgroup[1:]}
        until(lambda: not Path(f"/proc/{pid}").exists())  # the container itself has ended: it is known by its process
        assert os.stat(f"/proc/{process.pid}")


def test_rows_that_name_anothers_mounts_and_directories_undo_nothing(tmp_path: Path) -> None:
    """A damaged row is put aside; what it names stays, and the pod can be removed."""
    theirs, point = tmp_path / "theirs", tmp_path / "theirs/mounted"
    point.mkdir(parents=True)
    (theirs / "file").write_text("theirs")
    with own_node(tmp_path / "node") as node, mounted(point):
        pod = node.run_pod("damaged", "crun")
        container = node.run_container(pod, "sleep", "100")
        node.daemon.kill()
        for owner in (pod, container, "deferred", "0" * 64):
            for path in (theirs, point):
                paths = json.dumps({"paths": [str(path)], "owner": pod})
                for kind in ("directory", "mount", "namespaces", "contents"):
                    _add_row(node, owner, kind, str(path), paths)
        node.daemon.start()
        assert node.execute(container, "echo", "alive") == (0, "alive\n", "")
        node.call("RemovePodSandbox", pod_sandbox_id=pod)
        assert os.path.ismount(point)
        assert (theirs / "file").read_text() == "theirs"
        quarantine = json.loads(node.call("Status", verbose=True)["info"]["quarantine"])
        assert {kind for one in quarantine for kind in one["id"].split()[1:2]} == {"directory", "mount", "namespaces"}


@contextlib.contextmanager
def mounted(point: Path) -> Iterator[None]:
    """Mount something of the test's own, where a lazy unmount by the daemon would show."""
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", point], check=False)


def _add_row(node: Node, owner: str, kind: str, key: str, data: str) -> None:
    node.daemon.change(f"INSERT INTO ledger (owner, kind, key, data) VALUES ('{owner}', '{kind}', '{key}', '{data}')")
