"""The verbs that reach into a running container: exec and attach, with live streams.

Some execs show the output at the end instead (ExecSync): those in several containers at once, whose outputs would mix,
those with a deadline, which only the endpoint can keep, and all where the endpoint has no streams.
"""

import asyncio
import base64
import contextlib
import functools
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import click

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, FailedPrecondition, NotFound, NotImplementedHere
from crinoid.core.cli.ctl.completion import CONTAINER
from crinoid.core.cli.ctl.directory import find_container
from crinoid.core.cli.ctl.flags import flag, gather, labels, without_dashes
from crinoid.core.cli.ctl.json_documents import unfold
from crinoid.core.cli.ctl.queries import CONTAINER_STATES, ContainerQuery, list_containers
from crinoid.core.cli.ctl.session import Session, in_session, tell
from crinoid.core.cli.ctl.streams import STDIN_DESCRIPTOR, stream
from crinoid.core.cli.ctl.streams import dialing as dialing_options
from crinoid.core.cri.streaming.client.dialing import Dialing


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command is run: its deadline in seconds (0 is none), and what to do with several containers."""

    timeout: int = 0
    ignore_errors: bool = False
    parallel: bool = False
    quiet: bool = False
    interactive: bool = False
    tty: bool = False
    sync: bool = False

    @property
    def is_live(self) -> bool:
        """Whether it can't do without streams."""
        return self.interactive or self.tty

    @property
    def waits(self) -> bool:
        """Whether the output is shown at the end."""
        return not self.is_live and (self.sync or self.parallel or bool(self.timeout))

    def check(self) -> None:
        """Raise UsageError for what can't be had together."""
        if self.is_live and (self.sync or self.parallel):
            raise click.UsageError("--interactive and --tty can't be had with --sync or --parallel")


_manner = gather(
    "manner",
    Manner,
    click.option("--timeout", default=0, metavar="SECONDS", help="How long it may take; 0 is no limit."),
    flag("--ignore-errors", "-e", help="Exit with 0 whatever happens."),
    flag("--parallel", "-x", help="In all containers at once."),
    flag("--quiet", "-q", help="Without the ids where there are several containers."),
    flag("--interactive", "-i", help="With standard input."),
    flag("--tty", "-t", help="On a terminal; with -i, ctrl-p ctrl-q detaches."),
    flag("--sync", "-s", help="Show the output when the command has ended."),
)
_filters = gather(
    "query",
    ContainerQuery,
    click.option("--id", default="", hidden=True),
    click.option("--name", default="", metavar="REGEX", help="In all containers with such a name."),
    click.option("--namespace", default="", metavar="REGEX", help="In all containers of pods in such a namespace."),
    click.option("--pod", "-p", default="", metavar="POD", help="In all containers of this pod."),
    click.option("--image", default="", help="In all containers of this image."),
    click.option("--state", default="", metavar="|".join(CONTAINER_STATES), help="In all containers in this state."),
    labels(),
    click.option("--all", is_flag=True, hidden=True),
    flag("--latest", "-l", help="In the newest container."),
    click.option("--last", "-n", default=0, metavar="N", help="In the newest N containers."),
)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("arguments", type=CONTAINER, nargs=-1, required=True, metavar="[CONTAINER] COMMAND [ARG]...")
@_filters
@_manner
@dialing_options
@in_session
async def execute(
    session: Session, arguments: tuple[str, ...], query: ContainerQuery, manner: Manner, dialing: Dialing
) -> int:
    """Run a command in a container, or in all that fit the filters; exit with the command's exit code."""
    manner.check()
    if query.is_any():
        containers, command = (await list_containers(session, query))[0], arguments
    else:
        containers, command = [await find_container(session, arguments[0])], without_dashes(arguments[1:])
    if not containers:
        raise NotFound("no container fits the filters; see `crinoid ctl ps`")
    if not command:
        raise click.UsageError("name a command to run")
    run = functools.partial(
        _run_in_one, session, command=command, manner=manner, dialing=dialing, titled=len(containers) > 1
    )
    code = await _run_in_all(run, [one["id"] for one in containers], manner)
    return 0 if manner.ignore_errors else code


@click.command()
@click.argument("container", type=CONTAINER)
@flag("--stdin", "-i", help="With standard input.")
@flag("--tty", "-t", help="The container has a terminal; with -i, ctrl-p ctrl-q detaches.")
@dialing_options
@in_session
async def attach(session: Session, container: str, stdin: bool, tty: bool, dialing: Dialing) -> int:
    """Attach to the streams of a container's first process until it ends."""
    found = await find_container(session, container)
    if tty and not await _has_terminal(session, found["id"]):
        raise FailedPrecondition(f"container {found['id']} was made without a terminal: attach without --tty")
    return await stream(session, "Attach", {"container_id": found["id"], "stdin": stdin, "tty": tty}, dialing) or 0


VERBS = (execute, attach)


async def _has_terminal(session: Session, container_id: str) -> bool:
    """Tell whether a container was made with a terminal, as far as the endpoint says: raw mode suits no other."""
    answer = await session.ask("ContainerStatus", {"container_id": container_id, "verbose": True})
    details = unfold(answer["info"].get("info", ""))
    config = unfold(answer["info"].get("config", "")) or (details.get("config") if isinstance(details, dict) else None)
    return bool(config.get("tty")) if isinstance(config, dict) else True


async def _run_in_all(run: Callable[[str], Awaitable[int]], ids: list[str], manner: Manner) -> int:
    """Run a command in each container; return the first exit code that is not 0."""
    if manner.parallel:
        codes = await asyncio.gather(*(run(container_id) for container_id in ids))
    else:
        codes = [await run(container_id) for container_id in ids]
    return next((code for code in codes if code), 0)


async def _run_in_one(
    session: Session, container_id: str, *, command: tuple[str, ...], manner: Manner, dialing: Dialing, titled: bool
) -> int:
    """Run a command and show its output; an error is told and counts as exit code 1."""
    title = f"{container_id}:" if titled and not manner.quiet else ""
    try:
        if not manner.waits:
            with contextlib.suppress(NotImplementedHere) if not manner.is_live else contextlib.nullcontext():
                return await _stream(session, container_id, command, manner, dialing, title)
        return await _run_to_the_end(session, container_id, command, manner, title)
    except CrinoidError as error:
        tell(error.message)
        return 1


async def _stream(
    session: Session, container_id: str, command: tuple[str, ...], manner: Manner, dialing: Dialing, title: str
) -> int:
    tty = manner.tty
    if tty and manner.interactive and not os.isatty(STDIN_DESCRIPTOR):
        tell("standard input is no terminal, so the command gets none: it would never see the end of its input")
        tty = False
    request = {"container_id": container_id, "cmd": command, "stdin": manner.interactive, "tty": tty}
    try:
        async with asyncio.timeout(manner.timeout or None):
            return await stream(session, "Exec", request, dialing, title) or 0
    except TimeoutError:
        raise DeadlineExceeded(f"the command had not ended after {manner.timeout} s; it may still run") from None


async def _run_to_the_end(
    session: Session, container_id: str, command: tuple[str, ...], manner: Manner, title: str
) -> int:
    request = {"container_id": container_id, "cmd": command, "timeout": manner.timeout}
    if manner.timeout:
        answer = await session.act("ExecSync", request, manner.timeout)
    else:
        answer = await session.wait_for("ExecSync", request, None)
    if title:
        click.echo(title)
    for here, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        here.flush()
        here.buffer.write(base64.b64decode(answer[name]))
        here.flush()
    return int(answer["exit_code"])
