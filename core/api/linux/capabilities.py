"""Linux capabilities by name: which there are, and which of them this process has in effect (capabilities(7))."""

from pathlib import Path

# In the order of their bits.
NAMES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)


def last() -> int:
    """Return the number of the last capability that the running kernel knows."""
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def known() -> tuple[str, ...]:
    """Return the names that both we and the running kernel know, in the order of their bits."""
    return NAMES[: last() + 1]


def effective() -> frozenset[str]:
    """Return the names of the capabilities that this process has in effect."""
    return _named("CapEff")


def bounding() -> frozenset[str]:
    """Return the names that this process can hand on at all: a container can be given no other."""
    return _named("CapBnd")


def _named(field: str) -> frozenset[str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith(f"{field}:"))
    return frozenset(name for bit, name in enumerate(NAMES) if mask >> bit & 1)
