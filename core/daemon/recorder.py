"""Records what a running daemon is asked, and what it asks of its plugins, for ``crinoid trace``; docs/trace.md.

``slots.calls`` and ``cri.calls`` see every call; while there is a tape in the daemon's instruments, they tell it. What
comes here on the loop is taken down as JSON and handed to a thread, which takes out secrets, packs and writes. A disk
that is slow or full, or a node that is too busy, costs events, which are counted, and never holds up a call.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.values.image import BlobRequest
from crinoid.core.daemon.redaction import TraceRedaction
from crinoid.core.daemon.trace_file import TraceWriter
from crinoid.core.slots import values
from crinoid.core.slots.instruments import Ended
from crinoid.core.slots.roles import ROLES

LOG = logging.getLogger(__name__)
Json = dict[str, Any]
SMALL_BYTES = 64 << 10
"""Blobs up to this size are part of a trace: configurations of images, without which a pull can't be replayed."""
_MOST_WAITING = 4000
"""Events that the thread may be behind."""
_FLUSH_S = 1.0
_END_S = 10.0

_rpc: ContextVar[int] = ContextVar("rpc that is recorded", default=0)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line to be; head and tail are no calls, and come whatever the file has taken."""

    make: Callable[[], Json]
    is_call: bool = True


class Recorder:
    """One trace, from ``begin`` to ``end``. A ``Tape``; belongs to the event loop's thread."""

    def __init__(
        self, path: Path, size_bytes: int, redaction: TraceRedaction, full: Callable[[], None], after: int = 0
    ) -> None:
        """``full`` is called on the loop once the file has taken what it may, or can't be written. Calls are numbered
        from ``after`` on: above what an earlier tape has given. Raises OSError."""
        self.path = path
        self._writer = TraceWriter(path, size_bytes)
        self._redaction = redaction
        self._loop, self._full = asyncio.get_running_loop(), full
        self._waiting: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self._began_s = time.monotonic()
        self._count = self._first = after
        self._open: set[int] = set()
        self.small: set[str] = set()
        """The small blobs that were fetched."""
        self.lost = 0
        self.fault = ""
        self._thread = threading.Thread(target=self._write, name="trace", daemon=True)
        self._thread.start()

    @property
    def events(self) -> int:
        """How many calls were taken down."""
        return self._count - self._first

    @property
    def size_bytes(self) -> int:
        """How much of the disk the file takes so far."""
        return self._writer.size_bytes

    @property
    def last(self) -> int:
        """The number of the last call."""
        return self._count

    def write(self, event: Json) -> None:
        """Take down a line that is no call: head and tail."""
        self._waiting.put(_Line(lambda: event, is_call=False))

    async def end(self, tail: Json) -> None:
        """Write the tail and close the file; what is left of the queue goes first."""
        self._waiting.put(_Line(lambda: tail | {"lost": self.lost}, is_call=False))
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join, _END_S)

    def begin_rpc(self, rpc: str, request: Callable[[], Json]) -> int:
        """Take down a request; the hooks that it calls from here on are its own. ``request`` is called in a thread."""
        number = self._next()
        _rpc.set(number)
        self._add(lambda: {"n": number, "rpc": rpc, "request": request()})
        return number

    def end_rpc(self, number: int, seconds: float, code: str, message: str, answer: Callable[[], Json | None]) -> None:
        """Take down what came of a request that ``begin_rpc`` has counted; of any other, nothing."""
        if number in self._open:
            self._open.discard(number)
            ended: Json = {"end": number, "s": round(seconds, 6), "code": code, "message": message}
            self._add(lambda: ended | {"answer": answer()})

    def begin_hook(self, role: str, slot: str, hook: str, arguments: Mapping[str, object]) -> int:
        """Take down that a hook is called."""
        return self._begin_hook(role, slot, hook, arguments, {})

    def end_hook(self, number: int, role: str, slot: str, hook: str, ended: Ended) -> None:
        """Take down what came of a hook; one that began before the recording is taken down as a whole."""
        if number not in self._open:
            number = self._begin_hook(role, slot, hook, ended.arguments, {"early": True})
        self._open.discard(number)
        event: Json = {"end": number, "s": round(ended.seconds, 6)}
        if isinstance(ended.error, CrinoidError):
            event["error"] = values.dump_error(ended.error)
        elif ended.error is not None:
            event["cancelled"] = True
        else:
            with self._understood(event):
                event["answer"] = values.dump_answer(ROLES[role].specification, hook, ended.answer)
        self._add(lambda: event)

    def _begin_hook(self, role: str, slot: str, hook: str, arguments: Mapping[str, object], more: Json) -> int:
        number = self._next()
        if isinstance(request := arguments.get("request"), BlobRequest) and request.blob.size <= SMALL_BYTES:
            self.small.add(request.blob.digest)
        event: Json = {"n": number, "in": _rpc.get(), "role": role, "slot": slot, "hook": hook, **more}
        with self._understood(event):
            event["arguments"] = values.dump_arguments(ROLES[role].specification, hook, arguments)
        self._add(lambda: event)
        return number

    def _next(self) -> int:
        self._count += 1
        self._open.add(self._count)
        return self._count

    @contextlib.contextmanager
    def _understood(self, event: Json) -> Iterator[None]:
        """A value that can't be taken down is a defect, and none that a request should suffer from."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is
            event["unreadable"] = f"{type(error).__name__}: {error}"[:300]

    def _add(self, make: Callable[[], Json]) -> None:
        if self._waiting.qsize() >= _MOST_WAITING:
            self.lost += 1
            return
        at = round(time.monotonic() - self._began_s, 6)
        self._waiting.put(_Line(lambda: {"t": at, **make()}))

    def _write(self) -> None:
        """Be the thread."""
        flushed_s, is_full = time.monotonic(), False
        try:
            while (line := self._waiting.get()) is not None:
                if is_full and line.is_call:
                    self.lost += 1
                else:
                    self._writer.write(self._redaction.redact(line.make()))
                if not is_full and self._writer.is_full:
                    is_full = True
                    self._loop.call_soon_threadsafe(self._full)
                if time.monotonic() - flushed_s > _FLUSH_S:
                    self._writer.flush()
                    flushed_s = time.monotonic()
        except Exception as error:  # noqa: BLE001  # a recording is worth no failure of the daemon
            self.fault = f"{type(error).__name__}: {error}"
            LOG.error("the trace %s can't be written: %s", self.path, self.fault)
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._full)
        finally:
            with contextlib.suppress(OSError):
                self._writer.close()
