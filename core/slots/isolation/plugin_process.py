"""The process of a slot's driver, as the kernel has it: started, watched, and started again when it ends.

While it is down, calls fail as Unavailable with the reason, which the kubelet tries again and Status shows. The first
start again is at once, and calls wait for it; the next ones are further and further apart. To the driver it is as if
the daemon had been started anew: what the kernel tells a driver at its start (``probe``, ``set_pod_cidrs``,
``connect``) is told again, and what waits with no deadline (``wait``, ``wait_pod``) is asked again, unseen by whoever
waits.
"""

import asyncio
import contextlib
import contextvars
import hashlib
import importlib.util
import logging
import os
import pwd
import secrets
import select
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid.core.api import API_VERSION
from crinoid.core.api.errors import ConfigurationError, CrinoidError, DriverError, Unavailable, Unsupported
from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.process import Process, spawn
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.config.models import IsolationConfig
from crinoid.core.slots.calls import translate
from crinoid.core.slots.drivers import InstalledDriver, UnusableDriverError, is_served
from crinoid.core.slots.isolation.channel import Channel, ConnectionLostError
from crinoid.core.slots.isolation.forms import Incoming
from crinoid.core.slots.isolation.handshake import (
    HOST,
    MAX_LOGGED,
    PROTOCOL,
    HostControl,
    Loaded,
    LoadRequest,
    Made,
    MakeRequest,
    plugin_interface,
)
from crinoid.core.slots.isolation.interfaces import Exported, LiveObjects
from crinoid.core.slots.isolation.proxy import Proxy, make_proxy
from crinoid.core.slots.roles import ROLES, Role

LOG = logging.getLogger("crinoid.slots")
START_S = 60.0
"""How long loading a driver may take, and making it."""
_DESCRIPTOR = 3
_CGROUP = "/crinoid-plugins"
_FIRST_S, _MOST_S, _SHORT_S = 0.1, 60.0, 0.5
"""Waits before a start: the first, the longest, and up to which calls wait, too."""
_STABLE_S = 60.0
"""A process that lived for so long is started again at once."""
_END_S = 5.0
_REPLAY_S = 60.0
_WAITING = frozenset({"wait", "wait_pod"})
"""Hooks with no deadline, which are asked again."""
_AT_START = {"set_pod_cidrs", "connect"}
"""Hooks that tell a driver what it has to know from its start on; the last arguments are told again."""
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "CREDENTIALS_DIRECTORY")
_MAX_LINE_BYTES, _LOG_BYTES_PER_S = 4096, 64 << 10
_LOG_BURST_BYTES, _LOG_LINE_BYTES = 1 << 20, 100
"""Of what its driver logs: what may come at once, and what each message costs beside its text."""
_MAX_UNREMOVED, _MAX_WORDS = 1000, 1000
_NO_ERRORS_OF_OURS = (asyncio.CancelledError, BrokenPipeError)
"""What a driver may answer a call with besides: see ``wire_errors``."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which driver is to run, for which slot, and how."""

    role: Role
    slot: str
    driver: str
    options: Mapping[str, Any]
    isolation: IsolationConfig
    version: str = ""

    @property
    def logger(self) -> str:
        """The name of the slot's logger."""
        return f"crinoid.plugins.{self.role.name}.{self.slot}"

    @property
    def label(self) -> str:
        """How messages name the slot."""
        return f'{self.role.name} "{self.slot}"'


