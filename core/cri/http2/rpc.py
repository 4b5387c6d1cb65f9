"""Calls of gRPC ("gRPC over HTTP2"): a stream's headers and body become a request, what a handler returns its answer.

Between ``connection`` and ``calls``: a handler is a coroutine of the request and a ``Context``, which has of grpc.aio's
what ``calls`` uses. Each call is a task, cancelled when its client leaves, resets it, or when its time is up.
"""

import asyncio
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

from crinoid.core.cri.codes import StatusCode
from crinoid.core.cri.http2.connection import Connection, Stream
from crinoid.core.cri.http2.frames import literal

LOG = logging.getLogger("crinoid.cri")
_PREFIX = 5  # whether it is compressed, and its length in four bytes
_STATUS_200 = b"\x88"  # RFC 7541, appendix A
_HEAD = _STATUS_200 + literal(b"content-type", b"application/grpc")
_OK = literal(b"grpc-status", b"0")
_ACCEPTED = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
_ENCODINGS = (b"gzip", b"deflate")
_EITHER = 47  # zlib's wbits for a zlib or gzip header
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_UNESCAPED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Aborted(Exception):
    """A call has ended with a status that is not OK."""

    def __init__(self, code: StatusCode, message: str, trailer: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailer = trailer


@dataclass(frozen=True, slots=True)
class Handler:
    """One RPC: ``read`` makes the request of its bytes, ``serve`` the answer, as bytes, of request and context.

    One that ``streams`` gives its messages to the context.
    """

    read: Callable[[bytes], Any]
    serve: Callable[[Any, "Context"], Awaitable[bytes | None]]
    streams: bool = False


class Context:
    """What a handler may do with its call beside answering it."""

    __slots__ = ("_begun", "_connection", "_limit", "_stream")

    def __init__(self, connection: Connection, stream: Stream, limit: int) -> None:
        self._connection = connection
        self._stream = stream
        self._limit = limit
        self._begun = False

    @property
    def begun(self) -> bool:
        """Tell whether the headers are sent."""
        return self._begun

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the client's headers that are text."""
        fields = self._stream.fields.items()
        return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields if name[:1] != b":")

    async def abort(self, code: StatusCode, message: str, trailer: tuple[tuple[str, str], ...] = ()) -> None:
        """End the call with a status."""
        raise Aborted(code, message, trailer)

    async def send_initial_metadata(self, _metadata: tuple[()]) -> None:
        """Send the headers."""
        self._connection.begin(self._stream, _HEAD)
        self._begun = True

    async def write(self, message: bytes) -> None:
        """Send a message of a stream; wait as long as the client has no room for it."""
        if not self._begun:
            await self.send_initial_metadata(())
        await self._connection.send(self._stream, _prefixed(message, self._limit))


