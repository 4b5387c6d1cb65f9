"""SPDY frames: what is written is read again, however it is cut; what is no frame is refused."""

import contextlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crinoid.core.cri.streaming import frames
from crinoid.core.cri.streaming.frames import (
    Data,
    Frame,
    FrameReader,
    FrameWriter,
    GoAway,
    InitialWindow,
    Opening,
    Ping,
    ProtocolError,
    Reply,
    Reset,
    WindowUpdate,
)

IDS = st.integers(1, 0x7FFFFFFF)
WORDS = st.integers(0, 0x7FFFFFFF)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-:", min_size=1, max_size=20)
HEADERS = st.dictionaries(NAMES, st.text(st.characters(max_codepoint=255), max_size=40), max_size=6)
FRAMES = st.one_of(
    st.builds(Data, IDS, st.binary(max_size=300), st.booleans()),
    st.builds(Opening, IDS, HEADERS, st.booleans()),
    st.builds(Reply, IDS, HEADERS, st.booleans()),
    st.builds(Reset, IDS, WORDS),
    st.builds(Ping, WORDS),
    st.builds(GoAway, WORDS, WORDS),
    st.builds(WindowUpdate, WORDS, WORDS),
    st.builds(InitialWindow, WORDS),
)


def write(writer: FrameWriter, frame: Frame) -> bytes:
    match frame:
        case Data(stream_id, data, fin):
            return frames.data_head(stream_id, len(data), fin=fin) + data
        case Opening(stream_id, headers, fin):
            return writer.opening(stream_id, headers, fin=fin)
        case Reply(stream_id, headers, fin):
            return writer.reply(stream_id, headers, fin=fin)
        case Reset(stream_id, status):
            return frames.reset(stream_id, status)
        case Ping(number):
            return frames.ping(number)
        case GoAway(last, status):
            return frames.goaway(last, status)
        case WindowUpdate(stream_id, delta):
            return frames.window_update(stream_id, delta)
        case InitialWindow(size):
            return frames.initial_window(size)


def joined(found: list[Frame]) -> list[Frame]:
    """Data frames may come in pieces; put them together."""
    whole: list[Frame] = []
    open_data: Data | None = None
    for frame in found:
        if isinstance(frame, Data) and open_data is not None and open_data.stream_id == frame.stream_id:
            open_data = Data(frame.stream_id, open_data.data + frame.data, frame.fin)
            whole[-1] = open_data
            continue
        whole.append(frame)
        open_data = frame if isinstance(frame, Data) else None
    return whole


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 40), min_size=1))
def test_frames_survive_any_cutting(sent: list[Frame], cuts: list[int]) -> None:
    # two data frames of one stream in a row can't be told from pieces of one: put something between
    spaced = [part for frame in sent for part in (frame, Ping(7))]
    writer, reader = FrameWriter(), FrameReader()
    wire = b"".join(write(writer, frame) for frame in spaced)
    found: list[Frame] = []
    at, number = 0, 0
    while at < len(wire):
        size = cuts[number % len(cuts)]
        for frame in reader.feed(wire[at : at + size]):
            assert frame is not None, "each means something"
            found.append(frame)
        at, number = at + size, number + 1
    assert joined(found) == spaced


def test_headers_as_they_stand_in_the_specification() -> None:
    """A client's compressor is any zlib that was given the dictionary: this one is not ours."""
    compressor = zlib.compressobj(9, zdict=frames.DICTIONARY)
    block = struct.pack(">I", 1) + struct.pack(">I", 10) + b"StreamType" + struct.pack(">I", 5) + b"error"
    body = struct.pack(">IIBB", 1, 0, 0xE0, 0) + compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH)
    wire = struct.pack(">HHI", 0x8003, 1, 0x01 << 24 | len(body)) + body
    assert list(FrameReader().feed(wire)) == [Opening(1, {"streamtype": "error"}, fin=True)]
    assert frames.DICTIONARY.startswith(b"\0\0\0\x07options\0\0\0\x04head")
    assert (len(frames.DICTIONARY), frames.DICTIONARY[-6:]) == (1423, b"enq=0.")
    assert zlib.adler32(frames.DICTIONARY) == 0xE3C6A7C2  # what zlib puts before the first block of headers


def test_data_is_handed_on_before_its_frame_is_whole() -> None:
    reader = FrameReader()
    assert list(reader.feed(frames.data_head(5, 1 << 20, fin=True) + b"begin")) == [Data(5, b"begin")]
    assert list(reader.feed(b"x" * 100)) == [Data(5, b"x" * 100)]
    rest = b"y" * ((1 << 20) - 105)
    assert list(reader.feed(rest)) == [Data(5, rest, fin=True)]


def control(kind: int, body: bytes, version: int = 3) -> bytes:
    return struct.pack(">HHI", 0x8000 | version, kind, len(body)) + body


def deflated(block: bytes) -> bytes:
    compressor = zlib.compressobj(zdict=frames.DICTIONARY)
    return compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    "wire",
    [
        control(1, b"\0" * 10, version=2),
        control(1, b"short"),
        control(1, struct.pack(">IIH", 1, 0, 0) + b"no zlib"),
        control(1, struct.pack(">IIH", 0, 0, 0) + deflated(struct.pack(">I", 0))),
        control(1, struct.pack(">IIH", 1, 0, 0) + deflated(struct.pack(">I", 3) + b"\0\0\0\x09cut")),
        control(1, struct.pack(">IIH", 1, 0, 0) + deflated(struct.pack(">I", 0xFFFFFFFF))),
        control(2, struct.pack(">I", 1) + deflated(bytes(1 << 20))),
        control(2, struct.pack(">I", 1) + deflated(struct.pack(">I", 1000) + bytes(8000))),
        control(8, struct.pack(">I", 1) + deflated(struct.pack(">III", 1, 1, 0) + bytes(8200))),
        control(4, struct.pack(">I", 65) + bytes(65 * 8)),
        struct.pack(">HHI", 0x8003, 77, (1 << 14) + 1),
        control(3, b"1234"),
        control(4, struct.pack(">I", 1000)),
        control(6, b""),
        control(7, b"123"),
        control(9, b"123456789"),
        struct.pack(">HHI", 0x8003, 6, 1 << 20),
        frames.data_head(0, 3) + b"abc",
    ],
)
def test_what_is_no_frame(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(wire))


@given(st.binary(max_size=200))
def test_rubbish_is_refused_or_waited_for(wire: bytes) -> None:
    reader = FrameReader()
    with contextlib.suppress(ProtocolError):
        list(reader.feed(wire))


def test_frames_of_unknown_type_are_passed_over() -> None:
    found = list(FrameReader().feed(control(11, b"what is this") + frames.ping(1)))
    assert found == [None, Ping(1)], "each frame is told apart: between any two others may have their turn"
