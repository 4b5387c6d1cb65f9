"""The process beside each container: starts the module's process, writes its log, keeps its exit code.

Run as a program, with the bundle as its directory; it imports nothing but the standard library, as there is one for
each container. Descriptor 3 is where it answers ``pid N``, or what is wrong; 4 is the module. The daemon may die at any
time: before the answer the monitor dies with it, from then on it goes on alone.
"""

import json
import os
import selectors
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

_ANSWER, _MODULE = 3, 4
_PIECE_BYTES = 8192
_PIPE_BYTES = 1 << 16


class Log:
    """A log in the CRI's form, ``TIME STREAM F|P TEXT``; without a path, nothing."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._begun = {"stdout": b"", "stderr": b""}
        self.reopen()

    def reopen(self) -> None:
        """Open the path anew; where that fails, go on with the old file."""
        if self._path:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = fd

    def write(self, stream: str, data: bytes) -> None:
        """Write whole lines; long ones in pieces as they come."""
        *lines, rest = (self._begun[stream] + data).split(b"\n")
        for line in lines:
            self._write_line(stream, line, b"F")
        while len(rest) >= _PIECE_BYTES:
            self._put(stream, b"P", rest[:_PIECE_BYTES])
            rest = rest[_PIECE_BYTES:]
        self._begun[stream] = rest

    def end(self, stream: str) -> None:
        """Write what has come without a newline at its end."""
        if self._begun[stream]:
            self._write_line(stream, self._begun[stream], b"F")
            self._begun[stream] = b""

    def _write_line(self, stream: str, line: bytes, tag: bytes) -> None:
        while len(line) > _PIECE_BYTES:
            self._put(stream, b"P", line[:_PIECE_BYTES])
            line = line[_PIECE_BYTES:]
        self._put(stream, tag, line)

    def _put(self, stream: str, tag: bytes, text: bytes) -> None:
        if self._fd < 0:
            return
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="microseconds").encode()
        try:
            os.write(self._fd, b" ".join((now, stream.encode(), tag, text)) + b"\n")
        except OSError as error:  # a full disk: the module is not to stand still for it
            sys.stderr.write(f"log {self._path}: {error}\n")


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (proc(5), field 22 of stat)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def write_whole(name: str, document: object) -> None:
    """Write a file of the bundle so that it is there whole or not at all."""
    new = Path(f"{name}.new")
    new.write_text(json.dumps(document))
    new.rename(name)


def wait_at_gate(registered: int, plan: dict[str, object]) -> None:
    """Be the child: wait until the container is started, then become the module. Does not return."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    if not os.read(registered, 1):  # the monitor has ended before anybody knew of this process
        os._exit(1)
    with open("gate", "rb"):  # it opens once somebody has opened it to write
        Path("started").touch()
    package = str(Path(__file__).parent.parent)
    if package not in sys.path:  # -I has left out nothing but what is installed in place
        sys.path.append(package)
    from crinoid_wasm.module import run

    run(plan, _MODULE)


def main() -> int:
    """Start the child, answer, copy its output until it ends, and write down how it ended."""
    plan = json.loads(Path("wasm.json").read_text())
    try:
        log = Log(plan["log"])
    except OSError as error:
        os.write(_ANSWER, f"log {plan['log']} can't be opened: {error.strerror}".encode())
        return 1
    outputs = {"stdout": os.pipe(), "stderr": os.pipe()}
    stdin = os.pipe() if plan["stdin"] else (os.open("/dev/null", os.O_RDONLY), -1)
    registered, registers = os.pipe()
    wakes, woken = os.pipe()
    for fd in (wakes, woken):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.set_wakeup_fd(woken)
    child = os.fork()
    if child == 0:
        try:
            signal.set_wakeup_fd(-1)
            os.dup2(stdin[0], 0)
            os.dup2(outputs["stdout"][1], 1)
            os.dup2(outputs["stderr"][1], 2)
            for fd in (_ANSWER, registers, wakes, woken, stdin[1], *outputs["stdout"], *outputs["stderr"]):
                if fd >= 0:
                    os.close(fd)
            wait_at_gate(registered, plan)
        finally:
            os._exit(1)
    for fd in (registered, stdin[0], _MODULE, outputs["stdout"][1], outputs["stderr"][1]):
        os.close(fd)
    mine = os.getpid()
    write_whole("processes.json", {"monitor": [mine, start_time(mine)], "child": [child, start_time(child)]})
    os.write(_ANSWER, f"pid {child}".encode())  # EPIPE where the daemon has died: the child's read ends then, too
    os.close(_ANSWER)
    os.write(registers, b"r")
    os.close(registers)
    status = copy_until_end(child, log, {stream: ends[0] for stream, ends in outputs.items()}, wakes)
    code = os.waitstatus_to_exitcode(status)
    document = {"exit_code": code if code >= 0 else 128 - code, "finished_at_ns": time.time_ns()}
    write_whole("exit.json", document)
    return 0


def copy_until_end(child: int, log: Log, outputs: dict[str, int], wakes: int) -> int:
    """Write the child's output to the log, opened anew when asked; return the child's wait status."""
    pidfd = os.pidfd_open(child)
    with selectors.DefaultSelector() as selector:
        selector.register(wakes, selectors.EVENT_READ, "wake")
        selector.register(pidfd, selectors.EVENT_READ, "end")
        for stream, fd in outputs.items():
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ, stream)
        has_ended = False
        while not has_ended:
            for key, _ in selector.select():
                if key.data == "wake":
                    os.read(wakes, _PIPE_BYTES)
                elif key.data == "end":
                    has_ended = True
                elif not copy(key.fd, key.data, log):
                    selector.unregister(key.fd)
            for request in Path().glob("reopen-*"):
                try:
                    log.reopen()
                except OSError as error:
                    sys.stderr.write(f"the log can't be opened anew: {error}\n")
                request.unlink(missing_ok=True)
    _, status = os.waitpid(child, 0)
    for stream, fd in outputs.items():  # what is in the pipes still: nobody else can write to them any more
        while copy(fd, stream, log):
            pass
        log.end(stream)
    return status


def copy(fd: int, stream: str, log: Log) -> bool:
    """Copy what is there; tell whether there may be more."""
    try:
        data = os.read(fd, _PIPE_BYTES)
    except BlockingIOError:
        return False
    log.write(stream, data)
    return bool(data)


if __name__ == "__main__":
    sys.exit(main())
