"""What the child does: shuts itself in the target, unpacks, verifies, syncs, answers, ends. ``forking`` forks it.

Descriptors: 0 the blob, 1 a file in memory for the answer, 2 another for the last words of a crash, 3 the target
directory; 4, of a blob that is still being written, the eventfd that counts its bytes. ``layer`` gives the rest as
arguments, in the order of ``main``.
"""

import os
import sys

from crinoid.core.api.archives import FILE, ArchiveFault, Corrupt, Entry, LayerWriter, TooLarge, split
from crinoid.core.lifecycle.images.unpack import syscalls
from crinoid.core.lifecycle.images.unpack.answers import HIDING, IMPLIED, RENEWED, Failed, Unpacked
from crinoid.core.lifecycle.images.unpack.blob import Blob
from crinoid.core.lifecycle.images.unpack.confinement import confine, die_with_parent
from crinoid.core.lifecycle.images.unpack.decompression import CHUNK_BYTES, load_codec
from crinoid.core.lifecycle.images.unpack.deletion import Deletion, read_list
from crinoid.core.lifecycle.images.unpack.extraction import Extraction
from crinoid.core.lifecycle.images.unpack.flushing import Flusher, Reserve
from crinoid.core.lifecycle.images.unpack.parts import Parts
from crinoid.core.lifecycle.images.unpack.stream import ByteReader, LayerStream
from crinoid.core.lifecycle.images.unpack.tree import Tree

BLOB_FD, ANSWER_FD, TARGET_FD, ARRIVALS_FD = 0, 1, 3, 4
FOREIGN_FDS = 5
#: What the blob is, besides a layer (``overlay`` and ``delete``, the forms of its whiteouts).
PARTS, DELETED = "parts", "deleted"
#: A layer that a driver's own writer keeps, ``writer:MODULE:CLASS``.
WRITER = "writer:"
#: A layer whose archive is wanted, uncompressed, as the file ``ARCHIVE`` of the target.
TAR, ARCHIVE = "tar", "layer.tar"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SHOWN_FILE = 0o644
_LARGEST_ANSWER = 8 << 20
_DEEPEST = 6000  # directories in a path of PATH_MAX, and some


def main(arguments: list[str]) -> None:
    """Unpack and leave the process.

    ``arguments``: parent's pid, form, diffID (empty: unknown), max bytes, max entries, the percentage to keep free,
    sync, parts (a name, a tab and its max bytes on each line; for a writer the name of the file that the blob is), and
    the size of a blob that grows.
    """
    parent, form, diff_id, max_bytes, max_entries, keep_free, sync, parts, size = arguments
    die_with_parent(int(parent))
    sys.setrecursionlimit(_DEEPEST)
    if not size:
        os.close(ARRIVALS_FD)
    blob = Blob(BLOB_FD, _limit(size), ARRIVALS_FD)
    job = _Job(blob, form, (_limit(max_bytes), _limit(max_entries), float(keep_free)), sync == "sync")
    answer = job.run(diff_id, parts).encode()
    while answer:
        answer = answer[os.write(ANSWER_FD, answer) :]
    os._exit(0)  # threads may still wait for a reader


def _limit(text: str) -> int | None:
    return int(text) if text else None


