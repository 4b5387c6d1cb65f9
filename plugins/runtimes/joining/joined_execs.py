"""Which exec processes need no runtime's binary, and how they are run to their end without one.

A container is plain for it where the binary would do nothing but what ``child`` does: no label of a security module, no
personality or clock of its own, a seccomp filter only where its program was kept. All of that was settled when the
container was created, so it is looked at once.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, ResourceExhausted
from crinoid.core.api.finishing import finish
from crinoid.core.api.linux import capabilities, cgroups
from crinoid.core.api.linux.cgroup_names import below_mount, is_scope
from crinoid.core.api.linux.cgroup_warmup import CgroupWarmup
from crinoid.core.api.linux.descriptors import readable
from crinoid.core.api.linux.oom import clamp_oom_score_adj
from crinoid.core.api.linux.procfs import read_lines
from crinoid.core.api.values.runtime import ContainerHandle, ExecOutput, ExecRequest
from crinoid.plugins.runtimes.binaries.bundle import Bundle, Processes
from crinoid.plugins.runtimes.binaries.runtime_errors import as_error
from crinoid.plugins.runtimes.binaries.stdio import ended_input
from crinoid.plugins.runtimes.joining import child
from crinoid.plugins.runtimes.joining.joining_process import Joining, JoiningProcess
from crinoid.plugins.runtimes.oci.traits import BinaryTraits
from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.processes.cgroup_places import cgroup_directory, memberships
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup
from crinoid.plugins.runtimes.processes.exec_output import Output, overdue

LOG = logging.getLogger(__name__)
_STARTING_S = 0.05
_FAILURE_BYTES = 8192
_KEPT = 512
_LOOKED_AT = 64
_UMASK = 0o022
_NAMESPACES = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "mnt": 0x00020000,
    "net": 0x40000000,
    "user": 0x10000000,
    "uts": 0x04000000,
}
"""By their names in /proc/pid/ns; setns(2). Time and PID are apart."""
_PROCESS_IS_PLAIN = frozenset(
    {"args", "env", "cwd", "user", "capabilities", "rlimits", "oomScoreAdj", "noNewPrivileges"}
)
_LINUX_IS_NOT = ("personality", "timeOffsets", "memoryPolicy", "intelRdt")
_ACTIONS_THAT_RETURN = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG"})


class CantJoinError(Exception):
    """The process could not be started in this way, and has executed nothing: the binary is to try."""


@dataclass(frozen=True, slots=True)
class _Plain:
    """What is known of a plain container."""

    processes: Processes
    seccomp: bytes | None


class JoinedExecs:
    """The exec processes of one slot that need no binary."""

    def __init__(self, traits: BinaryTraits) -> None:
        self._traits = traits
        self._deadlines = traits.options.deadlines
        options = traits.options
        self._is_wanted = traits.execs_can_be_joined and options.shortcuts and options.joined_execs and child.CAN_FILTER
        self._process = JoiningProcess()
        self._warmup = CgroupWarmup()
        self._known: dict[tuple[Path, int, int], _Plain | None] = {}

    async def run(self, handle: ContainerHandle, request: ExecRequest, cgroup: ExecCgroup) -> ExecOutput:
        """Run the process to its end; see the hook ``exec_sync``. Raises CantJoinError where the binary has to."""
        container = await self._plain(handle)
        if container is None:
            raise CantJoinError("the container is not plain")
        description = _described(request.process, container.seccomp, self._traits.keyring.format(handle.container_id))
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(Output(request.max_output_bytes))
            first = stack.enter_context(pidfds.opened(container.processes.pid, container.processes.pid_start))
            if first is None:
                raise CantJoinError("the container has ended")
            async with cgroup:
                self._warmup.linger(_STARTING_S)
                description |= _place(handle, container.processes.pid, cgroup)
                reader, joining = self._start(description, request, output, first)
                stack.callback(os.close, reader)
                return await self._finished(handle, request, output, cgroup, reader, joining)

    async def _plain(self, handle: ContainerHandle) -> _Plain | None:
        """What is known of the container; ``None`` where the binary has to work."""
        if not self._is_wanted or (processes := Bundle(handle.bundle).read_processes()) is None:
            return None
        key = handle.bundle, processes.pid, processes.pid_start
        if key not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = await asyncio.to_thread(self._look_at, handle, processes)
        return self._known[key]

    def _look_at(self, handle: ContainerHandle, processes: Processes) -> _Plain | None:
        bundle = Bundle(handle.bundle)
        try:
            spec = json.loads(bundle.config.read_bytes())
        except (OSError, ValueError):  # the binary knows without it
            return None
        linux, annotations = spec.get("linux") or {}, spec.get("annotations") or {}
        if spec.get("hooks") or any(linux.get(name) for name in _LINUX_IS_NOT):
            return None
        # systemd has to be told of a scope's start and end, not of what comes into its cgroup
        if not (processes.plain or is_scope(handle.cgroup)) or bundle.restore_log.exists():
            return None
        if any(annotations.get(name) for name in self._traits.exec_annotations):
            return None
        bounding = ((spec.get("process") or {}).get("capabilities") or {}).get("bounding") or ()
        if "CAP_SYS_PTRACE" in bounding and not linux.get("uidMappings"):
            return None  # it could look into the child before that has entered the container's mounts
        seccomp = None
        if filter_ := linux.get("seccomp"):
            # Loaded before the capabilities go, it sees calls that neither the command nor the binary makes.
            if not (spec.get("process") or {}).get("noNewPrivileges") and _may_kill(filter_):
                return None
            state = self._traits.binary.state_directory(handle.container_id)
            if not (seccomp := self._traits.seccomp_program(state, filter_)):
                return None
        return _Plain(processes, seccomp)

    def _start(
        self, description: Mapping[str, object], request: ExecRequest, output: Output, first: int
    ) -> tuple[int, Joining]:
        """Have the helper fork; return where a failure is told, and what it tells else."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        try:
            with ended_input() as nothing, output.writers() as fds:
                given = (nothing, fds[1], fds[2], first, writer)
                joining = self._process.start(description, request.timeout_s or 0.0, given)
        except BaseException as error:
            os.close(reader)
            if isinstance(error, OSError | CrinoidError):
                raise CantJoinError(str(error)) from error
            raise
        finally:
            os.close(writer)
        output.watch()
        return reader, joining

    async def _finished(
        self,
        handle: ContainerHandle,
        request: ExecRequest,
        output: Output,
        cgroup: ExecCgroup,
        reader: int,
        joining: Joining,
    ) -> ExecOutput:
        """Wait for the process's end, and a while for its output; kill what is left where that takes too long."""
        timeout_s, begun_s = request.timeout_s or None, time.monotonic()
        name = f"container {handle.container_id}"
        try:
            async with asyncio.timeout(timeout_s):
                with self._warmup.lasting():
                    await self._executed(name, request, reader)
                status = await asyncio.shield(joining.ended)
                if joining.started.result() == 0:
                    raise CantJoinError("nothing was forked, and no reason came")
        except BaseException as error:
            await finish(self._kill(joining, cgroup))
            if isinstance(error, TimeoutError):
                raise overdue(name, request) from None
            raise
        left_s = math.inf if timeout_s is None else begun_s + timeout_s - time.monotonic()
        await output.drained(max(0, min(self._deadlines.exec_drain_s, left_s)))
        code = os.waitstatus_to_exitcode(status)
        return ExecOutput(code if code >= 0 else 128 - code, output.stdout, output.stderr)

    async def _executed(self, name: str, request: ExecRequest, reader: int) -> None:
        """Wait until the command is executed: the pipe ends with that. Raises what ``child`` failed with."""
        said = b""
        start_s = self._deadlines.exec_start_s
        try:
            async with asyncio.timeout(start_s) as starting:
                while piece := await _piece(reader):
                    said += piece
        except TimeoutError:
            if starting.expired():
                raise DeadlineExceeded(f"exec in {name} had not started after {start_s:g} s") from None
            raise
        if said:
            whose, _, words = said.partition(b"\0")
            if whose == child.CANT_JOIN:
                raise CantJoinError(words.decode(errors="replace"))
            command = (f"exec in {name}", *map(str, request.process["args"]))
            raise as_error(command, 255, words.decode(errors="replace"))

    async def _kill(self, joining: Joining, cgroup: ExecCgroup) -> None:
        """Kill the process with all that came from it: also one that was stopped before it came to its cgroup."""
        patience_s, pid = self._deadlines.kill_s, 0
        with contextlib.suppress(TimeoutError, CrinoidError):  # the helper has gone, and what it forked has not
            async with asyncio.timeout(patience_s):
                pid = await asyncio.shield(joining.started)
        with contextlib.suppress(TimeoutError, CrinoidError):
            async with asyncio.timeout(patience_s):
                try:
                    await cgroup.kill(pid, patience_s)
                finally:
                    joining.kill()
                await asyncio.shield(joining.ended)


