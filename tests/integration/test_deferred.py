"""What can't be removed of a pod that is gone is told, tried again, and harms nobody."""

import json
import re
import subprocess
from pathlib import Path

from integration.conftest import Node
from integration.own_nodes import own_node
from integration.pods import refused, until


def conditions(node: Node) -> dict[str, bool]:
    return {one["type"]: one["status"] for one in node.call("Status")["status"]["conditions"]}


def deferred(node: Node) -> list[dict[str, str]]:
    return list(json.loads(node.call("Status", verbose=True)["info"]["deferred"]))


def unremoved(node: Node) -> list[dict[str, str]]:
    return list(json.loads(node.call("Status", verbose=True)["info"]["unremoved"]))


def immutable(path: Path, on: bool) -> None:
    subprocess.run(["chattr", "+i" if on else "-i", path], check=True)


def test_an_immutable_file_of_a_removed_container_harms_nobody(tmp_path: Path) -> None:
    with own_node(tmp_path) as node:
        pod = node.run_pod("stuck")
        container = node.run_container(pod, "sh", "-c", "mkdir d; echo x > d/stays; echo x > d/goes; sleep 600")
        node.execute(container, "sh", "-c", "until test -e d/goes; do sleep 0.1; done")
        (upper,) = node.daemon.root.glob("plugins/*/*/snapshots/snapshots/*/fs/d/stays")
        immutable(upper, on=True)
        try:
            node.call("RemovePodSandbox", pod_sandbox_id=pod)
            assert (node.call("ListPodSandbox")["items"], node.call("ListContainers")["containers"]) == ([], [])
            for _ in range(2):
                assert deferred(node) == []  # the snapshot is gone; what is left of its files lies in the trash
                assert conditions(node) == {"RuntimeReady": True, "NetworkReady": True}
                again = node.run_pod("stuck")  # of the same name
                assert node.output(again, "echo", "hello") == "hello\n"
                node.call("RemovePodSandbox", pod_sandbox_id=again)
                node.daemon.restart()
            until(lambda: told(node, container))
            until(lambda: unremoved(node))  # this daemon's own trial
            (one,) = unremoved(node)
            assert (one["role"], one["slot"], container in one["what"]) == ("snapshotter", "default", True)
            assert "stays" in one["reason"]
            (left,) = node.daemon.root.glob("plugins/*/*/snapshots/trash/*/fs/d/*")
            assert left.name == "stays"
        finally:
            for path in node.daemon.root.glob("plugins/*/*/snapshots/*/*/fs/d/stays"):
                immutable(path, on=False)
        node.daemon.restart()
        until(lambda: list(node.daemon.root.glob("plugins/*/*/snapshots/trash/*")) == [])


def told(node: Node, container: str) -> bool:
    words = rf"what is left of snapshot-{container}: .*thrown away \d+ s ago, can't be removed: .*stays.*tried again in"
    return re.search(words, node.daemon.log.read_text()) is not None


def test_a_refused_cgroup_parent_leaves_no_row(tmp_path: Path) -> None:
    with own_node(tmp_path) as node:
        for parent in ("/x/./y", "/x/../y", "/x/y/.", "/" + "n" * 300):
            with refused("INVALID_ARGUMENT", "cgroup"):
                node.run_pod("refused", linux={"cgroup_parent": parent})
            assert node.daemon.query("SELECT owner, kind, key FROM ledger") == [], parent
