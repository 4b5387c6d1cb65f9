"""What an import comes to: the configuration, the files beside it, and a finding for every key that was read."""

import base64
import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid.core.cli.migration.hosts import Hosts
from crinoid.core.cli.toml_text import write_table
from crinoid.core.config.positions import KeyPath

_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")


class Outcome(enum.Enum):
    """What became of a key of the other runtime."""

    CARRIED = "carried"
    LOST = "lost"
    MOOT = "nothing to carry"


@dataclass(frozen=True, slots=True)
class Finding:
    """One key of the other runtime, or one default of its that no key names."""

    outcome: Outcome
    place: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.key}: {self.text}"


@dataclass
class Draft:
    """The configuration so far. Paths of files that belong to it are made when it is written."""

    config: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    hosts: Hosts = field(default_factory=Hosts)
    auths: dict[str, dict[str, str]] = field(default_factory=dict)
    docker_configs: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def set(self, key: KeyPath, value: Any, origin: str) -> None:
        """Set a key; a later line of the same wins, as it does with the other runtime."""
        table = self.config
        for part in key[:-1]:
            table = table.setdefault(str(part), {})
        table[str(key[-1])] = value
        self.origins[key] = origin

    def get(self, *key: str, default: Any = None) -> Any:
        """Return a value that was set."""
        table: Any = self.config
        for part in key:
            if not isinstance(table, dict) or part not in table:
                return default
            table = table[part]
        return table

    def remove(self, key: KeyPath) -> str:
        """Take out the innermost part of a key path that is there; return where it came from, empty for none."""
        for end in range(len(key), 0, -1):
            table = self.get(*map(str, key[: end - 1])) if end > 1 else self.config
            if isinstance(table, dict) and str(key[end - 1]) in table:
                del table[str(key[end - 1])]
                gone = key[:end]
                places = [place for one, place in self.origins.items() if one[:end] == gone]
                self.origins = {one: place for one, place in self.origins.items() if one[:end] != gone}
                return places[0] if places else "import"
        return ""

    def tell(self, outcome: Outcome, place: str, key: str, text: str) -> None:
        """Note what became of a key."""
        self.findings.append(Finding(outcome, place, key, text))

    def of(self, outcome: Outcome) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.outcome is outcome]

    def log_in(self, host: str, auth: dict[str, Any]) -> None:
        """Note credentials of a host in the fields of a docker configuration. Raises ValueError."""
        key = _HUB_KEY if host.rpartition("://")[2].partition("/")[0] in _HUB_NAMES else host
        if auth.get("identitytoken"):
            self.auths[key] = {"identitytoken": str(auth["identitytoken"])}
        elif auth.get("auth"):
            self.auths[key] = {"auth": str(auth["auth"])}
        elif auth.get("username"):
            pair = f"{auth['username']}:{auth.get('password', '')}"
            self.auths[key] = {"auth": base64.b64encode(pair.encode()).decode()}
        else:
            raise ValueError("there is neither a user nor a token in it")

    def files(self, directory: Path) -> dict[str, tuple[bytes, int]]:
        """Return all files by name below the directory, with content and mode."""
        files = {
            f"certs.d/{name}": (content, 0o600 if name.endswith(".key") else 0o644)
            for name, content in self.hosts.files().items()
        }
        config = json.loads(json.dumps(self.config))
        options: dict[str, Any] = {}
        if files:
            options["config_paths"] = [f"{directory}/certs.d"]
        if self.auths:
            files["registry/config.json"] = (json.dumps({"auths": self.auths}, indent=2).encode() + b"\n", 0o600)
        if self.auths or self.docker_configs:
            own = [f"{directory}/registry/config.json"] if self.auths else []
            options["docker_configs"] = [*own, *self.docker_configs, "~/.docker/config.json"]
        if options:
            slot = config.setdefault("registries", {}).setdefault("distribution", {"driver": "distribution"})
            slot["options"] = {**options, **slot.get("options", {})}
        lines = ["# Made by crinoid config import; imported.txt beside it says what could not be carried over."]
        lines += write_table(config, lambda key: self.origins.get(key, ""))
        return {"config.toml": ("\n".join(lines).encode() + b"\n", 0o644), **files}
