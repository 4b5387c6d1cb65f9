"""The verb run: a pod with its containers, from our short form, from flags, or from crictl's two configurations."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from crinoid.core.api.errors import CrinoidError, InvalidArgument
from crinoid.core.api.linux.files import remove_tree
from crinoid.core.cli.ctl.completion import IMAGE
from crinoid.core.cli.ctl.containers import wait_for_end
from crinoid.core.cli.ctl.flags import PAIR, flag, gather, without_dashes
from crinoid.core.cli.ctl.logs import Selection, show_log
from crinoid.core.cli.ctl.manifests import read_container_config, read_pod_config
from crinoid.core.cli.ctl.podform import (
    PodForm,
    find_own_logs,
    make_form,
    read_form,
    to_container_config,
    to_pod_config,
)
from crinoid.core.cli.ctl.pull import Policy, Pulling, provide_image, pulling
from crinoid.core.cli.ctl.session import Json, Session, in_session, tell
from crinoid.core.cli.ctl.streams import stream
from crinoid.core.config.origins import Origins
from crinoid.core.cri.streaming.client.dialing import Dialing


@dataclass(frozen=True, slots=True)
class Shape:
    """A pod of one container as the flags tell it."""

    image: str = ""
    name: str = ""
    namespace: str = "default"
    network: str = "pod"
    port: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    volume: tuple[str, ...] = ()
    label: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = ""
    memory: str = "0"
    cpus: float = 0.0
    read_only: bool = False
    privileged: bool = False
    interactive: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True)
class Manner:
    """How to run it, and what to do then."""

    runtime: str = ""
    pull: Policy | None = None
    no_pull: bool = False
    with_pull: bool = False
    wait: bool = False
    follow: bool = False
    rm: bool = False
    detach: bool = False

    def policy(self, default: Policy) -> Policy:
        """Return when images are pulled; crictl's two flags count as well."""
        if self.no_pull and self.with_pull:
            raise InvalidArgument("--no-pull and --with-pull exclude each other; give one of them")
        return self.pull or ("never" if self.no_pull else "always" if self.with_pull else default)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is asked of the endpoint: the pod, its containers, and directories to make for their logs."""

    pod: Json
    containers: tuple[Json, ...]
    runtime: str = ""
    log_directories: tuple[Path, ...] = ()


_shape = gather(
    "shape",
    Shape,
    click.option("--image", default="", help="Image of a pod with one container; arguments are its command."),
    click.option("--name", default="", help="Name of pod and container; made of the image's by default."),
    click.option("--namespace", default="default", show_default=True, help="Namespace of the pod."),
    click.option("--network", type=click.Choice(("pod", "host")), default="pod", show_default=True, help="Network."),
    click.option("--port", "-p", multiple=True, metavar="HOST:CONTAINER[/PROTOCOL]", help="Port of the host."),
    click.option("--env", "-e", type=PAIR, multiple=True, metavar="KEY=VALUE", help="Environment variable."),
    click.option("--volume", "-v", multiple=True, metavar="HOST:CONTAINER[:ro]", help="Directory or file of the host."),
    click.option("--label", type=PAIR, multiple=True, metavar="KEY=VALUE", help="Label of the pod."),
    click.option("--user", default="", metavar="USER[:GROUP]", help="User by name or number, group by number."),
    click.option("--workdir", "-w", default="", metavar="PATH", help="Working directory."),
    click.option("--memory", default="0", metavar="BYTES", help="Limit of memory, such as 64Mi."),
    click.option("--cpus", default=0.0, help="How many CPUs it may use, such as 0.5."),
    flag("--read-only", help="With a read-only root."),
    flag("--privileged", help="With all that root may."),
    flag("--interactive", "-i", help="With standard input, and its output here until its end."),
    flag("--tty", "-t", help="On a terminal; with -i, ctrl-p ctrl-q detaches."),
)
_manner = gather(
    "manner",
    Manner,
    click.option("--runtime", "-r", default="", metavar="HANDLER", help="Runtime handler, if not the default one."),
    click.option(
        "--pull",
        type=click.Choice(("never", "missing", "always")),
        help="When to pull images; by default missing ones, and always with crictl's configurations.",
    ),
    flag("--no-pull", help="The same as --pull=never."),
    flag("--with-pull", help="The same as --pull=always."),
    flag("--wait", help="Wait for the containers' end, and exit with the first exit code that is not 0."),
    flag("--follow", "-f", help="Show their output meanwhile; implies --wait."),
    flag("--rm", help="Remove the pod and its logs at the end; implies --wait, and --follow with an image."),
    flag("--detach", "-d", help="Don't wait for its end; so it is without any flag."),
)


class _Run(click.Command):
    """Leaves all after an image to its command, options too; after a file they are run's own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse up to the first argument, and the whole where that is a file."""
        ctx.allow_interspersed_args = False
        rest = super().parse_args(ctx, list(args))
        if ctx.params["arguments"] and _is_file(ctx.params["arguments"][0]) and not ctx.params["image"]:
            ctx.params.clear()
            ctx.allow_interspersed_args = True
            rest = super().parse_args(ctx, list(args))
        return rest


