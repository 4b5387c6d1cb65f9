"""User namespaces: the rules for pods that ask for one, and what follows from their maps.

``pods`` and ``builder`` ask here before anything is made. The kubelet gives a pod one range of the host's ids; in the
pod it begins with 0. Files of images and volumes keep their owners on disk and show with the pod's ids (``idmaps``), so
no runtime, snapshotter or volume plugin has to know. Sources: api.proto, UserNamespace, IDMapping, NamespaceOption,
RuntimeHandlerFeatures; user_namespaces(7).
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from crinoid.core.api.errors import CrinoidError, InvalidArgument, Unsupported
from crinoid.core.api.linux.idmaps import IdMaps, to_host, try_in
from crinoid.core.api.values.container import ContainerConfig, MountPropagation, VolumeMount
from crinoid.core.api.values.pod import IdMapping, NamespaceMode, PodConfig, UserNamespace
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.records import PodRecord, ProcessUser

USER = "user"
_IDS = (1 << 32) - 1  # 4294967295 is -1, which is nobody's id
_FIELD = "userns_options"
_HOSTS = UserNamespace()
_GROUPS = "net/ipv4/ping_group_range"


def wanted_by(config: PodConfig) -> UserNamespace | None:
    """Return the user namespace that the pod is to have to itself; ``None``: it runs in the host's."""
    user = config.security.namespaces.user
    return user if user is not None and user.mode is not NamespaceMode.NODE else None


def check_pod(config: PodConfig) -> None:
    """Raise InvalidArgument for a user namespace that can't be: it needs one range for each kind, from id 0 on."""
    options = config.security.namespaces
    asked = options.user or _HOSTS
    if asked.mode is NamespaceMode.NODE:
        if asked.uids or asked.gids:
            raise InvalidArgument(f"{_FIELD}: mode NODE has no mappings, and {len(asked.uids + asked.gids)} are given")
        return
    if asked.mode is not NamespaceMode.POD:
        raise InvalidArgument(f"{_FIELD}.mode is {asked.mode.name}; a user namespace is the pod's or the node's")
    for kind, mappings in (("uids", asked.uids), ("gids", asked.gids)):
        field = f"{_FIELD}.{kind}"
        if len(mappings) != 1:
            raise InvalidArgument(f"{field}: {len(mappings)} mappings are given; a pod has exactly one")
        _check_mapping(field, mappings[0])
        if mappings[0].container_id != 0:
            raise InvalidArgument(f"{field}: the mapping begins with {mappings[0].container_id}; id 0 must be mapped")
    for kind, mode in (("pid", options.pid), ("ipc", options.ipc)):
        if mode is NamespaceMode.NODE:
            raise InvalidArgument(f"{_FIELD}: a pod with a user namespace can't use the host's {kind} namespace")


def check_container(pod: PodConfig, config: ContainerConfig) -> None:
    """Raise InvalidArgument for a container that does not fit its pod's user namespace, or maps a volume by half."""
    name, options = f"container {config.metadata.name!r}", config.security.namespaces
    if options.user is not None and options.user != (pod.security.namespaces.user or _HOSTS):
        raise InvalidArgument(f"{name}: its {_FIELD} differ from those of its pod")
    for volume in config.mounts:
        where = f"mount {volume.container_path}"
        if bool(volume.uid_mappings) != bool(volume.gid_mappings):
            raise InvalidArgument(f"{where}: uidMappings and gidMappings go together")
        for field, mappings in (("uidMappings", volume.uid_mappings), ("gidMappings", volume.gid_mappings)):
            for mapping in mappings:
                _check_mapping(f"{where}: {field}", mapping)
    if wanted_by(pod) is None:
        return
    for kind, mode in (("pid", options.pid), ("ipc", options.ipc)):
        if mode is NamespaceMode.NODE:
            raise InvalidArgument(f"{name}: in a pod with a user namespace it can't use the host's {kind} namespace")
    for volume in config.mounts:
        if volume.propagation is MountPropagation.BIDIRECTIONAL:
            raise InvalidArgument(
                f"{name}: mount {volume.container_path}: PROPAGATION_BIDIRECTIONAL has no effect in a user namespace"
            )


def check_user(pod: PodConfig, user: ProcessUser) -> None:
    """Raise InvalidArgument for a user or group of a container that the pod's maps lack."""
    if (wanted := wanted_by(pod)) is None:
        return
    groups = [("group", number, wanted.gids) for number in (user.gid, *user.supplemental_groups)]
    for kind, number, mappings in [("user", user.uid, wanted.uids), *groups]:
        if to_host(number, mappings) is None:
            raise InvalidArgument(
                f"{kind} {number} is not mapped: the pod's user namespace has the ids 0 to {mappings[0].length - 1}"
            )


