"""Whether paths of other people's answer at all: a small process goes there first, as it can be left behind.

A thread that waits for a dead FUSE or NFS server may hang uninterruptibly, and then not even the end of the daemon's
process can come to its end. So before a thread of the daemon goes to a volume, a device or a log directory, ``require``
has a shell look at them, for all paths of a container at once. A look is no promise, so what is done after it runs in
bounded threads (``bulkheads``), all the same. A process takes 3 to 10 ms, so paths that nobody serves are passed over:
``needs_no_look`` tells them from the table of mounts in a tenth of a millisecond.
"""

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import Unavailable, Unsupported
from crinoid.core.api.linux.mount import escape_mountinfo
from crinoid.core.api.linux.process import Process, spawn

_LOG = logging.getLogger(__name__)
_LOOK = 'for path; do [ -e "$path" ]; echo; done'  # a line after each, so the first without one is where it hangs
_BATCH = 200  # paths for one process, each of at most 4095 bytes: less than the kernel takes as arguments
_PATH_BYTES = 4095
_END_S = 0.2
_IN_MEMORY = frozenset((b"tmpfs", b"ramfs", b"devtmpfs", b"devpts", b"sysfs", b"cgroup", b"cgroup2", b"mqueue"))
_ON_DISK = frozenset((b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"f2fs"))
_MAX_LINKS = 40  # as the kernel, path_resolution(7)


@dataclass(frozen=True, slots=True)
class _Hung:
    """A process that went to a path, and not even SIGKILL brings it back."""

    since_s: float
    end: "asyncio.Task[int]"


