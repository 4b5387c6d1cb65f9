"""Sysctls of a pod: those of its own namespaces, checked first and then written by a thread inside them.

Source: Kubernetes' rule that only namespaced sysctls may be set for a pod; namespaces(7), ipc_namespaces(7).
"""

import functools
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux.namespaces import call_in
from crinoid.core.api.linux.process import spawn

_NAME = re.compile(r"[a-z0-9_.-]+(?:[./][A-Za-z0-9_.*@:-]+)*")
_IPC = ("kernel.shm", "kernel.msg", "fs.mqueue.")
_IPC_EXACT = frozenset({"kernel.sem"})
_OF_INTERFACES = re.compile(r"net/[^/]+/(conf|neigh)/")
_ROOT = Path("/proc/sys")


def check_sysctls(sysctls: Mapping[str, str], own: Collection[str]) -> dict[str, str]:
    """Return the sysctls by path below ``/proc/sys``; ``own`` names the namespaces that the pod has to itself.

    Raises InvalidArgument for one that is not of such a namespace, as it would change the host.
    """
    return {_path(name, own): value for name, value in sysctls.items()}


def part_sysctls(sysctls: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Part sysctls into those to write before the pod's network is made, and those after it.

    Those of interfaces come after: ``eth0`` is not there before, and what is for ``all`` has to hold for it whatever
    the network driver has set, such as ``net.ipv6.conf.all.disable_ipv6``. Peers write all of them after the network.
    """
    late = {path: value for path, value in sysctls.items() if _OF_INTERFACES.match(path)}
    return {path: value for path, value in sysctls.items() if path not in late}, late


def write_sysctls(values: Mapping[str, str], pins: Mapping[str, Path] = MappingProxyType({})) -> None:
    """Write values by path, in the calling thread's namespaces; ``pins`` are of those that belong to a user namespace.

    Raises InvalidArgument with the kernel's answer.
    """
    for path, value in values.items():
        try:
            try:
                (_ROOT / path).write_text(value)
            except PermissionError:
                # Since Linux 6.10 the limits of an IPC namespace are its own root's, not the host's.
                if "user" not in pins or "ipc" not in pins or not _write_as_owner(path, value, pins):
                    raise
        except OSError as error:
            raise InvalidArgument(f"sysctl {path} can't be set to {value!r}: {error.strerror}") from error


def write_sysctls_in(pins: Mapping[str, Path], values: Mapping[str, str]) -> None:
    """As ``write_sysctls``, in pinned namespaces."""
    if not values:
        return
    # /proc/sys/net is of the network namespace of the thread that opens a file, /proc/sys/kernel/shm* of its IPC one.
    entered: Callable[[], None] = functools.partial(write_sysctls, values, pins)
    for kind in ("network", "ipc"):
        if kind in pins:
            entered = functools.partial(call_in, pins[kind], entered)
    entered()


def _write_as_owner(path: str, value: str, pins: Mapping[str, Path]) -> bool:
    """Write as the root of the user namespace. A process must do it: no thread may change its user namespace."""
    into = [f"--user={pins['user']}", f"--ipc={pins['ipc']}", "--setuid=0", "--setgid=0"]
    process = spawn(["nsenter", *into, "sh", "-c", 'printf %s "$2" >"$1"', "sh", str(_ROOT / path), value])
    try:
        return process.reap() == 0
    finally:
        process.close()


def _path(name: str, own: Collection[str]) -> str:
    """Turn ``net.ipv4.conf.eth0/1.x`` or ``net/ipv4/conf/eth0.1/x`` into a path; the first separator decides."""
    # As sysctl(8) reads names: an interface such as eth0.1 has a dot of its own.
    slashes = "/" in name and ("." not in name or name.index("/") < name.index("."))
    dotted = name.replace("/", "\0").replace(".", "/").replace("\0", ".") if not slashes else name
    if not _NAME.fullmatch(name) or {"", ".."} & set(dotted.split("/")):
        raise InvalidArgument(f"sysctl {name!r} is not a name such as net.ipv4.tcp_syncookies")
    canonical = dotted.replace("/", ".")
    if canonical.startswith("net."):
        kind = "network"
    elif canonical.startswith(_IPC) or canonical in _IPC_EXACT:
        kind = "ipc"
    else:
        raise InvalidArgument(f"sysctl {name} belongs to no namespace of a pod: it can't be set")
    if kind not in own:
        raise InvalidArgument(f"sysctl {name} can't be set: the pod uses the host's {kind} namespace")
    return dotted
