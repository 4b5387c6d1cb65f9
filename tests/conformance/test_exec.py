"""ExecSync: a command in a running container."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from conformance.node import UNKNOWN, Node, Pod, case, differs, wait_for
from support.patience import patient

STATUS = "grep /proc/self/status -e"


@pytest.mark.parametrize("code", [0, 1, 2, 42, 126, 255])
def test_exit_code(node: Node, idle: str, code: int) -> None:
    assert node.execute(idle, "sh", "-c", f"exit {code}") == (code, "", "")


def test_outputs_are_apart(node: Node, idle: str) -> None:
    assert node.execute(idle, "sh", "-c", "echo out; echo err >&2") == (0, "out\n", "err\n")


@pytest.mark.parametrize("text", ["", " ", "a  b", "*", "$HOME", "ünï", "a\nb", "'\"`\\"])
def test_arguments_arrive_as_they_are(node: Node, idle: str, text: str) -> None:
    assert node.execute(idle, "printf", "%s", text)[1] == text


def test_output_may_be_any_bytes(node: Node, idle: str) -> None:
    answer = node.call("ExecSync", container_id=idle, cmd=["printf", r"\000\001\377\n"], timeout=int(patient(20)))
    assert base64.b64decode(answer["stdout"]) == b"\0\1\xff\n"


def test_much_output(node: Node, idle: str) -> None:
    size = 2 << 20
    answer = node.call(
        "ExecSync", container_id=idle, cmd=["head", "-c", str(size), "/dev/zero"], timeout=int(patient(20))
    )
    assert base64.b64decode(answer["stdout"]) == bytes(size)


def test_stdin_is_at_its_end(node: Node, idle: str) -> None:
    assert node.execute(idle, "cat") == (0, "", "")


@pytest.mark.parametrize(
    ("config", "script", "written"),
    [
        ({"envs": [{"key": "GIVEN", "value": "eA=="}]}, "echo $GIVEN", "x"),
        ({"working_dir": "/home/alice"}, "pwd", "/home/alice"),
        ({"security": {"run_as_user": {"value": 1000}}}, "id -u", "1000"),
        ({"security": {"capabilities": {"drop_capabilities": ["ALL"]}}}, f"{STATUS} CapEff", "CapEff:\t" + "0" * 16),
        ({"security": {"no_new_privs": True}}, f"{STATUS} NoNewPrivs", "NoNewPrivs:\t1"),
        ({"security": {"seccomp": {"profile_type": "RuntimeDefault"}}}, f"{STATUS} Seccomp:", "Seccomp:\t2"),
    ],
    ids=["envs", "working_dir", "user", "capabilities", "no_new_privs", "seccomp"],
)
def test_it_runs_as_the_container_does(node: Node, pod: Pod, config: Any, script: str, written: str) -> None:
    container = node.idle(pod, **config)
    assert node.execute(container, "sh", "-c", script)[1].strip() == written


def test_it_is_in_the_containers_namespaces(node: Node, idle: str) -> None:
    script = "for ns in mnt pid net ipc uts; do readlink /proc/self/ns/$ns; readlink /proc/1/ns/$ns; done"
    links = node.execute(idle, "sh", "-c", script)[1].split()
    assert links[::2] == links[1::2]
    assert len(links) == 10


def test_it_is_in_the_containers_cgroup(node: Node, idle: str) -> None:
    """Or in one below it, by which all that came from the exec can be ended."""
    own, first = (node.execute(idle, "cat", f"/proc/{pid}/cgroup")[1].splitlines() for pid in ("self", "1"))
    memory = [line for line in first if ":memory:" in line or line.startswith("0::")]
    assert memory
    for line in memory:
        below = line.rstrip("/") + "/"
        assert [one for one in own if one == line or (one.startswith(below) and ".." not in one)], f"{line}: {own}"


def test_timeout(node: Node, idle: str) -> None:
    began = time.monotonic()
    node.refuse("ExecSync", "DEADLINE_EXCEEDED", container_id=idle, cmd=["sleep", "77"], timeout=1)
    assert 0.9 < time.monotonic() - began < patient(15)
    wait_for(lambda: "sleep 77" not in node.execute(idle, "ps")[1])


def test_a_child_that_holds_the_output_is_waited_for_or_cut_off(node: Node, idle: str) -> None:
    """The output is complete up to the end of the command; who inherits it does not hold the call for ever."""
    began = time.monotonic()
    try:
        answer = node.execute(idle, "sh", "-c", "echo now; sleep 2 & exit 0", timeout=int(patient(10)))
    finally:
        assert time.monotonic() - began < patient(25)
    assert answer[1].startswith("now")


@pytest.mark.parametrize("command", ["none-such", "/none/such", "/etc/passwd"])
def test_what_can_not_be_executed(node: Node, idle: str, command: str) -> None:
    """A peer gives an error; an exit code of 126 or 127 as a shell has it is fine by the API, too."""
    try:
        code, _, _ = node.execute(idle, command)
    except grpc.RpcError as error:
        assert command in str(error.details())
    else:
        assert code in (126, 127)


def test_many_at_once(node: Node, idle: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(lambda number: node.execute(idle, "echo", str(number))[1], range(16)))
    assert outputs == [f"{number}\n" for number in range(16)]


@pytest.mark.parametrize("state", ["created", "exited"])
@differs(containerd=UNKNOWN)
def test_only_in_a_running_container(node: Node, pod: Pod, state: str) -> None:
    container = node.create(pod, "true")
    if state == "exited":
        node.call("StartContainer", container_id=container)
        node.wait_exit(container)
    node.refuse("ExecSync", "FAILED_PRECONDITION", container_id=container, cmd=["true"])


@pytest.mark.parametrize("command", [case([], containerd=UNKNOWN), case([""], containerd=UNKNOWN)])
def test_a_command_is_needed(node: Node, idle: str, command: list[str]) -> None:
    node.refuse("ExecSync", "INVALID_ARGUMENT", container_id=idle, cmd=command)


def test_a_negative_timeout_is_none(node: Node, idle: str) -> None:
    assert node.execute(idle, "echo", "x", timeout=-1) == (0, "x\n", "")
