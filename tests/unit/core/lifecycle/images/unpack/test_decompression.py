"""Blobs in, uncompressed bytes out: what follows, what is missing, what is damaged."""

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from crinoid.core.api.archives import Corrupt, NotSupported, TooLarge
from crinoid.core.lifecycle.images.unpack.blob import Blob
from crinoid.core.lifecycle.images.unpack.decompression import CHUNK_BYTES, decompress, load_codec
from crinoid.core.lifecycle.images.unpack.stream import LayerStream

CONTENT = b"".join(b"line %d of the layer\n" % number for number in range(20_000))
SKIPPABLE = b"\x50\x2a\x4d\x18\x03\0\0\0abc"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[bytes], bytes]:
    def run(blob: bytes) -> bytes:
        path = tmp_path / "blob"
        path.write_bytes(blob)
        fd = os.open(path, os.O_RDONLY)
        try:
            return b"".join(decompress(Blob(fd)))
        finally:
            os.close(fd)

    return run


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_each_compression_gives_the_content(unpacked, pack) -> None:
    assert unpacked(pack(CONTENT)) == CONTENT


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_streams_in_a_row_are_one(unpacked, pack) -> None:
    assert unpacked(pack(CONTENT) + pack(b"") + pack(b"end")) == CONTENT + b"end"


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_zeros_may_follow(unpacked, pack) -> None:
    assert unpacked(pack(CONTENT) + bytes(300_000)) == CONTENT


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("garbage", [b"g", b"garbage that is no stream"])
def test_garbage_after_the_end_is_refused(unpacked, pack, garbage: bytes) -> None:
    with pytest.raises(Corrupt):
        unpacked(pack(CONTENT) + garbage)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("missing", [1, 4, 9, 1000])
def test_cut_stream_is_told_as_cut(unpacked, pack, missing: int) -> None:
    with pytest.raises(Corrupt, match="cut off at byte"):
        unpacked(pack(CONTENT)[:-missing])


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (zstd, "zstd")])
def test_damaged_stream_is_told_as_damaged(unpacked, pack, name: str) -> None:
    blob = bytearray(pack(CONTENT))
    blob[-5] ^= 0xFF  # in the checksum of both
    blob[-1] ^= 0xFF
    with pytest.raises(Corrupt, match=f"{name} stream is damaged"):
        unpacked(bytes(blob))


def test_zstd_may_begin_with_a_skippable_frame(unpacked) -> None:
    assert unpacked(SKIPPABLE + zstd(CONTENT)) == CONTENT


def test_a_zstd_window_too_large_is_told_as_such(unpacked) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(NotSupported, match="window"):
        unpacked(writer.compress(b"content") + writer.flush())


def test_gzip_header_with_a_file_name(unpacked) -> None:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(CONTENT) + packer.flush()
    trailer = zlib.crc32(CONTENT).to_bytes(4, "little") + len(CONTENT).to_bytes(4, "little")
    assert unpacked(b"\x1f\x8b\x08\x08\0\0\0\0\0\x03layer.tar\0" + body + trailer) == CONTENT


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_comes_in_bounded_pieces(tmp_path: Path, pack) -> None:
    path = tmp_path / "blob"
    path.write_bytes(pack(bytes(64 << 20)))
    fd = os.open(path, os.O_RDONLY)
    try:
        sizes = [len(chunk) for chunk in decompress(Blob(fd))]
    finally:
        os.close(fd)
    assert sum(sizes) == 64 << 20
    assert pack is zstd or max(sizes) <= CHUNK_BYTES


@pytest.mark.parametrize(
    ("magic", "name"), [(b"\xfd7zXZ\0", "xz"), (b"BZh91AY", "bzip2"), (b"\x04\x22\x4d\x18", "lz4")]
)
def test_other_compressions_are_named(tmp_path: Path, magic: bytes, name: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(magic + bytes(20))
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(NotSupported, match=name):
            load_codec(Blob(fd))
    finally:
        os.close(fd)


def test_stream_stops_at_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    fd = os.open(path, os.O_RDONLY)
    try:
        stream = LayerStream(Blob(fd), max_bytes=3 << 20)
        stream.start()
        with pytest.raises(TooLarge, match="3145728 bytes"):
            list(stream.chunks())
    finally:
        os.close(fd)
