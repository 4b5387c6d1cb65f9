"""A cgroup for each exec process in a container, so that all that came from it can be found and killed.

The runtime starts the process in it (``exec --cgroup``). cgroup v1: with runc one in the freezer hierarchy alone, so
that accounts and limits stay the container's; crun takes a process out of every hierarchy where the directory is
missing, so with it there is one in each, below the container's. cgroup v2: a child without controllers of its own.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from crinoid.core.api.linux import cgroups, rights
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.processes.cgroup_places import cgroup_directory, is_unified

_PAUSE_S = 0.01
_REAP_S = 0.25


class ExecCgroup(contextlib.AbstractAsyncContextManager["ExecCgroup"]):
    """The cgroup ``name`` below a container's; where it can't be made, or has no name, the tree of processes must do.

    ``everywhere``: in every hierarchy of cgroup v1, as crun wants it.
    """

    def __init__(self, container: str, name: str, *, everywhere: bool) -> None:
        self._container = cgroup_directory("freezer", container)
        self._cgroup = f"{container}/{name}"
        self._name = name
        self._everywhere = everywhere and not is_unified()
        self._path: Path | None = None
        self._killed: set[int] = set()

    async def __aenter__(self) -> "ExecCgroup":
        if self._container is not None and self._name:
            try:
                await call_in_thread(self._make)
            except BaseException:
                await self.__aexit__()
                raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._path is not None:
            await call_in_thread(self._remove)

    @property
    def directory(self) -> Path | None:
        """Where it is, in the freezer's hierarchy or that of cgroup v2; ``None`` where it could not be made."""
        return self._path

    def runtime_options(self) -> tuple[str, ...]:
        """Return the options of ``exec`` that start the process in the cgroup."""
        if self._path is None:
            return ()
        return (f"--cgroup={'' if self._everywhere or is_unified() else 'freezer:'}{self._name}",)

    async def kill(self, pid: int, timeout_s: float) -> None:
        """Kill all that came from the process (0: none was started); what hangs in the kernel is given up.

        A moment is left to their parents, which may be the container's own, to reap them: who looks next sees none.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._kill_those_found(pid):  # noqa: ASYNC110  # they may have forked until they were stopped
                    await asyncio.sleep(_PAUSE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_S):
                while any(Path(f"/proc/{one}").exists() for one in self._killed):  # noqa: ASYNC110, ASYNC240
                    await asyncio.sleep(_PAUSE_S)

    def _make(self) -> None:
        assert self._container is not None
        with contextlib.suppress(OSError):
            if self._everywhere:
                cgroups.make(self._cgroup)
            else:
                rights.make_directory(self._container / self._name, rights.SHOWN_DIRECTORY)
            self._path = self._container / self._name
            if is_unified():
                _join_threads(self._path)

    def _remove(self) -> None:
        assert self._path is not None
        with contextlib.suppress(OSError):  # a process left in the background keeps it, until delete
            self._path.rmdir()
            if self._everywhere:
                cgroups.remove(self._cgroup)

    def _kill_those_found(self, pid: int) -> bool:
        """Stop all at once, so that none forks meanwhile; then kill. Tells whether there were any."""
        self._freeze(frozen=True)
        try:
            members = cgroups.members(str(self._path)) if self._path is not None else ()
            found = {one for one in (*members, *self._from(pid)) if pidfds.start_time(one)}
            for one in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            self._killed |= found
        finally:
            self._freeze(frozen=False)
        return bool(found)

    def _from(self, pid: int) -> Iterable[int]:
        """The process, its descendants, and those of its session that other parents have taken on.

        The id was read from a file: once the process has gone, it may be that of one outside the container.
        """
        if pid <= 0 or pid not in cgroups.processes(self._cgroup.rpartition("/")[0]):
            return ()
        leads = pidfds.session(pid) == pid
        others = cgroups.members(str(self._container)) if leads and self._container is not None else ()
        return {pid, *pidfds.descendants(pid), *(one for one in others if pidfds.session(one) == pid)}

    def _freeze(self, *, frozen: bool) -> None:
        if self._path is None:
            return
        name, words = ("cgroup.freeze", "01") if is_unified() else ("freezer.state", ("THAWED", "FROZEN"))
        with contextlib.suppress(OSError):
            (self._path / name).write_text(words[frozen])


def _join_threads(made: Path) -> None:
    """Among threaded cgroups, as a container may make, one of another kind takes no process (cgroup-v2.rst)."""
    file = made / "cgroup.type"
    if file.read_text() == "domain invalid\n":
        file.write_text("threaded")
