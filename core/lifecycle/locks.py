"""One lock per pod or container, so that acts on the same object follow one another; lists and statuses take none."""

import asyncio
from weakref import WeakValueDictionary


class Locks:
    """Locks by key; a lock lives as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        """Return the lock of this key."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
