"""What can't be removed of a pod that is gone is told, tried again, and harms nobody."""

import json
import re
import socket
import subprocess
import urllib.request
from pathlib import Path

from integration.conftest import Node
from integration.own_nodes import own_node
from integration.pods import refused
from support.patience import patient


def conditions(node: Node) -> dict[str, bool]:
    return {one["type"]: one["status"] for one in node.call("Status")["status"]["conditions"]}


def deferred(node: Node) -> list[dict[str, str]]:
    return list(json.loads(node.call("Status", verbose=True)["info"]["deferred"]))


def immutable(path: Path, on: bool) -> None:
    subprocess.run(["chattr", "+i" if on else "-i", path], check=True)


def test_an_immutable_file_of_a_removed_container_harms_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with own_node(tmp_path, f"[metrics]\nlisten = '127.0.0.1:{port}'\n") as node:
        pod = node.run_pod("stuck")
        container = node.run_container(pod, "sh", "-c", "mkdir d; echo x > d/stays; echo x > d/goes; sleep 600")
        node.execute(container, "sh", "-c", "until test -e d/goes; do sleep 0.1; done")
        (upper,) = node.daemon.root.glob("plugins/*/*/snapshots/snapshots/*/fs/d/stays")
        immutable(upper, on=True)
        try:
            node.call("RemovePodSandbox", pod_sandbox_id=pod)
            assert (node.call("ListPodSandbox")["items"], node.call("ListContainers")["containers"]) == ([], [])
            for _ in range(2):
                (told,) = deferred(node)
                assert told["whose"] == f"container app of pod test/stuck ({container})"
                assert re.search("Operation not permitted.*stays in", told["reason"])
                assert re.fullmatch(r"20\d\d-.*T.*\+00:00", told["since"])
                assert conditions(node) == {"RuntimeReady": True, "NetworkReady": True}
                again = node.run_pod("stuck")  # of the same name
                assert node.output(again, "echo", "hello") == "hello\n"
                node.call("RemovePodSandbox", pod_sandbox_id=again)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=patient(20)) as answer:
                    assert "crinoid_deferred_removals 1.0" in answer.read().decode()
                node.daemon.restart()
            (left,) = node.daemon.root.glob("plugins/*/*/snapshots/scratch/*/fs/d/*")
            assert left.name == "stays"
            assert f"of container app of pod test/stuck ({container}), deferred" in node.daemon.log.read_text()
        finally:
            for path in node.daemon.root.glob("plugins/*/*/snapshots/*/*/fs/d/stays"):
                immutable(path, on=False)
        node.daemon.restart()
        assert deferred(node) == []
        assert list(node.daemon.root.glob("plugins/*/*/snapshots/scratch/*")) == []


def test_a_refused_cgroup_parent_leaves_no_row(tmp_path: Path) -> None:
    with own_node(tmp_path) as node:
        for parent in ("/x/./y", "/x/../y", "/x/y/.", "/" + "n" * 300):
            with refused("INVALID_ARGUMENT", "cgroup"):
                node.run_pod("refused", linux={"cgroup_parent": parent})
            assert node.daemon.query("SELECT owner, kind, key FROM ledger") == [], parent
