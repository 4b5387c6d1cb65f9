"""Hostile clients of the CRI socket: each sends, over one connection, what HTTP/2 allows and no kubelet does.

A flood takes the connection and whether to go on. ``python -m support.http2_floods NAME SOCKET`` runs one in a process
of its own until its standard input ends, so that it shares no interpreter lock with whoever measures meanwhile.
"""

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from support import http2

Flood = Callable[[socket.socket, Callable[[], bool]], None]

MESSAGES = {"200 messages of 8 MiB": (200, 8 << 20), "200 messages of 16 MiB": (200, 16 << 20)}
"""How many calls at once, with requests of how many bytes. 8 MiB are the most that is taken unless configured."""


def references(client: socket.socket, goes_on: Callable[[], bool]) -> None:
    """A header of 4 kB that is sent once, and 8,000 times a call referred to by one byte each.

    Our SETTINGS are never acknowledged: what they say of the size of headers holds from then on only.
    """
    client.sendall(http2.begin(1, http2.call(entry=3900)) + http2.data(1))
    block, stream = http2.call() + http2.NEWEST * 8000, 1
    while goes_on():
        stream += 2
        client.sendall(http2.begin(stream, block) + http2.data(stream))


def acknowledged_references(client: socket.socket, goes_on: Callable[[], bool]) -> None:
    """The same of a client that has acknowledged our SETTINGS."""
    client.sendall(http2.ACKNOWLEDGEMENT)
    references(client, goes_on)


def resets(client: socket.socket, goes_on: Callable[[], bool]) -> None:
    """Calls that are cancelled as soon as they are made."""
    block, stream = http2.call(), 1
    while goes_on():
        calls = [http2.begin(n, block) + http2.data(n) + http2.reset(n) for n in range(stream, stream + 200, 2)]
        client.sendall(b"".join(calls))
        stream += 200


def half_open(client: socket.socket, goes_on: Callable[[], bool]) -> None:
    """Calls whose request begins, and never ends."""
    block, stream = http2.call(), 1
    while goes_on() and stream < 20_000:
        calls = [
            http2.begin(n, block) + http2.data(n, b"\0\0\0\x10\0a", last=False) for n in range(stream, stream + 200, 2)
        ]
        client.sendall(b"".join(calls))
        stream += 200
    while goes_on():
        time.sleep(0.05)


def continuations(client: socket.socket, goes_on: Callable[[], bool]) -> None:
    """Headers of one call that never end."""
    client.sendall(http2.begin(1, http2.call(entry=3900)) + http2.data(1))
    client.sendall(http2.begin(3, http2.call(), whole=False))
    piece = http2.go_on(3, http2.NEWEST * 16_000)
    while goes_on():
        client.sendall(piece)


def empty_data(client: socket.socket, goes_on: Callable[[], bool]) -> None:
    """Pieces of a request with nothing in them."""
    client.sendall(http2.begin(1, http2.call()))
    pieces = http2.data(1, b"", last=False) * 500
    while goes_on():
        client.sendall(pieces)


def control(frame: bytes) -> Flood:
    """The same frame of the connection's own, over and over."""

    def flood(client: socket.socket, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            client.sendall(frame * 500)

    return flood


FLOODS = {
    "resets": resets,
    "half-open": half_open,
    "continuations": continuations,
    "empty data": empty_data,
    "pings": control(http2.PING),
    "settings": control(http2.SETTINGS),
    "window updates": control(http2.WINDOW_UPDATE),
    "references": references,
    "references, settings acknowledged": acknowledged_references,
}


def send_messages(path: Path, goes_on: Callable[[], bool], count: int, size: int) -> dict[str, int]:
    """So many calls at once with a request of so many bytes; return how many ended with which status."""
    channel = grpc.insecure_channel(f"unix:{path}", options=[("grpc.max_send_message_length", -1)])
    version = channel.unary_unary("/runtime.v1.RuntimeService/Version")
    body, ends = bytes(size), dict[str, int]()
    while goes_on():
        for call in [version.future(body, timeout=60) for _ in range(count)]:
            code = call.code().name
            ends[code] = ends.get(code, 0) + 1
    channel.close()
    return ends


def _goes_on() -> bool:
    return not select.select([0], [], [], 0)[0]


def _main(name: str, path: Path, connections: int = 1) -> None:
    for _ in range(connections - 1):
        if os.fork() == 0:
            break
    if name in MESSAGES:
        send_messages(path, _goes_on, *MESSAGES[name])
        return
    while _goes_on():
        with contextlib.suppress(OSError), http2.connection(path) as client:
            FLOODS[name](client, _goes_on)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
