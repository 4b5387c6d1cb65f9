"""HTTP/2 as a client may speak it: whole or in pieces, with small windows, wrongly, or not at all."""

import asyncio
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from crinoid.core.cri.client import Client
from crinoid.core.cri.codes import StatusCode
from crinoid.core.cri.http2 import connection as connections
from crinoid.core.cri.http2.connection import Connection
from crinoid.core.cri.http2.frames import HEAD, PREFACE, Code, Kind, Setting, frame, goaway, number_frame
from crinoid.core.cri.http2.frames import settings as settings_frame
from crinoid.core.cri.http2.rpc import Aborted, Calls, Context, Handler
from crinoid.core.cri.server import Endpoint, Server
from crinoid.core.cri.wire import api_pb2

FIELDS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/s/Echo",
    ":authority": "x",
    "content-type": "application/grpc",
}
ACK, STREAM_ENDS, HEADERS_END = 1, 1, 4
LIMIT = 200_000


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.unread = 0

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return self.unread


async def echo(request: bytes, _context: Context) -> bytes:
    return request


async def refuse(request: bytes, _context: Context) -> bytes:
    raise Aborted(StatusCode.NOT_FOUND, "ü% " + request.decode(), (("crinoid-reason", "Gone"),))


async def hang(_request: bytes, _context: Context) -> bytes:
    await asyncio.Event().wait()
    return b""


async def stumble(_request: bytes, _context: Context) -> bytes:
    raise ZeroDivisionError


async def count(request: bytes, context: Context) -> None:
    for _ in range(3):
        await context.write(request)


def handlers() -> dict[bytes, Handler]:
    return {
        b"/s/Echo": Handler(bytes, echo),
        b"/s/Refuse": Handler(bytes, refuse),
        b"/s/Hang": Handler(bytes, hang),
        b"/s/Stumble": Handler(bytes, stumble),
        b"/s/Count": Handler(bytes, count, streams=True),
    }


