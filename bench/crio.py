"""A CRI-O over directories of its own, as a peer to compare with; it leaves nothing behind."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import command_lines
from support.cri import Cri
from support.daemon import end_cgroups


@dataclass
class Crio:
    """One CRI-O: ``start``, then ``end``."""

    directory: Path
    cni_conf: Path
    registry: str
    program: Path
    name: str = field(default_factory=lambda: f"crt{secrets.token_hex(3)}")
    process: subprocess.Popen[bytes] | None = None

    @property
    def run(self) -> Path:
        """The state directory; short, since sockets lie below."""
        return Path("/run") / self.name

    @property
    def socket(self) -> Path:
        """The CRI socket."""
        return self.run / "crio.sock"

    @property
    def cgroup(self) -> str:
        """The parent to give to pods."""
        return f"/{self.name}"

    @property
    def log(self) -> Path:
        """All that CRI-O wrote."""
        return self.directory / "crio.log"

    def start(self) -> None:
        """Start, and wait until it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for directory in ("exits", "attach", "spaces", "hooks"):
            (self.run / directory).mkdir(parents=True)
        (self.directory / "crio.conf").write_text(self._config())
        registry = f'[[registry]]\nlocation = "{self.registry}"\ninsecure = true\n'
        (self.directory / "registries.conf").write_text(registry)
        self.launch()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"CRI-O ended:\n{self.log.read_text()[-3000:]}"
            client = Cri(self.socket)
            with contextlib.suppress(Exception):  # not yet
                if all(condition["status"] for condition in client.call("Status", timeout_s=2)["status"]["conditions"]):
                    return
            client.close()
            time.sleep(0.05)
        raise TimeoutError(f"CRI-O is not ready:\n{self.log.read_text()[-3000:]}")

    def launch(self) -> None:
        """Start, over what is there already, and don't wait."""
        command = [str(self.program), "--config", str(self.directory / "crio.conf"), "--config-dir", ""]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "CONTAINER_REGISTRIES_CONF": str(self.directory / "registries.conf")},
                start_new_session=True,
            )

    def end(self) -> None:
        """Remove all pods, stop, and undo whatever is left."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(Exception):  # what is not undone so is undone below
                self._remove_pods()
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)
        for pid, line in command_lines().items():
            if f"/run/{self.name}/" in line and pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        end_cgroups(self.name)
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed(points):
            if point.startswith((f"{self.run}/", f"{self.directory}/")):
                subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        shutil.rmtree(self.run, ignore_errors=True)

    def _remove_pods(self) -> None:
        client = Cri(self.socket)
        for pod in client.call("ListPodSandbox")["items"]:
            client.call("StopPodSandbox", pod_sandbox_id=pod["id"])
            client.call("RemovePodSandbox", pod_sandbox_id=pod["id"])
        client.close()

    def _config(self) -> str:
        runc = shutil.which("runc") or "/usr/sbin/runc"
        return f"""[crio]
root = "{self.directory}/root"
runroot = "{self.run}/storage"
storage_driver = "overlay"
log_dir = "{self.directory}/logs"
version_file = "{self.run}/version"
clean_shutdown_file = "{self.directory}/clean.shutdown"
[crio.api]
listen = "{self.socket}"
[crio.runtime]
conmon = "{shutil.which("conmon") or "/usr/bin/conmon"}"
pinns_path = "{self.program.with_name("pinns")}"
cgroup_manager = "cgroupfs"
container_exits_dir = "{self.run}/exits"
container_attach_socket_dir = "{self.run}/attach"
namespaces_dir = "{self.run}/spaces"
hooks_dir = ["{self.run}/hooks"]
default_runtime = "runc"
[crio.runtime.runtimes.runc]
runtime_path = "{runc}"
runtime_root = "{self.run}/runc"
monitor_cgroup = "pod"
[crio.image]
pause_image = "{self.registry}/bench/pause:1"
pause_command = "/bin/sleep 1000000"
short_name_mode = "disabled"
[crio.network]
network_dir = "{self.cni_conf}"
plugin_dirs = ["/usr/lib/cni"]
[crio.nri]
nri_listen = "{self.run}/nri.sock"
"""
