"""What is on the host of pods and containers that no record and no row of the ledger knows: strays.

They are left when ``state.db`` is lost or the state directory moved away while containers run. ``find`` looks for
crinoid's marks of this root and run: monitors with a bundle below run, directories named by an id, mounts and pinned
namespaces in them, cgroups named by such an id. ``recovery`` tells of them at the start and spares what is theirs;
``Repair`` (``crinoid doctor --repair``) adopts who lives, so that it is shown, stopped and removed as any other, and
removes the rest. What carries no mark of this root and run is never touched.
"""

import contextlib
import logging
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import cgroups, files, links, mount, namespaces
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.runtime import ContainerHandle
from crinoid.core.lifecycle.resources import slices
from crinoid.core.lifecycle.resources.ownership import owner_of
from crinoid.core.lifecycle.resources.resources import CGROUP, CONTAINER, DIRECTORY, MOUNT, NAMESPACES, SNAPSHOT
from crinoid.core.lifecycle.sandbox.pod_init import init_owner
from crinoid.core.lifecycle.strays.stand_ins import read_notes
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.roles import ROLES
from crinoid.core.state import bodies
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
PODS, CONTAINERS = "pods", "containers"
_ID = re.compile(r"[0-9a-f]{64}")
_MOST_NAMED = 5
_MAX_HOSTS_BYTES = 1 << 20  # a container may write its own


@dataclass(frozen=True, slots=True)
class Stray:
    """All that was found of one id. ``monitors`` maps process ids to the directory of the runtime slot that they name;
    ``mounts`` are in the order in which to undo them, pins of namespaces among them."""

    id: str
    monitors: dict[int, str] = field(default_factory=dict)
    directories: list[Path] = field(default_factory=list)
    mounts: list[Path] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)
    snapshots: list[tuple[str, str]] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    @property
    def namespaces(self) -> list[Path]:
        """The pins among the mounts."""
        return [path for path in self.mounts if path.parent.name == "ns" and path.parent.parent.name == self.id]

    def facts(self) -> dict[str, list[str]]:
        """What was found, by kind, for people and programs."""
        pins = self.namespaces
        found = {
            "processes": [f"monitor {pid}" for pid in self.monitors]
            + [str(pid) for path in self.cgroups for pid in cgroups.processes(path)],
            "directories": [str(path) for path in self.directories],
            "namespaces": [str(path) for path in pins],
            "mounts": [str(path) for path in self.mounts if path not in pins],
            "cgroups": self.cgroups,
            "snapshots": [key for _, key in self.snapshots],
            "links": self.links,
            "addresses": self.addresses,
        }
        return {kind: names for kind, names in found.items() if names}


def find(root: Path, run: Path, is_known: Callable[[str], bool]) -> list[Stray]:
    """Look for what nobody knows; ``run`` is below which pods and containers lie. Blocks."""
    found: dict[str, Stray] = {}

    def of(name: str) -> Stray | None:
        if _ID.fullmatch(name) is None or is_known(name):
            return None
        return found.setdefault(name, Stray(name))

    for top in (run / PODS, run / CONTAINERS, root / CONTAINERS):
        for path in _entries(top):
            if (stray := of(path.name)) is not None:
                stray.directories.append(path)
    for point in (*mount.mountpoints(run / PODS), *mount.mountpoints(run / CONTAINERS)):
        name = next(iter(point.relative_to(run).parts[1:2]), "")
        if (stray := of(name)) is not None:
            stray.mounts.append(point)
    for pid, name, slot in _monitors(run):
        if (stray := of(name)) is not None:
            stray.monitors[pid] = slot
    if found:
        for cgroup in cgroups.find_named(found):
            found[cgroups.owner_in_name(cgroup)].cgroups.append(cgroup)
    for stray in found.values():
        stray.addresses.extend(_addresses(run / PODS / stray.id / "hosts"))
        stray.links.extend(_links_to(stray.namespaces))
    return sorted(found.values(), key=lambda one: one.id)


