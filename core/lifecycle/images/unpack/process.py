"""One short-lived child of the daemon: spawned with given descriptors, its output read, always reaped.

``os.posix_spawn`` and a pidfd on the loop, no thread and no fork of the daemon.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence

_READ_BYTES = 1 << 16
_FIRST_SAFE_FD = 64  # dup2 onto a low number must not overwrite one that is still to be given
_REAP_S = 10.0


class ChildProcess:
    """Runs one program to its end. ``fds`` maps the child's descriptor numbers to ours; 1 is not among them.

    The child gets an empty environment and nothing else that is open here.
    """

    def __init__(self, arguments: list[str], fds: Mapping[int, int], output_fds: Sequence[int]) -> None:
        self._output, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_end, True)
        given = {**fds, **dict.fromkeys(output_fds, write_end)}
        try:
            self._pid = _spawn(arguments, given)
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(write_end)
        self._pidfd = os.pidfd_open(self._pid)
        self._exited = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    async def read_to_end(self) -> tuple[int, bytes]:
        """Return the exit code (negative: the signal) and all output. Cancelled, it kills the child and reaps it."""
        try:
            output = await self._read()
            return await asyncio.shield(self._exited), output
        finally:
            await self._kill()

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        pieces: list[bytes] = []
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._output, _read_some, self._output, pieces, ended)
        try:
            await ended
        finally:
            loop.remove_reader(self._output)
            os.close(self._output)
        return b"".join(pieces)

    async def _kill(self) -> None:
        """Kill the child if it lives and wait for its end, for a while: a sync to a dead disk can't be killed."""
        if self._exited.done():
            return
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_S):
                await asyncio.shield(self._exited)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        os.close(self._pidfd)
        self._exited.set_result(os.waitstatus_to_exitcode(status))


def _spawn(arguments: list[str], fds: Mapping[int, int]) -> int:
    high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_SAFE_FD) for number, fd in fds.items()}
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in high.items()]
    try:
        return os.posix_spawn(arguments[0], arguments, {}, file_actions=actions, setsigmask=(), setpgroup=0)
    finally:
        for fd in high.values():
            os.close(fd)


def _read_some(fd: int, pieces: list[bytes], ended: "asyncio.Future[None]") -> None:
    if ended.done():
        return
    try:
        piece = os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return
    if piece:
        pieces.append(piece)
    else:
        ended.set_result(None)
