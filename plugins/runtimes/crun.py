"""The driver ``crun``: a runtime in C, three times as fast as runc; it refuses hosts that mix cgroup v1 and v2."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from crinoid.core.api.errors import Unsupported
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import RuntimeFeatures
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.bundle import Processes
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.binaries.versions import host_has_user_namespaces, numbers, read_version
from crinoid.plugins.runtimes.oci.limits import split_lifted
from crinoid.plugins.runtimes.oci.oci_runtime import OciRuntime
from crinoid.plugins.runtimes.oci.seccomp import Filter
from crinoid.plugins.runtimes.oci.starting import start_reader
from crinoid.plugins.runtimes.oci.traits import BinaryTraits
from crinoid.plugins.runtimes.processes.cgroup_places import is_hybrid

_RECURSIVE_READ_ONLY_SINCE = (1, 4)
_PROGRAM = "run.oci.seccomp_bpf_data"
_SUBGROUP = "run.oci.systemd.subgroup"
_PROGRAMS_KEPT = 64
_HYBRID = (
    "crun can't work on this host: it has cgroup v1 with v2 beside it (hybrid, /sys/fs/cgroup/unified). "
    "Start the kernel with systemd.unified_cgroup_hierarchy=1, or use the driver runc, or start crinoid where that "
    "directory can't be seen: unshare -m --propagation unchanged sh -c 'mount --make-rprivate /sys/fs/cgroup && "
    "umount /sys/fs/cgroup/unified && mount -t tmpfs tmpfs /sys/fs/cgroup/unified && exec crinoid serve'; "
    "docs/troubleshooting.md#crun-on-a-hybrid-host"
)


class CrunOptions(OciOptions):
    """Options of the driver ``crun``."""


class CrunTraits(BinaryTraits):
    """The ways of crun."""

    package = "crun"
    log_option = "--log=file:{}"
    command_annotations = (*BinaryTraits.command_annotations, "run.oci.")
    gives_streams_away = True  # until 1.24
    execs_inherit_oom_score = True
    execs_can_be_joined = True
    exec_annotations = ("run.oci.handler", "module.wasm.image/variant", "run.oci.keep_original_groups")
    leaves_other_cgroups = True
    sets_scope_properties = False  # 1.8

    def __init__(self, binary: Binary, options: OciOptions) -> None:
        super().__init__(binary, options)
        self._programs: dict[str, str] = {}

    async def features(self) -> RuntimeFeatures:
        """Ask crun for its version; 1.8 has no ``features`` yet, so what it can is known by version."""
        version = read_version("crun", await self.binary.ask("--version", self.probe_s))
        if is_hybrid():
            raise Unsupported(_HYBRID)
        return RuntimeFeatures(
            name="crun",
            version=version,
            recursive_read_only_mounts=numbers(version) >= _RECURSIVE_READ_ONLY_SINCE,
            user_namespaces=host_has_user_namespaces(),
        )

    async def start_by_fifo(self, fifo: Path, processes: Processes) -> bool:
        """See the base."""
        return start_reader(fifo, processes)

    async def check_checkpoints(self) -> None:
        """Ask crun how it was built: Debian's has no criu in it."""
        if "+CRIU" not in await self.binary.ask("--version", self.probe_s):
            raise Unsupported(f"{self.binary.path} was built without criu (crun --version names no +CRIU): use runc")

    def added_annotations(self, seccomp: Filter | None) -> Mapping[str, str]:
        """Give crun the program that it made of the same filter before: compiling takes 10 ms.

        And have a container lie in its scope itself, as with every other runtime: crun would make a cgroup in that.
        """
        program = self._programs.get(json.dumps(seccomp)) if seccomp else None
        return {_SUBGROUP: ""} | ({_PROGRAM: program} if program else {})

    async def learn(self, state: Path, processes: Processes, seccomp: Filter | None) -> None:
        """Keep the program that crun has compiled. A filter that asks a listener may depend on the container."""
        if not seccomp or "listenerPath" in seccomp or len(self._programs) >= _PROGRAMS_KEPT:
            return
        if program := self.seccomp_program(state, seccomp):
            self._programs[json.dumps(seccomp)] = base64.b64encode(program).decode()

    def split_update(self, resources: LinuxResources) -> tuple[LinuxResources, LinuxResources]:
        """See the base. crun (1.8) can't lift every limit, with either version of cgroups."""
        return split_lifted(resources)


class CrunRuntime(OciRuntime):
    """Containers by crun and conmon."""

    Config: ClassVar[type[OciOptions]] = CrunOptions
    Traits = CrunTraits
