"""Plugins that are shell scripts: they record what they are given and answer as the test says."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid.core.api.host import Host
from crinoid.plugins.networks.cni import CniNetwork, CniOptions

RECORDER = """#!/bin/sh
if [ "$CNI_COMMAND" = VERSION ]; then printf '%s' '{versions}'; exit 0; fi
number=$(ls '{calls}' | wc -l)
call='{calls}'/$(printf '%03d' "$number")
cat > "$call".stdin
env > "$call".env
mv "$call".stdin "$call".$CNI_COMMAND.{name}.json
case "$CNI_COMMAND" in
{cases}
esac
"""
ALL_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def result(*addresses: str, **more: object) -> dict[str, object]:
    """A result of version 1.x with these addresses on the pod's interface."""
    interfaces = [{"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/pod"}]
    return {
        "cniVersion": "1.0.0",
        "interfaces": interfaces,
        "ips": [{"address": address, "interface": 1} for address in addresses],
        **more,
    }


@dataclass(frozen=True)
class RecordedCall:
    """One run of a plugin."""

    command: str
    plugin: str
    content: dict[str, Any]
    environment: dict[str, str]


@dataclass
class Node:
    """A directory of plugins, a directory of configurations and a driver that uses them."""

    root: Path
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("test-cni"))

    def __post_init__(self) -> None:
        for directory in ("bin", "net.d", "calls", "state", "run"):
            (self.root / directory).mkdir()

    @property
    def conf_dir(self) -> Path:
        return self.root / "net.d"

    def driver(self, **options: Any) -> CniNetwork:
        given = {"conf_dir": self.conf_dir, "bin_dirs": (self.root / "bin",), "loopback": False, **options}
        return CniNetwork(CniOptions(**given), Host("test", self.root / "state", self.root / "run", self.log))

    def add_plugin(self, name: str, versions: tuple[str, ...] = ALL_VERSIONS, **scripts: str) -> Path:
        """Write a plugin; ``scripts`` are what it does for ``ADD`` and so on, after the recording."""
        cases = "\n".join(f"{command}) {script} ;;" for command, script in scripts.items())
        text = RECORDER.replace("{versions}", json.dumps({"cniVersion": "1.1.0", "supportedVersions": versions}))
        text = text.replace("{calls}", str(self.root / "calls")).replace("{name}", name).replace("{cases}", cases)
        return self.write_script(name, text)

    def add_working_plugin(
        self,
        name: str,
        answer: Mapping[str, object] | None = None,
        versions: tuple[str, ...] = ALL_VERSIONS,
        **scripts: str,
    ) -> Path:
        """Write a plugin whose ADD prints a result."""
        add = f"printf '%s' {quote(json.dumps(answer or result('10.1.0.5/24')))}"
        return self.add_plugin(name, versions, ADD=add, **scripts)

    def write_script(self, name: str, text: str) -> Path:
        script = self.root / "bin" / name
        script.write_text(text)
        script.chmod(0o755)
        return script

    def configure(self, file: str, content: object) -> None:
        (self.conf_dir / file).write_text(content if isinstance(content, str) else json.dumps(content))

    def configure_chain(self, *plugins: object, file: str = "10-x.conflist", **more: Any) -> None:
        parts = [{"type": plugin} if isinstance(plugin, str) else plugin for plugin in plugins]
        self.configure(file, {"cniVersion": "1.0.0", "name": "blue", "plugins": parts, **more})

    def calls(self) -> list[RecordedCall]:
        """Every run so far, VERSION excepted."""
        found = []
        for file in sorted((self.root / "calls").glob("*.json")):
            number, command, plugin, _ = file.name.split(".")
            lines = (self.root / "calls" / f"{number}.env").read_text().splitlines()
            environment = dict(line.partition("=")[::2] for line in lines)
            found.append(RecordedCall(command, plugin, json.loads(file.read_text() or "{}"), environment))
        return found

    def commands(self) -> list[str]:
        return [f"{call.command} {call.plugin}" for call in self.calls()]
