"""How a new daemon takes over from the one that runs, without a client's call failing: both sides of it.

The new one (``take_over``) loads its configuration and drivers first, so that what is wrong is found while the old one
serves. It listens at the socket's path, where calls wait, and says ``go`` on a socket in ``run`` that only root can
open. The old one (``Handover``) passes on what comes over its connections from now on, lets calls under way end, closes
the state and the directories, and says ``gone``. It lives on until its last client has moved (``cri.forwarding``).

The connection stays until the new one says ``up``: should it end before that, the old one serves again. A successor of
an earlier version does not say ``stay``, and closes the connection once it has all.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError, CrinoidError, Unavailable
from crinoid.core.api.linux import rights
from crinoid.core.config.models import Config
from crinoid.core.daemon.directories import TAKEOVER_SOCKET

LOG = logging.getLogger(__name__)
_GO, _STAY, _GONE, _UP, _WHO = b"go\n", b"stay\n", b"gone\n", b"up\n", b"who\n"
Command = Callable[[str], Awaitable[str]]
"""Something that root asks of the daemon: takes what follows its name on the line, and returns the answer."""
_BEYOND_GRACE_S = 30.0
"""How much longer than the calls under way the old daemon may take to let go of everything."""
_ANSWER_S = 2.0
_COMMAND_S = 60.0
_DYING_S = 10.0
"""How long a successor whose connection has ended may take to end itself."""
_CREDENTIALS = struct.Struct("iII")  # struct ucred, unix(7)


def _place(config: Config) -> Path:
    return config.run / TAKEOVER_SOCKET


@contextlib.contextmanager
def only_successor(config: Config) -> Iterator[None]:
    """Keep others from taking over until this one has, or has ended: a second would put its socket in the place of the
    first one's and end without the state, and then nobody could reach the first.

    The lock is one that only root can have. Raises ConfigurationError.
    """
    try:
        descriptor = os.open(config.run / "pods", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # no daemon has run here
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another crinoid is taking over from the daemon that runs over {config.run}: wait for it"
            ) from error
        yield
    finally:
        os.close(descriptor)


class Handover:
    """The old daemon's side: listens for a successor.

    ``requested`` is set when one is ready, ``lost`` when it has ended and had not served yet, ``served`` when it does.
    The socket is root's way to the daemon for ``commands``, too.
    """

    def __init__(self, config: Config, pid: int) -> None:
        self.requested, self.lost, self.served = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.commands: dict[str, Command] = {}
        self._path = _place(config)
        self._pid = pid
        self._server: asyncio.Server | None = None
        self._successor: asyncio.StreamWriter | None = None

    async def listen(self) -> None:
        """Be there for a successor. Nobody else than root can connect, by the umask; ``run`` is locked by us."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        rights.correct(self._path, rights.FILE)

    def finish(self) -> None:
        """Tell the successor that all is let go of, and make room for its own socket."""
        self.close()
        if self._successor is not None:
            self._successor.write(_GONE)  # which raises nothing: if it is gone, ``lost`` tells

    def dismiss(self) -> None:
        """End the successor, which does not serve yet: this daemon was told to stop, and so is the other."""
        if self._successor is not None and not self.served.is_set() and not self._successor.is_closing():
            with contextlib.suppress(ProcessLookupError):
                os.kill(_peer_of(self._successor), signal.SIGTERM)

    def close(self) -> None:
        """Be there no more. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line == _GO and not self.requested.is_set():
            self._successor = writer
            self.requested.set()
            await self._follow(reader, _peer_of(writer))
            writer.close()
            return
        name, _, rest = line.decode(errors="replace").strip().partition(" ")
        if line == _WHO:
            writer.write(f"{self._pid}\n".encode())
        elif (command := self.commands.get(name)) is not None:
            try:
                answer = f"done\n{await command(rest)}"
            except CrinoidError as error:
                answer = f"refused\n{error.message}"
            except Exception as error:  # whoever asked would wait for an answer
                LOG.error("the command %s has failed", name, exc_info=error)
                answer = f"refused\n{name} has failed: {type(error).__name__}: {error}"
            writer.write(answer.encode())
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async def _follow(self, reader: asyncio.StreamReader, pid: int) -> None:
        """See whether the successor serves in the end; if not, it has let go of socket and locks once it has ended."""
        with contextlib.suppress(OSError):
            if await reader.readline() != _STAY:
                return
            if await reader.readline() == _UP:
                self.served.set()
                return
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            await _wait_for_end(pid)
        self.lost.set()


class Predecessor:
    """The new daemon's side: the daemon that runs."""

    def __init__(self, config: Config, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self._limit_s = config.server.graceful_stop_s + _BEYOND_GRACE_S
        self._reader, self._writer = streams

    @classmethod
    async def find(cls, config: Config) -> "Predecessor | None":
        """Connect to the daemon that runs over the same ``run``; ``None``: there is none, or it is an earlier one."""
        try:
            return cls(config, await asyncio.open_unix_connection(_place(config)))
        except OSError:
            return None

    async def send_away(self) -> None:
        """Have it let go of everything; it serves again if this process ends before ``say_up``."""
        LOG.info("taking over from the daemon that runs")
        self._writer.write(_GO + _STAY)
        try:
            async with asyncio.timeout(self._limit_s):
                answer = await self._reader.readline()
        except (TimeoutError, OSError):
            answer = b""
        if answer != _GONE:  # it has ended, maybe: the locks will tell
            LOG.warning("the daemon that ran has not said that it is done within %g s, or has ended", self._limit_s)

    def say_up(self) -> None:
        """Tell it that this daemon serves: from here on it is needed no more but to pass calls on."""
        self._writer.write(_UP)
        self._writer.close()


def _peer_of(writer: asyncio.StreamWriter) -> int:
    """Return the process id of who has connected."""
    connection: socket.socket = writer.get_extra_info("socket")
    pid, _, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)


async def _wait_for_end(pid: int) -> None:
    """Wait until a process has ended, reaped or not. Raises ProcessLookupError, TimeoutError."""
    loop, ended, pidfd = asyncio.get_running_loop(), asyncio.Event(), os.pidfd_open(pid)
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(_DYING_S):
            await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def serving_pid(config: Config, limit_s: float = _ANSWER_S) -> int | None:
    """Return the process id of the daemon that serves over this ``run``; ``None`` where none answers in time.

    Where there is none the answer comes at once: time is what a daemon takes that has much to do.
    """
    answer = await _ask(config, _WHO.decode().strip(), limit_s)
    return int(answer) if answer.strip().isdigit() else None


async def command(config: Config, line: str) -> str:
    """Have the daemon that runs execute a command, and return its answer.

    Raises ConfigurationError with what it refuses for, and Unavailable where no daemon answers, or one without it.
    """
    outcome, _, answer = (await _ask(config, line, _COMMAND_S)).partition("\n")
    if outcome == "refused":
        raise ConfigurationError(answer)
    if outcome != "done":
        raise Unavailable(f"no daemon that knows this runs over {config.run}")
    return answer


async def _ask(config: Config, line: str, limit_s: float) -> str:
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_unix_connection(_place(config))
            writer.write(f"{line}\n".encode())
            answer = await reader.read()
            writer.close()
    except (TimeoutError, OSError):
        return ""
    return answer.decode()
