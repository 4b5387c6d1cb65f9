"""One blob over several connections: in order, bounded, and right whatever the server makes of the ranges."""

import asyncio
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from crinoid.core.api.errors import CorruptContent, CrinoidError, NotFound
from crinoid.core.api.testing.registries import BoundRegistry
from crinoid.core.api.values.image import BlobRequest, Descriptor, ImageReference
from crinoid.core.state.content import ContentStore
from support.faults import Answer, FaultRegistry, range_of, redirect, refuse, stream
from support.images import digest_of

from .conftest import MakeRegistry

MIB = 1 << 20
BLOB = array("I", range(2_000_000)).tobytes()  # 8 MB, no two places alike
DIGEST = digest_of(BLOB)
PATIENT: dict[str, Any] = {"connections_per_blob": 3, "range_bytes": MIB, "stall_timeout_s": 60}
RANGES = [(start, min(start + MIB, len(BLOB))) for start in range(0, len(BLOB), MIB)]


def request_for(server: FaultRegistry, content: bytes = BLOB, offset: int = 0) -> BlobRequest:
    blob = Descriptor("x/y", digest_of(content), len(content))
    return BlobRequest(ImageReference.parse(f"{server.host}/app:1"), blob, offset=offset)


def asked_for(server: FaultRegistry) -> list[str]:
    """Return the ranges that were asked for."""
    return [asked.headers.get("Range", "") for asked in server.asked]


def header_of(start: int, end: int) -> str:
    return f"bytes={start}-{end - 1}" if end < len(BLOB) else f"bytes={start}-"


@pytest.fixture
def registry(make_registry: MakeRegistry) -> BoundRegistry:
    return make_registry(**PATIENT)


