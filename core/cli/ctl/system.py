"""The verb system df: what images, containers and volumes take on disk, and what could be given back."""

from collections.abc import Mapping
from typing import Any, ClassVar

import click

from crinoid.core.cli.ctl.figures import format_size, shorten_id
from crinoid.core.cli.ctl.flags import TABLE, flag, output
from crinoid.core.cli.ctl.json_documents import print_document
from crinoid.core.cli.ctl.session import Session, in_session
from crinoid.core.cli.groups import SuggestingGroup
from crinoid.core.cli.tables import print_table

_LIMIT_S = 600.0
"""Every file of every layer is counted."""


class _System(SuggestingGroup):
    elsewhere: ClassVar[Mapping[str, str]] = {"prune": "it is `ctl prune`", "info": "it is `ctl info`"}


@click.group(cls=_System)
def system() -> None:
    """Look at the node as a whole."""


@system.command()
@flag("--verbose", "-v", help="Every image, layer, container and volume.")
@output(TABLE)
@in_session
async def df(session: Session, verbose: bool, output: str) -> None:
    """Show what images, containers and volumes take on disk.

    Reclaimable is what only images need that no container uses and that are not pinned, and what containers that have
    ended wrote. A layer counts once, with its blob where that is kept.
    """
    use = await session.ask_crinoid("ImageDiskUsage", _LIMIT_S)
    if output != TABLE:
        print_document(_document(use), output)
        return
    _print_summary(use)
    if verbose:
        _print_details(use)


def _print_summary(use: Any) -> None:
    used = sum(image.containers > 0 for image in use.images)
    running = sum(one.state == "running" for one in use.writables)
    rows = [
        ("Images", len(use.images), used, use.images_bytes, use.images_reclaimable_bytes),
        ("Containers", len(use.writables), running, use.writables_bytes, use.writables_reclaimable_bytes),
        ("Volumes", len(use.volumes), len(use.volumes), use.volumes_bytes, use.volumes_reclaimable_bytes),
    ]
    print_table(
        ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"),
        [
            (kind, str(total), str(active), format_size(size), f"{format_size(free)} ({_share(free, size)})")
            for kind, total, active, size, free in rows
        ],
    )


def _print_details(use: Any) -> None:
    click.echo("\nImages:")
    print_table(
        ("IMAGE", "IMAGE ID", "UNIQUE", "SHARED", "CONTAINERS", "PINNED"),
        [
            (
                next(iter(image.names), "<none>"),
                shorten_id(image.id),
                format_size(image.unique_bytes),
                format_size(image.shared_bytes),
                str(image.containers),
                str(image.pinned).lower(),
            )
            for image in use.images
        ],
    )
    click.echo("\nLayers:")
    print_table(
        ("CHAIN ID", "SNAPSHOTTER", "UNPACKED", "BLOB", "IMAGES"),
        [
            (
                shorten_id(layer.chain_id),
                layer.snapshotter,
                format_size(layer.unpacked_bytes),
                format_size(layer.blob_bytes),
                str(layer.images),
            )
            for layer in use.layers
        ],
    )
    click.echo("\nContainers:")
    volumes = {volume.container_id: volume.bytes for volume in use.volumes}
    print_table(
        ("CONTAINER", "NAME", "STATE", "WRITTEN", "VOLUMES"),
        [
            (
                shorten_id(one.container_id),
                one.name,
                one.state,
                format_size(one.bytes),
                format_size(volumes.get(one.container_id, 0)),
            )
            for one in use.writables
        ],
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _document(use: Any) -> dict[str, Any]:
    """Return the answer as a document, with the names of its fields."""
    return {field.name: _plain(value) for field, value in use.ListFields()}


def _plain(value: Any) -> Any:
    if hasattr(value, "ListFields"):
        return {field.name: _plain(getattr(value, field.name)) for field in value.DESCRIPTOR.fields}
    return [_plain(one) for one in value] if hasattr(value, "__len__") and not isinstance(value, str) else value


VERBS = (system,)
