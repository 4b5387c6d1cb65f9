"""Extraction in this very process, without a chroot: what keeps within the target here does so by path alone."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crinoid.core.lifecycle.images.unpack.extraction import Extraction
from crinoid.core.lifecycle.images.unpack.stream import ByteReader
from crinoid.core.lifecycle.images.unpack.tree import Tree

Extract = Callable[..., Tree]


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def extract(target: Path) -> Extract:
    def run(archive: bytes, overlay: bool = False, max_entries: int | None = None, chunk: int = 1000) -> Tree:
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            reader = ByteReader(archive[at : at + chunk] for at in range(0, len(archive), chunk))
            tree = Tree(fd, overlay, reader)
            Extraction(reader, tree, max_entries).run()
            return tree
        finally:
            os.close(fd)

    return run
