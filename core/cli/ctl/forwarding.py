"""The verb port-forward: listens on this host's loopback addresses and carries each connection into the pod."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import click

from crinoid.core.api.errors import CrinoidError, NotFound, Unavailable
from crinoid.core.cli.ctl.completion import POD
from crinoid.core.cli.ctl.directory import find_pod
from crinoid.core.cli.ctl.session import Session, in_session, tell
from crinoid.core.cli.ctl.streams import dialing as dialing_options
from crinoid.core.cri.streaming.client.dialing import Dialing
from crinoid.core.cri.streaming.client.portforward import Forwarder, port_forwarder

_LOOPBACKS = ("127.0.0.1", "::1")
_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_POLL_S = 1.0
_MAX_PORT = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class Pair:
    """A local port, 0 for any, and the pod's that it leads to."""

    local: int
    remote: int


class _PortPair(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.4 on
    name = "[local:]remote"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Pair:
        """Read ``80``, ``8080:80`` or ``:80``, which takes any local port."""
        if isinstance(value, Pair):
            return value
        local, colon, remote = str(value).rpartition(":")
        numbers = [text if text or not colon else "0" for text in (local if colon else remote, remote)]
        if not all(text.isascii() and text.isdigit() and int(text) <= _MAX_PORT for text in numbers):
            self.fail(f"{value!r}: ports must be numbers up to {_MAX_PORT}, such as 8080:80", param, ctx)
        pair = Pair(*map(int, numbers))
        if not remote or not pair.remote:
            self.fail(f"{value!r}: name the pod's port, such as 8080:80", param, ctx)
        return pair


@click.command("port-forward")
@click.argument("pod", type=POD)
@click.argument("pairs", nargs=-1, required=True, type=_PortPair(), metavar="[LOCAL:]REMOTE...")
@dialing_options
@in_session
async def port_forward(session: Session, pod: str, pairs: tuple[Pair, ...], dialing: Dialing) -> None:
    """Forward local ports to ports of a pod until interrupted; `:80` takes any local port."""
    found = await find_pod(session, pod)
    request = {"pod_sandbox_id": found["id"], "port": [pair.remote for pair in pairs]}
    answer = await session.ask("PortForward", request)
    async with port_forwarder(answer["url"], dialing) as forwarder, _carrier(forwarder) as carrier:
        for pair in pairs:
            await carrier.listen(pair)
        await _until_gone(session, found["id"], forwarder)


async def _until_gone(session: Session, pod_id: str, forwarder: Forwarder) -> None:
    """Wait until the connection to the endpoint is lost, or the pod has ended: with no connection open, the endpoint
    tells nothing of that. Raises Unavailable with what it was."""
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(forwarder.gone.wait(), _POLL_S)
            raise Unavailable(f"the connection to pod {pod_id} was lost, and with it all that were forwarded")
        try:
            status = (await session.ask("PodSandboxStatus", {"pod_sandbox_id": pod_id}))["status"]
        except NotFound:
            raise Unavailable(f"pod {pod_id} has been removed") from None
        if status["state"] != "SANDBOX_READY":
            raise Unavailable(f"pod {pod_id} has been stopped")


VERBS = (port_forward,)


class _Carrier:
    """The listening sockets, and a task for each connection."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, pair: Pair) -> None:
        """Listen on all loopback addresses that there are. Raises Unavailable when the port is taken."""
        local = pair.local
        for address in _LOOPBACKS:
            try:
                server = await asyncio.start_server(self._accept(pair.remote), address, local)
            except OSError as error:
                if address != _LOOPBACKS[0] and error.errno in _ABSENT:
                    continue
                reason = os.strerror(error.errno) if error.errno else str(error)
                raise Unavailable(f"can't listen on {address} port {local}: {reason}") from error
            self._servers.append(server)
            local = server.sockets[0].getsockname()[1]
            place = f"[{address}]" if ":" in address else address
            click.echo(f"Forwarding from {place}:{local} -> {pair.remote}")

    async def close(self) -> None:
        """Listen no more and end all connections."""
        for server in self._servers:
            server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._carry(port, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return accept

    async def _carry(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._forwarder.carry(port, reader, writer)
        except CrinoidError as error:
            tell(error.message)


@contextlib.asynccontextmanager
async def _carrier(forwarder: Forwarder) -> AsyncIterator[_Carrier]:
    carrier = _Carrier(forwarder)
    try:
        yield carrier
    finally:
        await carrier.close()
