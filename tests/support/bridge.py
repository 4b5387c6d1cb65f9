"""A node in a network namespace of its own, with a neighbour outside, and pods that serve and call."""

import contextlib
import functools
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from crinoid.core.api.host import Host
from crinoid.core.api.linux import libc, links, namespaces
from crinoid.core.api.values.network import Attachment, NetworkRequest
from crinoid.core.api.values.pod import PodMetadata, PortMapping, Protocol
from crinoid.plugins.networks.bridge import BridgeNetwork, BridgeOptions
from support.patience import patient

T = TypeVar("T")

NEW_NETWORK = 0x40000000
OUTSIDE = {4: "192.168.77.2", 6: "fd77::2"}
NODE = {4: "192.168.77.1", 6: "fd77::1"}
SUBNETS = ("10.88.77.0/28", "fd00:88:77::/124")
ANSWER_S = patient(5)
"""Longer than a client waits before it says again what was lost (RFC 6298: one second)."""
UNANSWERED_S = 1.0
"""How long to wait where nobody is to answer."""


@contextlib.contextmanager
def fresh_node() -> Iterator[None]:
    """Put the calling thread into a new network namespace, and back."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("unshare", NEW_NETWORK)
        try:
            links.set_up("lo")
            yield
        finally:
            libc.call("setns", fd, NEW_NETWORK)
    finally:
        os.close(fd)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Pod:
    """A pod that is attached, or is to be."""

    node: "BridgeNode"
    request: NetworkRequest
    attachment: Attachment = field(default_factory=lambda: Attachment(()))

    @property
    def netns(self) -> Path:
        assert self.request.netns is not None
        return self.request.netns

    def address(self, version: int) -> str:
        return next(a for a in self.attachment.addresses if (":" in a) == (version == 6))

    def call(self, function: Callable[[], T]) -> T:
        return namespaces.call_in(self.netns, function)

    def run(self, *command: str) -> str:
        return run("nsenter", f"--net={self.netns}", *command)


class BridgeNode:
    """The node that the calling thread is in: its directories, its pods, its neighbour outside."""

    def __init__(self, root: Path, stack: contextlib.ExitStack, *, outside: bool = True) -> None:
        self.root = root
        self._stack = stack
        self._count = 0
        for directory in ("state", "run"):
            (root / directory).mkdir()
        self.outside = self.make_namespace("outside")
        if outside:
            self._connect_outside()

    def make_namespace(self, name: str) -> Path:
        path = self.root / f"netns-{name}"
        namespaces.pin({"network": path})
        self._stack.callback(namespaces.unpin, path)
        return path

    def host(self, slot: str = "default") -> Host:
        directories = [self.root / kind / slot for kind in ("state", "run")]
        for directory in directories:
            directory.mkdir(exist_ok=True)
        return Host(slot, directories[0], directories[1], logging.getLogger(f"test.{slot}"))

    def driver(self, slot: str = "default", **options: Any) -> BridgeNetwork:
        return BridgeNetwork(BridgeOptions(**{"subnets": SUBNETS, **options}), self.host(slot))

    def request(self, *ports: PortMapping, **more: Any) -> NetworkRequest:
        self._count += 1
        name = f"pod{self._count}"
        metadata = PodMetadata(name, "test", f"uid-{name}")
        return NetworkRequest(
            pod_id=name, metadata=metadata, netns=self.make_namespace(name), port_mappings=ports, **more
        )

    async def attach(self, driver: BridgeNetwork, *ports: PortMapping, **more: Any) -> Pod:
        request = self.request(*ports, **more)
        return Pod(self, request, await driver.attach(request, await driver.plan(request)))

    def _connect_outside(self) -> None:
        run("ip", "link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "out0")
        run("ip", "link", "set", "out0", "netns", str(self.outside))
        inside, outside = ("ip",), ("nsenter", f"--net={self.outside}", "ip")
        for path in (None, self.outside):
            if path:
                namespaces.call_in(path, _skip_duplicate_detection)
            else:
                _skip_duplicate_detection()
        for prefix, name, addresses in ((inside, "up0", NODE), (outside, "out0", OUTSIDE)):
            run(*prefix, "link", "set", "lo", "up")
            run(*prefix, "link", "set", name, "up")
            run(*prefix, "address", "add", f"{addresses[4]}/24", "dev", name)
            run(*prefix, "address", "add", f"{addresses[6]}/64", "dev", name, "nodad")
        run("ip", "route", "add", "default", "via", OUTSIDE[4])
        run("ip", "-6", "route", "add", "default", "via", OUTSIDE[6])


def _skip_duplicate_detection() -> None:
    for name in {"up0", "out0"} & set(links.names()):
        Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")


def port(host_port: int, container_port: int = 80, **more: Any) -> PortMapping:
    return PortMapping(container_port=container_port, host_port=host_port, **more)


@contextlib.contextmanager
def serve(netns: Path | None, version: int, number: int, protocol: Protocol = Protocol.TCP) -> Iterator[None]:
    """Answer everyone with the address that they came from; in a namespace, or on the node."""
    make = functools.partial(_listen, version, number, protocol)
    listener = make() if netns is None else namespaces.call_in(netns, make)
    listener.settimeout(20)
    work = _answer_streams if protocol is Protocol.TCP else _answer_datagrams
    thread = threading.Thread(target=work, args=(listener,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def ask(
    netns: Path | None,
    address: str,
    number: int,
    protocol: Protocol = Protocol.TCP,
    source: str = "",
    timeout_s: float = ANSWER_S,
) -> str:
    """Return the address that the server saw; raise OSError when there is no answer."""

    def make() -> socket.socket:
        kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
        client = socket.socket(_family(address), kind)
        client.settimeout(timeout_s)
        if source:
            client.bind((source, 0))
        return client

    with make() if netns is None else namespaces.call_in(netns, make) as client:
        client.connect((address, number))
        client.send(b"who am I?")
        return client.recv(100).decode()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _listen(version: int, number: int, protocol: Protocol) -> socket.socket:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version == 6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(("::" if version == 6 else "0.0.0.0", number))
    if protocol is Protocol.TCP:
        listener.listen()
    return listener


def _answer_streams(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, address = listener.accept()
            with client:
                client.sendall(address[0].encode())


def _answer_datagrams(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            content, address = listener.recvfrom(100)
            if not content:
                return
            listener.sendto(address[0].encode(), address)