def host_sysctls(user: UserNamespace | None, sysctls: Mapping[str, str]) -> dict[str, str]:
    """Return sysctls by path as the host writes them: where one holds group ids, they are the pod's until here."""
    changed = dict(sysctls)
    if user is not None and _GROUPS in sysctls:
        groups = []
        for number in sysctls[_GROUPS].split():
            found = to_host(int(number), user.gids) if number.isdecimal() else None
            if found is None:
                raise InvalidArgument(f"sysctl {_GROUPS}: group {number!r} is not in the pod's user namespace")
            groups.append(str(found))
        changed[_GROUPS] = " ".join(groups)
    return changed


def root_group_of(pod: PodConfig) -> int | None:
    """Return the host's group that the root of the pod's user namespace is in; ``None``: the pod has none of its own.

    It has no power over files of the host's root, and must pass through directories of ours (``rights.let_in``).
    """
    wanted = wanted_by(pod)
    return None if wanted is None else wanted.gids[0].host_id


def maps_of(pod: PodRecord) -> IdMaps | None:
    """Return how the owners of files are mapped for a pod's containers; ``None``: they stay as they are."""
    wanted = wanted_by(pod.config)
    return None if wanted is None else IdMaps(wanted.uids, wanted.gids, pod.namespaces[USER])


def maps_of_volume(volume: VolumeMount, pod: IdMaps | None) -> IdMaps | None:
    """Return how the owners in a volume are mapped, ``None`` for not at all; by the pod's namespace if it has the same
    maps."""
    if not volume.uid_mappings:
        return None
    maps = (volume.uid_mappings, volume.gid_mappings)
    return pod if pod is not None and maps == (pod.uids, pod.gids) else IdMaps(*maps)


def oci_mappings(pod: PodConfig) -> dict[str, Any]:
    """Return the maps as the runtime-spec's ``linux`` has them; runc 1.1 wants them beside the namespace's path."""
    if (wanted := wanted_by(pod)) is None:
        return {}
    return {"uidMappings": _oci(wanted.uids), "gidMappings": _oci(wanted.gids)}


class UserNamespaces:
    """Tells which runtime handlers can run pods with a user namespace: runtime, kernel and file system must."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._runtimes: dict[str, bool] = {}
        self._snapshotters: dict[str, str] = {}
        self._trying = asyncio.Lock()

    async def require(self, handler: str) -> None:
        """Raise Unsupported, saying what is missing, when pods of this handler can't have a user namespace."""
        runtime, snapshotter = self._slots.runtime(handler), self._slots.snapshotter_of(handler)
        if not self._runtimes.get(runtime.name):
            self._runtimes[runtime.name] = (await runtime.probe()).user_namespaces
        if (problem := await self._problem(runtime, snapshotter)) is not None:
            raise Unsupported(f"{_FIELD}: handler {runtime.name!r} has no user namespaces: {problem}")

    async def supported(self, runtime: RuntimeSlot, has_them: bool) -> bool:
        """Tell the same for a handler whose runtime was just asked."""
        self._runtimes[runtime.name] = has_them
        return await self._problem(runtime, self._slots.snapshotter_of(runtime.name)) is None

    async def _problem(self, runtime: RuntimeSlot, snapshotter: SnapshotterSlot) -> str | None:
        if not self._runtimes[runtime.name]:
            return f"its runtime or the kernel lacks them (runtime driver {runtime.driver!r})"
        async with self._trying:
            if snapshotter.name not in self._snapshotters:
                self._snapshotters[snapshotter.name] = await _try(snapshotter)
        return self._snapshotters[snapshotter.name] or None


async def _try(snapshotter: SnapshotterSlot) -> str:
    """Try out id-mapped mounts where the layers lie; return what stands against it, which no restart changes."""
    directory = snapshotter.features().root or snapshotter.state_dir
    try:
        await asyncio.to_thread(try_in, directory)
    except (CrinoidError, OSError) as error:
        return str(error)
    return ""


def _check_mapping(field: str, one: IdMapping) -> None:
    if one.length < 1:
        raise InvalidArgument(f"{field}: a mapping of {one.length} ids maps nothing")
    if max(one.host_id, one.container_id) + one.length > _IDS:
        raise InvalidArgument(
            f"{field}: {one.length} ids from host id {one.host_id} on go beyond the last id, {_IDS - 1}"
        )


def _oci(mappings: Sequence[IdMapping]) -> list[dict[str, int]]:
    return [{"containerID": one.container_id, "hostID": one.host_id, "size": one.length} for one in mappings]
