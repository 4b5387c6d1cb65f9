"""A machine that is none, in this process: what the kernel's calls would make is only noted.

For replays, which need no root and change nothing, and for tests of the services.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import AlreadyExists
from crinoid.core.api.linux import capabilities, cgroups, lsm, probes, rights
from crinoid.core.api.linux.idmaps import IdMaps
from crinoid.core.api.values.container import ContainerSecurity
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.containers import builder
from crinoid.core.lifecycle.pods import pod_plan, pods
from crinoid.core.lifecycle.resources.host_calls import HostCalls
from crinoid.core.lifecycle.sandbox import pod_files
from crinoid.core.lifecycle.spec.users import Identity, identify
from crinoid.core.state.records import ProcessUser


@dataclass
class FakeMachine(HostCalls):
    """What the host would hold, and the calls that change it."""

    pins: set[Path] = field(default_factory=set)
    mounts: list[Path] = field(default_factory=list)
    cgroups: set[str] = field(default_factory=set)
    marks: dict[str, str] = field(default_factory=dict)
    """The cgroups that crinoid has made, and for whom."""
    killed: list[str] = field(default_factory=list)
    """The cgroups whose processes were killed."""
    removed: list[str] = field(default_factory=list)
    """The cgroups that were removed for their own sake, in order."""

    def pin(self, kinds: Mapping[str, Path], **_settings: object) -> None:
        for path in kinds.values():
            path.touch()
            self.pins.add(path)

    def unpin(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.pins.discard(path)

    def is_pinned(self, path: Path) -> bool:
        return path in self.pins

    def mount(self, mount: Mount, target: Path) -> None:
        self.mounts.append(target)

    def mount_mapped(self, wanted: Mount, target: Path, maps: IdMaps) -> None:
        self.mounts.append(target)

    def bind(self, source: Path, target: Path, readonly: bool = False, recursive: bool = False) -> None:
        self.pins.add(target)

    def unmount(self, target: Path, lazy: bool = True) -> None:
        self.mounts = [path for path in self.mounts if path != target]

    def has_cgroup(self, path: str) -> bool:
        return path in self.cgroups

    def has_marked_cgroup(self, path: str) -> bool:
        return path in self.marks

    def make_cgroup(self, path: str, owner: str = "-") -> None:
        parts = path.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            level = "/" + "/".join(parts[:count])
            if level not in self.cgroups:
                self.cgroups.add(level)
                self.marks[level] = owner if level == path else "-"

    def make_new_cgroup(self, path: str, owner: str) -> None:
        if path in self.cgroups:
            raise AlreadyExists(f"cgroup {path} is there already")
        self.make_cgroup(path, owner)

    def kill_cgroup(self, path: str, timeout_s: float = 0) -> None:
        self.killed.append(path)

    def warm_up_cgroups(self) -> None:
        pass

    def remove_cgroup(self, path: str) -> None:
        self.removed.append(path)
        self._take_away(path)

    def _take_away(self, path: str) -> None:
        gone = {one for one in self.cgroups if f"{one}/".startswith(f"{path}/")}
        self.cgroups -= gone
        self.marks = {one: owner for one, owner in self.marks.items() if one not in gone}

    def remove_marked_cgroup(self, path: str) -> bool:
        if path in self.marks and not any(one.startswith(f"{path}/") for one in self.cgroups):
            self._take_away(path)
        return path not in self.cgroups

    def owns_cgroup(self, path: str, owner: str) -> bool:
        named = len(owner) == 64 and cgroups.owner_in_name(path) == owner
        return path in self.cgroups and (named or self.marks.get(path) == owner)

    @property
    def is_empty(self) -> bool:
        """Return whether nothing of any pod is left."""
        return not (self.pins or self.mounts or self.cgroups)


@contextlib.contextmanager
def installed(ids: object, users: Mapping[str, Mapping[str, Any]], host: Mapping[str, Any]) -> Iterator[FakeMachine]:
    """Have the calls of this process go to a new machine.

    ``ids`` draws ids of pods and containers as ``secrets`` does, ``users`` are the users of containers, as an OCI
    specification has them, ``host`` is what a trace tells of the node's kernel.
    """
    machine = FakeMachine()

    def identify_as_then(security: ContainerSecurity, image_user: str, rootfs: Path) -> Identity:
        user = users.get(rootfs.parent.name)
        if user is None:
            return identify(security, image_user, rootfs)
        groups = tuple(user.get("additionalGids") or ())
        return Identity(ProcessUser(int(user.get("uid", 0)), int(user.get("gid", 0)), groups), "/")

    async def answer(_self: object, _paths: object, _what: str) -> None:
        """Every path answers."""

    changes: list[tuple[Any, str, object]] = [
        (pods, "write_sysctls_in", lambda _pins, _values: None),
        (builder, "secrets", ids),
        (pod_plan, "secrets", ids),
        (builder, "identify", identify_as_then),
        (probes.PathProbes, "require", answer),
        (capabilities, "effective", lambda: frozenset(host["effective"])),
        (capabilities, "last", lambda: host["last_capability"]),
        (lsm, "has_apparmor", lambda: host["apparmor"]),
        (lsm, "has_selinux", lambda: host["selinux"]),
        (rights, "let_in", lambda *_: None),
        (pod_files, "give_files", lambda *_: None),
    ]
    former = [(of, name, getattr(of, name)) for of, name, _ in changes]
    try:
        for of, name, instead in changes:
            setattr(of, name, instead)
        yield machine
    finally:
        for of, name, was in former:
            setattr(of, name, was)
