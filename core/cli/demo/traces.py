"""Proof that nothing is left: what the demo made on the host is noted while it is there, and looked for at the end.

A trace belongs to the demo when it carries the demo's name (mounts, cgroups, firewall rules, command lines), when it
hangs on something that does (ports of its bridge, processes in its cgroups, namespaces of its processes and pins,
chains that its rules jump to), or when it was seen to do so earlier. So other work on the host does not disturb it,
and something that lost the name but lives on is found all the same.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LINKS = Path("/sys/class/net")
_JUMP = re.compile(r" -j (\S+)")
_BUILT_IN = frozenset({"ACCEPT", "DROP", "RETURN", "MASQUERADE", "DNAT", "SNAT", "MARK", "REJECT", "LOG"})
_RULE_LISTS = ("iptables-save", "ip6tables-save")
_TIMEOUT_S = 20

KINDS = ("mounts", "namespaces", "links", "processes", "cgroups", "firewall rules")
"""In the order in which they are told."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Something on the host. ``holder`` is the process or mount that keeps a namespace alive."""

    kind: str
    name: str
    holder: str = ""


@dataclass(frozen=True, slots=True)
class _Process:
    """A process; its start time, in the kernel's ticks, tells it from a later one of the same number."""

    pid: int
    started: str
    command: str
    cgroups: str
    namespaces: tuple[str, ...]

    @property
    def label(self) -> str:
        """What a trace of it is called."""
        return f"{self.pid} started {self.started}: {self.command[:80]}"


@dataclass(slots=True)
class Traces:
    """The traces of all that carries one of the ``names``; ``seen`` is what was ever found."""

    names: tuple[str, ...]
    seen: set[Trace] = field(default_factory=set)

    def note(self) -> dict[str, int]:
        """Look at the host, remember what is the demo's, and count it by kind."""
        mine = set(self._find(everything=False))
        self.seen |= mine
        return {kind: len({trace.name for trace in mine if trace.kind == kind}) for kind in KINDS}

    def left(self) -> list[Trace]:
        """Return what is there of all that was ever seen, and whatever else carries a name."""
        mine = set(self._find(everything=False))
        known = set(self._find(everything=True)) & self.seen
        return sorted(mine | known, key=lambda trace: (KINDS.index(trace.kind), trace.name))

    def _find(self, everything: bool) -> Iterator[Trace]:
        """Yield what is the demo's, or all there is."""
        yield from self._find_mounts(everything)
        yield from self._find_processes(everything)
        yield from (Trace("links", name) for name in _links(None if everything else self.names))
        yield from (Trace("cgroups", path) for path in _cgroups() if everything or self._is_mine(path))
        yield from (Trace("firewall rules", rule) for rule in self._select_rules(_rules(), everything))

    def _find_mounts(self, everything: bool) -> Iterator[Trace]:
        """A pinned namespace is a mount whose root is the namespace, such as ``net:[4026531840]``."""
        for line in _mount_lines():
            fields = line.split()
            root, point = fields[3], fields[4]
            if everything or self._is_mine(point):
                yield Trace("mounts", point)
                if root.endswith("]"):
                    yield Trace("namespaces", root, point)

    def _find_processes(self, everything: bool) -> Iterator[Trace]:
        host = set(_read_namespaces(Path("/proc/self"))) | set(_read_namespaces(Path("/proc/1")))
        for process in _processes():
            if everything or self._is_mine(process.command) or self._is_mine(process.cgroups):
                yield Trace("processes", process.label)
                yield from (Trace("namespaces", name, process.label) for name in process.namespaces if name not in host)

    def _select_rules(self, rules: list[str], everything: bool) -> Iterator[str]:
        mine = [rule for rule in rules if everything or self._is_mine(rule)]
        targets = {target for rule in mine for target in _JUMP.findall(rule)} - _BUILT_IN
        yield from mine
        if not everything:
            yield from (rule for rule in rules if rule.startswith(tuple(f":{target} " for target in targets)))

    def _is_mine(self, text: str) -> bool:
        return any(name in text for name in self.names)


def _mount_lines() -> Iterator[str]:
    """Read the mounts of our own mount namespace, and those of the host's."""
    for pid in ("self", "1"):
        with contextlib.suppress(OSError):
            yield from Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


def _processes() -> Iterator[_Process]:
    """Read all processes but ourselves; one that ends meanwhile is left out."""
    for directory in Path("/proc").glob("[0-9]*"):
        if int(directory.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            yield _Process(
                int(directory.name),
                (directory / "stat").read_text().rpartition(")")[2].split()[19],
                (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
                (directory / "cgroup").read_text(),
                tuple(_read_namespaces(directory)),
            )


def _read_namespaces(directory: Path) -> Iterator[str]:
    for kind in ("net", "ipc", "uts", "mnt", "pid"):
        with contextlib.suppress(OSError):
            yield str((directory / "ns" / kind).readlink())


def _links(bridges: Iterable[str] | None) -> Iterator[str]:
    """Name all links, or those of these names and their ports."""
    for link in _LINKS.iterdir():
        with contextlib.suppress(OSError):
            master = link / "master"
            if bridges is None or link.name in bridges or (master.exists() and master.readlink().name in bridges):
                yield link.name


def _cgroups() -> Iterator[str]:
    """Name all cgroups of all hierarchies that we see; directories beside them are no cgroups."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup"):
            yield from (directory for directory, _, _ in os.walk(fields.split()[4]))


def _rules() -> list[str]:
    """List rules and chains without their counters; a firewall that can't be listed has none of ours."""
    found = []
    for program in _RULE_LISTS:
        for line in _output(program).splitlines():
            if line.startswith(":"):
                found.append(line.partition(" [")[0] + " ")
            elif line.startswith("-A"):
                found.append(line)
    return found


def _output(program: str) -> str:
    try:
        return subprocess.run([program], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False).stdout
    except FileNotFoundError:
        return ""
