"""Reading a blob behind its writer: never what is not there yet, and all of it in the end."""

import gzip
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from crinoid.core.lifecycle.images.unpack.blob import Blob
from crinoid.core.lifecycle.images.unpack.decompression import decompress, load_codec

CONTENT = b"".join(b"line %d of the layer\n" % number for number in range(50_000))


class Writer:
    """Writes a file bit by bit, and rubbish where the rest will be."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.counter = os.eventfd(0)
        self.there = 0

    def add(self, data: bytes) -> None:
        os.pwrite(self.fd, data + b"rubbish", self.there)
        self.there += len(data)
        os.eventfd_write(self.counter, len(data))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "blob")
    yield writer
    os.close(writer.fd)
    os.close(writer.counter)


def test_a_whole_blob_is_read_from_its_start(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"0123456789")
    with (tmp_path / "blob").open("rb") as file:
        file.seek(5)
        blob = Blob(file.fileno())
        assert blob.first_bytes(6) == b"012345"
        assert (blob.read(4), blob.read(100), blob.read(1)) == (b"0123", b"456789", b"")
        assert blob.position == 10
        assert file.tell() == 5


def test_no_more_is_read_than_was_told(writer: Writer) -> None:
    blob = Blob(writer.fd, 10, writer.counter)
    writer.add(b"0123")
    assert blob.read(100) == b"0123"
    writer.add(b"45")
    writer.add(b"6789")
    assert (blob.first_bytes(6), blob.read(3), blob.read(100), blob.read(100)) == (b"012345", b"456", b"789", b"")


@pytest.mark.parametrize("size", [0, 3])
def test_a_blob_shorter_than_its_first_bytes(writer: Writer, size: int) -> None:
    blob = Blob(writer.fd, size, writer.counter)
    if size:
        writer.add(bytes(size))
    assert blob.first_bytes(6)[:size] == bytes(size)
    assert blob.read(100) == bytes(size)
    assert blob.read(100) == b""


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_what_comes_in_drops_is_decompressed(writer: Writer, pack) -> None:
    packed = pack(CONTENT)
    blob = Blob(writer.fd, len(packed), writer.counter)
    found: list[bytes] = []

    def read() -> None:
        load_codec(blob)
        found.extend(decompress(blob))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    step = len(packed) // 50 + 1
    for at in range(0, len(packed), step):
        writer.add(packed[at : at + step])
    thread.join(60)
    assert b"".join(found) == CONTENT
