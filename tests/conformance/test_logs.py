"""Container logs: the CRI's format, and rotation while the container writes."""

import re
from pathlib import Path

import pytest

from conformance.node import UNKNOWN, Node, Pod, differs, wait_for

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def test_format(node: Node, pod: Pod) -> None:
    container = node.start(pod, "sh", "-c", "echo out; sleep 0.1; echo err >&2")
    node.wait_exit(container)
    lines = node.log_lines(container)
    assert [line[1:] for line in lines] == [["stdout", "F", "out"], ["stderr", "F", "err"]]
    assert all(TIME.fullmatch(line[0]) for line in lines)
    assert lines[0][0] <= lines[1][0]


@pytest.mark.parametrize("text", ["", " ", "  two  spaces  ", "tab\there", "ünï 日本", "a" * 4000, "F stdout P"])
def test_lines_arrive_as_they_are(node: Node, pod: Pod, text: str) -> None:
    container = node.start(pod, "printf", "%s\n", text)
    node.wait_exit(container)
    assert [line[1:] for line in node.log_lines(container)] == [["stdout", "F", text]]


@pytest.mark.parametrize("size", [8192, 16384, 20000, 100_000])
def test_long_lines_are_split(node: Node, pod: Pod, size: int) -> None:
    container = node.start(pod, "sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x; echo")
    node.wait_exit(container)
    lines = node.log_lines(container)
    assert "".join(line[3] for line in lines) == "x" * size
    assert {line[2] for line in lines[:-1]} <= {"P"}
    assert lines[-1][2] == "F"


def test_a_last_line_without_its_end_is_there(node: Node, pod: Pod) -> None:
    container = node.start(pod, "printf", "one\\ntwo")
    node.wait_exit(container)
    assert [line[3] for line in node.log_lines(container) if line[3]] == ["one", "two"]


def test_both_streams_of_a_terminal_are_stdout(node: Node, pod: Pod) -> None:
    container = node.start(pod, "sh", "-c", "echo out; echo err >&2", tty=True)
    node.wait_exit(container)
    assert {line[1] for line in node.log_lines(container)} == {"stdout"}
    assert node.log(container).replace("\r", "") == "out\nerr\n"  # a line's end may come as a piece of its own


def test_log_path_may_have_directories(node: Node, pod: Pod) -> None:
    container = node.start(pod, "echo", "x", log_path="app/deep/0.log")
    status = node.wait_exit(container)
    assert status["log_path"] == f"{pod.config['log_directory']}/app/deep/0.log"
    assert node.log(container) == "x\n"


def test_without_a_log_path_there_is_no_log(node: Node, pod: Pod) -> None:
    container = node.start(pod, "echo", "x", log_path="")
    assert node.wait_exit(container)["exit_code"] == 0


def test_a_log_is_appended_to(node: Node, pod: Pod) -> None:
    for text in ("one", "two"):
        container = node.start(pod, "echo", text, log_path="shared.log")
        node.wait_exit(container)
    assert node.log(container) == "one\ntwo\n"


def test_reopen_after_rotation(node: Node, pod: Pod) -> None:
    container = node.start(
        pod, "sh", "-c", "echo before; while ! test -e /go; do sleep 0.02; done; echo after; sleep 99"
    )
    path = Path(node.status(container)["log_path"])
    wait_for(lambda: "before" in path.read_text())
    old = path.rename(path.with_suffix(".old"))
    node.call("ReopenContainerLog", container_id=container)
    node.execute(container, "touch", "/go")
    wait_for(lambda: path.exists() and "after" in path.read_text())
    assert "after" not in old.read_text()


def test_no_line_is_lost_or_torn_in_a_flood(node: Node, pod: Pod) -> None:
    script = "i=0; while test $i -lt 50000; do echo line $i; i=$((i+1)); done"
    container = node.start(pod, "sh", "-c", script)
    path, parts = Path(node.status(container)["log_path"]), []
    for number in range(4):
        if node.status(container)["state"] != "CONTAINER_RUNNING":
            break
        wait_for(path.exists)
        parts.append(path.rename(path.with_suffix(f".{number}")))
        node.call("ReopenContainerLog", container_id=container)
    node.wait_exit(container)
    lines = [line.split(" ", 3) for part in [*parts, path] for line in part.read_text().splitlines()]
    assert parts
    written = "".join(line[3] + ("\n" if line[2] == "F" else "") for line in lines)
    assert written == "".join(f"line {number}\n" for number in range(50000))


@differs(containerd=UNKNOWN)
@pytest.mark.parametrize("started", [False, True])
def test_only_the_log_of_a_running_container_is_reopened(node: Node, pod: Pod, started: bool) -> None:
    container = node.create(pod, "true")
    if started:
        node.call("StartContainer", container_id=container)
        node.wait_exit(container)
    node.refuse("ReopenContainerLog", "FAILED_PRECONDITION", container_id=container)
