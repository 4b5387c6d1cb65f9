"""Mirrors and TLS of registries, from all the forms that other runtimes have, as directories with a ``hosts.toml``.

docs/registries.md says how they are read. Certificates are copied, so that the other runtime's directories may go.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crinoid.core.cli.migration.sources import Node
from crinoid.core.cli.toml_text import write_table

_HUB, _HUB_HOST = "docker.io", "registry-1.docker.io"
DEFAULT = "_default"
"""The directory of all registries that have none of their own."""
KEYS = frozenset({"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"})
"""What crinoid reads of a host's table, and of the top of the file beside ``server`` and ``host``."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What is known of a host, whichever registry it is asked for: files by their content."""

    ca: tuple[bytes, ...] = ()
    client: tuple[tuple[bytes, bytes], ...] = ()
    skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Mirror:
    """A host that is asked before the registry."""

    url: str
    pulls_by_digest_alone: bool = False
    path_is_whole: bool = False
    skip_verify: bool = False


@dataclass
class Registry:
    """A registry's own address, empty for what its name says, and its mirrors."""

    server: str = ""
    mirrors: list[Mirror] = field(default_factory=list)


@dataclass
class Hosts:
    """All registries that something was said of."""

    registries: dict[str, Registry] = field(default_factory=dict)
    tls: dict[str, Tls] = field(default_factory=dict)
    copies: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Directories that are taken as they are."""

    def registry(self, name: str) -> Registry:
        """Return a registry to add to; ``*`` is all others."""
        return self.registries.setdefault(DEFAULT if name == "*" else _host_of(name), Registry())

    def add_tls(self, host: str, **more: Any) -> None:
        """Add what is known of a host: the fields of Tls, of which tuples are joined."""
        host = _host_of(host)
        tls = self.tls.get(host, Tls())
        joined = {
            name: getattr(tls, name) + value if isinstance(value, tuple) else value for name, value in more.items()
        }
        self.tls[host] = replace(tls, **joined)

    def allow_insecure(self, name: str, location: str = "") -> None:
        """Ask a registry by https with any certificate, then by http: what CRI-O and docker call insecure."""
        registry, host = self.registry(name), _host_of(location or name)
        registry.mirrors.append(Mirror(f"https://{host}", skip_verify=True))
        registry.server = f"http://{host}"

    def files(self) -> dict[str, bytes]:
        """Return the content of every file by its path below ``certs.d``."""
        files = {f"{name}/{file}": content for name, own in self.copies.items() for file, content in own.items()}
        named = {_HUB if host == _HUB_HOST else host for host in self.tls}
        for name in sorted({*self.registries, *named} - self.copies.keys()):
            files |= {f"{name}/{file}": content for file, content in self._write(name)}
        return files

    def _write(self, name: str) -> Iterator[tuple[str, bytes]]:
        registry = self.registries.get(name, Registry())
        server = registry.server or ("" if name == DEFAULT else f"https://{_HUB_HOST if name == _HUB else name}")
        files: dict[str, bytes] = {}
        table: dict[str, Any] = {"server": server} if server else {}
        table |= self._settings(server or f"https://{name}", False, files)
        for mirror in registry.mirrors:
            own: dict[str, Any] = {"capabilities": ["pull"] if mirror.pulls_by_digest_alone else ["pull", "resolve"]}
            own |= self._settings(mirror.url, mirror.skip_verify, files)
            if mirror.path_is_whole:
                own["override_path"] = True
            table.setdefault("host", {})[mirror.url] = own
        yield "hosts.toml", ("\n".join(write_table(table, lambda key: "")) + "\n").encode()
        yield from files.items()

    def _settings(self, url: str, skip_verify: bool, files: dict[str, bytes]) -> dict[str, Any]:
        """Return the TLS settings of a URL's host, and add the files that they name."""
        tls = self.tls.get(_host_of(url), Tls()) if url.startswith("https://") else Tls()
        settings: dict[str, Any] = {}
        stem = _host_of(url).replace(":", "_")
        for number, content in enumerate(tls.ca, 1):
            settings.setdefault("ca", []).append(f"{stem}-{number}.crt")
            files[f"{stem}-{number}.crt"] = content
        for number, (cert, key) in enumerate(tls.client, 1):
            settings.setdefault("client", []).append([f"{stem}-{number}.cert", f"{stem}-{number}.key"])
            files |= {f"{stem}-{number}.cert": cert, f"{stem}-{number}.key": key}
        if skip_verify or tls.skip_verify:
            settings["skip_verify"] = True
        return settings


def read_certificates(node: Node, directory: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a directory in docker's form: the fields of Tls, and what of it can't be used."""
    ca = tuple(node.at(path).read_bytes() for path in node.list(directory, "*.crt"))
    client, faults = [], []
    for path in node.list(directory, "*.cert"):
        key = path.with_suffix(".key")
        if node.at(key).is_file():
            client.append((node.at(path).read_bytes(), node.at(key).read_bytes()))
        else:
            faults.append(f"{path}: the key {key} is not there")
    found: dict[str, Any] = {"ca": ca} if ca else {}
    return found | ({"client": tuple(client)} if client else {}), faults


def unread_keys(text: str) -> list[str]:
    """Return the keys of a ``hosts.toml`` that crinoid passes over. Raises ValueError for what is no TOML."""
    table = tomllib.loads(text)
    found = [name for name in table if name not in KEYS | {"server", "host"}]
    for url, own in (table.get("host") or {}).items():
        found += [f'host."{url}".{name}' for name in own if name not in KEYS]
    return found


def _host_of(address: str) -> str:
    """Return host and port of a URL or a name; Docker Hub's API has another name than its images."""
    return urlsplit(address if "://" in address else f"https://{address}").netloc or address
