"""The process that ``support.programs`` has fork a crinoid for each request, run by its path: it has imported what
``crinoid serve`` and ``crinoid ctl`` do, which costs an interpreter of one's own a second of processor time.

A fork becomes what ``nsenter … python -m crinoid …`` is: the requester's child, with its environment, directory and
three descriptors and no others, in the namespaces that were asked for, with streams, ``sys.argv`` and command line of
its own; ``runpy`` runs the module as the interpreter's ``-m`` does. Nothing here has started a thread or gRPC by then.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import importlib.metadata
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import termios
import threading
from pathlib import Path
from typing import Any

PADDING = 16 << 10
"""How long a fork's command line may be: it is written where this process's own stands, which is padded for it."""
_CLONE_PARENT, _CLONE3 = 0x8000, 435


def main() -> None:
    """Fork for each request; return in the forks, with their module run."""
    sys.path[0] = str(Path.cwd())  # and not this directory, whose modules are not crinoid's
    _import_all()
    gc.freeze()  # a fork's collector has nothing to look for there, and copies no pages by looking
    channel = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            os._exit(0)  # whoever asks is gone
        if pid := _fork_sibling():
            channel.send(str(pid).encode())
            for fd in descriptors:
                os.close(fd)
            continue
        channel.detach()
        _become(json.loads(message), descriptors)
        return


def _import_all() -> None:
    """Import what the daemon and its clients import, most of it only once they need it."""
    importlib.import_module("crinoid.core.daemon.serve")
    importlib.import_module("crinoid.core.daemon.takeover")
    for found in pkgutil.walk_packages(importlib.import_module("crinoid.core.cli").__path__, "crinoid.core.cli."):
        importlib.import_module(found.name)
    for entry in importlib.metadata.distribution("crinoid").entry_points:
        importlib.import_module(entry.module)


def _fork_sibling() -> int:
    """Fork as os.fork does, but so that the child is a child of this process's parent, which can wait for it."""
    arguments = (ctypes.c_uint64 * 8)(_CLONE_PARENT)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = ctypes.PyDLL(None).syscall(ctypes.c_long(_CLONE3), arguments, ctypes.c_long(ctypes.sizeof(arguments)))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be the process that was asked for, and run its module to the end."""
    if request["new_session"]:
        os.setsid()
    for target, fd in enumerate(descriptors):
        os.dup2(fd, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request["cwd"])
    for word, value in request["prefix"]:
        _PREFIXES[word](value)
    os.environ.clear()
    os.environ.update(request["environment"])
    _open_streams()
    command = request["command"]
    _show_command([*command])
    sys.orig_argv[:] = command
    sys.argv[:] = command[2:]
    sys.path[0] = str(Path.cwd())
    try:
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int | None):
            _exit(end.code or 0)
        raise


def _exit(code: int) -> None:
    """End as the interpreter does, but for taking every object apart: that would copy all pages of this process."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _enter(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
        sys.exit(f"setns: {path}: {os.strerror(ctypes.get_errno())}")
    os.close(descriptor)


def _take_terminal(_: str) -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 1)


_PREFIXES = {"enter": _enter, "wd": os.chdir, "ctty": _take_terminal}


def _open_streams() -> None:
    """Open standard streams as the interpreter does at its start, where these may be terminals."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        new = open(  # noqa: SIM115  # lasts as long as the process
            fd,
            "w" if fd else "r",
            encoding=old.encoding,
            errors=old.errors,
            newline="\n",
            closefd=False,
        )
        new.reconfigure(line_buffering=name == "stderr" or new.isatty())
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _show_command(command: list[str]) -> None:
    """Have ``ps`` and ``/proc`` show the fork's command line, with empty words after it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    line = b"".join(os.fsencode(word) + b"\0" for word in command)
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
