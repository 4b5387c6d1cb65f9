"""The frames of SPDY/3.1 to and from bytes, without any input or output (SPDY Protocol Draft 3.1, section 2).

Control frames are read whole and are small; data is handed on as it comes, so that no frame, whatever length it
claims, is ever kept in memory.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MAX_CONTROL_BYTES = 1 << 14
"""A longer control frame is an error: the longest that Kubernetes' clients send has some hundred bytes."""
MAX_HEADERS_BYTES = 1 << 13
"""Headers may be so long once inflated; deflated, a thousandth of that is enough."""
MAX_HEADERS = 32
"""So many in one frame: Kubernetes' clients send three."""
MAX_SETTINGS = 64
"""So many entries in one frame: the draft knows eight."""
MAX_DATA_BYTES = (1 << 24) - 1
"""The length of a frame has 24 bits."""

FIN = 0x01

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9

PROTOCOL_ERROR, INVALID_STREAM, REFUSED_STREAM = 1, 2, 3
CANCEL, INTERNAL_ERROR, FLOW_CONTROL_ERROR, STREAM_IN_USE = 5, 6, 7, 8
INITIAL_WINDOW_SIZE = 7
GOAWAY_OK, GOAWAY_PROTOCOL_ERROR = 0, 1

_CONTROL = 0x80000000
_ID = 0x7FFFFFFF
_VERSION = 3
_HEAD = struct.Struct(">II")
_WORD = struct.Struct(">I")
_PAIR = struct.Struct(">II")

# The dictionary that both ends prime their compressors with (section 2.6.10.1): words with their length, then a tail.
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status"
)
_MORE_WORDS = ("200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin")
_CODES = (
    "100 101 201 202 205 206 300 302 303 304 305 306 307 402 405 406 407 408 409 410 411 412 413 414 415 416 417 502 "
    "504 505"
)
_TAIL = (
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug "
    "Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset="
    "utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(_WORD.pack(len(word)) + word.encode() for word in (*_WORDS.split(), *_MORE_WORDS))
    + _CODES.replace(" ", "").encode()
    + _TAIL.encode()
)


class ProtocolError(Exception):
    """The peer sent what is not SPDY/3.1; the connection can't go on."""


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a stream's data; ``fin``: the sender sends no more on this stream."""

    stream_id: int
    data: bytes
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """SYN_STREAM: the peer opens a stream. Header names are lower case."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """SYN_REPLY, or HEADERS on a stream that is open."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """RST_STREAM: the stream is dead at once, both ways."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class Ping:
    """PING: to be sent back by the one who did not choose its number."""

    number: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """GOAWAY: the peer takes no new streams."""

    last_stream_id: int
    status: int = GOAWAY_OK


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """WINDOW_UPDATE: the peer has room for so many more bytes on a stream; on stream 0, on the connection."""

    stream_id: int
    delta: int


@dataclass(frozen=True, slots=True)
class InitialWindow:
    """The one of the SETTINGS that matters here: the window that every stream begins with."""

    size: int


Frame = Data | Opening | Reply | Reset | Ping | GoAway | WindowUpdate | InitialWindow


