"""Clients of HTTP/2 that no library makes: frames as bytes, for what the protocol allows and no kubelet does."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from hpack import Encoder, NeverIndexedHeaderTuple
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_MESSAGE = b"\0\0\0\0\0"
_VERSION = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/runtime.v1.RuntimeService/Version",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}


NEWEST = b"\xbe"
"""Refers to the entry that was added last to the connection's table of headers (RFC 7541, 6.1)."""


def call(*, entry: int = 0) -> bytes:
    """Encode the headers of a call of Version, with one more of so many bytes that is added to the table, if any."""
    block = Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in _VERSION.items()], huffman=False)
    return block + (Encoder().encode([("x-a", "a" * entry)], huffman=False) if entry else b"")


def begin(stream: int, block: bytes, *, whole: bool = True) -> bytes:
    """Begin a call; without ``whole`` further headers have to follow."""
    return HeadersFrame(stream, block, flags=["END_HEADERS"] if whole else []).serialize()


def go_on(stream: int, block: bytes) -> bytes:
    """Send more headers, and still not the last ones."""
    return ContinuationFrame(stream, block).serialize()


def data(stream: int, content: bytes = EMPTY_MESSAGE, *, last: bool = True) -> bytes:
    """Send a call's request."""
    return DataFrame(stream, content, flags=["END_STREAM"] if last else []).serialize()


def reset(stream: int) -> bytes:
    """Cancel a call."""
    return RstStreamFrame(stream, error_code=8).serialize()


PING = PingFrame(0, b"12345678").serialize()
SETTINGS = SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 65535}).serialize()
ACKNOWLEDGEMENT = SettingsFrame(0, flags=["ACK"]).serialize()
WINDOW_UPDATE = WindowUpdateFrame(0, window_increment=1).serialize()


@contextlib.contextmanager
def connection(path: Path) -> Iterator[socket.socket]:
    """Connect, and read and forget all that comes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(PREFACE + SettingsFrame(0).serialize())

        def forget() -> None:
            with contextlib.suppress(OSError):
                while client.recv(1 << 16):
                    pass

        reader = threading.Thread(target=forget)
        reader.start()
        try:
            yield client
        finally:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            reader.join()


@contextlib.contextmanager
def frames(path: Path) -> Iterator[tuple[socket.socket, Iterator[Frame]]]:
    """Connect; ``Frame``s are read one by one, until the other side closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(path))
        client.sendall(PREFACE + SettingsFrame(0).serialize())
        yield client, _read(client)


def _read(client: socket.socket) -> Iterator[Frame]:
    with client.makefile("rb") as stream:
        while head := stream.read(9):
            frame, length = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(stream.read(length)))
            yield frame
