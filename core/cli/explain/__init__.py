"""``crinoid explain``: what was done to a pod, a container or an image, how long each step took, and what became of it;
and with ``--dry-run`` what would be done for a pod.

The daemon is asked (``NodeExplain``); where none runs, the timelines that it left are read. ``story`` puts the acts of
a pod together; ``timeline_view`` and ``dry_run_view`` print.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import click

from crinoid.core.api.errors import CrinoidError, NotFound, Unavailable
from crinoid.core.cli.ctl.flags import flag, gather
from crinoid.core.cli.ctl.session import Session, Target, in_session
from crinoid.core.cli.options import config_of_daemon, config_option, output_option
from crinoid.core.config.paths import ConfigPaths

_READ_S = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be explained, and how."""

    dry_run: bool = False
    ask_extensions: bool = False
    runtime: str = ""
    everything: bool = False


asked = gather(
    "asked",
    Asked,
    flag("--dry-run", help="SUBJECT is a pod's file: tell what would be done for it; nothing is."),
    flag("--ask-extensions", help="With --dry-run: ask extensions, too, and tell them that nothing came of it."),
    click.option("--runtime", default="", metavar="HANDLER", help="With --dry-run: runtime handler of the pod."),
    click.option("--all", "-a", "everything", is_flag=True, help="Show short steps, too."),
)


@click.command()
@click.argument("subject", metavar="POD|CONTAINER|IMAGE|POD.yaml")
@asked
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
    ctx: click.Context, paths: ConfigPaths, subject: str, asked: Asked, output: str, runtime_endpoint: str | None
) -> None:
    """Tell what was done to a pod, a container or an image, which plugin took how long, and what became of it.

    SUBJECT is an id or the beginning of one, a name, NAMESPACE/NAME, or an image reference. What was removed is told
    of for a while, too. With --dry-run it is a pod's file, as `crinoid ctl run` takes it.
    """
    if not asked.dry_run and (asked.ask_extensions or asked.runtime):
        raise click.UsageError("--ask-extensions and --runtime go with --dry-run")
    ctx.obj = Target(paths, runtime_endpoint)
    if asked.dry_run:
        ctx.invoke(_dry_run, file=Path(subject), asked=asked, as_json=output == "json")
    else:
        ctx.invoke(_explain, subject=subject, asked=asked, as_json=output == "json", paths=paths)


@in_session
async def _explain(session: Session, subject: str, asked: Asked, as_json: bool, paths: ConfigPaths) -> None:
    from crinoid.core.cli.explain.story import find_story
    from crinoid.core.cli.explain.timeline_view import print_story
    from crinoid.core.state.timelines import SHORT_ID

    async def read(about: tuple[str, ...], since_ns: int) -> list[str]:
        try:
            answer = await session.ask_crinoid("ReadTimeline", _READ_S, about=about, since_ns=since_ns)
        except Unavailable as error:  # nobody serves: what was written is there all the same
            return _read_files(paths, about, since_ns, error)
        if answer.off:
            raise NotFound("no timelines are kept: timeline.size_bytes of the configuration is 0")
        return list(answer.acts)

    story = await find_story(subject, read)
    if story is None:
        advice = f"; of an id the first {SHORT_ID} characters are wanted" if 0 < len(subject) < SHORT_ID else ""
        raise NotFound(f"nothing is known of {subject!r}: it was never here, or others took its place since{advice}")
    if as_json:
        click.echo(json.dumps([json.loads(line) for line in story.lines], indent=2))
    else:
        print_story(story, asked.everything)


@in_session
async def _dry_run(session: Session, file: Path, asked: Asked, as_json: bool) -> None:
    from crinoid.core.cli.ctl.podform import read_form, to_container_config, to_pod_config
    from crinoid.core.cli.explain.dry_run_view import print_plan
    from crinoid.core.cri.client import encode_config

    form = read_form(file)
    answer = await session.ask_crinoid(
        "DryRunPod",
        _READ_S,
        pod=encode_config("PodSandboxConfig", to_pod_config(form)),
        containers=[encode_config("ContainerConfig", to_container_config(form, one)) for one in form.containers],
        runtime_handler=asked.runtime or form.runtime,
        ask_extensions=asked.ask_extensions,
    )
    plan = json.loads(answer.plan)
    if as_json:
        click.echo(json.dumps(plan, indent=2))
    else:
        print_plan(plan)


def _read_files(paths: ConfigPaths, about: tuple[str, ...], since_ns: int, why: CrinoidError) -> list[str]:
    from crinoid.core.state.timelines import DIRECTORY, read_acts

    directory: Path = config_of_daemon(paths, quiet=True).root / DIRECTORY  # the daemon was asked before, and it told
    try:
        next(directory.iterdir(), None)
    except OSError:
        raise why from None
    return list(read_acts(directory, about, since_ns))
