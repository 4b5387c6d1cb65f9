"""Calls both ways over one unix socket: frames of JSON with bytes and descriptors beside it.

A frame is two big-endian numbers of 32 bits, the lengths of what follows: a JSON object in UTF-8, and bytes that it
refers to. Descriptors come with a frame's first byte (SCM_RIGHTS). Messages: see docs/isolation.md. Used by both sides:
by the kernel's in its event loop and, before it has one and at each start of the child, blocking; by the child's in its
loop and, for what is no coroutine, blocking.
"""

import array
import asyncio
import contextlib
import contextvars
import itertools
import json
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from crinoid.core.api.errors import CrinoidError, DriverError, ResourceExhausted, Unavailable
from crinoid.core.api.finishing import finish
from crinoid.core.api.linux.bulkheads import current_behalf, on_behalf_of
from crinoid.core.api.sessions import Session
from crinoid.core.api.timeline import MAX_STEPS, Act, Step, acting, graft
from crinoid.core.slots.calls import translate
from crinoid.core.slots.isolation.forms import Incoming, Json, Outgoing, plain
from crinoid.core.slots.isolation.interfaces import Exported, LiveObjects, Method
from crinoid.core.slots.isolation.wire_errors import read_error, write_error

_HEAD = struct.Struct("!II")
_MAX_JSON_BYTES, _MAX_BESIDE_BYTES = 16 << 20, 64 << 20
_MAX_BACKLOG_BYTES = 128 << 20
_PIECE_BYTES, _MOST_PIECE_BYTES = 64 << 10, 1 << 20  # malloc(3) gives larger pieces back to the kernel each time
_MAX_DESCRIPTORS = 16
_MAX_TASKS = 4096
_TURN_S = 0.005
"""How long frames of one socket are taken before others have their turn, and for how long they have it."""
_MAX_CALL_VALUES, _MAX_VALUES = 20_000, 250_000
"""How many values a driver's frame may have: a call, which is read in the loop's turn, and an answer."""
_LONG_S, _MOST_WORDS, _ID_CHARACTERS = 1e9, 16, 100
"""What a stage of a driver's may last, and of how many notes and ids, and how long ones, it may tell."""
_MAX_PUT_OFF_BYTES, _MESSAGE_BYTES = 4 << 20, 512
"""What may come before an answer that a thread waits for, such as the log of a driver that is made; and what each
message costs there beside its bytes."""


class ConnectionLostError(Unavailable):
    """The other side has gone."""


class _ProtocolError(Exception):
    """What came is not of the protocol."""


@dataclass(slots=True)
class _Call:
    """A call of ours that waits for its answer."""

    answered: "asyncio.Future[tuple[Json, Incoming]]"
    context: contextvars.Context
    """What the other side calls on behalf of this call belongs to it."""
    method: Method


@dataclass(slots=True)
class _Unsent:
    content: memoryview
    descriptors: list[int]


_call_here: "ContextVar[tuple[Channel, int] | None]" = ContextVar("isolation call", default=None)
"""The call that is being served: of which channel, and its number."""


