"""The child: loads one driver as the daemon would, and serves its hooks over descriptor 3 until that is closed.

``crinoid plugin-host`` calls ``run``. The process dies with the daemon, wherever its driver stands: the kernel kills it
when the thread that has started it ends, and it ends by itself when the daemon hangs up.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import socket
from collections.abc import Iterator, MutableMapping
from typing import Any

from crinoid import __version__
from crinoid.core.api import API_VERSION
from crinoid.core.api.buffers import BufferPool
from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import ConfigurationError, CrinoidError, DriverError
from crinoid.core.api.hooks.conformance import find_missing, hooks_of
from crinoid.core.api.host import Host
from crinoid.core.api.linux import libc, rights
from crinoid.core.api.linux.bulkheads import OwnerThreads
from crinoid.core.config.models import SlotConfig
from crinoid.core.config.origins import NO_ORIGINS
from crinoid.core.config.validation import validate
from crinoid.core.slots.binding import adopt, make
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import Installation, LoadedDriver
from crinoid.core.slots.isolation.channel import Channel
from crinoid.core.slots.isolation.forms import Outgoing
from crinoid.core.slots.isolation.handshake import (
    HOST,
    MAX_LOGGED,
    PROTOCOL,
    Loaded,
    LoadRequest,
    Made,
    MakeRequest,
    PluginControl,
    plugin_interface,
)
from crinoid.core.slots.isolation.interfaces import Exported, LiveObjects
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.selection import Selection, ValidSlot

DESCRIPTOR = 3
_PR_SET_PDEATHSIG = 1
LOG = logging.getLogger("crinoid.slots")


def run(role: str, parent_pid: int) -> None:
    """Serve a driver of a role to its end. Never returns."""
    libc.call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it has ended before that was in force
        os._exit(0)
    os.umask(rights.UMASK)
    os.set_inheritable(DESCRIPTOR, False)
    loop = asyncio.new_event_loop()
    loop.set_default_executor(OwnerThreads())
    serving = loop.create_task(_serve(role, socket.socket(fileno=DESCRIPTOR)), name="serve")
    while True:
        try:
            loop.run_until_complete(serving)
        except (SystemExit, KeyboardInterrupt) as error:
            if serving.done():
                raise
            LOG.error("a task or callback outside every hook tried to end the process", exc_info=error)


async def _serve(role: str, connection: socket.socket) -> None:
    plugin = _Plugin(role)
    root = Exported(plugin_interface(hooks_of(ROLES[role].specification)), plugin.invoke)
    plugin.channel = Channel(connection, root, lambda _why: os._exit(0), is_drivers=True)
    logging.getLogger().addHandler(_ToHost(plugin.channel))
    plugin.channel.attach()
    await asyncio.Event().wait()


class _Plugin(PluginControl):
    """The root object of the connection."""

    channel: Channel

    def __init__(self, role: str) -> None:
        self._role = ROLES[role]
        self._loaded: LoadedDriver | None = None
        self._options: DriverConfig | None = None
        self._binding: Binding | None = None

    def invoke(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call a method of the root: what controls this process, or a hook."""
        return self._call_hook(name, arguments) if name in self._role.hooks else getattr(self, name)(**arguments)

    async def load(self, request: LoadRequest) -> Loaded:
        """See ``PluginControl``."""
        if request.protocol != PROTOCOL:
            raise ConfigurationError(f"crinoid {__version__} speaks protocol {PROTOCOL}, not {request.protocol}")
        loaded = Installation().load(request.role, request.driver)
        options = validate(loaded.options, request.options, NO_ORIGINS)
        problems: tuple[tuple[tuple[str, ...], str], ...] = ()
        table: dict[str, Any] = {}
        if isinstance(options, list):
            problems = tuple((tuple(map(str, one.key)), one.message) for one in options)
        else:
            self._loaded, self._options = loaded, options
            table = options.model_dump(mode="json")
        installed, specification = loaded.installed, self._role.specification
        return Loaded(
            PROTOCOL,
            loaded.factory.api_version,
            installed.distribution,
            installed.version,
            installed.target,
            API_VERSION,
            tuple(sorted(self._role.hooks - set(find_missing(loaded.factory, specification, ())))),
            table,
            problems,
            loaded.import_s,
            loaded.is_replaceable,
        )

    async def make(self, request: MakeRequest) -> Made:
        """See ``PluginControl``."""
        if self._loaded is None or self._options is None:
            raise ConfigurationError("no driver was loaded")
        logging.getLogger().setLevel(request.log_level)
        role, installed = self._role, self._loaded.installed
        log = logging.getLogger(f"crinoid.plugins.{role.name}.{request.slot}")
        buffers, unremoved = BufferPool(request.buffer_bytes), _Unremoved(self.channel)
        host = Host(request.slot, request.state_dir, request.run_dir, log, request.version, buffers, unremoved)
        config = SlotConfig(driver=installed.name)
        slot = ValidSlot(Selection(role.name, request.slot, config, ()), self._loaded, self._options)
        binding = self._binding = adopt(make(slot, host), installed, config, host)
        own = (binding.own_deadline_s, binding.own_on_failure)
        return Made(tuple(sorted(binding.implemented)), dict(self._constants(binding)), *own)

    async def ping(self, log_level: int) -> None:
        """See ``PluginControl``."""
        logging.getLogger().setLevel(log_level)

    def _constants(self, binding: Binding) -> Iterator[tuple[str, Any]]:
        """Ask the hooks that are no coroutines, whose answers never change."""
        interface = plugin_interface(hooks_of(self._role.specification))
        out = Outgoing(LiveObjects(self.channel, Exported(HOST, lambda _name, _arguments: None)))
        for name in sorted(binding.implemented):
            method = interface.method(name)
            if not method.is_coroutine:
                try:
                    yield name, method.answer.write(getattr(binding.hooks, name)(), out)
                except CrinoidError as error:
                    raise ConfigurationError(f"{name}: {error.message}") from error

    async def _call_hook(self, name: str, arguments: dict[str, Any]) -> Any:
        if self._binding is None:
            raise DriverError("no driver was made")
        try:
            answer = getattr(self._binding.hooks, name)(**arguments)
            if isinstance(answer, list):  # of an extension, whose hooks are not ``firstresult``
                answer = answer[0] if answer else None
            if not inspect.isawaitable(answer):
                raise DriverError(f"returned {type(answer).__name__}: the hook must be a coroutine")
            return await answer
        except (CrinoidError, asyncio.CancelledError):
            raise
        except BaseException as error:
            LOG.warning("%s raised what no driver may raise", name, exc_info=error)
            raise


class _ToHost(logging.Handler):
    """Writes to the daemon's log."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._log = HOST.method("log")

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line; see the base."""
        with contextlib.suppress(Exception):  # it must not fail whoever logs
            text = self.format(record)[: MAX_LOGGED + 1]
            self._channel.notify(0, "log", self._log, {"logger": record.name, "level": record.levelno, "message": text})


class _Unremoved(MutableMapping[str, str]):
    """What a driver says in ``Host.unremoved``, told to the daemon; from any thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._reasons: dict[str, str] = {}

    def __getitem__(self, what: str) -> str:
        return self._reasons[what]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reasons.copy())

    def __len__(self) -> int:
        return len(self._reasons)

    def __setitem__(self, what: str, reason: str) -> None:
        self._reasons[what] = reason
        self._tell(what, reason)

    def __delitem__(self, what: str) -> None:
        del self._reasons[what]
        self._tell(what, None)

    def _tell(self, what: str, reason: str | None) -> None:
        self._channel.notify(0, "note_unremoved", HOST.method("note_unremoved"), {"what": what, "reason": reason})