@click.command(cls=_Run)
@click.argument(
    "arguments", type=IMAGE, nargs=-1, metavar="[IMAGE [COMMAND [ARG]...] | POD.yaml | CONTAINER.json POD.json]"
)
@_shape
@_manner
@pulling
@in_session
async def run(session: Session, arguments: tuple[str, ...], shape: Shape, manner: Manner, pulling: Pulling) -> int:
    """Run a pod, and print its id and those of its containers.

    \b
    crinoid ctl run busybox sh -c 'echo hi'     a pod of one container
    crinoid ctl run -it --rm busybox            with a terminal here
    crinoid ctl run web.yaml                    a pod in the short form (see docs/ctl.md), - for stdin
    crinoid ctl run container.json pod.json     crictl's two configurations; prints the container's id
    """
    waits = manner.wait or manner.follow or manner.rm
    is_live = shape.interactive or shape.tty
    if manner.detach and (waits or is_live):
        raise click.UsageError("--detach can't be had with flags that wait for the end")
    if is_live and manner.follow:
        raise click.UsageError("--interactive and --tty show the output as it is; leave out --follow")
    if not shape.image and arguments and not _is_file(arguments[0]):
        shape, arguments = replace(shape, image=arguments[0]), without_dashes(arguments[1:])
    if manner.rm and shape.image and not is_live:
        manner = replace(manner, follow=True)  # its logs go with it: what it says is shown now or never
    plan, policy = _make_plan(arguments, shape, manner)
    async with AsyncExitStack() as undo:
        pod_id, ids = await _make(session, plan, policy, pulling)
        undo.push_async_callback(_remove_logs, plan)
        undo.push_async_callback(_remove, session, pod_id)
        if is_live:
            code = await _converse(session, ids[0], shape)
            if code is None or not manner.rm:
                undo.pop_all()  # who detaches wants it to run on
            return code or 0
        for container_id in ids:
            await session.act("StartContainer", {"container_id": container_id})
        if not manner.rm:
            undo.pop_all()
        is_crictl = not shape.image and len(arguments) == 2
        for one in ids if is_crictl else (pod_id, *ids):
            click.echo(one, err=manner.follow)
        return await _wait(session, ids, manner.follow) if waits else 0


VERBS = (run,)


def _make_plan(arguments: Sequence[str], shape: Shape, manner: Manner) -> tuple[Plan, Policy]:
    if shape.image:
        return _plan_form(_make_form(arguments, shape, manner)), manner.policy("missing")
    if shape != Shape():
        raise click.UsageError("flags that describe a container need an image, not a file")
    if len(arguments) == 1:
        form = read_form(Path(arguments[0]))
        return _plan_form(form, manner.runtime), manner.policy("missing")
    if len(arguments) == 2:
        container, pod = (Path(argument) for argument in arguments)
        plan = Plan(read_pod_config(pod), (read_container_config(container),), manner.runtime)
        return plan, manner.policy("always")
    raise click.UsageError("name an image, a pod's file, or a container's and a pod's configuration")


def _plan_form(form: PodForm, runtime: str = "") -> Plan:
    pod = to_pod_config(form)
    containers = tuple(to_container_config(form, container) for container in form.containers)
    directories = tuple(Path(pod["log_directory"], container.name) for container in form.containers)
    return Plan(pod, containers, runtime or form.runtime, directories)


