"""The verbs that reach into a running container or pod: exec, attach, port-forward.

exec runs to its end and then shows the output (ExecSync). What needs live streams is asked of the endpoint, whose own
refusal is told; where it grants a stream, that ends here, as this client has no streaming yet.
"""

import asyncio
import base64
import functools
import sys
from dataclasses import dataclass

import click

from crinoid.core.api.errors import CrinoidError, NotFound, NotImplementedHere
from crinoid.core.cli.ctl.directory import find_container, find_pod
from crinoid.core.cli.ctl.flags import flag, gather, labels
from crinoid.core.cli.ctl.queries import CONTAINER_STATES, ContainerQuery, list_containers
from crinoid.core.cli.ctl.session import Json, Session, in_session, tell


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command is run: its deadline in seconds (0 is none), and what to do with several containers."""

    timeout: int = 0
    ignore_errors: bool = False
    parallel: bool = False
    quiet: bool = False
    interactive: bool = False
    tty: bool = False


_manner = gather(
    "manner",
    Manner,
    click.option("--timeout", default=0, metavar="SECONDS", help="How long it may take; 0 is no limit."),
    flag("--ignore-errors", "-e", help="Exit with 0 whatever happens."),
    flag("--parallel", "-x", help="In all containers at once."),
    flag("--quiet", "-q", help="Without the ids where there are several containers."),
    flag("--interactive", "-i", help="With standard input; needs streaming."),
    flag("--tty", "-t", help="On a terminal; needs streaming."),
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
@click.argument("arguments", nargs=-1, required=True, metavar="[CONTAINER] COMMAND [ARG]...")
@_filters
@_manner
@flag("--sync", "-s", help="Show the output when the command has ended; so it is in any case.")
@in_session
async def execute(
    session: Session, arguments: tuple[str, ...], query: ContainerQuery, manner: Manner, sync: bool
) -> int:
    """Run a command in a container, or in all that fit the filters; exit with the command's exit code."""
    if query.is_any():
        containers, command = (await list_containers(session, query))[0], arguments
    else:
        containers, command = [await find_container(session, arguments[0])], arguments[1:]
    if not containers:
        raise NotFound("no container fits the filters; see `crinoid ctl ps`")
    if not command:
        raise click.UsageError("name a command to run")
    code = await _run_in_all(session, [one["id"] for one in containers], command, manner)
    return 0 if manner.ignore_errors else code


@click.command()
@click.argument("container")
@flag("--stdin", "-i", help="With standard input.")
@flag("--tty", "-t", help="On a terminal.")
@in_session
async def attach(session: Session, container: str, stdin: bool, tty: bool) -> None:
    """Attach to the streams of a container's first process."""
    found = await find_container(session, container)
    request = {"container_id": found["id"], "stdin": stdin, "tty": tty, "stdout": True, "stderr": not tty}
    await _ask_for_stream(session, "Attach", request)


@click.command("port-forward")
@click.argument("pod")
@click.argument("ports", nargs=-1, required=True, metavar="[LOCAL:]REMOTE...")
@in_session
async def port_forward(session: Session, pod: str, ports: tuple[str, ...]) -> None:
    """Forward local ports to ports of a pod."""
    remote = [port.rpartition(":")[2] for port in ports]
    if not all(port.isdecimal() for port in remote):
        raise click.BadParameter("must be numbers, such as 8080:80", param_hint="PORTS")
    found = await find_pod(session, pod)
    await _ask_for_stream(
        session, "PortForward", {"pod_sandbox_id": found["id"], "port": [int(port) for port in remote]}
    )


VERBS = (execute, attach, port_forward)


async def _run_in_all(session: Session, ids: list[str], command: tuple[str, ...], manner: Manner) -> int:
    """Run a command in each container; return the first exit code that is not 0."""
    run = functools.partial(_run_in_one, session, command=command, manner=manner, titled=len(ids) > 1)
    if manner.parallel:
        codes = await asyncio.gather(*(run(container_id) for container_id in ids))
    else:
        codes = [await run(container_id) for container_id in ids]
    return next((code for code in codes if code), 0)


async def _run_in_one(
    session: Session, container_id: str, *, command: tuple[str, ...], manner: Manner, titled: bool
) -> int:
    """Run a command and show its output; an error is told and counts as exit code 1."""
    try:
        answer = await _call(session, container_id, command, manner)
    except CrinoidError as error:
        tell(error.message)
        return 1
    if titled and not manner.quiet:
        click.echo(f"{container_id}:")
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        stream.flush()
        stream.buffer.write(base64.b64decode(answer[name]))
        stream.flush()
    return int(answer["exit_code"])


async def _call(session: Session, container_id: str, command: tuple[str, ...], manner: Manner) -> Json:
    if manner.interactive or manner.tty:
        request = {"container_id": container_id, "cmd": command, "stdin": manner.interactive, "tty": manner.tty}
        await _ask_for_stream(session, "Exec", {**request, "stdout": True, "stderr": not manner.tty})
    request = {"container_id": container_id, "cmd": command, "timeout": manner.timeout}
    if manner.timeout:
        return await session.act("ExecSync", request, manner.timeout)
    return await session.wait_for("ExecSync", request, None)


async def _ask_for_stream(session: Session, rpc: str, request: Json) -> None:
    await session.ask(rpc, request)
    raise NotImplementedHere(
        f"{rpc}: the endpoint offers a stream, but crinoid ctl can't use one yet; "
        "use `crinoid ctl exec` without -i and -t, or crictl"
    )
