"""What crinoid did not make is never killed in or removed, wherever its path comes from."""

import json
import os
from pathlib import Path

import pytest

from integration.conftest import RUNTIMES, Node
from integration.own_nodes import own_node
from integration.pods import QUICK, refused, until
from support.daemon import cgroup_folders
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
    assert not cgroup_folders(f"/{node.daemon.name}-shared")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_parent_that_was_there_stays(node: Node, runtime: str) -> None:
    with foreign_cgroup() as (cgroup, process):
        pod = node.run_pod("given", QUICK[runtime], linux={"cgroup_parent": cgroup} | CONTAINER_PIDS)
        node.run_container(pod, "sleep", "100")
        node.call("RemovePodSandbox", pod_sandbox_id=pod)
        assert process.poll() is None
        assert [path.name for folder in cgroup_folders(cgroup) for path in folder.iterdir() if path.is_dir()] == []


def test_a_pod_is_not_put_into_anothers_cgroup(node: Node) -> None:
    pod = node.run_pod("outer", QUICK["runc"])
    inside = {"cgroup_parent": f"{node.daemon.cgroup}/{pod}/inner"} | CONTAINER_PIDS
    with refused("INVALID_ARGUMENT", f"cgroup_parent .* lies in the cgroup of pod {pod}"):
        node.run_pod("inner", QUICK["runc"], linux=inside)


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
            node.daemon.change(
                f"INSERT INTO ledger (owner, kind, key, data) VALUES ('{owner}', 'cgroup', '{cgroup}', '{data}')"
            )
        node.daemon.start()
        with refused("FAILED_PRECONDITION", f"cgroup '{cgroup}' is not container {container}'s own"):
            node.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 222})
        node.call("RemovePodSandbox", pod_sandbox_id=pod)
        assert process.poll() is None
        assert {path.name for path in cgroup_folders(cgroup)} == {cgroup[1:]}
        until(lambda: not Path(f"/proc/{pid}").exists())  # the container itself has ended: it is known by its process
        assert os.stat(f"/proc/{process.pid}")
