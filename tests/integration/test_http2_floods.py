"""What HTTP/2 lets a client of the CRI socket do: the daemon goes on to answer others, and its memory has a limit."""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from integration.conftest import Node
from integration.own_nodes import own_node
from support import http2
from support.cri import Cri
from support.http2_floods import FLOODS, Flood
from support.patience import patient

pytestmark = pytest.mark.alone
CALLS = 20
"""So many does another client make during a flood, and for half a second at least."""
LEAST_S = 0.5
MIB = 1 << 20
MAX_CONNECTIONS = 24
MAX_STREAMS = 16
LIMITS = f"[server]\nmax_connections = {MAX_CONNECTIONS}\nmax_streams = {MAX_STREAMS}\n"


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with own_node(tmp_path_factory.mktemp("flooded"), LIMITS) as node:
        yield node


class Watch(threading.Thread):
    """Another client: asks for the version all the time, and looks at the daemon's memory."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        assert node.daemon.process is not None
        self._status = Path(f"/proc/{node.daemon.process.pid}/status")
        self._cri = Cri(node.daemon.socket)
        self._cri.call("Version")
        self._ended = threading.Event()
        self.before = self.peak = self.resident()
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Ask until ``end``."""
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                self._cri.call("Version", timeout_s=30)
            except grpc.RpcError as error:
                self.failures.append(f"{error.code()} {error.details()}")
            self.seconds.append(time.monotonic() - began)
            self.peak = max(self.peak, self.resident())
            self._ended.wait(0.01)
        self._cri.close()

    def end(self) -> None:
        """Stop asking."""
        self._ended.set()
        self.join(patient(60))
        assert not self.is_alive()

    def resident(self) -> int:
        """Return the daemon's memory in bytes."""
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


def watch(node: Node, flood: Flood, *, calls: int = CALLS, connections: int = 1) -> Watch:
    """Let a flood go on for a while beside another client; the connection may be cut off, and is made anew then."""
    watching = Watch(node)
    watching.start()
    least, most = time.monotonic() + LEAST_S, time.monotonic() + patient(10)

    def goes_on() -> bool:
        return time.monotonic() < (least if len(watching.seconds) >= calls else most)

    def pour() -> None:
        while goes_on():
            with contextlib.suppress(OSError), http2.connection(node.daemon.socket) as client:
                flood(client, goes_on)

    others = [threading.Thread(target=pour) for _ in range(connections - 1)]
    try:
        for other in others:
            other.start()
        pour()
    finally:
        watching.end()
        for other in others:
            other.join()
    return watching


@pytest.mark.parametrize("name", list(FLOODS))
def test_others_are_answered(flooded: Node, name: str) -> None:
    watching = watch(flooded, FLOODS[name])
    assert watching.failures == []
    assert len(watching.seconds) > 5
    assert statistics.median(watching.seconds) < patient(0.25)
    # Of a call with references, grpc tells the daemon although it refuses it, with half of them: 16 MB.
    assert watching.peak - watching.before < (512 if name == "references" else 150) * MIB


def test_headers_that_are_referred_to_on_many_connections(flooded: Node) -> None:
    """All that some connections may have at once, and what is over and not gone yet. The memory is given back."""
    watching = watch(flooded, FLOODS["references"], calls=1, connections=4)
    assert watching.peak - watching.before < 1024 * MIB
    resident = watching.peak
    deadline = time.monotonic() + patient(20)
    while not answers_anew(flooded) or (resident := watching.resident()) - watching.before > 60 * MIB:
        assert time.monotonic() < deadline, f"{watching.before} bytes before, {resident} after"
        time.sleep(0.2)


def answers_anew(node: Node) -> bool:
    """Return whether there is room for a new client."""
    with contextlib.closing(Cri(node.daemon.socket)) as late:
        try:
            late.call("Version", timeout_s=5)
        except grpc.RpcError:
            return False
        return True


def test_connections_have_a_limit(flooded: Node) -> None:
    """Who is connected goes on; when the many have gone, there is room again."""
    watching = Watch(flooded)
    watching.start()
    cut_off, clients = 0, [socket.socket(socket.AF_UNIX) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        for client in clients:
            client.settimeout(patient(0.5))
            client.connect(str(flooded.daemon.socket))
            with contextlib.suppress(OSError):
                client.sendall(http2.PREFACE + http2.SETTINGS)
        for client in clients:
            try:
                cut_off += not client.recv(1)
            except ConnectionResetError:
                cut_off += 1
            except TimeoutError:
                pass
    finally:
        for client in clients:
            client.close()
        watching.end()
    assert cut_off >= 2 * MAX_CONNECTIONS
    assert watching.failures == []
    deadline = time.monotonic() + patient(20)
    while not answers_anew(flooded):
        assert time.monotonic() < deadline, "no room after all of them have gone"
        time.sleep(0.05)
