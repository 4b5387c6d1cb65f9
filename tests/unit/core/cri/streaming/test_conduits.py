"""Connections below the protocols: what is written arrives whole, and whoever waits is told of the end."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator

import pytest

from crinoid.core.api.linux.descriptors import readable
from crinoid.core.cri.streaming.transports import TcpTransport
from crinoid.core.cri.streaming.turns import Turns
from support.patience import patient

MANY = 8 << 20


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[TcpTransport, socket.socket]]:
    """A transport and its peer's socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    ours.setblocking(False)
    peer.setblocking(False)
    transport = TcpTransport(ours, Turns())
    try:
        async with asyncio.timeout(patient(30)):
            yield transport, peer
    finally:
        transport.abort()
        peer.close()


async def receive(peer: socket.socket, count: int) -> bytes:
    """Take so many bytes."""
    data = bytearray()
    while len(data) < count:
        data += await asyncio.get_running_loop().sock_recv(peer, count - len(data))
    return bytes(data)


async def test_a_writer_that_is_cancelled_cuts_nothing() -> None:
    """Others' frames come after its own, whole: a port forward that ends is no end of its neighbours."""
    async with connected() as (transport, peer):
        first = asyncio.create_task(transport.write(b"1" * MANY))
        await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(transport.write(b"22"))
        assert await receive(peer, MANY + 2) == b"1" * MANY + b"22"
        await second


async def test_the_end_tells_whoever_waits() -> None:
    async with connected() as (transport, _):
        reading = asyncio.create_task(transport.read())
        writing = asyncio.create_task(transport.write(bytes(MANY)))
        later = asyncio.create_task(transport.write(b"x"))
        await asyncio.sleep(0.05)
        transport.abort()
        assert await reading == b""
        for task in (writing, later):
            with pytest.raises(ConnectionResetError):
                await task
        assert await transport.read() == b""
        with pytest.raises(ConnectionResetError):
            await transport.hold()
        await transport.close()


async def test_its_number_is_anothers_once_it_is_closed() -> None:
    """Who has waited for a connection must not take away the next one's place in the loop."""
    async with connected() as (first, _):
        ours, peer = socket.socketpair()
        reading = asyncio.create_task(first.read())
        await asyncio.sleep(0.01)
        number = first._descriptor
        first.abort()
        os.dup2(ours.fileno(), number)
        waiting = asyncio.create_task(readable(number))
        await asyncio.sleep(0.01)
        assert await reading == b""
        peer.send(b"x")
        await waiting
        os.close(number)
        ours.close()
        peer.close()


async def test_what_follows_a_head_is_read_next() -> None:
    async with connected() as (transport, peer):
        for piece in (b"head\r", b"\n\r", b"\nrest"):
            peer.send(piece)
            await asyncio.sleep(0.01)
        assert await transport.read_until(b"\r\n\r\n", 100) == b"head\r\n\r\n"
        assert await transport.read() == b"rest"
        peer.send(b"x" * 200)
        with pytest.raises(asyncio.LimitOverrunError):
            await transport.read_until(b"\r\n\r\n", 100)
        peer.close()
        with pytest.raises(asyncio.IncompleteReadError):
            await transport.read_until(b"\r\n\r\n", 100)


async def test_a_connection_that_times_out_is_broken() -> None:
    """What the kernel says of it is a ConnectionError, as the protocols above expect, and no TimeoutError."""
    async with connected() as (transport, _):
        ours = transport._socket

        class TimedOut(socket.socket):
            def recv(self, *_: object) -> bytes:
                raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

            def send(self, *_: object) -> int:
                raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

        transport._socket = TimedOut(fileno=ours.detach())
        with pytest.raises(ConnectionResetError, match="timed out"):
            await transport.read()
        with pytest.raises(ConnectionResetError, match="timed out"):
            await transport.write(b"x")
