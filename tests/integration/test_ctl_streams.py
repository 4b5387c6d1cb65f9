"""crinoid ctl exec, attach and port-forward with live streams: on a terminal, in pipes, and when one side leaves."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.linux import namespaces
from integration.conftest import BUSYBOX, Node
from integration.pods import QUICK
from support import programs
from support.patience import patient
from support.terminal import on_terminal

WAIT_S = patient(20)
TRANSPORTS = ("spdy", "websocket")
ANSWER = "while true; do nc -l -p 8080 -e sh -c 'read line; echo \"HTTP/1.0 200 OK\"; echo; echo got $line'; done"
BULK = bytes(range(256)) * (1 << 13)


def command_of(node: Node, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "crinoid", "ctl", "-r", f"unix://{node.daemon.socket}", *map(str, arguments)]


def run(node: Node, *arguments: str | Path, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Run a verb in a process of its own; return exit code, stdout, stderr."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    done = programs.run(command_of(node, *arguments), capture_output=True, timeout=WAIT_S, check=False, **given)
    return done.returncode, done.stdout, done.stderr


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"it did not come to it: {what}"
        time.sleep(patient(0.05))


@pytest.fixture
def container(node: Node) -> str:
    """A container that idles."""
    return node.run_container(node.run_pod(handler=QUICK["runc"]), "sleep", "1000")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_outputs_stay_apart_and_the_exit_code_is_the_commands(node: Node, container: str, transport: str) -> None:
    script = "printf 'a\\377b'; echo wrong >&2; exit 3"
    assert run(node, "exec", "-r", transport, container, "sh", "-c", script) == (3, b"a\xffb", b"wrong\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_input_comes_whole_and_its_end_is_told(node: Node, container: str, transport: str) -> None:
    code, out, err = run(node, "exec", "-i", "-r", transport, container, "sha256sum", stdin=BULK)
    assert (code, out.split()[0], err) == (0, hashlib.sha256(BULK).hexdigest().encode(), b"")
    assert run(node, "exec", "-i", "-r", transport, container, "cat", stdin=BULK) == (0, BULK, b"")


def test_input_from_a_file_and_output_to_a_file(node: Node, container: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(BULK)
    with source.open("rb") as stdin, target.open("wb") as stdout:
        programs.run(
            command_of(node, "exec", "-i", container, "cat"), stdin=stdin, stdout=stdout, timeout=WAIT_S, check=True
        )
    assert target.read_bytes() == BULK


def test_output_comes_as_it_is_written(node: Node, container: str) -> None:
    command = command_of(node, "exec", "-i", container, "cat")
    process = programs.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    for piece in (b"one\n", b"two\n"):
        process.stdin.write(piece)
        assert process.stdout.read(100) == piece
    process.stdin.close()
    assert (process.stdout.read(), process.wait(WAIT_S)) == (b"", 0)
    process.stdout.close()


def test_without_i_the_command_has_no_input(node: Node, container: str) -> None:
    assert run(node, "exec", container, "cat", stdin=b"not for you") == (0, b"", b"")


def test_a_reader_that_has_enough_ends_the_stream(node: Node, container: str) -> None:
    process = programs.Popen(command_of(node, "exec", container, "yes"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(WAIT_S) == 1


def test_what_can_not_be_executed_is_told(node: Node, container: str) -> None:
    code, out, err = run(node, "exec", container, "/nonexistent")
    assert (code, out) == (1, b"")
    assert b"/nonexistent" in err
    assert err.startswith(b"crinoid: ")


def test_several_containers_are_named_in_their_order(node: Node) -> None:
    pod = node.run_pod("two")
    first, second = (node.run_container(pod, "sleep", "1000", name=name) for name in ("one", "two"))
    code, out, _ = run(node, "exec", "--pod", pod, "sh", "-c", "echo said; exit 4")
    assert code == 4
    assert sorted(re.findall(rb"(\w+):\nsaid\n", out)) == sorted((first.encode(), second.encode()))
    assert run(node, "exec", "-x", "-q", "--pod", pod, "echo", "both") == (0, b"both\nboth\n", b"")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_terminal_is_raw_has_a_size_and_is_given_back(node: Node, container: str, transport: str) -> None:
    with on_terminal(command_of(node, "exec", "-it", "-r", transport, container, "sh"), 90, 30) as terminal:
        terminal.see(b"# ")
        assert terminal.is_raw
        terminal.type(b"stty size; tty\n")
        terminal.see(b"30 90")
        terminal.see(b"/dev/pts/")
        terminal.resize(101, 41)
        terminal.type(b"sleep 1; stty size\n")
        terminal.see(b"41 101")
        terminal.type(b"sh -c 'echo beg''un; sleep 99'\n")
        terminal.see(b"begun")
        terminal.type(b"\x03")  # ctrl-c is the remote command's
        terminal.see(b"# ")
        terminal.type(b"exit 7\n")
        assert terminal.wait() == 7
        assert not terminal.is_raw


def test_a_terminal_without_one_here(node: Node, container: str) -> None:
    code, out, _ = run(node, "exec", "-t", container, "tty")
    assert code == 0
    assert out.startswith(b"/dev/pts/")


def test_a_killed_client_gives_the_terminal_back(node: Node, container: str) -> None:
    with on_terminal(command_of(node, "exec", "-it", container, "sh")) as terminal:
        terminal.see(b"# ")
        assert terminal.is_raw
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == -signal.SIGTERM
        assert not terminal.is_raw


def commands_of(node: Node, pod: str) -> set[str]:
    """Name what runs in a pod's containers."""
    pids = node.daemon.cgroup_processes(pod)
    found = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids if Path(f"/proc/{pid}").exists()}
    return found - {"pause", "conmon"}