class Peer:
    """A client made of frames, without a socket."""

    def __init__(self) -> None:
        self.calls = Calls(handlers(), LIMIT, LIMIT)
        self.connection = Connection(self.calls)
        self.wire = Wire()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.connection.connection_made(self.wire)
        self.connection.data_received(PREFACE)

    def give(self, *frames: bytes) -> None:
        self.connection.data_received(b"".join(frames))

    def headers(self, number: int, flags: int = HEADERS_END, **more: str) -> bytes:
        fields = FIELDS | {key.replace("__", ":").replace("_", "-"): value for key, value in more.items()}
        return frame(Kind.HEADERS, flags, number, self.encoder.encode(fields.items()))

    def ask(self, number: int, message: bytes, **more: str) -> None:
        pieces = [message[start : start + 16_000] for start in range(0, len(message), 16_000)] or [b""]
        prefix = b"\0" + struct.pack(">I", len(message))
        data = [frame(Kind.DATA, 0, number, piece) for piece in pieces]
        self.give(self.headers(number, **more), frame(Kind.DATA, 0, number, prefix), *data)
        self.give(frame(Kind.DATA, STREAM_ENDS, number))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What the server has said since the last time."""
        written, self.wire.written = self.wire.written, b""
        position = 0
        while position < len(written):
            high, low, kind, flags, number = HEAD.unpack_from(written, position)
            end = position + HEAD.size + (high << 8 | low)
            yield kind, flags, number, written[position + HEAD.size : end]
            position = end

    async def answers(self, turns: int = 8) -> dict[int, tuple[bytes, dict[str, str]]]:
        """Data and fields of each stream that the server has ended by now."""
        for _ in range(turns):
            await asyncio.sleep(0)
        data: dict[int, bytes] = {}
        fields: dict[int, dict[str, str]] = {}
        ended = set()
        for kind, flags, number, payload in self.frames():
            if kind == Kind.DATA:
                data[number] = data.get(number, b"") + payload
            elif kind == Kind.HEADERS:
                fields.setdefault(number, {}).update(dict(self.decoder.decode(payload)))
                ended |= {number} if flags & STREAM_ENDS else set()
        return {number: (data.get(number, b""), fields[number]) for number in ended}


def prefixed(message: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(message)) + message


async def test_a_call() -> None:
    peer = Peer()
    peer.ask(1, b"hello")
    (data, fields) = (await peer.answers())[1]
    assert data == prefixed(b"hello")
    assert fields == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}
    assert peer.connection.streams == {}


async def test_an_error_is_all_headers() -> None:
    peer = Peer()
    peer.ask(1, b"x", __path="/s/Refuse")
    (data, fields) = (await peer.answers())[1]
    assert data == b""
    assert (fields["grpc-status"], fields["grpc-message"]) == ("5", "%C3%BC%25 x")
    assert fields["crinoid-reason"] == "Gone"


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"__path": "/s/None"}, "12"),
        ({"grpc_timeout": "soon"}, "13"),
        ({"__path": "/s/Stumble"}, "13"),
        ({"content_type": "text/html"}, None),
        ({"grpc_timeout": "1n", "__path": "/s/Hang"}, "4"),
    ],
)
async def test_requests_that_can_not_be(more: dict[str, str], status: str | None) -> None:
    peer = Peer()
    peer.ask(1, b"", **more)
    answers = await peer.answers()
    if not answers:
        await asyncio.sleep(0.05)
        answers = await peer.answers()
    assert answers[1][1].get("grpc-status") == status
    assert (answers[1][1][":status"] == "415") is (status is None)


@pytest.mark.parametrize("body", [b"", b"\0\0\0", b"\0\0\0\0\5abc", b"\0\0\0\0\1ab", prefixed(b"a") + prefixed(b"b")])
async def test_bodies_that_are_not_one_message(body: bytes) -> None:
    peer = Peer()
    peer.give(peer.headers(1), frame(Kind.DATA, STREAM_ENDS, 1, body))
    assert (await peer.answers())[1][1]["grpc-status"] == "13"


async def test_too_much() -> None:
    peer = Peer()
    peer.give(settings_frame({Setting.INITIAL_WINDOW_SIZE: 1 << 20}), number_frame(Kind.WINDOW_UPDATE, 0, 1 << 20))
    assert (await one(peer, 1, b"x" * LIMIT))[0] == prefixed(b"x" * LIMIT)
    peer.ask(5, b"x" * (LIMIT + 1))
    assert (await peer.answers())[5][1]["grpc-status"] == "8"
    assert (await one(peer, 7, b"y"))[0] == prefixed(b"y")


async def one(peer: Peer, number: int, message: bytes) -> tuple[bytes, dict[str, str]]:
    peer.ask(number, message)
    return (await peer.answers())[number]


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
async def test_compressed(encoding: str, wbits: int) -> None:
    packer = zlib.compressobj(wbits=wbits)
    packed = packer.compress(b"a" * 1000) + packer.flush()
    peer = Peer()
    body = b"\1" + struct.pack(">I", len(packed)) + packed
    peer.give(peer.headers(1, grpc_encoding=encoding), frame(Kind.DATA, STREAM_ENDS, 1, body))
    assert (await peer.answers())[1][0] == prefixed(b"a" * 1000)


@pytest.mark.parametrize(("encoding", "content", "status"), [("br", b"x", "12"), ("gzip", b"no", "13")])
async def test_compressed_as_nobody_can_read_it(encoding: str, content: bytes, status: str) -> None:
    peer = Peer()
    body = b"\1" + struct.pack(">I", len(content)) + content
    peer.give(peer.headers(1, grpc_encoding=encoding), frame(Kind.DATA, STREAM_ENDS, 1, body))
    assert (await peer.answers())[1][1]["grpc-status"] == status


async def test_a_bomb_is_refused() -> None:
    packed = zlib.compress(b"\0" * (LIMIT * 50))
    peer = Peer()
    body = b"\1" + struct.pack(">I", len(packed)) + packed
    peer.give(peer.headers(1, grpc_encoding="deflate"), frame(Kind.DATA, STREAM_ENDS, 1, body))
    assert (await peer.answers())[1][1]["grpc-status"] == "8"


@pytest.mark.parametrize("path", ["/s/Echo", "/s/Count"])
async def test_an_answer_waits_for_room(path: str) -> None:
    """A stream's window of 1000 bytes, and frames of the least size: all comes, in order, and never too much of it."""
    peer, message = Peer(), bytes(range(256)) * 200
    peer.give(settings_frame({Setting.INITIAL_WINDOW_SIZE: 1000}))
    peer.ask(1, message, __path=path)
    total = prefixed(message) * (3 if path == "/s/Count" else 1)
    got, fields, room, ended = b"", {}, 1000, False
    for _ in range(1000):
        for _ in range(4):
            await asyncio.sleep(0)
        for kind, flags, number, payload in peer.frames():
            if kind == Kind.DATA:
                room -= len(payload)
                assert room >= 0
                got += payload
            elif kind == Kind.HEADERS:
                fields.update(dict(peer.decoder.decode(payload)))
                ended = bool(flags & STREAM_ENDS)
            assert number in (0, 1)
        if ended:
            break
        room += 700
        peer.give(number_frame(Kind.WINDOW_UPDATE, 1, 700), number_frame(Kind.WINDOW_UPDATE, 0, 700))
    assert got == total
    assert fields["grpc-status"] == "0"


