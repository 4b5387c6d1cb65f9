"""The kernel: its release, the system calls that crinoid relies on, its security modules and limits."""

import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from crinoid.core.api.linux import files
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config

_AREA = Area("kernel")
_NEEDED = (5, 8)  # fsopen 5.2, pidfd_open 5.3, openat2 5.6, clone3 into a cgroup 5.7, pidfd to setns 5.8
_IDMAPPED = (5, 19)  # overlayfs on idmapped layers, which pods with user namespaces need
_READ_ONLY_TREES = (5, 12)  # mount_setattr, which recursive read-only mounts need


def examine_kernel(config: Config, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Examine the running kernel."""
    release = platform.release()
    yield from judge_release(release)
    yield _try("openat2", lambda: os.close(_open_in_root()))
    yield _try("pidfd", lambda: os.close(os.pidfd_open(os.getpid())))
    yield from judge_file_systems((proc / "filesystems").read_text())
    yield _judge_seccomp(proc / "sys/kernel/seccomp/actions_avail")
    yield _judge_apparmor(Path("/sys/module/apparmor/parameters/enabled"), config.pods.apparmor_profile)
    yield from _judge_inotify(proc / "sys/fs/inotify")


def judge_release(release: str) -> Iterator[Finding]:
    """Judge a kernel release such as ``6.1.0-18-amd64``."""
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    machine = platform.machine()
    if version < _NEEDED:
        wanted = ".".join(map(str, _NEEDED))
        yield _AREA.failure("release", f"{release} on {machine}", f"install a kernel of at least {wanted}")
        return
    yield _AREA.ok("release", f"{release} on {machine}")
    if version < _READ_ONLY_TREES:
        advice = "pods that ask for recursive read-only mounts are refused; they need a kernel of at least 5.12"
        yield _AREA.warning("read-only trees", "not by this release", advice)
    if version < _IDMAPPED:
        advice = "pods with user namespaces (hostUsers: false) need a kernel of at least 5.19"
        yield _AREA.warning("idmapped mounts", "not for overlayfs by this release", advice)
    else:
        yield _AREA.ok("idmapped mounts", "overlayfs has them by this release")


def judge_file_systems(text: str) -> Iterator[Finding]:
    """Judge the text of ``/proc/filesystems``."""
    known = {line.split()[-1] for line in text.splitlines() if line.strip()}
    for name in ("proc", "tmpfs", "sysfs", "mqueue"):
        if name not in known:
            yield _AREA.failure(f"{name} file system", "unknown to this kernel", f"use a kernel with {name}")
    if "overlay" not in known:
        advice = 'run "modprobe overlay" and add it to /etc/modules-load.d, or configure the native snapshotter'
        yield _AREA.warning("overlay module", "not loaded", advice)


def _open_in_root() -> int:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return files.open_in_root(root, "proc", os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(root)


def _try(name: str, call: Callable[[], None]) -> Finding:
    try:
        call()
    except OSError as error:
        advice = "use a newer kernel, or a sandbox that lets this call through"
        return _AREA.failure(name, f"refused: {error.strerror}", advice)
    return _AREA.ok(name, "works")


def _judge_seccomp(file: Path) -> Finding:
    if not file.exists():
        advice = "containers run unconfined unless the kernel has CONFIG_SECCOMP_FILTER"
        return _AREA.warning("seccomp", "this kernel has no filters", advice)
    return _AREA.ok("seccomp", file.read_text().strip())


def _judge_apparmor(file: Path, profile: str) -> Finding:
    on = file.exists() and file.read_text().strip() == "Y"
    if profile and not on:
        advice = "boot with apparmor=1 security=apparmor, or empty pods.apparmor_profile"
        return _AREA.warning("AppArmor", f"off, but the configuration names the profile {profile}", advice)
    return _AREA.ok("AppArmor", "on" if on else "off, and not asked for")


_INOTIFY = {"max_user_instances": 256, "max_user_watches": 65536}


def _judge_inotify(directory: Path) -> Iterator[Finding]:
    """Each container's monitor and many programs in containers take an instance; the default of 128 is used up soon."""
    for name, wanted in _INOTIFY.items():
        value = int((directory / name).read_text())
        if value < wanted:
            advice = f"run: sysctl -w fs.inotify.{name}={wanted * 4}, and keep it in /etc/sysctl.d"
            yield _AREA.warning(f"inotify {name}", f"{value}; a full node needs more", advice)
        else:
            yield _AREA.ok(f"inotify {name}", str(value))