class _Job:
    def __init__(self, blob: Blob, form: str, limits: tuple[int | None, int | None, float], sync: bool) -> None:
        self._max_bytes, self._max_entries, keep_free = limits
        self._form = form
        self._sync = sync
        self._blob = blob
        self._stream = LayerStream(blob, self._max_bytes)
        self._flusher = Flusher(TARGET_FD)
        chunks = Reserve(TARGET_FD, keep_free).watch(self._flusher.watch(self._stream.chunks()))
        self._reader = ByteReader(chunks)
        self._entry = b""

    def run(self, diff_id: str, parts: str) -> Unpacked | Failed:
        try:
            return self._unpack(diff_id, parts)
        except ArchiveFault as fault:
            return Failed(fault.kind, 0, self._entry, str(fault))
        except OSError as error:
            words = "; ".join([error.strerror or str(error), *getattr(error, "__notes__", [])])
            return Failed("io", error.errno or 0, self._entry, words)
        except MemoryError:
            return Failed("limit", 0, self._entry, "it needs more memory than the unpacker may have")
        except RecursionError:
            return Failed("limit", 0, self._entry, "its directories are nested too deeply")

    def _unpack(self, diff_id: str, parts: str) -> Unpacked:
        writer = load_writer(self._form) if self._form.startswith(WRITER) else None
        if self._form == DELETED:
            import json  # noqa: F401  # after the chroot there is nothing left to import
        elif writer is None or not parts:
            load_codec(self._blob)
        confine(TARGET_FD, FOREIGN_FDS)  # before any thread starts: capabilities are a thread's own
        if writer is not None and parts:
            return self._write_file(writer, os.fsencode(parts))
        if self._form == DELETED:
            self._do(Deletion(TARGET_FD, read_list(self._blob, self._max_bytes or 0)))
            return Unpacked("", 0, 0, ())
        tree = writer(TARGET_FD, self._reader) if writer else Tree(TARGET_FD, self._form == "overlay", self._reader)
        self._stream.start()
        self._flusher.start()
        if self._form == PARTS:
            lines = (line.partition("\t") for line in parts.splitlines())
            wanted = {name.encode(): _limit(most) for name, _, most in lines}
            self._do(Parts(self._reader, TARGET_FD, wanted, self._max_entries))
        elif self._form == TAR:
            self._reader.write_rest(os.open(ARCHIVE, _NEW_FILE, 0o600, dir_fd=TARGET_FD))
        else:
            self._do(Extraction(self._reader, tree, self._max_entries, must_end=not diff_id))
        # The digest is known only now, when all of it is unpacked: the target is no layer before the daemon commits it.
        found = self._stream.diff_id()
        if diff_id and found != diff_id:
            raise Corrupt(f"its diffID is {found}, and the image's configuration says {diff_id}")
        self._flusher.finish()  # it raises what writing back has met: the kernel would not tell it again
        if self._sync:
            syscalls.sync_file_system(TARGET_FD)
        if not isinstance(tree, Tree):  # what lower layers decide of it, its driver settles
            return Unpacked(found, tree.used_bytes, tree.inodes, ())
        kinds = ((IMPLIED, tree.implied), (RENEWED, tree.renewed), (HIDING, tree.hiding))
        directories = tuple((kind, path) for kind, paths in kinds for path in paths)
        if sum(len(path) + 2 for _, path in directories) > _LARGEST_ANSWER:
            raise TooLarge("it has too many directories that have whiteouts, or no entry of their own")
        return Unpacked(found, tree.used_bytes, tree.inodes, directories)

    def _write_file(self, writer_class: type[LayerWriter], name: bytes) -> Unpacked:
        """Have a driver's writer keep a layer of one file, the blob as it is: whose digest was verified."""
        reader = ByteReader(self._flusher.watch(iter(lambda: self._blob.read(CHUNK_BYTES), b"")))
        writer, self._entry = writer_class(TARGET_FD, reader), name
        self._flusher.start()
        entry = Entry(b"", FILE)
        entry.name, entry.mode, entry.size = name, _SHOWN_FILE, os.fstat(BLOB_FD).st_size
        writer.add_file(*split(name), entry)
        writer.finish()
        self._flusher.finish()
        if self._sync:
            syscalls.sync_file_system(TARGET_FD)
        return Unpacked("", writer.used_bytes, writer.inodes, ())

    def _do(self, work: Extraction | Parts | Deletion) -> None:
        try:
            work.run()
        finally:
            self._entry = work.current


def load_writer(form: str) -> type[LayerWriter]:
    """Import a driver's writer; the process that forks children does so before, once for all of them."""
    module, _, name = form.removeprefix(WRITER).partition(":")
    writer: type[LayerWriter] = getattr(__import__(module, fromlist=[name]), name)
    return writer
