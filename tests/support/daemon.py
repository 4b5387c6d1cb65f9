"""A real daemon in a process of its own, over directories of its own, and proof that it leaves nothing behind."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import programs
from support.cri import Cri, Json
from support.patience import patient

START_S = patient(30)
CGROUPS = Path("/sys/fs/cgroup")


@dataclass
class Daemon:
    """One daemon: ``start``, ``stop``, ``kill`` and again; ``cri`` is a client of its socket.

    ``config`` is TOML beyond the directories. ``prefix`` goes before the command, as ``unshare`` does. ``python`` is
    the interpreter, of the environment that the daemon is to run from, and ``module`` what it runs; ``environment`` is
    what it gets besides this process's.
    """

    directory: Path
    config: str = ""
    prefix: tuple[str, ...] = ()
    python: str = sys.executable
    name: str = field(default_factory=lambda: f"crt{secrets.token_hex(3)}")
    run_below: Path = Path("/run")
    module: str = "crinoid"
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    _cri: Cri | None = None

    @property
    def run(self) -> Path:
        """The run directory; short, since sockets lie below."""
        return self.run_below / self.name

    @property
    def root(self) -> Path:
        """The state directory."""
        return self.directory / "root"

    @property
    def socket(self) -> Path:
        """The CRI socket."""
        return self.run / "crinoid.sock"

    @property
    def log(self) -> Path:
        """All the daemon ever wrote."""
        return self.directory / "daemon.log"

    @property
    def cgroup(self) -> str:
        """The cgroup of pods that come without a parent."""
        return f"/{self.name}"

    @property
    def config_file(self) -> Path:
        """The configuration, written at every start."""
        return self.directory / "config.toml"

    @property
    def cri(self) -> Cri:
        """A client; it connects anew after a restart."""
        if self._cri is None:
            self._cri = Cri(self.socket)
        return self._cri

    def start(self, *, is_forked: bool = True) -> "Daemon":
        """Start, and wait until it serves; ``is_forked`` as of ``launch``."""
        self.launch(is_forked=is_forked)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.tail()}")
            if self.socket.exists():
                try:
                    self.cri.call("Version", timeout_s=2)
                except Exception:  # noqa: BLE001  # not yet
                    self.forget_client()
                else:
                    return self
            time.sleep(patient(0.02))
        raise AssertionError(f"the daemon does not serve after {START_S} s:\n{self.tail()}")

    def take_over(self, *, is_forked: bool = True) -> subprocess.Popen[bytes]:
        """Have another daemon take over, and wait until it serves; return the process that was the daemon before."""
        before = self.process
        assert before is not None
        self.launch("--takeover", is_forked=is_forked)
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while self.serving_pid() != self.process.pid:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.tail()}"
            assert time.monotonic() < deadline, f"it does not serve:\n{self.tail()}"
            time.sleep(patient(0.02))
        return before

    def serving_pid(self) -> int | None:
        """Ask for the process id of the daemon that serves now."""
        with socket.socket(socket.AF_UNIX) as asking, contextlib.suppress(OSError):
            asking.settimeout(patient(2))
            asking.connect(str(self.run / "takeover.sock"))
            asking.sendall(b"who\n")
            return int(asking.recv(20) or b"0")
        return None

    def launch(self, *arguments: str, is_forked: bool = True) -> None:
        """Start, and don't wait. ``is_forked``: where that makes no difference, by a fork (see ``programs``)."""
        options = self.write_config()
        command = [*self.prefix, self.python, "-m", self.module, "serve", *options, *arguments]
        with self.log.open("ab") as log:
            self.process = (programs.Popen if is_forked else subprocess.Popen)(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )

    def write_config(self) -> list[str]:
        """Write the configuration; return the options by which a daemon finds it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        head = f"root = {json.dumps(str(self.root))}\nrun = {json.dumps(str(self.run))}\n"
        tables = f"[server]\nsocket = {json.dumps(str(self.socket))}\n[pods]\ncgroup_root = {json.dumps(self.cgroup)}\n"
        self.config_file.write_text(f"{head}{tables}[log]\nlevel = 'debug'\nformat = 'console'\n")
        drop_ins = self.directory / "conf.d"
        drop_ins.mkdir(exist_ok=True)
        (drop_ins / "50-test.toml").write_text(self.config)
        return ["--config", str(self.config_file)]

    def stop(self) -> int:
        """Stop as a service manager does; pods run on."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """Kill without warning."""
        return self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start again."""
        self.stop()
        self.start()

    def tail(self) -> str:
        """Return the last of the daemon's log."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else "(no log)"

    def clean(self) -> None:
        """Remove all pods and images through the CRI, stop, and remove the directories."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        for pod in self.cri.call("ListPodSandbox")["items"]:
            self.cri.call("RemovePodSandbox", pod_sandbox_id=pod["id"])
        self.stop()

    def leftovers(self) -> list[str]:
        """Name what is left on the host of pods and containers: mounts, cgroups, processes, files, ledger entries."""
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        found = [f"mount {path}" for path in mounts if path.startswith((str(self.run), str(self.root)))]
        tops = (Path(directory) for directory, _, _ in os.walk(CGROUPS) if Path(directory).name == self.name)
        found += [_describe_cgroup(top) for top in tops]
        found += [f"process {pid}: {command}" for pid, command in _processes() if self.name in command]
        for kind in ("pods", "containers"):
            found += [f"file {path}" for path in (self.run / kind).glob("*")]
        if (self.root / "state.db").exists():
            found += [f"ledger {row}" for row in self.query("SELECT owner, kind, key FROM ledger")]
        return found

    def stalls(self, since: int = 0) -> list[str]:
        """Return what the watchdog wrote of an event loop that stood still, ``since`` the log had this size."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as log:
            log.seek(since)
            lines = log.read().decode(errors="replace").splitlines()
        return [line for line in lines if "the event loop has stood still" in line]

    def cgroup_processes(self, pod: str) -> list[int]:
        """Return the processes in the cgroup of a pod that came without a parent."""
        directories = [Path(directory) for directory, _, _ in os.walk(CGROUPS) if f"/{self.name}/{pod}" in directory]
        return sorted({int(pid) for path in directories for pid in (path / "cgroup.procs").read_text().split()})

    def change(self, statement: str) -> None:
        """Change the database of a daemon that is not running."""
        with contextlib.closing(sqlite3.connect(self.root / "state.db", isolation_level=None)) as connection:
            connection.execute(statement)

    def query(self, statement: str) -> list[Any]:
        """Ask a copy of the daemon's database, which is the daemon's alone while it lives.

        A copy that was taken while the log was carried over may be torn: then another is taken.
        """
        for _ in range(20):
            with tempfile.TemporaryDirectory() as directory:
                for name in ("state.db", "state.db-wal"):
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copy(self.root / name, directory)
                try:
                    with contextlib.closing(sqlite3.connect(Path(directory) / "state.db")) as connection:
                        return connection.execute(statement).fetchall()
                except sqlite3.DatabaseError as error:
                    torn = error
                    time.sleep(patient(0.05))
        raise torn

    def end(self) -> None:
        """Make sure that nothing runs on, whatever the test did; pytest removes the state directory."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for pid, command in _processes():
            if str(self.run) in command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        end_cgroups(self.name)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if (point := line.split()[4]).startswith((str(self.run), str(self.root))):
                subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(self.run, ignore_errors=True)

    def _end(self, number: int) -> int:
        assert self.process is not None
        self.forget_client()
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        return self.process.wait(patient(60))

    def forget_client(self) -> None:
        """Have the next call connect anew: a call that crosses the end of a daemon's process fails."""
        if self._cri is not None:
            self._cri.close()
            self._cri = None


