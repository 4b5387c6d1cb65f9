#!/usr/bin/env python3
"""Run a command where systemd is the first process, in namespaces of this machine, as root.

    python tests/vm/namespaces.py [--timeout 1800] -- COMMAND...

At this machine's own speed, for what needs neither cgroup v2 nor another kernel: process, mount, network, IPC, UTS and
cgroup namespaces are new, and so are /run, /dev, /var/log, /var/lib/kubelet and the upper layer of /etc. Processes and
cgroups are gone at the end, whatever COMMAND has left; files elsewhere are this machine's. It needs the programs of
systemd and dbus, and cgroup v1 or hybrid: of hybrid, v1 alone is seen. systemd has D-Bus, the journal and logind, and
no other unit but those that COMMAND starts. The exit status is COMMAND's; 124 means timed out.
"""

import argparse
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CGROUPS = Path("/sys/fs/cgroup")
_PLAIN = """basic.target dbus.service dbus.socket final.target local-fs.target network.target network-online.target
poweroff.target shutdown.target sockets.target systemd-journald-dev-log.socket systemd-journald.service
systemd-journald.socket umount.target user.slice"""
_WRITTEN = {
    "sysinit.target": """[Unit]
DefaultDependencies=no
Wants=systemd-journald.service
After=systemd-journald.service
Conflicts=shutdown.target
Before=shutdown.target
""",
    "systemd-logind.service": """[Unit]
Wants=user.slice dbus.socket
After=user.slice dbus.socket
[Service]
Type=dbus
BusName=org.freedesktop.login1
ExecStart=/lib/systemd/systemd-logind
RuntimeDirectory=systemd/sessions systemd/seats systemd/users systemd/inhibit systemd/shutdown
RuntimeDirectoryPreserve=yes
""",
}


def write_units(scratch: Path) -> None:
    """Write all units that there are, and the command: systemd looks nowhere else."""
    units = scratch / "units"
    units.mkdir()
    for name in _PLAIN.split():
        shutil.copy(f"/lib/systemd/system/{name}", units / name)
    for name, text in _WRITTEN.items():
        (units / name).write_text(text)
    (units / "dbus-org.freedesktop.login1.service").symlink_to("systemd-logind.service")
    text = (HERE / "vm.service").read_text()
    run = f"ExecStart=/bin/sh {scratch}/command\nStandardOutput=append:{scratch}/output\nStandardError=inherit"
    (units / "vm.service").write_text(text.replace("ExecStart=/run/vm/busybox sh /run/vm/init", run))


def write_command(scratch: Path, command: list[str]) -> None:
    """Write what the unit runs, with the caller's environment and where the caller stands."""
    kept = {name: value for name, value in os.environ.items() if name.isidentifier() and name != "NOTIFY_SOCKET"}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in kept.items())
    script = f"{exports}cd {shlex.quote(os.getcwd())}\n{shlex.join(command)}\necho $? >{scratch}/.status\n"
    (scratch / "command").write_text(f"{script}mv {scratch}/.status {scratch}/status\n")


@contextlib.contextmanager
def own_cgroups() -> Iterator[list[Path]]:
    """A cgroup in every hierarchy of version 1; what runs there is killed at the end."""
    name = f"systemd-{secrets.token_hex(4)}"
    found = [path / name for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
    found = [path for path in found if path.parent.name != "unified"]
    try:
        for path in found:
            path.mkdir()
            if path.parent.name == "cpuset":  # empty at first, and then nobody can join
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (path / file).write_text((path.parent / file).read_text())
        yield found
    finally:
        for path in found:
            remove(path)


def remove(cgroup: Path) -> None:
    """Kill all that runs in a cgroup and those below, and remove them."""
    deadline = time.monotonic() + 30
    for directory, _, _ in os.walk(cgroup, topdown=False):
        while pids := (Path(directory) / "cgroup.procs").read_text().split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if time.monotonic() > deadline:
                raise SystemExit(f"{directory}: processes {pids} do not end")
            time.sleep(0.05)
        Path(directory).rmdir()


def run(scratch: Path, cgroups: list[Path], timeout_s: float) -> int:
    """Start systemd and wait for the command's end; return its exit status."""
    join = "".join(f"echo $$ >{path}/cgroup.procs; " for path in cgroups)
    names = ",".join(path.parent.name for path in cgroups)
    inside = f"sh {HERE}/namespaces_init.sh {scratch} {names}"
    unshare = f"{join} exec unshare --cgroup --mount --pid --fork --uts --ipc --net --kill-child {inside}"
    os.mkfifo(scratch / "output")
    with (
        subprocess.Popen(["cat", scratch / "output"]) as relay,
        subprocess.Popen(["sh", "-c", unshare], stdin=subprocess.DEVNULL, stdout=sys.stderr) as systemd,
    ):
        deadline = time.monotonic() + timeout_s
        try:
            while time.monotonic() < deadline and systemd.poll() is None and not (scratch / "status").exists():
                time.sleep(0.5)
        finally:
            systemd.kill()
            systemd.wait()
            for path in cgroups:  # whoever holds the relay's pipe
                remove(path)
            with contextlib.suppress(subprocess.TimeoutExpired):
                relay.wait(10)
            relay.kill()
    return int((scratch / "status").read_text()) if (scratch / "status").exists() else 124


def main() -> int:
    """Prepare, run, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="crinoid-systemd-") as directory, own_cgroups() as cgroups:
        scratch = Path(directory)
        write_units(scratch)
        write_command(scratch, options.command)
        return run(scratch, cgroups, options.timeout)


if __name__ == "__main__":
    sys.exit(main())
