"""Control groups of both versions behind one set of functions: made, limited, measured, emptied and removed.

Paths are below the mount points, such as ``/kubepods/pod1/abc``, the same in every hierarchy of version 1. A host
with hierarchies of both versions counts as version 1; where they are mounted is read from mountinfo once. Everything
blocks, most of it for microseconds; ``kill`` and ``remove`` may wait, so call those in a thread. Errors are OSError
with the path where not said otherwise.

Whose a cgroup is can be seen from itself, whatever a record says: every one that is made here carries a mark, the
extended attribute ``trusted.crinoid.owner`` (the kernel keeps it as long as the cgroup, so it is gone when somebody
makes one of the same path anew). ``belongs_to`` is asked before anything is killed or removed by a path that was read
from somewhere; ``kill`` and ``remove`` themselves do what they are told.
"""

import contextlib
import errno
import functools
import math
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.procfs import read_lines
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.stats import CgroupUsage, Pressure, PressureStats

_V1_CONTROLLERS = frozenset(
    {
        *("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb"),
        *("memory", "misc", "net_cls", "net_prio", "perf_event", "pids", "rdma"),
    }
)
_DELEGATED = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb")
_HUGEPAGES = Path("/sys/kernel/mm/hugepages")
_NO_LIMIT = 1 << 62  # version 1 writes a number close to 2**63 where there is no limit
_READ_BYTES = 1 << 14
_SHORT_BYTES = 1 << 11
_KILL_S = 5.0
_PAUSE_S = 0.01
_REMOVE_TRIES = 50
_MAKE_TRIES = 50
GONE = frozenset({errno.ENOENT, errno.ENODEV})
"""What the kernel says of a cgroup that is not there, and of the open files of one that has just been removed."""
_MARK = "trusted.crinoid.owner"
_ANYBODY = "-"
_DRAWN_ID = re.compile(r"[0-9a-f]{64}")
_MAX_NAME_BYTES = 255
_MAX_DEPTH = 64  # Kubernetes has five; 1,500 take the kernel half a minute to make, in each hierarchy
_MAX_PATH_BYTES = 4000  # what the mount point and a file in it leave of the kernel's 4,096


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where cgroups are mounted. Version 1: a directory per controller, and ``others`` without one (systemd's, the
    unified one). Version 2: ``unified`` alone."""

    version: int
    by_controller: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    unified: str = ""

    @classmethod
    def read(cls, mountinfo: Iterable[str]) -> "Hierarchies":
        """Find the mount points in the lines of ``/proc/self/mountinfo``; the first of several holds."""
        by_controller: dict[str, str] = {}
        others: list[str] = []
        unified = ""
        for point, type_, options in _cgroup_mounts(mountinfo):
            if type_ == "cgroup2":
                unified = unified or point
            elif found := _V1_CONTROLLERS & set(options):
                by_controller = dict.fromkeys(found, point) | by_controller
            elif point not in others:
                others.append(point)
        if not by_controller:
            return cls(2, unified=unified)
        return cls(1, by_controller, tuple(others), unified)

    @property
    def made(self) -> tuple[str, ...]:
        """The hierarchies in which a cgroup of ours exists."""
        if self.version == 2:
            return (self.unified,)
        return (*sorted(set(self.by_controller.values())), *self.others)

    @property
    def all(self) -> tuple[str, ...]:
        """The hierarchies in which a runtime may have made a cgroup below ours."""
        return (*self.made, self.unified) if self.version == 1 and self.unified else self.made

    def controllers(self) -> frozenset[str]:
        """Name the controllers in use on the host."""
        if self.version == 2:
            return frozenset((_read(f"{self.unified}/cgroup.controllers") or "").split())
        return frozenset(self.by_controller)

    def make(self, path: str) -> None:
        """See the function of the same name."""
        _check(path)
        try:
            with _room_for(path):
                _again_while_gone(lambda: self._make_everywhere(path))
        except NotADirectoryError as error:
            raise InvalidArgument(
                f"cgroup {path} can't be made: {error.filename} is a file, by which the kernel controls the one above"
            ) from error

    def _make_everywhere(self, path: str) -> None:
        for root in self.made:
            self._make_in(root, path)
            if self.version == 2:
                _delegate(root, path)
        for root in set(self.all) - set(self.made):  # runc would make it there, without a mark that it is ours
            with contextlib.suppress(OSError):
                self._make_in(root, path)

    def make_new(self, path: str, owner: str) -> None:
        """See the function of the same name."""
        _check(path)
        with _room_for(path):
            _again_while_gone(lambda: self._make_new(path, owner))

    def _make_new(self, path: str, owner: str) -> None:
        """mkdir itself tells whether it was there: no check can be too early."""
        parent = path.rstrip("/").rpartition("/")[0]
        if parent:
            self.make(parent)
        made: list[str] = []
        try:
            for root in self.all:
                if parent and root not in self.made:
                    self._make_in(root, parent)
                rights.make_directory(root + path, rights.SHOWN_DIRECTORY)
                made.append(root + path)
                os.setxattr(root + path, _MARK, owner.encode())
                if root == self.by_controller.get("cpuset"):
                    _inherit_cpuset(root + path)
                if self.version == 2:
                    _delegate(root, path)
        except OSError as error:
            for directory in made:
                _remove_directory(directory)
            if error.errno == errno.EEXIST:
                raise AlreadyExists(
                    f"cgroup {path} is there already ({error.filename}), so it is somebody else's"
                ) from None
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
                raise Unsupported(f"cgroup {path} can't be marked as crinoid's: {error.strerror}") from error
            raise

    def belongs_to(self, path: str, owner: str) -> bool:
        """See the function of the same name."""
        if not is_path(path) or not owner:
            return False
        if is_named_by_owner(path):
            return owner_in_name(path) == owner
        marks = [_read_mark(root + path) for root in self.all if os.path.isdir(root + path)]  # noqa: PTH112
        return bool(marks) and all(mark == owner for mark in marks)

    def is_marked(self, path: str) -> bool:
        """See the function of the same name."""
        return is_path(path) and bool(_read_mark(self.made[0] + path))

    def remove_marked(self, path: str) -> bool:
        """See the function of the same name."""
        if not is_path(path):
            return False
        for root in self.all:
            if _read_mark(root + path):
                try:
                    if _is_used(root + path):
                        return False
                    _remove_directory(root + path)
                except OSError:
                    return False
            elif os.path.isdir(root + path):  # noqa: PTH112
                return False
        return True

    def _make_in(self, root: str, path: str) -> None:
        """Most often all but the last is there; but a cpuset can't take processors from one above that has none yet."""
        with contextlib.suppress(FileNotFoundError):
            if root != self.by_controller.get("cpuset"):
                self._make_directory(root, root + path)
                return
        for directory in _levels(root, path):
            self._make_directory(root, directory)

    def _make_directory(self, root: str, directory: str) -> None:
        try:
            rights.make_directory(directory, rights.SHOWN_DIRECTORY)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(directory).st_mode):  # noqa: PTH116  # one that has gone meanwhile is no file
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory) from None
        else:
            with contextlib.suppress(OSError):  # without the right to mark it: it stays when it is not used any more
                os.setxattr(directory, _MARK, _ANYBODY.encode())
        if root == self.by_controller.get("cpuset"):
            _inherit_cpuset(directory)

    def remove(self, path: str) -> None:
        """See the function of the same name."""
        _check(path)
        for root in self.all:
            for directory in reversed(list(_tree(root + path))):
                _remove_directory(directory)

    def processes(self, path: str) -> tuple[int, ...]:
        """See the function of the same name."""
        found: set[int] = set()
        for root in self.all:
            for directory in _tree(root + path):
                found.update(members(directory))
        return tuple(sorted(found - {0, os.getpid()}))

    def join(self, path: str, pid: int) -> None:
        """See the function of the same name."""
        for root in self.made:
            _write(f"{root}{path}/cgroup.procs", str(pid))

    def enter(self, path: str) -> None:
        """See the function of the same name."""
        if self.version == 2:
            raise Unsupported("cgroup v2 keeps the threads of a process together")
        for root in self.made:
            _write(f"{root}{path}/tasks", "0")

    def warm_up(self) -> None:
        """See the function of the same name."""
        own = self._own_path()
        if own is not None:
            _write(own, str(threading.get_native_id()))

    def _own_path(self) -> str | None:
        """The file of the calling thread's own cgroup that a thread is moved by, in any one hierarchy."""
        for line in (_read("/proc/thread-self/cgroup") or "").split("\n")[:-1]:
            _, names, path = line.split(":", 2)
            root = self.unified if self.version == 2 else self.by_controller.get(names.split(",")[0])
            if root and (names == "") == (self.version == 2):
                return f"{root}{path.rstrip('/')}/{'cgroup.threads' if self.version == 2 else 'tasks'}"
        return None

    def kill(self, path: str, timeout_s: float) -> None:
        """See the function of the same name."""
        _check(path)
        self._require_outside(path)
        deadline = time.monotonic() + timeout_s
        if self.version == 2:
            self._kill_at_once(path)
        while left := self.processes(path):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.thaw(path)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"cgroup {path}: processes {left} have not ended {timeout_s:g} s after SIGKILL")
            time.sleep(_PAUSE_S)

    def _kill_at_once(self, path: str) -> None:
        """The kernel kills all, also what is forked meanwhile (Linux 5.14); but not in a cgroup of threads."""
        try:
            _write(f"{self.unified}{path}/cgroup.kill", "1")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP):
                raise

    def _require_outside(self, path: str) -> None:
        """Whoever kills all processes of a cgroup above his own ends with them, and most of the host, too."""
        for line in (_read("/proc/self/cgroup") or "").split("\n")[:-1]:
            own = line.split(":", 2)[2]
            if f"{own.rstrip('/')}/".startswith(f"{path.rstrip('/')}/"):
                raise InvalidArgument(f"cgroup {path} holds this very process: nothing in it is killed")

    def thaw(self, path: str) -> None:
        """See the function of the same name."""
        _check(path)
        root, name, word = self.unified, "cgroup.freeze", "0"
        if self.version == 1:
            root, name, word = self.by_controller.get("freezer", ""), "freezer.state", "THAWED"
        for directory in _tree(root + path) if root else ():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _write(f"{directory}/{name}", word)

    def read_usage(self, path: str) -> CgroupUsage:
        """See the function of the same name."""
        return _read_usage_v2(self.unified + path) if self.version == 2 else _read_usage_v1(self.by_controller, path)

    def read_file(self, path: str, name: str) -> str | None:
        """See the function of the same name."""
        _check(path)
        directories = (self.by_controller.get(name.split(".", 1)[0], ""), self.unified)
        found = (_read(f"{directory}{path}/{name}") for directory in directories if directory)
        return next((text for text in found if text is not None), None)

    def write_resources(self, path: str, resources: LinuxResources) -> None:
        """See the function of the same name."""
        _check(path)
        if self.version == 2:
            _write_resources_v2(self.unified + path, resources)
        else:
            _write_resources_v1(self.by_controller, path, resources)

    def check_settings(self, path: str, names: Iterable[str]) -> None:
        """See the function of the same name."""
        _check(path)
        if self.version != 2:
            raise Unsupported(f"cgroup {path}: the host has cgroup v1, but unified settings ask for v2")
        there = [root for root in (self.unified, *_levels(self.unified, path)) if Path(root).is_dir()]
        for name in names:
            _check_setting(there[-1], name, is_root=len(there) == 1)


