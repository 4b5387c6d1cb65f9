"""What the child does: shuts itself in the target, unpacks, verifies, syncs, answers, ends. ``forking`` forks it.

Descriptors: 0 the blob, 1 a file in memory for the answer, 2 another for the last words of a crash, 3 the target
folder; 4, of a blob that is still being written, the eventfd that counts its bytes. ``layer`` gives the rest as
arguments, in the order of ``main``.
"""

import os
import sys

from crinoid.core.lifecycle.images.unpack import kernel
from crinoid.core.lifecycle.images.unpack.answers import Failed, Unpacked
from crinoid.core.lifecycle.images.unpack.blob import Blob
from crinoid.core.lifecycle.images.unpack.confinement import confine, die_with_parent
from crinoid.core.lifecycle.images.unpack.decompression import load_codec
from crinoid.core.lifecycle.images.unpack.extraction import Extraction
from crinoid.core.lifecycle.images.unpack.faults import ArchiveFault, Corrupt, TooLarge
from crinoid.core.lifecycle.images.unpack.flushing import Flusher
from crinoid.core.lifecycle.images.unpack.stream import ByteReader, LayerStream
from crinoid.core.lifecycle.images.unpack.tree import Tree

BLOB_FD, ANSWER_FD, TARGET_FD, ARRIVALS_FD = 0, 1, 3, 4
FOREIGN_FDS = 5
_LARGEST_ANSWER = 8 << 20
_DEEPEST = 6000  # folders in a path of PATH_MAX, and some


def main(arguments: list[str]) -> None:
    """Unpack and leave the process.

    ``arguments``: parent's pid, whiteouts, diffID, max bytes, max entries, sync, and the size of a blob that grows.
    """
    parent, whiteouts, diff_id, max_bytes, max_entries, sync, size = arguments
    die_with_parent(int(parent))
    sys.setrecursionlimit(_DEEPEST)
    if not size:
        os.close(ARRIVALS_FD)
    blob = Blob(BLOB_FD, _limit(size), ARRIVALS_FD)
    job = _Job(blob, whiteouts == "overlay", diff_id, (_limit(max_bytes), _limit(max_entries)), sync == "sync")
    answer = job.run().encode()
    while answer:
        answer = answer[os.write(ANSWER_FD, answer) :]
    os._exit(0)  # threads may still wait for a reader


def _limit(text: str) -> int | None:
    return int(text) if text else None


class _Job:
    def __init__(
        self, blob: Blob, overlay: bool, diff_id: str, limits: tuple[int | None, int | None], sync: bool
    ) -> None:
        max_bytes, self._max_entries = limits
        self._expected = diff_id
        self._sync = sync
        self._blob = blob
        self._stream = LayerStream(blob, max_bytes)
        self._flusher = Flusher(TARGET_FD)
        self._reader = ByteReader(self._flusher.watch(self._stream.chunks()))
        self._overlay = overlay
        self._entry = b""

    def run(self) -> Unpacked | Failed:
        try:
            return self._unpack()
        except ArchiveFault as fault:
            return Failed(fault.kind, 0, self._entry, str(fault))
        except OSError as error:
            return Failed("io", error.errno or 0, self._entry, _say(error))
        except MemoryError:
            return Failed("limit", 0, self._entry, "it needs more memory than the unpacker may have")

    def _unpack(self) -> Unpacked:
        load_codec(self._blob)
        confine(TARGET_FD, FOREIGN_FDS)
        tree = Tree(TARGET_FD, self._overlay, self._reader)
        extraction = Extraction(self._reader, tree, self._max_entries)
        self._stream.start()
        self._flusher.start()
        try:
            extraction.run()
        finally:
            self._entry = extraction.current
        diff_id = self._stream.diff_id()
        if diff_id != self._expected:
            raise Corrupt(f"its diffID is {diff_id}, and the image's configuration says {self._expected}")
        self._flusher.finish()
        if self._sync:
            kernel.sync_file_system(TARGET_FD)
        return Unpacked(diff_id, tree.used_bytes, tree.inodes, _bounded(tree.implied))


def _bounded(implied: list[bytes]) -> tuple[bytes, ...]:
    if sum(map(len, implied)) + len(implied) > _LARGEST_ANSWER:
        raise TooLarge("it has too many folders that have no entry of their own")
    return tuple(implied)


def _say(error: OSError) -> str:
    notes = getattr(error, "__notes__", [])
    return "; ".join([error.strerror or str(error), *notes])
