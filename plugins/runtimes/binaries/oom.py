"""The out-of-memory killer's preference of processes whose runtime leaves them what they inherit.

What an exec inherits is not the container's: conmon until 2.1.8 sets it to 0 and later ones to the daemon's own, which
systemd makes -999, so that the kernel would rather kill everything else on the node. crun (1.28) does not mend that.
"""

from collections.abc import Sequence

_SHELL = "/bin/sh"
_SET = '{ echo "$0" >/proc/self/oom_score_adj; } 2>/dev/null; exec "$@"'
"""The shell becomes the runtime's binary. What it may not set was not given to the container either."""


def with_oom_score_adj(command: Sequence[str], value: int) -> tuple[str, ...]:
    """Return a command that runs the given one with this ``oom_score_adj``, which all that comes from it inherits."""
    return (_SHELL, "-c", _SET, str(value), *command)