def _describe_cgroup(top: Path) -> str:
    """Name a cgroup, those below it with their processes, and whether crinoid has marked it: why it was not removed."""
    inner = {str(path.parent.relative_to(top)): path.read_text().split() for path in top.rglob("cgroup.procs")}
    return f"cgroup {top} with the marks {os.listxattr(top)}, and processes in it and below: {inner}"


def cgroup_directories(name: str) -> list[Path]:
    """Return the directories that a cgroup has: one on cgroup v2, one a hierarchy on v1."""
    return [path for pattern in ("", "*/") for path in CGROUPS.glob(pattern + name.strip("/"))]


def end_cgroups(name: str) -> None:
    """Kill all processes of the top cgroups of this name, and remove those; mostly there is nothing left to do."""
    for _ in range(50):
        files = [path for top in cgroup_directories(name) for path in top.rglob("cgroup.procs")]
        left = {int(pid) for path in files for pid in path.read_text().split()}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.05)
    for top in cgroup_directories(name):
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _processes() -> list[tuple[int, str]]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if command and int(directory.name) != os.getpid():
            found.append((int(directory.name), command))
    return found


def pod_config(name: str = "pod", **more: Any) -> Json:
    """A pod as the kubelet asks for one: PID namespace per container."""
    config: Json = {
        "metadata": {"name": name, "namespace": "test", "uid": f"uid-{name}", "attempt": 0},
        "hostname": name,
        "linux": {"security_context": {"namespace_options": {"pid": "CONTAINER"}}},
    }
    return config | more


def container_config(name: str, image: str, *command: str, **more: Any) -> Json:
    """A container with a command."""
    config: Json = {
        "metadata": {"name": name, "attempt": 0},
        "image": {"image": image},
        "command": list(command),
        "log_path": f"{name}.log",
        "linux": {"security_context": {"namespace_options": {"pid": "CONTAINER"}}},
    }
    return config | more
