"""The registry role as ``lifecycle`` calls it: the hooks of ``core/api/hooks/registry`` with their types."""

from collections.abc import AsyncIterator

from crinoid.core.api.errors import DriverError
from crinoid.core.api.values.image import BlobRequest, ResolvedImage, ResolveRequest, SourceStatus
from crinoid.core.slots.answers import one
from crinoid.core.slots.calls import Slot, await_within


class RegistrySlot(Slot):
    """One image source. Every method is the hook of its name: see :class:`RegistryHooks` for what it means."""

    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        """Find what a reference means."""
        return await self._ask("resolve", one(ResolvedImage), request=request)

    async def open_blob(self, request: BlobRequest) -> "BlobStream":
        """Open a stream of a blob; the caller must ``aclose`` it, whether or not it came to its end."""
        pieces = await self._ask("open_blob", _iterator, request=request)
        return BlobStream(self, pieces)

    async def next_piece(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        """Take the next piece of a stream within its deadline; ``None`` at the end."""
        with self._named("open_blob"):
            piece = await await_within(anext(pieces, None), self._deadlines.of("next_piece"))
            return None if piece is None else _bytes(piece)

    async def close_pieces(self, pieces: AsyncIterator[bytes]) -> None:
        """Close a stream, where it can be closed."""
        close = getattr(pieces, "aclose", None)
        if close is not None:
            with self._named("open_blob"):
                await await_within(close(), self._deadlines.of("next_piece"))

    async def status(self) -> SourceStatus:
        """Tell whether the source can be asked."""
        return await self._ask("status", one(SourceStatus))

    async def close(self) -> None:
        """Release connections and files."""
        await self._tell("close")


class BlobStream:
    """The pieces of a blob, each within its deadline and with the slot's name on its errors."""

    def __init__(self, slot: RegistrySlot, pieces: AsyncIterator[bytes]) -> None:
        self._slot = slot
        self._pieces = pieces

    def __aiter__(self) -> "BlobStream":
        return self

    async def __anext__(self) -> bytes:
        piece = await self._slot.next_piece(self._pieces)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Close the driver's stream. Idempotent."""
        await self._slot.close_pieces(self._pieces)


def _iterator(answer: object) -> AsyncIterator[bytes]:
    if not isinstance(answer, AsyncIterator):
        raise DriverError(f"returned {type(answer).__name__} where an asynchronous iterator of bytes is due")
    return answer


def _bytes(piece: object) -> bytes:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise DriverError(f"its stream gave {type(piece).__name__} where bytes are due")
    return bytes(piece) if not isinstance(piece, bytes) else piece
