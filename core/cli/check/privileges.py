"""Who runs this: root, and with which capabilities. A node inside a container often lacks some."""

import os
from collections.abc import Iterator

from crinoid.core.api.linux import capabilities
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config
from crinoid.core.daemon import nulldevice

_AREA = Area("privileges")
_NEEDED = frozenset(
    {
        "CAP_SYS_ADMIN",  # mounts, namespaces
        "CAP_NET_ADMIN",  # the links of pods
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_MKNOD",  # devices of containers, and of images' layers
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_SYS_CHROOT",
    }
)


def examine_privileges(config: Config) -> Iterator[Finding]:
    """Examine this process: the daemon has to run with no less."""
    if os.geteuid() != 0:
        yield _AREA.failure("user", f"uid {os.geteuid()}", "run crinoid as root")
    else:
        yield _AREA.ok("user", "root")
    yield from judge_capabilities(capabilities.effective(), capabilities.bounding(), config.pods.default_capabilities)
    if problem := nulldevice.find_problem():
        yield _AREA.warning("null device", problem, "its owner can close it to every program of the host")
    else:
        yield _AREA.ok("null device", "root's, open to all")


def judge_capabilities(
    effective: frozenset[str], bounding: frozenset[str], default: tuple[str, ...]
) -> Iterator[Finding]:
    """Judge what this process may do, and what it can hand on to containers."""
    if missing := sorted(_NEEDED - effective):
        yield _AREA.failure("capabilities", f"without {', '.join(missing)}", "run crinoid with all capabilities")
    else:
        yield _AREA.ok("capabilities", "all that are needed")
    if "CAP_SYS_RESOURCE" not in effective:
        advice = "oom_score_adj of containers is clamped to that of the daemon; run crinoid with this capability"
        yield _AREA.warning("CAP_SYS_RESOURCE", "missing", advice)
    if unable := sorted(set(default) - bounding):
        advice = "containers run without them; run crinoid with a full bounding set"
        yield _AREA.warning("default capabilities", f"can't be handed on: {', '.join(unable)}", advice)
