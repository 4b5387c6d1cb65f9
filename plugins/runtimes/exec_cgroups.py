"""A cgroup for each further process in a container, so that all that came from it can be found and killed.

cgroup v1: one in the freezer hierarchy alone, so that limits and accounts stay the container's. cgroup v2: a child
without controllers of its own, for the same reason. runc, and crun on v2, start the process in it (``exec --cgroup``);
crun on v1 would leave the container's other cgroups then, so the process is moved once it runs, with what it has
forked by then.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from crinoid.plugins.runtimes import pidfds
from crinoid.plugins.runtimes.cgroup_paths import folder, is_unified

_PAUSE_S = 0.01


class ExecCgroup(contextlib.AbstractContextManager["ExecCgroup"]):
    """The cgroup ``name`` below a container's; where it can't be made, the tree of processes must do."""

    def __init__(self, container: str, name: str, *, joined_by_runtime: bool) -> None:
        self._container = folder("freezer", container)
        self._name = name
        self._joined_by_runtime = joined_by_runtime or is_unified()
        self._path: Path | None = None

    def __enter__(self) -> "ExecCgroup":
        if self._container is not None:
            with contextlib.suppress(OSError):
                (self._container / self._name).mkdir()
                self._path = self._container / self._name
        return self

    def __exit__(self, *exc: object) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):  # a process left in the background keeps it, until delete
                self._path.rmdir()

    def runtime_options(self) -> tuple[str, ...]:
        """Return the options of ``exec`` that start the process in the cgroup."""
        if self._path is None or not self._joined_by_runtime:
            return ()
        return (f"--cgroup={'' if is_unified() else 'freezer:'}{self._name}",)

    def take_in(self, pid: int) -> None:
        """Move the process, with what came from it, unless the runtime has put it there."""
        if self._path is None or self._joined_by_runtime:
            return
        for one in self._from(pid):
            with contextlib.suppress(OSError):  # it has ended
                (self._path / "cgroup.procs").write_text(str(one))

    async def kill(self, pid: int, timeout_s: float) -> None:
        """Kill all that came from the process (0: none was started); what hangs in the kernel is given up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._kill_those_found(pid):  # noqa: ASYNC110  # they may have forked until they were stopped
                    await asyncio.sleep(_PAUSE_S)

    def _kill_those_found(self, pid: int) -> bool:
        """Stop all at once, so that none forks meanwhile; then kill. Tells whether there were any."""
        self._freeze(frozen=True)
        try:
            found = {one for one in (*self._members(), *self._from(pid)) if pidfds.start_time(one)}
            for one in found:
                _kill(one)
        finally:
            self._freeze(frozen=False)
        return bool(found)

    def _members(self) -> tuple[int, ...]:
        return _processes(self._path) if self._path is not None else ()

    def _from(self, pid: int) -> Iterable[int]:
        """The process, its descendants, and those of its session that other parents have taken on."""
        if pid <= 0:
            return ()
        leads = pidfds.session(pid) in (pid, 0)
        others = _processes(self._container) if leads and self._container is not None else ()
        return {pid, *_descendants(pid), *(one for one in others if pidfds.session(one) == pid)}

    def _freeze(self, *, frozen: bool) -> None:
        if self._path is None:
            return
        name, words = ("cgroup.freeze", "01") if is_unified() else ("freezer.state", ("THAWED", "FROZEN"))
        with contextlib.suppress(OSError):
            (self._path / name).write_text(words[frozen])


def _processes(cgroup: Path) -> tuple[int, ...]:
    try:
        return tuple(map(int, (cgroup / "cgroup.procs").read_text().split()))
    except OSError:
        return ()


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    left = [pid]
    while left:
        new = set(pidfds.children(left.pop())) - found
        found |= new
        left += new
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
