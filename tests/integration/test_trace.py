"""``crinoid trace`` on a real daemon: real drivers are recorded, and a user without rights replays them."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from integration.conftest import BUSYBOX, Node
from integration.own_nodes import own_node
from support import programs
from support.cri import Json
from support.images import Entry, build_busybox
from support.patience import patient
from support.subnets import third_octet

NOBODY = 65534
NEW = "docker.io/library/new:1"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    bridge = f'options = {{ subnets = ["10.89.{third_octet()}.0/28"] }}'
    config = f'[networks.br]\ndriver = "bridge"\n{bridge}\n[runtimes.bridged]\ndriver = "runc"\nnetwork = "br"\n'
    with own_node(tmp_path_factory.mktemp("trace"), config) as node:
        yield node


def crinoid(node: Node, *arguments: str, code: int = 0) -> str:
    """Run a command with the daemon's configuration; return what it prints."""
    command = [sys.executable, "-m", "crinoid", "trace", *arguments, "--config", str(node.daemon.config_file)]
    done = programs.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
    assert done.returncode == code, done.stderr
    return str(done.stdout if code == 0 else done.stderr)


def replay(trace: str) -> Json:
    """Replay as nobody, who may change nothing on this machine. Of root's rights one is left, that to read files: the
    interpreter may lie below a directory of root's own."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copy(trace, place)
        for path in (place, copy):
            shutil.chown(path, NOBODY, NOBODY)
        rights = ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "+dac_read_search", "--no-new-privs"]
        user = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *rights]
        patience = ["--patience", str(patient(10))]
        command = [sys.executable, "-m", "crinoid", "trace", "replay", copy, "-o", "json", *patience]
        environment = {"PATH": os.environ["PATH"], "TMPDIR": place, "HOME": place}
        limit_s = patient(100)
        done = subprocess.run(
            [*user, *command], capture_output=True, text=True, timeout=limit_s, check=False, env=environment, cwd="/"
        )
    assert done.returncode in (0, 1), done.stderr
    found: Json = json.loads(done.stdout)
    return found


def refused(node: Node, rpc: str, **fields: object) -> str:
    with pytest.raises(grpc.RpcError) as error:
        node.call(rpc, **fields)
    return str(error.value.code().name)


def test_a_life_is_recorded_and_replayed_by_nobody(node: Node, tmp_path: Path) -> None:
    before = node.run_pod("before")
    old = node.run_container(before, "sleep", "1000")
    path = crinoid(node, "record", "--detach", "--seconds", "300").strip()
    assert "is being recorded" in crinoid(node, "record", code=os.EX_CONFIG)
    node.pull()
    build_busybox(node.layouts / "new", NEW, extra=[Entry(path="new", content=b"new")])
    node.pull(NEW)
    assert refused(node, "PullImage", image={"image": "registry.invalid/none:1"}) != "OK"
    pod = node.run_pod("traced", annotations={"site/secret": "annotated-value"})
    envs = [{"key": "TOKEN", "value": base64.b64encode(b"hunter2-hunter2").decode()}]
    volume = tmp_path / "volume"
    volume.mkdir()
    mounts = [{"container_path": "/volume", "host_path": str(volume)}]
    container = node.run_container(pod, "sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait", envs=envs, mounts=mounts)
    broken = node.create(pod, "/no/such/program", name="broken")
    assert refused(node, "StartContainer", container_id=broken) == "INVALID_ARGUMENT"
    assert node.call("ExecSync", container_id=container, cmd=["sh", "-c", "echo hunter2-hunter2"])["exit_code"] == 0
    assert node.call("ExecSync", container_id=old, cmd=["true"])["exit_code"] == 0
    node.call("StopContainer", container_id=container, timeout=20)
    assert node.wait_exit(container)["exit_code"] == 3
    node.call("RemovePodSandbox", pod_sandbox_id=before)
    node.call("StopPodSandbox", pod_sandbox_id=pod)
    assert crinoid(node, "stop").strip() == path
    assert "nothing is being recorded" in crinoid(node, "stop", code=1)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    text = subprocess.run(["zcat", path], capture_output=True, text=True, check=True, timeout=patient(20)).stdout
    for secret in ("hunter2-hunter2", "annotated-value", "aHVudGVyMi"):
        assert secret not in text, text[max(0, text.index(secret) - 300) : text.index(secret) + 30]

    found = replay(path)
    assert found["differences"] == []
    assert found["notes"] == []
    assert found["reproduced"]
    assert {one["rpc"].partition(" ")[0] for one in found["rpcs"] if one["now"] == "INVALID_ARGUMENT"} == {
        "StartContainer"
    }
    states = {one["name"]: (one["state"], one["exit_code"]) for one in found["final"]["containers"].values()}
    assert states == {"app": ("exited", 3), "broken": ("exited", 128)}
    tags = [tag for image in found["final"]["images"].values() for tag in image["tags"]]
    assert sorted(tags) == sorted([BUSYBOX, NEW])
    node.call("RemovePodSandbox", pod_sandbox_id=pod)


def test_lives_at_the_same_time_are_replayed_at_the_same_time(node: Node) -> None:
    path = crinoid(node, "record", "--detach").strip()

    def live(number: int) -> None:
        pod = node.run_pod(f"at-once-{number}")
        container = node.run_container(pod, "sh", "-c", f"exit {number}" if number % 2 else "sleep 1000")
        if number % 2:
            node.wait_exit(container)
        else:
            node.call("ExecSync", container_id=container, cmd=["true"])
        node.call("StopContainer", container_id=container, timeout=0)
        node.call("RemovePodSandbox", pod_sandbox_id=pod)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(live, range(6)))
    crinoid(node, "stop")
    found = replay(path)
    assert found["differences"] == []
    assert found["final"]["pods"] == {}


def test_pods_of_other_kinds(node: Node) -> None:
    """One with a network of its own and a shared PID namespace, whose container has a user by name; and crun's."""
    path = crinoid(node, "record", "--detach").strip()
    shared = {"linux": {"security_context": {"namespace_options": {"pid": "POD"}}}}
    pod = node.run_pod("shared", "bridged", **shared)
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"].startswith("10.89.")
    user = {"namespace_options": {"pid": "POD"}, "run_as_username": "root"}
    container = node.run_container(pod, "sleep", "1000", linux={"security_context": user})
    node.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": "99"})
    node.call("ReopenContainerLog", container_id=container)
    node.call("RemovePodSandbox", pod_sandbox_id=pod)
    other = node.run_pod("other", "crun")
    node.wait_exit(node.run_container(other, "false"))
    node.call("RemovePodSandbox", pod_sandbox_id=other)
    crinoid(node, "stop")
    found = replay(path)
    assert found["differences"] == []
    assert found["notes"] == []


