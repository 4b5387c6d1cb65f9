"""What the ``options`` table of a runtimes slot may hold, for both drivers."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from crinoid.core.api.config import AbsolutePath, DriverConfig

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Deadlines(DriverConfig):
    """How long each act may take, in seconds, before it is given up, undone and reported as DeadlineExceeded."""

    probe_s: Seconds = 10.0
    """Asking the binaries for their versions."""
    create_s: Seconds = 60.0
    """Making a container, up to the point where it waits before its entry point."""
    monitor_start_s: Seconds = 10.0
    """How much of that the monitor may take to open its log, before it runs the binary."""
    start_s: Seconds = 30.0
    """Letting a created container run."""
    kill_s: Seconds = 10.0
    """How long processes that were sent SIGKILL may take to vanish."""
    delete_s: Seconds = 30.0
    """The binary's own ``delete``; after it the driver cleans up by itself."""
    update_s: Seconds = 10.0
    """Changing a container's limits."""
    reopen_log_s: Seconds = 10.0
    """How long the monitor may take to open a rotated log anew."""
    pause_s: Seconds = 10.0
    """How long the processes of a container may take to stand still."""
    exec_start_s: Seconds = 60.0
    """Starting an exec process, where the request itself has no timeout."""
    exec_drain_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """How long an exec's output is read on after its process has ended, if a background process keeps it open; for a
    synchronous one no longer than the request's timeout."""


class MonitorOptions(DriverConfig):
    """How conmon is run, one for each container."""

    binary: str = "conmon"
    """Name (looked up on PATH) or absolute path of conmon."""
    sync_log: bool = False
    """Sync the log to disk when the container ends. On a busy disk that delays the end by seconds."""
    log_level: str = "warning"
    """What conmon says in its own log: ``error``, ``warning``, ``info``, ``debug`` or ``trace``."""


class OciOptions(DriverConfig):
    """Options that every driver for an OCI runtime binary has."""

    binary: str = ""
    """Name (looked up on PATH) or absolute path of the runtime's binary; empty for the driver's own name."""
    state_root: AbsolutePath | None = None
    """Directory of the binary's own state (its ``--root``); by default below the slot's run directory."""
    systemd_cgroup: bool = False
    """Without effect, and kept so that older configurations load: ``[pods] cgroup_driver`` decides alone."""
    seccomp_profile: AbsolutePath | None = None
    """Profile in Docker's or the OCI's JSON form that RuntimeDefault means; by default crinoid's own."""
    annotations: Mapping[str, str] = Field(default_factory=dict)
    """Annotations added to the spec of every container of this slot."""
    attach_buffer_bytes: Annotated[int, Field(ge=1 << 16)] = 16 << 20
    """How much output an attach session may be behind before it is ended, in bytes."""
    shortcuts: bool = True
    """Run the binary only where it is needed: from a copy in memory, and not at all to start or to remove a container
    that has neither hooks nor a cgroup of systemd's. ``false`` runs the file itself for each of these."""
    joined_execs: bool = True
    """Run a command of ExecSync (an exec probe) without the binary and its monitor where the container is plain: a
    process of crinoid's own joins it. ``false``, or ``shortcuts = false``, has the binary run each."""
    monitor: MonitorOptions = MonitorOptions()
    """How conmon is run."""
    deadlines: Deadlines = Deadlines()
    """How long each act may take."""
