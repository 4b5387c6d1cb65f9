"""The init process of a pod whose containers share one PID namespace; no other pod has a process of its own.

catatonit, which does nothing but reap, is bound into an empty root. Without it on the host, the configured pause image
would have to be there: that image is run instead.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.lifecycle.images.service import ImageService

from crinoid.core.api.errors import FailedPrecondition
from crinoid.core.api.values.runtime import ContainerHandle, ContainerProcess, ContainerRequest
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.config.models import PodsConfig
from crinoid.core.lifecycle.cgrouppaths import container_cgroup
from crinoid.core.lifecycle.podfiles import PodFolder
from crinoid.core.lifecycle.resources import Resources
from crinoid.core.lifecycle.spec.build import InitInput, build_init_spec
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot

_INSIDE = "/init"
_READ_ONLY = ("bind", "ro", "nosuid", "nodev")


@dataclass(frozen=True, slots=True)
class InitProgram:
    """What runs as init: a command, and the binary to bind to ``/init`` (``None``: the root has it)."""

    command: tuple[str, ...]
    binary: Path | None


class PodInit:
    """Starts pods' init processes."""

    def __init__(self, config: PodsConfig, images: ImageService, resources: Resources, systemd: bool) -> None:
        """``systemd``: cgroups are made by systemd."""
        self._config = config
        self._images = images
        self._resources = resources
        self._systemd = systemd

    async def start(
        self, pod_id: str, folder: PodFolder, cgroup_parent: str, slots: tuple[RuntimeSlot, SnapshotterSlot]
    ) -> tuple[ContainerHandle, ContainerProcess]:
        """Make and start the init of a pod, and pin its PID namespace. Undone with the pod."""
        runtime, snapshotter = slots
        program = await self._prepare_root(pod_id, folder, snapshotter)
        cgroup = container_cgroup(cgroup_parent, pod_id, self._systemd)
        handle = ContainerHandle(pod_id, pod_id, folder.path / "bundle", cgroup)
        await self._resources.make_directory(pod_id, handle.bundle)
        binds = [] if program.binary is None else [_bind(program.binary)]
        spec = build_init_spec(
            InitInput(
                pod_id=pod_id,
                command=program.command,
                rootfs=folder.init_root,
                binds=tuple(binds),
                namespaces={kind: path for kind in ("network", "ipc", "uts") if (path := folder.pin(kind)).exists()},
                cgroup=cgroup,
            )
        )
        process = await self._resources.create_container(pod_id, runtime, ContainerRequest(handle=handle, spec=spec))
        await runtime.start(handle)
        await self._resources.pin_existing(pod_id, Path(f"/proc/{process.pid}/ns/pid"), folder.pin("pid"))
        return handle, process

    async def _prepare_root(self, pod_id: str, folder: PodFolder, snapshotter: SnapshotterSlot) -> InitProgram:
        await self._resources.make_directory(pod_id, folder.init_root)
        if (binary := self._binary()) is not None:
            for name in ("proc", "dev", "sys"):
                (folder.init_root / name).mkdir()
            (folder.init_root / _INSIDE[1:]).touch()
            return InitProgram((_INSIDE, "-P"), binary)
        image = self._images.find(self._config.pause_image)
        if image is None:
            raise FailedPrecondition(
                f"a pod with a shared PID namespace needs an init: install catatonit or pull {self._config.pause_image}"
            )
        parent = await self._images.ensure_unpacked(image, snapshotter.name)
        mounts: tuple[Mount, ...] = await self._resources.create_snapshot(pod_id, snapshotter, parent)
        await self._resources.mount(pod_id, mounts, folder.init_root)
        config = self._images.config_of(image).config
        return InitProgram((*config.entrypoint, *config.cmd), None)

    def _binary(self) -> Path | None:
        """Return the configured init binary, or catatonit's. Raises FailedPrecondition when the first is absent."""
        if not self._config.init_binary:
            found = shutil.which("catatonit")
            return None if found is None else Path(found)
        path = Path(self._config.init_binary)
        if not path.is_file():
            raise FailedPrecondition(f"pods.init_binary {path} is not there: install it or change the configuration")
        return path


def _bind(binary: Path) -> dict[str, object]:
    return {"destination": _INSIDE, "type": "bind", "source": str(binary), "options": list(_READ_ONLY)}
