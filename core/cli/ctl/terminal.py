"""The user's end of a stream: standard input and outputs, the terminal in raw mode, its size, the keys that detach.

Descriptors are waited for without O_NONBLOCK, which would be set for every program that shares them.
"""

import asyncio
import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TextIO

from crinoid.core.api.values.runtime import TerminalSize

_READ_BYTES = 1 << 16
_WRITE_BYTES = select.PIPE_BUF
"""A pipe that is ready takes so much without blocking, pipe(7)."""
_DEADLY = (signal.SIGTERM, signal.SIGHUP)


class DetachKeys:
    """Finds ctrl-p ctrl-q in what is typed; ctrl-p is held back until the next key."""

    SEQUENCE = b"\x10\x11"

    def __init__(self) -> None:
        self._held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """Return what is to be sent, and whether the user wants to detach."""
        data, self._held = self._held + typed, b""
        before, found, _ = data.partition(self.SEQUENCE)
        if not found and data.endswith(self.SEQUENCE[:1]):
            before, self._held = data[:-1], data[-1:]
        return before, bool(found)


async def read_input(descriptor: int) -> bytes:
    """Return what comes next; ``b""`` at the end, and when the terminal has gone."""
    await _until_ready(descriptor, select.POLLIN)
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError:
        return b""


async def write_output(stream: TextIO, data: bytes) -> None:
    """Write all of it. Raises BrokenPipeError when nobody reads."""
    try:
        descriptor = stream.fileno()
    except OSError:  # a stream within this process, io.UnsupportedOperation
        stream.buffer.write(data)
        stream.flush()
        return
    view = memoryview(data)
    while view:
        await _until_ready(descriptor, select.POLLOUT)
        view = view[os.write(descriptor, view[:_WRITE_BYTES]) :]


def find_terminal() -> int | None:
    """Return the first of the standard descriptors that is a terminal."""
    return next((descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)), None)


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Hand on every key as it is typed; the terminal is as before at the end, also that by a signal."""
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def die(number: signal.Signals) -> None:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
        loop.remove_signal_handler(number)
        os.kill(os.getpid(), number)

    for number in _DEADLY:
        loop.add_signal_handler(number, die, number)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number in _DEADLY:
            loop.remove_signal_handler(number)


async def sizes(descriptor: int) -> AsyncIterator[TerminalSize]:
    """Yield a terminal's size, and again whenever it changes."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    try:
        while True:
            found = os.get_terminal_size(descriptor)
            if found.columns and found.lines:
                yield TerminalSize(found.columns, found.lines)
            await changed.wait()
            changed.clear()
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


async def _until_ready(descriptor: int, event: int) -> None:
    """Wait for a descriptor; files and what has been hung up are always ready."""
    poll = select.poll()
    poll.register(descriptor, event)
    if poll.poll(0):
        return
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    watch, forget = _watchers(loop, event)
    watch(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        forget(descriptor)


def _watchers(
    loop: asyncio.AbstractEventLoop, event: int
) -> tuple[Callable[[int, Callable[[], object]], None], Callable[[int], bool]]:
    if event == select.POLLIN:
        return loop.add_reader, loop.remove_reader
    return loop.add_writer, loop.remove_writer
