"""Commands run in a container to their end, with both runtimes."""

import base64
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from crinoid.core.api.linux import cgroups
from integration.conftest import RUNTIMES, Node
from integration.pods import QUICK, Pod, confined, refused, until
from support.patience import patient


@pytest.fixture(params=RUNTIMES)
def pod(node: Node, request: pytest.FixtureRequest) -> Pod:
    """A pod of each runtime."""
    return Pod(node, node.run_pod(handler=QUICK[request.param]))


@pytest.fixture
def container(pod: Pod) -> str:
    """A container that waits."""
    return pod.start("sleep", "1000")


def test_exit_code_and_streams(pod: Pod, container: str) -> None:
    run = pod.node.execute
    assert run(container, "sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")
    assert run(container, "true") == (0, "", "")
    assert run(container, "cat") == (0, "", ""), "its input is empty"
    assert run(container, "sh", "-c", "kill -9 $$") == (137, "", "")
    assert run(container, "sh", "-c", "kill -TERM $$") == (143, "", "")
    assert run(container, "printf", "%s|", "a b", "", "$c") == (0, "a b||$c|", "")
    assert run(container, "echo", "no limit", timeout=0)[1] == "no limit\n"
    for most in (1 << 31, (1 << 63) - 1):
        assert run(container, "echo", "long", timeout=most)[1] == "long\n"
    answer = pod.node.call("ExecSync", container_id=container[:12], cmd=["printf", r"\000\377"], timeout=5)
    assert base64.b64decode(answer["stdout"]) == b"\0\xff"


def test_what_it_inherits(pod: Pod) -> None:
    """User, groups, variables, directory, capabilities, limits and filter of the container; no terminal."""
    envs = [{"key": "WORD", "value": base64.b64encode(b"a word").decode()}]
    security: dict[str, Any] = {
        "run_as_username": "alice",
        "supplemental_groups": [7],
        "no_new_privs": True,
        "seccomp": {"profile_type": "RuntimeDefault"},
        "capabilities": {"drop_capabilities": ["KILL"]},
    }
    container = pod.start("sleep", "99", envs=envs, working_dir="/home/alice", linux=confined(**security), tty=True)
    script = (
        "id; echo $WORD; pwd; tty; grep -E '^(NoNewPrivs|Seccomp|CapBnd|CapEff):' /proc/{}/status; cat /proc/{}/cgroup"
    )
    _code, here, _err = pod.node.execute(container, "sh", "-c", script.replace("{}", "self"))
    lines = here.splitlines()
    assert lines[:4] == [
        "uid=1000(alice) gid=1000(alice) groups=7,50(staff),51(extra),1000(alice)",
        "a word",
        "/home/alice",
        "not a tty",
    ]
    _code, first, _err = pod.node.execute(container, "sh", "-c", script.replace("{}", "1"))
    assert lines[4:8] == first.splitlines()[4:8]
    if cgroups.version() == 2:  # in a namespace of its own it sees no more than what is below the container's
        assert re.fullmatch(r"0::/(exec-\w+)?", lines[8])
        return
    assert f"/{container}" in here
    memory = [line for line in lines if ":memory:" in line]
    assert memory == [line for line in first.splitlines() if ":memory:" in line] or f"/{container}/exec-" in memory[0]


def test_the_time_limit_ends_all_that_came_from_it(pod: Pod, container: str) -> None:
    """Children in sessions of their own and orphans too; what else runs in the container goes on."""
    pod.node.execute(container, "sh", "-c", "sleep 7000 > /dev/null 2>&1 &")
    script = """
        busybox setsid sh -c 'sleep 7001 & busybox setsid sleep 7002 & sleep 7003' &
        (busybox setsid sleep 7004 &) ; sleep 7005
    """
    began = time.monotonic()
    with refused("DEADLINE_EXCEEDED", "had not ended after 1 s.*killed with all its children"):
        pod.node.execute(container, "sh", "-c", script, timeout=1)
    assert 1 <= time.monotonic() - began < 60
    processes = pod.node.execute(container, "ps", "-o", "args")[1].splitlines()
    assert [line for line in processes if "sleep 7" in line] == ["sleep 7000"]
    assert pod.node.status(container)["state"] == "CONTAINER_RUNNING"