def members(directory: str) -> tuple[int, ...]:
    """Return what runs in one cgroup, by its directory: processes, or threads where the kernel tells of those alone.

    It does in a threaded cgroup of version 2 (cgroup-v2.rst, "Threads"); a signal to a thread's id goes to its process.
    """
    text = _read(f"{directory}/cgroup.procs")
    if text is None:
        text = _read(f"{directory}/cgroup.threads")
    return tuple(map(int, (text or "").split()))


def version() -> int:
    """Return 1 or 2; a hybrid host is 1."""
    return _host().version


def controllers() -> frozenset[str]:
    """Name the controllers in use on the host."""
    return _host().controllers()


def make(path: str) -> None:
    """Make a cgroup with all above it, in every hierarchy, with its controllers switched on. Idempotent.

    What was not there is marked as made by crinoid.
    """
    _host().make(path)


def make_new(path: str, owner: str) -> None:
    """Make a cgroup that must not be there in any hierarchy, and mark it as its owner's, such as a container's id.

    Raises AlreadyExists, and Unsupported where it can't be marked; then nothing of it is left.
    """
    _host().make_new(path, owner)


def belongs_to(path: str, owner: str) -> bool:
    """Return whether a cgroup is the owner's, so that what runs in it may be killed and it may be removed.

    It is if its name is the owner's id, 64 hexadecimal digits that crinoid has drawn and nobody could know before (with
    systemd ``PREFIX-ID.scope`` or ``PREFIX-ID.slice``), or if it is there and ``make_new`` has made it for this owner.
    """
    return _host().belongs_to(path, owner)


