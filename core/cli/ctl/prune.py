"""The verb prune: removes what has ended. What a kubelet made is its own: it removes that itself, and `kubectl logs
--previous` reads from it."""

import sys

import click

from crinoid.core.cli.ctl.directory import Directory, read_directory
from crinoid.core.cli.ctl.figures import shorten_id
from crinoid.core.cli.ctl.flags import flag
from crinoid.core.cli.ctl.images import list_unused
from crinoid.core.cli.ctl.session import Json, Session, for_each, in_session, tell

_KUBELETS = "io.kubernetes.pod.uid"
"""The label that a kubelet gives all its pods and containers."""


@click.command()
@flag("--images", "-i", help="Images that no container uses, too; those that are pinned stay.")
@flag("--all", "-a", help="What a kubelet made, too.")
@flag("--force", "-f", help="Without asking.")
@in_session
async def prune(session: Session, images: bool, force: bool, **flags: bool) -> int:
    """Remove pods that are stopped and containers that have ended."""
    pods, containers = find_ended(await read_directory(session), with_kubelets=flags["all"])
    lines = [f"pod {shorten_id(one['id'])} {_name(one)} with its containers" for one in pods]
    lines += [f"container {shorten_id(one['id'])} {one['metadata']['name']}" for one in containers]
    if images:
        lines.append("images that no container uses then")
    if not lines:
        tell("nothing has ended")
        return 0
    for line in lines:
        click.echo(line, err=True)
    if not force:
        if not sys.stdin.isatty():
            raise click.UsageError("this removes what is listed above: give --force where there is nobody to ask")
        click.confirm("Remove these?", abort=True, err=True)

    async def remove_pod(pod: Json) -> None:
        await session.act("RemovePodSandbox", {"pod_sandbox_id": pod["id"]})
        click.echo(pod["id"])

    async def remove_container(container: Json) -> None:
        await session.act("RemoveContainer", {"container_id": container["id"]})
        click.echo(container["id"])

    async def remove_image(image: str) -> None:
        await session.act("RemoveImage", {"image": {"image": image}})
        click.echo(image)

    code = await for_each(pods, remove_pod) | await for_each(containers, remove_container)
    return code | (await for_each(await list_unused(session), remove_image) if images else 0)


VERBS = (prune,)


def find_ended(directory: Directory, *, with_kubelets: bool) -> tuple[list[Json], list[Json]]:
    """Return pods that are not ready, and containers that have ended in others."""

    def is_ours(one: Json) -> bool:
        return with_kubelets or _KUBELETS not in one["labels"]

    pods = [one for one in directory.pods.values() if one["state"] == "SANDBOX_NOTREADY" and is_ours(one)]
    gone = {one["id"] for one in pods}
    containers = [
        one
        for one in directory.containers.values()
        if one["state"] == "CONTAINER_EXITED" and one["pod_sandbox_id"] not in gone and is_ours(one)
    ]
    return pods, containers


def _name(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
