"""What one OCI runtime's binary does in its own way; everything else of the hooks is the same for all."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import RuntimeFeatures
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.bundle import Processes
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.oci.seccomp import Filter

SECCOMP_PROGRAM = "seccomp.bpf"
"""In a container's state directory: crun keeps the program there of its own, for runc ``learn`` does."""


class BinaryTraits(abc.ABC):
    """One binary of one slot, as its driver knows it."""

    package: ClassVar[str]
    """The binary's name on PATH, and Debian's package of it; empty where the configuration names the binary."""
    log_option: ClassVar[str] = "--log={}"
    command_annotations: ClassVar[tuple[str, ...]] = ("org.systemd.property.", "org.criu.")
    """Prefixes of annotations that make the binary do something: a request's are dropped, a slot's own are not."""
    gives_streams_away: ClassVar[bool] = False
    """Whether the binary makes its standard streams belong to the container's user, devices of the host too."""
    execs_inherit_oom_score: ClassVar[bool] = False
    """Whether the binary gives ``oomScoreAdj`` to a container's first process only, not to what is executed in it."""
    leaves_other_cgroups: ClassVar[bool] = False
    """Whether ``exec --cgroup=NAME`` takes the process out of the hierarchies of cgroup v1 that have no such cgroup."""
    sets_scope_properties: ClassVar[bool] = True
    """Whether the binary makes the limits of a container properties of its scope, so that systemd keeps them."""
    execs_in_cgroups: bool = True
    """Whether the binary has ``exec --cgroup``, so that all that came from an exec process can be found."""

    execs_can_be_joined: ClassVar[bool] = False
    """Whether a container is made by the kernel's own means alone, so that an exec can do without the binary."""
    exec_annotations: ClassVar[tuple[str, ...]] = ()
    """Annotations of a container that make the binary execute in it in a way of its own."""
    keyring: ClassVar[str] = "{}"
    """How the binary names the session keyring of a container with this id."""
    answers_new_calls: ClassVar[bool] = False
    """Whether the binary makes a seccomp filter answer ENOSYS to system calls newer than its libseccomp."""
    keeps_fifo: ClassVar[bool] = True
    """Whether a created container waits at ``exec.fifo`` in the binary's state directory, as with runc and crun."""

    def __init__(self, binary: Binary, options: OciOptions) -> None:
        self.binary = binary
        self.options = options
        self.probe_s = options.deadlines.probe_s

    @abc.abstractmethod
    async def features(self) -> RuntimeFeatures:
        """Tell what the binary can; raises Unsupported, or what asking it raised."""

    async def start_by_fifo(self, fifo: Path, processes: Processes) -> bool:
        """Let a container run that the binary made wait at this fifo; return whether it was done. Optional."""
        return False

    async def check_checkpoints(self) -> None:  # noqa: B027  # optional
        """Raise Unsupported where the binary was built without checkpoints. Optional."""

    def added_annotations(self, seccomp: Filter | None) -> Mapping[str, str]:
        """Return annotations that speed the binary up for this filter. Optional."""
        return {}

    async def learn(self, state: Path, processes: Processes, seccomp: Filter | None) -> None:  # noqa: B027  # optional
        """Keep what is to be had of a container just created, which waits to be started: what speeds up the next one,
        and the program of its seccomp filter in its state directory. Optional."""

    def seccomp_program(self, state: Path, seccomp: Filter) -> bytes | None:
        """Return what the binary made of a container's filter, in the kernel's form; ``None``: not kept. What its
        flags and its listener need, only the binary does."""
        if seccomp.get("flags") or "listenerPath" in seccomp:
            return None
        try:
            return (state / SECCOMP_PROGRAM).read_bytes()
        except OSError:
            return None

    def split_update(self, resources: LinuxResources) -> tuple[LinuxResources, LinuxResources]:
        """Return what the binary's ``update`` can write, and what goes to the cgroup beside it. Optional."""
        return resources, LinuxResources()
