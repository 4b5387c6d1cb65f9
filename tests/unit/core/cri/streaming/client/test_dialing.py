"""Reaching a streaming server: what is asked, who is trusted, and how each refusal is told."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import CrinoidError, InvalidArgument, PermissionDenied, Unavailable
from crinoid.core.cri.streaming.client.dialing import Dialing, dial_spdy, dial_websocket
from crinoid.core.cri.streaming.client.portforward import port_forwarder
from crinoid.core.cri.streaming.client.remotecommand import remote_command

UPGRADED = "HTTP/1.1 101 Switching Protocols\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"


@contextlib.asynccontextmanager
async def answering(answer: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that gives every request one answer and closes; yield its URL, and the heads that came."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(answer.encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/exec/token?x=1", heads


async def test_the_request_of_an_upgrade() -> None:
    async with answering(UPGRADED) as (url, heads):
        dialed = await dial_spdy(url, "v4.channel.k8s.io", Dialing())
        assert dialed.protocol == "v4.channel.k8s.io"
        dialed.transport.abort()
    first, *fields = heads[0].strip().split("\r\n")
    assert first == "POST /exec/token?x=1 HTTP/1.1"
    assert {"Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"} <= set(fields)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("HTTP/1.1 404 Not Found\r\n\r\nno such URL\n", "refused: 404 Not Found: no such URL"),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "refused: 403 Forbidden$"),
        ("SSH-2.0-x\r\n\r\n", "does not speak HTTP/1.1"),
        ("HTTP/1.1 101", "it closed the connection"),
        ("x" * (1 << 20), "does not speak HTTP/1.1"),
    ],
)
async def test_refusals(answer: str, words: str) -> None:
    async with answering(answer) as (url, _):
        with pytest.raises(Unavailable, match=words):
            await dial_spdy(url, "v4.channel.k8s.io", Dialing())


async def test_a_websocket_has_to_answer_the_key() -> None:
    async with answering(UPGRADED) as (url, _):
        with pytest.raises(Unavailable, match="does not answer as a WebSocket's"):
            await dial_websocket(url, ("v5.channel.k8s.io",), Dialing())


async def test_a_server_without_a_protocol_that_tells_the_exit_code() -> None:
    async with answering("HTTP/1.1 101 Switching Protocols\r\n\r\n") as (url, _):
        with pytest.raises(Unavailable, match=r"speaks none of v4\.channel\.k8s\.io"):
            async with remote_command(url, frozenset({"stdout"}), Dialing()):
                pass


async def test_a_server_that_leaves_is_told() -> None:
    async with answering(UPGRADED) as (url, _):
        with pytest.raises(Unavailable, match=r"ended before the command|closed the connection at once"):
            async with remote_command(url, frozenset({"stdout"}), Dialing()) as command:
                assert await command.streams["stdout"].read() == b""
                await command.outcome()
        async with asyncio.timeout(60), port_forwarder(url, Dialing()) as forwarder:
            await forwarder.gone.wait()


@pytest.mark.parametrize("url", ["", "/exec/token", "ftp://127.0.0.1/", "http:///exec"])
async def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidArgument, match="no URL to stream from"):
        await dial_spdy(url, "v4.channel.k8s.io", Dialing())


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port} can't be reached"):
        await dial_spdy(f"http://127.0.0.1:{port}/x", "v4.channel.k8s.io", Dialing())


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for the name ``streams``, which is its own authority, and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=DNS:streams"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


async def test_tls_trusts_whom_it_was_told_to(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=cert)
    tls.load_cert_chain(cert, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    good = Dialing(tls_ca=cert, tls_cert=cert, tls_key=key, tls_name="streams")
    wrong: list[tuple[Dialing, type[CrinoidError], str]] = [
        (Dialing(), PermissionDenied, "self-signed certificate"),
        (Dialing(tls_ca=cert, tls_cert=cert, tls_key=key), PermissionDenied, "IP address mismatch"),
        (Dialing(tls_ca=cert, tls_name="streams"), CrinoidError, "TLS with|can't be reached"),
        (Dialing(tls_ca=cert, tls_cert=cert), InvalidArgument, "only of use together"),
        (Dialing(tls_ca=key), InvalidArgument, "can't be used"),
    ]
    async with answering(UPGRADED, tls) as (url, _):
        (await dial_spdy(url, "v4.channel.k8s.io", good)).transport.abort()
        for dialing, kind, words in wrong:
            with pytest.raises(kind, match=words):
                await dial_spdy(url, "v4.channel.k8s.io", dialing)