def _make_form(command: Sequence[str], shape: Shape, manner: Manner) -> PodForm:
    name = shape.name or shape.image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    container: dict[str, Any] = {  # Any: what a YAML file may hold
        "name": name,
        "image": shape.image,
        "env": dict(shape.env),
        "user": shape.user,
        "workdir": shape.workdir,
        "mounts": [_split_volume(volume) for volume in shape.volume],
        "memory": shape.memory,
        "cpus": shape.cpus,
        "readonly": shape.read_only,
        "privileged": shape.privileged,
        "stdin": shape.interactive,
        "tty": shape.tty,
    } | ({"command": list(command)} if command else {})
    pod = {
        "name": name,
        "namespace": shape.namespace,
        "network": shape.network,
        "ports": list(shape.port),
        "labels": dict(shape.label),
        "runtime": manner.runtime,
        "containers": [container],
    }
    return make_form(pod, Origins(), "the flags")


def _split_volume(volume: str) -> dict[str, object]:
    host, colon, rest = volume.partition(":")
    container, _, options = rest.partition(":")
    if not colon or not host or not container or options not in ("", "ro", "rw"):
        raise InvalidArgument(f"--volume {volume!r}: must be HOST:CONTAINER[:ro]")
    return {"host": host, "container": container, "readonly": options == "ro"}


def _is_file(argument: str) -> bool:
    """Tell whether an argument of run means a file rather than an image."""
    return argument == "-" or argument.endswith((".yaml", ".yml", ".json")) or Path(argument).is_file()


async def _make(session: Session, plan: Plan, policy: Policy, pulling: Pulling) -> tuple[str, list[str]]:
    """Pull and make all, so that it can be started; when any of it fails nothing is left but images."""
    for image in dict.fromkeys(container["image"]["image"] for container in plan.containers):
        await provide_image(session, image, policy, pulling, plan.runtime)
    async with AsyncExitStack() as steps:
        steps.push_async_callback(_remove_logs, plan)
        for directory in plan.log_directories:
            directory.mkdir(parents=True, exist_ok=True)
        request = {"config": plan.pod, "runtime_handler": plan.runtime}
        pod_id = (await session.act("RunPodSandbox", request, pulling.cancel_timeout))["pod_sandbox_id"]
        steps.push_async_callback(_remove, session, pod_id)
        ids = []
        for config in plan.containers:
            request = {"pod_sandbox_id": pod_id, "config": config, "sandbox_config": plan.pod}
            ids.append((await session.act("CreateContainer", request, pulling.cancel_timeout))["container_id"])
        steps.pop_all()
    return pod_id, ids


async def _converse(session: Session, container_id: str, shape: Shape) -> int | None:
    """Start a container with its streams here; return its exit code, ``None`` once the user has detached.

    Attached before it is started, so that nothing of its output is missed.
    """
    request = {"container_id": container_id, "stdin": shape.interactive, "tty": shape.tty}

    async def start() -> None:
        await session.act("StartContainer", {"container_id": container_id})

    if await stream(session, "Attach", request, Dialing(), begin=start) is None:
        return None
    return await wait_for_end(session, container_id)


async def _wait(session: Session, ids: Sequence[str], follow: bool) -> int:
    """Wait until all containers have ended; return the first exit code that is not 0."""
    codes = await asyncio.gather(*(_wait_for_one(session, container_id, follow) for container_id in ids))
    return next((code for code in codes if code), 0)


async def _wait_for_one(session: Session, container_id: str, follow: bool) -> int:
    status = (await session.ask("ContainerStatus", {"container_id": container_id}))["status"]
    if follow and status["log_path"]:
        await show_log(session, container_id, Path(status["log_path"]), Selection(), follow=True)
    return await wait_for_end(session, container_id)


async def _remove(session: Session, pod_id: str) -> None:
    """Stop and remove a pod; a failure is told, as it must not hide why the pod goes."""
    try:
        await session.act("StopPodSandbox", {"pod_sandbox_id": pod_id})
        await session.act("RemovePodSandbox", {"pod_sandbox_id": pod_id})
    except CrinoidError as error:
        tell(f"pod {pod_id} is left: {error.message}")


async def _remove_logs(plan: Plan) -> None:
    """Remove the pod's logs, unless the user chose the directory, which may hold more."""
    directory = find_own_logs(plan.pod["metadata"], plan.pod.get("annotations") or {})
    if directory is not None:
        await asyncio.to_thread(remove_tree, directory)
