"""Network interfaces of the calling thread's network namespace: their names, and whether they are up.

For another namespace, call these by ``namespaces.call_in``. Sources: netdevice(7).
"""

import fcntl
import socket
import struct

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_REQUEST = struct.Struct("16sH22x")  # struct ifreq with ifr_flags


def names() -> tuple[str, ...]:
    """Return the names of all interfaces, in the order of their index."""
    return tuple(name for _, name in sorted(socket.if_nameindex()))


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
