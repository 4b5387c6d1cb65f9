"""Image sources with a bug each, on top of a small one that keeps images in memory and has a session to close."""

import asyncio
import hashlib
import json
import random
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import CorruptContent, NotFound, Unavailable, Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.testing.registries import RegistrySample
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ImageReference,
    Platform,
    ResolvedImage,
    ResolveRequest,
    SourceStatus,
)
from support.patience import patient

from . import caught_by

HERE, THERE = Platform("linux", "amd64"), Platform("linux", "s390x")
_INDEX, _MANIFEST = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
_PIECE_BYTES = 1 << 19


def describe(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def descriptor(kind: str, content: bytes) -> Descriptor:
    entry = describe(kind, content)
    return Descriptor(entry["mediaType"], entry["digest"], entry["size"])


@dataclass
class Server:
    """Where images are; ``breaks``: every other stream ends early; ``lies``: documents are others than asked for."""

    breaks: bool = False
    lies: bool = False

    def __post_init__(self) -> None:
        config, layer = b'{"architecture": "amd64"}', random.Random(1).randbytes(3 << 20)
        configuration = describe("application/json", config)
        media = {"config": configuration, "layers": [describe("application/octet", layer)]}
        self.manifest = json.dumps({"schemaVersion": 2, "mediaType": _MANIFEST, **media}).encode()
        entry = {**describe(_MANIFEST, self.manifest), "platform": {"os": "linux", "architecture": "amd64"}}
        self.index = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [entry]}).encode()
        self.blobs = {describe("", one)["digest"]: one for one in (config, layer)}
        self.config_digest = str(configuration["digest"])
        self.opened = 0

    def document(self, content: bytes) -> bytes:
        return content.replace(b"linux", b"xunil") if self.lies else content

    async def stream(self, content: bytes) -> AsyncIterator[bytes]:
        self.opened += 1
        ends_early = self.breaks and self.opened % 2
        for start in range(0, len(content), _PIECE_BYTES):
            await asyncio.sleep(0)
            if ends_early and start:
                raise ConnectionResetError("the server has gone")
            yield content[start : start + _PIECE_BYTES]


SERVER = Server()
SAMPLE = RegistrySample(
    reference=ImageReference.parse("registry.test/app:1"),
    platform=HERE,
    config_digest=SERVER.config_digest,
    absent=ImageReference.parse("registry.test/absent:1"),
    absent_platform=THERE,
)


class Good:
    """An image source over one server."""

    api_version = API_VERSION
    Config = NoOptions

    def __init__(self, host: Host, sample: RegistrySample, server: Server | None = None) -> None:
        self.server = server or Server()
        self.session: tuple[socket.socket, socket.socket] | None = None
        self.streams = asyncio.Semaphore(8)

    def connect(self) -> None:
        self.session = self.session or socket.socketpair()

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        self.connect()
        await asyncio.sleep(0)
        index, manifest = self.server.document(self.server.index), self.server.document(self.server.manifest)
        self.find(request)
        if request.platform.architecture != HERE.architecture:
            raise Unsupported(f"{request.reference} is for {HERE}, not for {request.platform}")
        self.verify(request, index)
        return ResolvedImage(descriptor(_INDEX, index), index, descriptor(_MANIFEST, manifest), manifest)

    def find(self, request: ResolveRequest) -> None:
        reference, known = request.reference, descriptor("", self.server.index).digest
        if reference.repository != "app" or (reference.digest or known) != known:
            raise NotFound(f"{reference} is not here")
        if not reference.digest and reference.tag != "1":
            raise NotFound(f"{reference} is not here")

    def verify(self, request: ResolveRequest, content: bytes) -> None:
        if request.reference.digest not in ("", descriptor("", content).digest):
            raise CorruptContent(f"{request.reference} is not what the server has sent")

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        self.connect()
        await asyncio.sleep(0)
        if request.blob.digest not in self.server.blobs:
            raise NotFound(f"blob {request.blob.digest} is not here")
        return self.read(self.server.blobs[request.blob.digest][: request.blob.size], request.offset)

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        async with self.streams:
            for _ in range(10):
                try:
                    async for piece in self.server.stream(content[offset:]):
                        yield piece
                        offset += len(piece)
                    return
                except ConnectionResetError:
                    continue
        raise Unavailable("the server breaks every stream")

    @hookimpl
    async def status(self) -> SourceStatus:
        return SourceStatus(True)

    @hookimpl
    async def close(self) -> None:
        for end in self.session or ():
            end.close()
        self.session = None


