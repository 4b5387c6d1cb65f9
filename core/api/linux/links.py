"""Network interfaces of the calling thread's network namespace: their names, and whether they are up.

For another namespace, call these by ``namespaces.call_in``. Sources: netdevice(7), rtnetlink(7).
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_REQUEST = struct.Struct("16sH22x")  # struct ifreq with ifr_flags
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ATTRIBUTE = struct.Struct("=HH")
_GET_LINK, _DUMP_REQUEST = 18, 0x301
_ERROR, _DONE = 2, 3
_IFLA_NAME, _IFLA_LINK, _IFLA_LINK_NETNSID = 3, 5, 37
_READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class End:
    """One end of a pair whose other end is in another network namespace: its index here, and that one's there."""

    name: str
    index: int
    other: int


def names() -> tuple[str, ...]:
    """Return the names of all interfaces, in the order of their index."""
    return tuple(name for _, name in sorted(socket.if_nameindex()))


def ends() -> tuple[End, ...]:
    """Return all interfaces whose other end is in another namespace. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as channel:
        length = _HEADER.size + _LINK.size
        channel.sendall(_HEADER.pack(length, _GET_LINK, _DUMP_REQUEST, 1, 0) + _LINK.pack(0, 0, 0, 0, 0))
        found: list[End] = []
        while True:
            for kind, payload in _messages(channel.recv(_READ_BYTES)):
                if kind == _DONE:
                    return tuple(found)
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", payload)[0]
                    raise OSError(number, f"interfaces can't be listed: {os.strerror(number)}")
                index, values = _LINK.unpack_from(payload)[2], dict(_attributes(payload[_LINK.size :]))
                if _IFLA_LINK in values and _IFLA_LINK_NETNSID in values:
                    name = values[_IFLA_NAME].rstrip(b"\0").decode(errors="replace")
                    found.append(End(name, index, int.from_bytes(values[_IFLA_LINK], "little")))


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(max(length, _ATTRIBUTE.size) + 3) & ~3 :]


def is_up(name: str) -> bool:
    """Return whether the interface is up; raise OSError when there is none of this name."""
    return bool(_flags(name) & _IFF_UP)


def set_up(name: str) -> None:
    """Bring the interface up. Idempotent; raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        fcntl.ioctl(channel, _SIOCSIFFLAGS, _REQUEST.pack(name.encode(), _flags(name) | _IFF_UP))


def _flags(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        answer = fcntl.ioctl(channel, _SIOCGIFFLAGS, _REQUEST.pack(name.encode(), 0))
    return int(_REQUEST.unpack(answer)[1])