def test_output_is_bounded(pod: Pod, container: str) -> None:
    """What the kubelet's 16 MiB of an answer hold is kept; the rest is dropped, and the command comes to its end."""
    script = "head -c 20000000 /dev/zero | tr '\\0' o; head -c 20000000 /dev/zero | tr '\\0' e >&2; exit 5"
    answer = pod.node.call("ExecSync", container_id=container, cmd=["sh", "-c", script], timeout=30)
    assert answer["exit_code"] == 5
    for stream, letter in (("stdout", b"o"), ("stderr", b"e")):
        assert base64.b64decode(answer[stream]) == letter * ((8 << 20) - 512)
    alone = pod.node.call("ExecSync", container_id=container, cmd=["sh", "-c", script.replace(">&2", "")], timeout=30)
    assert len(base64.b64decode(alone["stdout"])) == (16 << 20) - 1024


def test_a_background_process_does_not_hold_it_up(pod: Pod, container: str) -> None:
    """Although it has inherited the output; and it lives on. What it writes within the time limit is told."""
    began = time.monotonic()
    assert pod.node.execute(container, "sh", "-c", "(sleep 1; echo late) & echo now") == (0, "now\nlate\n", "")
    assert pod.node.execute(container, "sh", "-c", "sleep 7100 & echo done", timeout=1) == (0, "done\n", "")
    assert time.monotonic() - began < 60
    assert "sleep 7100" in pod.node.execute(container, "ps", "-o", "args")[1]


def test_a_container_with_no_room_for_another_process(pod: Pod, container: str) -> None:
    """crun needs no more room than the command, runc some threads."""
    limit = next(path / "pids.max" for path in Path("/sys/fs/cgroup").rglob(container) if (path / "pids.max").exists())
    limit.write_text("2\n")
    try:
        assert pod.node.execute(container, "echo", "x") == (0, "x\n", "")
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error.details()
        assert re.search(r"cgroup /.* has \d processes and threads, and may have 2", error.details())
    limit.write_text("max\n")
    assert pod.node.execute(container, "echo", "x") == (0, "x\n", "")


def test_what_can_not_be_executed(pod: Pod, container: str) -> None:
    node = pod.node
    for command in ("no-such-program", "/no/such/program", "/etc/passwd"):
        with refused("INVALID_ARGUMENT", f"exec_sync: .*({command}|ermission denied)"):
            node.execute(container, command)
    with refused("INVALID_ARGUMENT", "cmd is missing"):
        node.execute(container)
    with refused("NOT_FOUND", "f" * 64):
        node.execute("f" * 64, "true")
    created = pod.create("true")
    with refused("FAILED_PRECONDITION", f"{created} is created, so nothing can be executed in it"):
        node.execute(created, "true")
    node.call("StopContainer", container_id=container, timeout=0)
    with refused("FAILED_PRECONDITION", f"{container} is exited, so nothing can be executed in it"):
        node.execute(container, "true")


def test_many_at_once(pod: Pod, container: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: pod.node.execute(container, "sh", "-c", f"echo {n}; exit {n}"), range(12)))
    assert answers == [(number, f"{number}\n", "") for number in range(12)]


def test_it_ends_with_its_container(pod: Pod, container: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pod.node.execute, container, "sleep", "7200", timeout=0)
        until(lambda: "sleep 7200" in pod.node.execute(container, "ps", "-o", "args")[1])
        pod.node.call("StopContainer", container_id=container, timeout=0)
        assert running.result(timeout=patient(60))[0] == 137
