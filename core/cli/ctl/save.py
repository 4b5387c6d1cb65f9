"""The verb save: images to an archive, in a file or on standard output."""

import errno
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from crinoid.core.api.errors import CrinoidError, FailedPrecondition, InvalidArgument, Unavailable
from crinoid.core.cli.ctl.archive_output import FORMS
from crinoid.core.cli.ctl.completion import IMAGE
from crinoid.core.cli.ctl.session import Session, in_session


@click.command()
@click.argument("images", type=IMAGE, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--output", "-o", "target", default="-", metavar="FILE", help="Where to; by default standard output.")
@click.option("--format", "form", type=click.Choice(tuple(FORMS)), default="oci", show_default=True, help="Its form.")
@click.option("--keep-index", is_flag=True, help="Keep the digest of an index that an image was pulled by.")
@in_session
async def save(session: Session, images: tuple[str, ...], target: str, form: str, keep_index: bool) -> None:
    """Save images to an archive, an OCI layout or a docker-archive; the same images give the same bytes.

    An image has the name that it is asked for by; by its id, all its tags. An image that was pulled by an index is
    saved as the manifest for this platform. With --keep-index the index stays, so that pods that name its digest find
    it after a load; programs that want all that an index lists refuse such an archive.
    """
    if keep_index and form == "docker":
        raise InvalidArgument("--keep-index: a docker-archive has no index")
    with _opened(target) as file:
        answers = session.stream_crinoid("SaveImages", images=images, keep_index=keep_index)
        async with aclosing(answers):  # type: ignore[type-var]  # it is a generator
            first = await anext(answers)
            writer = FORMS[form](file, first.images)
            incoming = _Incoming(answers)
            for blob in first.blobs:
                await writer.write(blob, incoming.take(blob.size))
            await incoming.end()
            writer.finish()


class _Incoming:
    """The blobs, one after the other, from the pieces that come."""

    def __init__(self, answers: AsyncIterator[Any]) -> None:
        self._answers = answers

    async def take(self, size: int) -> AsyncIterator[bytes]:
        """Yield the next blob; no piece has bytes of two."""
        while size > 0:
            piece = await anext(self._answers, None)
            if piece is None:
                raise Unavailable("the daemon has ended in the middle of a blob")
            size -= len(piece.content)
            yield piece.content

    async def end(self) -> None:
        """Hear of what was wrong with the last blob, if anything."""
        async for _ in self._answers:
            pass


@contextmanager
def _opened(target: str) -> Iterator[BinaryIO]:
    """Open the output; a file gets its name once it is whole, and one that fails leaves nothing."""
    if target == "-":
        if sys.stdout.isatty():
            raise FailedPrecondition("an archive is nothing for a terminal: name a file with --output, or pipe it on")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    if path.exists() and not path.is_file():  # a device or a pipe is written to as it is
        with path.open("wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _unnamed(path.parent) or temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not temporary.exists():
                _name(file.fileno(), temporary)
        temporary.rename(path)
    except OSError as error:
        raise CrinoidError(f"{error.filename or path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _unnamed(directory: Path) -> BinaryIO | None:
    """Make a file without a name, of which a kill leaves nothing; ``None`` where the file system has none."""
    try:
        return os.fdopen(os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666), "wb")
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # the second from kernels that don't know it
            return None
        raise


def _name(fd: int, path: Path) -> None:
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # only with a directory's descriptor Python calls linkat(2), which can follow the link to what is open
        os.link(str(fd), path, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)


VERBS = (save,)
