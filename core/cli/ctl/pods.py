"""The verbs of pods: pods, runp, stopp, rmp."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from crinoid.core.api.errors import FailedPrecondition
from crinoid.core.api.linux.files import remove_tree
from crinoid.core.cli.ctl.completion import POD
from crinoid.core.cli.ctl.directory import read_directory
from crinoid.core.cli.ctl.durations import DURATION
from crinoid.core.cli.ctl.figures import format_age, shorten_id
from crinoid.core.cli.ctl.flags import flag
from crinoid.core.cli.ctl.json_documents import print_answer
from crinoid.core.cli.ctl.listing import Listing, format_labels, listing, print_ids
from crinoid.core.cli.ctl.queries import PodQuery, list_pods, pod_query
from crinoid.core.cli.ctl.session import Json, Session, for_each, in_session, tell
from crinoid.core.cli.tables import print_facts, print_table

_TITLES = ("POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME")


@click.command()
@pod_query
@listing
@in_session
async def pods(session: Session, query: PodQuery, listing: Listing) -> None:
    """List pods."""
    found = await list_pods(session, query)
    if listing.is_document():
        print_answer({"items": found}, listing.output)
    elif listing.quiet:
        print_ids(found)
    elif listing.verbose:
        for pod in found:
            _print_facts(pod)
    else:
        print_table(_TITLES, [_make_row(pod, listing.no_trunc) for pod in found])


@click.command()
@click.argument("pod_config", type=click.Path(path_type=Path))
@click.option("--runtime", "-r", default="", metavar="HANDLER", help="Runtime handler, if not the default one.")
@click.option("--cancel-timeout", "-T", type=DURATION, default=0.0, metavar="DURATION", help="Wait so much longer.")
@in_session
async def runp(session: Session, pod_config: Path, runtime: str, cancel_timeout: float) -> None:
    """Run a pod without containers, from its configuration as JSON or YAML of the CRI."""
    from crinoid.core.cli.ctl.manifests import read_pod_config  # with YAML

    request = {"config": read_pod_config(pod_config), "runtime_handler": runtime}
    click.echo((await session.act("RunPodSandbox", request, cancel_timeout))["pod_sandbox_id"])


@click.command()
@click.argument("pods", type=POD, nargs=-1, required=True)
@in_session
async def stopp(session: Session, pods: tuple[str, ...]) -> int:
    """Stop pods with all their containers."""
    return await _act_on_each(session, pods, lambda pod: _stop(session, pod))


@click.command()
@click.argument("pods", type=POD, nargs=-1)
@flag("--all", "-a", help="All pods.")
@flag("--force", "-f", help="Those that run too.")
@in_session
async def rmp(session: Session, pods: tuple[str, ...], force: bool, **flags: bool) -> int:
    """Remove pods with all their containers."""
    if not pods and not flags["all"]:
        raise click.UsageError("name at least one pod, or use --all")
    chosen = pods or tuple(pod["id"] for pod in await list_pods(session, PodQuery()))
    if not chosen:
        tell("there is no pod")
    return await _act_on_each(session, chosen, lambda pod: _remove(session, pod, force))


VERBS = (pods, runp, stopp, rmp)


async def _act_on_each(session: Session, references: tuple[str, ...], act: Callable[[Json], Awaitable[object]]) -> int:
    directory = await read_directory(session)

    async def act_on(reference: str) -> None:
        await act(directory.find_pod(reference))

    return await for_each(references, act_on)


async def _stop(session: Session, pod: Json) -> None:
    await session.act("StopPodSandbox", {"pod_sandbox_id": pod["id"]})
    click.echo(f"Stopped sandbox {pod['id']}")


async def _remove(session: Session, pod: Json, force: bool) -> None:
    if pod["state"] == "SANDBOX_READY":
        if not force:
            raise FailedPrecondition(f"pod {pod['id']} runs; stop it first, or use --force")
        await _stop(session, pod)
    await session.act("RemovePodSandbox", {"pod_sandbox_id": pod["id"]})
    click.echo(f"Removed sandbox {pod['id']}")
    await asyncio.to_thread(_remove_logs, pod)


def _remove_logs(pod: Json) -> None:
    """Remove the logs of a pod that ``run`` made, if they are where it put them."""
    from crinoid.core.cli.ctl.podform import find_own_logs  # pydantic takes long to import

    if (directory := find_own_logs(pod["metadata"], pod["annotations"])) is not None:
        remove_tree(directory)


def _make_row(pod: Json, full: bool) -> tuple[str, ...]:
    return (
        shorten_id(pod["id"], full),
        format_age(int(pod["created_at"])),
        format_state(pod["state"]),
        pod["metadata"]["name"],
        pod["metadata"]["namespace"],
        str(pod["metadata"]["attempt"]),
        pod["runtime_handler"] or "(default)",
    )


def format_state(state: str) -> str:
    """Name a pod's state."""
    return "Ready" if state == "SANDBOX_READY" else "NotReady"


def _print_facts(pod: Json) -> None:
    print_facts(
        [
            ("ID", pod["id"]),
            ("Name", pod["metadata"]["name"]),
            ("UID", pod["metadata"]["uid"]),
            ("Namespace", pod["metadata"]["namespace"]),
            ("Attempt", str(pod["metadata"]["attempt"])),
            ("Status", format_state(pod["state"])),
            ("Created", format_age(int(pod["created_at"]))),
            *format_labels(pod),
            ("Runtime", pod["runtime_handler"] or "(default)"),
        ]
    )
    click.echo()
