"""The command ``demo``: sets the stage, has the story told, and takes everything down, however it ended."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from crinoid.core.api.errors import FailedPrecondition, PermissionDenied
from crinoid.core.cli.demo import chapters, network, sweep
from crinoid.core.cli.demo.daemon import Daemon
from crinoid.core.cli.demo.node import Node
from crinoid.core.cli.demo.stage import Stage, hide_unified
from crinoid.core.cli.demo.story import Story
from crinoid.core.cli.demo.traces import Traces

PACKAGES = {
    "runc": "runc",
    "crun": "crun",
    "conmon": "conmon",
    "docker-registry": "docker-registry",
    "skopeo": "skopeo",
    "ip": "iproute2",
    "iptables-save": "iptables",
    "/bin/busybox": "busybox-static",
    f"{network.PLUGINS}/bridge": "containernetworking-plugins",
}
"""What the demo runs, and Debian's packages for it."""

_DIRECTORY = Path("/var/tmp")  # noqa: S108  # a private directory below it; /tmp may be a tmpfs
_TERMINATED = 128 + signal.SIGTERM


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=_DIRECTORY,
    show_default=True,
    help="Where the demo makes a directory of its own; on a file system that overlays work on.",
)
def demo(directory: Path) -> None:
    """Show a node at work, from an image to an empty host.

    Needs root and Debian's packages; works in directories and with names of its own, beside whatever runs on the host,
    and exits with 1 when any step is not as told.
    """
    _check_host()
    story = Story()
    story.begin("A node that runs pods, from an image to an empty host.")
    if hide_unified():
        story.answer(
            "This host has cgroup v1 and v2 at once, which crun refuses: the demo hides v2 from its own daemon."
        )
    with (
        tempfile.TemporaryDirectory(prefix="crinoid-demo-", dir=directory.absolute()) as own,
        network.kept_forwarding(),
    ):
        try:
            asyncio.run(_play(story, Stage.choose(Path(own))))
        except asyncio.CancelledError:
            sys.exit(_TERMINATED)
    story.end()


def _check_host() -> None:
    if os.geteuid() != 0:
        raise PermissionDenied("the demo makes namespaces, mounts and links: run it as root")
    missing = sorted({package for program, package in PACKAGES.items() if not shutil.which(program)})
    if missing:
        raise FailedPrecondition(f"the demo wants programs that are missing: apt-get install {' '.join(missing)}")


async def _play(story: Story, stage: Stage) -> None:
    """Tell the story; whatever happens, leave the host as it was."""
    playing = asyncio.current_task()
    assert playing is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    traces = Traces((stage.name, stage.bridge))
    daemon = Daemon(stage.config, stage.socket, stage.directory / "daemon.log")
    node = Node(daemon, stage.port, stage.directory / "logs")
    async with _cleaned_up(story, node, traces, stage):
        await chapters.tell(chapters.Cast(story, stage, node, traces))


@asynccontextmanager
async def _cleaned_up(story: Story, node: Node, traces: Traces, stage: Stage) -> AsyncIterator[None]:
    """Take down what is left when the story broke off: first by the daemon, then by force."""
    try:
        yield
    except BaseException:
        story.warn("\nThe story breaks off here. The end of the daemon's log:")
        story.answer(node.daemon.log_tail().splitlines()[-20:])
        await sweep.ask_daemon(node, stage)
        raise
    finally:
        await node.daemon.stop()
        sweep.clear(traces, stage)
        sys.stdout.flush()