async def test_one_that_waits_for_room_holds_up_no_other() -> None:
    peer = Peer()
    peer.give(settings_frame({Setting.INITIAL_WINDOW_SIZE: 100}))
    peer.ask(1, b"x" * 5000)
    peer.ask(3, b"y")
    assert list(await peer.answers()) == [3]
    peer.give(settings_frame({Setting.INITIAL_WINDOW_SIZE: 60_000}))
    assert len((await peer.answers())[1][0]) == 4905, "the rest of it"


async def test_a_reset_cancels() -> None:
    peer = Peer()
    peer.ask(1, b"", __path="/s/Hang")
    await peer.answers()
    (task,) = peer.calls.tasks
    peer.give(number_frame(Kind.RST_STREAM, 1, Code.CANCEL))
    assert await peer.answers() == {}
    assert task.cancelled()
    assert peer.connection.streams == {}


async def test_a_client_that_leaves_cancels_all() -> None:
    peer = Peer()
    for number in (1, 3, 5):
        peer.ask(number, b"", __path="/s/Hang")
    await peer.answers()
    peer.connection.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not peer.calls.tasks
    assert not peer.calls.connections


async def test_headers_in_pieces_with_padding_and_priority() -> None:
    peer = Peer()
    block = peer.encoder.encode(FIELDS.items())
    padded = b"\3" + b"\0\0\0\0\x10" + block[:5] + b"\0" * 3
    peer.give(
        frame(Kind.HEADERS, 0x8 | 0x20, 1, padded),
        frame(Kind.CONTINUATION, 0, 1, block[5:9]),
        frame(Kind.CONTINUATION, HEADERS_END, 1, block[9:]),
        frame(Kind.DATA, 0x8 | STREAM_ENDS, 1, b"\2" + prefixed(b"hi") + b"\0\0"),
    )
    assert (await peer.answers())[1][0] == prefixed(b"hi")


async def test_pings_and_settings_are_acknowledged() -> None:
    peer = Peer()
    list(peer.frames())
    peer.give(frame(Kind.PING, 0, 0, b"12345678"), settings_frame({}), frame(Kind.PING, ACK, 0, b"87654321"))
    assert list(peer.frames()) == [(Kind.PING, ACK, 0, b"12345678"), (Kind.SETTINGS, ACK, 0, b"")]


