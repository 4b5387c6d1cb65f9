"""Exec, attach and port forward with streams: what each of them means for a container or a pod.

Asked by ``cri.streaming`` twice: ``check_…`` when a URL is given out, and the act itself when somebody comes with it;
the state is looked at both times, as a minute may lie between.
"""

import asyncio
import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, Unavailable
from crinoid.core.api.linux import namespaces
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.runtime import AttachRequest, ExecStreamRequest
from crinoid.core.lifecycle.containers.builder import exec_process
from crinoid.core.lifecycle.containers.containers import ContainerService
from crinoid.core.lifecycle.pods.pods import PodService
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord, PodState

_CONNECT_S = 30.0
_MAKING = 4
"""Sockets that are made in pods' namespaces at one time, each by a thread: others need threads too."""
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_DEFAULT_TERM = "TERM=xterm"


@dataclass(frozen=True, slots=True)
class StreamChoice:
    """The streams that a client wants, and whether it has a terminal at its end."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    terminal: bool = False


class StreamService:
    """Opens sessions in containers and connections into pods."""

    def __init__(self, containers: ContainerService, pods: PodService) -> None:
        self._containers = containers
        self._pods = pods
        self._making = asyncio.Semaphore(_MAKING)

    def check_exec(self, container_id: str, command: tuple[str, ...]) -> str:
        """Return the full id of a container that a command can be executed in. Raises as ``execute``."""
        if not command or not command[0]:
            raise InvalidArgument("the command to execute is empty")
        return self._containers.running(container_id, "nothing can be executed in it").id

    def check_attach(self, container_id: str) -> str:
        """Return the full id of a container that can be attached to. Raises as ``attach``."""
        return self._attachable(container_id).id

    def check_forward(self, pod_id: str) -> str:
        """Return the full id of a pod that ports can be forwarded to. Raises NotFound, FailedPrecondition."""
        return self._ready(pod_id).id

    async def execute(self, container_id: str, command: tuple[str, ...], choice: StreamChoice) -> ExecSession:
        """Start a command. Raises NotFound, FailedPrecondition unless the container runs, and what the runtime does."""
        record = self._containers.running(container_id, "nothing can be executed in it")
        with on_behalf_of(record.pod_id, record.id):
            process = await asyncio.to_thread(exec_process, record, command)
            request = ExecStreamRequest(
                process=_with_terminal(process, choice.terminal),
                stdin=choice.stdin,
                stdout=choice.stdout,
                stderr=choice.stderr and not choice.terminal,
            )
            async with self._containers.acting_on(record, "exec"):
                return await self._containers.slot_of(record).exec_stream(record.handle, request)

    async def attach(self, container_id: str, choice: StreamChoice) -> AttachSession:
        """Join the streams of a container that runs, or waits to be started. Whether it has a terminal, it knows."""
        record = self._attachable(container_id)
        request = AttachRequest(
            stdin=choice.stdin and record.config.stdin,
            stdout=choice.stdout,
            stderr=choice.stderr and not record.config.tty,
        )
        with on_behalf_of(record.pod_id, record.id):
            async with self._containers.acting_on(record, "attach"):
                return await self._containers.slot_of(record).attach(record.handle, request)

    async def connect(self, pod_id: str, port: int) -> socket.socket:
        """Connect to a port on the pod's own loopback address, of IPv4 or else of IPv6, or as its runtime does.

        Returns a socket that does not block.

        Raises Unavailable when nobody listens, NotFound, FailedPrecondition for a pod that was stopped.
        """
        pod = self._ready(pod_id)
        slot = self._pods.runtime_of(pod)
        if slot is not None and slot.implements("forward_port"):
            return await slot.forward_port(pod.sandbox, port)
        refusals = []
        for family, address in _LOOPBACKS:
            try:
                async with self._making:
                    made = await asyncio.to_thread(_make_socket, pod.namespaces.get("network"), family)
                return await _connect(made, (address, port))
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                refusals.append(f"{address}: {os.strerror(error.errno or errno.ECONNABORTED)}")
        raise Unavailable(f"port {port} of pod {pod.id} can't be reached ({'; '.join(refusals)})")

    def _attachable(self, container_id: str) -> ContainerRecord:
        record = self._containers.get(container_id)
        if record.state not in (ContainerState.CREATED, ContainerState.RUNNING):
            raise FailedPrecondition(f"container {record.id} is {record.state.value}, so nobody can attach to it")
        return record

    def _ready(self, pod_id: str) -> PodRecord:
        pod = self._pods.get(pod_id)
        if pod.state is not PodState.READY:
            raise FailedPrecondition(f"pod {pod.id} is not ready, so no port of it can be forwarded")
        return pod


def _with_terminal(process: dict[str, Any], terminal: bool) -> dict[str, Any]:
    """A program on a terminal wants to know of which kind it is, where the image does not tell."""
    env = list(process.get("env") or ())
    if terminal and not any(entry.startswith("TERM=") for entry in env):
        env.append(_DEFAULT_TERM)
    return process | {"terminal": terminal, "env": env}


async def _connect(made: socket.socket, address: tuple[str, int]) -> socket.socket:
    try:
        async with asyncio.timeout(_CONNECT_S):
            await asyncio.get_running_loop().sock_connect(made, address)
    except TimeoutError:
        made.close()
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    except BaseException:
        made.close()
        raise
    return made


def _make_socket(netns: Path | None, family: socket.AddressFamily) -> socket.socket:
    """Make a socket inside a network namespace: it stays in the one that it was made in."""

    def make() -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        made.setblocking(False)
        return made

    return make() if netns is None else namespaces.call_in(netns, make)
