"""``crinoid explain``: what was done to a pod, a container or an image, how long each step took, and what became of it.

The daemon is asked (``NodeExplain``); where none runs, the files that it left are read. ``story`` puts the acts of a
pod together, ``timeline_view`` prints them.
"""

import json
from pathlib import Path

import click

from crinoid.core.api.errors import CrinoidError, NotFound, Unavailable
from crinoid.core.cli.ctl.session import Session, Target, in_session
from crinoid.core.cli.options import config_option, output_option
from crinoid.core.config.paths import ConfigPaths


@click.command()
@click.argument("subject", metavar="POD|CONTAINER|IMAGE|POD.yaml")
@click.option("--all", "-a", "everything", is_flag=True, help="Show every step, those of less than a millisecond too.")
@output_option("text", "json")
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
def explain(
    ctx: click.Context, paths: ConfigPaths, subject: str, everything: bool, output: str, runtime_endpoint: str | None
) -> None:
    """Tell what was done to a pod, a container or an image, which plugin took how long, and what became of it.

    SUBJECT is an id or the beginning of one, a name, NAMESPACE/NAME, or an image reference. What was removed is told
    of for a while, too.
    """
    ctx.obj = Target(paths, runtime_endpoint)
    ctx.invoke(_explain, subject=subject, everything=everything, output=output, paths=paths)


@in_session
async def _explain(session: Session, subject: str, everything: bool, output: str, paths: ConfigPaths) -> None:
    from crinoid.core.cli.explain.story import find_story
    from crinoid.core.cli.explain.timeline_view import print_story

    async def read(about: tuple[str, ...], since_ns: int) -> list[str]:
        try:
            answer = await session.ask_crinoid("ReadTimeline", 30.0, about=about, since_ns=since_ns)
        except Unavailable as error:  # nobody serves: what was written is there all the same
            return _read_files(paths, about, since_ns, error)
        if answer.off:
            raise NotFound("no timelines are kept: timeline.size_bytes of the configuration is 0")
        return list(answer.acts)

    story = await find_story(subject, read)
    if story is None:
        raise NotFound(
            f"nothing is known of {subject!r}: it was never there, or so long ago that others took its place"
        )
    if output == "json":
        click.echo(json.dumps([json.loads(line) for line in story.lines], indent=2))
    else:
        print_story(story, everything)


def _read_files(paths: ConfigPaths, about: tuple[str, ...], since_ns: int, why: CrinoidError) -> list[str]:
    from crinoid.core.config.loader import load
    from crinoid.core.state.timelines import DIRECTORY, read_acts

    directory: Path = load(paths).config.root / DIRECTORY
    try:
        next(directory.iterdir(), None)
    except OSError:
        raise why from None
    return list(read_acts(directory, about, since_ns))
