"""One HTTP exchange with a host: TLS as configured, proxies, redirects; every fault becomes a HostFault.

Only this module and ``client`` import aiohttp; the driver loads them at the first pull. No cookie is kept, no body is
decompressed, and a redirect to another host carries neither Authorization nor the headers of a ``hosts.toml``.
"""

import asyncio
import email.utils
import os
import ssl
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp import ClientResponse, ClientSession, ClientTimeout, StreamReader
from yarl import URL

from crinoid.core.api.errors import (
    ConfigurationError,
    CorruptContent,
    CrinoidError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from crinoid.core.api.linux.files import open_regular
from crinoid.plugins.registries.distribution.answers import clean, words_of
from crinoid.plugins.registries.distribution.attempts import HostFault
from crinoid.plugins.registries.distribution.connections import Route, connection_fault
from crinoid.plugins.registries.distribution.hosts import Endpoint, Tls
from crinoid.plugins.registries.distribution.proxies import find_proxy

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_PASSING = frozenset({408, 425, 429})
_BUFFER_BYTES = 1 << 20
_GZIP, _GZIP_WINDOW = b"\x1f\x8b", 31
_MAX_ERROR_BYTES = 8 << 10
_DOCUMENT_S = 60.0
_LEAST_RATE = 16 << 10
"""How fast a document must come, in bytes a second, after its first minute: a drop now and then is no stall."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is sent; ``form`` is the body of a POST. ``authorization`` shows in no message."""

    method: str
    url: str
    endpoint: Endpoint
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str = field(default="", repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)


class Transport:
    """The connections of one slot. Must be made in the daemon's loop, and closed."""

    def __init__(self, user_agent: str, dial_timeout_s: float, stall_timeout_s: float, settings: Path) -> None:
        self._settings = settings
        self._dial_timeout_s = dial_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._contexts: dict[object, ssl.SSLContext] = {}
        self._session = ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
            read_bufsize=_BUFFER_BYTES,
        )

    async def send(self, exchange: Exchange) -> ClientResponse:
        """Return the answer, whatever its status, with its body unread; the caller releases it.

        Follows redirects of a GET. Raises HostFault when there is no answer.
        """
        url, first = exchange.url, exchange.url
        for _ in range(_MAX_REDIRECTS):
            try:
                is_home = origin(url) == origin(first)
            except ValueError as error:  # a port beyond 65535, in a redirect, a realm or a foreign layer's address
                shown = url.partition("?")[0][:200]
                raise HostFault(Unavailable(f"it leads to {shown!r}, which is no address")) from error
            try:
                response = await self._send_once(exchange, url, is_home)
            except HostFault as fault:
                if is_home:
                    raise
                raise elsewhere(fault, url) from fault
            if response.status not in _REDIRECTS or exchange.method != "GET":
                return response
            url = _follow(exchange, response)
        raise HostFault(Unavailable(f"more than {_MAX_REDIRECTS} redirects"))

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def _send_once(self, exchange: Exchange, url: str, is_home: bool) -> ClientResponse:
        endpoint, proxy = exchange.endpoint, find_proxy(url, os.environ)
        shown = f"{urlsplit(proxy).scheme}://{urlsplit(proxy).netloc.rpartition('@')[2]}" if proxy else ""
        # The settings of a host that a redirect leads to are those of the host asked.
        settings = self._settings / (endpoint.namespace or endpoint.host) / "hosts.toml"
        secure = url.startswith("https:")
        route = Route(urlsplit(url).netloc, secure, settings, shown, bool(endpoint.tls.client))
        dial_s = endpoint.dial_timeout_s or self._dial_timeout_s
        headers = list(exchange.headers.items())
        if is_home:  # elsewhere, as in a bucket behind a presigned URL, they would be told to a stranger
            headers += endpoint.headers
            headers += [("Authorization", exchange.authorization)] if exchange.authorization else []
        try:
            context = await self._context(endpoint.tls) if secure else True
            async with asyncio.timeout(2 * dial_s + self._stall_timeout_s):  # a head may come in drops, without a stall
                return await self._session.request(
                    exchange.method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=exchange.form,
                    allow_redirects=False,
                    proxy=proxy,
                    ssl=context,
                    # "connect" bounds the look-up of the name, too, which no option of its own does
                    timeout=ClientTimeout(
                        total=None, connect=2 * dial_s, sock_connect=dial_s, sock_read=self._stall_timeout_s
                    ),
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise connection_fault(error, route) from error

    async def _context(self, tls: Tls) -> ssl.SSLContext:
        """Return the context for a host's settings; files that changed make a new one."""
        key = (tls, tuple(_stamp(path) for path in _files(tls)))
        if key not in self._contexts:
            try:
                context = await asyncio.to_thread(_make_context, tls)
            except (ssl.SSLError, OSError) as error:
                named = getattr(error, "filename", None) or ", ".join(map(str, _files(tls)))
                raise HostFault(ConfigurationError(f"certificates {named}: {error.strerror or error}")) from error
            if len(self._contexts) > 64:
                self._contexts.clear()
            self._contexts[key] = context
        return self._contexts[key]


def elsewhere(fault: HostFault, url: str) -> HostFault:
    """Return a fault of a host that a redirect led to, which it names: without its path, where signatures are."""
    parts = urlsplit(url)
    host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    error = type(fault.error)(f"it redirects to {host}, and that says: {fault}")
    return HostFault(error, fault.passing, fault.retry_after_s, fault.status, fault.advice)


def lost(error: Exception, response: ClientResponse) -> HostFault:
    """Return the fault for an answer that broke off in its body."""
    return connection_fault(error, Route(response.url.authority, False, Path()))


async def refusal(response: ClientResponse) -> HostFault:
    """Return the fault for an answer that is not what was wanted, with what its body says; release it."""
    status = response.status
    kinds: dict[int, type[CrinoidError]] = {401: Unauthenticated, 403: PermissionDenied, 404: NotFound}
    try:
        said = words_of(await _read_at_most(response, _MAX_ERROR_BYTES))
    except HostFault:
        said = ""
    finally:
        response.close()
    words = " ".join(part for part in (str(status), clean(response.reason or ""), f"({said})" if said else "") if part)
    passing = status >= 500 or status in _PASSING
    return HostFault(kinds.get(status, Unavailable)(words), passing, _retry_after_s(response), status)


async def read_answer(response: ClientResponse, max_bytes: int) -> bytes:
    """Read a whole body of bounded size; raise HostFault when it is longer or breaks off."""
    content = await _read_at_most(response, max_bytes + 1)
    if (decoder := decoder_of(response, "")) is not None:
        content = decoder.decode(content, max_bytes + 1)
    if len(content) > max_bytes:
        response.close()
        raise HostFault(CorruptContent(f"its answer is longer than {max_bytes} bytes"))
    return content


class ContentDecoder:
    """Takes off a Content-Encoding that nobody asked for: some servers and proxies compress all the same.

    Others only say so: of an object that is a gzip file already. The first bytes tell which it is.
    """

    def __init__(self, media_type: str) -> None:
        self._is_gzip_file = "gzip" in media_type
        self._inflater: zlib._Decompress | None = None
        self._is_plain = False

    async def read(self, content: StreamReader, max_bytes: int) -> bytes:
        """Return what the next bytes of an answer stand for, at most so many; none at its end."""
        while True:
            left = self._inflater is not None and bool(self._inflater.unconsumed_tail)
            given = b"" if left else await content.read(max_bytes)
            if (decoded := self.decode(given, max_bytes)) or not (given or left):
                return decoded

    def decode(self, piece: bytes, max_bytes: int) -> bytes:
        """Return at most ``max_bytes`` of what the bytes so far stand for; raise HostFault for damaged ones."""
        try:
            if self._inflater is None and not self._is_plain:
                begins = zlib.decompressobj(_GZIP_WINDOW).decompress(piece, 2) if piece.startswith(_GZIP) else b""
                self._is_plain = not piece.startswith(_GZIP) or (self._is_gzip_file and begins != _GZIP)
                self._inflater = None if self._is_plain else zlib.decompressobj(_GZIP_WINDOW)
            if self._inflater is None:
                return piece
            return self._inflater.decompress(self._inflater.unconsumed_tail + piece, max_bytes)
        except zlib.error as error:
            raise HostFault(CorruptContent(f"its answer is compressed, and damaged: {error}")) from error


def decoder_of(response: ClientResponse, media_type: str) -> ContentDecoder | None:
    """Return what undoes the answer's Content-Encoding; ``None`` where there is none, or a part was asked for."""
    encoded = response.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip")
    return ContentDecoder(media_type) if encoded and response.status in (200, 203) else None


async def _read_at_most(response: ClientResponse, max_bytes: int) -> bytes:
    content = bytearray()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    try:
        async with asyncio.timeout_at(began_s + _DOCUMENT_S) as limit:
            while len(content) < max_bytes and (piece := await response.content.read(max_bytes - len(content))):
                content += piece
                limit.reschedule(began_s + _DOCUMENT_S + len(content) / _LEAST_RATE)
    except (aiohttp.ClientError, OSError) as error:
        response.close()
        if limit.expired():
            raise HostFault(Unavailable(f"too slow: {len(content)} bytes in {loop.time() - began_s:.0f} s")) from error
        raise lost(error, response) from error
    return bytes(content)


def _follow(exchange: Exchange, response: ClientResponse) -> str:
    """Return where a redirect leads; it may lead to plain http only where the host itself is asked so."""
    location = response.headers.get("Location", "")
    response.release()
    try:
        target = str(response.url.join(URL(location, encoded=True)))
        scheme, host = urlsplit(target).scheme, urlsplit(target).netloc
    except ValueError:
        scheme, host = "", ""
    if not location or not host or scheme not in ("http", "https"):
        raise HostFault(Unavailable(f"{response.status}, a redirect to nowhere"))
    if scheme == "http" and not exchange.endpoint.url.startswith("http://"):
        raise HostFault(Unavailable(f"it redirects to plain http at {host}, which is not configured"))
    return target


def origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host in lower case and port. Raises ValueError for what is no address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _files(tls: Tls) -> tuple[Path, ...]:
    return (*tls.ca, *(path for pair in tls.client for path in pair))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_size, found.st_ino


def _make_context(tls: Tls) -> ssl.SSLContext:
    for path in _files(tls):  # OpenSSL opens whatever is there, and would wait for a FIFO's writer
        open_regular(path).close()
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13's default; many a private authority fails it
    for path in tls.ca:
        context.load_verify_locations(path)
    for cert, key in tls.client:
        # An empty password, or OpenSSL would ask for that of an encrypted key at the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _retry_after_s(response: ClientResponse) -> float:
    """Read Retry-After, in seconds or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