async def test_what_means_nothing_is_passed_over() -> None:
    peer = Peer()
    peer.give(frame(Kind.PRIORITY, 0, 1, b"\0" * 5), HEAD.pack(0, 3, 0xFA, 0, 0) + b"abc", goaway(0, Code.NO_ERROR))
    assert (await one(peer, 1, b"a"))[0] == prefixed(b"a")
    peer.give(number_frame(Kind.RST_STREAM, 1, 0), number_frame(Kind.WINDOW_UPDATE, 1, 5), frame(Kind.DATA, 0, 1, b"x"))
    assert (await one(peer, 3, b"b"))[0] == prefixed(b"b")


@pytest.mark.parametrize(
    ("code", "given"),
    [
        (Code.PROTOCOL_ERROR, frame(Kind.HEADERS, HEADERS_END, 0)),
        (Code.PROTOCOL_ERROR, frame(Kind.HEADERS, HEADERS_END, 2, b"\x83")),
        (Code.PROTOCOL_ERROR, frame(Kind.DATA, 0, 1, b"x")),
        (Code.PROTOCOL_ERROR, frame(Kind.RST_STREAM, 0, 9, b"\0\0\0\0")),
        (Code.PROTOCOL_ERROR, frame(Kind.WINDOW_UPDATE, 0, 9, b"\0\0\0\1")),
        (Code.PROTOCOL_ERROR, frame(Kind.WINDOW_UPDATE, 0, 0, b"\0\0\0\0")),
        (Code.PROTOCOL_ERROR, frame(Kind.CONTINUATION, 0, 1, b"x")),
        (Code.PROTOCOL_ERROR, frame(Kind.HEADERS, 0, 1, b"\x83") + frame(Kind.PING, 0, 0, b"12345678")),
        (Code.PROTOCOL_ERROR, frame(Kind.PUSH_PROMISE, 0, 1, b"1234")),
        (Code.PROTOCOL_ERROR, frame(Kind.SETTINGS, 0, 1)),
        (Code.PROTOCOL_ERROR, frame(Kind.HEADERS, HEADERS_END | 0x8, 1, b"\x05ab")),
        (Code.PROTOCOL_ERROR, settings_frame({Setting.MAX_FRAME_SIZE: 5})),
        (Code.FRAME_SIZE_ERROR, frame(Kind.PING, 0, 0, b"123")),
        (Code.FRAME_SIZE_ERROR, frame(Kind.SETTINGS, 0, 0, b"123")),
        (Code.FRAME_SIZE_ERROR, frame(Kind.WINDOW_UPDATE, 0, 0, b"123")),
        (Code.FRAME_SIZE_ERROR, frame(Kind.DATA, 0, 1, b"x" * 17_000)),
        (Code.FRAME_SIZE_ERROR, frame(Kind.HEADERS, HEADERS_END | 0x20, 1, b"abc")),
        (Code.FLOW_CONTROL_ERROR, settings_frame({Setting.INITIAL_WINDOW_SIZE: 1 << 31})),
        (Code.FLOW_CONTROL_ERROR, number_frame(Kind.WINDOW_UPDATE, 0, (1 << 31) - 1)),
        (Code.COMPRESSION_ERROR, frame(Kind.HEADERS, HEADERS_END, 1, b"\xff\xff\xff\xff\xff\xff")),
        (Code.ENHANCE_YOUR_CALM, frame(Kind.HEADERS, 0, 1) + frame(Kind.CONTINUATION, 0, 1, b"x" * 16_000) * 5),
    ],
)
async def test_who_breaks_the_rules_is_cut_off(code: Code, given: bytes) -> None:
    peer = Peer()
    peer.give(given)
    kind, _, _, payload = list(peer.frames())[-1]
    assert kind == Kind.GOAWAY
    assert Code(struct.unpack(">I", payload[4:8])[0]) is code
    assert peer.wire.closed