def is_named_by_owner(path: str) -> bool:
    """Return whether a cgroup has the id of a pod or container for its name, which it then belongs to."""
    return _DRAWN_ID.fullmatch(owner_in_name(path)) is not None


def is_marked(path: str) -> bool:
    """Return whether crinoid has made a cgroup, for whomever."""
    return _host().is_marked(path)


def remove_marked(path: str) -> bool:
    """Remove a cgroup that crinoid has made, where no process is and no cgroup below; tell whether it is gone.

    Any other, and what is no path of a cgroup, is left as it is.
    """
    return _host().remove_marked(path)


def find_named(owners: Collection[str]) -> list[str]:
    """Return the paths of the cgroups that have the id of one of these owners for a name, inner ones last."""
    found: dict[str, None] = {}
    for root in _host().made:
        for directory in _tree(root):
            if owner_in_name(directory) in owners:
                found[directory.removeprefix(root)] = None
    return list(found)


def is_path(path: object) -> bool:
    """Return whether this can be the path of a cgroup below the root: text, absolute, without ``..`` or a newline,
    which the kernel refuses, and not too deep."""
    if not isinstance(path, str) or not path.startswith("/") or not {"\0", "\n"}.isdisjoint(path):
        return False
    parts = [part for part in path.split("/") if part]
    if not 0 < len(parts) <= _MAX_DEPTH or not {".", ".."}.isdisjoint(parts):
        return False
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        return False
    return all(len(os.fsencode(part)) <= _MAX_NAME_BYTES for part in parts)


