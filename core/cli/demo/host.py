"""The host's side of the conversations between the host and the pod: plain TCP, as anything on the host would speak."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_TIMEOUT_S = 20.0


async def fetch(address: str, port: int) -> str:
    """Fetch the page of a web server; "" when nobody serves there."""
    answer = await call(address, port, b"GET / HTTP/1.0\r\n\r\n")
    return answer.partition("\r\n\r\n")[2].strip()


async def call(address: str, port: int, words: bytes = b"") -> str:
    """Say something, and return what the other side says until it ends; "" when nobody is there."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(words)
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return ""
    return answer.decode(errors="replace").strip()


@asynccontextmanager
async def listening(address: str) -> AsyncIterator[int]:
    """Run a web server that tells every caller its address while the context lasts; yield its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        caller = writer.get_extra_info("peername")[0]
        writer.write(f"HTTP/1.0 200 OK\r\n\r\nhello {caller}, says the host\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, address, 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])
