"""WebSocket messages from a client, and what is refused."""

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crinoid.core.cri.streaming.websocket import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Piece,
    PieceReader,
    WebSocketError,
    accept_key,
    choose_protocol,
    frame_head,
    mask,
)

KEY = b"\x12\x34\x56\x78"


def frame(opcode: int, data: bytes, *, fin: bool = True, key: bytes = KEY) -> bytes:
    """A client's frame, masked byte by byte."""
    masked = bytes(byte ^ key[index % 4] for index, byte in enumerate(data))
    size = len(data)
    if size < 126:
        length = struct.pack(">B", 0x80 | size)
    elif size < 1 << 16:
        length = struct.pack(">BH", 0x80 | 126, size)
    else:
        length = struct.pack(">BQ", 0x80 | 127, size)
    return bytes((opcode | (0x80 if fin else 0),)) + length + key + masked


def messages(pieces: list[Piece]) -> list[tuple[int, bytes]]:
    """Put pieces together, and see that their marks are right."""
    whole: list[tuple[int, bytes]] = []
    is_open = False
    for piece in pieces:
        if piece.opcode >= CLOSE:
            continue
        assert piece.first == (not is_open)
        whole = [*whole, (piece.opcode, b"")] if piece.first else whole
        whole[-1] = (whole[-1][0], whole[-1][1] + piece.data)
        is_open = not piece.last
    assert not is_open
    return whole


@given(
    st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), st.lists(st.binary(max_size=200), min_size=1, max_size=3))),
    st.lists(st.integers(1, 50), min_size=1),
    st.binary(min_size=4, max_size=4),
)
def test_messages_survive_any_cutting(sent: list[tuple[int, list[bytes]]], cuts: list[int], key: bytes) -> None:
    wire = b""
    for opcode, parts in sent:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            wire += frame(opcode if index == 0 else 0, part, fin=last, key=key) + frame(PING, b"still there?", key=key)
    reader, found = PieceReader(), list[Piece]()
    at, number = 0, 0
    while at < len(wire):
        size = cuts[number % len(cuts)]
        found += reader.feed(wire[at : at + size])
        at, number = at + size, number + 1
    assert messages(found) == [(opcode, b"".join(parts)) for opcode, parts in sent]
    pings = [piece for piece in found if piece.opcode == PING]
    assert {piece.data for piece in pings} <= {b"still there?"}
    assert len(pings) == sum(len(parts) for _, parts in sent)


def test_a_long_message_is_handed_on_as_it_comes() -> None:
    data = bytes(range(256)) * 1000
    wire = frame(BINARY, data)
    reader = PieceReader()
    (first,) = reader.feed(wire[:100])
    assert (first.first, first.last, first.data) == (True, False, data[: len(first.data)])
    (rest,) = reader.feed(wire[100:])
    assert (rest.first, rest.last, first.data + rest.data) == (False, True, data)


@given(st.binary(max_size=70), st.binary(min_size=4, max_size=4))
def test_masks(data: bytes, key: bytes) -> None:
    assert mask(data, key) == bytes(byte ^ key[index % 4] for index, byte in enumerate(data))
    assert mask(mask(data, key), key) == data


@pytest.mark.parametrize(
    "wire",
    [
        b"\x82\x03abcdef",  # no mask
        b"\xf2" + frame(BINARY, b"x")[1:],  # bits that no extension gave a meaning
        frame(3, b"x"),  # an opcode that is none
        frame(0, b"the rest of nothing"),
        frame(BINARY, b"begin", fin=False) + frame(BINARY, b"begin again"),
        frame(PING, b"x", fin=False),
        frame(PING, b"x" * 126),
    ],
)
def test_what_is_no_message(wire: bytes) -> None:
    with pytest.raises(WebSocketError):
        list(PieceReader().feed(wire))


@given(st.binary(max_size=200))
def test_rubbish_is_refused_or_waited_for(wire: bytes) -> None:
    with contextlib.suppress(WebSocketError):
        list(PieceReader().feed(wire))


@pytest.mark.parametrize(
    ("length", "head"),
    [(0, b"\x82\0"), (125, b"\x82\x7d"), (126, b"\x82\x7e\0\x7e"), (1 << 16, b"\x82\x7f" + bytes(5) + b"\x01\0\0")],
)
def test_heads_of_our_own(length: int, head: bytes) -> None:
    assert frame_head(BINARY, length) == head


def test_the_key_of_the_standard() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3


def test_the_client_has_the_choice() -> None:
    known = {"v4": 4, "v5": 5}
    assert choose_protocol(("v6", "v5", "v4"), known) == "v5"
    assert choose_protocol(("v4", "v5"), known) == "v4"
    assert choose_protocol((), known) == ""
    assert choose_protocol(("v6",), known) is None


@given(st.lists(st.binary(max_size=70_000), max_size=4), st.lists(st.integers(1, 5000), min_size=1))
def test_a_clients_end_reads_what_a_server_sends(sent: list[bytes], cuts: list[int]) -> None:
    reader, wire = PieceReader(masked=False), b"".join(frame_head(BINARY, len(data)) + data for data in sent)
    got: list[Any] = []
    while wire:
        cuts = [*cuts[1:], cuts[0]]
        piece, wire = wire[: cuts[0]], wire[cuts[0] :]
        got += reader.feed(piece)
    assert messages(got) == [(BINARY, data) for data in sent]


@pytest.mark.parametrize("size", [0, 3, 125, 126, 70_000])
def test_a_clients_end_masks_what_it_sends(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    wire = frame_head(BINARY, size, KEY) + mask(data[:size], KEY)
    assert wire == frame(BINARY, data[:size])
    with pytest.raises(WebSocketError, match="mask"):
        list(PieceReader(masked=False).feed(wire))