class FrameReader:
    """Turns bytes into frames; keeps the state of the header compression of one direction."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(zdict=DICTIONARY)
        self._buffer = b""
        self._data: tuple[int, int, bool] | None = None  # stream, bytes missing, fin: of the frame under way

    def feed(self, data: bytes) -> Iterator[Frame | None]:
        """Take bytes as they come and yield what they complete, ``None`` for each frame that means nothing to us.

        Raises ProtocolError; use it up before the next.
        """
        self._buffer = self._buffer + data if self._buffer else data
        at = 0
        while True:
            if self._data is not None:
                piece, at = self._take_data(at)
                if piece is None:
                    break
                yield piece
                continue
            taken = self._take_head(at)
            if taken is None:
                break
            frame, at = taken
            if self._data is None:
                yield frame
        self._buffer = self._buffer[at:]

    def _take_data(self, at: int) -> tuple[Data | None, int]:
        assert self._data is not None
        stream_id, missing, fin = self._data
        piece = self._buffer[at : at + missing]
        if missing and not piece:
            return None, at
        missing -= len(piece)
        self._data = (stream_id, missing, fin) if missing else None
        return Data(stream_id, piece, fin and not missing), at + len(piece)

    def _take_head(self, at: int) -> tuple[Frame | None, int] | None:
        """Begin a data frame, or read a whole control frame; ``None`` where bytes are missing."""
        if len(self._buffer) < at + _HEAD.size:
            return None
        word, rest = _HEAD.unpack_from(self._buffer, at)
        flags, length = rest >> 24, rest & MAX_DATA_BYTES
        if not word & _CONTROL:
            if word == 0:
                raise ProtocolError("data on stream 0")
            self._data = (word, length, bool(flags & FIN))
            return None, at + _HEAD.size
        if length > MAX_CONTROL_BYTES:
            raise ProtocolError(f"a control frame of {length} bytes")
        end = at + _HEAD.size + length
        if len(self._buffer) < end:
            return None
        version, kind = word >> 16 & 0x7FFF, word & 0xFFFF
        if version != _VERSION:
            raise ProtocolError(f"a frame of SPDY version {version}")
        return self._parse(kind, flags, self._buffer[at + _HEAD.size : end]), end

    def _parse(self, kind: int, flags: int, body: bytes) -> Frame | None:
        try:
            match kind:
                case 1:  # SYN_STREAM: stream, associated stream, priority and slot
                    headers = self._inflate(body[10:])
                    return Opening(_stream(body), headers, bool(flags & FIN), bool(flags & 2))
                case 2 | 8:
                    return Reply(_stream(body), self._inflate(body[4:]), bool(flags & FIN))
                case 3:
                    return Reset(_stream(body), _PAIR.unpack(body)[1])
                case 4:
                    return _parse_settings(body)
                case 6:
                    return Ping(*_WORD.unpack(body))
                case 7:
                    last, status = _PAIR.unpack(body)
                    return GoAway(last & _ID, status)
                case 9:
                    stream_id, delta = _PAIR.unpack(body)
                    return WindowUpdate(stream_id & _ID, delta & _ID)
                case _:
                    return None  # section 2.2.1: frames of unknown type are ignored
        except struct.error:
            raise ProtocolError(f"a control frame of type {kind} with {len(body)} bytes") from None

    def _inflate(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._inflater.decompress(block, MAX_HEADERS_BYTES)
        except zlib.error as error:
            raise ProtocolError(f"headers can't be inflated: {error}") from None
        if self._inflater.unconsumed_tail or len(plain) == MAX_HEADERS_BYTES:
            raise ProtocolError(f"headers of {MAX_HEADERS_BYTES} bytes or more")
        return _parse_headers(plain)


class FrameWriter:
    """Turns frames into bytes; keeps the state of the header compression of the other direction."""

    def __init__(self) -> None:
        # 32 KiB for each connection, not zlib's 256: what is deflated here has some dozen bytes.
        self._deflater = zlib.compressobj(wbits=12, memLevel=5, zdict=DICTIONARY)

    def opening(self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        """SYN_STREAM."""
        body = struct.pack(">IIH", stream_id, 0, 0) + self._deflate(headers)
        return _control(SYN_STREAM, FIN if fin else 0, body)

    def reply(self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        """SYN_REPLY."""
        return _control(SYN_REPLY, FIN if fin else 0, _WORD.pack(stream_id) + self._deflate(headers))

    def headers(self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        """HEADERS."""
        return _control(HEADERS, FIN if fin else 0, _WORD.pack(stream_id) + self._deflate(headers))

    def _deflate(self, headers: Mapping[str, str]) -> bytes:
        parts = [_WORD.pack(len(headers))]
        for name, value in headers.items():
            for text in (name.lower(), value):
                encoded = text.encode("latin-1")
                parts += (_WORD.pack(len(encoded)), encoded)
        return self._deflater.compress(b"".join(parts)) + self._deflater.flush(zlib.Z_SYNC_FLUSH)


def data_head(stream_id: int, length: int, *, fin: bool = False) -> bytes:
    """Return what goes before so many bytes of a stream's data."""
    return _HEAD.pack(stream_id, (FIN if fin else 0) << 24 | length)


def reset(stream_id: int, status: int) -> bytes:
    """RST_STREAM."""
    return _control(RST_STREAM, 0, _PAIR.pack(stream_id, status))


def ping(number: int) -> bytes:
    """PING."""
    return _control(PING, 0, _WORD.pack(number))


def goaway(last_stream_id: int, status: int = GOAWAY_OK) -> bytes:
    """GOAWAY."""
    return _control(GOAWAY, 0, _PAIR.pack(last_stream_id, status))


def window_update(stream_id: int, delta: int) -> bytes:
    """WINDOW_UPDATE."""
    return _control(WINDOW_UPDATE, 0, _PAIR.pack(stream_id, delta))


def initial_window(size: int) -> bytes:
    """SETTINGS with the window that every stream begins with."""
    return _control(SETTINGS, 0, struct.pack(">III", 1, INITIAL_WINDOW_SIZE, size))


def _control(kind: int, flags: int, body: bytes) -> bytes:
    return _HEAD.pack(_CONTROL | _VERSION << 16 | kind, flags << 24 | len(body)) + body


def _stream(body: bytes) -> int:
    stream_id: int = _WORD.unpack_from(body)[0] & _ID
    if not stream_id:
        raise ProtocolError("a frame about stream 0")
    return stream_id


def _parse_settings(body: bytes) -> InitialWindow | None:
    (count,) = _WORD.unpack_from(body)
    if len(body) != 4 + 8 * count or count > MAX_SETTINGS:
        raise ProtocolError(f"SETTINGS say {count} entries in {len(body)} bytes")
    for at in range(4, len(body), 8):
        key, value = _PAIR.unpack_from(body, at)
        if key & MAX_DATA_BYTES == INITIAL_WINDOW_SIZE:
            return InitialWindow(value & _ID)
    return None


def _parse_headers(block: bytes) -> dict[str, str]:
    try:
        (count,) = _WORD.unpack_from(block)
        if count > MAX_HEADERS:
            raise ProtocolError(f"{count} headers in one frame")
        at, texts = 4, []
        for _ in range(2 * count):
            (length,) = _WORD.unpack_from(block, at)
            texts.append(block[at + 4 : at + 4 + length].decode("latin-1"))
            at += 4 + length
            if at > len(block):
                raise ProtocolError("headers are cut off")
    except struct.error:
        raise ProtocolError("headers are cut off") from None
    return {name.lower(): value for name, value in zip(texts[::2], texts[1::2], strict=True)}
