"""The user's end of a stream: keys that detach, and standard streams that are pipes."""

import asyncio
import os
import pty
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crinoid.core.api.values.runtime import TerminalSize
from crinoid.core.cli.ctl.terminal import DetachKeys, raw, read_input, sizes, write_output


@pytest.mark.parametrize(
    ("typed", "sent", "detaches"),
    [
        ([b"ls\n"], b"ls\n", False),
        ([b"ls\x10\x11rest"], b"ls", True),
        ([b"\x10", b"\x11"], b"", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x10", b"\x10", b"\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_the_keys_that_detach(typed: list[bytes], sent: bytes, detaches: bool) -> None:
    keys = DetachKeys()
    found = [keys.feed(piece) for piece in typed]
    assert b"".join(data for data, _ in found) == sent
    assert found[-1][1] == detaches


@given(st.lists(st.sampled_from([b"a", b"\x10", b"\x10b", b"bc"])))
def test_other_keys_are_all_sent(typed: list[bytes]) -> None:
    keys = DetachKeys()
    found = [keys.feed(piece) for piece in [*typed, b"."]]
    assert b"".join(data for data, _ in found) == b"".join(typed) + b"."


async def test_a_pipe_is_read_when_something_comes() -> None:
    reading, writing = os.pipe()
    waiting = asyncio.create_task(read_input(reading))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    os.write(writing, b"late")
    assert await waiting == b"late"
    os.close(writing)
    assert await read_input(reading) == b""
    os.close(reading)


async def test_a_wait_for_input_can_be_given_up() -> None:
    reading, writing = os.pipe()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await read_input(reading)
    os.write(writing, b"x")
    assert await read_input(reading) == b"x"
    os.close(writing)
    os.close(reading)


async def test_a_full_pipe_holds_up_its_writer_and_nothing_else() -> None:
    reading, writing = os.pipe()
    data = os.urandom(300_000)
    with open(writing, "w") as stream:
        work = asyncio.create_task(write_output(stream, data))
        await asyncio.sleep(0.01)
        assert not work.done()
        got = b""
        while len(got) < len(data):
            got += await read_input(reading)
        await work
    assert got == data
    os.close(reading)


async def test_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream, pytest.raises(BrokenPipeError):
        await write_output(stream, b"x")


async def test_a_terminal_is_raw_meanwhile_and_has_a_size() -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, 81))
    before = termios.tcgetattr(slave)
    with raw(slave):
        assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        found = sizes(slave)
        assert await anext(found) == TerminalSize(81, 25)
        await found.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert termios.tcgetattr(slave) == before
    os.close(master)
    assert await read_input(slave) == b""
    os.close(slave)
