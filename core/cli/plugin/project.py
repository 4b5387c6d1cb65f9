"""Writes the project of a new plugin from the templates beside this module."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from crinoid.core.api import API_VERSION
from crinoid.core.api.errors import AlreadyExists, InvalidArgument
from crinoid.core.slots.roles import ROLES

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_CONFIGURATION: Mapping[str, str] = {
    "runtime": '[runtimes.{name}]\ndriver = "{name}"',
    "network": '[network]\ndriver = "{name}"\noptions = {{ subnet = "10.90.0.0/24" }}',
    "snapshotter": '[snapshotter]\ndriver = "{name}"',
    "registry": '[registries.{name}]\ndriver = "{name}"\n[images]\nsources = ["{name}", "distribution"]',
    "extension": '[extensions.{name}]\ndriver = "{name}"\noptions = {{ environment = {{ SITE = "here" }} }}',
}
_PACKAGES: Mapping[str, str] = {
    "runtime": "runc conmon busybox-static",
    "network": "iproute2 util-linux nftables",
    "snapshotter": "coreutils",
    "registry": "ca-certificates",
    "extension": "ca-certificates",
}


@dataclass(frozen=True, slots=True)
class Project:
    """A plugin to be: its role, the name of its entry point, and what follows from the two."""

    role: str
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidArgument(f'plugin name "{self.name}": use lower case letters, digits and single hyphens')

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return f"crinoid-{self.role}-{self.name}"

    @property
    def module(self) -> str:
        """What Python calls it."""
        return self.distribution.replace("-", "_")

    def write(self, directory: Path) -> None:
        """Write all files into a directory that is not there yet, or is empty."""
        if directory.exists() and any(directory.iterdir()):
            raise AlreadyExists(f"{directory} is there already, and is not empty: name another by --directory")
        for place, template in self._files().items():
            path = directory / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(template).substitute(self._words()))

    def _files(self) -> Mapping[str, str]:
        common = resources.files(__package__) / "templates"
        own = common / self.role
        return {
            "pyproject.toml": (common / "pyproject.toml.txt").read_text(),
            "README.md": (common / "README.md.txt").read_text(),
            ".github/workflows/test.yml": (common / "ci.yml.txt").read_text(),
            ".gitignore": "__pycache__/\n*.egg-info/\nbuild/\ndist/\n",
            f"{self.module}/__init__.py": (own / "driver.py.txt").read_text(),
            f"{self.module}/py.typed": "",
            "tests/test_contract.py": (own / "test_contract.py.txt").read_text(),
        }

    def _words(self) -> Mapping[str, str]:
        camel = "".join(part.capitalize() for part in self.name.split("-")) + self.role.capitalize()
        indented = _CONFIGURATION[self.role].format(name=self.name).replace("\n", "\n    ")
        return {
            "role": self.role,
            "name": self.name,
            "group": ROLES[self.role].group,
            "hooks": ROLES[self.role].specification.__module__,
            "distribution": self.distribution,
            "module": self.module,
            "class_name": camel,
            "options_name": f"{camel.removesuffix(self.role.capitalize())}Options",
            "api_version": API_VERSION,
            "summary": f"The {self.role} driver {self.name} for crinoid",
            "configuration": f"    {indented}",
            "packages": _PACKAGES[self.role],
        }
