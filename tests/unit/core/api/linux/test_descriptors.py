"""Streams over pipes and terminals: their ends, their patience, and what closing does."""

import asyncio
import contextlib
import os
import pty

import pytest

from crinoid.core.api.linux.descriptors import PIECE_BYTES, FdSink, FdSource, make_pipe


async def read_all(source: FdSource) -> bytes:
    pieces = []
    while piece := await source.read():
        assert len(piece) <= PIECE_BYTES
        pieces.append(piece)
    return b"".join(pieces)


async def test_bytes_go_through_and_come_to_their_end() -> None:
    reader, writer = make_pipe()
    source, sink = FdSource(reader), FdSink(writer)
    data = os.urandom(3_000_000)

    async def write() -> None:
        await sink.write(data)
        await sink.close()
        await sink.close()

    got, _ = await asyncio.gather(read_all(source), write())
    assert got == data
    assert await source.read() == b""
    source.close()
    source.close()


async def test_a_reader_that_waits_ends_when_the_source_is_closed() -> None:
    reader, writer = make_pipe()
    source = FdSource(reader)
    reading = asyncio.ensure_future(source.read())
    await asyncio.sleep(0.01)
    source.close()
    assert await reading == b""
    os.close(writer)


async def test_nobody_reads_any_more() -> None:
    reader, writer = make_pipe()
    sink = FdSink(writer)
    writing = asyncio.ensure_future(sink.write(bytes(2_000_000)))
    await asyncio.sleep(0.01)
    assert not writing.done()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await writing
    with pytest.raises(BrokenPipeError):
        await sink.write(b"x")
    sink.release()
    with pytest.raises(BrokenPipeError):
        await sink.write(b"x")


async def test_a_writer_that_waits_fails_when_the_sink_is_released() -> None:
    reader, writer = make_pipe()
    sink = FdSink(writer)
    writing = asyncio.ensure_future(sink.write(bytes(2_000_000)))
    await asyncio.sleep(0.01)
    sink.release()
    with pytest.raises(BrokenPipeError):
        await writing
    os.close(reader)


async def test_patience_ends_but_what_is_there_is_read() -> None:
    reader, writer = make_pipe()
    source = FdSource(reader)
    os.write(writer, b"left")
    source.end_after(0.05)
    async with asyncio.timeout(60):
        assert await read_all(source) == b"left"
        assert await source.read() == b""
    os.close(writer)
    source.close()


async def test_one_who_goes_on_writing_does_not_keep_a_source_open() -> None:
    reader, writer = make_pipe()
    source, sink = FdSource(reader), FdSink(writer)

    async def flood() -> None:
        with contextlib.suppress(BrokenPipeError):
            while True:
                await sink.write(b"x" * 10_000)

    flooding = asyncio.ensure_future(flood())
    source.end_after(0.05)
    async with asyncio.timeout(60):
        await read_all(source)
    source.close()
    await flooding
    sink.release()


async def test_a_terminal_ends_with_its_last_user() -> None:
    master, slave = pty.openpty()
    source, sink = FdSource(os.dup(master)), FdSink(os.dup(master), closes=False)
    os.write(slave, b"output")
    assert await source.read() == b"output"
    await sink.close()
    await sink.write(b"input\n")
    assert os.read(slave, 100) == b"input\n"
    os.close(slave)
    await asyncio.sleep(0.01)
    assert (await read_all(source)).replace(b"input\r\n", b"") == b""
    sink.release()
    source.close()
    os.close(master)
