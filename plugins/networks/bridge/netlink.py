"""Talking netlink: a socket, messages, attributes (netlink(7), RFC 3549); below ``interfaces`` and ``nftables``.

A channel belongs to the network namespace in which its thread stood when it was opened, whoever uses it later. It is
cheap to open, so each piece of work opens its own and closes it. All of it blocks, for as long as the Linux kernel
needs: microseconds, or longer while others hold its networking lock.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

ROUTE = 0
NETFILTER = 12

REQUEST = 0x1
ACK = 0x4
ROOT = 0x100
MATCH = 0x200
DUMP = ROOT | MATCH
REPLACE = 0x100
EXCL = 0x200
CREATE = 0x400
NESTED = 0x8000

_SOL_NETLINK = 270
_EXT_ACK = 11
_STRICT = 12
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")
_ERROR = 2
_DONE = 3
_DUMP_INTERRUPTED = 0x10
_CAPPED = 0x100
_HAS_ATTRIBUTES = 0x200
_ERROR_TEXT = 1
_TYPE_BITS = 0x3FFF
_READ_BYTES = 1 << 18
_BUFFER_BYTES = 1 << 20
_PATIENCE_S = 30.0
_DUMP_TRIES = 5


class NetlinkError(OSError):
    """The Linux kernel refused a message: its error number, and its own words where it has some."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request: ``what`` and ``subject`` say in an error what was tried; they are only put together then."""

    type: int
    payload: bytes
    flags: int = 0
    what: str = ""
    subject: object = ""

    @property
    def title(self) -> str:
        """What was tried, in words."""
        return f"{self.what} {self.subject}".strip()

    def encode(self, sequence: int) -> bytes:
        """Return the message with its header."""
        header = _HEADER.pack(_HEADER.size + len(self.payload), self.type, self.flags | REQUEST, sequence, 0)
        return header + pad(self.payload)


def pad(content: bytes, to: int = 4) -> bytes:
    """Fill up with zeros to a multiple of ``to`` bytes."""
    return content + bytes(-len(content) % to)


def attribute(kind: int, content: bytes) -> bytes:
    """Return one attribute, padded."""
    return pad(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content)


