"""Hostile clients of the streaming server, for tests of what they must not do to others.

Floods run in a process of their own (``python -m support.floods``), so that they share no interpreter lock with whoever
measures meanwhile. For each a line comes in on standard input, a JSON list of its name and URLs, ``ready`` goes out
once bytes flow, and after the next line, an empty one, ``over``. ``Flooding`` is the measuring side's handle for it.
"""

import contextlib
import itertools
import json
import os
import select
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from crinoid.core.cri.streaming import frames

CHUNK_BYTES = 1 << 17
READ_BYTES = 1 << 18
OPEN_PORT, CLOSED_PORT = 8080, 9
_SPDY = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
_WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

Pour = Callable[[], Iterator[bytes]]
"""Makes what one connection sends, piece by piece, endlessly."""


@dataclass(frozen=True)
class Flood:
    """``ask``: which URLs are needed: an exec's, an attach's, a forward's, or only the address (``""``).

    ``way``: what a connection is upgraded to; ``""`` leaves it as it is. ``deaf``: nothing is ever read. ``again``: a
    connection that has ended is followed by a new one. ``tls``: its server has TLS, which it speaks if it is to be
    upgraded. ``brief``: a connection ends with the first answer. ``command`` is what an exec or the container runs.
    """

    pour: Pour
    ask: str = ""
    way: str = ""
    connections: int = 1
    command: tuple[str, ...] = ("sh", "-c", "cat > /dev/null")
    tty: bool = False
    stdin: bool = True
    deaf: bool = False
    again: bool = False
    tls: bool = False
    brief: bool = False

    @property
    def protocol(self) -> str:
        """The protocol that is asked for in the upgrade."""
        if self.way == "base64":
            return "v4.base64.channel.k8s.io"
        if self.ask == "forward":
            return "SPDY/3.1+portforward.k8s.io" if self.way == "tunnel" else "portforward.k8s.io"
        return "v4.channel.k8s.io" if self.way == "spdy" else "v5.channel.k8s.io"


