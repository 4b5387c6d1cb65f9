"""The verb cp: files between this host and a container, as a tar stream that the container's own tar makes or reads.

What comes out of a container is made by whatever its ``tar`` is, so it is never trusted: every name is opened by its
parent's descriptor without following links, owners and special modes are left out, and devices are passed over.
"""

import asyncio
import contextlib
import os
import stat
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import click

from crinoid.core.api.errors import CrinoidError, DriverError, InvalidArgument, NotFound
from crinoid.core.cli.ctl.directory import find_container
from crinoid.core.cli.ctl.session import Json, Session, in_session, tell
from crinoid.core.cli.ctl.streams import dialing as dialing_options
from crinoid.core.cli.ctl.terminal import write_output
from crinoid.core.cri.streaming.client.dialing import Dialing
from crinoid.core.cri.streaming.client.remotecommand import RemoteCommand, remote_command
from crinoid.core.cri.streaming.protocols import STDERR, STDIN, STDOUT

_PIECE_BYTES = 1 << 16
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@click.command()
@click.argument("source", metavar="[CONTAINER:]SOURCE")
@click.argument("target", metavar="[CONTAINER:]TARGET")
@dialing_options
@in_session
async def cp(session: Session, source: str, target: str, dialing: Dialing) -> None:
    """Copy files and directories into a container, or out of it; the container needs a tar.

    What lies at a TARGET that is a directory is copied into it. A path of this host that has a colon begins with / or
    with a dot. Owners are not kept.
    """
    (source_name, source_path), (target_name, target_path) = split_place(source), split_place(target)
    if bool(source_name) == bool(target_name):
        raise click.UsageError("one of the two must be CONTAINER:PATH, and the other a path of this host")
    container: Json = await find_container(session, source_name or target_name)
    if source_name:
        await _copy_out(session, container["id"], PurePosixPath(source_path), Path(target_path), dialing)
    else:
        await _copy_in(session, container["id"], Path(source_path), PurePosixPath(target_path), dialing)


VERBS = (cp,)


def split_place(text: str) -> tuple[str, str]:
    """Part ``CONTAINER:PATH``; a path of this host has an empty name."""
    name, colon, path = text.partition(":")
    if not colon or not name or text.startswith(("/", ".")):
        return "", text
    if not path:
        raise InvalidArgument(f"{text!r} names no path in the container")
    return name, path


def extract(archive: IO[bytes], target: Path) -> list[str]:
    """Write an archive of one tree as ``target``, in place of the name that the tree has; return what was passed over.

    Raises InvalidArgument for a name that leads out of the tree.
    """
    passed_over = []
    with tarfile.open(fileobj=archive, mode="r|") as tar, _opened(os.open(target.parent, _DIRECTORY)) as base:
        for member in tar:
            names = _names(member.name, target.name)
            with _parent(base, names) as parent:
                if not _write(tar, member, parent, names[-1], base, target.name):
                    passed_over.append(member.name)
    return passed_over


def _names(path: str, target: str) -> tuple[str, ...]:
    names = (target, *[part for part in PurePosixPath(path).parts if part != "/"][1:])
    if ".." in names:
        raise InvalidArgument(f"the archive from the container names {path!r}, which leads out of what was asked for")
    return names


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str, base: int, target: str) -> bool:
    """Write one member; return whether there is something to write of its kind."""
    if member.isdir():
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        with _opened(os.open(name, _DIRECTORY, dir_fd=parent)) as directory:  # fails where it is a link
            os.fchmod(directory, member.mode & 0o777 | stat.S_IRWXU)
        return True
    if not (member.isreg() or member.issym() or member.islnk()):
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)  # never written through, whatever it is
    if member.issym():
        os.symlink(member.linkname, name, dir_fd=parent)
    elif member.islnk():
        first = _names(member.linkname, target)
        with _parent(base, first) as there:
            os.link(first[-1], name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
    else:
        content = tar.extractfile(member)
        assert content is not None, "it is a file"
        with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=parent), "wb") as file:
            while piece := content.read(_PIECE_BYTES):
                file.write(piece)
            os.fchmod(file.fileno(), member.mode & 0o777)
    return True