@caught_by("test_its_hooks_are_as_specified", "open_blob has the name of a hook but no @hookimpl")
class MarkForgotten(Good):
    """``open_blob`` has no ``@hookimpl``."""

    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        return await super().open_blob(request)


@caught_by("test_its_hooks_are_as_specified", "is an asynchronous generator where a coroutine function")
class Generator(Good):
    """``open_blob`` is a generator, where it should return one."""

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:  # type: ignore[override, misc]
        yield b""


@caught_by("test_a_tag_is_resolved_to_verified_documents", "==")
class OtherDigest(Good):
    """The digest of the index is told as the manifest's."""

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        image = await super().resolve(request)
        return replace(image, manifest=replace(image.manifest, digest=image.target.digest))


@caught_by("test_a_tag_is_resolved_to_verified_documents", "resolve has held the event loop for")
class Blocks(Good):
    """It reads in the loop, for a second."""

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        time.sleep(patient(0.6))
        return await super().resolve(request)


@caught_by("test_a_tag_is_resolved_to_verified_documents", "returned .* where ResolvedImage is due")
class WrongType(Good):
    """The manifest alone is returned."""

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> Any:
        return (await super().resolve(request)).manifest


@caught_by("test_the_manifest_is_the_target_or_listed_by_it", " in ")
class ForgetsTheIndex(Good):
    """The target that is told has not the manifest."""

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        image = await super().resolve(request)
        empty = b'{"manifests": [{"digest": "sha256:0"}]}'
        return replace(image, target=descriptor(_INDEX, empty), target_content=empty)


@caught_by("test_a_digest_is_resolved_to_the_same", "is not here")
class TagsOnly(Good):
    """A reference by digest is not found."""

    def find(self, request: ResolveRequest) -> None:
        if request.reference.tag != "1":
            raise NotFound(f"{request.reference} is not here")


@caught_by("test_a_digest_decides_when_there_is_a_tag_too", "is not here")
class TheTagDecides(Good):
    """Where there are tag and digest, it goes by the tag."""

    def find(self, request: ResolveRequest) -> None:
        super().find(request)
        if request.reference.tag not in ("", "1"):
            raise NotFound(f"{request.reference} is not here")


@caught_by("test_an_unknown_reference_is_not_found_by_name", "absent")
class SaysNotWhat(Good):
    """The message does not name what was not found."""

    def find(self, request: ResolveRequest) -> None:
        try:
            super().find(request)
        except NotFound:
            raise NotFound("404") from None


@caught_by("test_an_unknown_reference_is_not_found_by_name", "404")
class OtherError(Good):
    """What is not there is an error that ends the pull: no other source is asked."""

    def find(self, request: ResolveRequest) -> None:
        try:
            super().find(request)
        except NotFound:
            raise Unavailable("404") from None


@caught_by("test_an_unknown_digest_is_not_found", "DID NOT RAISE")
class AnyDigest(Good):
    """For a digest that it has not it gives what it has."""

    def find(self, request: ResolveRequest) -> None:
        """Everything is here."""

    def verify(self, request: ResolveRequest, content: bytes) -> None:
        """Whatever it is."""


@caught_by("test_another_platform_is_unsupported", "DID NOT RAISE")
class AnyPlatform(Good):
    """It takes the first manifest, whatever platform that is for."""

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        return await super().resolve(replace(request, platform=HERE))


@caught_by("test_another_platform_is_unsupported", "names the platforms there are")
class SaysNoPlatforms(Good):
    """The message does not say for which platforms the image is."""

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        try:
            return await super().resolve(request)
        except Unsupported:
            raise Unsupported(f"{request.reference} is not for {request.platform}") from None


@caught_by("test_documents_that_are_not_of_their_digest_are_corrupt", "DID NOT RAISE")
class Unverified(Good):
    """What the server has sent is not held against its digest."""

    def verify(self, request: ResolveRequest, content: bytes) -> None:
        """Trust it."""


@caught_by("test_every_blob_is_streamed_whole", "==")
class LosesTheEnd(Good):
    """The last piece of a blob is lost."""

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        async for piece in super().read(content, offset):
            if len(piece) == _PIECE_BYTES and piece != content[-_PIECE_BYTES:]:
                yield piece


@caught_by("test_every_blob_is_streamed_whole", "a piece of 3145728 bytes")
class OnePiece(Good):
    """A blob comes in one piece, all of which is in memory."""

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        yield content[offset:]


