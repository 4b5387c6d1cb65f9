"""Volumes on their way into a container whose ids are mapped: each is mounted below the bundle first, with its owners.

Called by ``builder`` before the specification is built, for pods with a user namespace and for volumes that bring maps
of their own. A runtime then only binds what it finds and needs no id-mapped mounts itself (runc has them since 1.2),
and the root of the pod, who may not pass through the kubelet's directories, reaches the volume all the same.
"""

import asyncio
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from crinoid.core.api.errors import DeadlineExceeded, InvalidArgument
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.idmaps import IdMaps
from crinoid.core.api.values.container import VolumeMount
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.lifecycle.resources.user_namespaces import maps_of_volume
from crinoid.core.lifecycle.spec.mounts import find_source

DIRECTORY = "volumes"


async def stage_volumes(
    owner: str,
    volumes: Iterable[VolumeMount],
    bundle: Path,
    maps: IdMaps | None,
    resources: Resources,
    path_timeout_s: float,
) -> tuple[VolumeMount, ...]:
    """Mount below ``bundle`` what needs it, and return the volumes with their new host paths and without maps.

    ``maps`` are the pod's. The ledger's ``owner`` is the container. Raises Unsupported for a file system without
    id-mapped mounts, InvalidArgument for maps that the kernel does not take, DeadlineExceeded for a volume that takes
    longer than ``path_timeout_s``, and what ``find_source`` raises.
    """
    staged = []
    for number, volume in enumerate(volumes):
        own = maps_of_volume(volume, maps)
        if maps is not None or own is not None:
            try:
                async with asyncio.timeout(path_timeout_s):
                    volume = await _stage(owner, volume, bundle / DIRECTORY / str(number), own, resources)
            except TimeoutError:
                late = f"{volume.host_path} has not answered for {path_timeout_s:g} s"
                raise DeadlineExceeded(f"mount {volume.container_path}: {late}") from None
        staged.append(volume)
    return tuple(staged)


async def _stage(
    owner: str, volume: VolumeMount, target: Path, maps: IdMaps | None, resources: Resources
) -> VolumeMount:
    """What is undone later must not take along what is mounted below the source: so the copy is never its peer."""
    source = await asyncio.to_thread(find_source, volume)

    def make_like_source() -> None:  # a bind mount needs a directory for a directory, and a file for anything else
        rights.make_directories(target.parent, rights.PASSAGE)
        if source.is_dir():
            rights.make_directory(target, rights.PASSAGE)
        else:
            rights.write_file(target, b"")

    await asyncio.to_thread(make_like_source)
    wanted = Mount("bind", str(source), ("rbind", volume.propagation.value))
    try:
        await resources.mount(owner, [wanted], target, maps)
    except OSError as error:
        raise InvalidArgument(f"mount {volume.container_path}: {source} can't be mounted: {error}") from error
    return dataclasses.replace(volume, host_path=str(target), uid_mappings=(), gid_mappings=())