def ids_in(text: str) -> list[str]:
    """Return the ids of pods and containers that a path or name holds."""
    return _ID.findall(text)


def describe(strays: Iterable[Stray]) -> Iterator[str]:
    """Say what was found, a line for each kind, with how many and the first names."""
    kinds: dict[str, list[str]] = {}
    for stray in strays:
        for kind, names in stray.facts().items():
            kinds.setdefault(kind, []).extend(names)
    for kind, names in kinds.items():
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        yield f"{len(names)} {kind}: {', '.join(names[:_MOST_NAMED])}{more}"


class Repair:
    """Adopts or removes strays, with no daemon running but this process."""

    def __init__(self, store: Store, slots: Slots, run: Path, cgroup_root: str) -> None:
        self._cgroup_root = cgroup_root
        self._store = store
        self._slots = slots
        self._run = run

    async def run(self, strays: Sequence[Stray]) -> list[str]:
        """Adopt or remove all; return what was done with each, a line each."""
        for slot in self._slots.snapshotters.values():
            keys = await slot.list_snapshots()
            for stray in strays:
                stray.snapshots.extend((slot.name, key) for key in keys if owner_of(key) == stray.id)
        adopted = {stray.id for stray in strays if stray.namespaces and (self._run / PODS / stray.id).is_dir()}
        pods = adopted | {pod.id for pod in self._store.pods}
        told: list[str] = []
        for stray in sorted(strays, key=lambda one: one.id not in adopted):
            try:
                if stray.id in adopted:
                    self._adopt_pod(stray)
                    told.append(f"pod {stray.id}: adopted")
                elif (handle := self._handle(stray)) is not None and handle.pod_id in pods and _lives(stray):
                    self._adopt_container(stray, handle)
                    told.append(f"container {stray.id} of pod {handle.pod_id}: adopted")
                else:
                    await self._remove(stray)
                    told.append(f"{stray.id}: removed")
            except (CrinoidError, OSError) as error:
                told.append(f"{stray.id}: could not be repaired: {error}")
        for path in (f"{self._cgroup_root}/monitors", self._cgroup_root):
            cgroups.remove_marked(path)
        return told

    def _adopt_pod(self, stray: Stray) -> None:
        directory, ledger = self._run / PODS / stray.id, self._store.ledger
        ledger.record(stray.id, DIRECTORY, str(directory), {})
        ledger.record(stray.id, NAMESPACES, stray.id, {"paths": [str(path) for path in stray.namespaces]})
        for path in reversed([path for path in stray.mounts if path not in stray.namespaces]):
            ledger.record(stray.id, MOUNT, str(path), {})
        own = [path for path in stray.cgroups if path.endswith((f"/{stray.id}", f"-{stray.id}.slice"))]
        outermost = min(own, key=len, default="")
        if outermost:
            ledger.record(stray.id, CGROUP, outermost, {"made": [outermost], "above": []})
        if (directory / "bundle" / "config.json").exists():
            handle = ContainerHandle(stray.id, stray.id, directory / "bundle", read_notes(directory / "bundle").cgroup)
            ledger.record(init_owner(stray.id), CONTAINER, stray.id, self._container(stray, handle))
        self._store.pods.lose(stray.id)

    def _adopt_container(self, stray: Stray, handle: ContainerHandle) -> None:
        ledger = self._store.ledger
        for path in stray.directories:
            ledger.record(stray.id, DIRECTORY, str(path), {})
        for slot, key in stray.snapshots:
            ledger.record(stray.id, SNAPSHOT, key, {"slot": slot})
        for path in reversed(stray.mounts):
            ledger.record(stray.id, MOUNT, str(path), {})
        ledger.record(stray.id, CONTAINER, stray.id, self._container(stray, handle))
        self._store.containers.lose(stray.id)

    def _container(self, stray: Stray, handle: ContainerHandle) -> dict[str, object]:
        directories = {slot.run_dir.name: name for name, slot in self._slots.runtimes.items()}
        slot = next((directories[directory] for directory in stray.monitors.values() if directory in directories), "")
        return {"slot": slot or self._slots.runtime("").name, "handle": bodies.dump_value(handle)}

    def _handle(self, stray: Stray) -> ContainerHandle | None:
        bundle = self._run / CONTAINERS / stray.id
        notes = read_notes(bundle)
        return ContainerHandle(stray.id, notes.pod_id, bundle, notes.cgroup) if notes.pod_id else None

    async def _remove(self, stray: Stray) -> None:
        """End its processes, then take away what they used, in the order in which a container goes."""
        handle = self._handle(stray)
        for runtime in self._slots.runtimes.values() if handle is not None else ():
            with contextlib.suppress(CrinoidError):  # only one of them has made it
                assert handle is not None
                await runtime.delete(handle)
        await call_in_thread(lambda: _remove_from_host(stray))
        for name, key in stray.snapshots:
            await self._slots.snapshotters[name].remove_snapshot(key)


