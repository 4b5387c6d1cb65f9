"""The out-of-memory killer's preference: how far this process may lower that of its children."""

from pathlib import Path

from crinoid.core.api.linux import capabilities

_LOWEST = -1000
_HIGHEST = 1000


def clamp_oom_score_adj(value: int) -> int:
    """Return what may be set of ``value``: within the kernel's range and, without CAP_SYS_RESOURCE, not below our own.

    The kernel's true limit then is the lowest value that a privileged process ever gave us; it tells nobody, and our
    own value is never below it (proc(5), /proc/pid/oom_score_adj).
    """
    lowest = _LOWEST if "CAP_SYS_RESOURCE" in capabilities.effective() else own_oom_score_adj()
    return min(max(value, lowest), _HIGHEST)


def own_oom_score_adj() -> int:
    """Read the value of this process."""
    return int(Path("/proc/self/oom_score_adj").read_text())
