"""The verb load: images from a file, a directory or standard input, with the daemon asking for what it lacks."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import aclosing
from io import FileIO
from typing import Any

import click

from crinoid.core.api.errors import CrinoidError, InvalidArgument, NotFound
from crinoid.core.api.layouts.layout_index import LayoutIndex
from crinoid.core.api.values.image import ImageReference
from crinoid.core.cli.ctl.archive_input import ArchivedImage, list_images, opened
from crinoid.core.cli.ctl.session import Session, in_session, tell


@click.command()
@click.argument("archive", required=False, default="", metavar="[FILE|DIRECTORY|-]")
@click.option("--input", "-i", "given", default="", metavar="FILE", help="The same, as with docker.")
@click.option("--name", default="", metavar="NAME", help="Name of the image; of several, the name that tags belong to.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Of several platforms, which; by default this node's.")
@click.option("--quiet", "-q", is_flag=True, help="Print the images' ids alone.")
@in_session
async def load(session: Session, archive: str, given: str, name: str, platform: str, quiet: bool) -> int:
    """Load images from an archive, as docker, podman, skopeo or `ctl save` write it, or from an OCI layout.

    Archives may be compressed by gzip or zstd. Without a file, or with "-", standard input is read. An image that has
    no full name in the archive gets the one of --name, or none.
    """
    if archive and given:
        raise click.UsageError("name the archive once: as an argument, or with --input")
    code = 0
    with opened(archive or given or "-", _place_of(name)) as index:
        if not (images := list_images(index)):
            raise NotFound("there is no image in the archive")
        for image in _named(images, name):
            try:
                image_id = await _load(session, index, image, platform)
            except CrinoidError as error:
                tell(f"load of {image}: {error.message}")
                code = 1
                continue
            if quiet:
                click.echo(image_id)
            for shown in image.names if not quiet else ():
                click.echo(f"Loaded image: {shown}")
            if not image.names and not quiet:
                click.echo(f"Loaded image ID: {image_id}")
                tell("it has no full name in the archive: give it one with `crinoid ctl tag`, or load it with --name")
    return code


def _place_of(name: str) -> str:
    """Return the repository that a mere tag in the archive belongs to: that of a name without a tag, else none."""
    if not name:
        return ""
    reference = ImageReference.parse(name)
    if reference.digest:
        raise InvalidArgument(f"--name {name!r}: a digest can't be given, it comes of the image")
    return reference.name if ":" not in name.rpartition("/")[2] else ""


def _named(images: Sequence[ArchivedImage], name: str) -> Sequence[ArchivedImage]:
    """Give the images the name that was asked for."""
    if not name:
        return images
    place = _place_of(name)
    if len(images) == 1:
        tagged = tuple(one for one in images[0].names if place and one.startswith(f"{place}:"))
        return [ArchivedImage(tagged or (str(ImageReference.parse(name)),), images[0].targets)]
    if not place:
        raise InvalidArgument(f"--name {name!r}: the archive has {len(images)} images, and a tag means one of them")
    return images


async def _load(session: Session, index: LayoutIndex, image: ArchivedImage, platform: str) -> str:
    """Load one image, and return its id; every blob that the daemon wants is sent by a task."""
    targets = [_describe(index, target) for target in image.targets]
    answers = session.stream_crinoid("LoadImage", names=image.names, targets=targets, platform=platform)
    sending: set[asyncio.Task[None]] = set()
    load_session, max_piece_bytes, image_id = "", 0, ""
    try:
        async with aclosing(answers):  # type: ignore[type-var]  # it is a generator
            async for answer in answers:
                if answer.session:
                    load_session, max_piece_bytes = answer.session, answer.max_piece_bytes
                elif answer.HasField("wanted"):
                    sender = _Sender(session, load_session, answer.wanted.number, max_piece_bytes)
                    task = asyncio.create_task(sender.send(index, answer.wanted))
                    sending.add(task)
                    task.add_done_callback(sending.discard)
                image_id = answer.image_id
    finally:
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
    return image_id


def _describe(index: LayoutIndex, target: Any) -> dict[str, object]:
    place = target.platform
    has_place = place is not None and place.os and place.architecture
    platform = "/".join(filter(None, (place.os, place.architecture, place.variant))) if has_place else ""
    return {"media_type": target.media_type, "digest": target.digest, "size": target.size, "platform": platform}


class _Sender:
    """Sends one blob, piece by piece: the next goes once the daemon has taken the one before."""

    def __init__(self, session: Session, load_session: str, number: int, max_piece_bytes: int) -> None:
        self._session = session
        self._place: dict[str, Any] = {"session": load_session, "number": number}
        self._max_piece_bytes = max_piece_bytes

    async def send(self, index: LayoutIndex, wanted: Any) -> None:
        """Send what is wanted, or why it can't be."""
        try:
            fault = await self._send(index, wanted)
        except (CrinoidError, OSError) as error:
            fault = error.message if isinstance(error, CrinoidError) else str(error)
        await self._provide(last=True, fault=fault)

    async def _send(self, index: LayoutIndex, wanted: Any) -> str:
        if wanted.digest in index.documents:
            return await self._send_bytes(index.documents[wanted.digest][wanted.offset :])
        if (span := index.span(wanted.digest)) is None:
            return f"it names blob {wanted.digest}, but does not have it"
        if span.size != wanted.size:
            return f"its blob {wanted.digest} has {span.size} bytes, not {wanted.size}"
        with span.open() as file:
            return await self._send_file(file, span.offset + wanted.offset, span.offset + span.size)

    async def _send_file(self, file: FileIO, position: int, end: int) -> str:
        while position < end:
            count = min(self._max_piece_bytes, end - position)
            piece = await asyncio.to_thread(os.pread, file.fileno(), count, position)
            if not piece:
                return "the archive was cut off while it was read"
            position += len(piece)
            if await self._provide(content=piece):
                break
        return ""

    async def _send_bytes(self, content: bytes) -> str:
        for start in range(0, len(content), self._max_piece_bytes):
            await self._provide(content=content[start : start + self._max_piece_bytes])
        return ""

    async def _provide(self, **fields: Any) -> bool:
        """Send one message; return whether no more is wanted."""
        try:
            return bool((await self._session.ask_crinoid("ProvideBlob", **self._place, **fields)).enough)
        except NotFound:  # the load has ended, and its stream says how
            return True


VERBS = (load,)
