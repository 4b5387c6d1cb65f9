"""Whether the kernel has killed in a container's cgroup for want of memory, also once that cgroup has gone.

systemd removes a scope with its last process, and the count of kills with it; a kernel that ends all of a cgroup at
once (``memory.oom.group``, as a kubelet wants it) leaves nobody the time to read it. On cgroup v2 the count of the
cgroup above, the pod's, has those of all below it, and stays. Used by ``oci_runtime``.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from crinoid.plugins.runtimes.processes.cgroup_places import cgroup_directory, is_unified, oom_kills


class OomWatch:
    """Of one container: from before its end until this is known. Belongs to the event loop's thread."""

    def __init__(self, cgroup: str, above: "_Above") -> None:
        self.cgroup = cgroup
        self.waiting = 0
        self._above = above
        self._found: bool | None = None

    @property
    def is_known(self) -> bool:
        """Whether it was asked."""
        return self._found is not None

    def has_killed(self) -> bool:
        """Tell whether the kernel has; to be asked once the container has ended. The first answer holds."""
        if self._found is None:
            directory, own = cgroup_directory("memory", self.cgroup), oom_kills(self.cgroup)
            is_gone = is_unified() and directory is not None and not directory.is_dir()
            self._found = self._above.attribute(self, None if is_gone else own) > 0
        return self._found


class _Above:
    """The cgroup above those of a pod's containers: how many kills there are, and how many of them are known whose."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known = oom_kills(path)
        self._counted = dict(_kills_below(path)) if is_unified() else {}
        """What of the known is that of cgroups that are not watched."""
        self.watches: dict[str, OomWatch] = {}

    def add(self, cgroup: str) -> OomWatch:
        """Begin to watch a container's cgroup, whose kills so far have no owner yet."""
        watch = self.watches[cgroup] = OomWatch(cgroup, self)
        self._known -= self._counted.pop(cgroup, 0)
        return watch

    def remove(self, watch: OomWatch) -> None:
        """Watch a container's cgroup no more; the kills of one whose end nobody has waited for are no other's."""
        del self.watches[watch.cgroup]
        if not watch.is_known and (kills := oom_kills(watch.cgroup)):
            self._counted[watch.cgroup] = kills
            self._known += kills

    def attribute(self, ended: OomWatch, kills: int | None) -> int:
        """Note how many were an ended container's, and return it; ``None``: those that are nobody else's."""
        if kills is None:
            others = sum(oom_kills(one.cgroup) for one in self.watches.values() if one is not ended)
            kills = max(0, oom_kills(self._path) - self._known - others)
        self._known += kills
        return kills


def _kills_below(path: str) -> Iterator[tuple[str, int]]:
    directory = cgroup_directory("memory", path)
    with suppress(OSError):  # it has gone, or comes later
        for one in directory.iterdir() if directory is not None else ():
            if kills := oom_kills(f"{path}/{one.name}"):
                yield f"{path}/{one.name}", kills


class OomKills:
    """Of all containers of a runtime."""

    def __init__(self) -> None:
        self._above: dict[str, _Above] = {}

    @contextmanager
    def watched(self, cgroup: str) -> Iterator[OomWatch]:
        """Watch a container's cgroup to its end; any number may."""
        path = cgroup.rpartition("/")[0]
        above = self._above.get(path) or self._above.setdefault(path, _Above(path))
        watch = above.watches.get(cgroup) or above.add(cgroup)
        watch.waiting += 1
        try:
            yield watch
            watch.has_killed()  # also of one that ended well, so that its kills are not taken for another's
        finally:
            watch.waiting -= 1
            if not watch.waiting:
                above.remove(watch)
            if not above.watches:
                self._above.pop(path, None)
