"""Containers: what CreateContainer makes of its config, their life, their ends."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conformance.node import OLD, UNKNOWN, Node, Pod, case, differs, differs_at_times, wait_for
from support.patience import patient


@differs_at_times(containerd="containerd notes when a process was started after it has been, when it may have ended")
def test_states_and_times(node: Node, pod: Pod) -> None:
    before = time.time_ns()
    container = node.create(pod, "true")
    created = node.status(container)
    assert created["state"] == "CONTAINER_CREATED"
    assert before <= int(created["created_at"]) <= time.time_ns()
    assert (int(created["started_at"]), int(created["finished_at"])) == (0, 0)
    node.call("StartContainer", container_id=container)
    ended = node.wait_exit(container)
    assert int(ended["created_at"]) <= int(ended["started_at"]) <= int(ended["finished_at"]) <= time.time_ns()


def test_status_tells_what_was_asked(node: Node, pod: Pod) -> None:
    config = node.container_config("true", labels={"a": "b"}, annotations={"c": "d\n"})
    config["metadata"]["attempt"] = 7
    container = node.create_config(pod, config)
    status = node.status(container)
    assert status["id"] == container
    assert [status[name] for name in ("metadata", "labels", "annotations")] == [
        config[name] for name in ("metadata", "labels", "annotations")
    ]
    assert status["log_path"] == f"{pod.config['log_directory']}/{config['log_path']}"
    assert status["image"]["image"] == node.image()


def test_the_list_shows_the_container(node: Node, pod: Pod) -> None:
    container = node.create(pod, "true", labels={"a": "b"}, annotations={"c": "d"})
    (listed,) = node.call("ListContainers", filter={"id": container})["containers"]
    status = node.status(container)
    shared = ("id", "metadata", "state", "created_at", "labels", "annotations")
    assert {name: listed[name] for name in shared} == {name: status[name] for name in shared}
    assert listed["pod_sandbox_id"] == pod.id
    assert listed["image"]["image"]
    assert listed["image_ref"]


@differs(containerd=OLD)
def test_the_image_id_is_told(node: Node, pod: Pod) -> None:
    image = node.pull()
    container = node.create(pod, "true")
    (listed,) = node.call("ListContainers", filter={"id": container})["containers"]
    assert node.status(container)["image_id"] == listed["image_id"] == image


@differs(containerd=OLD)
def test_the_image_is_named_as_the_manifest_does(node: Node, pod: Pod) -> None:
    image = {"image": node.pull("same:1"), "user_specified_image": node.image("same:1"), "annotations": {"a": "b"}}
    shown = node.status(node.create_config(pod, node.container_config("true") | {"image": image}))["image"]
    assert (shown["user_specified_image"], shown["annotations"]) == (node.image("same:1"), {"a": "b"})


def test_verbose_status_has_more(node: Node, idle: str) -> None:
    assert node.call("ContainerStatus", container_id=idle)["info"] == {}
    info = node.call("ContainerStatus", container_id=idle, verbose=True)["info"]
    told = json.loads(info["info"])
    assert told["pid"] > 0
    assert told["config"]["metadata"]["name"].startswith("c")
    assert told["runtimeSpec"]["process"]["args"][0] == told["config"]["command"][0] == "sh"


def test_no_signal_is_ignored_or_blocked(node: Node, pod: Pod) -> None:
    """What is ignored stays so across exec: also 32 and 33, which the C libraries of runtimes use themselves."""
    look = ("grep", "-E", "SigIgn|SigBlk", "/proc/self/status")
    for told in (node.output(pod, *look), node.execute(node.idle(pod), *look)[1]):
        assert [int(line.split()[1], 16) for line in told.splitlines()] == [0, 0], told


def test_ids_may_be_shortened(node: Node, idle: str) -> None:
    assert node.call("ContainerStatus", container_id=idle[:13])["status"]["id"] == idle


@pytest.mark.parametrize("code", [0, 1, 3, 42, 126, 127, 137, 255])
def test_exit_codes(node: Node, pod: Pod, code: int) -> None:
    status = node.wait_exit(node.start(pod, "sh", "-c", f"exit {code}"))
    assert (status["exit_code"], status["reason"]) == (code, "Error" if code else "Completed")


@pytest.mark.parametrize(
    ("config", "written"),
    [
        ({}, "entry cmd"),
        ({"args": ["a", "b c"]}, "entry a b c"),
        ({"command": ["echo", "mine"]}, "mine"),
        ({"command": ["echo", "mine"], "args": ["a"]}, "mine a"),
        ({"command": ["echo"], "args": ["", "x"]}, " x"),
        ({"command": ["echo", "*", "$HOME", "ü"]}, "* $HOME ü"),
    ],
    ids=["image", "args", "command", "both", "empty", "no-shell"],
)
def test_command_and_args(node: Node, pod: Pod, config: Any, written: str) -> None:
    assert node.output(pod, image="entry:1", **config) == f"{written}\n"


@pytest.mark.parametrize("value", ["plain", "", "a=b", "two words", "ünï", "line\nbreak", "'\"$x`"])
def test_envs(node: Node, pod: Pod, value: str) -> None:
    env = {"key": "GIVEN", "value": base64.b64encode(value.encode()).decode()}
    assert node.output(pod, "sh", "-c", "printf '%s\\n' \"$GIVEN\"", envs=[env]) == f"{value}\n"


def test_envs_go_over_those_of_the_image(node: Node, pod: Pod) -> None:
    written = node.script(pod, "echo $FROM $BOTH $PATH", image="entry:1", envs=[{"key": "BOTH", "value": "bWluZQ=="}])
    assert written == "image mine /bin"


@pytest.mark.parametrize(
    ("image", "given", "expected"),
    [
        ("busybox:1", "", "/"),
        ("busybox:1", "/home/alice", "/home/alice"),
        ("busybox:1", "/made/for/it", "/made/for/it"),
        ("user-name:1", "", "/home/alice"),
        ("user-name:1", "/tmp", "/tmp"),
        ("plain:1", "", "/not/there"),
    ],
)
def test_working_dir(node: Node, pod: Pod, image: str, given: str, expected: str) -> None:
    assert node.script(pod, "pwd", image=image, working_dir=given) == expected


@pytest.mark.parametrize(("stdin", "state"), [(True, "CONTAINER_RUNNING"), (False, "CONTAINER_EXITED")])
def test_stdin_is_kept_open_only_when_asked(node: Node, pod: Pod, stdin: bool, state: str) -> None:
    container = node.start(pod, "cat", stdin=stdin, stdin_once=stdin)
    if not stdin:
        node.wait_exit(container)
    time.sleep(0.05)
    assert node.status(container)["state"] == state


@pytest.mark.parametrize("tty", [True, False])
def test_tty(node: Node, pod: Pod, tty: bool) -> None:
    written = node.script(pod, "test -t 0 && test -t 1 && echo terminal; echo end", tty=tty, stdin=tty)
    assert ("terminal" in written) is tty
    assert "end" in written


def _trap(signal: str) -> tuple[str, ...]:
    return ("sh", "-c", f"trap 'echo got; exit 9' {signal}; echo ready; while true; do sleep 0.02; done")


def _start_trap(node: Node, pod: Pod, signal: str, **config: Any) -> str:
    container = node.start(pod, *_trap(signal), **config)
    wait_for(lambda: "ready" in node.log(container))
    return container


@pytest.mark.parametrize(
    ("signal", "config"),
    [
        case("TERM", {}, name="default"),
        case("USR1", {"image": "stop:1"}, name="image"),
        case("USR2", {"stop_signal": "SIGNAL_SIGUSR2"}, name="config", containerd=OLD),
        case("USR2", {"stop_signal": "SIGNAL_SIGUSR2", "image": "stop:1"}, name="both", containerd=OLD),
        case("INT", {"stop_signal": "SIGNAL_SIGINT"}, name="int", containerd=OLD),
    ],
)
def test_stop_signal(node: Node, pod: Pod, signal: str, config: Any) -> None:
    container = _start_trap(node, pod, signal, **config)
    node.call("StopContainer", container_id=container, timeout=2)
    assert node.status(container)["exit_code"] == 9
    assert node.log(container) == "ready\ngot\n"


@differs(containerd=OLD)
@pytest.mark.parametrize(("image", "told"), [("busybox:1", "SIGNAL_SIGTERM"), ("stop:1", "SIGNAL_SIGUSR1")])
def test_the_stop_signal_is_told(node: Node, pod: Pod, image: str, told: str) -> None:
    assert node.status(node.create(pod, "true", image=image))["stop_signal"] == told


@pytest.mark.parametrize(("timeout", "least"), [(0, 0.0), (1, 1.0)])
def test_who_does_not_end_is_killed(node: Node, pod: Pod, timeout: int, least: float) -> None:
    container = node.start(pod, "sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.02; done")
    wait_for(lambda: "ready" in node.log(container))
    began = time.monotonic()
    node.call("StopContainer", container_id=container, timeout=timeout)
    assert least <= time.monotonic() - began < least + patient(15)
    assert node.status(container)["exit_code"] == 137


def test_stop_and_remove_are_idempotent(node: Node, pod: Pod) -> None:
    container = node.idle(pod)
    for _ in range(2):
        node.call("StopContainer", container_id=container, timeout=0)
    for _ in range(2):
        node.call("RemoveContainer", container_id=container)
    node.refuse("ContainerStatus", "NOT_FOUND", container_id=container)


@pytest.mark.parametrize("state", ["created", "running", "exited"])
def test_remove_in_any_state(node: Node, pod: Pod, state: str) -> None:
    container = node.create(pod, "sleep", "1000" if state == "running" else "0")
    if state != "created":
        node.call("StartContainer", container_id=container)
    if state == "exited":
        node.wait_exit(container)
    node.call("RemoveContainer", container_id=container)
    assert node.call("ListContainers", filter={"id": container})["containers"] == []


@pytest.mark.parametrize("ended", [False, True])
@differs(containerd=UNKNOWN)
def test_a_container_starts_once(node: Node, pod: Pod, ended: bool) -> None:
    container = node.start(pod, "sleep", "0" if ended else "1000")
    if ended:
        node.wait_exit(container)
    node.refuse("StartContainer", "FAILED_PRECONDITION", container_id=container)


@differs(containerd=UNKNOWN)
def test_a_name_is_taken_once(node: Node, pod: Pod) -> None:
    config = node.container_config("true")
    node.create_config(pod, config)
    node.refuse("CreateContainer", "ALREADY_EXISTS", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)


def test_a_further_attempt_is_another_container(node: Node, pod: Pod) -> None:
    config = node.container_config("true")
    first = node.create_config(pod, config)
    config["metadata"]["attempt"] = 1
    assert node.create_config(pod, config) != first


@pytest.mark.parametrize("command", ["none-such", "/none/such", "/etc/passwd", "/bin"])
def test_what_can_not_be_executed_is_an_error(node: Node, pod: Pod, command: str) -> None:
    codes = ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "INTERNAL")
    unknown = () if node.runtime == "crinoid" else ("UNKNOWN",)
    assert command in node.refuse_container(pod, *codes, *unknown, command=(command,))


def test_the_filesystem_is_the_containers_own(node: Node, pod: Pod) -> None:
    assert node.script(pod, "echo mine > /file; rm /bin/vi; cat /file") == "mine"
    assert node.script(pod, "ls /file 2>/dev/null; ls /bin/vi") == "/bin/vi"


def test_standard_files_and_directories_are_there(node: Node, pod: Pod) -> None:
    script = (
        "for x in proc/self sys/kernel dev/null dev/zero dev/full dev/random dev/urandom dev/tty dev/pts dev/shm "
        "dev/mqueue dev/ptmx dev/fd dev/stdin dev/stdout dev/stderr etc/hosts etc/hostname etc/resolv.conf; do "
        "test -e /$x || echo $x; done"
    )
    assert node.script(pod, script) == ""


def test_a_volume_of_the_image_is_there(node: Node, pod: Pod) -> None:
    assert node.script(pod, "echo x > /data/file && cat /data/file", image="volume:1") == "x"


def test_many_containers_at_once(node: Node, pod: Pod) -> None:
    with ThreadPoolExecutor(8) as threads:
        written = list(threads.map(lambda number: node.script(pod, f"echo {number}"), range(8)))
    assert written == [str(number) for number in range(8)]


def test_the_log_outlives_the_container(node: Node, pod: Pod) -> None:
    container = node.start(pod, "echo", "kept")
    path = Path(node.wait_exit(container)["log_path"])
    node.call("RemoveContainer", container_id=container)
    assert "kept" in path.read_text()


def test_windows_settings_are_no_hindrance(node: Node, pod: Pod) -> None:
    assert node.script(pod, "echo runs", windows={"resources": {"cpu_shares": 5}}) == "runs"


@pytest.mark.parametrize("command", ["/no/such/program", "no-such-program", "/etc"])
def test_a_command_that_can_not_be_executed_fails_at_the_start(node: Node, pod: Pod, command: str) -> None:
    """By this a kubelet knows that the container has ended: a pod that is not to be restarted fails."""
    container = node.create(pod, command)
    assert node.status(container)["state"] == "CONTAINER_CREATED"
    message = node.refuse("StartContainer", "INVALID_ARGUMENT", "UNKNOWN", container_id=container)
    assert command in message
    status = node.status(container)
    ended = {"state": "CONTAINER_EXITED", "exit_code": 128, "reason": "StartError", "message": message}
    assert {name: status[name] for name in ended} == ended
    assert 0 < int(status["finished_at"]) <= time.time_ns()


def test_a_container_that_can_not_start_is_stopped_and_removed(node: Node, pod: Pod) -> None:
    container = node.create(pod, "/no/such/program")
    node.call("StopContainer", container_id=container, timeout=10)
    node.call("RemoveContainer", container_id=container)
    assert node.call("ListContainers", filter={"id": container})["containers"] == []