@caught_by("test_every_blob_is_streamed_whole", "a piece of 0 bytes")
class EmptyPieces(Good):
    """Pieces may be empty."""

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        yield b""
        async for piece in super().read(content, offset):
            yield piece


@caught_by("test_every_blob_is_streamed_whole", "open_blob's answer has held the event loop for")
class BlockingStream(Good):
    """A stream reads in the loop, for a second."""

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        time.sleep(patient(0.6))
        async for piece in super().read(content, offset):
            yield piece


@caught_by("test_streams_run_at_once", "open_blob has had no answer|has had no answer for 0.5 s", hook_s=0.5)
class StreamsHinderEachOther(Good):
    """Two streams wait for each other."""

    def __init__(self, host: Host, sample: RegistrySample, server: Server | None = None) -> None:
        super().__init__(host, sample, server)
        self.reading = 0

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        self.reading += 1
        while self.reading > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async for piece in super().read(content, offset):
            yield piece
            await asyncio.sleep(0.001)
        self.reading -= 1


@caught_by("test_a_stream_begins_at_its_offset", "==", part=0.3)
class OffsetIgnored(Good):
    """A stream begins at the blob's beginning."""

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        async for piece in super().read(content, 0):
            yield piece


@caught_by("test_a_stream_that_is_left_early_hinders_nobody", "has had no answer for 0.5 s", hook_s=0.5)
class LosesPlaces(Good):
    """A stream that is left early keeps its place."""

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        await self.streams.acquire()
        async for piece in self.server.stream(content[offset:]):
            yield piece
        self.streams.release()


@caught_by("test_a_stream_that_is_left_early_hinders_nobody", "without aclose")
class NoEnd(Good):
    """A stream can't be ended early."""

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        stream = await super().open_blob(request)

        class Pieces:
            def __aiter__(self) -> "Pieces":
                return self

            async def __anext__(self) -> bytes:
                return await anext(stream)

        return Pieces()


@caught_by("test_a_stream_that_breaks_is_resumed", "the server has gone")
class NotResumed(Good):
    """A stream that breaks is an error at once."""

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        async for piece in self.server.stream(content[offset:]):
            yield piece


@caught_by("test_a_stream_that_breaks_is_resumed", "==")
class ResumedFromTheStart(Good):
    """A stream that breaks begins anew, in the middle of what was given."""

    async def read(self, content: bytes, offset: int) -> AsyncIterator[bytes]:
        while True:
            try:
                async for piece in self.server.stream(content[offset:]):
                    yield piece
                return
            except ConnectionResetError:
                continue


@caught_by("test_an_unknown_blob_is_not_found", "DID NOT RAISE")
class EmptyBlob(Good):
    """A blob that is not there is empty."""

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        return self.read(self.server.blobs.get(request.blob.digest, b""), request.offset)


@caught_by("test_a_blob_is_never_longer_than_it_says", "<=")
class TooLong(Good):
    """It streams what the server has, however much that is."""

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        return await super().open_blob(replace(request, blob=replace(request.blob, size=1 << 40)))


@caught_by("test_the_status_is_ready", "ready=False")
class NeverReady(Good):
    """It says that it can't be asked."""

    @hookimpl
    async def status(self) -> SourceStatus:
        return SourceStatus(False)


@caught_by("test_what_is_cancelled_hinders_nobody", "somebody is asking")
class LosesItsLock(Good):
    """A resolution that is cancelled keeps its lock."""

    asking = False

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        if self.asking:
            raise Unavailable("somebody is asking")
        self.asking = True
        image = await super().resolve(request)
        self.asking = False
        return image


@caught_by("test_closing_leaves_nothing_open", "socket:")
class NeverCloses(Good):
    """Its session is never closed."""

    @hookimpl
    async def close(self) -> None:
        self.kept, self.session = self.session, None


@caught_by("test_closing_leaves_nothing_open", "refresh tokens")
class LeavesATask(Good):
    """A task that refreshes tokens goes on."""

    def connect(self) -> None:
        super().connect()
        self.task = asyncio.create_task(asyncio.sleep(1000), name="refresh tokens")


@caught_by("test_closing_twice_is_closing_once", "closed already")
class ClosesOnce(Good):
    """A second ``close`` is an error."""

    closed = 0

    @hookimpl
    async def close(self) -> None:
        await super().close()
        self.closed += 1
        if self.closed == 2:
            raise RuntimeError("closed already")
