"""``crinoid serve`` with failpoints before and after irreversible acts: ``python -m chaos.failing_daemon serve …``.

The product has no line for it. Whatever leaves a trace on the host goes through a few primitive functions (SQLite, file
names, mounts and namespaces, programs, signals, netlink), and these are wrapped before crinoid is imported. A point's
name is the act and what it is done to, with ids and numbers taken out: ``os.mkdir run/pods/ID``.

``CRINOID_FAILPOINTS`` names a directory: ``hits`` there gets the name of each act that is done, one a line, and
``plan`` (see ``Plan``) says where to fail. It is looked at before each act, so that a daemon that runs can be told.

``python -m chaos.failing_daemon template …`` imports all that a daemon needs and forks one for each line on its
standard input, the name of the log that the daemon is to write: ``forked_daemon`` starts daemons so, without the 0.8 s
of processor time that an interpreter of their own takes for imports each time.
"""

import contextlib
import errno
import functools
import importlib
import json
import os
import pkgutil
import re
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

VARIABLE = "CRINOID_FAILPOINTS"
KILL, KILL_ALONE = "kill", "kill alone"
BEFORE, AFTER = "before", "after"
LIBC_CALLS = frozenset({"mount", "umount2", "unshare", "syncfs", "sethostname"})
SYSCALLS = {428: "open_tree", 429: "move_mount", 430: "fsopen", 432: "fsmount", 442: "mount_setattr"}
SPAWN = "crinoid.core.api.linux.spawning.posix_spawnp"
# SQLite says of a statement that fails that it is an I/O error, since a full disk has a remedy of its own in ``store``.
OWN_ERRORS = {"os.fsync": errno.EIO, "syncfs": errno.EIO, SPAWN: errno.EAGAIN, "umount2": errno.EIO}
"""What the kernel answers when these fail; ENOSPC for all others."""

