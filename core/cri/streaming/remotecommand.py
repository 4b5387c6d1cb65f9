"""An exec or attach between a client's streams and a session, whatever the client speaks.

The protocols ``channel.k8s.io`` (v1) to ``v5.channel.k8s.io`` differ in how an error is told: v1 to v3 as text, from v4
on as a Status of Kubernetes' API (meta/v1) in JSON; and in resizing, which came with v3.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from crinoid.core.api.sessions import AttachSession, ByteSink, ByteSource, ExecSession, Session
from crinoid.core.api.values.runtime import TerminalSize
from crinoid.core.cri.expected import expected
from crinoid.core.cri.streaming.protocols import CHANNELS, ERROR, RESIZE, STDERR, STDIN, STDOUT
from crinoid.core.cri.streaming.spdy import SpdyStream, StreamRefused
from crinoid.core.cri.streaming.websocket import Channel, Channels
from crinoid.core.lifecycle.streams import StreamChoice

LOG = logging.getLogger("crinoid.streaming")

SPDY_PROTOCOLS = {
    "v5.channel.k8s.io": 5,
    "v4.channel.k8s.io": 4,
    "v3.channel.k8s.io": 3,
    "v2.channel.k8s.io": 2,
    "channel.k8s.io": 1,
}
WEBSOCKET_PROTOCOLS = {
    "v5.channel.k8s.io": 5,
    "v4.channel.k8s.io": 4,
    "v4.base64.channel.k8s.io": 4,
    "channel.k8s.io": 1,
    "base64.channel.k8s.io": 1,
}
_MAX_SIZE_BYTES = 1 << 12
_MAX_STATUS_CHARACTERS = 8000
_GOOD: Mapping[str, object] = {"metadata": {}, "status": "Success"}


class Duplex(ByteSource, ByteSink, Protocol):
    """A client's stream."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client's streams by their names, the version of its protocol, and the event of its leaving."""

    version: int
    streams: Mapping[str, Duplex]
    gone: asyncio.Event


@dataclass(slots=True)
class SpdyStreams:
    """Collects the streams that a client opens, until they are complete."""

    wanted: frozenset[str]
    streams: dict[str, SpdyStream] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def accept(self, stream: SpdyStream) -> None:
        """Take a stream by its header ``streamtype``."""
        kind = stream.headers.get("streamtype", "")
        if kind not in CHANNELS or kind in self.streams:
            raise StreamRefused
        self.streams[kind] = stream
        if self.wanted <= self.streams.keys():
            self.complete.set()


def expected_streams(choice: StreamChoice, version: int) -> frozenset[str]:
    """Name the streams that a client has to open."""
    wanted = {ERROR}
    for name, is_wanted in ((STDIN, choice.stdin), (STDOUT, choice.stdout), (STDERR, choice.stderr)):
        wanted |= {name} if is_wanted else set()
    return frozenset(wanted | ({RESIZE} if choice.terminal and version >= 3 else set()))


async def channel_streams(channels: Channels, choice: StreamChoice) -> Mapping[str, Channel]:
    """Name a WebSocket's channels and tell the client that they are there."""
    named = dict(zip(CHANNELS, channels.all, strict=True))
    wanted = {*expected_streams(choice, 1), RESIZE}
    for name in CHANNELS:
        if name not in wanted:
            named.pop(name).inbox.discard()
    first = next(name for name in (STDOUT, STDERR, ERROR) if name in named)
    await named[first].announce()
    return named


async def run_exec(client: Client, start: Callable[[], Awaitable[ExecSession]]) -> None:
    """Carry an exec to its end, or until the client has gone; tell its outcome on the error stream."""

    async def run() -> Mapping[str, object]:
        session = await start()
        try:
            await _carry(client, session)
            return exit_status(await session.wait())
        finally:
            await session.close()

    await _run(client, run)


async def run_attach(client: Client, start: Callable[[], Awaitable[AttachSession]]) -> None:
    """Carry an attach until the container has ended or the client has gone."""

    async def run() -> Mapping[str, object]:
        session = await start()
        try:
            await _carry(client, session)
            return _GOOD
        finally:
            await session.close()

    await _run(client, run)


