"""A daemon of a test's own, for what the node of the session is not configured for: quick pods, both runtimes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from integration.conftest import BUSYBOX, Node
from support import cgroup_namespace
from support.daemon import Daemon
from support.images import build_busybox
from support.registry import RunningRegistry

QUIET = """
[snapshotter]
driver = "overlay"
[runtimes.crun]
driver = "crun"
"""


@contextlib.contextmanager
def own_node(
    directory: Path,
    config: str = "",
    *,
    network: str = "driver = 'host'",
    python: str = "",
    run_below: Path = Path("/run"),
) -> Iterator[Node]:
    """Run a daemon with further TOML, of the interpreter's environment if not of this one; at the end nothing of it
    may be left on the host."""
    layouts = directory / "layouts"
    build_busybox(layouts / "busybox", BUSYBOX)
    sources = f"[registries.layout]\ndriver = 'layout'\noptions = {{ directory = '{layouts}' }}\n"
    with cgroup_namespace.held() as prefix:
        own = f"[network]\n{network}\n" + QUIET + sources + config
        daemon = Daemon(directory / "daemon", own, prefix, python or sys.executable, run_below=run_below)
        try:
            daemon.start()
            node = Node(daemon, layouts, RunningRegistry("127.0.0.1:1"), "", directory / "logs")
            node.pull()
            yield node
            node.remove_pods()
            assert daemon.query("SELECT owner, kind, key FROM ledger") == []
            daemon.clean()
            assert daemon.leftovers() == []
        finally:
            daemon.end()