class _Child(HostControl):
    """One process, from its start to its end. All but ``channel.attach`` blocks."""

    def __init__(self, wanted: Wanted, cgroup: str = "") -> None:
        """Start it. Raises ConfigurationError where that can't be, by what the configuration says or by the host."""
        self.on_end: Callable[[_Child, str], None] = lambda _child, _why: None
        self._wanted = wanted
        self._log = logging.getLogger(wanted.logger)
        self._cgroup = cgroup
        self.unremoved: dict[str, str] | Any = {}
        self._last_words: deque[str] = deque(maxlen=5)
        self._log_room, self._log_s, self._dropped = float(_LOG_BURST_BYTES), time.monotonic(), 0
        self._ending = threading.Lock()
        self._how = ""
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self.process = _spawn(wanted, {1: writer, 2: writer, _DESCRIPTOR: theirs.fileno()}, cgroup)
        except BaseException:
            ours.close()
            os.close(reader)
            raise
        finally:
            theirs.close()
            os.close(writer)
        self._listening = threading.Thread(target=self._listen, args=(reader,), name=wanted.label, daemon=True)
        self._listening.start()
        root = Exported(HOST, lambda name, arguments: getattr(self, name)(**arguments))
        self.channel = Channel(ours, root, lambda why: self.on_end(self, why))
        self.interface = plugin_interface(hooks_of(wanted.role.specification))

    def load(self) -> Loaded:
        """Have it find its driver."""
        wanted = self._wanted
        request = LoadRequest(
            PROTOCOL, API_VERSION, wanted.version, wanted.role.name, wanted.driver, dict(wanted.options)
        )
        loaded = self._ask("load", request)
        if loaded.protocol != PROTOCOL:
            raise UnusableDriverError(f"{wanted.label}: its process speaks protocol {loaded.protocol}, not {PROTOCOL}")
        return loaded  # type: ignore[no-any-return]  # the form has checked it

    def make(self, host: Host, log_level: int) -> Made:
        """Have it make its driver, in a slot's directories."""
        self.unremoved = host.unremoved
        place = (host.slot, host.state_dir, host.run_dir, host.version)
        made = self._ask("make", MakeRequest(*place, log_level, host.buffers.limit_bytes))
        if lacking := ROLES[self._wanted.role.name].hooks - self._wanted.role.optional - set(made.hooks):
            raise UnusableDriverError(f"{self._wanted.label} lacks {', '.join(sorted(lacking))}")
        return made  # type: ignore[no-any-return]

    def _ask(self, name: str, request: object) -> Any:
        try:
            return self.channel.call_within(START_S, 0, name, self.interface.method(name), {"request": request})
        except (ConnectionLostError, DriverError, *_NO_ERRORS_OF_OURS) as error:
            how = self.end()
            self._listening.join(1.0)
            words = f"; it said: {' | '.join(self._last_words)}" if self._last_words else ""
            told = translate(error).message
            raise UnusableDriverError(f"{self._wanted.label}: {name}: {told}: {how}{words}") from error

    async def ask(self, name: str, arguments: Mapping[str, object]) -> None:
        """Call a method on nobody's behalf but the daemon's. Raises CrinoidError, whatever its driver raises."""
        try:
            await self.channel.call(0, name, self.interface.method(name), arguments)
        except _NO_ERRORS_OF_OURS as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            raise translate(error) from error

    def end(self) -> str:
        """Hang up, kill and reap it; return how it has ended. Idempotent, and for any thread."""
        with self._ending:
            if self._how:
                return self._how
            self.channel.end("the daemon has hung up")
            poll = select.poll()
            poll.register(self.process.pidfd, select.POLLIN)
            is_over = bool(poll.poll(500))  # the kernel closes its end of the connection before it counts as ended
            self.process.kill()
            code = self.process.reap()
            self.process.close()
            self._tell_dropped()
            self._how = f"process {self.process.pid} {_tell_end(code if is_over else None, self._take_cgroup_away())}"
            self.unremoved.clear()
            return self._how

    def _take_cgroup_away(self) -> bool:
        """Remove the cgroup with all that is in it; return whether the kernel has killed for its memory limit."""
        if not self._cgroup:
            return False
        name = "memory.events" if cgroups.version() == 2 else "memory.oom_control"
        lines = (cgroups.read_file(self._cgroup, name) or "").splitlines()
        was_killed = any(line.split()[0] == "oom_kill" and line.split()[1] != "0" for line in lines if line)
        with contextlib.suppress(OSError, CrinoidError):
            cgroups.kill(self._cgroup, _END_S)
            cgroups.remove(self._cgroup)
            cgroups.remove_marked(_CGROUP)
        return was_killed

    def memory_bytes(self) -> int | None:
        """Return what it has in memory (RSS); ``None`` once it has ended."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return None

    def log(self, logger: str, level: int, message: str) -> None:
        """Write a line that its driver logs, under the slot's name; or drop it, and say later how many were."""
        now_s = time.monotonic()
        room = min(_LOG_BURST_BYTES, self._log_room + (now_s - self._log_s) * _LOG_BYTES_PER_S)
        cost = min(len(message), MAX_LOGGED) + _LOG_LINE_BYTES
        self._log_room, self._log_s = room, now_s
        if room < (max(cost, _LOG_BYTES_PER_S) if self._dropped else cost):  # a word of a flood once a second
            self._dropped += 1
            return
        self._log_room -= cost
        self._tell_dropped()
        if len(message) > MAX_LOGGED:
            message = f"{message[:MAX_LOGGED]}… (cut)"
        level = max(0, min(level, logging.CRITICAL))
        if self._log.isEnabledFor(level):
            own = self._wanted.logger
            name = logger if logger == own or logger.startswith(f"{own}.") else f"{own}.{logger}"
            # No logger of that name: it would be there for ever, and a driver may have any number of names.
            self._log.handle(self._log.makeRecord(name[:_MAX_WORDS], level, "", 0, "%s", (message,), None))

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._log.warning("%d messages of its driver were dropped: they came too fast", self._dropped)
            self._dropped = 0

    def note_unremoved(self, what: str, reason: str | None) -> None:
        """See ``HostControl``; of more than the daemon can keep it knows the first."""
        if reason is None:
            self.unremoved.pop(what, None)
        elif len(what) <= _MAX_WORDS and (what in self.unremoved or len(self.unremoved) < _MAX_UNREMOVED):
            self.unremoved[what] = reason[:_MAX_WORDS]

    def _listen(self, reader: int) -> None:
        """Log what it writes to standard output and error; a flood makes it wait, and nobody else."""
        with open(reader, "rb", buffering=_MAX_LINE_BYTES) as pipe:
            while line := pipe.readline(_MAX_LINE_BYTES):
                text = line.decode(errors="replace").rstrip()
                self._last_words.append(text)
                self._log.warning("%s", text)
                time.sleep(len(line) / _LOG_BYTES_PER_S)


