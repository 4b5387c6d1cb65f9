"""A driver in a forked child, behind the proxy and the protocol of a slot with ``isolation``: any driver, in a moment.

What starts real children and watches them is shown by tests/integration/test_isolation.py.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from crinoid.core.api.config import NoOptions
from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.api.host import Host
from crinoid.core.config.models import IsolationConfig
from crinoid.core.slots.drivers import InstalledDriver, LoadedDriver
from crinoid.core.slots.isolation import plugin_host
from crinoid.core.slots.isolation.channel import Channel
from crinoid.core.slots.isolation.forms import Incoming
from crinoid.core.slots.isolation.handshake import HOST, MakeRequest, plugin_interface
from crinoid.core.slots.isolation.interfaces import Exported, LiveObjects
from crinoid.core.slots.isolation.proxy import Proxy, make_proxy
from crinoid.core.slots.roles import ROLES, Role


class ForkedProcess:
    """A child that makes one driver and serves it, until its end."""

    isolation = IsolationConfig()
    restarts = 0
    problem = ""
    memory_bytes: int | None = None

    def __init__(self, role: Role, make: Callable[[Host], object], host: Host) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _serve(role, make, host, theirs)
        theirs.close()
        self.interface = plugin_interface(hooks_of(role.specification))
        self.logged: list[str] = []
        self._host = host
        root = Exported(HOST, lambda name, arguments: getattr(self, name)(**arguments))
        self.channel = Channel(ours, root, lambda _why: None)
        self._loop: asyncio.AbstractEventLoop | None = None
        request = MakeRequest(host.slot, host.state_dir, host.run_dir, host.version, 10, host.buffers.limit_bytes)
        made = self.channel.call_within(30, 0, "make", self.interface.method("make"), {"request": request})
        incoming = Incoming(LiveObjects(self.channel, root), memoryview(b""), ())
        self._constants = {
            name: self.interface.method(name).answer.read(value, incoming) for name, value in made.constants.items()
        }
        attributes: dict[str, object] = {"api_version": "1.0", "on_failure": made.on_failure}
        if made.deadline_s is not None:
            attributes["deadline_s"] = made.deadline_s
        self._hooks = frozenset(made.hooks)
        closes = {"close"} & role.hooks  # in a daemon the slot's end is that of its process
        self.proxy: Proxy = make_proxy(self, role.specification, self._hooks | closes, attributes)

    def attach(self) -> None:
        """See ``DriverProcess``."""

    async def call_hook(self, name: str, arguments: Mapping[str, object]) -> Any:
        """See ``DriverProcess``."""
        if self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self.channel.attach()
        if name == "close" and (self.channel.ended is not None or name not in self._hooks):
            return await self.end()
        answer = await self.channel.call(0, name, self.interface.method(name), arguments)
        if name == "close":
            await self.end()
        return answer

    def constant(self, name: str) -> Any:
        """See ``DriverProcess``."""
        return self._constants[name]

    def log(self, logger: str, level: int, message: str) -> None:
        """See ``HostControl``."""
        self.logged.append(f"{logger} {level} {message}")

    def note_unremoved(self, what: str, reason: str | None) -> None:
        """See ``HostControl``."""
        if reason is None:
            self._host.unremoved.pop(what, None)
        else:
            self._host.unremoved[what] = reason

    async def end(self) -> None:
        """See ``DriverProcess``."""
        self.channel.end("ended")
        await asyncio.to_thread(self.end_now)

    def end_now(self) -> None:
        """See ``DriverProcess``."""
        self.channel.end("ended")
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _serve(role: Role, make: Callable[[Host], object], host: Host, connection: socket.socket) -> None:
    """The child: as ``plugin_host.run``, with a driver that is made by the test."""
    try:
        signal.set_wakeup_fd(-1)
        asyncio._set_running_loop(None)
        installed = InstalledDriver(role.name, "forked", "tests", "1", "tests:forked")

        class Plugin(plugin_host._Plugin):
            def __init__(self, name: str) -> None:
                super().__init__(name)
                self._options = NoOptions()
                self._loaded = LoadedDriver(installed, lambda _options, made: make(made), NoOptions)

        plugin_host._Plugin = Plugin  # type: ignore[assignment,misc]
        asyncio.run(plugin_host._serve(role.name, connection))
    except BaseException:  # noqa: BLE001  # nothing of the test's own may run on in the child
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def role_of(specification: type) -> Role:
    """Return the role that a specification is of."""
    return next(role for role in ROLES.values() if role.specification is specification)