class Gated:
    """Answers ranges, but the first one only to its middle as long as the gate is shut."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.now = self.most = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        start, end = range_of(request, len(BLOB))
        self.now += 1
        self.most = max(self.most, self.now)
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(BLOB)}"}
        response = web.StreamResponse(status=206, headers=headers)
        response.content_length = end - start
        await response.prepare(request)
        middle = (start + end) // 2
        await response.write(BLOB[start:middle])
        if not start:
            await self.gate.wait()
        await response.write(BLOB[middle:end])
        self.now -= 1
        return response


class TestRanges:
    async def test_they_are_fetched_side_by_side_and_given_in_order(
        self, registry: BoundRegistry, server: FaultRegistry
    ) -> None:
        server.on_blob(DIGEST, stream(BLOB))
        assert await registry.read(request_for(server)) == BLOB
        assert asked_for(server)[0] == header_of(*RANGES[0])
        assert sorted(asked_for(server)) == sorted(header_of(*one) for one in RANGES)

    async def test_no_more_at_once_than_configured_nor_held_in_memory(
        self, registry: BoundRegistry, server: FaultRegistry
    ) -> None:
        answer = Gated()
        server.on_blob(DIGEST, answer)
        reading = asyncio.create_task(registry.read(request_for(server)))
        async with asyncio.timeout(60):
            while len(server.asked) < 3 or answer.now > 1:  # noqa: ASYNC110  # the server tells nobody
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(server.asked) == 3, "two ranges wait in memory for the first"
        answer.gate.set()
        assert await reading == BLOB
        assert answer.most <= 3

    async def test_what_was_had_is_not_asked_for(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, stream(BLOB))
        assert await registry.read(request_for(server, offset=5_000_001)) == BLOB[5_000_001:]
        assert asked_for(server)[0] == f"bytes=5000001-{5_000_000 + MIB}"
        assert len(server.asked) == 3

    @pytest.mark.parametrize("offset", [0, 7_000_000])
    async def test_what_is_less_than_two_ranges_comes_whole(
        self, registry: BoundRegistry, server: FaultRegistry, offset: int
    ) -> None:
        content = BLOB if offset else BLOB[: 2 * MIB - 1]
        server.on_blob(digest_of(content), stream(content))
        assert await registry.read(request_for(server, content, offset)) == content[offset:]
        assert asked_for(server) == [f"bytes={offset}-" if offset else ""]

    async def test_one_connection_is_the_default(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, stream(BLOB))
        assert await make_registry(**(PATIENT | {"connections_per_blob": 1})).read(request_for(server)) == BLOB
        assert asked_for(server) == [""]


class TestPlaces:
    @pytest.mark.parametrize("offset", [0, 1000])
    async def test_without_a_second_place_there_is_one_connection(
        self, make_registry: MakeRegistry, server: FaultRegistry, offset: int
    ) -> None:
        server.on_blob(DIGEST, stream(BLOB))
        registry = make_registry(**PATIENT, max_streams=1)
        assert await registry.read(request_for(server, offset=offset)) == BLOB[offset:]
        assert asked_for(server) == [f"bytes={offset}-" if offset else ""]

    async def test_streams_at_once_share_them(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, stream(BLOB))
        registry = make_registry(**PATIENT, max_streams=4)
        for content in await asyncio.gather(*(registry.read(request_for(server)) for _ in range(6))):
            assert content == BLOB

    async def test_they_are_given_back_early(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, stream(BLOB))
        registry = make_registry(**PATIENT, max_streams=3)
        for _ in range(5):
            opened: Any = await asyncio.wait_for(registry.open_blob(request_for(server)), 60)
            await anext(opened)
            await opened.aclose()
            await opened.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(opened)
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "range of a blob"]
        assert await registry.read(request_for(server)) == BLOB

    async def test_a_cancelled_reader_gives_them_back(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, stream(BLOB, stall_at=10), stream(BLOB))
        registry = make_registry(**PATIENT, max_streams=3)
        reader = asyncio.create_task(registry.read(request_for(server)))
        await asyncio.sleep(0.1)
        reader.cancel()
        await asyncio.wait([reader])
        assert await asyncio.wait_for(registry.read(request_for(server)), 60) == BLOB

    async def test_a_failure_gives_them_back(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        registry = make_registry(**PATIENT, max_streams=3)
        for _ in range(3):
            with pytest.raises(NotFound):
                await asyncio.wait_for(registry.open_blob(request_for(server)), 60)


def short(content: bytes) -> Answer:
    """Give half of what is asked for, and say so."""

    async def answer(request: web.Request) -> web.StreamResponse:
        start, end = range_of(request, len(content))
        end = max(start + 1, start + (end - start) // 2)
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        return web.Response(status=206, body=content[start:end], headers=headers)

    return answer


def only(content: bytes, *allowed: int, other: Answer) -> Answer:
    """Give ranges that begin at one of these bytes, and another answer for the rest."""

    async def answer(request: web.Request) -> web.StreamResponse:
        is_allowed = range_of(request, len(content))[0] in allowed
        return await (stream(content) if is_allowed else other)(request)

    return answer


class TestServers:
    @pytest.mark.parametrize("length", [True, False])
    async def test_one_that_ignores_ranges(self, registry: BoundRegistry, server: FaultRegistry, length: bool) -> None:
        server.on_blob(DIGEST, stream(BLOB, ranges=False, length=length))
        assert await registry.read(request_for(server)) == BLOB
        assert len(server.asked) == 1

    async def test_one_that_refuses_ranges(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, refuse(416), stream(BLOB))
        assert await registry.read(request_for(server)) == BLOB
        assert asked_for(server) == [header_of(*RANGES[0]), ""]

    async def test_one_that_changes_its_mind(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, only(BLOB, 0, 2 * MIB, other=stream(BLOB, ranges=False)))
        assert await registry.read(request_for(server)) == BLOB
        assert len(server.asked) <= 6

    async def test_one_that_gives_less_than_was_asked_for(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, *[short(BLOB)] * 4, stream(BLOB))
        assert await registry.read(request_for(server)) == BLOB

    async def test_one_that_gives_more_than_was_asked_for(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        async def to_the_end(request: web.Request) -> web.StreamResponse:
            start, _ = range_of(request, len(BLOB))
            headers = {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"}
            return web.Response(status=206, body=BLOB[start:], headers=headers)

        server.on_blob(DIGEST, to_the_end)
        assert await registry.read(request_for(server)) == BLOB

    async def test_one_that_cuts_connections(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        cuts = [stream(BLOB, cut_at=at) for at in (500_000, 3_000_000, 2_500_000)]
        server.on_blob(DIGEST, *cuts, stream(BLOB))
        assert await registry.read(request_for(server)) == BLOB

    async def test_one_that_is_overloaded_by_several(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, only(BLOB, 0, other=refuse(429, Retry_After="0")))
        with pytest.raises(CrinoidError, match="429"):
            await registry.read(request_for(server))
        server.on_blob(DIGEST, stream(BLOB), *[refuse(429, Retry_After="0")] * 4, stream(BLOB))
        assert await registry.read(request_for(server)) == BLOB

    async def test_one_that_loses_the_blob(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, only(BLOB, 0, 2 * MIB, other=refuse(404)))
        with pytest.raises(NotFound, match=DIGEST):
            await registry.read(request_for(server))

    async def test_one_whose_blob_gets_another_size(self, registry: BoundRegistry, server: FaultRegistry) -> None:
        server.on_blob(DIGEST, only(BLOB, 0, other=stream(BLOB + b"more")))
        with pytest.raises(CorruptContent, match=f"/{len(BLOB) + 4}'"):
            await registry.read(request_for(server))

    async def test_one_whose_blob_becomes_another(
        self, registry: BoundRegistry, server: FaultRegistry, tmp_path: Path
    ) -> None:
        """Of the same size: no answer shows it but the digest, which the kernel has."""
        server.on_blob(DIGEST, only(BLOB, 0, 2 * MIB, other=stream(bytes(len(BLOB)))))
        request, store = request_for(server), ContentStore(tmp_path / "store")

        async def open_at(offset: int) -> Any:
            return await registry.open_blob(replace(request, offset=offset))

        with pytest.raises(CorruptContent, match="what the source sent has digest"):
            await store.ingest(request.blob, open_at, lambda _: None)
        assert (store.list(), store.list_partial()) == ((), ())


class TestSignedAddresses:
    """The registry sends on to a storage host with a signature that is good for a while."""

    @staticmethod
    def sign(server: FaultRegistry, storage: FaultRegistry) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return await redirect(f"{storage.url}/bucket/blob?signature={len(server.asked)}")(request)

        server.on_blob(DIGEST, answer)

    async def test_each_range_has_its_own(
        self, registry: BoundRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        self.sign(server, mirror)
        mirror.on("/bucket/blob", stream(BLOB))
        assert await registry.read(request_for(server)) == BLOB
        assert len({asked.query for asked in mirror.asked}) == len(RANGES)

    async def test_one_that_has_ended_is_asked_for_again(
        self, registry: BoundRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        self.sign(server, mirror)
        mirror.on("/bucket/blob", stream(BLOB), stream(BLOB), refuse(403), stream(BLOB))
        assert await registry.read(request_for(server)) == BLOB


async def test_a_mirror_that_ends_in_the_middle(
    make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, certs_d: Path
) -> None:
    directory = certs_d / server.host
    directory.mkdir()
    (directory / "hosts.toml").write_text(f'server = "{server.url}"\n[host."{mirror.url}"]\ncapabilities = ["pull"]\n')
    mirror.on_blob(DIGEST, stream(BLOB), stream(BLOB), refuse(404))
    server.on_blob(DIGEST, stream(BLOB))
    registry = make_registry(**PATIENT)
    assert await registry.read(request_for(server)) == BLOB
    assert len(mirror.asked) >= 3 and server.asked
