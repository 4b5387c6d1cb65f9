"""Programs of ours that tests start, forked from a process that has imported everything (``support.forkserver``).

``Popen`` and ``run`` are ``subprocess``'s. A command ``[nsenter …] python -m crinoid …`` is forked where nothing tells
the fork from a start of its own; any other is executed, and so is one whose namespaces, limits, rights or cgroups are
to be others than when the first was forked. What a start itself does is tested by those that ask for it by
``subprocess``.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support import forkserver

_OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG")
_STATUS = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Cap", "NoNewPrivs", "Seccomp")
_GIVEN = (
    "args",
    "executable",
    "preexec_fn",
    "close_fds",
    "pass_fds",
    "cwd",
    "env",
    "startupinfo",
    "creationflags",
    "shell",
    *(_PIPES := ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")),
    "restore_signals",
    "gid",
    "gids",
    "uid",
    "umask",
    "start_new_session",
    "process_group",
)
"""The arguments of subprocess's ``_execute_child``."""
Prefix = list[tuple[str, str]]


class Popen(subprocess.Popen[Any]):
    """As subprocess's, but that a crinoid is forked, if ``is_forked`` then."""

    is_forked = False

    def __init__(self, command: Sequence[str], **given: Any) -> None:
        self._pass_on = [str(word) for word in command]
        super().__init__(self._pass_on, **given)

    def _execute_child(self, *given: Any) -> None:
        """Replace the step in which subprocess forks and executes; all around it stays."""
        wanted = dict(zip(_GIVEN, given, strict=True))
        pid = None
        if _is_plain(wanted) and (parts := _parts(self._pass_on)) is not None:
            descriptors = [
                own if theirs == -1 else theirs
                for own, theirs in enumerate((wanted["p2cread"], wanted["c2pwrite"], wanted["errwrite"]))
            ]
            pid = _forks.fork(parts, wanted, descriptors)
        if pid is None:
            super()._execute_child(*given)  # type: ignore[misc]  # typeshed leaves it out
            return
        self.pid, self.is_forked = pid, True
        self._child_created = True
        self._close_pipe_fds(*(wanted[name] for name in _PIPES))  # type: ignore[attr-defined]  # as above


def run(
    command: Sequence[str],
    *,
    input: Any = None,  # noqa: A002  # subprocess's word
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **given: Any,
) -> "subprocess.CompletedProcess[Any]":
    """Run a command to its end, as subprocess's does."""
    if capture_output:
        given |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        given["stdin"] = subprocess.PIPE
    with Popen(command, **given) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


class Forks:
    """The server's other end; the server is started at the first request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._surroundings: object = None

    def fork(
        self, parts: tuple[Prefix, list[str]], wanted: Mapping[str, Any], descriptors: Sequence[int]
    ) -> int | None:
        """Return the process id; None where it has to be a start of its own."""
        prefix, command = parts
        environment = dict(os.environ if wanted["env"] is None else wanted["env"])
        request = {
            "prefix": prefix,
            "command": command,
            "environment": environment,
            "cwd": os.fspath(wanted["cwd"] or Path.cwd()),
            "new_session": wanted["start_new_session"],
        }
        with self._lock:
            if self._channel is None:
                if _namespaces() != _NAMESPACES:  # the first to ask may be in a network of its own, and nobody after it
                    return None
                self._start()
            assert self._channel is not None
            if _surroundings(environment) != self._surroundings:
                return None
            sys.stdout.flush()
            socket.send_fds(self._channel, [json.dumps(request).encode()], list(descriptors))
            answer = self._channel.recv(32)
        assert answer, "the fork server has ended"
        return int(answer)

    def _start(self) -> None:
        """Start the server in this process's environment, whatever the first request wants."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        command = [sys.executable, forkserver.__file__, str(theirs.fileno()), "-" * forkserver.PADDING]
        self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._channel, self._surroundings = ours, _surroundings(os.environ)
        atexit.register(self.close)

    def close(self) -> None:
        """End the server; what it has forked lives on."""
        if self._channel is not None and self._server is not None:
            self._channel.shutdown(socket.SHUT_RDWR)  # a fork of this process may have it open, too
            self._channel.close()
            self._server.wait()
            self._channel = None


def _namespaces() -> list[str]:
    return [os.readlink(path) for path in sorted(Path("/proc/thread-self/ns").iterdir())]


_NAMESPACES = _namespaces()
_forks = Forks()


def _is_plain(wanted: Mapping[str, Any]) -> bool:
    """Nothing is asked of subprocess that the server does not do."""
    asked = ("executable", "preexec_fn", "pass_fds", "shell", "gids")
    numbers = ("gid", "uid", "umask", "process_group")
    return (
        wanted["close_fds"]
        and not any(wanted[name] for name in asked)
        and all(wanted[name] in (None, -1) for name in numbers)
    )


def _parts(command: Sequence[str]) -> tuple[Prefix, list[str]] | None:
    """Part what goes before from ``python -m crinoid …``; None where it is anything else."""
    prefix: Prefix = []
    words = [*command]
    while words[0] in ("nsenter", "setsid"):
        options = {"nsenter": {"--net": "enter", "--mount": "enter", "--wd": "wd"}, "setsid": {"--ctty": "ctty"}}
        known = options[words.pop(0)]
        while words[0].startswith("-"):
            name, _, value = words.pop(0).partition("=")
            if name not in known:
                return None
            prefix.append((known[name], value))
    is_ours = words[:3] == [sys.executable, "-m", "crinoid"] and sum(map(len, words)) < forkserver.PADDING
    return (prefix, words) if is_ours else None


def _surroundings(environment: Mapping[str, str]) -> object:
    """All that a child inherits but its environment, of which there is what the interpreter reads."""
    thread = Path("/proc/thread-self")
    status = [line for line in (thread / "status").read_text().splitlines() if line.startswith(_STATUS)]
    files = [(thread / name).read_text() for name in ("cgroup", "limits", "oom_score_adj")]
    variables = sorted((name, value) for name, value in environment.items() if name.startswith(_OF_THE_INTERPRETER))
    return _namespaces(), status, files, variables, os.readlink(thread / "root"), os.nice(0)