def _described(process: Mapping[str, Any], seccomp: bytes | None, keyring: str) -> dict[str, object]:
    """What ``child`` is told of the command. Raises CantJoinError for what it has no way to do."""
    if others := [name for name, value in process.items() if value and name not in _PROCESS_IS_PLAIN]:
        raise CantJoinError(f"the process has {', '.join(sorted(others))}")
    environment = [_encoded(one) for one in process.get("env") or ()]
    if not all(b"=" in one[1:] for one in environment):
        raise CantJoinError("a variable has no name or no value")
    values = dict(one.split(b"=", 1) for one in environment)
    if not values.get(b"PATH") or b"HOME" not in values or not process.get("capabilities"):
        raise CantJoinError("the process has no PATH, no HOME or no capabilities of its own")
    user = process.get("user") or {}
    return {
        "args": [_encoded(one) for one in process["args"]],
        "env": environment,
        "path": values[b"PATH"],
        "cwd": process.get("cwd") or "/",
        "uid": user.get("uid", 0),
        "gid": user.get("gid", 0),
        "groups": list(user.get("additionalGids") or ()),
        "umask": user.get("umask", _UMASK),
        "capabilities": _bits(process["capabilities"]),
        "rlimits": [_limit(one) for one in process.get("rlimits") or ()],
        "oom_score_adj": None if (adj := process.get("oomScoreAdj")) is None else clamp_oom_score_adj(adj),
        "no_new_privileges": bool(process.get("noNewPrivileges")),
        "seccomp": seccomp,
        "keyring": keyring.encode(),
    }