# What differs from one run to the next.
_ID = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(
    r"(?<![0-9a-zA-Z])(?=[a-z-]*[0-9])[0-9a-f]{8,40}(?![0-9a-zA-Z])|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)
_LINK_NAME = re.compile(r"(?<![0-9a-zA-Z])cr[0-9a-z]{13}(?![0-9a-zA-Z])")
_NUMBER = re.compile(r"[0-9]+")
_HIERARCHY = re.compile(r"/sys/fs/cgroup/[a-z_,]+(?=/)")  # each is treated as the other


@dataclass(frozen=True)
class Plan:
    """Fail at the ``number``-th act of this name (from 1), before it is done or after.

    ``act``: KILL all but monitors and containers, KILL_ALONE the daemon, or any other word to have the act fail.
    """

    name: str
    number: int = 1
    when: str = BEFORE
    act: str = KILL

    def __str__(self) -> str:
        return f"{self.act} {self.when} {self.name} ({self.number})"

    def write(self, directory: Path) -> None:
        """Have the daemon do so: it counts from now on."""
        temporary = directory / "plan.new"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.rename(directory / "plan")


T = TypeVar("T")


class Failpoints:
    """Counts acts, and fails where the plan says so. Works in any thread."""

    def __init__(self, directory: Path, shortened: dict[str, str]) -> None:
        """``shortened``: beginnings of paths, and what stands for them in names."""
        self._plan_path = str(directory / "plan")
        self._shortened = shortened
        self._hits = os.open(directory / "hits", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._write, self._kill = os.write, os.kill
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._plan: Plan | None = None
        self._plan_file = (0, 0)
        self._counts: Counter[str] = Counter()

    def act(self, name: str, subject: object, function: Callable[[], T]) -> T:
        """Do an act with its two points. One that is done as a part of another has none of its own."""
        if getattr(self._inside, "act", False):
            return function()
        point = f"{name} {self._normal(subject)}".rstrip()
        number, plan = self._count(point)
        planned = plan if plan is not None and (plan.name, plan.number) == (point, number) else None
        if planned is not None and planned.when == BEFORE:
            self._fail(planned, name)
        self._inside.act = True
        try:
            return function()
        finally:
            self._inside.act = False
            if planned is not None and planned.when == AFTER:
                self._fail(planned, name)

    def _count(self, point: str) -> tuple[int, Plan | None]:
        with self._lock:
            try:
                status = os.stat(self._plan_path)
                found = (status.st_ino, status.st_mtime_ns)  # the number alone may be that of one that is gone
                if found != self._plan_file:
                    self._plan = Plan(**json.loads(Path(self._plan_path).read_text()))
                    self._plan_file = found
                    self._counts.clear()
            except FileNotFoundError:
                self._plan = None
            self._counts[point] += 1
            self._write(self._hits, f"{point}\n".encode())
            return self._counts[point], self._plan

    def _fail(self, plan: Plan, name: str) -> None:
        self._write(self._hits, f"! {plan}\n".encode())
        if plan.act not in (KILL, KILL_ALONE):
            number = OWN_ERRORS.get(name, errno.ENOSPC)
            if name.startswith("sqlite"):
                raise sqlite3.OperationalError("disk I/O error")
            raise OSError(number, f"{os.strerror(number)} (failpoint)")
        if plan.act == KILL:
            for child in _children():  # programs that it runs die as well; monitors and containers live on
                self._kill(child, signal.SIGKILL)
            self._kill(0, signal.SIGKILL)  # its process group
        self._kill(os.getpid(), signal.SIGKILL)

    def _normal(self, subject: object) -> str:
        text = os.fsdecode(subject) if isinstance(subject, bytes | os.PathLike) else str(subject)
        for beginning, short in self._shortened.items():
            text = text.replace(beginning, short)
        text = _LINK_NAME.sub("LINK", _HIERARCHY.sub("/sys/fs/cgroup/*", _ID.sub("ID", text)))
        return _NUMBER.sub("#", _TOKEN.sub("X", text))[:200]


def _children() -> list[int]:
    """The daemon's own programs but for monitors and their containers."""
    found: list[int] = []
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            pids = map(int, children.read_text().split())
            found += [pid for pid in pids if "conmon" not in Path(f"/proc/{pid}/comm").read_text()]
    return found


def wrap(points: Failpoints) -> None:
    """Put the points around every primitive function."""
    for name in ("mkdir", "rmdir", "unlink", "mkfifo", "mknod"):
        _wrap(points, os, name, lambda arguments: arguments[0])
    for name in ("symlink", "link"):
        _wrap(points, os, name, lambda arguments: arguments[1])
    for name in ("rename", "replace"):
        _wrap(points, os, name, lambda arguments: f"{os.fspath(arguments[0])} -> {os.fspath(arguments[1])}")
    for name in ("fsync", "write", "kill", "killpg"):
        _wrap(points, os, name, lambda _arguments: _caller())
    _wrap(points, os, "sendfile", lambda _arguments: _caller())
    _wrap(points, os, "open", lambda arguments: arguments[0], lambda arguments: bool(arguments[1] & os.O_CREAT))
    _wrap(points, signal, "pidfd_send_signal", lambda _arguments: _caller())
    _wrap_connections(points)

    from crinoid.core.api.linux import libc, spawning
    from crinoid.core.state import content
    from crinoid.plugins.networks.bridge import netlink, nftables

    _wrap_libc(points, libc)
    _wrap(points, spawning, "posix_spawnp", lambda arguments: " ".join(map(str, _telling(arguments[1]))))
    _wrap(points, netlink.Channel, "execute", lambda arguments: ", ".join(m.title for m in arguments[1]))
    _wrap(points, netlink.Channel, "try_each", lambda arguments: ", ".join(m.title for m in arguments[1]))
    _wrap(points, netlink.Channel, "send_batch", lambda _arguments: _caller())
    _wrap(points, nftables.Interpreter, "run", lambda _arguments: _caller())
    _wrap(points, content._Partial, "append", lambda _arguments: "a piece of a blob")


def _always(_arguments: tuple[Any, ...]) -> bool:
    return True


def _wrap(
    points: Failpoints,
    owner: Any,
    name: str,
    subject: Callable[[tuple[Any, ...]], object],
    counts: Callable[[tuple[Any, ...]], bool] = _always,
) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if not counts(arguments):
            return original(*arguments, **named)
        relative = "dir_fd" in named or "src_dir_fd" in named  # the names of a tree's members: any of them is alike
        of = _caller() if relative else subject(arguments)
        return points.act(f"{owner.__name__}.{name}", of, lambda: original(*arguments, **named))

    setattr(owner, name, wrapped)


def _wrap_libc(points: Failpoints, libc: Any) -> None:
    call, syscall = libc.call, libc.syscall

    def call_with_points(name: str, *arguments: Any, **named: Any) -> int:
        if name not in LIBC_CALLS:
            return int(call(name, *arguments, **named))
        subject = _target(name, arguments) or named.get("path") or _caller()
        return int(points.act(name, subject, lambda: call(name, *arguments, **named)))

    def syscall_with_points(number: int, *arguments: Any, **named: Any) -> int:
        if number not in SYSCALLS:
            return int(syscall(number, *arguments, **named))
        subject = named.get("path") or _caller()
        return int(points.act(SYSCALLS[number], subject, lambda: syscall(number, *arguments, **named)))

    libc.call, libc.syscall = call_with_points, syscall_with_points


def _target(name: str, arguments: tuple[Any, ...]) -> object:
    """Of mount(2) the target."""
    return arguments[1] if name == "mount" else arguments[0] if name == "umount2" else None


def _wrap_connections(points: Failpoints) -> None:
    """Every statement that changes the database; the kind of a ledger row and the state in a record are in the name."""

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, parameters: Any = (), /) -> sqlite3.Cursor:
            words = statement.split()
            if words[0].upper() not in ("INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT"):
                return super().execute(statement, parameters)
            kinds = [p for p in parameters if isinstance(p, str) and re.fullmatch("[a-z]{3,12}", p)]
            states = [state for p in parameters for state in re.findall(r'"state":"([a-z-]+)"', str(p))]
            subject = " ".join([*(word for word in words[:5] if re.fullmatch("[A-Za-z_]+", word)), *kinds, *states])
            return points.act("sqlite", subject, lambda: super(Connection, self).execute(statement, parameters))

        def executescript(self, statement: str, /) -> sqlite3.Cursor:
            return points.act("sqlite", "script", lambda: super(Connection, self).executescript(statement))

    sqlite3.connect = functools.partial(sqlite3.connect, factory=Connection)  # type: ignore[assignment]


def _telling(command: Any) -> list[str]:
    """A program with what it is to do: its words that are no paths, options or ids."""
    words = [os.fsdecode(word) for word in command]
    return [Path(words[0]).name, *(word for word in words[1:] if re.fullmatch("[a-z-]{2,24}", word))][:8]


def _caller() -> str:
    """The function of crinoid that called."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "/chaos/" in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


def main() -> None:
    points = Path(os.environ[VARIABLE])
    configuration = Path(sys.argv[sys.argv.index("--config") + 1]).read_text()
    found = re.findall(r'^(root|run|cgroup_root) = (".*")$', configuration, re.M)
    shortened = {json.loads(path): name for name, path in found} | {str(points.parent): "node"}
    wrap(Failpoints(points, shortened))

    from crinoid.core.cli.main import main as crinoid

    _retry_soon()
    if sys.argv[1] == "template":
        sys.argv[1] = "serve"
        _fork_when_told()
    crinoid()


def _fork_when_told() -> None:
    """Return in each child; the parent tells its process id, and ends with its standard input."""
    for name in ("core.cli.serve", "core.daemon.serve", "core", "plugins"):
        module = importlib.import_module(f"crinoid.{name}")
        for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"crinoid.{name}."):
            if ".testing" not in found.name and not found.name.endswith("__main__"):
                with contextlib.suppress(ImportError):  # what is optional
                    importlib.import_module(found.name)
    for line in sys.stdin:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: who asked has their pidfd
        if child := os.fork():
            print(child, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        # not by os.open: it is no act of crinoid's
        with open(line.rstrip("\n"), "ab") as log, open(os.devnull, "rb") as nothing:
            for source, target in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(source.fileno(), target)
        return
    sys.exit()


def _retry_soon() -> None:
    """What is deferred is over within a test."""
    from crinoid.core.api import backoff

    backoff.FIRST_S = 0.2


if __name__ == "__main__":
    main()
