"""What lies in a container's bundle: what is to run, which processes do, and how it ended.

``wasm.json`` is the driver's, written before the monitor starts; ``processes.json`` and ``exit.json`` are the
monitor's. The exit code has one writer that counts: the first. All of this blocks no longer than small files take.
"""

import errno
import json
import os
import select
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from crinoid.core.api.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, Unsupported
from crinoid.core.api.linux import rights
from crinoid.core.api.values.runtime import ContainerRequest, ExitStatus
from crinoid.plugins.runtimes.processes import pidfds

_CHILD_S, _MONITOR_S = 10.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the module is given: see ``module.py``, which reads it. ``preopens`` are host path, guest path, writable."""

    args: list[str]
    env: list[list[str]]
    cwd: str
    path: list[str]
    preopens: list[tuple[str, str, bool]]
    uid: int
    gid: int
    groups: list[int]
    oom_score_adj: int | None
    log: str
    stdin: bool
    fuel: int
    max_run_s: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Processes:
    """The monitor and its child, each by process id and start time."""

    monitor: tuple[int, int]
    child: tuple[int, int]


class Bundle:
    """The files of one container."""

    REOPEN_SIGNAL: ClassVar[int] = signal.SIGUSR1
    _NAMES: ClassVar[tuple[str, ...]] = ("wasm.json", "processes.json", "exit.json", "gate", "started")

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.plan_file, self.gate, self.started = directory / "wasm.json", directory / "gate", directory / "started"
        self._exit = directory / "exit.json"

    def begin(self, plan: Plan) -> None:
        """Write what is to run. Raises AlreadyExists where a container is."""
        try:
            fd = os.open(self.plan_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, rights.FILE)
        except FileExistsError:
            raise AlreadyExists(f"there is a container in {self.directory} already") from None
        with open(fd, "w") as file:
            json.dump(asdict(plan), file)
        os.mkfifo(self.gate, rights.FILE)

    def open_gate(self) -> bool:
        """Let the child go that waits at the FIFO; tell whether one waits there."""
        try:
            os.close(os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ENOENT):
                raise
            return False
        return True

    def processes(self) -> Processes | None:
        """Return what was started; ``None``: nothing that got as far as to wait for its start."""
        found = self._read(self.directory / "processes.json")
        return None if found is None else Processes(tuple(found["monitor"]), tuple(found["child"]))

    def exit_status(self) -> ExitStatus | None:
        """Return how it ended; ``None``: it has not, or nobody has written it down yet."""
        found = self._read(self._exit)
        return None if found is None else ExitStatus(**found)

    def end(self, code: int | None) -> ExitStatus:
        """Write down how it ended, unless that is known; ``None``: nobody saw it."""
        status = ExitStatus(255 if code is None else code, time.time_ns(), known=code is not None)
        own = self.directory / f"exit.json.{os.getpid()}.{time.monotonic_ns()}"
        own.write_text(json.dumps(asdict(status)))
        try:
            os.link(own, self._exit)  # fails where it is: the first one counts
        except FileExistsError:
            pass
        finally:
            own.unlink()
        return self.exit_status() or status

    def reopen_request(self, token: str) -> Path:
        """Ask the monitor to open the log anew."""
        path = self.directory / f"reopen-{token}"
        path.touch(rights.FILE)
        return path

    def end_processes(self) -> None:
        """Kill what was started, and wait for its end. Raises DeadlineExceeded for what hangs in the kernel."""
        if (processes := self.processes()) is None:
            return
        with pidfds.opened(*processes.child) as child, pidfds.opened(*processes.monitor) as monitor:
            if child is not None:
                pidfds.send(child, signal.SIGKILL)
                if not _ended(child, _CHILD_S):
                    raise DeadlineExceeded(f"process {pidfds.describe(processes.child[0])} can't be killed")
            if monitor is not None and not _ended(monitor, _MONITOR_S):
                pidfds.send(monitor, signal.SIGKILL)
                _ended(monitor, _MONITOR_S)

    def remove(self) -> None:
        """Remove the driver's files. Idempotent."""
        own = [self.directory / name for name in self._NAMES]
        for path in (*own, *self.directory.glob("reopen-*"), *self.directory.glob("*.json.*")):
            path.unlink(missing_ok=True)

    @staticmethod
    def _read(path: Path) -> Any:  # Any: JSON of our own
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None


def plan_of(request: ContainerRequest, fuel: int, max_run_s: float, max_memory_bytes: int) -> Plan:
    """Read what a module can use out of the OCI specification.

    Binds of directories are opened for the module at their place; of those of files, and of ``/proc``, ``/dev`` and
    their like, WASI knows nothing. Raises Unsupported for a terminal.
    """
    process, spec = request.spec["process"], request.spec
    if request.terminal or process.get("terminal"):
        raise Unsupported("a WebAssembly module has no terminal")
    if not process.get("args"):
        raise InvalidArgument("process.args is empty: there is nothing to run")
    preopens = [(spec["root"]["path"], "/", not spec["root"].get("readonly", False))]
    for mount in spec.get("mounts") or ():
        options = mount.get("options") or ()
        if (mount.get("type") == "bind" or {"bind", "rbind"} & set(options)) and Path(mount["source"]).is_dir():
            preopens.append((mount["source"], mount["destination"], "ro" not in options))
    env = [entry.partition("=") for entry in process.get("env") or ()]
    limit = ((spec.get("linux", {}).get("resources") or {}).get("memory") or {}).get("limit") or 0
    return Plan(
        args=list(process["args"]),
        env=[[name, value] for name, _, value in env],
        cwd=process.get("cwd") or "/",
        path=next((value for name, _, value in env if name == "PATH"), "/bin").split(":"),
        preopens=preopens,
        uid=process["user"]["uid"],
        gid=process["user"]["gid"],
        groups=list(process["user"].get("additionalGids") or ()),
        oom_score_adj=process.get("oomScoreAdj"),
        log=str(request.log_path or ""),
        stdin=request.stdin,
        fuel=fuel,
        max_run_s=max_run_s,
        memory_bytes=limit if limit > 0 else max_memory_bytes,
    )


def _ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
