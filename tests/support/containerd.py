"""Debian's containerd over directories of its own, as a peer to compare with; it leaves nothing behind.

What it keeps outside of its directories is told by its pods: their network namespaces in ``/run/netns``, and their
shims' sockets in ``/run/containerd/s``, named by a hash of containerd's own address, the namespace and the pod's id.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from support.cri import Cri, Json
from support.daemon import cgroup_directories, end_cgroups
from support.patience import patient

START_S = patient(30)
_SHIM_SOCKETS = Path("/run/containerd/s")

# containerd 2 has more conditions, such as that nothing of the node is out of date.
_READY = ("RuntimeReady", "NetworkReady")


@dataclass
class Containerd:
    """One containerd: ``start``, then ``end``. ``prefix`` goes before the command, as ``unshare`` does.

    ``pause`` is the image of its sandboxes, ``registry`` a host that it may speak plain http with. ``program`` may be
    another containerd, with its shim beside it.
    """

    directory: Path
    cni_conf: Path
    registry: str
    pause: str
    prefix: tuple[str, ...] = ()
    name: str = field(default_factory=lambda: f"crt{secrets.token_hex(3)}")
    process: subprocess.Popen[bytes] | None = None
    program: str = "containerd"
    _empty: list[Path] = field(default_factory=list)
    _outside: set[Path] = field(default_factory=set)

    @property
    def run(self) -> Path:
        """The state directory; short, since sockets lie below."""
        return Path("/run") / self.name

    @property
    def socket(self) -> Path:
        """The CRI socket."""
        return self.run / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The parent to give to pods: containerd has no setting for one."""
        return f"/{self.name}"

    @property
    def log(self) -> Path:
        """All that containerd wrote."""
        return self.directory / "containerd.log"

    def start(self) -> None:
        """Start, and wait until it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.run.mkdir()
        self._empty = [path for path in (_SHIM_SOCKETS, _SHIM_SOCKETS.parent) if not path.exists()]
        (self.directory / "config.toml").write_text(self._config())
        self._allow_http()
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start, over what is there already, and don't wait."""
        with self.log.open("ab") as log:
            command = [*self.prefix, self.program, "--config", str(self.directory / "config.toml")]
            shims = [str(Path(self.program).parent)] if "/" in self.program else []
            search = ":".join([*shims, os.environ.get("PATH", os.defpath)])
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": search},
                start_new_session=True,
            )

    def end(self) -> None:
        """Remove all pods, stop, and undo whatever is left."""
        assert self.process is not None
        if self.process.poll() is None:
            with contextlib.suppress(Exception):  # what is not undone so is undone below
                self._remove_pods()
            self.process.terminate()
            self.process.wait(30)
        self._kill_rest()
        self._unmount()
        end_cgroups(self.name)
        shutil.rmtree(self.run, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Name what is left of it on the host."""
        found = [f"process {pid}" for pid in self._processes()]
        found += [f"mount {point}" for point in self._mounts()]
        found += [f"cgroup {path}" for path in cgroup_directories(self.name)]
        return found + [f"file {path}" for path in (self.run, *self._outside) if path.exists()]

    def tail(self) -> str:
        """Return the last of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    def _config(self) -> str:
        cri = '[plugins."io.containerd.grpc.v1.cri"'
        runtimes = "\n".join(
            f'{cri}.containerd.runtimes.{name}]\nruntime_type = "io.containerd.runc.v2"\n'
            f'{cri}.containerd.runtimes.{name}.options]\nBinaryName = "{name}"\nRoot = "{self.run}/{name}"'
            for name in ("runc", "crun")
        )
        return f"""version = 2
root = {json.dumps(str(self.directory / "root"))}
state = {json.dumps(str(self.run / "state"))}
[grpc]
address = {json.dumps(str(self.socket))}
{cri}]
sandbox_image = {json.dumps(self.pause)}
restrict_oom_score_adj = true
{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = {json.dumps(str(self.cni_conf))}
{cri}.registry]
config_path = {json.dumps(str(self.directory / "certs.d"))}
{cri}.containerd]
default_runtime_name = "runc"
{runtimes}
[plugins."io.containerd.internal.v1.opt"]
path = {json.dumps(str(self.directory / "opt"))}
[plugins."io.containerd.nri.v1.nri"]
socket_path = {json.dumps(str(self.run / "nri.sock"))}
"""

    def _allow_http(self) -> None:
        """Let it speak plain http with the registry."""
        hosts = self.directory / "certs.d" / self.registry / "hosts.toml"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text(f'server = "http://{self.registry}"\n')

    def wait(self) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"containerd ended:\n{self.tail()}"
            client = Cri(self.socket)
            try:
                conditions = client.call("Status", timeout_s=2)["status"]["conditions"]
                conditions = [condition for condition in conditions if condition["type"] in _READY]
            except Exception:  # noqa: BLE001  # not yet
                conditions = []
            finally:
                client.close()
            if conditions and all(condition["status"] for condition in conditions):
                return
            time.sleep(0.05)
        raise AssertionError(f"containerd is not ready after {START_S} s:\n{self.tail()}")

    def _remove_pods(self) -> None:
        client = Cri(self.socket)
        for pod in client.call("ListPodSandbox")["items"]:
            answer = client.call("PodSandboxStatus", pod_sandbox_id=pod["id"], verbose=True)
            self._outside |= self._files_of(pod["id"], json.loads(answer["info"]["info"]))
            client.call("StopPodSandbox", pod_sandbox_id=pod["id"])
            client.call("RemovePodSandbox", pod_sandbox_id=pod["id"])
        client.close()

    def _files_of(self, pod: str, info: Json) -> set[Path]:
        """Return a pod's files outside of our directories."""
        spaces = (info.get("runtimeSpec") or {}).get("linux", {}).get("namespaces", [])
        pins = {Path(space["path"]) for space in spaces if space["type"] == "network" and space.get("path")}
        name = hashlib.sha256(f"{self.socket}/k8s.io/{pod}".encode()).hexdigest()
        return {*(pin for pin in pins if pin.parent.name == "netns"), _SHIM_SOCKETS / name}

    def _kill_rest(self) -> None:
        """Kill the shims, by their ids."""
        for _ in range(50):
            left = self._processes()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                return
            time.sleep(0.05)

    def _unmount(self) -> None:
        for point in [*self._mounts(), *map(str, self._outside)]:
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        for path in self._outside:
            path.unlink(missing_ok=True)
        for path in self._empty:
            with contextlib.suppress(OSError):
                path.rmdir()

    def _mounts(self) -> list[str]:
        """Return the mount points below its directories, the last made first."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in reversed(points) if point.startswith((f"{self.run}/", f"{self.directory}/"))]

    def _processes(self) -> list[int]:
        """Return the shims: the socket is among their arguments."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.socket).encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found
