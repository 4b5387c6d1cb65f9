"""A small IPAM that speaks ``protocol``: addresses of one range, kept in a file. For tests, and to begin with.

python -m crinoid_network_ipam.server --socket /run/ipam/ipam.sock --range 10.88.0.0/24 --state /var/lib/ipam.json
"""

import argparse
import json
import os
import socketserver
import threading
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from pathlib import Path

_MAX_REQUEST_BYTES = 1 << 16
_REMEMBERED = 10_000
"""Of how many tokens it is remembered that they were released."""


class Ipam:
    """Who has which address of a range. The first one is the gateway's. May be called in any thread."""

    def __init__(self, subnet: IPv4Network, state: Path) -> None:
        self._subnet = subnet
        self._gateway = next(subnet.hosts())
        self._state = state
        self._lock = threading.Lock()
        known = json.loads(state.read_text()) if state.exists() else {"given": {}, "released": []}
        self._given: dict[str, tuple[str, str]] = {
            token: (one, other) for token, (one, other) in known["given"].items()
        }
        self._released: dict[str, None] = dict.fromkeys(known["released"])

    def answer(self, request: Mapping[str, object]) -> dict[str, object]:
        """Do what is asked; each change is on the disk before it is told."""
        with self._lock:
            match request:
                case {"act": "status"}:
                    return {}
                case {"act": "allocate", "owner": str(owner), "token": str(token)}:
                    return self._allocate(owner, token, request.get("asked"))
                case {"act": "release", "token": str(token)}:
                    self._given.pop(token, None)
                    self._released[token] = None
                    self._released = dict.fromkeys(
                        islice(self._released, max(0, len(self._released) - _REMEMBERED), None)
                    )
                    self._save()
                    return {}
                case {"act": "list", "owner": str(owner)}:
                    return {"tokens": [token for token, (whose, _) in self._given.items() if whose == owner]}
        return {"error": f"this is no request: {request!r:.200}"}

    def _allocate(self, owner: str, token: str, asked: object) -> dict[str, object]:
        if token in self._released:
            return {"error": f"token {token} was released"}
        if token not in self._given:
            wanted = [IPv4Address(str(one)) for one in asked] if isinstance(asked, list) else []
            taken = {address for _, address in self._given.values()}
            candidates = wanted or islice(self._subnet.hosts(), 1, None)
            free = next((one for one in candidates if one in self._subnet and str(one) not in taken), None)
            if free is None:
                return {"error": f"no address of {', '.join(map(str, wanted)) or self._subnet} is free", "full": True}
            self._given[token] = (owner, str(free))
            self._save()
        address = self._given[token][1]
        return {"address": f"{address}/{self._subnet.prefixlen}", "gateway": str(self._gateway)}

    def _save(self) -> None:
        new = self._state.with_suffix(".new")
        with new.open("w") as file:
            json.dump({"given": self._given, "released": list(self._released)}, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._state)


class Server(socketserver.ThreadingUnixStreamServer):
    """Serves an IPAM at a socket that is root's alone."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, place: Path, ipam: Ipam) -> None:
        self.ipam = ipam
        place.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            super().__init__(str(place), _Handler)
        finally:
            os.umask(umask)


class _Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        try:
            request = json.loads(self.rfile.readline(_MAX_REQUEST_BYTES))
            answer = self.server.ipam.answer(request)
        except ValueError as error:
            answer = {"error": f"this is no request: {error}"}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--range", type=IPv4Network, required=True)
    parser.add_argument("--state", type=Path, required=True)
    given = parser.parse_args()
    with Server(given.socket, Ipam(given.range, given.state)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