def remove(path: str) -> None:
    """Remove a cgroup with all below it, in every hierarchy. Idempotent. Raises OSError (EBUSY) if it stays in use."""
    _host().remove(path)


def children(path: str) -> list[str]:
    """Name the cgroups right below one, in any hierarchy; none where there is none."""
    found: set[str] = set()
    for root in _host().all:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.update(one.name for one in os.scandir(root + path) if one.is_dir())
    return sorted(found)


def exists(path: str) -> bool:
    """Return whether there is such a cgroup, in any hierarchy that ``make`` makes one in."""
    return any(Path(root + path).is_dir() for root in _host().made)


def prune(path: str) -> None:
    """Remove a cgroup that has no process and none below it, in every hierarchy; leave any other as it is."""
    _check(path)
    for root in _host().all:
        with contextlib.suppress(OSError):
            Path(root + path).rmdir()


def remove_unused(path: str) -> bool:
    """Remove a cgroup where no process is and no cgroup below; tell whether it is gone from every hierarchy.

    The first hierarchy in which it is in use has the others left as they are: far cheaper than ``prune`` there, as each
    attempt has the kernel lock all cgroups.
    """
    _check(path)
    for root in _host().all:
        try:
            os.rmdir(root + path)  # noqa: PTH106  # done for each container
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def accounts_swap() -> bool:
    """Return whether the kernel can limit swap: version 1 only where it was switched on at boot."""
    host = _host()
    return host.version == 2 or Path(f"{host.by_controller.get('memory', '')}/memory.memsw.limit_in_bytes").exists()


def hugepage_sizes() -> frozenset[str]:
    """Return the page sizes that can be limited, such as ``2MB``; none without the hugetlb controller in use."""
    if "hugetlb" not in controllers():
        return frozenset()
    sizes = (int(directory.name[len("hugepages-") : -len("kB")]) for directory in _HUGEPAGES.glob("hugepages-*kB"))
    return frozenset(f"{size >> 10}MB" if size < 1 << 20 else f"{size >> 20}GB" for size in sizes)


def kill(path: str, timeout_s: float = _KILL_S) -> None:
    """Kill every process of a cgroup and those below, also frozen ones, until none is left. Idempotent.

    Raises DeadlineExceeded, naming the processes, when some do not end.
    """
    _host().kill(path, timeout_s)


def thaw(path: str) -> None:
    """Let frozen processes of a cgroup and those below go on. Idempotent.

    On version 1 a signal, SIGKILL too, has no effect on a frozen process before that: send it first, so that the
    process does nothing else any more.
    """
    _host().thaw(path)


def processes(path: str) -> tuple[int, ...]:
    """Return the processes in a cgroup and those below; none for a cgroup that is not there.

    The caller's own is never among them: a thread of it may have entered to start another one there (``enter``), and
    whoever kills all of these must not kill himself.
    """
    return _host().processes(path)


