"""The files of conmon in a container's directory, beside those that the runtime and the driver have there."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from crinoid.plugins.runtimes.binaries.bundle import Bundle


@dataclass(frozen=True, slots=True)
class ConmonFiles(Bundle):
    """A bundle as conmon sees it."""

    NAMES: ClassVar[tuple[str, ...]] = ("attach", "winsz", "ctl", "oom", "exit", "conmon.pid", "conmon.log")

    @property
    def monitor_pid_file(self) -> Path:
        """Written by conmon: itself."""
        return self.directory / "conmon.pid"

    @property
    def monitor_log(self) -> Path:
        """What conmon says before it detaches."""
        return self.directory / "conmon.log"

    @property
    def control(self) -> Path:
        """conmon's fifo for commands."""
        return self.directory / "ctl"

    @property
    def exit_file(self) -> Path:
        """Written by conmon when the container has ended: the exit code in decimal."""
        return self.directory / "exit"

    @property
    def oom_file(self) -> Path:
        """Made by conmon when the kernel killed in the container's cgroup for want of memory."""
        return self.directory / "oom"

    def read_exit(self) -> tuple[int, int] | None:
        """Return exit code and time of the end (ns since the epoch) as conmon noted them, if it did."""
        try:
            code = int(self.exit_file.read_text())
            return code & 0xFF, self.exit_file.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
