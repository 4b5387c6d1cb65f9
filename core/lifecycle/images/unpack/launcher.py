"""Starts unpackers, one a layer, by way of a process that forks them: ``forking``.

An interpreter with all that unpacking needs takes 30 ms to start, a fork of one 2 ms, and an image may have a hundred
layers. The forking process is started with the first layer, and ended when there was none for a while.
"""

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import crinoid
from crinoid.core.api.errors import ResourceExhausted
from crinoid.core.api.linux import process

LOG = logging.getLogger(__name__)
_PROGRAM = (
    "import sys; sys.path += sys.argv[1].split('\\n'); "
    "from crinoid.core.lifecycle.images.unpack.forking import main; main(sys.argv[2:])"
)
#: Have glibc keep the memory of a chunk for the next one: it would give each back, and the kernel zero it again.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
_IDLE_S = 10.0
_REAP_S = 5.0
_ANSWER_BYTES = 9 << 20
_WORDS_BYTES = 1 << 16
_PACKET_BYTES = 1 << 10


@dataclass(frozen=True, slots=True)
class Ended:
    """An unpacker that ended; ``exit_code`` is negative for a signal."""

    exit_code: int
    answer: bytes
    words: bytes


class Launcher:
    """Runs unpackers. Belongs to the event loop's thread; close it at the end."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._ends: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._forking: _Forking | None = None
        self._retirement: asyncio.TimerHandle | None = None

    async def run(self, arguments: Sequence[str], blob: int, target: int, inflight: int | None = None) -> Ended:
        """Run an unpacker to its end, with a descriptor of the blob and of the target directory, which stay the
        caller's.

        ``inflight``: an eventfd that counts the bytes of a blob that still grows. The unpacker is killed when the
        caller is cancelled. Raises ResourceExhausted when no process can be started.
        """
        # The answer goes into a file in memory, not a pipe: nobody has to read along, and a child that is killed in the
        # middle of it can't leave us waiting for the rest.
        with _Memory("answer", _ANSWER_BYTES) as answer, _Memory("words", _WORDS_BYTES) as words:
            self.warm_up()
            assert self._forking is not None
            forking, number = self._forking, next(self._numbers)
            ended = self._ends[number] = asyncio.get_running_loop().create_future()
            try:
                fds = [blob, answer.fd, words.fd, target, *([] if inflight is None else [inflight])]
                forking.send(["run", str(number), *arguments], fds)
                exit_code, last_words = await asyncio.shield(ended)
            except asyncio.CancelledError:
                # By its number: the pid is not ours to know, and might be another process's by now.
                forking.send(["kill", str(number)])
                await asyncio.wait({ended}, timeout=_REAP_S)  # it may write into the target until it is gone
                raise
            finally:
                del self._ends[number]
                if not self._ends:
                    self._retire_later()
            return Ended(exit_code, answer.read(), words.read() or last_words)

    def warm_up(self) -> None:
        """Start the forking process, unless it runs: a layer is on its way."""
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        if self._forking is None or self._forking.has_ended:
            self._forking = _Forking(self._on_end)
        if not self._ends:
            self._retire_later()

    async def close(self) -> None:
        """End the forking process, and with it every unpacker. Idempotent."""
        forking, self._forking = self._forking, None
        if self._retirement is not None:
            self._retirement.cancel()
        self._on_end(None, 255, b"it was told to end")
        if forking is not None:
            await forking.close()

    def _on_end(self, number: int | None, exit_code: int, last_words: bytes) -> None:
        """Take in that an unpacker has ended, or, without a number, that all have."""
        for one, ended in self._ends.items():
            if number in (None, one) and not ended.done():
                ended.set_result((exit_code, last_words))

    def _retire_later(self) -> None:
        def retire() -> None:
            self._retirement = None
            if self._forking is not None and not self._ends:
                self._forking.leave()
                self._forking = None

        if self._retirement is not None:
            self._retirement.cancel()
        self._retirement = asyncio.get_running_loop().call_later(_IDLE_S, retire)


class _Forking:
    """One forking process, from its start to its end."""

    def __init__(self, on_end: Callable[[int | None, int, bytes], None]) -> None:
        self._on_end = on_end
        self._has_left = False
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._words = _Memory("words", _WORDS_BYTES)
        with theirs:
            self._ours.setblocking(False)
            # -I -S: no site, no user's modules, no variables; what it needs comes by the search path.
            # Where crinoid is comes first, then where its codecs may be; the standard library stands before all of it.
            search_path = [str(Path(crinoid.__file__).parent.parent), *(path for path in sys.path if path)]
            command = [sys.executable, "-I", "-S", "-c", _PROGRAM, "\n".join(search_path), str(os.getpid())]
            try:  # SEQPACKET keeps packets whole, with the descriptors that belong to each
                self._process = process.spawn(command, env=_ENVIRONMENT, fds={0: theirs.fileno(), 2: self._words.fd})
            except BaseException:
                self._ours.close()
                self._words.close()
                raise
        self._end = asyncio.create_task(self._watch(), name="unpackers")
        asyncio.get_running_loop().add_reader(self._ours, self._receive)

    @property
    def has_ended(self) -> bool:
        """Return whether it is gone."""
        return self._end.done()

    def send(self, parts: Sequence[str], fds: Sequence[int] = ()) -> None:
        """Send a packet. One to a process that is gone is lost: its end is told anyhow."""
        packet = b"\0".join(os.fsencode(part) for part in parts)
        try:
            socket.send_fds(self._ours, [packet], fds)
        except BlockingIOError as error:
            raise ResourceExhausted("too many layers wait to be unpacked") from error
        except OSError:
            LOG.debug("the process that forks unpackers is gone")

    def leave(self) -> None:
        """Have it end, and don't wait; its end is no news, then. Idempotent."""
        if not self._has_left:
            self._has_left = True
            asyncio.get_running_loop().remove_reader(self._ours)
            self._ours.close()

    async def close(self) -> None:
        """Have it end, and wait for that."""
        self.leave()
        await asyncio.wait({self._end}, timeout=_REAP_S)

    async def _watch(self) -> None:
        exit_code = await self._process.wait()
        self._process.close()
        if not self._has_left:
            self.leave()
            self._on_end(None, exit_code, self._words.read())
        self._words.close()

    def _receive(self) -> None:
        """Take in one end of an unpacker; the socket's own end is that of the process, which ``_watch`` sees."""
        try:
            packet = self._ours.recv(_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            asyncio.get_running_loop().remove_reader(self._ours)
            return
        number, status = packet.split()
        self._on_end(int(number), os.waitstatus_to_exitcode(int(status)), b"")


class _Memory(contextlib.AbstractContextManager["_Memory"]):
    """A file in memory that another process writes into, at most ``limit`` bytes."""

    def __init__(self, name: str, limit: int) -> None:
        # Sealed against growing: the child may write what it likes, but no more than this.
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, limit)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)

    def read(self) -> bytes:
        """Return what was written: the writer shares our position."""
        return os.pread(self.fd, os.lseek(self.fd, 0, os.SEEK_CUR), 0)

    def close(self) -> None:
        os.close(self.fd)

    def __exit__(self, *_: object) -> None:
        self.close()