def test_an_interrupted_exec_ends(node: Node) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")
    process = programs.Popen(
        command_of(node, "exec", "-i", container, "sh", "-c", "echo on; cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 130
    until(lambda: commands_of(node, pod) == {"sleep"}, "the command has ended with its input")
    process.communicate()


def test_a_deadline_ends_a_live_exec(node: Node, container: str) -> None:
    with on_terminal(command_of(node, "exec", "-it", "--timeout", "1", container, "sleep", "99")) as terminal:
        terminal.see(b"had not ended after 1 s")
        assert terminal.wait() == 1
        assert not terminal.is_raw


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_attach_shows_what_comes_and_ends_with_the_container(node: Node, transport: str) -> None:
    script = "while read line; do echo got $line; echo err $line >&2; done; echo over"
    container = node.run_container(node.run_pod(), "sh", "-c", script, stdin=True, stdin_once=True)
    code, out, err = run(node, "attach", "-i", "-r", transport, container, stdin=b"one\ntwo\n")
    assert (code, out, err) == (0, b"got one\ngot two\nover\n", b"err one\nerr two\n")
    assert node.wait_exit(container)["exit_code"] == 0


def test_a_container_without_a_terminal_is_not_attached_to_with_one(node: Node, container: str) -> None:
    code, out, err = run(node, "attach", "-it", container)
    assert (code, out) == (1, b"")
    assert b"was made without a terminal: attach without --tty" in err


def test_a_shell_without_a_terminal_at_this_end_sees_the_end_of_input(node: Node, container: str) -> None:
    """With one at the other end it would wait for keys for ever."""
    code, out, err = run(node, "exec", "-it", container, "sh", stdin=b"test -t 0 || echo none; exit 4\n")
    assert (code, out) == (4, b"none\n")
    assert b"standard input is no terminal" in err
    assert run(node, "exec", "-it", container, "sh")[0] == 0


def test_an_image_is_run_with_its_streams_here(node: Node) -> None:
    """All of the output, from the first byte on; options after the image are the command's."""
    script = "echo first; read line; echo got $line >&2; exit 5"
    options = ("--rm", "--name", f"run-{secrets.token_hex(2)}", "--network", "host")
    assert run(node, "run", "-i", *options, BUSYBOX, "sh", "-e", "-c", script, stdin=b"it\n") == (
        5,
        b"first\n",
        b"got it\n",
    )
    assert node.call("ListPodSandbox", filter={"label_selector": {}})["items"] == []


def test_an_image_is_run_on_a_terminal(node: Node) -> None:
    command = command_of(
        node, "run", "-it", "--rm", "--name", f"run-{secrets.token_hex(2)}", "--network", "host", BUSYBOX, "sh"
    )
    with on_terminal(command) as terminal:
        terminal.look(lambda: terminal.is_raw, "a terminal of a new container")
        terminal.type(b"echo $((6*7)); exit 3\n")
        terminal.see(b"42")
        assert terminal.wait() == 3


def test_an_attached_terminal_can_be_left(node: Node) -> None:
    container = node.run_container(node.run_pod(), "sh", tty=True, stdin=True)
    for number in (b"1", b"2"):
        with on_terminal(command_of(node, "attach", "-it", container)) as terminal:
            terminal.look(lambda: terminal.is_raw, "an attached terminal")
            terminal.type(b"echo $((" + number + b"+40))\n")
            terminal.see(b"4" + number)
            terminal.type(b"\x10\x11")
            assert terminal.wait() == 0
            assert not terminal.is_raw
    assert node.status(container)["state"] == "CONTAINER_RUNNING"


@contextlib.contextmanager
def forwarding(node: Node, pod: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[int, int]]]:
    """Forward ports; yield the process, and the local port of each of the pod's."""
    command = command_of(node, "port-forward", pod, *arguments)
    process = programs.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    wanted = sum(not argument.startswith("-") and argument not in TRANSPORTS for argument in arguments)
    try:
        lines = [process.stdout.readline().decode() for _ in range(wanted * 2)]
        found = [re.fullmatch(r"Forwarding from (?:127\.0\.0\.1|\[::1\]):(\d+) -> (\d+)\n", line) for line in lines]
        assert all(found), lines
        yield process, {int(match[2]): int(match[1]) for match in found if match}
    finally:
        process.kill()
        process.communicate()


def ask(port: int, word: str, host: str = "127.0.0.1") -> bytes:
    """Say a line and return all of the answer."""
    with socket.create_connection((host, port), WAIT_S) as sock:
        sock.sendall(f"{word}\n".encode())
        return b"".join(iter(lambda: sock.recv(1 << 16), b""))


class _Copier(socketserver.StreamRequestHandler):
    """Sends back what comes."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)


class _CopyServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 100


@pytest.fixture
def serving(node: Node) -> Iterator[str]:
    """A pod that answers on port 8080, from a container, and copies back on port 9090."""
    pod = node.run_pod()
    container = node.run_container(pod, "sh", "-c", ANSWER)
    answer = node.call("ContainerStatus", container_id=container, verbose=True)
    netns = Path(f"/proc/{json.loads(answer['info']['info'])['pid']}/ns/net")
    server = namespaces.call_in(netns, lambda: _CopyServer(("127.0.0.1", 9090), _Copier))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    until(lambda: ":1F90 " in node.execute(container, "cat", "/proc/net/tcp", "/proc/net/tcp6")[1], "listening")
    yield pod
    server.shutdown()
    thread.join()
    server.socket.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ports_are_forwarded(node: Node, serving: str, transport: str) -> None:
    with forwarding(node, serving, "-r", transport, ":8080", ":9090") as (process, local):
        assert ask(local[8080], "hello") == b"HTTP/1.0 200 OK\n\ngot hello\n"
        with socket.create_connection(("::1", local[9090]), WAIT_S) as sock, ThreadPoolExecutor(1) as pool:

            def send() -> None:
                sock.sendall(BULK)
                sock.shutdown(socket.SHUT_WR)

            sending = pool.submit(send)
            back = b"".join(iter(lambda: sock.recv(1 << 16), b""))
            sending.result()
        assert back == BULK
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130


def test_many_connections_at_once(node: Node, serving: str) -> None:
    with forwarding(node, serving, ":9090") as (_, local), contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", local[9090]), WAIT_S)) for _ in range(40)]
        stalled, *lively = socks
        stalled.settimeout(0.5)
        with contextlib.suppress(TimeoutError):  # who does not read holds up nobody else
            while True:
                stalled.sendall(BULK)
        for number, sock in enumerate(lively):
            sock.sendall(b"%d" % number)
        assert [sock.recv(100) for sock in lively] == [b"%d" % number for number in range(len(lively))]


def test_a_port_nobody_listens_on_is_told_and_the_next_connection_is_served(node: Node, serving: str) -> None:
    with forwarding(node, serving, ":81", ":9090") as (process, local):
        with contextlib.suppress(ConnectionError):
            assert ask(local[81], "hello") == b""
        assert process.stderr is not None
        assert b"port 81" in process.stderr.readline()
        with socket.create_connection(("127.0.0.1", local[9090]), WAIT_S) as sock:
            sock.sendall(b"x")
            assert sock.recv(10) == b"x"


def test_a_port_that_is_taken_is_told(node: Node, serving: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run(node, "port-forward", serving, f"{port}:8080")
    assert code == 1
    assert f"can't listen on 127.0.0.1 port {port}: address already in use" in err.decode().lower()


def test_forwarding_ends_with_the_pod(node: Node) -> None:
    """Also while nobody is connected, when the endpoint tells nothing of it."""
    pod = node.run_pod()
    with forwarding(node, pod, ":80") as (process, _):
        node.call("StopPodSandbox", pod_sandbox_id=pod)
        assert process.wait(WAIT_S) == 1
        assert process.stderr is not None
        assert process.stderr.read().decode() == f"crinoid: pod {pod} has been stopped\n"


def test_files_are_copied_both_ways(node: Node, container: str, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "deep").mkdir(parents=True)
    (source / "deep/bulk").write_bytes(BULK)
    (source / "link").symlink_to("deep")
    assert run(node, "cp", source, f"{container}:/tmp") == (0, b"", b"")
    assert node.execute(container, "sha256sum", "/tmp/tree/link/bulk")[1].split()[0] == hashlib.sha256(BULK).hexdigest()
    assert run(node, "cp", f"{container}:/tmp/tree/", tmp_path / "back") == (0, b"", b"")
    assert (tmp_path / "back/deep/bulk").read_bytes() == BULK
    assert (tmp_path / "back/link").readlink() == Path("deep")
    code, _, err = run(node, "cp", f"{container}:/nosuch", tmp_path)
    assert (code, err.splitlines()[-1]) == (1, b"crinoid: tar in the container ended with exit code 1")


def test_the_processes_of_a_container_are_shown(node: Node, container: str) -> None:
    code, out, _ = run(node, "top", "-o", "json", container)
    (process,) = json.loads(out)
    assert (code, process["command"], process["user"]) == (0, "sleep 1000", 0)


def test_what_has_ended_is_pruned(node: Node, container: str) -> None:
    kept = node.status(container)["id"]
    ended = node.run_container(node.run_pod("other"), "true")
    node.wait_exit(ended)
    code, out, err = run(node, "prune")
    assert (code, out) == (2, b"")
    assert ended[:13].encode() in err
    assert run(node, "prune", "--force")[:2] == (0, f"{ended}\n".encode())
    assert [one["id"] for one in node.call("ListContainers")["containers"]] == [kept]


def test_an_output_on_a_full_disk_is_an_error_in_one_line(node: Node) -> None:
    container = node.run_container(node.run_pod(), "sh", "-c", "echo said; sleep 1000")
    until(lambda: node.log(container), "a line of log")
    for verb in (["ps"], ["logs", container], ["exec", container, "id"], ["exec", "--sync", container, "id"]):
        with Path("/dev/full").open("w") as full:
            command = command_of(node, *verb)
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=WAIT_S, check=False)
        assert (done.returncode, done.stderr) == (1, b"crinoid: the output can't be written: No space left on device\n")


def test_a_shell_completes_names(node: Node) -> None:
    node.run_container(node.run_pod("completed"), "sleep", "1000", name="by-its-name")
    words = ["crinoid", "ctl", "-r", f"unix://{node.daemon.socket}", "logs", "by-"]
    environment = {**os.environ, "_CRINOID_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": "5"}
    command = [str(Path(sys.executable).with_name("crinoid"))]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=WAIT_S, check=True)
    assert done.stdout == b"plain,by-its-name\n"
