"""Folders for the time of one command: logs, process descriptions. What a killed daemon leaves is swept."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Scratch:
    """Makes short-lived folders in ``directory``, named after this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder, removed at the end."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self.directory))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what processes that are no more have left."""
        with contextlib.suppress(FileNotFoundError):
            for left in self.directory.iterdir():
                if not Path("/proc", left.name.partition("-")[0]).exists():
                    shutil.rmtree(left, ignore_errors=True)
