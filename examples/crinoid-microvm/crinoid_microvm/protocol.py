"""What the driver and the agent in the guest say to each other: one TCP connection for each request.

A frame is a letter, four bytes of length (big-endian) and so many bytes. A connection begins with one request, ``Q``:
``key=value`` and a zero byte for each field, of which one may come more than once; ``op`` says what is wanted. Its
answer is ``A`` and a text, or ``E``: a word of ``_ERRORS``, a zero byte, what was wrong. After the answer to
``forward`` the connection is that to the port. After those to ``exec`` and ``attach`` come frames:

| to the guest | | from the guest | |
|---|---|---|---|
| ``i`` | standard input, of which at most ``CREDIT`` bytes are on their way | ``o``, ``r`` | standard output, error |
| ``e`` | the input's end | ``a`` | so many bytes of input were taken, as four bytes |
| ``w`` | width and height of the terminal, four digits each | ``b`` | nobody reads the input any more |
| ``c`` | close all streams; the process goes on | ``x`` | the end: an exec's exit code as one byte |
| ``k`` | kill all that came from the process | ``l`` | the end: the session was too slow |
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence

from crinoid.core.api.errors import (
    AlreadyExists,
    CrinoidError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RuntimeRefused,
    Unavailable,
)

CREDIT = 1 << 16
_HEAD_BYTES = 5
_READ_BYTES = 1 << 16
_MAX_FRAME_BYTES = 1 << 20
_ERRORS: Mapping[str, type[CrinoidError]] = {
    "notfound": NotFound,
    "exists": AlreadyExists,
    "precondition": FailedPrecondition,
    "refused": RuntimeRefused,
    "unavailable": Unavailable,
}

Field = str | int | bool | Sequence[str]


class HungUp(Exception):
    """The connection has ended before what was wanted of it."""


def encode_request(op: str, fields: Mapping[str, Field]) -> bytes:
    """Return a request's frame. Raises InvalidArgument for a value that can't be carried."""
    pairs = [("op", op)]
    for key, value in fields.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        pairs += [(key, str(int(one)) if isinstance(one, bool) else str(one)) for one in values]
    if bad := next((key for key, text in pairs if "\0" in text), None):
        raise InvalidArgument(f"{bad} has a zero byte in it")
    body = b"".join(f"{key}={text}".encode(errors="surrogateescape") + b"\0" for key, text in pairs)
    if len(body) > _MAX_FRAME_BYTES:
        raise ResourceExhausted(f"{op}: {len(body)} bytes are more than the agent takes, {_MAX_FRAME_BYTES}")
    return encode_frame("Q", body)


def encode_frame(kind: str, data: bytes = b"") -> bytes:
    """Return a frame."""
    return kind.encode() + len(data).to_bytes(4, "big") + data


class Connection:
    """One connection to the agent; it owns the socket, which does not block."""

    def __init__(self, made: socket.socket) -> None:
        self._socket = made
        self._loop = asyncio.get_running_loop()
        self._read = bytearray()
        self._process = -1

    def end_with(self, process: int) -> None:
        """Hang up when a process ends. Its pidfd is the connection's; QEMU's end is seen in no other way."""
        self._process = process
        self._loop.add_reader(process, self._hang_up)

    async def send(self, frame: bytes) -> None:
        """Send a frame. Raises HungUp."""
        try:
            await self._loop.sock_sendall(self._socket, frame)
        except OSError as error:
            raise HungUp(str(error)) from error

    async def receive(self) -> tuple[str, bytes]:
        """Return the next frame. Raises HungUp at the end."""
        while True:
            if len(self._read) >= _HEAD_BYTES:
                size = int.from_bytes(self._read[1:_HEAD_BYTES], "big")
                if size > _MAX_FRAME_BYTES:
                    raise HungUp(f"the agent sent a frame of {size} bytes")
                if len(self._read) >= _HEAD_BYTES + size:
                    kind, data = chr(self._read[0]), bytes(self._read[_HEAD_BYTES : _HEAD_BYTES + size])
                    del self._read[: _HEAD_BYTES + size]
                    return kind, data
            try:
                piece = await self._loop.sock_recv(self._socket, _READ_BYTES)
            except OSError as error:
                raise HungUp(str(error)) from error
            if not piece:
                raise HungUp("the connection was closed")
            self._read += piece

    async def answer(self, what: str) -> str:
        """Return the answer's text. Raises what the agent says, and HungUp."""
        kind, data = await self.receive()
        if kind == "A":
            return data.decode(errors="replace")
        if kind != "E":
            raise HungUp(f"the agent sent a frame {kind!r} where its answer was to be")
        word, _, text = data.decode(errors="replace").partition("\0")
        raise _ERRORS.get(word, Unavailable)(f"{what}: {text}")

    def detach(self) -> socket.socket:
        """Give the socket away, at a moment when no frame was read beyond what was asked for."""
        self._forget_process()
        return self._socket

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._forget_process()
        self._socket.close()

    def _hang_up(self) -> None:
        self._forget_process()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _forget_process(self) -> None:
        if self._process >= 0:
            self._loop.remove_reader(self._process)
            os.close(self._process)
            self._process = -1