def exit_status(code: int) -> Mapping[str, object]:
    """Return the Status for an exit code."""
    if code == 0:
        return _GOOD
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with exit code {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def error_status(message: str) -> Mapping[str, object]:
    """Return the Status for what could not be done."""
    text = message[:_MAX_STATUS_CHARACTERS]
    return {
        "metadata": {},
        "status": "Failure",
        "message": text,
        "reason": "InternalError",
        "details": {"causes": [{"message": text}]},
        "code": 500,
    }


async def _run(client: Client, run: Callable[[], Awaitable[Mapping[str, object]]]) -> None:
    """Run until the outcome is there or the client has gone; in that case give up what runs."""
    running = asyncio.ensure_future(run())
    leaving = asyncio.ensure_future(client.gone.wait())
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not running.done():
            running.cancel()
            await asyncio.wait({running})
    if running.cancelled():
        return
    try:
        status = running.result()
    except BrokenPipeError:  # the client has gone
        return
    except Exception as error:
        if (known := expected(error)) is None:
            raise
        status = error_status(known.message)
    await _tell(client, status)


async def _tell(client: Client, status: Mapping[str, object]) -> None:
    """Finish the outputs, then say what came of it."""
    for name in (STDOUT, STDERR):
        if name in client.streams:
            await client.streams[name].close()
    text = json.dumps(status) if client.version >= 4 else str(status.get("message", ""))
    with contextlib.suppress(BrokenPipeError):
        if text:
            await client.streams[ERROR].write(text.encode())
    await client.streams[ERROR].close()


async def _carry(client: Client, session: ExecSession | AttachSession) -> None:
    """Copy until all output has come to its end and the session is over; input and sizes are taken meanwhile."""
    streams = client.streams
    if client.version == 1 and STDIN in streams:  # v1 has it so that the server finishes its side at once
        await streams[STDIN].close()
    background = _start(
        _copy_input(client, streams.get(STDIN), session.stdin), _take_sizes(streams.get(RESIZE), session)
    )
    outputs = _start(
        _copy_output(session.stdout, streams.get(STDOUT)), _copy_output(session.stderr, streams.get(STDERR))
    )
    try:
        await asyncio.gather(*outputs)
        await session.wait()
    finally:
        await _stop(*outputs, *background)


def _start(*work: Coroutine[object, object, None]) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(one) for one in work]


async def _stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(error, Exception):
            LOG.debug("a stream ended with %r", error)


async def _copy_output(source: ByteSource | None, sink: Duplex | None) -> None:
    if source is None:
        return
    while piece := await source.read():
        if sink is not None:
            await sink.write(piece)


async def _copy_input(client: Client, source: Duplex | None, sink: ByteSink | None) -> None:
    """Copy to the end; what nobody reads is dropped, so that it does not hold up the connection.

    When the client has gone, the session is closed as a whole: a process must not meet the end of its input first and
    write to what nobody reads.
    """
    if source is None:
        return
    try:
        while piece := await source.read():
            if sink is not None:
                await sink.write(piece)
    except BrokenPipeError:
        while await source.read():
            pass
    if sink is not None and not client.gone.is_set():
        await sink.close()


async def _take_sizes(source: Duplex | None, session: Session) -> None:
    """Take terminal sizes: JSON objects one after the other, with or without anything between them.

    Of very many that have come meanwhile only the last are taken, and what is much longer than any size is dropped.
    """
    text = ""
    decoder = json.JSONDecoder()
    while source is not None and (piece := await source.read()):
        text = (text + piece.decode(errors="replace")).lstrip()
        if len(text) > _MAX_SIZE_BYTES:
            text = "{" + text[-_MAX_SIZE_BYTES:].partition("{")[2]
        while text:
            try:
                found, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):  # not whole yet
                break
            text = text[end:].lstrip()
            if (size := parse_size(found)) is not None:
                await session.resize(size)


def parse_size(found: object) -> TerminalSize | None:
    """Read ``{"Width": 80, "Height": 24}``; ``None`` for anything else."""
    if not isinstance(found, dict):
        return None
    width, height = found.get("Width"), found.get("Height")
    if isinstance(width, int) and isinstance(height, int) and 0 < width < 1 << 16 and 0 < height < 1 << 16:
        return TerminalSize(width, height)
    return None
