"""What a registry may do wrong: each fault is survived, or told with the reference, the host and its words."""

import asyncio
import gzip
import json
import socket
import time
from typing import Any

import pytest
from aiohttp import web

from crinoid.core.api.errors import (
    CorruptContent,
    CrinoidError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from crinoid.core.api.testing.registries import BoundRegistry
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ImageReference,
    Platform,
    ResolvedImage,
    ResolveRequest,
)
from support.faults import (
    Answer,
    FaultRegistry,
    index_of,
    manifest_of,
    range_of,
    redirect,
    refuse,
    send,
    stream,
)
from support.images import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, digest_of

from .conftest import MakeRegistry

AMD64 = Platform("linux", "amd64")
MANIFEST = manifest_of(b"{}", b"layer")
BLOB = bytes(range(256)) * 12_000  # 3 MB
GZIPPED = gzip.compress(BLOB)  # once: its header holds the second at which it was made
BLOB_DIGEST = digest_of(BLOB)


async def resolve(registry: BoundRegistry, server: FaultRegistry, rest: str = "app:1") -> ResolvedImage:
    return await registry.resolve(ResolveRequest(ImageReference.parse(f"{server.host}/{rest}"), AMD64))


def request_blob(server: FaultRegistry, **changes: object) -> BlobRequest:
    fields: dict[str, Any] = {"media_type": "x/y", "digest": BLOB_DIGEST, "size": len(BLOB)}
    return BlobRequest(ImageReference.parse(f"{server.host}/app:1"), Descriptor(**(fields | changes)))


async def fail(registry: BoundRegistry, server: FaultRegistry, kind: type[CrinoidError], rest: str = "app:1") -> str:
    """Resolve, expect an error of exactly the kind, check that it names what it is about; return its text."""
    with pytest.raises(CrinoidError) as caught:
        await resolve(registry, server, rest)
    assert type(caught.value) is kind, caught.value
    assert f"pull {server.host}/{rest}" in caught.value.message
    assert server.url in caught.value.message
    return caught.value.message


