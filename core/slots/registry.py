"""The registry role as ``lifecycle`` calls it: the hooks of ``core/api/hooks/registry``."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from crinoid.core.api.errors import DriverError
from crinoid.core.api.hooks.registry import RegistryHooks
from crinoid.core.api.values.image import BlobRequest, Descriptor, ReferrersRequest
from crinoid.core.slots.answers import tuple_of
from crinoid.core.slots.calls import Slot
from crinoid.core.slots.facades import calls_hooks
from crinoid.core.slots.running import HookCall, Outcome, contain


def _iterator(answer: object) -> AsyncIterator[bytes]:
    if not isinstance(answer, AsyncIterator):
        raise DriverError(f"returned {type(answer).__name__} where an asynchronous iterator of bytes is due")
    return answer


@calls_hooks(RegistryHooks)
class RegistrySlot(Slot, RegistryHooks):
    """One image source. Every method is the hook of its name."""

    async def open_blob(self, request: BlobRequest) -> "BlobStream":
        """Open a stream of a blob; the caller must ``aclose`` it, whether or not it came to its end."""
        pieces = await self._ask("open_blob", _iterator, request=request)
        return BlobStream(self, pieces)

    async def list_referrers(self, request: ReferrersRequest) -> tuple[Descriptor, ...]:
        """Return the manifests that refer to another; none where the driver has no such list."""
        if not self.implements("list_referrers"):
            return ()
        return await self._ask("list_referrers", tuple_of(Descriptor), request=request)

    async def wait_for(self, task: "asyncio.Task[None]", step: "asyncio.Future[Outcome[Any]]") -> Any:
        """Wait for a step of a stream within its deadline; ``Any``: whatever the driver's stream gives."""
        with self._named("open_blob"):
            call = HookCall(self.label, "open_blob")
            return await self._binding.calls.finish(call, task, step, self._deadlines.of("next_piece"))

    def check_piece(self, piece: object) -> bytes:
        """Return a piece as bytes; raise a DriverError for anything else."""
        with self._named("open_blob"):
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise DriverError(f"its stream gave {type(piece).__name__} where bytes are due")
            return piece if isinstance(piece, bytes) else bytes(piece)


class BlobStream:
    """The pieces of a blob, each within its deadline and with the slot's name on its errors.

    The driver's stream runs in one task from its first piece to its closing: what it opens in one step (a timeout, a
    task group, a span) it may close in another only there.
    """

    def __init__(self, slot: RegistrySlot, pieces: AsyncIterator[bytes]) -> None:
        self._slot = slot
        self._pieces = pieces
        self._asked: asyncio.Queue[_Step] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._is_left = self._is_closed = False

    def __aiter__(self) -> "BlobStream":
        return self

    async def __anext__(self) -> bytes:
        piece = await self._step(anext, self._pieces, None)
        if piece is None:
            raise StopAsyncIteration
        return self._slot.check_piece(piece)

    async def aclose(self) -> None:
        """Close the driver's stream, where it can be closed; one that was left behind once it returns. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_left:
            self._ask(_close, self._pieces)
        else:
            await self._step(_close, self._pieces)

    async def _step(self, make: Callable[..., Awaitable[Any]], *arguments: object) -> Any:
        task, taken = self._ask(make, *arguments)
        try:
            return await self._slot.wait_for(task, taken)
        finally:
            self._is_left = not taken.done() and not task.done()

    def _ask(
        self, make: Callable[..., Awaitable[Any]], *arguments: object
    ) -> "tuple[asyncio.Task[None], asyncio.Future[Outcome[Any]]]":
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(_serve(self._asked), name=f"{self._slot.label} open_blob")
        step = _Step(functools.partial(make, *arguments), asyncio.get_running_loop().create_future(), make is _close)
        self._asked.put_nowait(step)
        return self._task, step.taken


@dataclass(frozen=True, slots=True)
class _Step:
    make: Callable[[], Awaitable[Any]]
    taken: "asyncio.Future[Outcome[Any]]"
    is_last: bool


async def _serve(asked: "asyncio.Queue[_Step]") -> None:
    """Take the steps of a stream until its last, or until it was cancelled in one."""
    while True:
        step = await asked.get()
        outcome = await contain(_take(step.make))
        step.taken.set_result(outcome)
        if step.is_last or isinstance(outcome.error, asyncio.CancelledError):
            return


async def _take(make: Callable[[], Awaitable[Any]]) -> Any:
    """Begin the step here, as what a stream raises before it awaits anything counts, too."""
    return await make()


async def _close(pieces: object) -> None:
    if (close := getattr(pieces, "aclose", None)) is not None:
        await close()
