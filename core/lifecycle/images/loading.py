"""Images that a client brings (``crinoid ctl load``): a pull whose image source is the client.

``cri`` begins a load, passes on what is wanted and what comes; the client has the archive, and nothing of it is on this
side but what a pull has asked for and verified. When the client goes, the pull fails as with a registry that went.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from crinoid.core.api.errors import CorruptContent, CrinoidError, NotFound, Unavailable
from crinoid.core.api.finishing import finish
from crinoid.core.api.manifests import DescriptorDocument
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ImageReference,
    Platform,
    ResolvedImage,
    ResolveRequest,
)
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.images.targets import resolve_targets
from crinoid.core.state.records import ImageRecord

_HELD_PIECES = 2
"""Of each blob, in memory: a client that sends faster than the disk writes waits with its next piece."""


@dataclass(frozen=True, slots=True)
class Want:
    """A blob that the client is to send, from byte ``offset`` on, under a number."""

    number: int
    blob: Descriptor
    offset: int


class Loads:
    """The loads that are under way, by the names of their sessions."""

    def __init__(self, images: ImageService) -> None:
        self._images = images
        self._sessions: dict[str, ClientSource] = {}

    async def load(
        self, names: Sequence[ImageReference], targets: Sequence[DescriptorDocument], platform: Platform | None
    ) -> AsyncGenerator[str | Want | ImageRecord, None]:
        """Take an image in: yield the session's name, then each blob that is wanted, then the image.

        Without ``names`` it gets none. Raises what a pull raises; nothing is left behind then.
        """
        session = secrets.token_hex(16)
        source = self._sessions[session] = ClientSource(targets)
        work = asyncio.create_task(self._take_in(source, names, platform), name="load of an image")
        work.add_done_callback(lambda _: source.end())
        try:
            yield session
            while (want := await source.next_want()) is not None:
                yield want
            yield await work
        finally:
            del self._sessions[session]
            source.end()
            await finish(_ended(work))

    async def provide(self, session: str, number: int, content: bytes, last: bool, fault: str) -> bool:
        """Hand over a piece of a blob; return whether more of it is wanted. Waits while too many are held.

        Raises NotFound for a session that has ended.
        """
        if (source := self._sessions.get(session)) is None:
            raise NotFound("there is no such load: it has ended, or another crinoid has taken over meanwhile")
        return await source.provide(number, content, last, fault)

    async def _take_in(
        self, source: "ClientSource", names: Sequence[ImageReference], platform: Platform | None
    ) -> ImageRecord:
        record = await self._images.take_in(source, names[0] if names else None, platform)
        for name in names[1:]:
            record = await self._images.tag(record.id, str(name))
        return record


class ClientSource:
    """An image source whose bytes a client sends."""

    name, label = "archive", "the archive"

    def __init__(self, targets: Sequence[DescriptorDocument]) -> None:
        self._targets = targets
        self._wants: asyncio.Queue[Want | None] = asyncio.Queue()
        self._streams: dict[int, _Stream] = {}
        self._number = 0
        self._is_ended = False

    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        """Ask the client for the documents, down to the manifest for the platform."""

        async def read(blob: Descriptor) -> bytes:
            async with aclosing(self._open(blob, 0)) as stream:
                return b"".join([piece async for piece in stream])

        return await resolve_targets(self._targets, read, request, self.label)

    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        """Ask the client for a blob."""
        return self._open(request.blob, request.offset)

    async def next_want(self) -> Want | None:
        """Return what is wanted next; ``None`` when nothing will be any more."""
        return await self._wants.get()

    async def provide(self, number: int, content: bytes, last: bool, fault: str) -> bool:
        """As ``Loads.provide``."""
        if (stream := self._streams.get(number)) is None:
            return False
        if content:
            await stream.put(content)
        if last or fault:
            stream.end(CorruptContent(f"{self.label}: {fault}") if fault else None)
        return number in self._streams

    def end(self) -> None:
        """Want nothing any more; what is read still ends with Unavailable. Idempotent."""
        if not self._is_ended:
            self._is_ended = True
            self._wants.put_nowait(None)
            for stream in self._streams.values():
                stream.end(Unavailable(f"{self.label}: the client has gone away"))

    def _open(self, blob: Descriptor, offset: int) -> "_Stream":
        if self._is_ended:
            raise Unavailable(f"{self.label}: the client has gone away")
        self._number = number = self._number + 1
        self._streams[number] = stream = _Stream(blob.size - offset, lambda: self._streams.pop(number, None))
        self._wants.put_nowait(Want(number, blob, offset))
        return stream


class _Stream:
    """The pieces of one blob: the client puts them in, the pull takes them out."""

    def __init__(self, size: int, closed: Callable[[], object]) -> None:
        """``size``: what there is to come, and never more; ``closed`` is called when nobody wants more."""
        self._left = size
        self._closed = closed
        self._held: deque[bytes] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._is_closed = self._has_all = False
        self._fault: CrinoidError | None = None

    async def put(self, piece: bytes) -> None:
        while len(self._held) >= _HELD_PIECES and not self._is_closed:
            self._room.clear()
            await self._room.wait()
        if not self._is_closed:
            self._held.append(piece)
            self._news.set()

    def end(self, fault: CrinoidError | None) -> None:
        """Nothing comes any more: that was all, or something is wrong."""
        self._has_all = True
        self._fault = self._fault or fault
        self._news.set()

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> bytes:
        while not self._held:
            if self._left <= 0:
                raise StopAsyncIteration
            if self._fault is not None:
                raise self._fault
            if self._has_all:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        piece = self._held.popleft()
        self._room.set()
        self._left -= len(piece)
        return piece

    async def aclose(self) -> None:
        """Want no more; whoever waits to put a piece in waits no longer. Idempotent."""
        self._is_closed = True
        self._held.clear()
        self._room.set()
        self._closed()


async def _ended(work: "asyncio.Task[ImageRecord]") -> None:
    """Wait for the end of a load that has no client any more; what came of it was told, or nobody asks."""
    await asyncio.gather(work, return_exceptions=True)
