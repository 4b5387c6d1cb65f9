"""A runtime's binary and its command line: the part that runc and crun share, run to its end here."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import Unsupported
from crinoid.core.api.linux.process import Finished, run
from crinoid.plugins.runtimes.binaries.bundle import Bundle
from crinoid.plugins.runtimes.binaries.runtime_errors import as_error, runtime_message
from crinoid.plugins.runtimes.binaries.scratch import Scratch
from crinoid.plugins.runtimes.binaries.sealing import SealedPrograms

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Binary:
    """The binary ``name``, keeping its state in ``root``; ``scratch`` is for its logs.

    ``log_option`` is how it wants its log file named: ``{}`` stands for the path. ``gives_streams_away``: it makes its
    standard streams belong to the container's user, devices of the host too. ``execs_inherit_oom_score``: it gives
    ``oomScoreAdj`` to a container's first process only. ``copies`` are what conmon runs instead of the file.
    """

    name: str
    package: str
    root: Path
    scratch: Scratch
    log_option: str = "--log={}"
    gives_streams_away: bool = False
    execs_inherit_oom_score: bool = False
    copies: SealedPrograms | None = None

    @property
    def path(self) -> Path:
        """The binary itself. Raises Unsupported when there is none."""
        return find_program(self.name, self.package)

    @property
    def program(self) -> Path:
        """What to run as the binary in the daemon's lifetime. Raises Unsupported when there is none."""
        return self.path if self.copies is None else self.copies.path(self.path)

    def state_directory(self, container_id: str) -> Path:
        """Where the binary keeps a container's state."""
        return self.root / container_id

    def global_options(self, log: Path) -> tuple[str, ...]:
        """Return the options that go before the command."""
        return (f"--root={self.root}", self.log_option.format(log), "--log-format=json")

    def create_command(self, bundle: Bundle, container_id: str) -> tuple[str, ...]:
        """Return the OCI command line by which a monitor has a container made. Raises Unsupported as ``program``."""
        options = self.global_options(bundle.runtime_log)
        place = ("--bundle", str(bundle.directory), "--pid-file", str(bundle.pid_file))
        return (str(self.program), *options, "create", *place, container_id)

    async def run(self, arguments: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> Finished:
        """Run a command of the binary. Raises CommandFailed or InvalidArgument in the binary's own words."""
        with self.scratch.temporary_directory() as directory:
            log = directory / "log"
            command = (str(self.path), *self.global_options(log), *arguments)
            finished = await run(command, timeout_s=timeout_s, stdin=stdin, env=environment())
            if finished.exit_code != 0:
                raise as_error(command, finished.exit_code, runtime_message(log, finished.stderr))
            return finished

    async def ask(self, argument: str, timeout_s: float) -> str:
        """Return what the binary prints for one argument such as ``--version``; raises as ``run``."""
        return await ask(self.path, argument, timeout_s)


async def ask(program: Path, argument: str, timeout_s: float) -> str:
    """Return what a program prints for one argument. Raises CommandFailed when it fails."""
    command = (str(program), argument)
    finished = await run(command, timeout_s=timeout_s, env=environment())
    if finished.exit_code != 0:
        raise as_error(command, finished.exit_code, runtime_message(Path(os.devnull), finished.stderr))
    return finished.stdout.decode(errors="replace")


ProgramIdentity = tuple[str, int, int]


def identify(program: Path) -> ProgramIdentity:
    """Return what changes when a program is replaced: its path, inode and time of change."""
    found = program.stat()
    return str(program), found.st_ino, found.st_mtime_ns


def environment() -> dict[str, str]:
    """Return what runtimes and monitors see: little. runc would take NOTIFY_SOCKET into the container."""
    kept = {name: os.environ[name] for name in ("TZ", "LANG", "DBUS_SYSTEM_BUS_ADDRESS") if name in os.environ}
    return {"PATH": os.environ.get("PATH") or _PATH, **kept}


def find_program(name: str, package: str) -> Path:
    """Return the absolute path of a program. Raises Unsupported, telling what to install."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PATH}")
    if found is None:
        how = f"install it (apt-get install {package})" if package else "install it"
        hint = f"{how} or name another in the configuration"
        raise Unsupported(f"program {name} is not there or can't be executed; {hint}")
    return Path(found).absolute()
