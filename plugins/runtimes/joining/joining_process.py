"""The daemon's side of ``helper``: starts it when there is something to execute, and ends it when there was nothing for
a while."""

import asyncio
import contextlib
import functools
import itertools
import logging
import marshal
import os
import socket
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import crinoid
from crinoid.core.api.errors import DriverError, ResourceExhausted
from crinoid.core.api.linux import mount, process
from crinoid.plugins.runtimes.joining import child, helper

LOG = logging.getLogger(__name__)
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from crinoid.plugins.runtimes.joining.helper import main; main()"
_IDLE_S = 120.0
_PACKET_BYTES = 1 << 10


@dataclass(slots=True)
class Joining:
    """One exec process on its way: its id once it was forked (0: it was not), then its wait status.

    ``kill`` ends it, and it alone, wherever it is. Idempotent.
    """

    kill: Callable[[], None]
    started: "asyncio.Future[int]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: "asyncio.Future[int]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class JoiningProcess:
    """Has exec processes forked. Belongs to the event loop's thread, and ends with the last reference to it."""

    def __init__(self) -> None:
        self._helper: _Helper | None = None
        self._retirement: asyncio.TimerHandle | None = None

    def start(self, request: Mapping[str, object], timeout_s: float, fds: Sequence[int]) -> Joining:
        """Begin to execute what ``request`` describes (see ``child``), with the descriptors that ``child`` names.

        They stay the caller's. Raises OSError and CrinoidError where the helper can't be started or takes no more.
        """
        if self._helper is None or self._helper.has_ended:
            self._helper = _Helper()
        joining = self._helper.send(request, timeout_s, fds)
        if self._retirement is not None:
            self._retirement.cancel()
        self._retirement = asyncio.get_running_loop().call_later(_IDLE_S, self._retire)
        return joining

    def close(self) -> None:
        """Let the helper end, with the last of its children. Idempotent."""
        if self._retirement is not None:
            self._retirement.cancel()
        if self._helper is not None:
            self._helper.leave()
            self._helper = None

    def _retire(self) -> None:
        if self._helper is not None and self._helper.is_busy:
            self._retirement = asyncio.get_running_loop().call_later(_IDLE_S, self._retire)
        else:
            self._retirement = None
            self.close()


class _Helper:
    """One helper, from its start to its end."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._under_way: dict[int, Joining] = {}
        self.has_ended = False
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        weakref.finalize(self, self._ours.close)
        self._ours.setblocking(False)
        with theirs:
            self._process = _spawn(theirs.fileno())
        asyncio.get_running_loop().add_reader(self._ours, self._receive)

    @property
    def is_busy(self) -> bool:
        """Return whether something is under way."""
        return bool(self._under_way)

    def send(self, request: Mapping[str, object], timeout_s: float, fds: Sequence[int]) -> Joining:
        """Send a request."""
        number = next(self._numbers)
        joining = Joining(functools.partial(self._kill, number))
        description = os.memfd_create("exec", os.MFD_CLOEXEC)
        try:
            with open(description, "wb", closefd=False) as file:
                marshal.dump(dict(request), file)
            socket.send_fds(self._ours, [b"%d %a" % (number, timeout_s)], [description, *fds])
        except BlockingIOError as error:
            raise ResourceExhausted("too many exec processes are about to be started") from error
        except OSError as error:
            raise DriverError(f"the process that starts exec processes is gone: {error.strerror}") from error
        finally:
            os.close(description)
        self._under_way[number] = joining
        return joining

    def _kill(self, number: int) -> None:
        if number in self._under_way:
            with contextlib.suppress(OSError):  # it has no room, or has gone
                self._ours.send(b"%d %b" % (number, helper.KILL))

    def leave(self) -> None:
        """Let it end, once the last of its children has, and don't wait. What is under way is lost. Idempotent."""
        if self.has_ended:
            return
        self.has_ended = True
        asyncio.get_running_loop().remove_reader(self._ours)
        self._ours.close()
        self._process.close()
        for joining in self._under_way.values():
            for future in (joining.started, joining.ended):
                if not future.done():
                    future.set_exception(DriverError("the process that starts exec processes has ended"))
                    future.exception()  # nobody may wait for it
        self._under_way.clear()

    def _receive(self) -> None:
        try:
            packet = self._ours.recv(_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            LOG.warning("the process that starts exec processes has ended; the next exec starts another")
            self.leave()
            return
        number, what, value = packet.split()
        joining = self._under_way[int(number)]
        future = joining.started if what == helper.STARTED else joining.ended
        if not future.done():
            future.set_result(int(value))
        if what == helper.ENDED:
            del self._under_way[int(number)]


def _spawn(channel: int) -> process.Process:
    """Start the helper from a mount of Python's program that can't be written through, whoever may open it there.

    What a container has executed can be the program of the process that executed it, ``/proc/self/exe``, and open
    that later (CVE-2019-5736). The descriptor of the mount may be closed once the program runs: it keeps the mount.
    """
    program = Path(sys.executable).resolve()
    tree = mount.clone_read_only(program)
    try:
        place = str(Path(crinoid.__file__).parent.parent)
        # No site, no modules of users, no directory of its own; PYTHONHOME, as the program is apart from its files.
        command = [f"/proc/{os.getpid()}/fd/{tree}", "-s", "-S", "-P", "-c", _PROGRAM, place]
        return process.spawn(command, env={"PYTHONHOME": sys.base_prefix}, fds={child.STDIN: channel})
    finally:
        os.close(tree)
