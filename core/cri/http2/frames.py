"""Frames of HTTP/2 (RFC 9113, sections 4, 6 and 7): their numbers, their bytes, and what can be wrong with them."""

import enum
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = struct.Struct(">HBBBI")
"""The head of a frame: its length in 16 and 8 bits, kind, flags, stream."""

MAX_FRAME = 16_384
"""The longest payload that an endpoint takes unless it says otherwise; we don't."""

MAX_WINDOW = (1 << 31) - 1
FIRST_WINDOW = 65_535

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20


class Kind(enum.IntEnum):
    """Kinds of frames. Others may come, and mean nothing."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(enum.IntEnum):
    """Settings that we tell, or heed."""

    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


class Code(enum.IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The peer has broken a rule after which nothing it says can be trusted; the connection ends."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: Kind, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame."""
    length = len(payload)
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """Write our settings."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in values.items()))


def number_frame(kind: Kind, stream: int, number: int) -> bytes:
    """Write a frame that holds one number: WINDOW_UPDATE or RST_STREAM."""
    return frame(kind, 0, stream, number.to_bytes(4, "big"))


def goaway(last_stream: int, code: Code, text: str = "") -> bytes:
    """Write that no stream after the last one is served."""
    return frame(Kind.GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + text.encode())


def content(flags: int, payload: bytes, priority: bool = False) -> bytes:
    """Return the payload of DATA or HEADERS without padding and priority."""
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload or payload[0] >= end:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "the padding is longer than the frame")
        start, end = 1, end - payload[0]
    if priority and flags & WITH_PRIORITY:
        start += 5
    if start > end:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "the frame is too short for what it says it holds")
    return payload[start:end]


def literal(name: bytes, value: bytes) -> bytes:
    """Write a header that no table remembers (RFC 7541, section 6.2.2), without Huffman coding."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(number: int) -> bytes:
    """A number with a prefix of seven bits (RFC 7541, section 5.1)."""
    if number < 0x7F:
        return bytes((number,))
    digits = bytearray((0x7F,))
    number -= 0x7F
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
