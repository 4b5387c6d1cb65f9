"""The verbs of containers: ps, create, start, stop, kill, wait, rm, update, checkpoint."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from crinoid.core.api.errors import FailedPrecondition, NotFound
from crinoid.core.cli.ctl.completion import CONTAINER, POD
from crinoid.core.cli.ctl.directory import Directory, find_pod, read_directory
from crinoid.core.cli.ctl.figures import format_age, shorten_id
from crinoid.core.cli.ctl.flags import flag
from crinoid.core.cli.ctl.json_documents import print_answer
from crinoid.core.cli.ctl.listing import Listing, format_labels, listing, print_ids
from crinoid.core.cli.ctl.pull import Pulling, provide_image, pulling
from crinoid.core.cli.ctl.queries import ContainerQuery, container_query, list_containers
from crinoid.core.cli.ctl.session import Json, Session, for_each, in_session, tell
from crinoid.core.cli.tables import print_facts, print_table

_POLL_S = 0.1
_TITLES = ("CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE", "EXIT")


@click.command()
@container_query
@listing
@flag("--resolve-image-path", "-r", help="Images by name, not by id.")
@in_session
async def ps(session: Session, query: ContainerQuery, listing: Listing, resolve_image_path: bool) -> None:
    """List containers: those that run, or all with -a."""
    found, directory = await list_containers(session, query)
    if listing.is_document():
        print_answer({"containers": found}, listing.output)
    elif listing.quiet:
        print_ids(found)
    elif listing.verbose:
        for container in found:
            _print_facts(container, directory)
    else:
        images = await _name_images(session, found) if resolve_image_path else {}
        ends = await asyncio.gather(*(_describe_end(session, one) for one in found))
        rows = (_make_row(one, directory, images, listing.no_trunc) for one in found)
        print_table(_TITLES, [(*row, end) for row, end in zip(rows, ends, strict=True)])


@click.command()
@click.argument("pod", type=POD)
@click.argument("container_config", type=click.Path(path_type=Path))
@click.argument("pod_config", type=click.Path(path_type=Path))
@flag("--no-pull", help="Leave images alone; so it is without any flag.")
@flag("--with-pull", help="Pull the image first.")
@pulling
@in_session
async def create(
    session: Session, pod: str, container_config: Path, pod_config: Path, pulling: Pulling, **policy: bool
) -> None:
    """Create a container in POD from a container's and its pod's configuration, as JSON or YAML of the CRI."""
    from crinoid.core.cli.ctl.manifests import read_container_config, read_pod_config  # with YAML

    config, sandbox = read_container_config(container_config), read_pod_config(pod_config)
    if policy["with_pull"] and not policy["no_pull"]:
        await provide_image(session, config["image"]["image"], "always", pulling)
    request = {"pod_sandbox_id": (await find_pod(session, pod))["id"], "config": config, "sandbox_config": sandbox}
    click.echo((await session.act("CreateContainer", request, pulling.cancel_timeout))["container_id"])


@click.command()
@click.argument("containers", type=CONTAINER, nargs=-1, required=True)
@in_session
async def start(session: Session, containers: tuple[str, ...]) -> int:
    """Start containers that were created."""
    return await _act_on_each(session, containers, lambda container: _act(session, "StartContainer", container))


@click.command()
@click.argument("containers", type=CONTAINER, nargs=-1)
@click.option("--timeout", "-t", default=0, metavar="SECONDS", show_default=True, help="Grace before it is killed.")
@flag("--all", "-a", help="All that run.")
@in_session
async def stop(session: Session, containers: tuple[str, ...], timeout: int, **flags: bool) -> int:
    """Stop containers."""
    chosen = containers or await _list_ids(session, flags["all"], state="running")
    return await _act_on_each(
        session, chosen, lambda container: _act(session, "StopContainer", container, timeout=timeout)
    )


@click.command()
@click.argument("containers", type=CONTAINER, nargs=-1, required=True)
@click.option("--signal", "-s", default="KILL", show_default=True, help="KILL; the CRI can send no other.")
@in_session
async def kill(session: Session, containers: tuple[str, ...], signal: str) -> int:
    """Kill containers: the same as stop without a grace."""
    if signal.upper().removeprefix("SIG") not in ("KILL", "9"):
        raise click.UsageError(
            f"the CRI can't send {signal}: `stop --timeout SECONDS` sends the container's own stop signal, and "
            "`exec CONTAINER kill -s SIGNAL 1` any, where the image has a kill"
        )
    return await _act_on_each(
        session, containers, lambda container: _act(session, "StopContainer", container, timeout=0)
    )


@click.command()
@click.argument("containers", type=CONTAINER, nargs=-1, required=True)
@in_session
async def wait(session: Session, containers: tuple[str, ...]) -> int:
    """Wait for the end of containers, and print the exit code of each."""
    return await _act_on_each(session, containers, lambda container: _wait(session, container))


@click.command()
@click.argument("containers", type=CONTAINER, nargs=-1)
@flag("--all", "-a", help="All containers.")
@flag("--force", "-f", help="Those that run too.")
@flag("--keep-logs", "-k", help="Leave their logs.")
@in_session
async def rm(session: Session, containers: tuple[str, ...], force: bool, keep_logs: bool, **flags: bool) -> int:
    """Remove containers, and their logs."""
    chosen = containers or await _list_ids(session, flags["all"], all=True)
    return await _act_on_each(session, chosen, lambda container: _remove(session, container, force, keep_logs))


@click.command()
@click.argument("containers", type=CONTAINER, nargs=-1, required=True)
@click.option("--cpu-period", default=0, metavar="MICROSECONDS", help="Length of a CFS period.")
@click.option("--cpu-quota", default=0, metavar="MICROSECONDS", help="CPU time in each period.")
@click.option("--cpu-share", "cpu_shares", default=0, help="Weight against others.")
@click.option("--memory", "memory_limit_in_bytes", default=0, metavar="BYTES", help="Limit of memory.")
@click.option("--cpuset-cpus", default="", metavar="CPUS", help="CPUs to use, such as 0-3.")
@click.option("--cpuset-mems", default="", metavar="NODES", help="Memory nodes to use.")
@click.option("--oom-score-adj", default=0, help="The OOM killer's score.")
@in_session
async def update(session: Session, containers: tuple[str, ...], **resources: int | str) -> int:
    """Change the resources of containers while they run."""
    return await _act_on_each(
        session, containers, lambda container: _act(session, "UpdateContainerResources", container, linux=resources)
    )


@click.command()
@click.argument("containers", type=CONTAINER, nargs=-1, required=True)
@click.option("--export", "-e", "location", required=True, metavar="FILE", help="Archive to write, on the node.")
@in_session
async def checkpoint(session: Session, containers: tuple[str, ...], location: str) -> int:
    """Freeze containers into an archive."""
    return await _act_on_each(
        session, containers, lambda container: _act(session, "CheckpointContainer", container, location=location)
    )


VERBS = (ps, create, start, stop, kill, wait, rm, update, checkpoint)


async def _list_ids(session: Session, wanted: bool, **query: object) -> tuple[str, ...]:
    """Return the ids for ``--all``; no argument and no ``--all`` is a wrong use."""
    if not wanted:
        raise click.UsageError("name at least one container, or use --all")
    found, _ = await list_containers(session, ContainerQuery(**query))  # type: ignore[arg-type]  # by the callers above
    if not found:
        tell("there is no such container")
    return tuple(container["id"] for container in found)


async def _act_on_each(session: Session, references: tuple[str, ...], act: Callable[[Json], Awaitable[object]]) -> int:
    directory = await read_directory(session)

    async def act_on(reference: str) -> None:
        await act(directory.find_container(reference))

    return await for_each(references, act_on)


async def _act(session: Session, rpc: str, container: Json, **fields: object) -> None:
    """Call an RPC on one container and print its id."""
    grace = fields.get("timeout", 0)
    assert isinstance(grace, int)
    await session.act(rpc, {"container_id": container["id"], **fields}, grace)
    click.echo(container["id"])


async def _wait(session: Session, container: Json) -> None:
    click.echo(str(await wait_for_end(session, container["id"])))


async def _remove(session: Session, container: Json, force: bool, keep_logs: bool) -> None:
    request = {"container_id": container["id"]}
    status = (await session.ask("ContainerStatus", request))["status"]
    if status["state"] == "CONTAINER_RUNNING":
        if not force:
            raise FailedPrecondition(f"container {container['id']} runs; stop it first, or use --force")
        await session.act("StopContainer", {**request, "timeout": 0})
    await session.act("RemoveContainer", request)
    click.echo(container["id"])
    if not keep_logs and status["log_path"]:
        _remove_logs(Path(status["log_path"]))


def _remove_logs(path: Path) -> None:
    """Remove a log and its rotations; the endpoint may have done so, or be on another host."""
    for file in (path, *path.parent.glob(f"{path.name}.*")):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            tell(f"the log {file} is left: {error.strerror}")


async def _describe_end(session: Session, container: Json) -> str:
    """Return exit code and reason of a container that has ended; the list does not tell them."""
    if container["state"] != "CONTAINER_EXITED":
        return "-"
    try:
        status = (await session.ask("ContainerStatus", {"container_id": container["id"]}))["status"]
    except NotFound:
        return "removed"
    return f"{status['exit_code']} {status['reason']}".rstrip()


async def _name_images(session: Session, containers: list[Json]) -> dict[str, str]:
    """Return the first tag of each image that a container names."""
    names = {}
    for image in {container["image"]["image"] for container in containers}:
        answer = await session.ask("ImageStatus", {"image": {"image": image}})
        names[image] = next(iter(answer.get("image", {}).get("repo_tags", ())), image)
    return names


def _make_row(container: Json, directory: Directory, images: dict[str, str], full: bool) -> tuple[str, ...]:
    image = container["image"]["image"]
    pod, namespace = directory.owner(container)
    return (
        shorten_id(container["id"], full),
        images.get(image) or (shorten_id(image, full) if image.startswith("sha256:") else image),
        format_age(int(container["created_at"])),
        format_state(container["state"]),
        container["metadata"]["name"],
        str(container["metadata"]["attempt"]),
        shorten_id(container["pod_sandbox_id"], full),
        pod,
        namespace,
    )


async def wait_for_end(session: Session, container_id: str) -> int:
    """Return a container's exit code once it has ended."""
    while True:
        status = (await session.ask("ContainerStatus", {"container_id": container_id}))["status"]
        if status["state"] == "CONTAINER_EXITED":
            return int(status["exit_code"])
        await asyncio.sleep(_POLL_S)


def format_state(state: str) -> str:
    """Name a container's state: ``CONTAINER_RUNNING`` is ``Running``."""
    return state.removeprefix("CONTAINER_").capitalize()


def _print_facts(container: Json, directory: Directory) -> None:
    pod, namespace = directory.owner(container)
    print_facts(
        [
            ("ID", container["id"]),
            ("PodID", container["pod_sandbox_id"]),
            ("Pod", pod),
            ("Namespace", namespace),
            ("Name", container["metadata"]["name"]),
            ("Attempt", str(container["metadata"]["attempt"])),
            ("State", format_state(container["state"])),
            ("Image", container["image"]["image"]),
            ("Created", format_age(int(container["created_at"]))),
            *format_labels(container),
        ]
    )
    click.echo()
