"""What containers write, line for line in the CRI's log format (Kubernetes' design of it), and its rotation."""

import re
import secrets
from datetime import datetime
from pathlib import Path

import pytest

from integration.conftest import RUNTIMES, Node
from integration.pods import QUICK, Pod, refused, until

LINE = re.compile(
    rb"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) "
    rb"(?P<stream>stdout|stderr) (?P<tag>[PF]) (?P<text>.*)",
    re.DOTALL,
)


@pytest.fixture(params=RUNTIMES)
def pod(node: Node, request: pytest.FixtureRequest) -> Pod:
    """A pod of each runtime."""
    return Pod(node, node.run_pod(handler=QUICK[request.param]))


def lines_of(content: bytes) -> list[tuple[str, str, bytes]]:
    """Read a log: stream, tag and text of each line. Every line must be whole and of the format."""
    assert content.endswith(b"\n") or not content
    found = []
    for line in content.split(b"\n")[:-1]:
        match = LINE.fullmatch(line)
        assert match is not None, line[:200]
        found.append((match["stream"].decode(), match["tag"].decode(), match["text"]))
    return found


def log_of(pod: Pod, container: str) -> Path:
    return Path(pod.node.status(container)["log_path"])


def written(pod: Pod, script: str) -> list[tuple[str, str, bytes]]:
    container = pod.start("sh", "-c", script)
    pod.node.wait_exit(container)
    return lines_of(log_of(pod, container).read_bytes())


def test_the_format(pod: Pod) -> None:
    """Streams apart, empty lines and any bytes kept, times in order and of now."""
    script = r"echo one; sleep 0.1; echo two >&2; sleep 0.1; echo; printf 'a b\tc\377\r\n'"
    container = pod.start("sh", "-c", script)
    status = pod.node.wait_exit(container)
    content = log_of(pod, container).read_bytes()
    assert lines_of(content) == [
        ("stdout", "F", b"one"),
        ("stderr", "F", b"two"),
        ("stdout", "F", b""),
        ("stdout", "F", b"a b\tc\xff\r"),
    ]
    times = [datetime.fromisoformat(line.split(b" ")[0].decode()).timestamp() for line in content.split(b"\n")[:-1]]
    assert times == sorted(times)
    assert int(status["started_at"]) / 1e9 - 1 < times[0] < times[-1] < int(status["finished_at"]) / 1e9 + 1


@pytest.mark.parametrize("length", [8191, 8192, 8193, 50_000])
def test_a_long_line_comes_in_pieces(node: Node, length: int) -> None:
    """All pieces but the last are marked partial; put together they are the line."""
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    lines = written(pod, f"head -c {length} /dev/zero | tr '\\0' x; echo; echo next")
    assert [tag for _, tag, _ in lines[-1:]] == ["F"]
    assert lines[-1][2] == b"next"
    assert b"".join(text for _, _, text in lines[:-1]) == b"x" * length
    assert [tag for _, tag, _ in lines[:-1]] == ["P"] * (len(lines) - 2) + ["F"]
    assert max(len(text) for _, _, text in lines) <= 16384


def test_a_last_line_that_does_not_end(pod: Pod) -> None:
    """It is there, marked partial, and the log still ends with a newline."""
    assert written(pod, "echo whole; printf torn") == [("stdout", "F", b"whole"), ("stdout", "P", b"torn")]


def test_a_container_that_writes_nothing_has_an_empty_log(pod: Pod) -> None:
    assert written(pod, "true") == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rotation_while_it_writes(node: Node, runtime: str, tmp_path: Path) -> None:
    """As the kubelet does it: move the log away, have it opened anew. No line is lost, torn or twice."""
    pod = Pod(node, node.run_pod(handler=QUICK[runtime]))
    script = "i=0; while [ ! -e /volume/stop ]; do echo number $i; i=$((i+1)); done; echo last $i"
    container = pod.start("sh", "-c", script, mounts=[{"host_path": str(tmp_path), "container_path": "/volume"}])
    log = log_of(pod, container)
    rotated = []
    for number in range(15):
        until(lambda: log.stat().st_size > 20_000)
        rotated.append(log.rename(log.with_name(f"{log.name}.{number}")))
        node.call("ReopenContainerLog", container_id=container)
    (tmp_path / "stop").touch()
    node.wait_exit(container)
    pieces = [(tag, text) for path in [*rotated, log] for _, tag, text in lines_of(path.read_bytes())]
    texts = b"".join(text + (b"\n" if tag == "F" else b"") for tag, text in pieces).splitlines()
    count = len(texts) - 1
    assert texts == [*(b"number %d" % number for number in range(count)), b"last %d" % count]
    assert count > 1000
    assert log.with_name(f"{log.name}.tmp").exists() is False


def test_reopening(node: Node) -> None:
    """Without a rotation nothing is lost; a file that others put there is not overwritten; the ended have no log."""
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    fifo = "mkfifo /fifo; while true; do cat /fifo; done"
    container = pod.start("sh", "-c", f"echo before; {fifo.replace('mkfifo', 'busybox mkfifo')}")
    log = log_of(pod, container)
    until(lambda: b"before" in log.read_bytes())
    node.call("ReopenContainerLog", container_id=container)
    node.execute(container, "sh", "-c", "echo after > /fifo")
    until(lambda: b"after" in log.read_bytes())
    assert [text for _, _, text in lines_of(log.read_bytes())] == [b"before", b"after"]
    log.rename(log.with_name("moved"))
    log.write_text("someone else's")
    with refused("FAILED_PRECONDITION", "another file is there"):
        node.call("ReopenContainerLog", container_id=container)
    assert log.read_text() == "someone else's"
    node.call("StopContainer", container_id=container, timeout=0)
    with refused("FAILED_PRECONDITION", "is exited, so its log can't be reopened"):
        node.call("ReopenContainerLog", container_id=container)
    with refused("NOT_FOUND", "f" * 64):
        node.call("ReopenContainerLog", container_id="f" * 64)


def test_logs_outlive_their_container_and_pod(node: Node, tmp_path: Path) -> None:
    name = secrets.token_hex(4)
    pod = Pod(node, node.run_pod(log_directory=str(tmp_path)))
    container = pod.start("echo", "kept", log_path=f"{name}.log")
    node.wait_exit(container)
    node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    assert [text for _, _, text in lines_of((tmp_path / f"{name}.log").read_bytes())] == [b"kept"]


def test_a_second_attempt_has_a_log_of_its_own(node: Node) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    for attempt in (0, 1):
        config = {"metadata": {"name": "app", "attempt": attempt}, "log_path": f"app/{attempt}.log"}
        container = pod.start("echo", str(attempt), **config)
        node.wait_exit(container)
        assert node.log(container) == f"{attempt}\n"
