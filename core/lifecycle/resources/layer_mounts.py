"""Mounts of layers that several root file systems stand on: each is made once, and undone with its last user.

A snapshotter may return mounts with a target of their own, before those of the root that stand on them
(``Mount.target``). Who mounts a root has one row in the ledger for all of these, with a token: the tokens of a target
are its users, whichever daemon has written them. A row stands there before anything is mounted, so the mounts of a
daemon that was killed are found again, or undone, by their rows.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from crinoid.core.api.errors import DriverError
from crinoid.core.api.linux import rights
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.resources.host_calls import HostCalls
from crinoid.core.state.store import LedgerEntry

KIND = "layers"


class LayerMounts:
    """The users of each target, counted in memory from the ledger's rows. Made and undone in threads."""

    def __init__(
        self, entries: Iterable[LedgerEntry], roots: Callable[[], Collection[Path]], host_calls: HostCalls
    ) -> None:
        """``roots``: the directories below which targets may lie, those of snapshotters."""
        self._roots = roots
        self._host_calls = host_calls
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._users: dict[str, set[str]] = {}
        for entry in entries:
            if entry.kind == KIND:
                for target in targets_of(entry):
                    self._users.setdefault(target, set()).add(entry.key)

    def new_token(self) -> str:
        """Return what names one use."""
        return secrets.token_hex(8)

    def make(self, mounts: Iterable[Mount], token: str) -> None:
        """Make those that are not there yet, in this order, for one more user."""
        for one in mounts:
            with self._locked(one.target):
                self._users.setdefault(one.target, set()).add(token)
                if not os.path.ismount(one.target):
                    rights.make_directories(Path(one.target))
                    self._host_calls.mount(one, Path(one.target))

    def undo(self, entry: LedgerEntry) -> None:
        """Undo what nobody else uses, the last first. Idempotent."""
        for target in reversed(targets_of(entry)):
            with self._locked(target):
                users = self._users.get(target, set())
                users.discard(entry.key)
                if not users:
                    self._host_calls.unmount(Path(target))
                    with contextlib.suppress(OSError):  # somebody's file in it harms nobody
                        Path(target).rmdir()
                    self._users.pop(target, None)

    def check(self, target: str) -> None:
        """Raise ValueError for a target that is no snapshotter's."""
        path = Path(target)
        if ".." in path.parts or not any(root in path.parents for root in self._roots()):
            raise ValueError(f"{target!r:.300} is not below a snapshotter's run_dir")

    def check_entry(self, entry: LedgerEntry) -> None:
        """Raise ValueError or TypeError for a row that is damaged."""
        if not isinstance(targets := entry.data.get("targets"), list):
            raise TypeError(f"{targets!r:.100} is no list of paths")
        for target in targets:
            self.check(str(target))

    def require(self, mounts: Iterable[Mount]) -> None:
        """Raise DriverError where a snapshotter names a target elsewhere."""
        for one in mounts:
            try:
                self.check(one.target)
            except ValueError as error:
                raise DriverError(f"the snapshotter wants to mount {one.source} where it may not: {error}") from error

    @contextlib.contextmanager
    def _locked(self, target: str) -> Iterator[None]:
        with self._lock:
            lock = self._locks.setdefault(target, threading.Lock())
        with lock:
            yield


def targets_of(entry: LedgerEntry) -> list[str]:
    """Return what a row names; of a damaged one nothing."""
    targets = entry.data.get("targets")
    return [target for target in targets if isinstance(target, str)] if isinstance(targets, list) else []