def _encoded(text: str) -> bytes:
    """As JSON has it, whatever the locale of the daemon is."""
    return text.encode(errors="surrogateescape")


def _may_kill(seccomp: Mapping[str, Any]) -> bool:
    """Return whether a filter has another answer to some call than to allow it or to give an error."""
    actions = {seccomp.get("defaultAction"), *(rule.get("action") for rule in seccomp.get("syscalls") or ())}
    return not actions <= _ACTIONS_THAT_RETURN


def _bits(sets: Mapping[str, Any]) -> dict[str, int]:
    known = {name: 1 << bit for bit, name in enumerate(capabilities.NAMES)}
    found = {}
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        wanted = sets.get(name) or ()
        if unknown := set(wanted) - known.keys():
            raise CantJoinError(f"unknown capabilities {', '.join(sorted(unknown))}")
        found[name] = sum({known[one] for one in wanted})
    return found


def _limit(limit: Mapping[str, Any]) -> tuple[int, int, int]:
    number = getattr(resource, str(limit["type"]), None)
    if not isinstance(number, int):
        raise CantJoinError(f"unknown limit {limit['type']}")
    return number, limit["soft"], limit["hard"]


def _place(handle: ContainerHandle, pid: int, cgroup: ExecCgroup) -> dict[str, object]:
    """In which cgroups and namespaces the process is to be: the container's, and its own cgroup.

    Raises CantJoinError where the container has left its cgroup, and ResourceExhausted where that is full.
    """
    path, own = below_mount(handle.cgroup), cgroup.directory
    if own is None:
        raise CantJoinError("no cgroup can be made for it")
    # The kernel holds a cgroup's limit of processes against those that fork there, not against one that comes in.
    if full := cgroups.full_of_processes(path, 1):
        raise ResourceExhausted(f"{full}: too few to execute anything beside them")
    above = cgroup_directory("freezer", path)
    try:
        ours, theirs = memberships("self"), memberships(pid)
        namespaces = _other_namespaces(pid)
    except OSError as error:
        raise CantJoinError("the container has ended") from error
    if "mnt" not in namespaces:  # its root is a directory of ours, which no namespace leads to
        raise CantJoinError("the container has no mounts of its own")
    files = []
    for root, place in theirs.items():
        if place == ours.get(root):
            continue
        if place != path:
            raise CantJoinError(f"the container's first process is in cgroup {place} of {root}")
        is_own = Path(root + path) == above
        files.append(f"{own if is_own else root + path}/cgroup.procs")
    if "pid" in namespaces and "user" not in namespaces:
        try:
            tracer = _tracer_beside(above, pid)
        except OSError as error:
            raise CantJoinError("the pod's cgroups come and go") from error
        if tracer:
            raise CantJoinError(f"process {tracer} of its pod is in its PID namespace and could look into the child")
    kinds = sum(flag for name, flag in _NAMESPACES.items() if name in namespaces)
    return {"cgroups": files, "namespaces": kinds, "joins_pids": "pid" in namespaces}