class PathProbes:
    """Looks at paths, and remembers those where a process hangs, until it has ended. Belongs to the loop's thread."""

    def __init__(self, timeout_s: float) -> None:
        """``timeout_s``: how long a path may take to answer."""
        self._timeout_s = timeout_s
        self._hung: dict[str, _Hung] = {}
        self._looks: dict[tuple[str, ...], asyncio.Task[str | None]] = {}

    async def require(self, paths: Iterable[str], what: str) -> None:
        """Return once every path has answered, be it that nothing is there.

        Raises Unavailable, which begins with ``what`` and says what ``describe_hung`` does.
        """
        if (hung := await self.describe_hung(paths)) is not None:
            raise Unavailable(f"{what}: {hung}")

    async def describe_hung(self, paths: Iterable[str]) -> str | None:
        """Name the first path that does not answer; ``None``: all do.

        It takes ``timeout_s``, or no time where an earlier look still hangs. So one path costs one process, however
        often it is asked for.
        """
        fit = {path for path in paths if path.startswith("/") and "\0" not in path}
        fit = {path for path in fit if len(os.fsencode(path)) <= _PATH_BYTES}
        for path in sorted(fit):
            if (hung := self._hung.get(path)) is not None:
                return _describe(path, time.monotonic() - hung.since_s)
        wanted = await self._in_doubt(sorted(fit))
        for start in range(0, len(wanted), _BATCH):
            if (late := await self._look(tuple(wanted[start : start + _BATCH]))) is not None:
                return _describe(late, self._timeout_s)
        return None

    async def close(self) -> None:
        """Wait for nothing any more; what hangs is left to init."""
        tasks = [*self._looks.values(), *(hung.end for hung in self._hung.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _in_doubt(self, paths: list[str]) -> list[str]:
        """Return the paths that need a look. In a thread: a disk may be slow, and a mount may be made meanwhile."""
        if not paths:
            return []
        with suppress(TimeoutError, Unavailable):  # of the owner's threads all may hang
            return await asyncio.wait_for(asyncio.to_thread(_without_safe, paths), self._timeout_s)
        return paths

    async def _look(self, paths: tuple[str, ...]) -> str | None:
        """Return the path that does not answer; several callers share one look."""
        look = self._looks.get(paths)
        if look is None:
            look = self._looks[paths] = asyncio.create_task(self._first_hung(paths), name="path probe")
            look.add_done_callback(lambda _: self._looks.pop(paths))
        return await asyncio.shield(look)

    async def _first_hung(self, paths: tuple[str, ...]) -> str | None:
        began_s = time.monotonic()
        lines = os.memfd_create("probe", os.MFD_CLOEXEC)
        try:
            process = spawn(("/bin/sh", "-c", _LOOK, "crinoid-probe", *paths), env={}, fds={1: lines})
            try:
                await asyncio.wait_for(process.wait(), self._timeout_s)
            except TimeoutError:
                answered = os.lseek(lines, 0, os.SEEK_CUR)  # it is the child's position as well
                if answered < len(paths):
                    await self._leave(process, paths[answered], began_s)
                    return paths[answered]
            finally:
                process.kill(signal.SIGKILL)
                process.close()
        except Unsupported as error:  # a host without a shell
            _LOG.debug("paths of pods are not probed: %s", error)
        finally:
            os.close(lines)
        return None

    async def _leave(self, process: Process, path: str, began_s: float) -> None:
        """Kill a look that hangs; if that does not end it, remember where it is."""
        process.kill(signal.SIGKILL)
        end = asyncio.create_task(process.wait(), name=f"path probe at {path}")
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(end), _END_S)
            return
        if path in self._hung:
            end.cancel()
            return
        self._hung[path] = _Hung(began_s, end)
        end.add_done_callback(lambda _: self._hung.pop(path, None))


def may_hang(path: str) -> bool:
    """Whether a server that may be gone serves a file system on the way to a path. Blocks for the disk."""
    return bool(_without_safe([path]))


def needs_no_look(path: str, mountinfo: bytes) -> bool:
    """Whether no file system on the way to a path, links included, has a server that may be gone. Blocks for the disk.

    Those are the kernel's own in memory, and the disk of ``/``, without which the daemon does not go on either. Each
    component is judged before it is touched, and by all that is mounted there, as the table does not say what is on
    top. Not passed over: ``/proc``, whose links lead where their text does not say, and overlays, whose layers may be
    anywhere.
    """
    home = _mounts_at(b"/", mountinfo)
    ahead, here, links = os.fsencode(path).split(b"/")[::-1], b"", 0
    if not home or not _are_safe(home, home):
        return False
    while ahead:
        name = ahead.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            here = here.rpartition(b"/")[0]
            continue
        below = here + b"/" + name
        if not _are_safe(_mounts_at(below, mountinfo), home):
            return False
        try:
            target = os.readlink(below)  # noqa: PTH115  # in bytes
        except OSError as error:
            if error.errno != errno.EINVAL:  # nothing there, which is an answer
                return error.errno in (errno.ENOENT, errno.ENOTDIR)
            here = below
            continue
        if (links := links + 1) > _MAX_LINKS:
            return True
        ahead += target.split(b"/")[::-1]
        here = b"" if target.startswith(b"/") else here
    return True


def _without_safe(paths: list[str]) -> list[str]:
    mountinfo = Path("/proc/self/mountinfo").read_bytes()
    return [path for path in paths if not needs_no_look(path, mountinfo)]


def _mounts_at(point: bytes, mountinfo: bytes) -> list[tuple[bytes, bytes]]:
    """Return device number and type of each mount at a path; of a table with thousands of lines only these are read."""
    field, found, at = b" " + escape_mountinfo(point) + b" ", [], 0
    while (at := mountinfo.find(field, at)) >= 0:
        line = mountinfo[mountinfo.rfind(b"\n", 0, at) + 1 : mountinfo.find(b"\n", at)]
        words = line.split(b" ")
        if words[4] == field[1:-1]:
            found.append((words[2], line.partition(b" - ")[2].split(b" ")[0]))
        at += 1
    return found


def _are_safe(mounts: list[tuple[bytes, bytes]], home: list[tuple[bytes, bytes]]) -> bool:
    """No mount at all is as safe as what it is below."""
    return all(kind in _IN_MEMORY or (kind in _ON_DISK and (device, kind) in home) for device, kind in mounts)


def _describe(path: str, seconds: float) -> str:
    return f"{path} has not answered for {seconds:.0f} s: is its file system's server gone?"
