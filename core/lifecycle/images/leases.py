"""What pulls under way need: garbage collection leaves it alone, though no record names it yet."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager


class Leases:
    """Counts leases on digests of blobs and on chain ids.

    A lease waits for a removal of the same name that has begun, and a removal is refused while there is a lease. So
    whoever holds a lease and then looks what is there will find it there until the lease ends.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._removals: dict[str, asyncio.Event] = {}

    @asynccontextmanager
    async def hold(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Lease names for as long as the block runs."""
        names = tuple(names)
        while (removal := next((self._removals[name] for name in names if name in self._removals), None)) is not None:
            await removal.wait()
        self._counts.update(names)
        try:
            yield
        finally:
            self._counts.subtract(names)
            self._counts = +self._counts

    @contextmanager
    def removal(self, name: str) -> Iterator[bool]:
        """Return whether a name may be removed; nobody can lease it while the block runs."""
        if self._counts[name]:
            yield False
            return
        ended = self._removals[name] = asyncio.Event()
        try:
            yield True
        finally:
            del self._removals[name]
            ended.set()
