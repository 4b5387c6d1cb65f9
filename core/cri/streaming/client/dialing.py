"""Makes the connection that a URL of the CRI leads to: TCP, TLS for https, and the upgrade (RFC 9110, section 7.8)."""

import asyncio
import base64
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from crinoid.core.api.errors import DeadlineExceeded, InvalidArgument, PermissionDenied, Unavailable
from crinoid.core.cri.streaming.http import MAX_HEAD_BYTES
from crinoid.core.cri.streaming.protocols import SPDY, VERSION_FIELD, WEBSOCKET
from crinoid.core.cri.streaming.transports import TcpTransport, Tls
from crinoid.core.cri.streaming.turns import Turns
from crinoid.core.cri.streaming.websocket import WebSocket, accept_key

TRANSPORTS = ("spdy", "websocket")

_DIAL_S = 30.0
_MAX_REFUSAL_BYTES = 4000
_PROTOCOL_FIELD = "Sec-WebSocket-Protocol"


@dataclass(frozen=True, slots=True)
class Dialing:
    """How to reach a streaming server; the TLS fields matter for https only.

    Without ``tls_ca`` the system's authorities are trusted; ``tls_name`` is the name that the certificate has to be
    for, by default the URL's host. Both ``tls_cert`` and ``tls_key`` are needed where the server wants to know clients.
    """

    transport: str = "spdy"
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_name: str | None = None


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connection that has been upgraded, and the protocol that the server chose; ``""`` where it chose none."""

    transport: TcpTransport
    protocol: str


class _PatientTransport(TcpTransport):
    """A client's: when the server has gone, what it sent before is still worth reading."""

    async def hold(self) -> None:
        """Nothing to look after."""


async def dial_spdy(url: str, protocol: str, dialing: Dialing) -> Dialed:
    """Upgrade to SPDY. Raises Unavailable, DeadlineExceeded, PermissionDenied, InvalidArgument for a URL of no use."""
    transport, fields = await _dial(url, "POST", {"Upgrade": SPDY, VERSION_FIELD: protocol}, dialing)
    return Dialed(transport, fields.get(VERSION_FIELD.lower(), ""))


async def dial_websocket(url: str, protocols: tuple[str, ...], dialing: Dialing) -> tuple[WebSocket, str]:
    """Upgrade to a WebSocket; return it and the protocol that the server chose. Raises as ``dial_spdy``."""
    key = base64.b64encode(os.urandom(16)).decode()
    wanted = {
        "Upgrade": WEBSOCKET,
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": "13",
        _PROTOCOL_FIELD: ", ".join(protocols),
    }
    transport, fields = await _dial(url, "GET", wanted, dialing)
    if fields.get("sec-websocket-accept") != accept_key(key):
        transport.abort()
        raise Unavailable(f"the streaming server of {_place(urlsplit(url))} does not answer as a WebSocket's does")
    return WebSocket(transport, is_client=True), fields.get(_PROTOCOL_FIELD.lower(), "")


async def _dial(
    url: str, method: str, fields: Mapping[str, str], dialing: Dialing
) -> tuple[TcpTransport, Mapping[str, str]]:
    """Connect and upgrade; return the connection and the fields of the answer, by lower-case names."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(f"the endpoint answered with {url!r}, which is no URL to stream from")
    try:
        async with asyncio.timeout(_DIAL_S):
            transport = await _connect(parts, dialing)
            try:
                await transport.handshake()
                return transport, await _upgrade(transport, parts, method, fields)
            except BaseException:
                transport.abort()
                raise
    except TimeoutError:
        raise DeadlineExceeded(f"the streaming server of {_place(parts)} did not answer in {_DIAL_S:g} s") from None
    except (OSError, EOFError) as error:
        broken = error if isinstance(error, ssl.SSLError) else error.__cause__
        if isinstance(broken, ssl.SSLError):
            reason = getattr(broken, "verify_message", "") or broken.reason or str(broken)
            raise PermissionDenied(f"TLS with the streaming server of {_place(parts)} failed: {reason}") from error
        reason = getattr(error, "strerror", "") or "it closed the connection"
        raise Unavailable(f"the streaming server of {_place(parts)} can't be reached: {reason}") from error


async def _connect(parts: SplitResult, dialing: Dialing) -> TcpTransport:
    """Connect to the first of the host's addresses that answers. Raises OSError."""
    assert parts.hostname
    context = _tls_context(dialing) if parts.scheme == "https" else None
    tls = Tls(context, is_server=False, peer=dialing.tls_name or parts.hostname) if context else None
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        parts.hostname, parts.port or (443 if tls else 80), type=socket.SOCK_STREAM
    ):
        connected = socket.socket(family, kind, protocol)
        try:
            connected.setblocking(False)
            await loop.sock_connect(connected, address)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return _PatientTransport(connected, Turns(), tls)
        except OSError as error:
            connected.close()
            failure = error
        except BaseException:
            connected.close()
            raise
    assert failure
    raise failure


async def _upgrade(
    transport: TcpTransport, parts: SplitResult, method: str, fields: Mapping[str, str]
) -> Mapping[str, str]:
    """Ask for the upgrade. Raises Unavailable with the server's words when it is refused."""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade"]
    lines += ["Content-Length: 0"] if method == "POST" else []
    lines += [f"{name}: {value}" for name, value in fields.items()]
    await transport.write("\r\n".join((*lines, "", "")).encode("latin-1"))
    try:
        head = (await transport.read_until(b"\r\n\r\n", MAX_HEAD_BYTES)).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError:
        head = [""]
    status = head[0].partition(" ")[2]
    if not head[0].startswith("HTTP/1.") or not status:
        raise Unavailable(f"the streaming server of {_place(parts)} does not speak HTTP/1.1")
    if not status.startswith(str(HTTPStatus.SWITCHING_PROTOCOLS.value)):
        text = (await transport.read())[:_MAX_REFUSAL_BYTES].decode(errors="replace").strip()
        raise Unavailable(f"the streaming server of {_place(parts)} refused: {status}{text and ': '}{text}")
    pairs = (line.partition(":") for line in head[1:] if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _tls_context(dialing: Dialing) -> ssl.SSLContext:
    """Raises InvalidArgument for files that can't be used."""
    if (dialing.tls_cert is None) != (dialing.tls_key is None):
        raise InvalidArgument("a client's certificate and its key are only of use together")
    try:
        context = ssl.create_default_context(cafile=dialing.tls_ca)
        if dialing.tls_cert is not None:
            context.load_cert_chain(dialing.tls_cert, dialing.tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidArgument(f"the TLS files can't be used: {error.strerror or error}") from error
    return context


def _place(parts: SplitResult) -> str:
    return parts.netloc