@contextlib.contextmanager
def _parent(base: int, names: tuple[str, ...]) -> Iterator[int]:
    """Open the directory of a member, which is made where the archive has left it out."""
    with contextlib.ExitStack() as stack:
        for name in names[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=base)
            base = stack.enter_context(_opened(os.open(name, _DIRECTORY, dir_fd=base)))
        yield base


@contextlib.contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _copy_out(session: Session, container_id: str, source: PurePosixPath, target: Path, dialing: Dialing) -> None:
    name = source.name
    if not name or name == "..":
        raise InvalidArgument(f"{source} has no name of its own to copy; name what is in it")
    destination = _find_destination(target, name)
    with tempfile.TemporaryFile() as archive:
        async with _command(
            session, container_id, ("tar", "-cf", "-", "-C", str(source.parent), "--", name), dialing
        ) as command:

            async def keep() -> None:
                while piece := await command.streams[STDOUT].read():
                    await asyncio.to_thread(archive.write, piece)

            await _finish(command, keep())
        archive.seek(0)
        try:
            passed_over = await asyncio.to_thread(extract, archive, destination)
        except (tarfile.TarError, OSError) as error:
            raise DriverError(f"{destination} is not whole: {error}") from error
    for path in passed_over:
        tell(f"{path} is neither file nor directory nor link, and is left out")


async def _copy_in(session: Session, container_id: str, source: Path, target: PurePosixPath, dialing: Dialing) -> None:
    found = _find_source(source)
    asked = {"container_id": container_id, "cmd": ["test", "-d", str(target)], "timeout": 0}
    is_directory = (await session.act("ExecSync", asked))["exit_code"] == 0
    parent, name = (target, found.name) if is_directory else (target.parent, target.name)
    with tempfile.TemporaryFile() as archive:
        await asyncio.to_thread(_pack, found, name, archive)
        archive.seek(0)
        async with _command(
            session, container_id, ("tar", "-xf", "-", "-C", str(parent)), dialing, stdin=True
        ) as command:

            async def send() -> None:
                with contextlib.suppress(BrokenPipeError):  # tar has ended, and says why
                    while piece := await asyncio.to_thread(archive.read, _PIECE_BYTES):
                        await command.streams[STDIN].write(piece)
                    await command.streams[STDIN].close()

            await _finish(command, send())


def _find_destination(target: Path, name: str) -> Path:
    """Return where the copy of ``name`` comes to lie: in ``target`` if that is a directory, else as it."""
    destination = (target / name if target.is_dir() else target).absolute()
    if not destination.parent.is_dir():
        raise NotFound(f"there is no directory {destination.parent} to copy to")
    return destination.parent.resolve() / destination.name


def _find_source(source: Path) -> Path:
    if not source.exists():
        raise NotFound(f"there is no {source} on this host")
    return source.resolve()


def _pack(source: Path, name: str, archive: IO[bytes]) -> None:
    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:  # which busybox reads
        tar.add(source, name, filter=anonymous)


@contextlib.asynccontextmanager
async def _command(
    session: Session, container_id: str, words: tuple[str, ...], dialing: Dialing, *, stdin: bool = False
) -> AsyncIterator[RemoteCommand]:
    request = {"container_id": container_id, "cmd": words, "stdin": stdin, "stdout": True, "stderr": True, "tty": False}
    answer = await session.ask("Exec", request)
    names = frozenset({STDOUT, STDERR} | ({STDIN} if stdin else set()))
    async with remote_command(answer["url"], names, dialing) as command:
        yield command


async def _finish(command: RemoteCommand, work: Coroutine[object, object, None]) -> None:
    """Carry the data, show what tar complains of, and raise DriverError when it failed."""

    async def show(name: str) -> None:
        while piece := await command.streams[name].read():
            await write_output(sys.stderr, piece)

    others = [show(STDERR)] if STDIN not in command.streams else [show(STDERR), show(STDOUT)]
    await asyncio.gather(work, *others)
    try:
        code = await command.outcome()
    except CrinoidError as error:
        raise DriverError(f"cp needs a tar in the container: {error.message}") from error
    if code:
        raise DriverError(f"tar in the container ended with exit code {code}")