def _lives(stray: Stray) -> bool:
    return any(cgroups.processes(path) for path in stray.cgroups)


def _remove_from_host(stray: Stray) -> None:
    for cgroup in stray.cgroups:
        cgroups.kill(cgroup)
    for pid in stray.monitors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pins = stray.namespaces
    for path in stray.mounts:
        namespaces.unpin(path) if path in pins else mount.unmount(path)
    for path in stray.directories:
        files.remove_tree(path)
    for cgroup in reversed(stray.cgroups):
        slices.remove(cgroup)


def _monitors(run: Path) -> Iterator[tuple[int, str, str]]:
    """Give process id, container's id and directory of the runtime slot of each monitor whose bundle lies below
    ``run``.

    What runs in a container could have any command line: it is not root of the host's process namespace.
    """
    ours = Path("/proc/self/ns/pid").readlink()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = [os.fsdecode(word) for word in (path / "cmdline").read_bytes().split(b"\0")]
            if (
                "--bundle" not in words
                or "--exec" in words
                or path.stat().st_uid
                or (path / "ns/pid").readlink() != ours
            ):
                continue
            bundle = Path(words[words.index("--bundle") + 1])
            kind, name = bundle.relative_to(run).parts[:2]
        except (OSError, ValueError, IndexError):
            continue
        if kind in (PODS, CONTAINERS):
            yield int(path.name), name, _slot_directory_in(words)


def _slot_directory_in(words: Iterable[str]) -> str:
    """The binary keeps its state in the slot's directory: run/rt/DIRECTORY/state."""
    for word in words:
        parts = Path(word.removeprefix("--runtime-arg=--root=")).parts
        if word.startswith("--runtime-arg=--root=") and ROLES["runtime"].directory in parts[:-1]:
            return parts[len(parts) - 1 - parts[::-1].index(ROLES["runtime"].directory) + 1]
    return ""


def _links_to(pins: Iterable[Path]) -> Iterator[str]:
    """The interfaces here whose other end is in one of these namespaces; they go with it."""
    with contextlib.suppress(OSError):  # no right to enter it; or it is none, or gone
        for pin in pins:
            if pin.name == "network":
                inside = {(one.other, one.index) for one in namespaces.call_in(pin, links.ends)}
                yield from (one.name for one in links.ends() if (one.index, one.other) in inside)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _addresses(hosts: Path) -> Iterator[str]:
    """The pod's own addresses, as its hosts file has them."""
    with contextlib.suppress(OSError, ValueError):
        for line in files.read_regular(hosts, _MAX_HOSTS_BYTES).decode(errors="replace").splitlines():
            word = line.split("#")[0].split()
            if word and not word[0].startswith(("127.", "::1", "fe00::", "ff02::")):
                yield word[0]
