"""The node's settings that routing for pods needs, and how they are put back (ip-sysctl in the kernel's documentation).

Paths below /proc/sys/net mean the network namespace of the thread that opens them.
"""

import contextlib
import json
from pathlib import Path

from crinoid.core.api.linux.files import write_atomically
from crinoid.core.api.linux.procfs import read_lines

_ROOT = Path("/proc/sys/net")
_FORWARD_4 = "ipv4/ip_forward"
_FORWARD_6 = "ipv6/conf/all/forwarding"
_ADVERTISED_DEFAULT = 0x00010000 | 0x00040000  # RTF_DEFAULT, RTF_ADDRCONF (linux/ipv6_route.h)


def has_ipv6() -> bool:
    """Return whether the node speaks IPv6 at all."""
    try:
        return (_ROOT / "ipv6/conf/all/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


class Forwarding:
    """Forwarding on the whole node. What was changed is kept in a file, to be put back when nobody needs it."""

    def __init__(self, record: Path) -> None:
        self._record = record

    def enable(self, *, ipv6: bool) -> None:
        """Let the node forward. Idempotent; raises OSError."""
        wanted = {_FORWARD_4: "1"}
        if ipv6:
            # A node that forwards forgets the default route that it learned from an advertisement, unless told not to.
            if self._read(_FORWARD_6) == "0":
                wanted.update({f"ipv6/conf/{name}/accept_ra": "2" for name in _advertised_interfaces()})
            wanted[_FORWARD_6] = "1"
        changed = {name: old for name, value in wanted.items() if (old := self._read(name)) != value}
        if not changed:
            return
        write_atomically(self._record, json.dumps({**changed, **self._load()}).encode())
        for name, value in wanted.items():
            if name in changed:
                (_ROOT / name).write_text(value)

    def restore(self) -> None:
        """Put back what ``enable`` changed. Idempotent; what is gone by now is left out."""
        for name, value in reversed(self._load().items()):
            with contextlib.suppress(OSError):
                (_ROOT / name).write_text(value)
        self._record.unlink(missing_ok=True)

    def _load(self) -> dict[str, str]:
        try:
            content = json.loads(self._record.read_bytes())
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in content.items()} if isinstance(content, dict) else {}

    @staticmethod
    def _read(name: str) -> str:
        return (_ROOT / name).read_text().strip()


def open_loopback(bridge: str) -> None:
    """Let the node's own processes reach host ports by 127.0.0.1; the rules keep pods away from it."""
    (_ROOT / f"ipv4/conf/{bridge}/route_localnet").write_text("1")


def enable_ipv6(interface: str) -> None:
    """Let an interface have IPv6 addresses, whatever the default is, and use them at once; call it before it is up.

    Looking for duplicates takes seconds, in which a bridge can't even ask for its neighbours. Its addresses, and those
    of pods, are nobody else's by construction.
    """
    directory = _ROOT / "ipv6/conf" / interface
    (directory / "disable_ipv6").write_text("0")
    (directory / "accept_dad").write_text("0")


def _advertised_interfaces() -> list[str]:
    """Return the interfaces whose default route came by router advertisement and is accepted as such."""
    found = set()
    for line in read_lines("/proc/thread-self/net/ipv6_route"):
        fields = line.split()
        if int(fields[8], 16) & _ADVERTISED_DEFAULT == _ADVERTISED_DEFAULT:
            found.add(fields[9])
    return [name for name in sorted(found) if (_ROOT / f"ipv6/conf/{name}/accept_ra").read_text().strip() == "1"]
