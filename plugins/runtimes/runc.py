"""The driver ``runc``: the OCI's own runtime, 1.1 or later."""

import contextlib
from pathlib import Path
from typing import ClassVar

from crinoid.core.api.errors import ResourceExhausted, Unsupported
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.files import unfinished_write
from crinoid.core.api.values.runtime import RuntimeFeatures
from crinoid.plugins.runtimes.binaries.bundle import Processes
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.binaries.versions import host_has_user_namespaces, numbers, read_features, read_version
from crinoid.plugins.runtimes.oci.oci_runtime import OciRuntime
from crinoid.plugins.runtimes.oci.seccomp import Filter
from crinoid.plugins.runtimes.oci.starting import start_writer
from crinoid.plugins.runtimes.oci.traits import SECCOMP_PROGRAM, BinaryTraits
from crinoid.plugins.runtimes.processes.installed_filter import read_filter

_OLDEST = (1, 1)  # the first with ``exec --cgroup`` and ``features``


class RuncOptions(OciOptions):
    """Options of the driver ``runc``."""


class RuncTraits(BinaryTraits):
    """The ways of runc."""

    package = "runc"
    answers_new_calls = True
    execs_can_be_joined = True
    keyring = "_ses.{}"

    async def learn(self, state: Path, processes: Processes, seccomp: Filter | None) -> None:
        """Keep the program that the container's first process has loaded by now, before it waits to be started."""
        if seccomp and self.options.shortcuts and self.options.joined_execs:
            with contextlib.suppress(OSError, ResourceExhausted):  # execs go by the binary, then
                if program := await read_filter(processes.pid, processes.pid_start):
                    kept = state / SECCOMP_PROGRAM
                    with unfinished_write(kept) as temporary:  # on a full disk no part of a filter is kept
                        rights.write_file(temporary, program)
                        temporary.rename(kept)

    async def start_by_fifo(self, fifo: Path, processes: Processes) -> bool:
        """See the base."""
        return await start_writer(fifo, processes, self.binary.name)

    async def features(self) -> RuntimeFeatures:
        """Ask runc for its version and features."""
        version = read_version("runc", await self.binary.ask("--version", self.probe_s))
        if numbers(version) < _OLDEST:
            raise Unsupported(f"runc {version} at {self.binary.path} is too old; 1.1 or later is needed")
        said = read_features(await self.binary.ask("features", self.probe_s))
        namespaces = said.get("linux", {}).get("namespaces") or ()
        return RuntimeFeatures(
            name="runc",
            version=version,
            recursive_read_only_mounts="rro" in (said.get("mountOptions") or ()),
            user_namespaces="user" in namespaces and host_has_user_namespaces(),
        )


class RuncRuntime(OciRuntime):
    """Containers by runc and conmon."""

    Config: ClassVar[type[OciOptions]] = RuncOptions
    Traits = RuncTraits
