"""How long and how many: what the kernel, or Kubernetes, bounds in what a container is asked to be.

One table for all who may ask: ``cri`` checks requests by it, ``adjustments`` what extensions want. Each function
returns what is wrong as the end of a sentence that begins with the field's name, and ``""`` for what is good.
"""

import os
import re
from collections.abc import Sequence

MAX_PATH_BYTES = 4095
"""PATH_MAX, less the NUL at its end."""
MAX_HOSTNAME_BYTES = 64
"""__NEW_UTS_LEN: what sethostname(2) takes."""
MAX_NAME_BYTES = 255
"""NAME_MAX: one part of a path, and so the name of a cgroup's or sysctl's file."""
MAX_STRING_BYTES = 32 * os.sysconf("SC_PAGE_SIZE") - 1
"""MAX_ARG_STRLEN, less the NUL: one argument, or one variable with its value (execve(2))."""
MAX_STRINGS_BYTES = 2 << 20
"""Arguments and environment together: a quarter of the usual stack of 8 MiB, each with a pointer of 8 bytes."""
MAX_CPUSET_BYTES = 100 + 6 * 8192
"""What a cpuset's file takes, with the 8,192 processors that kernels are built for (kernel/cgroup/cpuset.c)."""
MAX_SETTING_BYTES = 4095
"""What any other file of a cgroup takes: a page, less the NUL."""
MAX_SYSCTL_BYTES = 1 << 16
"""The longest sysctls are bitmaps of ports, such as ip_local_reserved_ports."""
MAX_LABEL_BYTES = 4000
"""What /proc/PID/attr takes, a page, less the words before a profile's name."""
MAX_WORD_BYTES = 1023
"""Options, capabilities, names in DNS and of devices: each far below it where it means something."""
MAX_REFERENCE_BYTES = 1023
"""An image's name has at most 255 bytes, its tag 128 (OCI distribution-spec), and a digest comes to less than 200."""
MAX_ANNOTATIONS_BYTES = 4 << 20
"""All annotations, or all labels, of an object: what an NRI message can hold, and 16 times what Kubernetes takes."""
MAX_MOUNTS = 4096
"""Of a container's own; the kernel ends at 100,000, and making and ending them takes time with their square."""
MAX_DEVICES = 4096
"""Of a container; each is a node, and a rule of its cgroup."""
MAX_HOOKS = 256
MAX_RULES = 4096

MAX_PATCH_BYTES = 4 << 20
"""A merge patch of an OCI specification; a seccomp profile has some 20 KiB."""

RLIMITS = frozenset(
    f"RLIMIT_{name}"
    for name in (
        *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE"),
        *("NICE", "NOFILE", "NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
    )
)
"""The resource limits of Linux, by their names in the OCI runtime specification."""
SYSCTL = re.compile(r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_:@-]+)*")
HUGEPAGE = re.compile(r"[0-9]{1,20}[KMG]?B")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CPUSET = re.compile(r"[,:/ \n-]*[0-9][0-9,:/ \n-]*|all")  # none at all can't have processes


def hostname_problem(text: str) -> str:
    """Judge a host name as the kernel does, which takes any bytes; but it is one line of ``/etc/hostname``."""
    if _CONTROL.search(text):
        return f"{text!r:.100} has a control character in it"
    return long_problem(text, MAX_HOSTNAME_BYTES)


def path_problem(text: str) -> str:
    """Judge the length of a path and of its parts."""
    size = len(encoded(text))
    if size > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    if size > MAX_NAME_BYTES and any(len(encoded(part)) > MAX_NAME_BYTES for part in text.split("/")):
        return f"has a part of more than {MAX_NAME_BYTES} bytes"
    return ""


def cpuset_problem(text: str) -> str:
    """Judge a list of processors or memory nodes, such as ``0-3,8``."""
    if len(text) > MAX_CPUSET_BYTES:
        return f"is {len(text)} characters long, more than the {MAX_CPUSET_BYTES} that the kernel takes"
    return "" if not text or _CPUSET.fullmatch(text) else f"is {text!r:.100}, not a list such as 0-3,8"


def unified_problem(name: str, value: str) -> str:
    """Judge a setting of cgroup v2."""
    if not name or "/" in name or len(encoded(name)) > MAX_NAME_BYTES:
        return f"has {name!r:.100}, which is not a file of a cgroup"
    most = MAX_CPUSET_BYTES if name.startswith("cpuset.") else MAX_SETTING_BYTES
    return long_problem(value, most, f"of {name} ")


def long_problem(text: str, most: int, what: str = "") -> str:
    """Judge a text's length in bytes."""
    size = len(encoded(text))
    return f"{what}is {size} bytes long, more than {most}" if size > most else ""


def strings_problem(strings: Sequence[str]) -> str:
    """Judge arguments and variables together, as execve(2) takes them."""
    total = 0
    for one in strings:
        size = len(encoded(one))
        if size > MAX_STRING_BYTES:
            return f"have one of {size} bytes, {one!r:.100}, more than the {MAX_STRING_BYTES} that the kernel takes"
        total += size + 9
    return (
        f"have {total} bytes, more than the {MAX_STRINGS_BYTES} that the kernel takes"
        if total > MAX_STRINGS_BYTES
        else ""
    )


def encoded(text: str) -> bytes:
    """Return a text's bytes as the kernel gets them."""
    return text.encode("utf-8", "surrogateescape")