def nest(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that consists of attributes."""
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, content: str) -> bytes:
    """Return a string attribute, ended by a zero byte."""
    return attribute(kind, content.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """Return a 32-bit attribute in the host's byte order: rtnetlink's way."""
    return attribute(kind, struct.pack("=I", value))


def parse(content: bytes) -> dict[int, bytes]:
    """Return the attributes by kind, the last one of each; rubbish at the end is left out."""
    found: dict[int, bytes] = {}
    at, end = 0, len(content) - _ATTRIBUTE.size
    while at <= end:
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        if length < _ATTRIBUTE.size or at + length > len(content):
            break
        found[kind & _TYPE_BITS] = content[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def iterate(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of the attributes in their order."""
    at = 0
    while at + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        if length < _ATTRIBUTE.size or at + length > len(content):
            return
        yield kind & _TYPE_BITS, content[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


class Channel:
    """A netlink socket in the calling thread's network namespace; use it in ``with``, from one thread at a time."""

    def __init__(self, protocol: int) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(_PATIENCE_S)
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _STRICT, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the socket. Idempotent."""
        self._socket.close()

    def ask(self, message: Message) -> bytes | None:
        """Send one request and return its answer's payload; ``None`` when there is no such object."""
        first = self._send([message])
        for kind, sequence, _, payload in self._receive():
            if sequence != first:
                continue
            if kind != _ERROR:
                return payload
            if _code(payload) in (-errno.ENODEV, -errno.ENOENT, -errno.ESRCH):
                return None
            raise _failure(payload, message.title)
        raise AssertionError("unreachable")

    def execute(self, messages: Sequence[Message]) -> None:
        """Send requests in one go and wait for all acknowledgements; raise NetlinkError for the first refusal.

        Each is done or refused on its own: those after a refused one are tried too.
        """
        for error in self.try_each(messages):
            if error is not None:
                raise error

    def try_each(self, messages: Sequence[Message]) -> list[NetlinkError | None]:
        """Send requests in one go; return what became of each."""
        if not messages:
            return []
        first = self._send([replace(m, flags=m.flags | ACK) for m in messages])
        found: dict[int, NetlinkError | None] = {}
        for kind, sequence, flags, payload in self._receive():
            if kind == _ERROR and 0 <= sequence - first < len(messages):
                message = messages[sequence - first]
                found[sequence - first] = _failure(payload, message.title, flags) if _code(payload) else None
                if len(found) == len(messages):
                    return [found[index] for index in range(len(messages))]
        raise AssertionError("unreachable")

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """Ask for a list; return type and payload of each entry. Asked again when it changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            entries, whole = self._dump_once(message)
            if whole:
                return entries
        raise NetlinkError(errno.EINTR, f"{message.title}: the list changes faster than it can be read")

    def send_batch(self, messages: Sequence[Message]) -> dict[int, NetlinkError | None]:
        """Send an nfnetlink transaction, whose first and last message are its brackets.

        Returns what became of each message by its index. A refusal of the whole is under index 0; it may be the only
        entry. The messages between the brackets must ask for an acknowledgement.
        """
        first = self._send(messages)
        found: dict[int, NetlinkError | None] = {}
        for kind, sequence, flags, payload in self._receive():
            index = sequence - first
            if kind != _ERROR or not 0 <= index < len(messages):
                continue
            found[index] = _failure(payload, messages[index].title, flags) if _code(payload) else None
            if found.get(0) or len(found.keys() - {0}) == len(messages) - 2:
                return found
        raise AssertionError("unreachable")

    def _dump_once(self, message: Message) -> tuple[list[tuple[int, bytes]], bool]:
        first = self._send([replace(message, flags=message.flags | DUMP)])
        entries: list[tuple[int, bytes]] = []
        whole = True
        for kind, sequence, flags, payload in self._receive():
            if sequence != first:
                continue
            whole = whole and not flags & _DUMP_INTERRUPTED
            if kind == _DONE or (kind == _ERROR and not _code(payload)):
                if len(payload) >= _CODE.size and _code(payload) < 0:
                    raise _failure(payload, message.title)
                return entries, whole
            if kind == _ERROR:
                raise _failure(payload, message.title, flags)
            entries.append((kind, payload))
        raise AssertionError("unreachable")

    def _send(self, messages: Sequence[Message]) -> int:
        first = self._sequence + 1
        self._sequence += len(messages)
        content = b"".join(message.encode(first + index) for index, message in enumerate(messages))
        self._socket.sendto(content, (0, 0))
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, sequence number, flags and payload of messages for ever; the socket's time-out bounds it."""
        while True:
            content = self._socket.recv(_READ_BYTES)
            at = 0
            while at + _HEADER.size <= len(content):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(content, at)
                if length < _HEADER.size:
                    break
                yield kind, sequence, flags, content[at + _HEADER.size : at + length]
                at += (length + 3) & ~3


def _code(payload: bytes) -> int:
    return int(_CODE.unpack_from(payload)[0])


def _failure(payload: bytes, what: str, flags: int = 0) -> NetlinkError:
    """Make an error of an error message; with what the kernel said in words, where it did."""
    number = -_code(payload)
    words = os.strerror(number)
    if flags & _HAS_ATTRIBUTES:
        echoed = _HEADER.size if flags & _CAPPED else _HEADER.unpack_from(payload, _CODE.size)[0]
        said = parse(payload[_CODE.size + ((echoed + 3) & ~3) :]).get(_ERROR_TEXT, b"").rstrip(b"\0")
        words = f"{words} ({said.decode(errors='replace')})" if said else words
    return NetlinkError(number, f"{what}: {words}" if what else words)
