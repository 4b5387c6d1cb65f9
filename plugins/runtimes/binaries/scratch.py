"""Directories for the time of one command: logs, process descriptions. What a killed daemon leaves is swept."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.linux import rights


class Scratch:
    """Makes short-lived directories in ``directory``, named after this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def temporary_directory(self) -> Iterator[Path]:
        """A new directory, removed at the end."""
        made = self.directory / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            rights.make_directory(made)
        except FileNotFoundError:
            rights.make_directories(self.directory)
            rights.make_directory(made)
        try:
            yield made
        finally:
            _remove(made)

    def sweep(self) -> None:
        """Remove what processes that are no more have left."""
        with contextlib.suppress(FileNotFoundError):
            for left in self.directory.iterdir():
                if not Path("/proc", left.name.partition("-")[0]).exists():
                    shutil.rmtree(left, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Most often there are but a few files in it."""
    try:
        for name in os.listdir(directory):  # noqa: PTH208  # at each command
            os.unlink(directory / name)  # noqa: PTH108
        directory.rmdir()
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