class TestDocuments:
    async def test_a_true_manifest_is_taken(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", send(MANIFEST))
        image = await resolve(make_registry(), server)
        assert image.manifest_content == MANIFEST
        assert image.manifest == image.target == Descriptor(OCI_MANIFEST, digest_of(MANIFEST), len(MANIFEST))
        asked = server.asked[0].headers
        assert asked["User-Agent"] == "crinoid/7"
        for media_type in (OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST):
            assert media_type in asked["Accept"]

    async def test_content_that_is_not_of_the_digest_asked_for(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        wanted = digest_of(b"something else")
        server.on_manifest(wanted, send(MANIFEST, digest=wanted))
        assert wanted in await fail(make_registry(), server, CorruptContent, f"app@{wanted}")

    async def test_content_that_is_not_of_the_digest_announced(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        server.on_manifest("1", send(MANIFEST, digest=digest_of(b"a lie")))
        await fail(make_registry(), server, CorruptContent)
        assert len(server.asked) == 1, "a lie is not asked for again"

    @pytest.mark.parametrize(
        ("content", "media_type", "kind", "words"),
        [
            (b"<html>hello</html>", "text/html", CorruptContent, "not JSON"),
            (b'{"schemaVersion": 2', OCI_MANIFEST, CorruptContent, "not JSON"),
            (b"[" * 100_000, OCI_MANIFEST, CorruptContent, "not JSON"),
            (b"[1]", OCI_MANIFEST, CorruptContent, "not an object"),
            (MANIFEST, OCI_INDEX, CorruptContent, "announced as"),
            (b'{"schemaVersion": 1, "fsLayers": []}', "application/json", Unsupported, "schema 1"),
            (b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws", Unsupported, "schema 1"),
            (b'{"manifests": [], "layers": []}', OCI_INDEX, CorruptContent, "fields"),
            (b'{"manifests": []}', OCI_MANIFEST, CorruptContent, "fields"),
            (b'{"mediaType": "a/b"}', "a/b", Unsupported, "neither"),
            (b'{"layers": []}', OCI_MANIFEST, CorruptContent, "config"),
            (b'{"config": {"digest": "sha256:../../x", "size": 1}}', OCI_MANIFEST, CorruptContent, "config.digest"),
            (b'{"config": {"digest": 5, "size": -1}}', OCI_MANIFEST, CorruptContent, "config.digest"),
        ],
    )
    async def test_rubbish(  # one table of what may come
        self,
        make_registry: MakeRegistry,
        server: FaultRegistry,
        content: bytes,
        media_type: str,
        kind: type[CrinoidError],
        words: str,
    ) -> None:
        server.on_manifest("1", send(content, media_type))
        with pytest.raises(kind, match=words) as caught:
            await resolve(make_registry(), server)
        assert f"pull {server.host}/app:1" in caught.value.message

    @pytest.mark.parametrize(
        "vague",
        ["application/json", "text/plain; charset=utf-8", "text/html", "binary/octet-stream"],
    )
    async def test_a_vague_content_type_is_settled_by_the_document(
        self, make_registry: MakeRegistry, server: FaultRegistry, vague: str
    ) -> None:
        server.on_manifest("1", send(MANIFEST, vague))
        assert (await resolve(make_registry(), server)).manifest.media_type == OCI_MANIFEST

    async def test_two_names_of_one_kind_of_document(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", send(MANIFEST, DOCKER_MANIFEST))
        assert (await resolve(make_registry(), server)).manifest.media_type == DOCKER_MANIFEST

    @pytest.mark.parametrize("odd", ["text/html", "binary/octet-stream", DOCKER_MANIFEST, OCI_INDEX])
    async def test_a_manifest_of_an_index_is_what_the_index_says(
        self, make_registry: MakeRegistry, server: FaultRegistry, odd: str
    ) -> None:
        server.on_manifest("1", send(index_of(entry(MANIFEST, "amd64")), OCI_INDEX))
        server.on_manifest(digest_of(MANIFEST), send(MANIFEST, odd))
        assert (await resolve(make_registry(), server)).manifest.media_type == OCI_MANIFEST

    @pytest.mark.parametrize("chunked", [True, False])
    async def test_a_manifest_without_end(
        self, make_registry: MakeRegistry, server: FaultRegistry, chunked: bool
    ) -> None:
        server.on_manifest("1", stream(b" " * (9 << 20), length=not chunked))
        assert "longer than" in await fail(make_registry(), server, CorruptContent)

    async def test_an_index_leads_to_the_manifest(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        index = index_of(entry(b"other", "arm64"), entry(MANIFEST, "amd64"))
        server.on_manifest("1", send(index, OCI_INDEX))
        server.on_manifest(digest_of(MANIFEST), send(MANIFEST))
        image = await resolve(make_registry(), server)
        assert (image.target_content, image.manifest_content) == (index, MANIFEST)

    async def test_an_index_that_lies_about_a_size(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", send(index_of(entry(MANIFEST, "amd64") | {"size": 5}), OCI_INDEX))
        server.on_manifest(digest_of(MANIFEST), send(MANIFEST))
        await fail(make_registry(), server, CorruptContent)

    async def test_an_index_that_announces_a_huge_manifest(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        server.on_manifest("1", send(index_of(entry(MANIFEST, "amd64") | {"size": 1 << 40}), OCI_INDEX))
        with pytest.raises(CorruptContent, match=str(1 << 40)):
            await resolve(make_registry(), server)

    async def test_no_manifest_for_the_platform(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", send(index_of(entry(MANIFEST, "arm64")), OCI_INDEX))
        with pytest.raises(Unsupported, match="linux/amd64; it has: linux/arm64"):
            await resolve(make_registry(), server)

    async def test_indexes_without_end(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        inner = index_of()
        for _ in range(5):
            server.on_manifest(digest_of(inner), send(inner, OCI_INDEX))
            inner = index_of(entry(inner, "amd64") | {"mediaType": OCI_INDEX})
        server.on_manifest("1", send(inner, OCI_INDEX))
        with pytest.raises(CorruptContent, match="inside each other"):
            await resolve(make_registry(), server)


def entry(content: bytes, architecture: str) -> dict[str, object]:
    place = {"os": "linux", "architecture": architecture}
    return {"mediaType": OCI_MANIFEST, "digest": digest_of(content), "size": len(content), "platform": place}


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [(404, NotFound), (403, PermissionDenied), (400, Unavailable), (405, Unavailable), (410, Unavailable)],
    )
    async def test_a_final_answer_is_told_at_once(
        self, make_registry: MakeRegistry, server: FaultRegistry, status: int, kind: type[CrinoidError]
    ) -> None:
        server.on_manifest("1", refuse(status, "SOME_CODE", "some words"))
        text = await fail(make_registry(), server, kind)
        assert f"{status} " in text
        assert "(SOME_CODE: some words)" in text
        assert len(server.asked) == 1

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
    async def test_a_passing_fault_is_waited_out(
        self, make_registry: MakeRegistry, server: FaultRegistry, status: int
    ) -> None:
        server.on_manifest("1", refuse(status), refuse(status), send(MANIFEST))
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST
        assert len(server.asked) == 3

    async def test_tries_are_bounded(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", refuse(503))
        assert "503" in await fail(make_registry(tries=4), server, Unavailable)
        assert len(server.asked) == 4

    async def test_patience_ends_before_the_tries(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", refuse(503, Retry_After="1"))
        began = time.monotonic()
        await fail(make_registry(tries=20, patience_s=0.5), server, Unavailable)
        assert time.monotonic() - began < 0.5
        assert len(server.asked) == 1

    async def test_retry_after_is_heeded(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", refuse(429, Retry_After="1"), send(MANIFEST))
        began = time.monotonic()
        await resolve(make_registry(), server)
        assert time.monotonic() - began >= 1

    async def test_a_retry_after_of_an_hour_is_not_waited_for(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        server.on_manifest("1", refuse(429, "TOOMANYREQUESTS", "pull rate limit", Retry_After="3600"))
        assert "pull rate limit" in await fail(make_registry(), server, Unavailable)
        assert len(server.asked) == 1

    async def test_an_error_body_is_cut_and_cleaned(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", refuse(404, "X", "\x1b[31m\n" + "a" * 9999))
        text = await fail(make_registry(), server, NotFound)
        assert "\x1b" not in text
        assert len(text) < 500

    async def test_nobody_listens(self, make_registry: MakeRegistry) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, but not listening
            host = f"127.0.0.1:{taken.getsockname()[1]}"
            reference = ImageReference.parse(f"{host}/app:1")
            began = time.monotonic()
            with pytest.raises(Unavailable, match=f"pull {host}/app:1: connection refused at http://{host}"):
                await make_registry(plain_http=(host,), backoff_s=60).resolve(ResolveRequest(reference, AMD64))
            assert time.monotonic() - began < 20, "the answer is final: another try would come after 30 s at least"

    @pytest.mark.timeout(25)
    async def test_a_name_that_does_not_resolve(self, make_registry: MakeRegistry) -> None:
        reference = ImageReference.parse("no-such-host.invalid/app:1")
        with pytest.raises(Unavailable, match="no such host: its name does not resolve at https://no-such"):
            await make_registry(backoff_s=60).resolve(ResolveRequest(reference, AMD64))

    async def test_name_servers_that_give_no_answer(
        self, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def look_up(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        with pytest.raises(Unavailable, match=r"lookup failed: the name servers of /etc/resolv\.conf give no answer"):
            await make_registry(backoff_s=60).resolve(ResolveRequest(ImageReference.parse("slow.test/app:1"), AMD64))

    async def test_a_proxy_that_is_down_is_blamed_and_not_the_registry(
        self, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://user:s3cret@127.0.0.1:1")
        with pytest.raises(Unavailable, match=r"app:1: proxy http://127\.0\.0\.1:1: connection refused at") as caught:
            await make_registry().resolve(ResolveRequest(ImageReference.parse("far.test/app:1"), AMD64))
        assert "s3cret" not in caught.value.message

    async def test_an_answer_that_is_not_http(self, make_registry: MakeRegistry) -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as listener:
            host = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            with pytest.raises(Unavailable, match=host):
                await make_registry(plain_http=(host,)).resolve(
                    ResolveRequest(ImageReference.parse(f"{host}/app:1"), AMD64)
                )

    async def test_plain_http_is_not_tried_unless_configured(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        server.on_manifest("1", send(MANIFEST))
        with pytest.raises(Unavailable, match=f"https://{server.host}"):
            await resolve(make_registry(plain_http=()), server)
        assert not server.asked

    async def test_a_proxy_of_the_environment_is_used(
        self, make_registry: MakeRegistry, server: FaultRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", server.url)
        server.on_manifest("1", send(MANIFEST))
        reference = ImageReference.parse("behind.invalid/app:1")
        image = await make_registry(plain_http=("behind.invalid",)).resolve(ResolveRequest(reference, AMD64))
        assert image.manifest_content == MANIFEST
        assert server.asked[0].headers["Host"] == "behind.invalid"


class TestStreams:
    async def test_a_cut_stream_is_resumed_by_range(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_blob(BLOB_DIGEST, stream(BLOB, cut_at=1_000_000), stream(BLOB))
        assert await make_registry().read(request_blob(server)) == BLOB
        first, second = server.asked
        assert "Range" not in first.headers
        assert 0 < int(second.headers["Range"].removeprefix("bytes=").rstrip("-")) <= 1_000_000

    @pytest.mark.parametrize("length", [True, False])
    async def test_a_server_that_ignores_ranges_is_read_from_the_start(
        self, make_registry: MakeRegistry, server: FaultRegistry, length: bool
    ) -> None:
        server.on_blob(BLOB_DIGEST, stream(BLOB, cut_at=1_000_000), stream(BLOB, ranges=False, length=length))
        assert await make_registry().read(request_blob(server)) == BLOB

    async def test_a_server_that_refuses_ranges_is_read_from_the_start(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        server.on_blob(BLOB_DIGEST, stream(BLOB, cut_at=1_000_000), refuse(416), stream(BLOB))
        assert await make_registry().read(request_blob(server)) == BLOB

    async def test_another_range_than_asked_for(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        async def wrong(request: Any) -> Any:
            return await refuse(206, Content_Range=f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}")(request)

        server.on_blob(BLOB_DIGEST, stream(BLOB, cut_at=1_000_000), wrong)
        with pytest.raises(CorruptContent, match="it sent 'bytes 0-"):
            await make_registry().read(request_blob(server))

    @pytest.mark.parametrize("unit", [None, "Bytes", "BYTES"])
    async def test_a_range_that_is_told_oddly_or_by_its_length_alone(
        self, make_registry: MakeRegistry, server: FaultRegistry, unit: str | None
    ) -> None:
        """As a cache and some storage hosts answer; containerd takes it, too."""

        async def rest(request: web.Request) -> web.StreamResponse:
            first, end = range_of(request, len(BLOB))
            headers = {"Content-Range": f"{unit} {first}-{end - 1}/{len(BLOB)}"} if unit else {}
            return web.Response(status=206, body=BLOB[first:end], headers=headers)

        server.on_blob(BLOB_DIGEST, stream(BLOB, cut_at=1_000_000), rest)
        assert await make_registry().read(request_blob(server)) == BLOB

    @pytest.mark.parametrize("status", [203, 206])
    async def test_success_of_another_number(
        self, make_registry: MakeRegistry, server: FaultRegistry, status: int
    ) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=BLOB)

        server.on_blob(BLOB_DIGEST, answer)
        assert await make_registry().read(request_blob(server)) == BLOB

    async def test_a_stall_is_a_cut(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_blob(BLOB_DIGEST, stream(BLOB, stall_at=500_000), stream(BLOB))
        began = time.monotonic()
        assert await make_registry().read(request_blob(server)) == BLOB
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize(
        ("answer", "words"),
        [(stream(BLOB, cut_at=0), "http://"), (stream(BLOB, stall_at=0), "stalled"), (refuse(502), "502 Bad Gateway")],
    )
    async def test_a_stream_that_never_gets_on_is_given_up(
        self, make_registry: MakeRegistry, server: FaultRegistry, answer: Answer, words: str
    ) -> None:
        server.on_blob(BLOB_DIGEST, answer)
        with pytest.raises(Unavailable, match=words) as caught:
            await make_registry().read(request_blob(server))
        assert BLOB_DIGEST in caught.value.message
        assert len(server.asked) == 3

    async def test_many_cuts_are_survived_while_it_gets_on(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        whole = BLOB * 3
        cuts = [stream(whole, cut_at=at) for at in range(1 << 21, len(whole), 1 << 21)]
        server.on_blob(digest_of(whole), *cuts, stream(whole))
        read = await make_registry(tries=2).read(request_blob(server, digest=digest_of(whole), size=len(whole)))
        assert read == whole
        assert len(cuts) > 2

    async def test_never_more_than_the_size(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_blob(BLOB_DIGEST, stream(BLOB + b"more", length=False))
        assert await make_registry().read(request_blob(server)) == BLOB

    @pytest.mark.parametrize("change", [-1, 1])
    async def test_another_length_than_announced(
        self, make_registry: MakeRegistry, server: FaultRegistry, change: int
    ) -> None:
        server.on_blob(BLOB_DIGEST, stream(BLOB))
        with pytest.raises(CorruptContent, match=f"has {len(BLOB)} bytes there, not {len(BLOB) + change}"):
            await make_registry().read(request_blob(server, size=len(BLOB) + change))

    async def test_a_stream_left_early_gives_its_place_back(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        server.on_blob(BLOB_DIGEST, stream(BLOB))
        registry = make_registry(max_streams=1)
        first: Any = await registry.open_blob(request_blob(server))
        await anext(first)
        waiting = asyncio.ensure_future(registry.open_blob(request_blob(server)))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "one stream at a time"
        await first.aclose()
        second: Any = await asyncio.wait_for(waiting, 60)
        await second.aclose()

    async def test_a_cancelled_reader_gives_its_place_back(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        server.on_blob(BLOB_DIGEST, stream(BLOB, stall_at=10), stream(BLOB))
        registry = make_registry(max_streams=1, stall_timeout_s=30)
        reader = asyncio.ensure_future(registry.read(request_blob(server)))
        await asyncio.sleep(0.1)
        reader.cancel()
        await asyncio.wait([reader])
        assert await asyncio.wait_for(registry.read(request_blob(server)), 60) == BLOB

    async def test_a_failed_stream_gives_its_place_back(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        registry = make_registry(max_streams=1)
        for _ in range(3):
            with pytest.raises(NotFound):
                await asyncio.wait_for(registry.open_blob(request_blob(server)), 60)

    async def test_a_foreign_layer_is_fetched_from_its_url(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        mirror.on("/storage/layer", stream(BLOB))
        urls = ("ftp://elsewhere.invalid/x", f"{mirror.url}/storage/missing", f"{mirror.url}/storage/layer")
        assert await make_registry().read(request_blob(server, urls=urls)) == BLOB
        assert server.paths() == [f"/v2/app/blobs/{BLOB_DIGEST}"], "the registry is asked first"


def encoded(content: bytes, media_type: str = OCI_MANIFEST, length: bool = True) -> Answer:
    """Answer with content that is said to be compressed, whatever it is."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": media_type, "Content-Encoding": "gzip"})
        if length:
            response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[:5000])
        await response.write(content[5000:])
        return response

    return answer


LAYER = "application/vnd.oci.image.layer.v1.tar"


class TestContentEncodings:
    """A server, or a proxy before it, that compresses what nobody asked it to, or only says so."""

    async def test_a_manifest(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", encoded(gzip.compress(MANIFEST)))
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    async def test_a_manifest_that_is_not_compressed(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", encoded(MANIFEST))
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    async def test_a_manifest_that_grows(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", encoded(gzip.compress(bytes(64 << 20))))
        assert "longer than" in await fail(make_registry(), server, CorruptContent)

    @pytest.mark.parametrize("length", [True, False])
    @pytest.mark.parametrize(
        ("blob", "media_type", "wire"),
        [
            (BLOB, LAYER, gzip.compress(BLOB)),
            (BLOB, LAYER, BLOB),
            (GZIPPED, f"{LAYER}+gzip", gzip.compress(GZIPPED)),
            (GZIPPED, f"{LAYER}+gzip", GZIPPED),
        ],
        ids=["tar", "tar-not-compressed", "gzip-twice", "gzip-once"],
    )
    async def test_a_blob(
        self,
        make_registry: MakeRegistry,
        server: FaultRegistry,
        blob: bytes,
        media_type: str,
        wire: bytes,
        length: bool,
    ) -> None:
        server.on_blob(digest_of(blob), encoded(wire, length=length))
        reference = ImageReference.parse(f"{server.host}/app:1")
        wanted = BlobRequest(reference, Descriptor(media_type, digest_of(blob), len(blob)))
        assert await make_registry().read(wanted) == blob

    async def test_a_blob_whose_compression_is_damaged(
        self, make_registry: MakeRegistry, server: FaultRegistry
    ) -> None:
        wire = gzip.compress(BLOB)
        server.on_blob(BLOB_DIGEST, encoded(wire[:100] + b"\xff" * 1000 + wire[1100:]))
        with pytest.raises(CorruptContent, match="damaged"):
            await make_registry().read(request_blob(server))


class TestRedirects:
    async def test_a_blob_comes_from_the_storage_host(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        server.on_blob(BLOB_DIGEST, redirect(f"{mirror.url}/bucket/blob?signature=a%2Fb%3D"))
        mirror.on("/bucket/blob", stream(BLOB, cut_at=1_000_000), stream(BLOB))
        assert await make_registry().read(request_blob(server)) == BLOB
        assert {asked.query for asked in mirror.asked} == {"signature=a%2Fb%3D"}, "a signed URL goes as it came"
        assert len(server.asked) == 2, "a resumed stream asks for a new signature"
        assert mirror.asked[1].headers["Range"].startswith("bytes=")

    @pytest.mark.parametrize("status", [400, 403])
    async def test_a_signature_that_has_run_out_is_asked_for_anew(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, status: int
    ) -> None:
        server.on_blob(BLOB_DIGEST, redirect(f"{mirror.url}/bucket?old"), redirect(f"{mirror.url}/bucket?new"))
        mirror.on("/bucket", refuse(status), stream(BLOB))
        assert await make_registry().read(request_blob(server)) == BLOB
        assert [asked.query for asked in mirror.asked] == ["old", "new"]

    async def test_within_the_host(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", redirect("/elsewhere", 302))
        server.on("/elsewhere", send(MANIFEST))
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    @pytest.mark.parametrize(
        ("location", "words"),
        [
            ("", "to nowhere"),
            ("file:///etc/shadow", "to nowhere"),
            ("http://127.0.0.1:99999/v2/app/manifests/1", "to nowhere"),
            ("/v2/app/manifests/1", "more than"),
        ],
    )
    async def test_a_redirect_to_nowhere_or_in_a_circle(
        self, make_registry: MakeRegistry, server: FaultRegistry, location: str, words: str
    ) -> None:
        server.on_manifest("1", redirect(location))
        assert words in await fail(make_registry(), server, Unavailable)

    async def test_a_refusal_of_the_storage_host_does_not_show_the_signature(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        server.on_blob(BLOB_DIGEST, redirect(f"{mirror.url}/bucket?X-Signature=verysecret"))
        mirror.on("/bucket", refuse(403))
        with pytest.raises(PermissionDenied) as caught:
            await make_registry().read(request_blob(server))
        assert "verysecret" not in caught.value.message


def test_the_tests_blob_is_longer_than_a_piece() -> None:
    assert len(BLOB) > 2 << 20
    assert json.loads(MANIFEST)["schemaVersion"] == 2