def _tracer_beside(cgroup: Path | None, pid: int) -> int:
    """Return a process of another container of the pod that is in the PID namespace of ``pid`` (a shared one, or that
    of a debug container's target) and may have CAP_SYS_PTRACE, or the first of too many to look at; 0: there is none.

    ``child`` is in that namespace before it is in the container's mounts. A container's first process is there long
    before it executes anything of the container's.
    """
    if cgroup is None:
        return 0
    own, looked_at = os.readlink(f"/proc/{pid}/ns/pid"), 0  # noqa: PTH115
    for file in cgroup.parent.glob("*/**/cgroup.procs"):
        if file.is_relative_to(cgroup):
            continue
        for one in file.read_text().split():
            looked_at += 1
            with contextlib.suppress(OSError):  # it has ended
                if os.readlink(f"/proc/{one}/ns/pid") == own and _may_trace(one):  # noqa: PTH115
                    return int(one)
            if looked_at > _LOOKED_AT:
                return int(one)
    return 0


def _may_trace(pid: str) -> bool:
    (bounding,) = (line.split()[1] for line in read_lines(f"/proc/{pid}/status") if line.startswith("CapBnd:"))
    return bool(int(bounding, 16) >> capabilities.NAMES.index("CAP_SYS_PTRACE") & 1)


def _other_namespaces(pid: int) -> set[str]:
    """The kinds of namespaces in which a process is apart from the daemon. Raises CantJoinError for one of clocks."""
    kinds = (*_NAMESPACES, "pid", "time")
    found = set()
    for kind in kinds:
        with contextlib.suppress(FileNotFoundError):  # the kernel has none of this kind
            if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"):  # noqa: PTH115
                found.add(kind)
    if "time" in found:
        raise CantJoinError("the container has clocks of its own")
    return found


async def _piece(reader: int) -> bytes:
    while True:
        try:
            return os.read(reader, _FAILURE_BYTES)
        except BlockingIOError:
            await readable(reader)
