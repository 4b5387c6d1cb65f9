"""Joins the streams of a container by conmon's attach socket: a connection for each session.

The socket carries packets (SOCK_SEQPACKET): from conmon the output, each packet with the number 2 (stdout) or 3
(stderr) before it, and to conmon the input as it is. conmon waits for whoever does not read; so a session always reads,
keeps what its user has not fetched, up to a limit, and gives up beyond that.
"""

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from crinoid.core.api.buffers import BufferPool, BufferShare, ByteQueue
from crinoid.core.api.errors import FailedPrecondition, ResourceExhausted
from crinoid.core.api.sessions import AttachSession
from crinoid.core.api.values.runtime import AttachRequest, TerminalSize
from crinoid.plugins.runtimes.monitor.conmon_files import ConmonFiles

_STDOUT, _STDERR = 2, 3
_PACKET_BYTES = 1 << 15  # conmon's are of 8 KiB and one byte
_INPUT_BYTES = 1 << 13  # conmon takes up to 32 KiB, and would cut off the rest
_TURN_PACKETS = 4  # others on the loop, sessions like this among them, have their turn after so many
_RESERVE_BYTES = 1 << 18
_JOINED_BYTES = 1 << 17


async def attach(bundle: ConmonFiles, request: AttachRequest, buffer_bytes: int, buffers: BufferPool) -> AttachSession:
    """Join the streams of a container that has not ended. Raises FailedPrecondition when its conmon is gone.

    ``buffer_bytes`` is how far this session may be behind, ``buffers`` what all sessions hold together.
    """
    arguments = _monitor_arguments(bundle)
    connected = _connect(bundle)
    has_stdin = b"--stdin" in arguments
    ends_stdin = has_stdin and b"--leave-stdin-open" not in arguments
    return MonitoredAttach(
        connected,
        bundle.control,
        request if has_stdin else AttachRequest(stdin=False, stdout=request.stdout, stderr=request.stderr),
        _Limits(buffer_bytes, buffers, lingers=ends_stdin and not request.stdin),
    )


class _Limits:
    """``share``: of the daemon's memory; ``lingers``: the connection must outlive the session, as conmon takes its end
    for that of the input."""

    def __init__(self, buffer_bytes: int, buffers: BufferPool, *, lingers: bool) -> None:
        self.buffer_bytes = buffer_bytes
        self.buffers = buffers
        self.lingers = lingers


class MonitoredAttach(AttachSession):
    """One connection to conmon."""

    def __init__(self, connected: socket.socket, control: Path, request: AttachRequest, limits: _Limits) -> None:
        self._socket = connected
        self._control = control
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._share = limits.buffers.share(reserve_bytes=_RESERVE_BYTES, give_up=self._give_up)
        wanted = {_STDOUT: request.stdout, _STDERR: request.stderr}
        self._outputs = {number: _Output(self._share) for number in wanted if wanted[number]}
        self._input = _Input(connected) if request.stdin else None
        super().__init__(self._input, self._outputs.get(_STDOUT), self._outputs.get(_STDERR))
        self._loop.add_reader(connected, self._read)

    async def resize(self, size: TerminalSize) -> None:
        """See the base."""
        with contextlib.suppress(OSError):  # nobody reads: the container has ended
            control = os.open(self._control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(control, b"1 %d %d\n" % (size.height, size.width))
            finally:
                os.close(control)

    async def wait(self) -> None:
        """See the base."""
        await self._over.wait()

    async def close(self) -> None:
        """See the base."""
        if not self._over.is_set() and self._limits.lingers:
            self._share.close()
            self._outputs.clear()  # what comes is dropped; the reader on the loop keeps the connection alive
            self._over.set()
        else:
            self._end()
            self._share.close()

    def _read(self) -> None:
        """Take what has come, some packets at a time."""
        for _ in range(_TURN_PACKETS):
            try:
                packet = self._socket.recv(_PACKET_BYTES)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self._end()
                return
            output = self._outputs.get(packet[0])
            if output is not None:
                output.put(packet[1:])
        if self._share.size > self._limits.buffer_bytes:
            self._give_up()
        self._limits.buffers.relieve()

    def _give_up(self) -> None:
        """The user does not keep up. Rather than to hold up the container, the session ends, and what it kept is lost
        at once: the user may be as slow for hours to learn of it."""
        for output in self._outputs.values():
            output.lose()
        self._end()

    def _end(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            if self._input is not None:
                self._input.release()
            self._socket.close()
        for output in self._outputs.values():
            output.end()
        self._over.set()


class _Output:
    """What came of one stream and was not fetched yet."""

    def __init__(self, share: BufferShare) -> None:
        self._share = share
        self._queue = ByteQueue()
        self._ended = False
        self._lost = False
        self._changed = asyncio.Event()

    def put(self, piece: bytes) -> None:
        self._queue.put(piece)
        self._share.resize(len(piece))
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def lose(self) -> None:
        self._share.resize(-self._queue.size)
        self._queue.clear()
        self._lost = True

    async def read(self) -> bytes:
        """See ByteSource."""
        while not self._queue.size:
            if self._lost:
                raise ResourceExhausted("the session was ended: its reader was too slow, and output has been lost")
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._queue.take(_JOINED_BYTES)
        self._share.resize(-len(data))
        return data


class _Input:
    """The way to the container's standard input, by conmon."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """See ByteSink."""
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left[:_INPUT_BYTES]) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise BrokenPipeError(error.errno, f"the container takes no more input: {error.strerror}") from error

    async def close(self) -> None:
        """See ByteSink. conmon closes the container's standard input, where it has ``stdin_once``."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def release(self) -> None:
        """The connection is about to be closed."""
        self._loop.remove_writer(self._socket)
        self._wake()

    async def _writable(self) -> None:
        self._waiter = self._loop.create_future()
        self._loop.add_writer(self._socket, self._wake)
        try:
            await self._waiter
        finally:
            if self._socket.fileno() >= 0:
                self._loop.remove_writer(self._socket)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _connect(bundle: ConmonFiles) -> socket.socket:
    """Connect by way of the directory's descriptor: its path may be longer than a unix socket's may be."""
    directory = os.open(bundle.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connected.setblocking(False)
        connected.connect(f"/proc/self/fd/{directory}/attach")
    except OSError as error:
        connected.close()
        raise FailedPrecondition(
            f"nobody can attach: its monitor, conmon, does not answer ({error.strerror})"
        ) from error
    finally:
        os.close(directory)
    return connected


def _monitor_arguments(bundle: ConmonFiles) -> frozenset[bytes]:
    """conmon's own command line tells what it was made for."""
    processes = bundle.read_processes()
    if processes is None:
        return frozenset()
    try:
        return frozenset(Path(f"/proc/{processes.monitor_pid}/cmdline").read_bytes().split(b"\0"))
    except OSError:
        return frozenset()