async def test_who_speaks_no_http2_is_cut_off() -> None:
    calls, wire = Calls(handlers(), LIMIT, LIMIT), Wire()
    connection = Connection(calls)
    connection.connection_made(wire)
    connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert wire.closed


async def test_who_does_not_read_is_cut_off() -> None:
    peer = Peer()
    peer.wire.unread = connections._MAX_UNREAD + 1
    peer.give(frame(Kind.PING, 0, 0, b"12345678"))
    assert peer.wire.closed


async def test_more_streams_than_are_served_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_STREAMS", 2)
    peer = Peer()
    for number in (1, 3, 5):
        peer.ask(number, b"", __path="/s/Hang")
    refused = [frame for frame in peer.frames() if frame[0] == Kind.RST_STREAM]
    assert refused == [(Kind.RST_STREAM, 0, 5, struct.pack(">I", Code.REFUSED_STREAM))]
    peer.connection.connection_lost(None)


async def test_leaving_lets_calls_end() -> None:
    peer = Peer()
    peer.ask(1, b"", __path="/s/Hang")
    await peer.answers()
    peer.connection.leave()
    peer.ask(3, b"late")
    kinds = [(kind, number) for kind, _, number, _ in peer.frames()]
    assert (Kind.GOAWAY, 0) in kinds
    assert (Kind.RST_STREAM, 3) in kinds
    assert not peer.wire.closed
    await peer.calls.stop(0)
    assert peer.wire.closed


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.binary(max_size=200))
def test_bytes_may_come_in_any_pieces(sizes: list[int], message: bytes) -> None:
    async def run() -> None:
        whole, pieces = Peer(), Peer()
        whole.ask(1, message)
        data = whole.headers(3) + frame(Kind.DATA, STREAM_ENDS, 3, prefixed(message))
        whole.give(data)
        other = pieces.headers(1) + frame(Kind.DATA, STREAM_ENDS, 1, prefixed(message))
        other += pieces.headers(3) + frame(Kind.DATA, STREAM_ENDS, 3, prefixed(message))
        position = 0
        for size in sizes * (len(other) // sum(sizes) + 1):
            pieces.give(other[position : position + size])
            position += size
        assert await whole.answers() == await pieces.answers()

    asyncio.run(run())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 6), st.binary(max_size=40)), max_size=12)
)
def test_any_frames_are_taken_or_end_the_connection(given: list[tuple[int, int, int, bytes]]) -> None:
    async def run() -> None:
        peer = Peer()
        for kind, flags, number, payload in given:
            if not peer.wire.closed:
                peer.give(HEAD.pack(0, len(payload), kind, flags, number) + payload)
        await peer.answers()
        peer.connection.connection_lost(None)
        await asyncio.gather(*peer.calls.tasks, return_exceptions=True)

    asyncio.run(run())


async def test_a_compressing_client(server: Server, endpoint: Endpoint) -> None:
    options: Any = {"compression": grpc.Compression.Gzip}
    async with grpc.aio.insecure_channel(f"unix:{endpoint.path}", **options) as channel:
        call = channel.unary_unary(
            "/runtime.v1.RuntimeService/ListContainers",
            request_serializer=api_pb2.ListContainersRequest.SerializeToString,
            response_deserializer=api_pb2.ListContainersResponse.FromString,
        )
        query = api_pb2.ContainerFilter(label_selector={f"key{number}": "value" * 20 for number in range(50)})
        answer = await call(api_pb2.ListContainersRequest(filter=query))
    assert len(answer.containers) == 2


async def test_many_calls_at_once_over_one_connection(client: Client) -> None:
    calls = [client.call("ContainerStatus", {"container_id": "c1"}) for _ in range(200)]
    assert {answer["status"]["id"] for answer in await asyncio.gather(*calls)} == {"c1"}