def _spawn(wanted: Wanted, descriptors: Mapping[int, int], cgroup: str) -> Process:
    command = _command(wanted)
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    process = None
    try:
        if cgroup:
            _make_cgroup(cgroup, wanted.isolation.memory_bytes)
        process = spawn(command, env=environment, fds=descriptors)
        if cgroup:
            cgroups.join(cgroup, process.pid)
    except (OSError, CrinoidError) as error:
        if process is not None:
            process.kill()
            process.reap()
            process.close()
        if cgroup:
            cgroups.remove_marked(cgroup)
        message = error.message if isinstance(error, CrinoidError) else str(error)
        raise UnusableDriverError(f"{wanted.label}: its process can't be started: {message}") from error
    return process


def _command(wanted: Wanted) -> list[str]:
    """Return what to run; raise UnusableDriverError for a user that there is not."""
    isolation = wanted.isolation
    interpreter = str(isolation.python or sys.executable)
    arguments = ("plugin-host", wanted.role.name, wanted.slot, str(os.getpid()))
    command = [*isolation.program] or [interpreter, "-P", "-m", "crinoid", *arguments]
    if not isolation.user:
        return command
    uid, gid = find_user(isolation.user)
    groups = "--init-groups" if not isolation.user.isdigit() else "--clear-groups"
    return [
        "setpriv", f"--reuid={uid}", f"--regid={gid}", groups, "--pdeathsig=KILL", "--no-new-privs", "--", *command
    ]  # fmt: skip


