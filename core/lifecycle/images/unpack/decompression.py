"""Compressed blob in, uncompressed chunks out: gzip by isal, zstd by zstandard, or none.

What the blob is, its first bytes say; media types in the wild are sometimes wrong, and peers go by the bytes too.
"""

from collections.abc import Iterator

from crinoid.core.api.archives import Corrupt, NotSupported
from crinoid.core.lifecycle.images.unpack.blob import Blob

#: So that a chunk is still in the processor's cache when it is hashed and written, and its memory is used again: with
#: 1 MiB, a fifth of an unpacker's time went into page faults.
CHUNK_BYTES = 1 << 17
_READ_BYTES = 1 << 16
#: A zstd block expands to at most 128 KiB and takes at least 4 bytes: so this bounds what one call can return.
_ZSTD_READ_BYTES = 1 << 12
_MAGIC_BYTES = 6
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_OTHERS = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x04\x22\x4d\x18": "lz4"}


def decompress(blob: Blob) -> Iterator[bytes]:
    """Yield the uncompressed content of a blob, from its start, in chunks of about ``CHUNK_BYTES``.

    Several gzip members or zstd frames in a row count as one stream; zeros may follow the last. Raises Corrupt for a
    damaged or cut blob and for anything else after the end, NotSupported for other compressions.
    """
    magic = blob.first_bytes(_MAGIC_BYTES)
    if magic.startswith(_GZIP):
        return _gunzip(_Input(blob, _READ_BYTES, "gzip"))
    if _is_zstd(magic):
        return _unzstd(_Input(blob, _ZSTD_READ_BYTES, "zstd"))
    return iter(lambda: blob.read(CHUNK_BYTES), b"")


def load_codec(blob: Blob) -> None:
    """Import what the blob needs; after the chroot there is nothing left to import.

    Raises NotSupported for a compression that images don't use.
    """
    magic = blob.first_bytes(_MAGIC_BYTES)
    if _is_zstd(magic):
        import zstandard  # noqa: F401  # 12 ms, and rare
    elif magic.startswith(_GZIP):
        from isal import igzip_lib  # noqa: F401
    for prefix, name in _OTHERS.items():
        if magic.startswith(prefix):
            raise NotSupported(f"the layer is compressed with {name}; images may use gzip, zstd or none")


def preload() -> None:
    """Import what most blobs need."""
    from isal import igzip_lib  # noqa: F401


class _Input:
    """Compressed bytes, with what a codec gave back in front."""

    def __init__(self, blob: Blob, size: int, codec: str) -> None:
        self._blob = blob
        self._size = size
        self._codec = codec
        self.held = b""

    def read(self) -> bytes:
        """Return the next bytes, at least one. Raises Corrupt at the end."""
        data, self.held = self.held or self._blob.read(self._size), b""
        if not data:
            raise Corrupt(f"the {self._codec} stream is cut off at byte {self._blob.position}")
        return data

    def at_end(self) -> bool:
        """Return whether nothing follows but zeros, with which some programs fill up a block."""
        while not self.held.strip(b"\0"):
            self.held = self._blob.read(self._size)
            if not self.held:
                return True
        return False


def _gunzip(source: _Input) -> Iterator[bytes]:
    from isal import igzip_lib

    while True:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        try:
            while not member.eof:
                data = source.read() if member.needs_input else b""
                if chunk := member.decompress(data, CHUNK_BYTES):
                    yield chunk
        except igzip_lib.IsalError as error:  # type: ignore[misc]  # the stub has it as a value, not a class
            raise Corrupt(f"the gzip stream is damaged: {error}") from error
        source.held = member.unused_data
        if source.at_end():
            return
        if not _GZIP.startswith(source.held[:2]):
            raise Corrupt("something that is not gzip follows the end of the gzip stream")


def _unzstd(source: _Input) -> Iterator[bytes]:
    import zstandard

    codec = zstandard.ZstdDecompressor()
    while True:
        frame = codec.decompressobj()
        try:
            while not frame.eof:
                if chunk := frame.decompress(source.read()):
                    yield chunk
        except zstandard.ZstdError as error:
            if "too much memory" in str(error):
                raise NotSupported(
                    "its zstd window is larger than 128 MiB: compress it without --long=28 or more"
                ) from error
            raise Corrupt(f"the zstd stream is damaged: {error}") from error
        source.held = frame.unused_data
        if source.at_end():
            return


def _is_zstd(magic: bytes) -> bool:
    skippable = len(magic) >= 4 and 0x50 <= magic[0] <= 0x5F and magic[1:4] == b"\x2a\x4d\x18"
    return magic.startswith(_ZSTD) or skippable
