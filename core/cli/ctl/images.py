"""The verbs of images that are there: images, rmi, imagefsinfo."""

import re
from collections.abc import Callable

import click

from crinoid.core.api.errors import CrinoidError, InvalidArgument, NotFound
from crinoid.core.api.values.image import ImageReference
from crinoid.core.cli.ctl.completion import IMAGE
from crinoid.core.cli.ctl.figures import format_size, shorten_id
from crinoid.core.cli.ctl.flags import JSON, TABLE, flag, output
from crinoid.core.cli.ctl.json_documents import print_answer, print_document, to_camel
from crinoid.core.cli.ctl.listing import Listing, listing, print_ids
from crinoid.core.cli.ctl.queries import find_image_id
from crinoid.core.cli.ctl.session import Json, Session, for_each, in_session, tell
from crinoid.core.cli.tables import print_facts, print_table

NONE = "<none>"
_FILTERS_HELP = "One of dangling=true|false, reference=REGEX, before=IMAGE, since=IMAGE; several are combined."


@click.command()
@click.argument("name", type=IMAGE, default="", metavar="[REPOSITORY[:TAG]]")
@click.option("--filter", "-f", "filters", multiple=True, metavar="FILTER", help=_FILTERS_HELP)
@listing
@flag("--digests", help="With a column of digests.")
@flag("--pinned", help="With a column that tells whether it is pinned.")
@in_session
async def images(session: Session, name: str, filters: tuple[str, ...], listing: Listing, **columns: bool) -> None:
    """List images: all, or those of a name."""
    found = await find_images(session, name, filters)
    if listing.is_document():
        print_answer({"images": found}, listing.output)
    elif listing.quiet:
        print_ids(found)
    elif listing.verbose:
        for image in found:
            _print_facts(image)
    else:
        _print_table(found, listing.no_trunc, columns)


@click.command()
@click.argument("images", type=IMAGE, nargs=-1)
@flag("--all", "-a", help="All images.")
@flag("--prune", "-q", help="All that no container uses and that are not pinned.")
@in_session
async def rmi(session: Session, images: tuple[str, ...], **flags: bool) -> int:
    """Remove images, each with all its tags: the CRI knows no removal of a single one."""
    if flags["prune"]:
        chosen = await list_unused(session)
    elif flags["all"]:
        chosen = [image["id"] for image in await find_images(session)]
    elif images:
        return await for_each(dict.fromkeys(images), lambda image: _remove(session, image))
    else:
        raise click.UsageError("name at least one image, or use --all or --prune")
    if not chosen:
        tell("there is no image to remove")
    return await for_each(chosen, lambda image: _remove(session, image))


@click.command()
@output(JSON)
@in_session
async def imagefsinfo(session: Session, output: str) -> None:
    """Show how much of their file systems images and containers use."""
    answer = await session.ask("ImageFsInfo")
    if output != TABLE:
        print_document({"status": to_camel(answer)}, output)
        return
    kinds = (("images", answer["image_filesystems"]), ("containers", answer["container_filesystems"]))
    rows = [(kind, *_measure(usage)) for kind, usages in kinds for usage in usages]
    print_table(("OF", "MOUNTPOINT", "DISK", "INODES"), rows)


VERBS = (images, rmi, imagefsinfo)


async def find_images(session: Session, name: str = "", filters: tuple[str, ...] = ()) -> list[Json]:
    """Return images sorted by their names, of one name if it is given, that pass all filters.

    A repository without a tag means all its tags; to the CRI's own filter it would be ``:latest``.
    """
    images: list[Json] = []
    if repository := _repository(name):
        images = [
            one for one in (await session.ask("ListImages"))["images"] if repository in map(_repository_of, _names(one))
        ]
    if not images:  # an id, or the beginning of one, may look like a repository
        images = (await session.ask("ListImages", {"filter": {"image": {"image": name}}} if name else {}))["images"]
    found = sorted(images, key=lambda image: (_names(image), image["id"]))
    for text in filters:
        found = _apply(text, found)
    return found


def _repository(name: str) -> str:
    """Return the full name of a repository that is given without tag and digest, else nothing."""
    if not name or "@" in name or ":" in name.rpartition("/")[2]:
        return ""
    return _repository_of(name)


def _repository_of(name: str) -> str:
    try:
        return ImageReference.parse(name).name
    except InvalidArgument:
        return ""


