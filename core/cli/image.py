"""``crinoid image``: whether the images of a node are what they should be, what to do where they are not, and images of
the runtime that was there before.

The daemon does the work: a verbose ImageStatus with the annotation ``VERIFY`` reads all that is stored of an image, and
a PullImage with it fetches again what is damaged. Credentials are those of the daemon's configuration.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import click

from crinoid.core.api.errors import CrinoidError, NotFound, Unsupported
from crinoid.core.cli.ctl.figures import format_size
from crinoid.core.cli.ctl.images import find_images, rmi
from crinoid.core.cli.ctl.session import Json, Session, Target, in_session, tell
from crinoid.core.cli.options import config_option
from crinoid.core.config.paths import ConfigPaths

_VERIFY = {"crinoid.io/verify": "true"}
_VERIFY_S = 3600.0
"""How long reading one image may take: a slow disk reads 300 GB in that time."""


@click.group("image")
@click.option(
    "--runtime-endpoint",
    "-r",
    envvar=["CRINOID_ENDPOINT", "CONTAINER_RUNTIME_ENDPOINT"],
    show_envvar=True,
    metavar="SOCKET",
    help="Socket of the daemon; by default that of the configuration.",
)
@config_option
@click.pass_context
def image(ctx: click.Context, paths: ConfigPaths, runtime_endpoint: str | None) -> None:
    """Verify, repair, prune and adopt the images of a node."""
    ctx.obj = Target(paths, runtime_endpoint)


@image.command()
@click.argument("images", nargs=-1)
@click.option("--repair", is_flag=True, help="Fetch again what is damaged.")
@in_session
async def verify(session: Session, images: tuple[str, ...], repair: bool) -> int:
    """Read all that is stored of images, all or those named, and tell what is damaged.

    Exit code 1 when anything is, and stays so.
    """
    return await _verify(session, images, repair)


@image.command("repair")
@click.argument("images", nargs=-1)
@in_session
async def repair_images(session: Session, images: tuple[str, ...]) -> int:
    """Verify images, and fetch again what is damaged: ``verify --repair``."""
    return await _verify(session, images, repair=True)


@image.command()
@click.pass_context
def prune(ctx: click.Context) -> None:
    """Remove all images that no container uses and that are not pinned."""
    ctx.invoke(rmi, images=(), all=False, prune=True)


@image.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option(
    "--from", "runtime", required=True, metavar="RUNTIME", help="The runtime that was here before: containerd."
)
@click.option("--root", default="", metavar="DIRECTORY", help="Its root, by default /var/lib/containerd.")
@click.option("--namespace", default="", help="containerd's namespace, by default k8s.io.")
@click.option("--copy", is_flag=True, help="Copy each blob, although it could be linked.")
@in_session
async def adopt(session: Session, names: tuple[str, ...], **options: Any) -> int:
    """Adopt the images of a former runtime, all or those named, without fetching them again.

    Its files are read and never written, and it may run meanwhile. Blobs are taken by reflink, hard link or copy, and
    verified. A name may end in "*". Exit code 1 when an image could not be adopted.
    """
    code, count, taken = 0, 0, Counter[str]()
    async with aclosing(session.stream_crinoid("AdoptImages", names=names, **options)) as answers:  # type: ignore[type-var]
        async for answer in answers:
            if answer.fault:
                tell(f"image {answer.name}: {answer.fault}")
                code = 1
            elif answer.name:
                count += 1
                click.echo(f"Adopted: {answer.name}")
                for how in ("cloned", "linked", "copied"):
                    taken[how] += getattr(answer, f"{how}_bytes")
    shown = ", ".join(f"{format_size(size)} {how}" for how, size in taken.items() if size)
    tell(f"{count} names adopted" + (f": {shown}" if shown else ""))
    return code


async def _verify(session: Session, images: Sequence[str], repair: bool) -> int:
    chosen = list(images) or [one["id"] for one in await find_images(session)]
    code = 0
    for name in chosen:
        try:
            whole = await _verify_one(session, name, repair)
        except CrinoidError as error:
            tell(f"image {name}: {error.message}")
            whole = False
        code |= not whole
    return code


async def _verify_one(session: Session, name: str, repair: bool) -> bool:
    """Tell on standard output what is wrong with an image, or that nothing is; return whether it is whole now."""
    found, damage = await _look(session, name)
    shown = _name_of(found)
    for words in damage:
        click.echo(f"{shown}: {words}")
    if damage and repair:
        reference = next(iter([*found["repo_digests"], *found["repo_tags"]]), found["id"])
        await session.wait_for("PullImage", {"image": {"image": reference, "annotations": _VERIFY}}, _VERIFY_S)
        _, damage = await _look(session, found["id"])
        click.echo(f"{shown}: {'repaired' if not damage else 'still damaged: ' + '; '.join(damage)}")
    elif not damage:
        click.echo(f"{shown}: whole")
    return not damage


async def _look(session: Session, name: str) -> tuple[Json, list[str]]:
    spec = {"image": name, "annotations": _VERIFY}
    answer = await session.wait_for("ImageStatus", {"image": spec, "verbose": True}, _VERIFY_S)
    if (found := answer.get("image")) is None:
        raise NotFound("it is not on this node; `crinoid ctl images` lists those there are")
    if (damage := answer["info"].get("damage")) is None:
        raise Unsupported("this endpoint can't verify images: it is no crinoid, or an older one")
    return found, json.loads(damage)


def _name_of(image: Json) -> str:
    return next(iter([*image["repo_tags"], *image["repo_digests"]]), str(image["id"]))