class Calls:
    """All calls of all connections: the ``Application`` of ``Connection``."""

    def __init__(self, handlers: Mapping[bytes, Handler], max_request: int, max_response: int) -> None:
        self.max_body = max_request + _PREFIX
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._handlers = handlers
        self._max_request = max_request
        self._max_response = max_response

    def opened(self, connection: Connection) -> None:
        """See ``Application``."""
        self.connections.add(connection)

    def closed(self, connection: Connection) -> None:
        """See ``Application``."""
        self.connections.discard(connection)

    def refuse(self, connection: Connection, stream: Stream) -> None:
        """See ``Application``."""
        limit = f"a request may have {self._max_request} bytes"
        connection.end(stream, _status(Aborted(StatusCode.RESOURCE_EXHAUSTED, limit), begun=False))

    def accept(self, connection: Connection, stream: Stream) -> None:
        """See ``Application``."""
        if not stream.fields.get(b"content-type", b"").startswith(b"application/grpc"):
            connection.end(stream, literal(b":status", b"415"))
            return
        try:
            handler = self._find(stream.fields)
            request = handler.read(_message(stream, self._max_request))
            timeout_s = _timeout(stream.fields)
        except Aborted as refusal:
            connection.end(stream, _status(refusal, begun=False))
            return
        stream.body = b""
        task = stream.task = asyncio.get_running_loop().create_task(
            self._run(connection, stream, handler, request, timeout_s)
        )
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; wait for those under way, then cancel them; close all connections. Idempotent."""
        for connection in tuple(self.connections):
            connection.leave()
        if self.tasks and grace_s > 0:
            await asyncio.wait(tuple(self.tasks), timeout=grace_s)
        tasks = tuple(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in tuple(self.connections):
            connection.close()

    def _find(self, fields: Mapping[bytes, bytes]) -> Handler:
        path = fields.get(b":path", b"")
        if (handler := self._handlers.get(path)) is None:
            raise Aborted(StatusCode.UNIMPLEMENTED, f"there is no {path.decode('latin-1')}")
        return handler

    async def _run(
        self, connection: Connection, stream: Stream, handler: Handler, request: Any, timeout_s: float | None
    ) -> None:
        """Live a call to its end."""
        context = Context(connection, stream, self._max_response)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await handler.serve(request, context)
            if handler.streams:
                connection.end(stream, _OK)
            else:
                connection.respond(stream, _HEAD, _prefixed(answer or b"", self._max_response), _OK)
        except Aborted as error:
            connection.end(stream, _status(error, context.begun))
        except TimeoutError:
            late = Aborted(StatusCode.DEADLINE_EXCEEDED, "the client's deadline has passed")
            connection.end(stream, _status(late, context.begun))
        except Exception:  # what ``calls`` did not foresee, such as an answer that can't be encoded
            LOG.exception("a call failed in a way it should not")
            connection.end(stream, _status(Aborted(StatusCode.INTERNAL, "internal error"), context.begun))
        except asyncio.CancelledError:
            stopped = Aborted(StatusCode.CANCELLED, "the call was cancelled")
            connection.end(stream, _status(stopped, context.begun))
            raise


def _prefixed(message: bytes, limit: int) -> bytes:
    if len(message) > limit:
        raise Aborted(StatusCode.RESOURCE_EXHAUSTED, f"the answer has {len(message)} bytes of at most {limit}")
    return b"\0" + len(message).to_bytes(4, "big") + message


def _message(stream: Stream, limit: int) -> bytes:
    """Cut the one message out of a request's body."""
    body = bytes(stream.body)
    if len(body) < _PREFIX or len(body) - _PREFIX != int.from_bytes(body[1:_PREFIX], "big"):
        raise Aborted(StatusCode.INTERNAL, "the request does not hold exactly one whole message")
    message = body[_PREFIX:]
    return _inflated(message, stream.fields.get(b"grpc-encoding", b""), limit) if body[0] else message


def _inflated(message: bytes, encoding: bytes, limit: int) -> bytes:
    if encoding not in _ENCODINGS:
        raise Aborted(StatusCode.UNIMPLEMENTED, f"the encoding {encoding.decode('latin-1')!r} is not known")
    inflater = zlib.decompressobj(_EITHER)
    try:
        plain = inflater.decompress(message, limit + 1)
    except zlib.error as error:
        raise Aborted(StatusCode.INTERNAL, f"the request can't be inflated: {error}") from error
    if len(plain) > limit:
        raise Aborted(StatusCode.RESOURCE_EXHAUSTED, f"a request may have {limit} bytes")
    return plain


def _timeout(fields: Mapping[bytes, bytes]) -> float | None:
    """Read how many seconds the client will wait; ``None``: as long as it takes."""
    text = fields.get(b"grpc-timeout")
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise Aborted(StatusCode.INTERNAL, f"{text!r} is no grpc-timeout")
    return int(match[1]) * _UNITS_S[match[2]]


def _status(error: Aborted, begun: bool) -> bytes:
    """Write the trailers of an error; where nothing was sent before, they are headers too."""
    message = quote_from_bytes(error.message.encode("utf-8", "replace"), _UNESCAPED).encode()
    fields = [literal(b"grpc-status", b"%d" % error.code), literal(b"grpc-message", message)]
    fields += [literal(key.encode(), value.encode()) for key, value in error.trailer]
    return (b"" if begun else _HEAD + _ACCEPTED) + b"".join(fields)