def test_a_report_has_the_last_trace(node: Node, tmp_path: Path) -> None:
    crinoid(node, "record", "--detach")
    node.call("Version")
    path = crinoid(node, "stop").strip()
    command = [sys.executable, "-m", "crinoid", "report", "--config", str(node.daemon.config_file), "-o"]
    archive = tmp_path / "report.tar.gz"
    programs.run([*command, str(archive)], check=True, timeout=patient(60), capture_output=True)
    listed = subprocess.run(
        ["tar", "tzf", str(archive)], capture_output=True, text=True, check=True, timeout=patient(20)
    )
    assert f"/trace/{Path(path).name}" in listed.stdout


def test_a_daemon_that_is_killed_leaves_what_it_had_recorded(node: Node) -> None:
    path = crinoid(node, "record", "--detach").strip()
    pod = node.run_pod("killed")
    node.call("ListPodSandbox")
    time.sleep(1.2)  # it is flushed each second, with the next call
    node.call("Version")
    time.sleep(0.3)
    node.daemon.kill()
    node.daemon.start()
    found = replay(path)
    assert found["reproduced"]
    assert "the trace was cut off" in found["notes"][-1]
    assert {one["rpc"].partition(" ")[0]: one["now"] for one in found["rpcs"]}["RunPodSandbox"] == "OK"
    node.call("RemovePodSandbox", pod_sandbox_id=pod)