def _repeat(piece: bytes, *, before: bytes = b"") -> Pour:
    """The same frames over and over, some hundred KiB at a time."""
    many = piece * max(1, CHUNK_BYTES // max(1, len(piece)))
    return lambda: itertools.chain((before,) if before else (), itertools.repeat(many))


def _wait() -> Iterator[bytes]:
    """Nothing, for ever."""
    return itertools.repeat(b"")


# SPDY


def _openings(count: int) -> bytes:
    writer = frames.FrameWriter()
    return b"".join(
        writer.opening(2 * number + 1, {"streamtype": "data", "port": str(OPEN_PORT), "requestid": str(number)})
        for number in range(count)
    )


def _command_streams(**more: str) -> bytes:
    writer = frames.FrameWriter()
    names = ("error", "stdin", "stdout", "stderr")
    return b"".join(writer.opening(2 * at + 1, {"streamtype": name, **more}) for at, name in enumerate(names))


def _rapid_resets() -> Iterator[bytes]:
    """Streams of ports that are opened and reset at once, each of a connection of its own."""
    writer, numbers = frames.FrameWriter(), itertools.count()
    while True:
        parts = []
        for number in itertools.islice(numbers, 500):
            headers = {"streamtype": "data", "port": str(OPEN_PORT), "requestid": str(number)}
            parts += [writer.opening(2 * number + 1, headers), frames.reset(2 * number + 1, frames.CANCEL)]
        yield b"".join(parts)


def _connects(port: int) -> Pour:
    """Whole connections into the pod that are reset at once."""

    def pour() -> Iterator[bytes]:
        writer, numbers = frames.FrameWriter(), itertools.count()
        while True:
            parts = []
            for number in itertools.islice(numbers, 50):
                error, data = 4 * number + 1, 4 * number + 3
                headers = {"port": str(port), "requestid": str(number)}
                parts += [
                    writer.opening(error, {"streamtype": "error", **headers}, fin=True),
                    writer.opening(data, {"streamtype": "data", **headers}),
                    frames.data_head(data, 1) + b"x",
                    frames.reset(data, frames.CANCEL),
                ]
            yield b"".join(parts)

    return pour


def _header_bombs() -> Iterator[bytes]:
    """HEADERS of 60 KB and a thousand names that take a hundred bytes each on the wire."""
    deflater = zlib.compressobj(zdict=frames.DICTIONARY)
    number = 1
    while True:
        parts = []
        for _ in range(100):
            names = b"".join(struct.pack(">I", 4) + b"%04d" % at + struct.pack(">I", 0) for at in range(4))
            block = struct.pack(">I", 8000) + bytes(64000)
            del names
            body = deflater.compress(block) + deflater.flush(zlib.Z_SYNC_FLUSH)
            parts.append(struct.pack(">HHII", 0x8003, 8, len(body) + 4, number) + body)
        yield b"".join(parts)


def _many_openings() -> Iterator[bytes]:
    """SYN_STREAM after SYN_STREAM: two thousand are taken, the others refused."""
    writer, numbers = frames.FrameWriter(), itertools.count()
    while True:
        yield b"".join(
            writer.opening(2 * n + 1, {"streamtype": "data", "port": "80", "requestid": str(n)})
            for n in itertools.islice(numbers, 500)
        )


def _settings() -> Iterator[bytes]:
    return _repeat(frames.initial_window(1000) + frames.initial_window(2000), before=_openings(2000))()


def _unread_streams() -> Iterator[bytes]:
    """900 KiB on each of 400 streams of a process that reads none: a forwarded port with nobody behind."""
    writer = frames.FrameWriter()
    for number in range(400):
        headers = {"port": str(OPEN_PORT), "requestid": str(number)}
        error, data = 4 * number + 1, 4 * number + 3
        yield writer.opening(error, {"streamtype": "error", **headers})
        yield writer.opening(data, {"streamtype": "data", **headers})
    for number in range(400):
        yield frames.data_head(4 * number + 3, 9 << 20)
        yield bytes(9 << 20)
    yield from _wait()


# WebSocket


def _message(payload: bytes, opcode: int = 2, *, fin: bool = True) -> bytes:
    """A frame with a mask of zeros, which leaves the payload as it is."""
    first = (0x80 if fin else 0) | opcode
    if len(payload) < 126:
        return bytes((first, 0x80 | len(payload))) + bytes(4) + payload
    return struct.pack(">BBH", first, 0xFE, len(payload)) + bytes(4) + payload


def _base64_fragments() -> Iterator[bytes]:
    """Messages of half a MiB that come in fragments of one byte."""
    one = _message(b"A", 0, fin=False) * (CHUNK_BYTES // 7)
    while True:
        yield _message(b"0", 1, fin=False)
        for _ in range(40):
            yield one
        yield _message(b"", 0)


def _tunnelled(pour: Pour, size: int) -> Pour:
    """SPDY frames in messages of so many bytes."""

    def made() -> Iterator[bytes]:
        for piece in pour():
            for at in range(0, len(piece), 1 << 14):
                part = piece[at : at + (1 << 14)]
                yield b"".join(_message(part[cut : cut + size]) for cut in range(0, len(part), size))

    return made


# TLS


def _hello() -> bytes:
    """What begins every handshake: most of the server's work is to answer it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = _trusting().wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


def _hello_in_pieces() -> Iterator[bytes]:
    """The same in records of one byte each, the last of them held back until all connections are there."""
    hello = _hello()
    records = b"".join(hello[:3] + b"\0\1" + hello[at : at + 1] for at in range(5, len(hello)))
    yield records[:-6]
    yield records[-6:]
    yield from _wait()


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# HTTP


def _head(*lines: str) -> bytes:
    return "\r\n".join(("GET /exec/guess HTTP/1.1", "Host: x", *lines, "", "")).encode()


def _once(data: bytes) -> Pour:
    return lambda: itertools.chain((data,), _wait())


def _trickle() -> Iterator[bytes]:
    """A request's head, a byte now and then."""
    yield b"GET /exec/guess HTTP/1.1\r\nHost: "
    for number in itertools.count():
        yield b"x" if number % 50 == 0 else b""


FLOODS = {
    "spdy window updates, 2,000 streams": Flood(
        _repeat(frames.window_update(1, 1), before=_openings(2000)), "forward", "spdy"
    ),
    "spdy window updates of stream 0": Flood(
        _repeat(frames.window_update(0, 1), before=_openings(2000)), "forward", "spdy"
    ),
    "spdy settings, 2,000 streams": Flood(_settings, "forward", "spdy"),
    "spdy pings": Flood(_repeat(frames.ping(1)), "forward", "spdy"),
    "spdy pings, answers unread": Flood(_repeat(frames.ping(1)), "forward", "spdy", deaf=True),
    "spdy pings, 40 connections": Flood(_repeat(frames.ping(1)), "forward", "spdy", connections=40),
    "spdy header bombs": Flood(_header_bombs, "forward", "spdy", again=True),
    "spdy openings": Flood(_many_openings, "forward", "spdy"),
    "spdy openings, reset at once": Flood(_rapid_resets, "forward", "spdy"),
    "spdy resets of nothing": Flood(_repeat(frames.reset(1, 5)), "forward", "spdy"),
    "spdy data of one byte": Flood(_repeat(frames.data_head(3, 1) + b"x", before=_command_streams()), "exec", "spdy"),
    "spdy empty data": Flood(_repeat(frames.data_head(3, 0), before=_command_streams()), "exec", "spdy"),
    "spdy data of no stream": Flood(_repeat(frames.data_head(99, 1) + b"x"), "forward", "spdy"),
    "spdy frames of unknown type": Flood(_repeat(struct.pack(">HHI", 0x8003, 77, 0)), "forward", "spdy"),
    "spdy in messages of one byte": Flood(_tunnelled(_repeat(frames.ping(1)), 1), "forward", "tunnel"),
    "port forwards, opened and reset": Flood(_connects(OPEN_PORT), "forward", "spdy"),
    "port forwards to a closed port": Flood(_connects(CLOSED_PORT), "forward", "spdy"),
    "websocket pings": Flood(_repeat(_message(b"x" * 8, 9)), "exec", "websocket"),
    "websocket pongs": Flood(_repeat(_message(b"", 10)), "exec", "websocket"),
    "websocket empty fragments": Flood(
        _repeat(_message(b"", 0, fin=False), before=_message(b"\0", fin=False)), "exec", "websocket"
    ),
    "websocket fragments of one byte": Flood(
        _repeat(_message(b"x", 0, fin=False), before=_message(b"\0", fin=False)), "exec", "websocket"
    ),
    "websocket base64 fragments": Flood(_base64_fragments, "exec", "base64"),
    "websocket unknown channels": Flood(_repeat(_message(b"\x63x")), "exec", "websocket"),
    "websocket messages of one byte": Flood(_repeat(_message(b"\0x")), "exec", "websocket"),
    "resizes": Flood(
        _repeat(_message(b'\x04{"Width":80,"Height":24}') + _message(b'\x04{"Width":81,"Height":25}')),
        "exec",
        "websocket",
        command=("sh", "-c", "while :; do sleep 1; done"),
        tty=True,
    ),
    "stdin of a process that reads, 8": Flood(
        _repeat(frames.data_head(3, 1 << 16) + bytes(1 << 16), before=_command_streams()),
        "exec",
        "spdy",
        connections=8,
    ),
    "stdin of a process that does not read, 16": Flood(
        _repeat(frames.data_head(3, 1 << 16) + bytes(1 << 16), before=_command_streams()),
        "exec",
        "spdy",
        connections=16,
        command=("sleep", "1000"),
    ),
    "stdout read quickly, 8": Flood(
        lambda: itertools.chain((_command_streams(),), _wait()),
        "exec",
        "spdy",
        connections=8,
        command=("cat", "/dev/zero"),
    ),
    "stdout unread, 16": Flood(
        lambda: itertools.chain((_command_streams(),), _wait()),
        "exec",
        "spdy",
        connections=16,
        command=("cat", "/dev/zero"),
        deaf=True,
    ),
    "attach unread, 60": Flood(
        lambda: itertools.chain((_command_streams(),), _wait()),
        "attach",
        "spdy",
        connections=60,
        command=("cat", "/dev/zero"),
        stdin=False,
        deaf=True,
    ),
    "unread streams of a port forward, 400": Flood(_unread_streams, "forward", "spdy", deaf=True),
    "connections without a request, 1,000": Flood(_wait, connections=1000, again=True),
    "connections with a slow request, 500": Flood(_trickle, connections=500, again=True),
    "connections, closed at once": Flood(_once(b""), connections=200, again=True, deaf=True),
    "request with 60,000 spaces": Flood(_once(_head("a:" + " " * 60_000 + "\x01")), connections=4, again=True),
    "requests with 15,000 fields": Flood(_once(_head(*(["a:"] * 15_000))), connections=50, again=True),
    "requests of 1 MiB without an end": Flood(_repeat(b"x" * 100 + b"\r\n"), connections=50, again=True),
    "tokens guessed, pipelined": Flood(_once(_head() * 100), connections=50, again=True),
    "tls hellos, a connection each, 60": Flood(
        lambda: _once(_hello())(), connections=60, again=True, tls=True, brief=True
    ),
    "tls hellos in records of one byte, 60": Flood(_hello_in_pieces, connections=60, again=True, tls=True, brief=True),
    "tls records of one byte": Flood(lambda: itertools.repeat(b"\x89"), "exec", "websocket", tls=True),
}


class _Connection:
    """One connection of a flood: sends what is poured, reads and drops what comes."""

    def __init__(self, flood: Flood, url: str) -> None:
        self.flood, self.url = flood, url
        self.pieces = flood.pour()
        self.left = memoryview(b"")
        self.sock = self._open()

    def _open(self) -> socket.socket:
        parts = urlsplit(self.url)
        assert parts.hostname
        sock = socket.create_connection((parts.hostname, parts.port or 80), timeout=60)
        if self.flood.tls and self.flood.way:
            sock = _trusting().wrap_socket(sock)
        if self.flood.way:
            is_spdy = self.flood.way == "spdy"
            fields = {**_SPDY, "X-Stream-Protocol-Version": self.flood.protocol} if is_spdy else dict(_WEBSOCKET)
            fields |= {} if is_spdy else {"Sec-WebSocket-Protocol": self.flood.protocol}
            lines = [f"GET {parts.path} HTTP/1.1", "Host: x", *(f"{key}: {value}" for key, value in fields.items())]
            sock.sendall("\r\n".join((*lines, "", "")).encode())
            head = b""
            while b"\r\n\r\n" not in head:
                piece = sock.recv(1)
                if not piece:
                    raise ConnectionResetError(head.decode(errors="replace"))
                head += piece
            if b" 101 " not in head:
                raise ConnectionResetError(head.decode(errors="replace"))
        sock.setblocking(False)
        return sock

    def push(self) -> bool:
        """Send what can be sent; return whether more would go at once."""
        for _ in range(4):
            if not self.left:
                self.left = memoryview(next(self.pieces, b""))
                if not self.left:
                    return False
            try:
                self.left = self.left[self.sock.send(self.left) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                return False
        return True


def _run(flood: Flood, urls: list[str]) -> None:
    """Pour until something comes on standard input."""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        try:
            _pour(selector, flood, urls)
        finally:
            for key in selector.get_map().values():
                if key.fd != 0:
                    key.data.sock.close()


def _pour(selector: selectors.BaseSelector, flood: Flood, urls: list[str]) -> None:
    for number in range(flood.connections):
        if select.select([0], [], [], 0)[0]:  # a thousand connections take longer to make than they are measured
            break
        with contextlib.suppress(OSError):
            _register(selector, flood, urls[number % len(urls)])
    _say("ready")
    closes = flood.deaf and flood.again
    while True:
        idle = True
        for key, events in selector.select(0.02):
            if key.fd == 0:
                return
            try:
                idle &= not _turn(key.data, events)
            except OSError:
                _replace(selector, key.data)
        for key in tuple(selector.get_map().values()) if closes else ():
            if key.fd != 0:
                _replace(selector, key.data)
        if idle:
            time.sleep(0.002)


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _register(selector: selectors.BaseSelector, flood: Flood, url: str) -> None:
    connection = _Connection(flood, url)
    events = selectors.EVENT_WRITE | (0 if flood.deaf else selectors.EVENT_READ)
    selector.register(connection.sock, events, connection)


def _turn(connection: _Connection, events: int) -> bool:
    if events & selectors.EVENT_READ and (not _read(connection.sock) or connection.flood.brief):
        raise ConnectionResetError("it was closed")
    return bool(events & selectors.EVENT_WRITE and connection.push()) or bool(events & selectors.EVENT_READ)


def _read(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(READ_BYTES))
    except ssl.SSLWantReadError:
        return True


def _replace(selector: selectors.BaseSelector, connection: _Connection) -> None:
    selector.unregister(connection.sock)
    connection.sock.close()
    if connection.flood.again and not connection.flood.way:
        with contextlib.suppress(OSError):
            _register(selector, connection.flood, connection.url)


class Flooding:
    """The process that floods, one flood after the other; a context."""

    def __enter__(self) -> "Flooding":
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "support.floods"]
        self._process = subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe)
        return self

    @contextlib.contextmanager
    def pouring(self, name: str, urls: list[str], *, ready: bool = True) -> Iterator[None]:
        """One flood; with ``ready`` from when all its connections are there, else from when they begin to be made."""
        self._write(json.dumps([name, urls]))
        waiting = threading.Thread(target=self._expect, args=("ready", name), daemon=True)
        waiting.start()
        if ready:
            waiting.join(60)
            assert not waiting.is_alive(), f"the flood {name} could not begin"
        try:
            yield
        finally:
            self._write("")
            waiting.join(60)
            self._expect("over", name)

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _expect(self, word: str, name: str) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == f"{word}\n", f"the flood {name} has failed"


def _read_line() -> bytes:
    """Unbuffered, since what follows on the descriptor is waited for by select."""
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(0, 1)):
        line += piece
    return line


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        while wanted := _read_line():
            _run(FLOODS[json.loads(wanted)[0]], json.loads(wanted)[1])
            _read_line()
            _say("over")
