"""Namespaces without a process: made in a thread that ends, held by a bind mount of their file (namespaces(7)).

All of it blocks; call it in a thread. A thread that unshared or entered a namespace is never used again.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from crinoid.core.api.errors import DriverError
from crinoid.core.api.linux import libc, mount
from crinoid.core.api.linux.process import Process, spawn
from crinoid.core.api.linux.threads import call_in_fresh_thread
from crinoid.core.api.values.pod import IdMapping

T = TypeVar("T")

_NEW_NETWORK = 0x40000000
# OCI runtime-spec names (config-linux.md, "Namespaces") to clone flags, names below /proc/*/ns, unshare(1)'s options.
# PID and mount namespaces need a process, or forbid the bind: they can't be held so.
_KINDS = {
    "network": (_NEW_NETWORK, "net", "--net"),
    "ipc": (0x08000000, "ipc", "--ipc"),
    "uts": (0x04000000, "uts", "--uts"),
    "cgroup": (0x02000000, "cgroup", "--cgroup"),
}
_USER = "user"
PINNABLE = frozenset({*_KINDS, _USER})


def _do_nothing() -> None:
    """For namespaces that are good as the kernel makes them."""


def pin(
    kinds: Mapping[str, Path],
    *,
    uids: Sequence[IdMapping] = (),
    gids: Sequence[IdMapping] = (),
    hostname: str = "",
    inside: Callable[[], object] = _do_nothing,
) -> None:
    """Make new namespaces and hold each at its path: all of them, or none on an error.

    ``kinds`` has the OCI's names: ``network``, ``ipc``, ``uts``, ``cgroup``, and ``user``, which owns the others then
    and gets the maps ``uids`` and ``gids``. ``hostname`` is set in a new ``uts``. ``inside`` is called by the thread
    that stands in them, but for a ``user`` among them: no thread can enter that. Raises FileExistsError for a path in
    use, ValueError for a kind that can't be held, and what ``inside`` raises.
    """
    if unknown := kinds.keys() - PINNABLE:
        raise ValueError(f"namespaces of kind {', '.join(sorted(unknown))} can't be held without a process")
    if _USER in kinds:
        _pin_with_user(kinds, uids, gids, hostname)
    else:
        call_in_fresh_thread(lambda: _pin_here(kinds, hostname, inside))


def unpin(path: Path) -> None:
    """Let a namespace go and remove its file. Idempotent; what is left in it goes with its last process."""
    mount.unmount(path)
    path.unlink(missing_ok=True)


def is_pinned(path: Path) -> bool:
    """Return whether a namespace is held at the path."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/uts").stat().st_dev
    except FileNotFoundError:
        return False


def call_in(pin: Path, function: Callable[[], T]) -> T:
    """Call a function in a namespace of any kind but mount and PID, by a thread that ends with it.

    Raises what the function raises.
    """

    def enter_and_call() -> T:
        _enter(pin, 0)
        return function()

    return call_in_fresh_thread(enter_and_call)


def call_in_each(kind: str, pins: Sequence[Path], function: Callable[[], T]) -> list[T | OSError]:
    """Call a function in each of several namespaces of one kind, all by one thread that ends with it.

    Some ten times cheaper than a thread for each. What is raised in one namespace stands in its place: the function is
    not called where the namespace can't be entered.
    """

    def call(pin: Path) -> T | OSError:
        try:
            _enter(pin, _KINDS[kind][0])
            return function()
        except OSError as error:
            return error

    return call_in_fresh_thread(lambda: [call(pin) for pin in pins])


@contextlib.contextmanager
def user_namespace(uids: Sequence[IdMapping], gids: Sequence[IdMapping]) -> Iterator[int]:
    """A new user namespace with these maps, as a descriptor that is closed with the block; nothing holds it after that.

    Raises DriverError when none can be made, OSError (EINVAL) for maps that the kernel does not take.
    """
    with _unshared_child([]) as process:
        directory = Path(f"/proc/{process.pid}")
        _write_maps(directory, uids, gids)
        fd = os.open(directory / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _enter(pin: Path, flag: int) -> None:
    """Enter a namespace with the calling thread, for good; ``flag`` is its kind's, or 0 for any."""
    fd = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("setns", fd, flag, path=pin)
    finally:
        os.close(fd)


def _pin_here(kinds: Mapping[str, Path], hostname: str, inside: Callable[[], object]) -> None:
    """Unshare, hostname and binds, in a thread of its own."""
    # unshare(2) moves the calling thread alone, and /proc/thread-self is its own: the daemon's other threads stay where
    # they are.
    flags = 0
    for kind in kinds:
        flags |= _KINDS[kind][0]
    libc.call("unshare", flags)
    if hostname and "uts" in kinds:
        _set_hostname(hostname)
    inside()
    _bind_all(kinds, Path("/proc/thread-self/ns"))


def _pin_with_user(
    kinds: Mapping[str, Path], uids: Sequence[IdMapping], gids: Sequence[IdMapping], hostname: str
) -> None:
    """A thread can't make a user namespace: a child does, with all others so that they belong to it."""
    with _unshared_child([_KINDS[kind][2] for kind in kinds if kind != _USER]) as process:
        directory = Path(f"/proc/{process.pid}")
        _write_maps(directory, uids, gids)
        if hostname and "uts" in kinds:
            call_in_fresh_thread(lambda: _set_hostname_of(process.pid, hostname))
        _bind_all(kinds, directory / "ns")


@contextlib.contextmanager
def _unshared_child(options: list[str]) -> Iterator[Process]:
    """A child that has unshared, waits, and ends with the block."""
    with contextlib.ExitStack() as stack:
        to_child, to_us = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        for fd in (to_child[1], to_us[0]):
            stack.callback(os.close, fd)
        try:
            process = spawn(["unshare", "--user", *options, "cat"], fds={0: to_child[0], 1: to_us[1], 2: to_us[1]})
        finally:
            os.close(to_child[0])
            os.close(to_us[1])
        stack.callback(process.close)
        stack.callback(process.reap)
        stack.callback(process.kill)
        with contextlib.suppress(BrokenPipeError):  # unshare gave up already, and has said why
            os.write(to_child[1], b"\n")
        if (answer := os.read(to_us[0], 1000)) != b"\n":  # cat's echo: the namespaces are there
            raise DriverError(f"can't make a user namespace: {answer.decode(errors='replace').strip() or 'no answer'}")
        yield process


def _write_maps(directory: Path, uids: Sequence[IdMapping], gids: Sequence[IdMapping]) -> None:
    (directory / "uid_map").write_text(_id_map(uids))
    (directory / "gid_map").write_text(_id_map(gids))


def _id_map(mappings: Sequence[IdMapping]) -> str:
    return "".join(f"{m.container_id} {m.host_id} {m.length}\n" for m in mappings)


def _set_hostname(name: str) -> None:
    encoded = name.encode()
    libc.call("sethostname", encoded, len(encoded))


def _set_hostname_of(pid: int, name: str) -> None:
    fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("setns", fd, _KINDS["uts"][0])
    finally:
        os.close(fd)
    _set_hostname(name)


def _bind_all(kinds: Mapping[str, Path], directory: Path) -> None:
    with contextlib.ExitStack() as undo:
        for kind, path in kinds.items():
            name = _USER if kind == _USER else _KINDS[kind][1]
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
            undo.callback(unpin, path)
            mount.bind(directory / name, path)
        undo.pop_all()
