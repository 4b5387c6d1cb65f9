"""What an argument of a verb means: a container or a pod by its id, the beginning of its id, or its name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from crinoid.core.api.errors import InvalidArgument, NotFound
from crinoid.core.cli.ctl.figures import shorten_id
from crinoid.core.cli.ctl.session import Json, Session

POD_NAME, POD_NAMESPACE = "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"
NOBODY = "unknown"


@dataclass(frozen=True, slots=True)
class Directory:
    """All containers and pods of an endpoint by id, as their lists show them."""

    containers: Mapping[str, Json]
    pods: Mapping[str, Json]

    def find_container(self, reference: str) -> Json:
        """Return the one container that is meant.

        ``POD/CONTAINER`` looks in one pod only; of several attempts in one pod, a name means the newest. Raises
        NotFound, or InvalidArgument for a reference that means several.
        """
        if reference in self.containers:
            return self.containers[reference]
        pod, slash, name = reference.rpartition("/")
        named = [one for one in self.containers.values() if one["metadata"]["name"] == name]
        if slash:
            pod_id = self.find_pod(pod)["id"]
            named = [one for one in named if one["pod_sandbox_id"] == pod_id]
        newest = _newest(named, lambda one: one["pod_sandbox_id"])
        found = newest or _begin_with(self.containers, reference)
        return _choose("container", reference, found, lambda one: "/".join(reversed(self.owner(one))))

    def find_pod(self, reference: str) -> Json:
        """Return the one pod that is meant; ``NAMESPACE/NAME`` and the newest attempt work as for containers."""
        if reference in self.pods:
            return self.pods[reference]
        namespace, slash, name = reference.rpartition("/")
        named = [
            one
            for one in self.pods.values()
            if one["metadata"]["name"] == name and (not slash or one["metadata"]["namespace"] == namespace)
        ]
        newest = _newest(named, lambda one: one["metadata"]["uid"])
        found = newest or _begin_with(self.pods, reference)
        return _choose("pod", reference, found, lambda one: one["metadata"]["namespace"])

    def owner(self, container: Json) -> tuple[str, str]:
        """Return name and namespace of a container's pod."""
        if (pod := self.pods.get(container["pod_sandbox_id"])) is not None:
            return pod["metadata"]["name"], pod["metadata"]["namespace"]
        return container["labels"].get(POD_NAME, NOBODY), container["labels"].get(POD_NAMESPACE, NOBODY)


async def read_directory(session: Session) -> Directory:
    """List everything."""
    containers = await session.ask("ListContainers")
    pods = await session.ask("ListPodSandbox")
    return Directory(
        {one["id"]: one for one in containers["containers"]},
        {one["id"]: one for one in pods["items"]},
    )


async def find_container(session: Session, reference: str) -> Json:
    """Find one container."""
    return (await read_directory(session)).find_container(reference)


async def find_pod(session: Session, reference: str) -> Json:
    """Find one pod."""
    return (await read_directory(session)).find_pod(reference)


def _newest(items: Iterable[Json], group: Callable[[Json], str]) -> list[Json]:
    """Of the items of each group keep the newest."""
    newest: dict[str, Json] = {}
    for item in sorted(items, key=lambda one: int(one["created_at"])):
        newest[group(item)] = item
    return list(newest.values())


def _begin_with(items: Mapping[str, Json], prefix: str) -> list[Json]:
    return [item for key, item in items.items() if prefix and key.startswith(prefix)]


def _choose(kind: str, reference: str, found: list[Json], place: Callable[[Json], str]) -> Json:
    """Return the only one; ``place`` is what tells several of one name apart: a namespace, and a pod in it."""
    if not found:
        listing = "ctl ps -a" if kind == "container" else "ctl pods"
        raise NotFound(f"there is no {kind} {reference!r}; `crinoid {listing}` lists those there are")
    if len(found) > 1:
        several = "".join(f"\n  {shorten_id(one['id'])}  {place(one)}/{one['metadata']['name']}" for one in found)
        raise InvalidArgument(f"{kind} {reference!r} could be any of these; name it by its id:{several}")
    return found[0]
