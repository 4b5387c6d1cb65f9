"""The content store: every blob of every image by its digest, in an OCI image layout (image-spec, image-layout.md).

The pull streams blobs into it, unpacking and ``ImageStatus`` read from it. A blob is there whole and verified, or not
at all; one that was cut off is resumed from ``ingest/`` by the next try, also after a crash.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from crinoid.core.api.errors import CorruptContent, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from crinoid.core.api.linux import libc, rights
from crinoid.core.api.linux.files import (
    remove_unfinished_writes,
    sync,
    sync_directory,
    unfinished_write,
    write_atomically,
)
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.image import Descriptor

OpenStream = Callable[[int], Awaitable[AsyncIterator[bytes]]]
"""Opens the blob's stream from an offset on."""

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_REF_NAME = "org.opencontainers.image.ref.name"
_HEX_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_PIECE_BYTES = 1 << 20
_FLUSH_BYTES = 8 << 20
_FICLONE = 0x40049409
_COPY_BYTES = 1 << 30
_SYNC_FILE_RANGE_WRITE = 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ContentStore:
    """Blobs below one directory, for one process at a time. ``ingest`` is for the loop, the rest blocks briefly."""

    def __init__(self, root: Path) -> None:
        """Open the store, making what is missing of it."""
        self.root = root
        self._ingests = root / "ingest"
        self._turns: dict[str, _Turn] = {}
        rights.make_directories(self._ingests)
        rights.make_directories(root / "blobs")
        for directory in (root, *(root / "blobs").iterdir()):
            remove_unfinished_writes(directory)
        rights.spread(root)
        if not (root / "oci-layout").exists():
            write_atomically(root / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        if not (root / "index.json").exists():
            self.write_index(())

    def path(self, digest: str) -> Path:
        """Return where the blob is, or would be. Raises InvalidArgument for what is no digest that we can verify."""
        algorithm, hexadecimal = _split(digest)
        return self.root / "blobs" / algorithm / hexadecimal

    def has(self, blob: Descriptor | str) -> bool:
        """Return whether the blob is there; of a descriptor, with the size that it says."""
        try:
            size = self.path(blob if isinstance(blob, str) else blob.digest).stat().st_size
        except FileNotFoundError:
            return False
        return isinstance(blob, str) or size == blob.size

    def examine(self, digest: str) -> str:
        """Read a blob as a whole; return what is wrong with it, or nothing. What can't be read is damaged, too."""
        algorithm = _split(digest)[0]
        try:
            with self.path(digest).open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
        except FileNotFoundError:
            return "is not stored"
        except OSError as error:
            return f"can't be read: {error.strerror}"
        return "" if digest == f"{algorithm}:{found}" else f"is damaged: it has digest {algorithm}:{found}"

    def remove_damaged(self, digests: Iterable[str]) -> Mapping[str, str]:
        """Read blobs as a whole and remove those that are not what they should be; return what was wrong with each.

        Blobs that are not there are not returned. Whoever reads one meanwhile reads on.
        """
        found: dict[str, str] = {}
        for digest in dict.fromkeys(digests):
            if self.has(digest) and (wrong := self.examine(digest)):
                found[digest] = wrong
                self.path(digest).unlink(missing_ok=True)
        return found

    def size(self, digest: str) -> int:
        """Return how many bytes of a blob are there, whole or not."""
        found = self._find(digest)
        return found.st_size if found else 0

    def touched_s(self, digest: str) -> float:
        """Return when a blob, whole or not, was last written to; now for one that is not there."""
        found = self._find(digest)
        return found.st_mtime if found else time.time()

    def _find(self, digest: str) -> os.stat_result | None:
        for path in (self.path(digest), self._partial(digest)):
            with contextlib.suppress(FileNotFoundError):
                return path.stat()
        return None

    async def ingest(self, blob: Descriptor, open_stream: OpenStream, progress: Callable[[int], None]) -> Path:
        """Store a blob from a stream, unless it is there; return its path.

        ``open_stream`` is asked for what a partial ingest lacks, and not at all where nothing is lacking. ``progress``
        is told the bytes stored so far, of ``blob.size``. A second ingest of the same digest waits for the first one.
        Raises CorruptContent for bytes that are not the blob's, and ResourceExhausted when the disk is full: what came
        is dropped. Raises Unavailable when the stream ends early, and what the stream raises: what came is kept for the
        next try.
        """
        path = self.path(blob.digest)
        turn = self._turns.setdefault(blob.digest, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:  # two writers of one file in ``ingest/`` would tear it
                if not self.has(blob):
                    with _full_disk_named(self._partial(blob.digest)):
                        wrong = await self._try_ingest(blob, open_stream, progress)
                        if wrong is not None:
                            # A crash may have torn what an earlier try left: no fault of the source's, so begin anew.
                            await self._try_ingest(blob, open_stream, progress)
                progress(blob.size)
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[blob.digest]
        return path

    def put(self, content: bytes, media_type: str = "application/octet-stream") -> Descriptor:
        """Store a small document under its sha256. Raises ResourceExhausted."""
        blob = Descriptor(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
        path = self.path(blob.digest)
        if not self.has(blob):
            with _full_disk_named(path):
                rights.make_directories(path.parent)
                write_atomically(path, content)
        return blob

    def place(self, blob: Descriptor, source: int, link: bool) -> str:
        """Store a blob from a file that is open for reading, unless it is there; return how.

        ``cloned`` shares the file's blocks until one side writes (reflink); ``linked``, where ``link`` allows it, is
        the same file under another name; ``copied`` is neither; ``there`` means that nothing was done. Whatever it is,
        it is verified before it counts. Raises CorruptContent and ResourceExhausted. Blocks as long as the disk takes.
        """
        if self.has(blob):
            return "there"
        path = self.path(blob.digest)
        rights.make_directories(path.parent)
        with _full_disk_named(path), unfinished_write(path) as temporary:
            how = _duplicate(source, temporary, link)
            with open(temporary, "rb") as file:
                if (size := os.fstat(file.fileno()).st_size) != blob.size:
                    raise CorruptContent(f"blob {blob.digest} has {size} bytes, not {blob.size}")
                algorithm = blob.digest.partition(":")[0]
                _verify(blob.digest, hashlib.file_digest(file, algorithm).hexdigest(), "what was to be adopted")
                sync(file.fileno(), path)
            temporary.rename(path)
            sync_directory(path.parent)
        return how

    def read(self, digest: str, max_bytes: int) -> bytes:
        """Return a blob, verified. Raises NotFound, CorruptContent, and ResourceExhausted if it is too long."""
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                content = file.read(max_bytes + 1)
        except FileNotFoundError as error:
            raise NotFound(f"blob {digest} is not in {self.root}") from error
        if len(content) > max_bytes:
            raise ResourceExhausted(f"blob {digest} is longer than the {max_bytes} bytes allowed here")
        _verify(digest, hashlib.new(digest.partition(":")[0], content).hexdigest(), str(path))
        return content

    def remove(self, digest: str) -> None:
        """Remove a blob, and what a partial ingest of it left. Idempotent."""
        self.path(digest).unlink(missing_ok=True)
        self.remove_partial(digest)

    def settle(self, digests: Iterable[str]) -> None:
        """Note that blobs are an image's: once that is gone they are garbage, and nothing that a failed pull has left.

        Their time of change tells it, so that a start after a kill in the middle of the removal knows it, too. It is
        left alone where it is another's, too, by a hard link: that kills nobody, and the blob goes a day later.
        """
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):  # its layer was there, so it was never fetched
                if self.path(digest).stat().st_nlink == 1:
                    os.utime(self.path(digest), (0, 0))

    def list(self) -> tuple[str, ...]:
        """Return the digests of all blobs, sorted."""
        found = (f"{path.parent.name}:{path.name}" for path in self.root.glob("blobs/*/*"))
        return tuple(sorted(digest for digest in found if _is_digest(digest)))

    def list_partial(self) -> tuple[str, ...]:
        """Return the digests of ingests that were cut off or are under way, sorted."""
        return tuple(sorted(path.name for path in self._ingests.iterdir() if _is_digest(path.name)))

    def open_partial(self, digest: str) -> int:
        """Open what an ingest that is under way has stored so far, for reading; it is not verified. Raises OSError."""
        return os.open(self._partial(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def remove_partial(self, digest: str) -> None:
        """Drop what an ingest that was cut off left; one that is under way is left alone. Idempotent."""
        if digest not in self._turns:
            self._partial(digest).unlink(missing_ok=True)

    def remove_stale(self, older_than_s: float) -> None:
        """Drop every partial ingest that nobody has added to for so long."""
        before = time.time() - older_than_s
        for digest in self.list_partial():
            with contextlib.suppress(FileNotFoundError):
                if self._partial(digest).stat().st_mtime < before:
                    self.remove_partial(digest)

    def write_index(self, images: Iterable[tuple[str, Descriptor]]) -> None:
        """Write ``index.json``: names and their manifests or indexes, for other programs; we never read it."""
        manifests = [
            {
                "mediaType": target.media_type,
                "digest": target.digest,
                "size": target.size,
                "annotations": {_REF_NAME: name},
            }
            for name, target in images
        ]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        write_atomically(self.root / "index.json", json.dumps(index).encode())

    def _partial(self, digest: str) -> Path:
        _split(digest)
        return self._ingests / digest

    async def _try_ingest(
        self, blob: Descriptor, open_stream: OpenStream, progress: Callable[[int], None]
    ) -> CorruptContent | None:
        """Raise what is wrong, or return it where only the resumed part may be at fault."""
        partial = await call_in_thread(lambda: _Partial(self._partial(blob.digest), blob))
        resumed_at = partial.stored
        progress(resumed_at)
        try:
            if partial.stored < blob.size:
                await _copy(partial, blob, open_stream, progress)
            await call_in_thread(lambda: partial.commit(self.path(blob.digest)))
        except CorruptContent as error:
            partial.drop()
            if resumed_at:
                return error
            raise
        except OSError as error:
            if error.errno in _FULL:
                partial.drop()  # a full disk needs the space more than the next try does
            raise
        finally:
            partial.close()
        return None


async def _copy(
    partial: "_Partial", blob: Descriptor, open_stream: OpenStream, progress: Callable[[int], None]
) -> None:
    """Store what the stream brings, in pieces large enough for a thread to be worth it."""
    stream = await open_stream(partial.stored)
    gathered: list[bytes] = []
    size = 0
    try:
        async for piece in stream:
            gathered.append(piece)
            size += len(piece)
            if size >= _PIECE_BYTES:
                await _store(partial, gathered, progress)
                size = 0
    finally:
        try:
            await _store(partial, gathered, progress)  # also what came before the stream broke
        finally:  # an iterator need have none; a generator's connection is given back by it
            if (close := getattr(stream, "aclose", None)) is not None:
                await close()
    if partial.stored < blob.size:
        raise Unavailable(f"blob {blob.digest}: the stream ended after {partial.stored} of {blob.size} bytes")


async def _store(partial: "_Partial", gathered: list[bytes], progress: Callable[[int], None]) -> None:
    pieces = gathered.copy()
    gathered.clear()
    if pieces:
        await call_in_thread(lambda: partial.append(pieces))
        progress(partial.stored)


class _Turn:
    """The lock of one digest, kept as long as somebody wants it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


class _Partial:
    """The file of one ingest, with the running hash of what is in it. All methods block."""

    def __init__(self, path: Path, blob: Descriptor) -> None:
        self._path = path
        self._blob = blob
        self._hash = hashlib.new(_split(blob.digest)[0])
        self._file = open(path, "ab+", buffering=0, opener=_open_private)  # noqa: SIM115  # closed by close()
        # Take up what an earlier try left, hashing it anew: a hash's state can't be kept on disk. More than the blob
        # can be none of it.
        self.stored = os.fstat(self._file.fileno()).st_size
        if self.stored > blob.size:
            self._file.truncate(0)
            self.stored = 0
        self._file.seek(0)
        while piece := self._file.read(_PIECE_BYTES):
            self._hash.update(piece)
        self._flushed = self.stored

    def append(self, pieces: Sequence[bytes]) -> None:
        """Write and hash; never beyond the blob's size."""
        if self.stored + sum(map(len, pieces)) > self._blob.size:
            raise CorruptContent(
                f"blob {self._blob.digest}: the source sends more than the {self._blob.size} bytes that it promised"
            )
        for piece in pieces:
            view = memoryview(piece)
            while view:
                written = self._file.write(view)
                self._hash.update(view[:written])
                self.stored += written
                view = view[written:]
        if self.stored - self._flushed >= _FLUSH_BYTES:
            # Have the disk begin with what is there, so that ``commit`` has little to wait for. It waits for nothing
            # itself, and what it does not tell ``commit``'s sync does: that one hears of every error.
            with contextlib.suppress(OSError):
                libc.call("sync_file_range", self._file.fileno(), self._flushed, 0, _SYNC_FILE_RANGE_WRITE)
            self._flushed = self.stored

    def commit(self, target: Path) -> None:
        """Verify, sync and rename: from here on the blob is there, also after a power cut."""
        _verify(self._blob.digest, self._hash.hexdigest(), "what the source sent")
        # The file before its name, then the name: after a power cut a rename may be on disk whose file's data are not,
        # and the blob would be there with the right size and zeros in it.
        sync(self._file.fileno(), self._path)
        rights.make_directories(target.parent)
        self._path.rename(target)
        sync_directory(target.parent)

    def drop(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def _duplicate(source: int, target: Path, link: bool) -> str:
    """Make a file of another's content, by the cheapest way that the file system has."""
    with open(target, "xb", opener=_open_private) as file:
        try:
            fcntl.ioctl(file.fileno(), _FICLONE, source)
        except OSError as error:  # another file system, or one that can't
            if error.errno in _FULL:
                raise
        else:
            return "cloned"
        if not link:
            offset = 0
            while sent := os.sendfile(file.fileno(), source, offset, _COPY_BYTES):
                offset += sent
            return "copied"
    target.unlink()
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # only with a directory's descriptor Python calls linkat(2), which can follow the link to what is open
        os.link(str(source), target, src_dir_fd=descriptors, follow_symlinks=True)
    except OSError:  # another file system, too many links, or an immutable file
        return _duplicate(source, target, link=False)
    finally:
        os.close(descriptors)
    return "linked"


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, rights.FILE)


@contextlib.contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhausted(
                f"no space to store {path}: {error.strerror}; free some or remove images; "
                "docs/troubleshooting.md#disk-full"
            ) from error
        raise


def _verify(digest: str, hexadecimal: str, what: str) -> None:
    algorithm, expected = _split(digest)
    if hexadecimal != expected:
        raise CorruptContent(f"blob {digest}: {what} has digest {algorithm}:{hexadecimal}")


def _split(digest: str) -> tuple[str, str]:
    if not _is_digest(digest):
        raise InvalidArgument(f"{digest!r} is not a digest of {', '.join(_HEX_DIGITS)}")
    algorithm, _, hexadecimal = digest.partition(":")
    return algorithm, hexadecimal


def _is_digest(text: str) -> bool:
    algorithm, _, hexadecimal = text.partition(":")
    return re.fullmatch(r"[0-9a-f]+", hexadecimal) is not None and _HEX_DIGITS.get(algorithm) == len(hexadecimal)