def join(path: str, pid: int) -> None:
    """Move a process, with all its threads, into a cgroup of every hierarchy."""
    _host().join(path, pid)


def enter(path: str) -> None:
    """Move the calling thread alone, so that what it starts begins there: microseconds, where ``join`` may wait.

    Raises FileNotFoundError for a cgroup that is missing in some hierarchy, OSError (ENOSPC) while it is being made;
    the thread may have entered others by then. Raises Unsupported on version 2.
    """
    _host().enter(path)


def warm_up() -> None:
    """Let the kernel get ready to move processes between cgroups, as runtimes do; for a thread of nobody else.

    The first move waits for all processors to pass a point of rest (an RCU grace period, some ten milliseconds, in the
    kernel's ``cgroup_threadgroup_rwsem``), those of as long a time after it do not. So moving a thread to where it is
    already, early enough, takes the wait off them. Where this can't be done nothing happens.
    """
    with contextlib.suppress(OSError):
        _host().warm_up()


def read_usage(path: str) -> CgroupUsage:
    """Read what a cgroup, with those below it, uses: four files in version 1, ten in version 2. Raises NotFound."""
    return _host().read_usage(path)


def read_usages(paths: Iterable[str]) -> list[CgroupUsage | None]:
    """Read what several cgroups use, each as ``read_usage`` does; ``None`` in the place of one that is not there."""
    return [_usage_or_none(path) for path in paths]


def read_file(path: str, name: str) -> str | None:
    """Read one file of a cgroup, such as ``memory.stat``; ``None`` where there is none.

    In version 1 the controller that the name begins with says in which hierarchy; a file that it lacks is looked for in
    the unified one, which hybrid hosts have too.
    """
    return _host().read_file(path, name)


def full_of_processes(path: str, wanted: int) -> str:
    """Return the cgroup, this one or one above it, that has no room for so many more processes and threads; or nothing.

    The text says how many it has, and may have. The kernel counts both alike (cgroup-v2, "PID").
    """
    above = path.strip("/")
    while above:
        limit, current = (read_file(f"/{above}", f"pids.{name}") or "max" for name in ("max", "current"))
        if "max" not in (limit.strip(), current.strip()) and int(current) + wanted > int(limit):
            return f"cgroup /{above} has {int(current)} processes and threads, and may have {int(limit)}"
        above = above.rpartition("/")[0]
    return ""


def write_resources(path: str, resources: LinuxResources) -> None:
    """Set limits; zero and empty fields stay as they are, -1 lifts a limit.

    Raises Unsupported when the host lacks the controller or cgroup version, NotFound for the cgroup, InvalidArgument
    for a value that the kernel refuses.
    """
    _host().write_resources(path, resources)


def check_settings(path: str, names: Iterable[str]) -> None:
    """Check names of settings against a cgroup of version 2 or, before there is one, that above it; write nothing.

    Raises InvalidArgument for one that the kernel does not have, Unsupported where its controller is off and on
    version 1.
    """
    _host().check_settings(path, names)


@functools.cache
def _host() -> Hierarchies:
    return Hierarchies.read(read_lines("/proc/self/mountinfo"))


