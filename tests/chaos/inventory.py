"""What a daemon, its pods and its images have on the host, as lines of text, to compare before with after.

The daemon has a network namespace of its own, so all links, addresses and rules in there count. Ids and numbers of
files differ from one run to the next; they are taken out, and equal lines are counted.
"""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from integration.conftest import Node
from support.daemon import Daemon, cgroup_directories

_TABLES = {
    "ledger": "SELECT owner || ' ' || kind || ' ' || key FROM ledger",
    "pods": "SELECT id FROM pods",
    "containers": "SELECT id FROM containers",
    "images": "SELECT body FROM images",
    "quarantine": "SELECT source || ' ' || id || ' ' || error FROM quarantine",
}
_COME_AND_GO = frozenset({"reserve", "scratch"})
"""The reserve is given up on a full disk; a runtime's directory for notes is made when it is first needed."""


def take(daemon: Daemon) -> Counter[str]:
    """Take the inventory of a daemon that runs."""
    return Counter(_lines(daemon))


def compare(before: Counter[str], after: Counter[str]) -> list[str]:
    """Name what is there that was not, and what is no longer there."""
    return [f"left: {line}" for line in after - before] + [f"lost: {line}" for line in before - after]


def _lines(daemon: Daemon) -> Iterator[str]:
    assert daemon.process is not None
    pid = daemon.process.pid
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        if (point := line.split()[4]).startswith((str(daemon.run), str(daemon.root))):
            yield f"mount {point}"
    for top in cgroup_directories(daemon.cgroup):
        yield from (f"cgroup {directory}" for directory, _, _ in os.walk(top))
    yield from _processes(daemon, pid)
    for command in (["ip", "-br", "link"], ["ip", "-br", "address"]):
        yield from (f"{command[-1]} {line.split('@')[0].split()[0]}" for line in _inside(pid, command))
    for line in _inside(pid, ["nft", "list", "ruleset"]):
        yield f"nft {re.sub('packets [0-9]+ bytes [0-9]+', '', line)}"
    yield from _files(daemon.root, "root")
    yield from _files(daemon.run, "run")
    for table, question in _TABLES.items():
        for (row,) in daemon.query(question):
            yield f"row of {table}: {_image(row) if table == 'images' else row}"


def _processes(daemon: Daemon, pid: int) -> Iterator[str]:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            cgroup = (directory / "cgroup").read_text()
        except (OSError, IndexError):
            continue
        own = int(directory.name) in (pid, os.getpid()) or (
            parent == pid and "python" in command
        )  # the forking process
        if not own and f"/{daemon.name}" in command + cgroup:
            yield f"process {command}"


def _inside(pid: int, command: list[str]) -> list[str]:
    line = ["nsenter", f"--net=/proc/{pid}/ns/net", *command]
    for _ in range(10):  # a dump that a removal interrupts is an error of ip's
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.splitlines()
    raise RuntimeError(f"{' '.join(line)}: {done.stderr}")


def _files(top: Path, name: str) -> Iterator[str]:
    """All below a directory but what is in the trees of layers and snapshots."""
    for directory, directories, files in os.walk(top):
        if Path(directory).name == "fs":
            directories.clear()
            continue
        for below in {*directories, *files} - _COME_AND_GO:
            yield f"file {re.sub('(?<=/)[0-9]+(?=/|$)', 'N', f'{name}{directory[len(str(top)) :]}/{below}')}"


def _image(body: str) -> str:
    record = json.loads(body)
    return f"{record['id']} {record['tags']} {record['digests']}"


def lies(node: Node) -> list[str]:
    """Name every container whose record says other than its processes, and every pod that is ready without its pins."""
    found = []
    for container in node.call("ListContainers")["containers"]:
        alive = [
            int(pid)
            for directory in cgroup_directories(f"{node.daemon.cgroup}/{container['pod_sandbox_id']}/{container['id']}")
            for pid in (directory / "cgroup.procs").read_text().split()
        ]
        if bool(alive) != (container["state"] in ("CONTAINER_CREATED", "CONTAINER_RUNNING")):
            found.append(f"container {container['id']} is {container['state']} with processes {alive}")
    assert node.daemon.process is not None
    mounts = Path(f"/proc/{node.daemon.process.pid}/mountinfo").read_text()
    pods = node.call("ListPodSandbox")["items"]
    ready = [pod["id"] for pod in pods if pod["state"] == "SANDBOX_READY"]
    return found + [f"pod {pod} is ready and has no namespace" for pod in ready if f"/{pod}/ns/" not in mounts]