def find_user(user: str) -> tuple[int, int]:
    """Return the numbers of a user, given by name or number, and of his group. Raises UnusableDriverError."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        if user.isdigit():
            return int(user), int(user)
        raise UnusableDriverError(f'there is no user "{user}" on this host, as isolation.user has it') from None
    return entry.pw_uid, entry.pw_gid


def _make_cgroup(path: str, memory_bytes: int) -> None:
    cgroups.make(path)
    try:
        cgroups.write_resources(
            path, LinuxResources(memory_limit_bytes=memory_bytes, memory_swap_limit_bytes=memory_bytes)
        )
    except Unsupported:  # the kernel does not count swap
        cgroups.write_resources(path, LinuxResources(memory_limit_bytes=memory_bytes))


def _tell_end(code: int | None, for_memory: bool) -> str:
    if for_memory:
        return "was killed at its memory limit (isolation.memory_bytes)"
    if code is None:
        return "was ended"
    return f"was killed by signal {-code}" if code < 0 else f"has ended with exit code {code}"


class LoadedProcess:
    """A process that has loaded a driver, and is ended unless the driver is made."""

    def __init__(self, wanted: Wanted) -> None:
        """Start it. Raises UnusableDriverError for a driver that can't be had, or was written for another API."""
        self.wanted = wanted
        child = _Child(wanted)
        self._ending = weakref.finalize(self, child.end)
        try:
            self.loaded = child.load()
            self.installed = _check_loaded(wanted, self.loaded)
        except BaseException:
            self._ending()
            raise
        self._child: _Child | None = child

    def end(self) -> None:
        """End it now. Idempotent."""
        self._ending()

    def make(self, _options: object, host: Host) -> Proxy:
        """Make the driver, as a driver's class would be called; return what stands for it. Blocks."""
        child, self._child = self._child, None
        # A memory limit is to count all that the process has, so it is in its cgroup from the start on.
        if child is None or child.channel.ended is not None or self.wanted.isolation.memory_bytes:
            self._ending()  # not with this object, which the daemon has for as long as it runs
            return PluginProcess(self.wanted, host).start(None)
        self._ending.detach()
        return PluginProcess(self.wanted, host).start(child)


def _check_loaded(wanted: Wanted, loaded: Loaded) -> InstalledDriver:
    """Raise UnusableDriverError for a driver of another API."""
    installed = InstalledDriver(
        wanted.role.name, wanted.driver, loaded.distribution, loaded.version, loaded.target, loaded.api_version
    )
    where = wanted.isolation.python or sys.executable
    if loaded.host_api_version not in ("", API_VERSION):
        raise UnusableDriverError(
            f"{installed.title}: {where} has crinoid with plugin API {loaded.host_api_version}, but this is "
            f"{API_VERSION}: install the same crinoid there"
        )
    if not is_served(loaded.api_version):
        raise UnusableDriverError(
            f"{installed.title} is for plugin API {loaded.api_version}, but this is {API_VERSION}"
        )
    if strange := set(loaded.hooks) - wanted.role.hooks:
        raise UnusableDriverError(f"{installed.title} has {', '.join(sorted(strange))}, which are no hooks of its role")
    return installed


