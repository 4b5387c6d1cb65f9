"""Distributions that are not installed: directories on ``sys.path`` with the metadata that pip would write."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

NETWORK = """\
from crinoid.core.api.testing.fakes import FakeNetwork
from crinoid.core.api.config import DriverConfig

class Options(DriverConfig):
    subnet: str = "10.0.0.0/8"
    \"\"\"Addresses.\"\"\"
    mtu: int = 1500
    \"\"\"Bytes.\"\"\"

class Driver(FakeNetwork):
    Config = Options
"""

QUIET_ENTRIES = """\
[crinoid.runtimes]
quiet = quiet:Runtime
[crinoid.networks]
quiet = quiet:Network
[crinoid.snapshotters]
quiet = quiet:Snapshotter
[crinoid.registries]
quiet = quiet:Registry
[crinoid.extensions]
quiet = quiet:Extension
"""
QUIET = """\
from crinoid.core.api.testing.noops import (
    NoopExtension as Extension, NoopNetwork as Network, NoopRegistry as Registry,
    NoopRuntime as Runtime, NoopSnapshotter as Snapshotter,
)
"""
QUIET_CONFIG = """\
root = "{directory}/root"
run = "{directory}/run"
server.socket = "{directory}/crinoid.sock"
pods.default_runtime = "quiet"
images.sources = ["quiet"]
[runtimes.runc]
enabled = false
[runtimes.quiet]
driver = "quiet"
[snapshotter]
driver = "quiet"
[registries.quiet]
driver = "quiet"
"""
"""A node of noop drivers in a directory; the network is left to the test."""


class Site:
    """A directory of distributions; each has one module of the same name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.modules: list[str] = []

    def install(self, name: str, entry_points: str, module: str = NETWORK, version: str = "1.0") -> None:
        """Install a distribution ``name`` whose module is the same with underscores."""
        info = self.directory / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(dedent(entry_points))
        self.modules.append(name.replace("-", "_"))
        (self.directory / f"{self.modules[-1]}.py").write_text(dedent(module))
        importlib.invalidate_caches()

    def install_quiet(self) -> None:
        """Install a distribution ``quiet`` with a noop driver of every role."""
        self.install("quiet", QUIET_ENTRIES, QUIET)


@contextmanager
def site_on_path(directory: Path) -> Iterator[Site]:
    """Put a new site at the front of ``sys.path``; take it and its modules away at the end."""
    directory.mkdir()
    sys.path.insert(0, str(directory))
    site = Site(directory)
    try:
        yield site
    finally:
        sys.path.remove(str(directory))
        for module in site.modules:
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
