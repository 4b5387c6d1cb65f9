"""Removes trees in the background: whoever throws one away waits for a rename, not for each of its files.

A trash directory lies on the file system of what is thrown into it and survives the process: what is left at its end,
the next ``start`` goes on with. One thread empties it, and ends once it is empty. What can't be removed (an immutable
file, a mount that somebody left) stays set aside, is logged with its age, and is tried again after longer and longer
waits; nothing else waits for it.
"""

import contextlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path

from crinoid.core.api.backoff import Backoff
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.bulkheads import start_thread
from crinoid.core.api.linux.files import disk_usage, remove_tree, sync_directory
from crinoid.core.api.values.snapshot import DiskUsage

_UNSAFE = re.compile(r"[^A-Za-z0-9_.:-]")
_LABEL_CHARACTERS = 100
_PAUSE_S = 0.05
"""How long what was thrown away lies there first: whoever threw it away may have a request to answer, and each call to
the kernel is a turn at the interpreter's lock."""


class Trash:
    """One trash directory, for one process at a time. Safe to use from several threads."""

    def __init__(self, directory: Path, log: logging.Logger, unremoved: MutableMapping[str, str]) -> None:
        """Make the directory; nothing is removed before ``start`` or the first ``throw``.

        ``unremoved`` is kept to be the paths of what could not be removed so far, each with the error: see ``Host``.
        """
        self.directory = directory
        self._log = log
        self._unremoved = unremoved
        self._changed = threading.Condition()
        self._backoff = Backoff()
        self._is_emptied = False
        self._unsynced = False
        rights.make_directories(directory)
        rights.correct(directory, rights.DIRECTORY)

    def start(self) -> None:
        """Go on with what is there; return at once. Idempotent."""
        with self._changed:
            if self._names():
                self._wake()

    def throw(self, path: Path, durably: bool = False, label: str = "") -> None:
        """Move a tree into the trash: from here on it is gone from where it was. Raises OSError, and ResourceExhausted
        where no thread can be had to remove it: the next one to come removes it, too.

        ``durably``: nothing of it is removed before that outlives a power cut, so that it is never found there in part.
        ``label``: whose it was, for the log, such as a container's id; it outlives the process.
        """
        name = f"{time.time_ns()}-{secrets.token_hex(4)}-{_UNSAFE.sub('_', label)[:_LABEL_CHARACTERS]}"
        path.rename(self.directory / name.rstrip("-"))
        with self._changed:
            self._unsynced |= durably
            self._wake()

    def usage(self) -> DiskUsage:
        """Measure what is not removed yet; cheap where nothing is."""
        usages = []
        for name in self._names():
            with contextlib.suppress(OSError):  # it is gone by now
                usages.append(disk_usage(self.directory / name))
        return DiskUsage(sum(one.used_bytes for one in usages), sum(one.inodes for one in usages))

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is nothing more to do now; tell whether the trash is empty."""
        with self._changed:
            self._changed.wait_for(lambda: all(self._path(one) in self._unremoved for one in self._names()), timeout_s)
            return not self._names()

    def _wake(self) -> None:
        if not self._is_emptied:
            # No one joins it: what it leaves when the process ends, the next one removes.
            start_thread(self._empty)
            self._is_emptied = True
        self._changed.notify_all()

    def _empty(self) -> None:
        """Remove until nothing is left, what could not be removed after its wait."""
        time.sleep(_PAUSE_S)
        while (name := self._next()) is not None:
            try:
                self._sync()
                remove_tree(self.directory / name)
                error = None
            except OSError as failed:
                error = failed
            with self._changed:
                if error is None:
                    self._backoff.forget(name)
                    self._unremoved.pop(self._path(name), None)
                else:
                    self._set_aside(name, error)
                self._changed.notify_all()

    def _sync(self) -> None:
        """One sync serves all that was thrown away by then."""
        with self._changed:
            unsynced, self._unsynced = self._unsynced, False
        if unsynced:
            try:
                sync_directory(self.directory)
            except OSError:
                self._unsynced = True
                raise

    def _next(self) -> str | None:
        """Return the oldest that may be tried, waiting for its time; None, for good, when there is nothing."""
        with self._changed:
            while names := self._names():
                due = min(names, key=lambda name: (self._backoff.due_s(name), name))
                if self._backoff.is_due(due):
                    return due
                self._changed.wait(self._backoff.wait_s(names))
            for path in [path for path in self._unremoved if path.startswith(f"{self.directory}/")]:
                del self._unremoved[path]  # somebody else has removed it
            self._is_emptied = False
            return None

    def _path(self, name: str) -> str:
        return str(self.directory / name)

    def _set_aside(self, name: str, error: OSError) -> None:
        wait_s = self._backoff.note_failure(name)
        self._unremoved[self._path(name)] = str(error)
        self._log.warning(
            "%s%s, thrown away %.0f s ago, can't be removed: %s; tried again in %.0f s",
            f"what is left of {label}: " if (label := name.partition("-")[2].partition("-")[2]) else "",
            self.directory / name,
            _age_s(name),
            error,
            wait_s,
        )

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.directory))  # noqa: PTH208  # names alone
        except FileNotFoundError:  # with all that it belonged to
            return []


def _age_s(name: str) -> float:
    digits = name.partition("-")[0]
    return max(0.0, (time.time_ns() - int(digits)) / 1e9) if digits.isdecimal() else 0.0
