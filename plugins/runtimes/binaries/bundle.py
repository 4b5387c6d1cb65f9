"""A container's directory: the spec that the runtime reads, and what the driver notes beside it.

The directory itself and the root file system belong to the kernel of crinoid; ``remove_files`` takes away only what
this role put there. Everything needed after a restart of the daemon is in these files.
"""

import contextlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.linux import rights
from crinoid.core.api.values.runtime import ExitStatus


@dataclass(frozen=True, slots=True)
class Processes:
    """What ``create`` noted: process ids with their start times (clock ticks since boot), as ids are used again.

    ``plain``: its start and its removal need nothing that only the binary knows of.
    """

    pid: int
    pid_start: int
    monitor_pid: int
    monitor_start: int
    log_path: str = ""
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files in one container's directory."""

    directory: Path

    @property
    def config(self) -> Path:
        """The OCI spec."""
        return self.directory / "config.json"

    @property
    def pid_file(self) -> Path:
        """Written by the runtime: the first process."""
        return self.directory / "pid"

    @property
    def runtime_log(self) -> Path:
        """What the runtime has to say while it creates the container."""
        return self.directory / "runtime.log"

    @property
    def restore_log(self) -> Path:
        """What criu says while it restores the container."""
        return self.directory / "restore.log"

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Write the spec, readable for root alone: its environment may hold secrets."""
        rights.make_directories(self.directory)
        rights.write_file(self.config, json.dumps(spec, separators=(",", ":")))

    def write_processes(self, processes: Processes) -> None:
        """Note what was started; whole or not at all."""
        _replace(self.directory / "processes.json", json.dumps(asdict(processes)))

    def read_processes(self) -> Processes | None:
        """Return what was started; ``None`` if ``create`` has not come to its end."""
        found = _read_json(self.directory / "processes.json")
        with contextlib.suppress(TypeError):
            return Processes(**found) if found is not None else None
        return None

    def write_unseen_exit(self, status: ExitStatus) -> None:
        """Note an end that no monitor lived to write down, so that every later answer is the same."""
        if self.directory.is_dir():
            _replace(self.directory / "unseen-exit.json", json.dumps(asdict(status)))

    def read_unseen_exit(self) -> ExitStatus | None:
        """Return the end that was noted by ``write_unseen_exit``."""
        found = _read_json(self.directory / "unseen-exit.json")
        return ExitStatus(**found) if found is not None else None

    def remove_files(self, monitors: Collection[str]) -> None:
        """Remove what this role and the runtime put into the directory, and ``monitors``: the names of the monitor's.

        Half-written files go, too. Idempotent.
        """
        ours = (*monitors, *_OURS)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            there = [path.name for path in self.directory.iterdir()]
            for name in (*(name for name in there if _is_half_written(name, ours)), *(n for n in ours if n in there)):
                (self.directory / name).unlink(missing_ok=True)


_OURS = (
    "pid",
    "runtime.log",
    "unseen-exit.json",
    "restore.log",
    "stats-restore",
    "descriptors.json",
    "config.json",
    "processes.json",  # last: as long as it is there, delete knows what to look for
)


def _is_half_written(name: str, ours: Collection[str]) -> bool:
    """What was to be renamed when its writer was killed: most append to the final name, runc makes ``.pid``."""
    return name == ".pid" or name.startswith(tuple(f"{each}." for each in ours))


def read_pid(path: Path) -> int:
    """Return the process id in a pid file; 0 when there is none."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all, also where the daemon is killed. Not synced: it does not outlive the kernel."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    rights.write_file(temporary, text)
    temporary.replace(path)
