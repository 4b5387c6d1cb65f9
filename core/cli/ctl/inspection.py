"""The verbs that show all there is to know: inspect, inspectp, inspecti."""

from collections.abc import Sequence
from dataclasses import dataclass

import click

from crinoid.core.api.errors import NotFound
from crinoid.core.cli.ctl import containers as container_verbs
from crinoid.core.cli.ctl import pods as pod_verbs
from crinoid.core.cli.ctl.completion import CONTAINER, IMAGE, POD
from crinoid.core.cli.ctl.directory import read_directory
from crinoid.core.cli.ctl.figures import format_age, format_size, to_rfc3339
from crinoid.core.cli.ctl.flags import JSON, TABLE, flag, gather, output
from crinoid.core.cli.ctl.images import find_images
from crinoid.core.cli.ctl.json_documents import make_status, print_statuses
from crinoid.core.cli.ctl.listing import format_labels
from crinoid.core.cli.ctl.queries import (
    ContainerQuery,
    PodQuery,
    container_query,
    list_containers,
    list_pods,
    pod_query,
)
from crinoid.core.cli.ctl.session import Json, Session, in_session
from crinoid.core.cli.tables import print_facts


@dataclass(frozen=True, slots=True)
class Showing:
    """How statuses are shown; ``quiet`` leaves the verbose info out, which a table never has."""

    output: str = JSON
    quiet: bool = False


showing = gather("showing", Showing, output(JSON), flag("--quiet", "-q", help="Without verbose information."))


@click.command()
@click.argument("containers", type=CONTAINER, nargs=-1)
@container_query
@showing
@in_session
async def inspect(session: Session, containers: tuple[str, ...], query: ContainerQuery, showing: Showing) -> None:
    """Show the status of containers: those named, or those that fit the filters."""
    if containers:
        directory = await read_directory(session)
        found = [directory.find_container(reference) for reference in containers]
    else:
        found, _ = await list_containers(session, query)
    answers = [
        await session.ask("ContainerStatus", {"container_id": one["id"], "verbose": not showing.quiet}) for one in found
    ]
    _show(answers, "container", showing)


@click.command()
@click.argument("pods", type=POD, nargs=-1)
@pod_query
@showing
@in_session
async def inspectp(session: Session, pods: tuple[str, ...], query: PodQuery, showing: Showing) -> None:
    """Show the status of pods: those named, or those that fit the filters."""
    if pods:
        directory = await read_directory(session)
        found = [directory.find_pod(reference) for reference in pods]
    else:
        found = await list_pods(session, query)
    answers = [
        await session.ask("PodSandboxStatus", {"pod_sandbox_id": one["id"], "verbose": not showing.quiet})
        for one in found
    ]
    _show(answers, "pod", showing)


@click.command()
@click.argument("images", type=IMAGE, nargs=-1)
@click.option("--name", default="", metavar="IMAGE", help="Only images of this name.")
@click.option("--filter", "-f", "filters", multiple=True, metavar="FILTER", help="As of `images`.")
@showing
@in_session
async def inspecti(
    session: Session, images: tuple[str, ...], name: str, filters: tuple[str, ...], showing: Showing
) -> None:
    """Show the status of images: those named, or those that fit the filters."""
    chosen = images or tuple(image["id"] for image in await find_images(session, name, filters))
    answers = []
    for image in chosen:
        answer = await session.ask("ImageStatus", {"image": {"image": image}, "verbose": not showing.quiet})
        if "image" not in answer:
            raise NotFound(f"there is no image {image!r}; `crinoid ctl images` lists those there are")
        answers.append({"status": answer["image"], "info": answer["info"]})
    _show(answers, "image", showing)


VERBS = (inspect, inspectp, inspecti)


def _show(answers: Sequence[Json], kind: str, showing: Showing) -> None:
    if not answers:
        raise NotFound(f"no {kind} fits; name one, or change the filters")
    if showing.output != TABLE:
        print_statuses([make_status(answer["status"], answer["info"]) for answer in answers], showing.output)
        return
    print_status = {"container": _print_container, "pod": _print_pod, "image": _print_image}[kind]
    for index, answer in enumerate(answers):
        if index:
            click.echo()
        print_status(answer["status"])


def _print_container(status: Json) -> None:
    started, finished = int(status["started_at"]), int(status["finished_at"])
    print_facts(
        [
            ("ID", status["id"]),
            ("Name", status["metadata"]["name"]),
            ("Attempt", str(status["metadata"]["attempt"])),
            ("State", container_verbs.format_state(status["state"])),
            ("Image", status["image"]["image"]),
            ("Created", format_age(int(status["created_at"]))),
            *([("Started", format_age(started))] if started else []),
            *([("Finished", format_age(finished)), ("Exit Code", str(status["exit_code"]))] if finished else []),
            *([("Reason", f"{status['reason']} {status['message']}".strip())] if status["reason"] else []),
            ("Log", status["log_path"] or "-"),
            *format_labels(status),
        ]
    )


def _print_pod(status: Json) -> None:
    network = status.get("network", {})
    addresses = [network.get("ip", ""), *(more["ip"] for more in network.get("additional_ips", ()))]
    print_facts(
        [
            ("ID", status["id"]),
            ("Name", status["metadata"]["name"]),
            ("UID", status["metadata"]["uid"]),
            ("Namespace", status["metadata"]["namespace"]),
            ("Attempt", str(status["metadata"]["attempt"])),
            ("Status", pod_verbs.format_state(status["state"])),
            ("Created", to_rfc3339(int(status["created_at"]))),
            ("IP Addresses", ", ".join(filter(None, addresses)) or "-"),
            ("Runtime", status["runtime_handler"] or "(default)"),
            *format_labels(status),
        ]
    )


def _print_image(status: Json) -> None:
    print_facts(
        [
            ("ID", status["id"]),
            *(("Tag", tag) for tag in status["repo_tags"]),
            *(("Digest", digest) for digest in status["repo_digests"]),
            ("Size", format_size(int(status["size"]))),
            ("User", status["username"] or status.get("uid", {}).get("value", "-")),
            ("Pinned", str(status["pinned"]).lower()),
        ]
    )