class Channel:
    """One connection. All but ``notify`` and ``release`` is for the loop's thread."""

    def __init__(
        self, connection: socket.socket, root: Exported, on_end: Callable[[str], None], *, is_drivers: bool = False
    ) -> None:
        """``root`` is what the other side calls first; ``on_end`` hears once that the connection is over, and why.

        ``is_drivers``: it is the driver's end. With each answer goes what was recorded of its call
        (``core/api/timeline``), and whatever comes is read at once, which the kernel's loop has no time for.
        """
        connection.setblocking(False)
        self._socket = connection
        self._on_end = on_end
        self._is_drivers = is_drivers
        self._objects = LiveObjects(self, root)
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[_Unsent] = deque()
        self._unsent_bytes = 0
        self._is_flushing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._now = 0
        self._put_off: deque[tuple[Json, Incoming]] = deque()
        self._is_paused = False
        self._reading: asyncio.Task[None] | None = None
        """Reads a frame that is too large for the loop's turn; those after it wait."""
        self.ended: str | None = None
        """Why it is over."""

    def attach(self) -> None:
        """Be served by the running loop from now on."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._is_paused = False
        self._loop.add_reader(self._socket, self._readable)
        self._flush()
        self._take_put_off()

    def end(self, why: str) -> None:
        """Hang up: calls fail, and what the other side asked for is cancelled. Idempotent."""
        if self.ended is not None:
            return
        self.ended = why
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        self._socket.close()
        self._objects.clear()
        for descriptor in itertools.chain(self._descriptors, *(one.descriptors for one in self._unsent)):
            os.close(descriptor)
        for _, incoming in self._put_off:
            incoming.close()
        self._put_off.clear()
        self._descriptors.clear()
        self._unsent.clear()
        for call in self._calls.values():
            if not call.answered.done() and not call.answered.get_loop().is_closed():
                call.answered.set_exception(ConnectionLostError(why))
                call.answered.exception()  # it may be that nobody asks any more
        for task in self._tasks.values():
            task.cancel()
        self._on_end(why)

    # Calls of ours

    async def call(self, number: int, name: str, method: Method, arguments: Mapping[str, object]) -> Any:
        """Call a method of an object of the other side; raise what it raises, ConnectionLostError when there is none.

        Cancelled, the other side is told. A call of the root (a hook) then waits for its end, and an answer that comes
        counts, but for a session or stream, which is closed; a second cancellation ends the wait, as for any other call
        the first.
        """
        self._check_up()
        call = _Call(asyncio.get_running_loop().create_future(), contextvars.copy_context(), method)
        sent_s = time.monotonic()
        key = self._request(number, name, method, arguments, call)
        try:
            was_cancelled = await self._answered(key, call.answered, is_patient=number == 0)
        except asyncio.CancelledError:
            if call.answered.done() and call.answered.exception() is None:  # it has come in the same turn
                call.answered.result()[1].close()
            raise
        finally:
            self._calls.pop(key, None)
        message, incoming = call.answered.result()
        with _closing(incoming):
            graft(_read_steps(message.get("steps")), sent_s)
            answer = incoming.answer if incoming.is_read else _open(message, incoming, method)
        if was_cancelled and isinstance(answer, Session | AsyncIterator):
            await finish(_close(answer))  # nobody else would, as with a driver in the daemon that is cancelled
            raise asyncio.CancelledError
        return answer

    def call_now(self, number: int, name: str, method: Method, arguments: Mapping[str, object]) -> Any:
        """Call, and block until the answer is there: nothing else is served meanwhile."""
        return self.call_within(30.0, number, name, method, arguments)

    def call_within(
        self, limit_s: float, number: int, name: str, method: Method, arguments: Mapping[str, object]
    ) -> Any:
        """As ``call_now``; raises DriverError when there is no answer in time."""
        self._check_up()
        self._now = self._request(number, name, method, arguments, None)
        deadline_s, put_off_bytes = time.monotonic() + limit_s, 0
        try:
            while True:
                self._flush()
                for message, incoming in self._frames():
                    if message.get("answer") == self._now:
                        with _closing(incoming):
                            return _open(message, incoming, method)
                    self._put_off.append((message, incoming))
                    if (put_off_bytes := put_off_bytes + incoming.size + _MESSAGE_BYTES) > _MAX_PUT_OFF_BYTES:
                        raise _ProtocolError(f"more than {_MAX_PUT_OFF_BYTES} bytes of messages before its answer")
                if (left_s := deadline_s - time.monotonic()) <= 0:
                    raise DriverError(f"no answer to {name} within {limit_s:g} s")
                wanted = select.POLLIN | (select.POLLOUT if self._unsent else 0)
                poll = select.poll()
                poll.register(self._socket, wanted)
                if poll.poll(left_s * 1000):
                    self._receive()
                self._check_up()
        except _ProtocolError as error:
            self.end(f"it does not speak the protocol: {error}")
            raise ConnectionLostError(str(self.ended)) from error
        finally:
            self._now = 0
            if self._loop is not None:
                self._loop.call_soon(self._take_put_off)

    def notify(self, number: int, name: str, method: Method, arguments: Mapping[str, object]) -> None:
        """Call without an answer; from any thread."""
        if self.ended is None:
            self._in_loop(lambda: self._request(number, name, method, arguments, None, is_asked=False))

    def release(self, number: int) -> None:
        """Say that an object is not going to be called any more; from any thread."""
        if self.ended is None:
            self._in_loop(lambda: self._send({"release": number}, None))

    def _in_loop(self, act: Callable[[], object]) -> None:
        if threading.get_ident() == self._thread or self._loop is None:
            act()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(act)

    def _request(
        self,
        number: int,
        name: str,
        method: Method,
        arguments: Mapping[str, object],
        call: _Call | None,
        *,
        is_asked: bool = True,
    ) -> int:
        if self.ended is not None:
            return 0
        out = Outgoing(self._objects)
        key = next(self._numbers) if is_asked else 0
        message: dict[str, Json] = {"object": number, "method": name, "arguments": method.write(arguments, out)}
        message |= {"call": key} if is_asked else {}
        if (here := _call_here.get()) is not None and here[0] is self:
            message["during"] = here[1]
        if (behalf := current_behalf()).owner:
            message["behalf"] = [behalf.owner, behalf.subject]
        if call is not None:
            self._calls[key] = call
        try:
            self._send(message, out)
        except BaseException:
            self._calls.pop(key, None)
            raise
        return key

    async def _answered(self, key: int, answered: "asyncio.Future[tuple[Json, Incoming]]", *, is_patient: bool) -> bool:
        """Wait for an answer, or for what comes of a cancellation; return whether there was one."""
        is_cancelled = False
        while not answered.done():
            try:
                await asyncio.wait({answered})
            except asyncio.CancelledError:
                if answered.done() and is_patient:
                    return True
                if self.ended is None and not is_cancelled:
                    self._send({"cancel": key}, None)
                if is_cancelled or not is_patient:
                    raise
                is_cancelled = True
        return is_cancelled

    def _check_up(self) -> None:
        if self.ended is not None:
            raise ConnectionLostError(self.ended)

    # Calls of the other side

    def _take(self, message: Json, incoming: Incoming) -> None:
        """Take a message."""
        match message:
            case {"answer": int(key)}:
                call = self._calls.get(key)
                if call is not None and not call.answered.done():
                    call.answered.set_result((message, incoming))
                else:
                    incoming.close()
            case {"object": number, "method": str(name), "arguments": arguments}:
                self._take_call(message.get("call"), (number, name, arguments), message, incoming)
            case {"cancel": int(key)}:
                incoming.close()
                if (task := self._tasks.get(key)) is not None:
                    task.cancel()
            case {"release": int(number)}:
                incoming.close()
                self._objects.drop(number)
            case _:
                incoming.close()
                raise _ProtocolError(f"a message of no known kind: {str(message)[:200]}")

    def _take_call(self, key: Json, asked: tuple[Json, str, Json], message: Json, incoming: Incoming) -> None:
        number, name, written = asked
        try:
            if len(self._tasks) >= _MAX_TASKS:
                raise ResourceExhausted(f"{_MAX_TASKS} calls are under way already")
            exported = self._objects[number]
            method = exported.interface.method(name)
            arguments = method.read(written, incoming)
            if not method.is_coroutine:
                with _closing(incoming):
                    answer = exported.invoke(name, arguments)
                if key is not None:
                    self._answer(key, method, answer, ())
                return
        except Exception as error:  # noqa: BLE001  # whoever called is told
            incoming.close()
            if isinstance(key, int):
                self._send({"answer": key, "error": write_error(translate(error))}, None)
            return
        if not isinstance(key, int) or key in self._tasks or not isinstance(message.get("during", 0), int):
            incoming.close()
            raise _ProtocolError(f"{key!r:.100} is no number of a new call, or what it is made during is none of ours")
        during = self._calls.get(message.get("during", 0))
        context = contextvars.copy_context() if during is None else during.context.copy()
        assert self._loop is not None
        serving = self._serve(key, method, lambda: exported.invoke(name, arguments), message, incoming)
        title = f"{exported.interface.name} {name}"
        task = self._tasks[key] = self._loop.create_task(serving, name=title, context=context)
        task.add_done_callback(lambda _: self._end_unbegun(key, incoming))

    def _end_unbegun(self, key: int, incoming: Incoming) -> None:
        """A task that is cancelled before its first step never gets to ``_serve``'s own end."""
        if self._tasks.pop(key, None) is not None:
            incoming.close()
            if self.ended is None:
                self._send({"answer": key, "error": write_error(asyncio.CancelledError())}, None)

    async def _serve(
        self, key: int, method: Method, invoke: Callable[[], Any], message: Json, incoming: Incoming
    ) -> None:
        """Serve one call to its end, whatever that is."""
        steps: list[Step] = []
        try:
            _call_here.set((self, key))
            act = Act("", lambda _act, _step: None)
            with _closing(incoming), _behalf_of(message.get("behalf")):
                if not self._is_drivers or "during" in message:  # whose stages are those of the call it belongs to
                    answer = await invoke()
                else:
                    try:
                        with acting(act):
                            answer = await invoke()
                    finally:
                        steps = act.steps
                        act.end()
            self._answer(key, method, answer, steps)
        except BaseException as error:  # noqa: BLE001  # a driver may raise what it likes
            if self.ended is None:
                told = error if isinstance(error, asyncio.CancelledError | BrokenPipeError) else translate(error)
                self._send({"answer": key, "error": write_error(told), "steps": _write_steps(steps)}, None)
        finally:
            self._tasks.pop(key, None)

    def _answer(self, key: int, method: Method, answer: object, steps: "list[Step] | tuple[()]") -> None:
        if self.ended is None:
            out = Outgoing(self._objects)
            message = {"answer": key, "value": method.answer.write(answer, out)}
            self._send(message | ({"steps": _write_steps(steps)} if steps else {}), out)

    def _take_put_off(self) -> None:
        self._take_all(time.monotonic() + _TURN_S)

    def _due(self) -> Iterator[tuple[Json, Incoming]]:
        """What is to be taken, in the order in which it came. Raises _ProtocolError."""
        while self._put_off:  # one by one, so that ``end`` finds those that nobody has taken
            yield self._put_off.popleft()
        yield from self._frames()

    # Frames

    def _readable(self) -> None:
        """Take what has come, for a moment; others have their turn before the rest."""
        until_s = time.monotonic() + _TURN_S
        while self.ended is None and self._take_all(until_s):
            if time.monotonic() >= until_s:
                self._pause()
                return
            if not self._receive():
                return

    def _take_all(self, until_s: float) -> bool:
        """Take what is due; return whether there is no more, or leave the rest to a later turn."""
        try:
            for message, incoming in self._due():
                self._take(message, incoming)
                if self.ended is not None:
                    return False
                if time.monotonic() >= until_s:
                    self._pause()
                    return False
        except _ProtocolError as error:
            self.end(f"it does not speak the protocol: {error}")
        return self._reading is None

    def _pause(self) -> None:
        """Leave the loop to others for a while: one more turn of it would be a small part of what they need."""
        if not self._is_paused and self._loop is not None:
            self._is_paused = True
            self._loop.remove_reader(self._socket)
            self._loop.call_later(_TURN_S, self._go_on)

    def _go_on(self) -> None:
        self._is_paused = False
        if self.ended is None and self._reading is None and self._loop is not None:
            self._loop.add_reader(self._socket, self._readable)
            self._readable()

    def _receive(self) -> int:
        """Receive some bytes; return how many, 0 where there are none now or any more."""
        missing = sum(_HEAD.unpack_from(self._buffer)) if len(self._buffer) >= _HEAD.size else 0
        size = max(_PIECE_BYTES, min(missing - len(self._buffer), _MOST_PIECE_BYTES))
        try:
            space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
            content, ancillary, flags, _ = self._socket.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.end(f"the connection broke: {error.strerror}")
            return 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i")
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
                self._descriptors.extend(descriptors)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > 4 * _MAX_DESCRIPTORS:
            self.end("it does not speak the protocol: more descriptors than a frame may have")
            return 0
        if not content:
            self.end("it has hung up")
        self._buffer += content
        return len(content)

    def _frames(self) -> Iterator[tuple[Json, Incoming]]:
        """Take whole frames out of what was received. Raises _ProtocolError."""
        while len(self._buffer) >= _HEAD.size and self._reading is None:
            json_bytes, beside_bytes = _HEAD.unpack_from(self._buffer)
            if json_bytes > _MAX_JSON_BYTES or beside_bytes > _MAX_BESIDE_BYTES:
                raise _ProtocolError(f"a frame of {json_bytes} bytes of JSON and {beside_bytes} beside it")
            begin = _HEAD.size + json_bytes
            end = begin + beside_bytes
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as received:
                text, beside = bytes(received[_HEAD.size : begin]), bytes(received[begin:end])
            del self._buffer[:end]
            values = 0 if self._is_drivers else _count_values(text)
            if values > _MAX_VALUES:
                raise _ProtocolError(f"a frame of {values} values")
            if values <= _MAX_CALL_VALUES:
                message = _parse(text)
            elif self._loop is None or self._now:
                message = _parse(text, values)
            else:
                self._loop.remove_reader(self._socket)
                reading = self._read_large(text, values, beside)
                self._reading = self._loop.create_task(
                    reading, name="read a large frame", context=contextvars.Context()
                )
                return
            yield message, self._beside(message, beside, len(text))

    def _beside(self, message: Json, beside: bytes, text_bytes: int) -> Incoming:
        count = message.get("descriptors", 0)
        if not isinstance(count, int) or not 0 <= count <= len(self._descriptors):
            raise _ProtocolError("a frame without the descriptors that it tells of")
        descriptors = [self._descriptors.popleft() for _ in range(count)]
        return Incoming(self._objects, memoryview(beside), descriptors, text_bytes + len(beside))

    async def _read_large(self, text: bytes, values: int, beside: bytes) -> None:
        """Read a frame in a thread, and go on with those after it."""
        try:
            message = await asyncio.to_thread(_parse, text, values)
            if self.ended is not None:
                return
            incoming = self._beside(message, beside, len(text))
            call = self._calls.get(key) if isinstance(key := message.get("answer"), int) else None
            try:
                if call is not None:
                    await asyncio.to_thread(_open_ahead, message, incoming, call.method)
            except BaseException:
                incoming.close()
                raise
            if self.ended is not None or call is None:
                incoming.close()
            else:
                self._take(message, incoming)
            if "answer" not in message:
                raise _ProtocolError(f"a call of {values} values")
        except _ProtocolError as error:
            self.end(f"it does not speak the protocol: {error}")
        except (CrinoidError, RuntimeError) as error:  # no thread is to be had, and whose answer it is can't be told
            self.end(f"a frame of {values} values can't be read: {error}")
        finally:
            self._reading = None
        if self.ended is None:
            self._pause()

    def _send(self, message: dict[str, Json], out: Outgoing | None) -> None:
        """Send a frame, or as much as goes, and the rest later.

        Raises DriverError for what can't be written, and Unavailable for a call where much waits to be sent already.
        """
        pieces, descriptors = (out.pieces, out.descriptors) if out else ([], [])
        if descriptors:
            message["descriptors"] = len(descriptors)
        try:
            text = json.dumps(message, default=plain, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DriverError(f"can't be written as JSON: {error}") from error
        beside_bytes = sum(map(len, pieces))
        if len(text) > _MAX_JSON_BYTES or beside_bytes > _MAX_BESIDE_BYTES or len(descriptors) > _MAX_DESCRIPTORS:
            raise DriverError(f"is too large: {len(text)} bytes of JSON, {beside_bytes} beside it")
        if self._is_drivers:
            most, values = _MAX_VALUES if "answer" in message else _MAX_CALL_VALUES, _count_values(text)
            if values > most:
                raise DriverError(f"is too large: {values} values, where at most {most} are taken")
        if self._unsent_bytes > _MAX_BACKLOG_BYTES:
            why = f"it has not taken {self._unsent_bytes} bytes that were sent before"
            if "method" in message:
                raise Unavailable(why)
            self._end_soon(why)  # without an answer, or the word of a cancellation, the other side would wait for ever
            return
        content = b"".join((_HEAD.pack(len(text), beside_bytes), text, *pieces))
        # Duplicates: whoever owns the descriptors may close them before the socket has room.
        self._unsent.append(_Unsent(memoryview(content), [os.dup(one) for one in descriptors]))
        self._unsent_bytes += len(content)
        self._flush()
        for passed in out.passed if out else ():
            passed.close()

    def _flush(self) -> None:
        if self._is_flushing:  # in a finalizer, which may run anywhere: what it has to say is sent below in its turn
            return
        self._is_flushing = True
        try:
            self._flush_all()
        finally:
            self._is_flushing = False

    def _flush_all(self) -> None:
        while self._unsent and self.ended is None:
            first = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", first.descriptors))]
            try:
                sent = self._socket.sendmsg([first.content], rights if first.descriptors else ())
            except (BlockingIOError, InterruptedError):
                if self._loop is not None:
                    self._loop.add_writer(self._socket, self._flush)
                return
            except OSError as error:
                if self._loop is not None:
                    self._loop.remove_writer(self._socket)
                self._end_soon(f"the connection broke: {error.strerror}")
                return
            for descriptor in first.descriptors:
                os.close(descriptor)
            first.descriptors = []
            self._unsent_bytes -= sent
            first.content = first.content[sent:]
            if not first.content:
                self._unsent.popleft()
        if self._loop is not None and self.ended is None:
            self._loop.remove_writer(self._socket)

    def _end_soon(self, why: str) -> None:
        """Not within a write, nor in a finalizer: the reader hears of the end, with what came before it."""
        if self._loop is None:
            self.end(why)
        else:
            self._loop.call_soon(self.end, why)


async def _close(answer: Any) -> None:
    with contextlib.suppress(Exception):  # what a driver's closing raises is nobody's to hear
        await (answer.close() if isinstance(answer, Session) else answer.aclose())


def _count_values(text: bytes) -> int:
    """Return how many values JSON has at most."""
    return sum(map(text.count, (b",", b"[", b"{")))


def _parse(text: bytes, values: int = 0) -> dict[str, Json]:
    """Read a frame's JSON; with a number of values so that other threads have their turns. Raises _ProtocolError."""
    decoder = json.JSONDecoder()
    if values:
        # That of C, which ``json`` takes where it can, has the interpreter's lock from beginning to end.
        decoder.scan_once = json.scanner.py_make_scanner(decoder)  # type: ignore[attr-defined]  # typeshed lacks it
    try:
        message = (decoder.decode if values else json.loads)(text.decode())
    except (ValueError, RecursionError) as error:
        raise _ProtocolError(f"a frame that holds no JSON: {str(error)[:200]}") from error
    if not isinstance(message, dict):
        raise _ProtocolError("a frame whose JSON is no object")
    return message


def _open_ahead(message: Json, incoming: Incoming, method: Method) -> None:
    """Read an answer before whoever waits for it does; an error is found again, and raised, there."""
    with contextlib.suppress(Exception):
        if "error" not in message:
            incoming.answer, incoming.is_read = _open(message, incoming, method), True


def _open(message: Json, incoming: Incoming, method: Method) -> Any:
    if "error" in message:
        raise read_error(message["error"])
    return method.answer.read(message.get("value"), incoming)


class _closing:  # noqa: N801  # a context manager by the name of what it does
    """Close what came beside a message at the end of its block; cheaper than contextlib's, for each call."""

    __slots__ = ("_incoming",)

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._incoming.close()


def _behalf_of(told: Json) -> Any:
    match told:
        case [str(owner), str(subject)]:
            return on_behalf_of(owner, subject)
    return on_behalf_of("")


def _write_steps(steps: "list[Step] | tuple[()]") -> Json:
    return [
        [one.name, one.began_s, one.seconds, one.parent, one.outcome, list(one.subjects), one.notes] for one in steps
    ]


def _read_steps(told: Json) -> list[Step]:
    """Stages that the other side has told of, in the loop's turn; what makes no sense is left out, or is too much."""
    steps = []
    for one in told[:MAX_STEPS] if isinstance(told, list) else ():
        match one:
            case [str(name), float() | int() as began_s, float() | int() as seconds, int(parent), str(outcome),
                  [*subjects], [*notes]]:  # fmt: skip
                ids = tuple(
                    id_ for id_ in subjects[:_MOST_WORDS] if isinstance(id_, str) and len(id_) <= _ID_CHARACTERS
                )
                said = [text for text in notes[:_MOST_WORDS] if isinstance(text, str)]
                if abs(began_s) < _LONG_S and abs(seconds) < _LONG_S and parent < MAX_STEPS:
                    steps.append(Step(name, began_s, parent, ids, seconds, outcome, said))
    return steps