def _cgroup_mounts(mountinfo: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    for line in mountinfo:
        left, _, right = line.partition(" - ")
        type_, _, rest = right.partition(" ")
        if type_ in ("cgroup", "cgroup2"):
            yield left.split(" ")[4], type_, rest.split(" ")[-1].split(",")


def _again_while_gone(make: Callable[[], None]) -> None:
    """Others remove what is empty, also above the cgroup that is being made, until that is whole."""
    for _ in range(_MAKE_TRIES):
        try:
            return make()
        except OSError as error:
            if error.errno not in GONE:
                raise
    return make()


def _check(path: str) -> None:
    """A slip here would kill or remove the whole host's processes."""
    if not is_path(path):
        raise InvalidArgument(f"{path!r:.300} is not the path of a cgroup below the root")


def owner_in_name(path: str) -> str:
    """Return what a cgroup's name says of its owner: the name itself, or what a unit of systemd's, ``PREFIX-ID.scope``
    or ``PREFIX-ID.slice``, has for an id."""
    name, dot, kind = path.rstrip("/").rpartition("/")[2].rpartition(".")
    return name.rpartition("-")[2] if kind in ("scope", "slice") else name + dot + kind


def _read_mark(directory: str) -> str:
    """Return whose a cgroup is; empty where there is none, or it is not of crinoid's making."""
    try:
        return os.getxattr(directory, _MARK).decode(errors="replace")
    except OSError:
        return ""


def _levels(root: str, path: str) -> Iterator[str]:
    directory = root
    for part in filter(None, path.split("/")):
        directory = f"{directory}/{part}"
        yield directory


@contextlib.contextmanager
def _room_for(path: str) -> Iterator[None]:
    """The kernel's EAGAIN is no passing state here: one above limits how many, or how deep, those below it are."""
    try:
        yield
    except BlockingIOError as error:
        raise ResourceExhausted(
            f"cgroup {path} can't be made: cgroup.max.depth or cgroup.max.descendants of one above {error.filename} "
            f"is reached"
        ) from error


def _tree(directory: str) -> Iterator[str]:
    """Yield a cgroup's directory and all below, from the top."""
    try:
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    yield directory
    for child in below:
        yield from _tree(child)


def _is_used(directory: str) -> bool:
    """Return whether a process is in a cgroup, or another cgroup below it."""
    with contextlib.suppress(FileNotFoundError):
        return bool(Path(directory, "cgroup.procs").read_text()) or any(one.is_dir() for one in os.scandir(directory))
    return False


def _remove_directory(directory: str) -> None:
    """A cgroup stays busy for a moment after its last process ended."""
    for left in reversed(range(_REMOVE_TRIES)):
        try:
            Path(directory).rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or not left:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def _inherit_cpuset(directory: str) -> None:
    """Version 1: a new cpuset is empty, and no process can join it so."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (_read(f"{directory}/{name}") or "").strip():
            _write(f"{directory}/{name}", (_read(f"{Path(directory).parent}/{name}") or "").strip())


def _delegate(root: str, path: str) -> None:
    """Version 2: switch the controllers on for the children of every cgroup above ours.

    One that can't be switched on is left: a limit that needs it then says so.
    """
    for directory in [root, *_levels(root, path)][:-1]:
        there = (_read(f"{directory}/cgroup.controllers") or "").split()
        on = (_read(f"{directory}/cgroup.subtree_control") or "").split()
        for name in _DELEGATED:
            if name in there and name not in on:
                with contextlib.suppress(OSError):
                    _write(f"{directory}/cgroup.subtree_control", f"+{name}")


def _usage_or_none(path: str) -> CgroupUsage | None:
    try:
        return _host().read_usage(path)
    except NotFound:
        return None


def _read_usage_v1(by_controller: Mapping[str, str], path: str) -> CgroupUsage:
    cpuacct = _read_bytes(f"{by_controller.get('cpuacct', '')}{path}/cpuacct.usage")
    memory_directory = f"{by_controller.get('memory', '')}{path}"
    usage = _read_bytes(f"{memory_directory}/memory.usage_in_bytes")
    if cpuacct is None and usage is None:
        raise NotFound(f"cgroup {path} does not exist")
    memory = _lines(_read_bytes(f"{memory_directory}/memory.stat"))
    limit = _figure(memory, b"\nhierarchical_memory_limit ") or _NO_LIMIT
    both = _figure(memory, b"\nhierarchical_memsw_limit ") or _NO_LIMIT
    used = int(usage or 0)
    return CgroupUsage(
        timestamp_ns=time.time_ns(),
        cpu_ns=int(cpuacct or 0),
        memory_usage_bytes=used,
        memory_working_set_bytes=max(0, used - (_figure(memory, b"\ntotal_inactive_file ") or 0)),
        memory_rss_bytes=_figure(memory, b"\ntotal_rss ") or 0,
        memory_limit_bytes=limit if limit < _NO_LIMIT else None,
        page_faults=_figure(memory, b"\ntotal_pgfault ") or 0,
        major_page_faults=_figure(memory, b"\ntotal_pgmajfault ") or 0,
        swap_usage_bytes=_figure(memory, b"\ntotal_swap "),
        swap_limit_bytes=max(0, both - limit) if both < _NO_LIMIT else None,
        pids=int(_read_bytes(f"{by_controller.get('pids', '')}{path}/pids.current") or 0),
    )


def _read_usage_v2(directory: str) -> CgroupUsage:
    cpu = _read_bytes(f"{directory}/cpu.stat")
    if cpu is None:
        raise NotFound(f"cgroup {directory} does not exist")
    memory = _lines(_read_bytes(f"{directory}/memory.stat"))
    used = _number(_read(f"{directory}/memory.current")) or 0
    return CgroupUsage(
        timestamp_ns=time.time_ns(),
        cpu_ns=(_figure(_lines(cpu), b"\nusage_usec ") or 0) * 1000,
        memory_usage_bytes=used,
        memory_working_set_bytes=max(0, used - (_figure(memory, b"\ninactive_file ") or 0)),
        memory_rss_bytes=_figure(memory, b"\nanon ") or 0,
        memory_limit_bytes=_number(_read(f"{directory}/memory.max")),
        page_faults=_figure(memory, b"\npgfault ") or 0,
        major_page_faults=_figure(memory, b"\npgmajfault ") or 0,
        swap_usage_bytes=_number(_read(f"{directory}/memory.swap.current")),
        swap_limit_bytes=_number(_read(f"{directory}/memory.swap.max")),
        pids=_number(_read(f"{directory}/pids.current")) or 0,
        cpu_pressure=_pressure(_read(f"{directory}/cpu.pressure")),
        memory_pressure=_pressure(_read(f"{directory}/memory.pressure")),
        io_pressure=_pressure(_read(f"{directory}/io.pressure")),
    )


def _lines(content: bytes | None) -> bytes:
    """Lines of a name and a number each, with a line's end on either side of all of them, for ``_figure``."""
    return b"\n%b\n" % (content or b"")


def _figure(lines: bytes, name: bytes) -> int | None:
    """Find the number behind a name (``b"\\nanon "``); cheaper than to take apart all lines for a few."""
    found = lines.find(name)
    if found < 0:
        return None
    start = found + len(name)
    return int(lines[start : lines.index(b"\n", start)])


def _number(text: str | None) -> int | None:
    return None if text is None or text.startswith("max") else int(text)


def _pressure(text: str | None) -> PressureStats | None:
    if not text:
        return None
    lines = {line.split(" ", 1)[0]: _pressure_line(line) for line in text.splitlines()}
    nothing = Pressure(0, 0.0, 0.0, 0.0)
    return PressureStats(full=lines.get("full", nothing), some=lines.get("some", nothing))


def _pressure_line(line: str) -> Pressure:
    values = dict(word.split("=", 1) for word in line.split(" ")[1:])
    return Pressure(int(values["total"]), float(values["avg10"]), float(values["avg60"]), float(values["avg300"]))


def _write_resources_v1(by_controller: Mapping[str, str], path: str, resources: LinuxResources) -> None:
    if resources.unified:
        raise Unsupported(f"cgroup {path}: the host has cgroup v1, but unified settings ask for v2")
    _write_memory_v1(by_controller, path, resources)
    for name, value in _settings_v1(resources):
        _set(f"{_controller_directory(by_controller, name, path)}/{name}", value)


def _settings_v1(resources: LinuxResources) -> Iterator[tuple[str, str]]:
    numbers = {
        "cpu.shares": resources.cpu_shares,
        "cpu.cfs_period_us": resources.cpu_period,
        "cpu.cfs_quota_us": resources.cpu_quota,
        **{f"hugetlb.{size}.limit_in_bytes": limit for size, limit in resources.hugepage_limits.items()},
    }
    yield from ((name, str(value)) for name, value in numbers.items() if value)
    texts = {"cpuset.cpus": resources.cpuset_cpus, "cpuset.mems": resources.cpuset_mems}
    yield from ((name, value) for name, value in texts.items() if value)


def _write_memory_v1(by_controller: Mapping[str, str], path: str, resources: LinuxResources) -> None:
    """The limit with swap may never be below the one without: so their order depends on which way they go."""
    settings = [
        ("memory.limit_in_bytes", resources.memory_limit_bytes),
        ("memory.memsw.limit_in_bytes", resources.memory_swap_limit_bytes),
    ]
    wanted = [
        (f"{_controller_directory(by_controller, name, path)}/{name}", str(value)) for name, value in settings if value
    ]
    try:
        for file, value in wanted:
            _write(file, value)
    except OSError:
        for file, value in reversed(wanted):
            _set(file, value)


def _controller_directory(by_controller: Mapping[str, str], name: str, path: str) -> str:
    controller = name.split(".", 1)[0]
    if controller not in by_controller:
        raise Unsupported(f"cgroup {path}: the host has no {controller} controller, which {name} needs")
    return by_controller[controller] + path


def _check_setting(directory: str, name: str, *, is_root: bool) -> None:
    """The root has few settings: of those below it nothing is known until there is one."""
    controller, dot, rest = name.partition(".")
    if "/" in name or not (controller and dot and rest):
        raise InvalidArgument(f"cgroup {directory}: {name!r} is not the name of a setting")
    if controller != "cgroup" and controller not in (_read(f"{directory}/cgroup.controllers") or "").split():
        raise Unsupported(f"cgroup setting {name} does not exist in {directory}: controller {controller} is off")
    if not is_root and not Path(f"{directory}/{name}").exists():
        raise InvalidArgument(f"cgroup setting {name} does not exist in {directory}: this kernel has no such setting")


def _write_resources_v2(directory: str, resources: LinuxResources) -> None:
    settings = tuple(_settings_v2(directory, resources))
    if not Path(directory).is_dir():
        raise NotFound(f"cgroup {directory} does not exist")
    for name, _value in settings:
        _check_setting(directory, name, is_root=False)
    for name, value in settings:
        _set(f"{directory}/{name}", value)


def _settings_v2(directory: str, resources: LinuxResources) -> Iterator[tuple[str, str]]:
    if resources.cpu_shares:
        yield "cpu.weight", str(cpu_weight(resources.cpu_shares))
    if resources.cpu_quota or resources.cpu_period:
        yield "cpu.max", _cpu_max(_read(f"{directory}/cpu.max") or "max 100000", resources)
    if resources.memory_limit_bytes:
        yield "memory.max", _limit(resources.memory_limit_bytes)
    if resources.memory_swap_limit_bytes:
        yield "memory.swap.max", _swap_only(resources)
    for size, limit in resources.hugepage_limits.items():
        yield f"hugetlb.{size}.max", _limit(limit)
    texts = {"cpuset.cpus": resources.cpuset_cpus, "cpuset.mems": resources.cpuset_mems, **resources.unified}
    yield from ((name, value) for name, value in texts.items() if value)


def cpu_weight(shares: int) -> int:
    """Convert version 1's 2 to 262,144 to version 2's 1 to 10,000, such that the default of one is that of the other.

    The curve that the OCI runtimes have agreed on: 2 gives 1, 1024 gives 100, 262,144 gives 10,000.
    """
    bits = math.log2(min(max(shares, 2), 262_144))
    return math.ceil(10 ** ((bits * bits + 125 * bits) / 612 - 7 / 34))


def _cpu_max(now: str, resources: LinuxResources) -> str:
    quota, period = now.split()
    if resources.cpu_quota:
        quota = str(resources.cpu_quota) if resources.cpu_quota > 0 else "max"
    return f"{quota} {resources.cpu_period or period}"


def _limit(value: int) -> str:
    return str(value) if value >= 0 else "max"


def _swap_only(resources: LinuxResources) -> str:
    """The CRI's swap limit includes memory, as version 1's does."""
    both, memory = resources.memory_swap_limit_bytes, resources.memory_limit_bytes
    return "max" if both < 0 or memory < 0 else str(max(0, both - memory))


def _set(file: str, value: str) -> None:
    """Write a limit; the kernel's refusals become the errors of a request."""
    try:
        _write(file, value)
    except FileNotFoundError as error:
        directory = Path(file).parent
        if directory.is_dir():
            raise Unsupported(f"cgroup setting {file} does not exist: its controller is off") from error
        raise NotFound(f"cgroup {directory} does not exist") from error
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ERANGE, errno.EBUSY):
            raise InvalidArgument(f"{file} can't be set to {value}: {error.strerror}") from error
        raise


def _write(file: str, value: str) -> None:
    """Write one file at one go. A cgroup that goes away meanwhile (ENODEV) is one that is not there."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(errno.ENOENT if error.errno == errno.ENODEV else error.errno, error.strerror, file) from None


def _read(file: str) -> str | None:
    content = _read_bytes(file)
    return None if content is None else os.fsdecode(content)


def _read_bytes(file: str) -> bytes | None:
    """Read one file at one go; ``None`` where there is none, or where the kernel has it switched off."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read_all(fd)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):  # pressure is off; the cgroup goes away meanwhile
            return None
        raise


def _read_all(fd: int) -> bytes:
    content = piece = os.read(fd, _READ_BYTES)
    while len(piece) >= _SHORT_BYTES:  # the kernel answers in pieces of about a page: a short one is the last
        piece = os.read(fd, _READ_BYTES)
        content += piece
    return content
