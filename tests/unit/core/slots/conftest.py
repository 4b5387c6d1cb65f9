"""Distributions that are not installed: folders on ``sys.path`` with the metadata that pip would write."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

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


class Site:
    """A folder of distributions; each has one module of the same name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, name: str, entry_points: str, module: str = NETWORK, version: str = "1.0") -> None:
        """Install a distribution ``name`` whose module is the same with underscores."""
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(dedent(entry_points))
        self.modules.append(name.replace("-", "_"))
        (self.folder / f"{self.modules[-1]}.py").write_text(dedent(module))
        importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site of its own at the front of ``sys.path``."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    site = Site(folder)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)
    importlib.invalidate_caches()
