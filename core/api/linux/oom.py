"""The out-of-memory killer's preference: how far this process may lower that of its children."""

import functools
import logging
from pathlib import Path

from crinoid.core.api.linux import capabilities

LOG = logging.getLogger(__name__)
_LOWEST = -1000
_HIGHEST = 1000


def clamp_oom_score_adj(value: int) -> int:
    """Return what may be set of ``value``: within the kernel's range and, without CAP_SYS_RESOURCE, not below our own.

    The kernel's true limit then is the lowest value that a privileged process ever gave us; it tells nobody, and our
    own value is never below it (proc(5), /proc/pid/oom_score_adj). Said in the log once.
    """
    lowest = _LOWEST if "CAP_SYS_RESOURCE" in capabilities.effective() else own_oom_score_adj()
    if _LOWEST <= value < lowest:
        _warn_once(lowest)
    return min(max(value, lowest), _HIGHEST)


def own_oom_score_adj() -> int:
    """Read the value of this process."""
    return int(Path("/proc/self/oom_score_adj").read_text())


@functools.cache
def _warn_once(lowest: int) -> None:
    LOG.warning(
        "without CAP_SYS_RESOURCE no oom_score_adj below %d can be set: where less is asked for, it is %d (said once)",
        lowest,
        lowest,
    )