def _apply(text: str, images: list[Json]) -> list[Json]:
    """Apply a filter in crictl's sense: ``before`` and ``since`` are meant in the order of the list."""
    kind, _, value = text.partition("=")
    filters: dict[str, Callable[[], list[Json]]] = {
        "dangling": lambda: [image for image in images if (not image["repo_tags"]) is (value.lower() == "true")],
        "reference": lambda: [image for image in images if any(re.search(value, tag) for tag in _names(image))],
        "before": lambda: images[_position(images, value) + 1 :],
        "since": lambda: images[: _position(images, value)],
    }
    if kind not in filters:
        raise InvalidArgument(f"--filter {text!r}: must begin with one of {', '.join(f'{name}=' for name in filters)}")
    try:
        return filters[kind]()
    except re.error as error:
        raise InvalidArgument(f"--filter {text!r}: no regular expression: {error}") from error


def _position(images: list[Json], name: str) -> int:
    for index, image in enumerate(images):
        if name in _names(image) or image["id"].removeprefix("sha256:").startswith(name.removeprefix("sha256:")):
            return index
    raise NotFound(f"there is no image {name!r} in the list")


def _names(image: Json) -> list[str]:
    return [*image["repo_tags"], *image["repo_digests"]]


async def list_unused(session: Session) -> list[str]:
    """Return the ids of images that no container uses."""
    containers = (await session.ask("ListContainers"))["containers"]
    used = {container["image_id"] for container in containers}
    for name in {container["image"]["image"] for container in containers}:
        used.add(await find_image_id(session, name))
    return [image["id"] for image in await find_images(session) if not image["pinned"] and image["id"] not in used]


async def _remove(session: Session, name: str) -> None:
    image = (await session.ask("ImageStatus", {"image": {"image": name}})).get("image")
    if image is None:
        raise NotFound(f"there is no image {name!r}; `crinoid ctl images` lists those there are")
    tags = image["repo_tags"]
    if len(tags) > 1 and name not in image["id"]:
        tell(f"image {name} goes with all its tags: {', '.join(tags)}")
    try:
        await session.act("RemoveImage", {"image": {"image": name}})
    except CrinoidError as error:
        error.add_note(f"image {name}")
        raise
    for deleted in tags or image["repo_digests"] or [image["id"]]:
        click.echo(f"Deleted: {deleted}")


def _print_table(images: list[Json], full: bool, columns: dict[str, bool]) -> None:
    titles = ["IMAGE", "TAG", "IMAGE ID", "SIZE"]
    if columns["digests"]:
        titles.insert(2, "DIGEST")
    if columns["pinned"]:
        titles.append("PINNED")
    rows = [[row[title] for title in titles] for image in images for row in _make_rows(image, full)]
    print_table(titles, rows)


def _make_rows(image: Json, full: bool) -> list[dict[str, str]]:
    """Return a row for each tag of an image, by the title of the column."""
    repository, _, digest = image["repo_digests"][0].partition("@") if image["repo_digests"] else (NONE, "", NONE)
    names = [(tag.rpartition(":")[0], tag.rpartition(":")[2]) for tag in image["repo_tags"]] or [(repository, NONE)]
    facts = {
        "DIGEST": shorten_id(digest, full),
        "IMAGE ID": shorten_id(image["id"], full),
        "SIZE": format_size(int(image["size"])),
        "PINNED": str(image["pinned"]).lower(),
    }
    return [{"IMAGE": name, "TAG": tag, **facts} for name, tag in names]


def _print_facts(image: Json) -> None:
    print_facts(
        [
            ("ID", image["id"]),
            *(("RepoTags", tag) for tag in image["repo_tags"]),
            *(("RepoDigests", digest) for digest in image["repo_digests"]),
            ("Size", image["size"]),
            *([("Uid", image["uid"]["value"])] if "uid" in image else []),
            *([("Username", image["username"])] if image["username"] else []),
            *([("Pinned", "true")] if image["pinned"] else []),
        ]
    )
    click.echo()


def _measure(usage: Json) -> tuple[str, str, str]:
    used, inodes = usage.get("used_bytes", {}), usage.get("inodes_used", {})
    mountpoint = usage.get("fs_id", {}).get("mountpoint", "-")
    return mountpoint, format_size(int(used.get("value", 0))), str(inodes.get("value", "-"))
