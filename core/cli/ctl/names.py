"""The verbs tag and untag."""

import click

from crinoid.core.cli.ctl.completion import IMAGE
from crinoid.core.cli.ctl.session import Session, for_each, in_session, tell


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("names", type=IMAGE, nargs=-1, required=True, metavar="NAME...")
@in_session
async def tag(session: Session, image: str, names: tuple[str, ...]) -> int:
    """Give an image more names; one that another image has leaves that one."""

    async def give(name: str) -> None:
        given = await session.ask_crinoid("TagImage", image=image, name=name)
        click.echo(f"Tagged: {given.name}")

    return await for_each(names, give)


@click.command()
@click.argument("names", type=IMAGE, nargs=-1, required=True, metavar="NAME...")
@in_session
async def untag(session: Session, names: tuple[str, ...]) -> int:
    """Take names from images. The images stay, also without any name: `ctl rmi` removes them."""

    async def take(name: str) -> None:
        taken = await session.ask_crinoid("UntagImage", name=name)
        click.echo(f"Untagged: {taken.name}")
        if not taken.left:
            tell(f"image {taken.image_id} has no name any more; `crinoid ctl rmi` removes it by its id")

    return await for_each(names, take)


VERBS = (tag, untag)
