"""The filters of lists: what ``ps``, ``pods``, ``inspect``, ``exec`` and others choose from, newest first."""

import re
from dataclasses import dataclass
from typing import Any

import click

from crinoid.core.api.errors import CrinoidError, InvalidArgument
from crinoid.core.cli.ctl.directory import Directory, read_directory
from crinoid.core.cli.ctl.flags import flag, gather, labels
from crinoid.core.cli.ctl.session import Json, Session

CONTAINER_STATES = ("created", "running", "exited", "unknown")
POD_STATES = ("ready", "notready")


@dataclass(frozen=True, slots=True)
class ContainerQuery:
    """Which containers; ``name`` and ``namespace`` are regular expressions. Without a state: those that run."""

    id: str = ""
    name: str = ""
    namespace: str = ""
    pod: str = ""
    image: str = ""
    state: str = ""
    label: tuple[tuple[str, str], ...] = ()
    all: bool = False
    latest: bool = False
    last: int = 0

    def is_any(self) -> bool:
        """Return whether anything was asked for."""
        return self != ContainerQuery()


@dataclass(frozen=True, slots=True)
class PodQuery:
    """Which pods; ``name`` and ``namespace`` are regular expressions."""

    id: str = ""
    name: str = ""
    namespace: str = ""
    state: str = ""
    label: tuple[tuple[str, str], ...] = ()
    latest: bool = False
    last: int = 0


def _newest_options(what: str) -> tuple[Any, ...]:
    return (
        flag("--latest", "-l", help=f"Only the newest {what}, in any state."),
        click.option("--last", "-n", default=0, metavar="N", help=f"Only the newest N {what}s, in any state."),
    )


container_query = gather(
    "query",
    ContainerQuery,
    click.option("--id", default="", help="Only the container with this id."),
    click.option("--name", default="", metavar="REGEX", help="Only with a name that matches."),
    click.option("--namespace", default="", metavar="REGEX", help="Only of pods with a namespace that matches."),
    click.option("--pod", "-p", default="", metavar="POD", help="Only of this pod."),
    click.option("--image", default="", help="Only of this image."),
    click.option("--state", "-s", default="", metavar="|".join(CONTAINER_STATES), help="Only in this state."),
    labels(),
    flag("--all", "-a", help="In any state, not only those that run."),
    *_newest_options("container"),
)

pod_query = gather(
    "query",
    PodQuery,
    click.option("--id", default="", help="Only the pod with this id."),
    click.option("--name", default="", metavar="REGEX", help="Only with a name that matches."),
    click.option("--namespace", default="", metavar="REGEX", help="Only with a namespace that matches."),
    click.option("--state", "-s", default="", metavar="|".join(POD_STATES), help="Only in this state."),
    labels(),
    *_newest_options("pod"),
)


async def list_containers(session: Session, query: ContainerQuery) -> tuple[list[Json], Directory]:
    """Return the containers that fit, newest first, and the directory that knows their pods."""
    directory = await read_directory(session)
    answer = await session.ask("ListContainers", {"filter": _to_container_filter(query, directory)})
    name, namespace = _compile(query.name), _compile(query.namespace)
    found = [
        one
        for one in answer["containers"]
        if name.search(one["metadata"]["name"]) and namespace.search(directory.owner(one)[1])
    ]
    if query.image:
        found = await _of_image(session, query.image, found)
    return _newest_first(found, query.latest, query.last), directory


async def list_pods(session: Session, query: PodQuery) -> list[Json]:
    """Return the pods that fit, newest first."""
    wanted: Json = {"id": query.id, "label_selector": dict(query.label)}
    if query.state:
        wanted["state"] = {"state": f"SANDBOX_{_check_state(query.state, POD_STATES)}"}
    answer = await session.ask("ListPodSandbox", {"filter": wanted})
    name, namespace = _compile(query.name), _compile(query.namespace)
    found = [
        one
        for one in answer["items"]
        if name.search(one["metadata"]["name"]) and namespace.search(one["metadata"]["namespace"])
    ]
    return _newest_first(found, query.latest, query.last)


def _to_container_filter(query: ContainerQuery, directory: Directory) -> Json:
    wanted: Json = {"id": query.id, "label_selector": dict(query.label)}
    if query.pod:
        wanted["pod_sandbox_id"] = _pod_id(directory, query.pod)
    state = _check_state(query.state or "running", CONTAINER_STATES)
    if not (query.latest or query.last or (query.all and not query.state)):
        wanted["state"] = {"state": f"CONTAINER_{state}"}
    return wanted


def _pod_id(directory: Directory, reference: str) -> str:
    """Return the id of a pod; what is no pod at all is left to the endpoint, whose list is then empty, as crictl's."""
    try:
        return str(directory.find_pod(reference)["id"])
    except InvalidArgument:
        raise
    except CrinoidError:
        return reference


def _check_state(state: str, known: tuple[str, ...]) -> str:
    if state.lower() not in known:
        raise InvalidArgument(f"--state {state!r}: must be one of {', '.join(known)}")
    return state.upper()


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InvalidArgument(f"{pattern!r} is no regular expression: {error}") from error


async def _of_image(session: Session, image: str, containers: list[Json]) -> list[Json]:
    """Keep the containers of an image, under whatever name each of them knows it."""
    wanted = await find_image_id(session, image)
    names = {one["image"]["image"] for one in containers}
    ids = {name: await find_image_id(session, name) for name in names}
    return [one for one in containers if wanted and wanted in (one["image_id"], ids[one["image"]["image"]])]


def image_spec(image: str, runtime: str = "") -> Json:
    """Return an ImageSpec; a runtime handler stands in it only where one is meant."""
    return {"image": image} | ({"runtime_handler": runtime} if runtime else {})


async def find_image_id(session: Session, image: str, runtime: str = "") -> str:
    """Return the id of an image for a runtime handler, empty where there is none."""
    answer = await session.ask("ImageStatus", {"image": image_spec(image, runtime)})
    return str(answer.get("image", {}).get("id", ""))


def _newest_first(items: list[Json], latest: bool, last: int) -> list[Json]:
    ordered = sorted(items, key=lambda item: int(item["created_at"]), reverse=True)
    return ordered[: 1 if latest else last or None]
