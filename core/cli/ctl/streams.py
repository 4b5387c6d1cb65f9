"""What the verbs with streams share: how the streaming server is reached, and a command's streams at a terminal."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TextIO

import click

from crinoid.core.cli.ctl.flags import gather
from crinoid.core.cli.ctl.session import Json, Session, tell
from crinoid.core.cli.ctl.terminal import DetachKeys, find_terminal, raw, read_input, sizes, write_output
from crinoid.core.cri.streaming.client.dialing import TRANSPORTS, Dialing
from crinoid.core.cri.streaming.client.remotecommand import Duplex, RemoteCommand, remote_command
from crinoid.core.cri.streaming.protocols import RESIZE, STDERR, STDIN, STDOUT

STDIN_DESCRIPTOR = 0
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

dialing = gather(
    "dialing",
    Dialing,
    click.option(
        "--transport", "-r", type=click.Choice(TRANSPORTS), default="spdy", show_default=True, help="How to stream."
    ),
    click.option("--tls-ca", type=_FILE, metavar="FILE", help="Who signs the streaming server; else the system's."),
    click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate to show to the streaming server."),
    click.option("--tls-key", type=_FILE, metavar="FILE", help="Its key."),
    click.option(
        "--tls-sni", "--tls-server-name", "tls_name", metavar="NAME", help="Name in the streaming server's certificate."
    ),
)


async def stream(
    session: Session,
    rpc: str,
    request: Json,
    dialing: Dialing,
    title: str = "",
    begin: Callable[[], Awaitable[object]] | None = None,
) -> int | None:
    """Ask for a URL with ``Exec`` or ``Attach`` and stream to the end; return the exit code, ``None`` after detaching.

    ``title`` is shown before the output, once the endpoint has granted it; ``begin`` is called when all is connected.
    """
    request = {**request, "stdout": True, "stderr": not request["tty"]}
    names = {name for name in (STDIN, STDOUT, STDERR) if request[name]} | ({RESIZE} if request["tty"] else set())
    answer = await session.ask(rpc, request)
    async with remote_command(answer["url"], frozenset(names), dialing) as command:
        if title:
            click.echo(title)
        if begin is not None:
            await begin()
        with _terminal(names):
            return await _converse(command)


def _terminal(names: set[str]) -> contextlib.AbstractContextManager[None]:
    """Make the local terminal raw where keys are meant for the remote one."""
    is_raw = {STDIN, RESIZE} <= names and os.isatty(STDIN_DESCRIPTOR)
    return raw(STDIN_DESCRIPTOR) if is_raw else contextlib.nullcontext()


async def _converse(command: RemoteCommand) -> int | None:
    """Copy until the command has ended, or the user detaches, for which ``None`` is returned."""
    running = asyncio.create_task(_receive(command))
    leaving = asyncio.create_task(_until_detached(command))
    resizing = asyncio.create_task(_send_sizes(command))
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        leaving.result()
    finally:
        for task in (running, leaving, resizing):
            task.cancel()
        await asyncio.gather(running, leaving, resizing, return_exceptions=True)
    tell("detached")
    return None


async def _receive(command: RemoteCommand) -> int:
    outputs = ((STDOUT, sys.stdout), (STDERR, sys.stderr))
    await _all(*(_copy_output(command.streams[name], here) for name, here in outputs if name in command.streams))
    return await command.outcome()


async def _all(*work: Coroutine[object, object, None]) -> None:
    """Wait for all; when one fails, end the others first."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy_output(source: Duplex, here: TextIO) -> None:
    here.flush()
    while piece := await source.read():
        await write_output(here, piece)


async def _until_detached(command: RemoteCommand) -> None:
    """Copy standard input; return only when the user detaches, since its end is not the command's."""
    if STDIN in command.streams:
        with contextlib.suppress(BrokenPipeError):  # the command takes no more
            if await _copy_input(command.streams[STDIN], DetachKeys() if RESIZE in command.streams else None):
                return
    await asyncio.Event().wait()


async def _copy_input(sink: Duplex, keys: DetachKeys | None) -> bool:
    """Copy to the end, and tell the end; return whether the user wants to detach."""
    while typed := await read_input(STDIN_DESCRIPTOR):
        data, detaches = keys.feed(typed) if keys else (typed, False)
        if data:
            await sink.write(data)
        if detaches:
            return True
    await sink.close()
    return False


async def _send_sizes(command: RemoteCommand) -> None:
    terminal = find_terminal()
    if RESIZE not in command.streams or terminal is None:
        return
    with contextlib.suppress(BrokenPipeError, OSError):
        async for size in sizes(terminal):
            await command.resize(size)
