"""The daemon's side of unpacking: one call per layer, a confined child for each.

Called by the pull, between the content store, which has the blob, and the snapshotter, which gave the target.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crinoid.core.api.errors import (
    CorruptContent,
    CrinoidError,
    DeadlineExceeded,
    ResourceExhausted,
    Unsupported,
)
from crinoid.core.api.values.snapshot import WhiteoutForm
from crinoid.core.lifecycle.images.unpack.answers import HIDING, IMPLIED, RENEWED, Failed, Unpacked, decode
from crinoid.core.lifecycle.images.unpack.launcher import Launcher

_LAYER_TYPES = (
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
)
_COMPRESSIONS = ("", ".gzip", "+gzip", "+zstd", ".zstd")
_ACCEPTED = frozenset(kind + compression for kind in _LAYER_TYPES for compression in _COMPRESSIONS)
_EXHAUSTED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EMLINK}
)
#: What the kernel says of names, links and attributes that no file system takes: not the host's fault.
_ENTRYS_FAULT = frozenset(
    {errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.ERANGE, errno.E2BIG, errno.ENOTDIR, errno.EISDIR}
)


@dataclass(frozen=True, slots=True)
class Growing:
    """A blob that is still being written, by a process that may yet find that it is not what it should be.

    ``fd`` is its file, open for reading; it is whole at ``size`` bytes. ``inflight`` is an eventfd to which is added
    what there is by and by. ``whole`` is done when nothing more comes: True when the blob was verified.
    """

    fd: int
    size: int
    inflight: int
    whole: "asyncio.Future[bool]"


@dataclass(frozen=True, slots=True)
class UnpackRequest:
    """One layer to unpack.

    ``blob`` is its file in the content store, ``target`` an existing directory: empty for ``WhiteoutForm.OVERLAY``, a
    tree of all lower layers for ``DELETE``. ``expected_diff_id`` is ``sha256:…`` of the uncompressed bytes, from the
    image's configuration; empty where nobody knows. ``max_bytes`` bounds the uncompressed stream, ``max_entries`` the
    members of the archive, ``keep_free_percent`` what must stay free of the target's file system. ``sync``: put the
    target's file system on disk before the call returns. ``timeout_s`` bounds it all.

    ``form``: what the blob is, or to be: ``tar`` has a layer's archive uncompressed as the file ``ARCHIVE`` of the
    target. ``parts``: an archive out of which only the files named in ``parts`` are taken, each
    with its most bytes (``None``: no limit of its own), a name with a slash at its end for all plain files in that
    directory; it must have a proper end. ``deleted``: a JSON list of paths to remove, of at most ``max_bytes``.
    ``name`` is for messages. ``blob_fd``: ``blob`` is open already, and stays the caller's.

    ``writer``: the ``module:class`` that keeps the layer's entries in the target in a form of its own; ``file``: for
    it, the blob is no archive, but the content of the layer's only file, of this name.

    ``growing``: ``blob`` is not there yet, and is unpacked while it comes; ``timeout_s`` counts from when it is whole.
    Whether it is what it should be then, the caller must see to before anybody uses the layer.
    """

    blob: Path
    media_type: str
    target: Path
    whiteouts: WhiteoutForm
    expected_diff_id: str
    max_bytes: int | None = None
    max_entries: int | None = None
    keep_free_percent: float = 0.0
    sync: bool = True
    timeout_s: float = 1800.0
    growing: Growing | None = None
    form: Literal["layer", "tar", "parts", "deleted"] = "layer"
    writer: str = ""
    file: str = ""
    parts: tuple[tuple[str, int | None], ...] = ()
    name: str = ""
    blob_fd: int | None = None


@dataclass(frozen=True, slots=True)
class UnpackResult:
    """What was unpacked. ``used_bytes`` counts files and directories in blocks of 4 KiB; ``inodes`` counts what was
    made.

    ``implied``: directories, relative to the target, that entries lie in and that have no entry of their own; "." is
    the target. They are root's, with mode 0755, until ``core.lifecycle.images.implied`` gives them what lower layers
    say. ``renewed``: those of them that whiteouts cut off from lower layers. ``hiding``: directories that may hold
    whiteouts.
    """

    diff_id: str
    used_bytes: int
    inodes: int
    implied: tuple[str, ...]
    renewed: tuple[str, ...] = ()
    hiding: tuple[str, ...] = ()


async def unpack_alone(request: UnpackRequest) -> UnpackResult:
    """Unpack one archive and no others, as ``unpack_layer`` does."""
    launcher = Launcher()
    try:
        return await unpack_layer(request, launcher)
    finally:
        await launcher.close()


async def unpack_layer(request: UnpackRequest, launcher: Launcher) -> UnpackResult:
    """Unpack a layer's blob into its target directory, in a child process that can reach nothing else.

    The target is the caller's to remove when this raises or is cancelled: it may be half full. Cancelling kills the
    child. Raises CorruptContent for a damaged blob, another diffID or an entry that no layer may have; Unsupported for
    a media type or entry that is not done here; ResourceExhausted for a passed limit or a full disk; DeadlineExceeded;
    CrinoidError for other faults of the host. Source: OCI image-spec, layer.md.
    """
    if not request.file and request.media_type not in _ACCEPTED:
        raise Unsupported(
            f"{_describe(request)}: media type {request.media_type!r} is no layer that can be unpacked; "
            "OCI and Docker layers are tar, plain or compressed with gzip or zstd"
        )
    growing = request.growing
    form = request.whiteouts.value if request.form == "layer" else request.form
    limits = [_number(request.max_bytes), _number(request.max_entries), str(request.keep_free_percent)]
    arguments = [  # as ``child.main`` takes them
        f"writer:{request.writer}" if request.writer else form,
        request.expected_diff_id,
        *limits,
        "sync" if request.sync else "",
        request.file or "\n".join(f"{name}\t{_number(most)}" for name, most in request.parts),
        str(growing.size) if growing else "",
    ]
    # The child gets descriptors, no paths: it is to reach the blob and the target, and nothing around them.
    blob_fd = growing.fd if growing else request.blob_fd
    with (
        _Opened(request.blob, 0) if blob_fd is None else nullcontext(blob_fd) as blob,
        _Opened(request.target, os.O_DIRECTORY) as target,
    ):
        try:
            async with _deadline(request):
                ended = await launcher.run(arguments, blob, target, growing.inflight if growing else None)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{_describe(request)}: unpacking took longer than {request.timeout_s:g} s and was stopped"
            ) from error
    answer = decode(ended.answer)
    if isinstance(answer, Unpacked):
        implied, renewed, hiding = (
            tuple(os.fsdecode(path) for kind, path in answer.directories if kind == wanted)
            for wanted in (IMPLIED, RENEWED, HIDING)
        )
        return UnpackResult(answer.diff_id, answer.used_bytes, answer.inodes, implied, renewed, hiding)
    if isinstance(answer, Failed):
        raise _as_error(request, answer)
    # It was killed, or crashed: what it wrote to its stderr is all there is to say.
    words = ended.words.decode("utf-8", "replace").strip()[-2000:] or "it said nothing"
    raise CrinoidError(f"{_describe(request)}: the unpacker ended with exit code {ended.exit_code}: {words}")


@asynccontextmanager
async def _deadline(request: UnpackRequest) -> AsyncIterator[None]:
    """Let a block take as long as the request says, from when the blob is whole. Raises TimeoutError."""
    if request.growing is None:
        async with asyncio.timeout(request.timeout_s):
            yield
        return
    async with asyncio.timeout(None) as limit:

        def begin(_: "asyncio.Future[bool]") -> None:
            with contextlib.suppress(RuntimeError):  # the block has ended
                limit.reschedule(asyncio.get_running_loop().time() + request.timeout_s)

        request.growing.whole.add_done_callback(begin)
        try:
            yield
        finally:
            request.growing.whole.remove_done_callback(begin)


class _Opened:
    """A descriptor that is closed at the end of a ``with``."""

    def __init__(self, path: Path, flags: int) -> None:
        try:
            self._fd = os.open(path, flags | os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CrinoidError(f"cannot open {path} to unpack a layer: {error.strerror}") from error

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _number(limit: int | None) -> str:
    return "" if limit is None else str(limit)


def _as_error(request: UnpackRequest, failure: Failed) -> CrinoidError:
    # A disk that is full, and a name that no file system takes, both come as an errno of the child's. The first is the
    # node's trouble and may pass; the second is the image's, which another pull won't mend.
    where = f", entry {os.fsdecode(failure.entry[:300])!a}" if failure.entry else ""
    message = f"{_describe(request)}{where}: {failure.message}"
    if failure.kind == "corrupt":
        return CorruptContent(message)
    if failure.kind == "unsupported":
        return Unsupported(message)
    if failure.errno == errno.ENOSPC:
        message += f"{_lacking(request.target)}; free some or remove images; docs/troubleshooting.md#disk-full"
    if failure.kind == "limit" or failure.errno in _EXHAUSTED:
        return ResourceExhausted(message)
    kind = CorruptContent if failure.entry and failure.errno in _ENTRYS_FAULT else CrinoidError
    return kind(f"{message} (while writing to {request.target})")


def _lacking(target: Path) -> str:
    """Say what the kernel's "no space left" is about; what was written is still there."""
    with contextlib.suppress(OSError):
        found = os.statvfs(target)
        if found.f_files and not found.f_favail:
            return f": the file system of {target} has no inodes left, whatever space it has"
    return f" on the file system of {target}"


def _describe(request: UnpackRequest) -> str:
    if request.name:
        return request.name
    return f"unpack layer {request.blob.name} (diffID {request.expected_diff_id})"
