"""Takes the stage down when the story broke off, so that a failed demo leaves no more than one that went well."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import mount
from crinoid.core.cli.demo.node import Node
from crinoid.core.cli.demo.stage import Stage
from crinoid.core.cli.demo.traces import Trace, Traces

_ROUNDS = 3
_COMMAND_S = 10


async def ask_daemon(node: Node, stage: Stage) -> None:
    """Have the daemon remove its pods; it is started for that if it does not run."""
    if not stage.root.exists():
        return
    with contextlib.suppress(CrinoidError):
        if not node.daemon.pid:
            await node.daemon.start()
        await node.remove_all()


def clear(traces: Traces, stage: Stage) -> None:
    """Remove by force what is still there, the bridge and the run directory included. Idempotent."""
    for _ in range(_ROUNDS):
        left = traces.left()
        if not left:
            break
        for trace in reversed(left):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _remove(trace)
        time.sleep(0.1)  # processes that were killed take a moment
    shutil.rmtree(stage.run, ignore_errors=True)


def _remove(trace: Trace) -> None:
    match trace.kind:
        case "processes":
            os.kill(int(trace.name.split()[0]), signal.SIGKILL)
        case "mounts":
            mount.unmount(Path(trace.name))
        case "links":
            _run("ip", "link", "delete", trace.name)
        case "cgroups":
            Path(trace.name).rmdir()
        case "firewall rules" if trace.name.startswith("-A"):
            _run("sh", "-c", f"iptables -t nat -D {trace.name.removeprefix('-A ')}")
        case "firewall rules":
            _run("iptables", "-t", "nat", "-X", trace.name.strip(": ").split()[0])


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, timeout=_COMMAND_S, check=False)
