"""RestorePod: a new pod sandbox, and in it a container for each of a pod's checkpoint, that goes on when it is started.

Reached from ``cri``; asks ``pods`` and ``containers`` for what RunPodSandbox and CreateContainer do. Whatever fails
takes the sandbox along. Source: api.proto, RestorePod.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from crinoid.core.api.errors import CorruptContent, FailedPrecondition, InvalidArgument
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.pod import PodConfig
from crinoid.core.lifecycle.checkpoints import archive
from crinoid.core.lifecycle.checkpoints.capture import refuse_options
from crinoid.core.lifecycle.checkpoints.source import Checkpoint
from crinoid.core.lifecycle.containers.containers import ContainerService
from crinoid.core.lifecycle.pods.pods import PodService
from crinoid.core.slots.binding import Slots

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,255}")


class PodRestorer:
    """Makes pods from the directories that CheckpointPod has written."""

    def __init__(self, slots: Slots, pods: PodService, containers: ContainerService) -> None:
        self._slots = slots
        self._pods = pods
        self._containers = containers

    async def restore(
        self,
        checkpoint: str,
        config: PodConfig,
        handler: str,
        options: Mapping[str, str],
        containers: Sequence[ContainerConfig],
    ) -> tuple[str, Mapping[str, str]]:
        """Return the ids of the pod and, by name, of its containers, which are created and have run nothing.

        Raises InvalidArgument where the containers asked for are not those of the checkpoint, Unsupported for any
        option and where nothing can be restored here, CorruptContent, and what RunPodSandbox and CreateContainer
        raise; then nothing is left.
        """
        refuse_options(options)
        runtime = self._slots.runtime(handler)
        await self._containers.paths.require([checkpoint], "checkpoint_path")
        with on_behalf_of(f"the restore of {checkpoint}"):
            found = await asyncio.to_thread(read_pod, checkpoint, runtime.driver)
        wanted = _by_name(containers)
        if wanted.keys() != found.keys():
            raise InvalidArgument(
                f"container_configs are for {', '.join(sorted(wanted))}; the checkpoint has {', '.join(sorted(found))}"
            )
        await runtime.check_checkpoint()
        pod_id = await self._pods.run(config, handler)
        try:
            made = {
                name: await self._containers.create(
                    pod_id, one, config, Checkpoint(str(found[name]), found[name], exact=True)
                )
                for name, one in wanted.items()
            }
        except BaseException:
            await asyncio.shield(self._pods.remove(pod_id))
            raise
        return pod_id, made


def read_pod(checkpoint: str, driver: str) -> Mapping[str, Path]:
    """Return the archive of each container in a pod's checkpoint. Raises FailedPrecondition for another runtime's."""
    directory = Path(checkpoint)
    if not directory.is_absolute() or not _is_directory(directory):
        raise InvalidArgument(f"checkpoint_path {checkpoint!r} is not the absolute path of a directory")
    options = archive.read_dump(archive.PodOptions, directory / archive.POD_OPTIONS, checkpoint)
    if options.version != archive.POD_VERSION:
        raise FailedPrecondition(f"checkpoint {checkpoint} is of version {options.version}; known is 1")
    dump = archive.read_dump(archive.PodDump, directory / archive.POD_DUMP, checkpoint)
    if dump.driver != driver:
        raise FailedPrecondition(f"checkpoint {checkpoint} was made by driver {dump.driver!r}, not {driver!r}")
    return {name: _archive_in(directory, base) for name, base in options.containers.items()}


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long
        return False


def _archive_in(directory: Path, base: str) -> Path:
    path = directory / f"{base}.tar"
    if not _FILE_NAME.fullmatch(base) or path.is_symlink() or not path.is_file():
        raise CorruptContent(f"checkpoint {directory} names archive {base!r}, which it does not hold")
    return path


def _by_name(containers: Sequence[ContainerConfig]) -> Mapping[str, ContainerConfig]:
    if not containers:
        raise InvalidArgument("container_configs is empty")
    found = {one.metadata.name: one for one in containers}
    if len(found) != len(containers):
        raise InvalidArgument("container_configs has two containers of one name")
    return found