@dataclass(slots=True)
class _State:
    """``problem`` is empty where calls are taken; ``wait_s`` is how long it is until the next start."""

    problem: str = ""
    wait_s: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class PluginProcess:
    """A slot's driver in a process of its own. But for ``start`` and ``end_now``, for the loop's thread."""

    def __init__(self, wanted: Wanted, host: Host) -> None:
        self.isolation = wanted.isolation
        self.restarts = 0
        """How often it was started again."""
        self._wanted = wanted
        self._host = host
        self._child: _Child | None = None
        self._constants: dict[str, Any] = {}
        self._state = _State()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[str, Mapping[str, object]] = {}
        self._hooks: frozenset[str] = frozenset()
        self._is_ended = False
        self._up_since_s = 0.0
        self._tries = 0

    def start(self, loaded: _Child | None) -> Proxy:
        """Start the process, unless it is there and has loaded the driver, and make the driver; return what stands for
        it. Blocks.

        Raises UnusableDriverError, and ConfigurationError with the driver's own words.
        """
        _sweep(self._host)
        made = self._start() if loaded is None else self._make(loaded)
        try:
            self._take(made)
        except BaseException:
            self.end_now()
            raise
        attributes: dict[str, object] = {"api_version": API_VERSION, "on_failure": made.on_failure}
        if made.deadline_s is not None:
            attributes["deadline_s"] = made.deadline_s
        return make_proxy(self, self._wanted.role.specification, made.hooks, attributes)

    def attach(self) -> None:
        """Be served by the running loop from now on; without one, the first call does it."""
        with contextlib.suppress(RuntimeError):
            self._attach()

    @property
    def problem(self) -> str:
        """Why no call is taken now; empty where calls are."""
        return self._state.problem

    @property
    def pid(self) -> int:
        """The process, 0 while there is none."""
        return self._child.process.pid if self._child is not None and not self.problem else 0

    @property
    def memory_bytes(self) -> int | None:
        """What the process has in memory; ``None`` while there is none. For any thread."""
        child = self._child
        return None if child is None or self.problem else child.memory_bytes()

    def constant(self, name: str) -> Any:
        """Return what a hook that is no coroutine has answered at the start."""
        return self._constants[name]

    async def call_hook(self, name: str, arguments: Mapping[str, object]) -> Any:
        """Call a hook; see the module for what happens while the process is down."""
        while True:
            child = await self._ready(is_patient=name in _WAITING)
            try:
                answer = await child.channel.call(0, name, child.interface.method(name), arguments)
            except ConnectionLostError as error:
                if name in _WAITING and not self._is_ended:
                    await self._until_noticed(child)
                    continue
                raise Unavailable(f"its process has ended while the hook ran ({error})") from error
            if name in _AT_START:
                self._told[name] = arguments
            elif name == "prepare_layer":
                self._check_writer(answer.writer)
            return answer

    def _check_writer(self, writer: str) -> None:
        """A class that keeps layers is imported by the daemon's confined unpacker: raise Unsupported where it can't."""
        module = writer.partition(":")[0]
        own = self.isolation.python or self.isolation.program
        if module and own and importlib.util.find_spec(module.partition(".")[0]) is None:
            raise Unsupported(
                f"its layers are kept by {writer}, which the daemon's unpacker can't import: install its distribution "
                "beside crinoid, too, or leave isolation.python out"
            )

    async def end(self) -> None:
        """End the process for good. Idempotent."""
        self._end_tasks()
        if self._child is not None:
            self._child.channel.end("the slot is closed")
            await asyncio.to_thread(self._child.end)
            self._child = None

    def end_now(self) -> None:
        """As ``end``, where no loop runs; blocks."""
        self._end_tasks()
        if self._child is not None:
            self._child.end()
        self._child = None

    def _end_tasks(self) -> None:
        self._is_ended = True
        self._note("the slot is closed")
        for task in self._tasks:
            if not task.get_loop().is_closed():
                task.cancel()

    # Starts

    def _start(self) -> Made:
        """Start a process, and have it make the driver; blocks. It is noted before, so that ``end`` finds it."""
        cgroup = ""
        if self.isolation.memory_bytes:
            # Another one each time: after a reload two of a slot run side by side, and one's end is that of its cgroup.
            name = f"{self._wanted.role.name}.{self._wanted.slot}.{secrets.token_hex(4)}.{os.getpid()}"
            cgroup = f"{_CGROUP}/{_mark(self._host)}.{name}"
        child = _Child(self._wanted, cgroup)
        try:
            loaded = child.load()
            if loaded.problems:
                raise ConfigurationError("; ".join(f"{'.'.join(key)}: {text}" for key, text in loaded.problems))
        except BaseException:
            child.end()
            raise
        return self._make(child)

    def _make(self, child: _Child) -> Made:
        self._child, child.on_end = child, self._on_end
        try:
            if self._is_ended:
                raise Unavailable("the slot is closed")
            return child.make(self._host, logging.getLogger().getEffectiveLevel())
        except BaseException:
            child.end()
            raise

    def _take(self, made: Made) -> None:
        assert self._child is not None
        child, incoming = self._child, Incoming(LiveObjects(self._child.channel, _NOBODY), memoryview(b""), ())
        constants = {
            name: child.interface.method(name).answer.read(value, incoming) for name, value in made.constants.items()
        }
        if self._constants and constants != self._constants:
            logging.getLogger(self._wanted.logger).warning(
                "its driver says otherwise than before of what never changes; what it said first holds"
            )
        self._constants = self._constants or constants
        self._hooks = frozenset(made.hooks)
        self._up_since_s = time.monotonic()

    def _attach(self) -> None:
        loop = asyncio.get_running_loop()
        if self._child is not None and self._loop is not loop:
            self._loop = loop
            # Nothing of whose call it is that comes first: neither its pod's threads nor its timeline.
            contextvars.Context().run(self._child.channel.attach)
            self._begin(self._watch(self._child), "watch")

    def _begin(self, work: Any, what: str) -> None:
        assert self._loop is not None
        task = self._loop.create_task(work, name=f"{self._wanted.label}: {what}", context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ready(self, *, is_patient: bool) -> _Child:
        self._attach()
        while self.problem or self._child is None:
            if self._is_ended or (not is_patient and self._state.wait_s > _SHORT_S):
                raise Unavailable(self.problem)
            await self._state.changed.wait()
        return self._child

    async def _until_noticed(self, child: _Child) -> None:
        while self._child is child and not self.problem and not self._is_ended:
            await self._state.changed.wait()

    def _note(self, problem: str, wait_s: float = 0.0) -> None:
        former, self._state = self._state, _State(problem, wait_s)
        former.changed.set()

    # Ends

    def _on_end(self, child: _Child, why: str) -> None:
        """Hear of the end of a connection: not of one that is being made, nor of one that we have closed."""
        if child is self._child and not self._is_ended and self._loop is not None and not self.problem:
            self._note(why)
            self._begin(self._start_again(child, why), "start again")

    async def _start_again(self, child: _Child, why: str) -> None:
        self._tries = 0 if time.monotonic() - self._up_since_s > _STABLE_S else self._tries
        reason = f"{await _reaped(child)} ({why})"
        while True:
            wait_s = min(_FIRST_S * 2.0**self._tries, _MOST_S)
            self._tries += 1
            LOG.error("%s: its %s; it is started again in %g s", self._wanted.label, reason, wait_s)
            self._note(f"its {reason}; it is started again {wait_s:g} s after that", wait_s)
            await asyncio.sleep(wait_s)
            try:
                self._take(await asyncio.to_thread(self._start))
            except Exception as error:  # noqa: BLE001  # whatever it is, such as a want of descriptors, may pass
                reason = f"process can't be started: {translate(error).message}"
                if self._child is not None:
                    await _reaped(self._child)
                continue
            child = self._child  # type: ignore[assignment]  # _start has set it
            self._loop = None
            self._attach()
            self.restarts += 1
            await self._tell_again(child)
            if (ended := child.channel.ended) is None:
                break
            reason = f"{await _reaped(child)} ({ended})"
        self._note("")
        LOG.warning("%s: its process was started again, as %d", self._wanted.label, child.process.pid)

    async def _tell_again(self, child: _Child) -> None:
        told: dict[str, Mapping[str, object]] = {"probe": {}, **self._told}
        for name in [name for name in told if name in self._hooks]:
            try:
                async with asyncio.timeout(_REPLAY_S):
                    await child.ask(name, told[name])
            except (CrinoidError, TimeoutError) as error:
                LOG.error("%s: %s, after the process was started again: %s", self._wanted.label, name, error)

    async def _watch(self, child: _Child) -> None:
        """End a process whose thread of hooks does not answer: each of its calls would wait for its deadline."""
        limit_s = self.isolation.unresponsive_s
        while child.channel.ended is None:
            await asyncio.sleep(limit_s / 3)
            level = logging.getLogger().getEffectiveLevel()
            asking = asyncio.create_task(child.ask("ping", {"log_level": level}))
            await asyncio.wait({asking}, timeout=limit_s)
            if not asking.done():
                await asyncio.wait({asking}, timeout=min(1.0, limit_s))  # if it was this loop that stood still
            if not asking.done():
                child.channel.end(f"it has not answered for {limit_s:g} s: something holds its event loop")
            with contextlib.suppress(CrinoidError):
                await asking


async def _reaped(child: _Child) -> str:
    """End a process; return how it has ended. Where no thread is to be had now, later."""
    while True:
        try:
            return await asyncio.to_thread(child.end)
        except CrinoidError:
            await asyncio.sleep(_SHORT_S)


_NOBODY = Exported(HOST, lambda _name, _arguments: None)


def _mark(host: Host) -> str:
    """Tell the cgroups of one daemon's plugins from another's, by its root directory."""
    top = host.state_dir.parents[min(2, len(host.state_dir.parents) - 1)]
    return hashlib.sha256(os.fsencode(top)).hexdigest()[:8]


def _sweep(host: Host) -> None:
    """Remove the empty cgroups that a daemon which was killed has left."""
    for name in cgroups.children(_CGROUP):
        if name.startswith(f"{_mark(host)}.") and not name.endswith(f".{os.getpid()}"):
            cgroups.remove_marked(f"{_CGROUP}/{name}")  # not where a process is in it, of a daemon that is just ending
