"""``registries.conf`` of CRI-O and podman, versions 1 and 2, with drop-ins, as directories of ``certs.d``.

Source of the keys: containers/image, docs/containers-registries.conf.5.md, docs/containers-certs.d.5.md.
"""

from pathlib import Path
from typing import Any

from crinoid.core.cli.migration.draft import Draft, Outcome
from crinoid.core.cli.migration.hosts import Mirror, Registry, read_certificates
from crinoid.core.cli.migration.rules import Act, Entry, apply, lost, moot, nonempty
from crinoid.core.cli.migration.sources import Node, Source

PEER = "registries.conf"
DEFAULT_FILE = Path("/etc/containers/registries.conf")
DROP_INS = Path("/etc/containers/registries.conf.d")
CERTIFICATES = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_SHORT = "short names mean docker.io, as the kubelet has it"
_READ = frozenset({"prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only"})
_READ_OF_MIRROR = frozenset({"location", "insecure", "pull-from-mirror"})


def import_registries(node: Node, files: list[Path], draft: Draft) -> None:
    """Read the main file and drop-ins; of two tables with one prefix the later counts. Raises ConfigurationError."""
    for file in files:
        apply(node.read_toml(file), _RULES, draft, PEER)
    for directory in CERTIFICATES:
        import_certificates(node, directory, draft)


def import_certificates(node: Node, directory: Path, draft: Draft) -> None:
    """Take the certificates of every registry's directory."""
    for path in sorted(path for path in node.at(directory).glob("*") if path.is_dir()):
        found, faults = read_certificates(node, directory / path.name)
        for fault in faults:
            draft.tell(Outcome.LOST, str(directory / path.name), path.name, fault)
        if found:
            draft.hosts.add_tls(path.name, **found)
            draft.tell(Outcome.CARRIED, str(directory / path.name), path.name, f"certs.d/{path.name}")


def _carry_all(entry: Entry) -> None:
    for number, table in enumerate(entry.value):
        _Table(entry, number, table).carry()


class _Table:
    """One ``[[registry]]``."""

    def __init__(self, entry: Entry, number: int, table: dict[str, Any]) -> None:
        self.draft = entry.draft
        self.source: Source = entry.source
        self.key = (*entry.key, number)
        self.table = table
        self.name = str(table.get("prefix") or table.get("location") or "")

    def tell(self, outcome: Outcome, text: str, *key: str | int) -> None:
        place = str(self.source.origin((*self.key, *key)))
        named = ".".join(str(part) for part in ("registry", self.name, *key))
        self.draft.tell(outcome, place, named, text)

    def carry(self) -> None:
        """Make a registry of it."""
        for key in self.table.keys() - _READ:
            self.tell(Outcome.LOST, "crinoid does not know this key of registries.conf: nothing came of it", key)
        host, _, path = self.name.partition("/")
        if self.table.get("blocked"):
            self._block()
        if not host or host.startswith("*") or path:
            why = "a hosts.toml is for a whole registry" if path else "a hosts.toml is for one registry"
            if self.table.get("blocked") and not self.table.get("mirror"):
                return
            self.tell(Outcome.LOST, f"{why}: crinoid has no mirrors, places or settings for {self.name or 'no name'!r}")
            return
        registry = Registry()
        self.draft.hosts.registries[host] = registry
        for number, mirror in enumerate(self.table.get("mirror", [])):
            self._add_mirror(registry, mirror, number)
        self._set_place(registry, host)
        if not registry.mirrors and not registry.server:
            if not self.draft.hosts.tls.get(host):
                del self.draft.hosts.registries[host]
            if not self.table.get("blocked"):
                self.tell(Outcome.MOOT, "it says what holds without it")
            return
        self.tell(Outcome.CARRIED, f"certs.d/{host}/hosts.toml")

    def _set_place(self, registry: Registry, host: str) -> None:
        """Say where the registry itself is, behind its mirrors."""
        location = str(self.table.get("location") or host)
        place, _, path = location.partition("/")
        if path:
            self.tell(
                Outcome.LOST,
                f"{host} itself is asked, too, after {location}: a registry's own place can't have a path",
                "location",
            )
            registry.mirrors.append(_mirror(location, self.table))
        elif self.table.get("insecure"):
            registry.mirrors.append(Mirror(f"https://{place}", skip_verify=True))
            registry.server = f"http://{place}"
        elif place != host:
            registry.server = f"https://{place}"

    def _add_mirror(self, registry: Registry, mirror: dict[str, Any], number: int) -> None:
        key = ("mirror", number)
        for name in mirror.keys() - _READ_OF_MIRROR:
            self.tell(Outcome.LOST, "crinoid does not know this key of registries.conf: nothing came of it", *key, name)
        which = "digest-only" if self.table.get("mirror-by-digest-only") else mirror.get("pull-from-mirror", "all")
        if which == "tag-only":
            self.tell(Outcome.LOST, "crinoid would ask a mirror for digests, too, so it is left out", *key)
            return
        registry.mirrors.append(_mirror(str(mirror["location"]), mirror, which == "digest-only"))
        if mirror.get("insecure"):
            again = _mirror(str(mirror["location"]), {}, which == "digest-only")
            registry.mirrors.append(
                Mirror(again.url.replace("https://", "http://"), again.pulls_by_digest_alone, again.path_is_whole)
            )

    def _block(self) -> None:
        """A registry that is blocked stays so: by the extension policy."""
        draft = self.draft
        draft.set(("extensions", "policy", "driver"), "policy", "blocked registries")
        draft.set(("extensions", "policy", "options", "default"), "allow", "blocked registries")
        rules = draft.get("extensions", "policy", "options", "rules", default=[])
        patterns = [f"{self.name}/*"] + ([self.name] if "/" in self.name else [])
        rule = {"images": patterns, "action": "deny"}
        draft.set(("extensions", "policy", "options", "rules"), [*rules, rule], str(self.source.origin(self.key)))
        self.tell(Outcome.CARRIED, f"extensions.policy: {', '.join(patterns)} is denied", "blocked")


def _mirror(location: str, settings: dict[str, Any], by_digest: bool = False) -> Mirror:
    """The path of a location stands before the repository: in the API that is behind the ``v2``."""
    host, _, path = location.partition("/")
    insecure = bool(settings.get("insecure"))
    return Mirror(f"https://{host}" + (f"/v2/{path}" if path else ""), by_digest, bool(path), insecure)


def _carry_old(entry: Entry) -> None:
    """Version 1: ``[registries.insecure]`` and ``[registries.block]``."""
    kind = str(entry.key[1])
    for name in entry.items:
        if kind == "insecure":
            entry.draft.hosts.allow_insecure(name)
        else:
            _Table(Entry(entry.source, entry.key, [], (), entry.draft), 0, {"prefix": name, "blocked": True}).carry()
    if kind == "insecure" and entry.value:
        entry.carried("certs.d: https with any certificate, then http")


_RULES: dict[str, Act] = {
    "registry": _carry_all,
    "unqualified-search-registries": lost(_SHORT, [], ["docker.io"]),
    "short-name-mode": moot(_SHORT),
    "aliases/**": nonempty(lost(f"crinoid has no aliases: {_SHORT}")),
    "credential-helpers": lost("credHelpers and credsStore of a docker config.json are read", ["containers-auth.json"]),
    "additional-layer-store-auth-helper": nonempty(lost("crinoid has no such store")),
    "registries/search/registries": lost(_SHORT, [], ["docker.io"]),
    "registries/insecure/registries": _carry_old,
    "registries/block/registries": _carry_old,
}
