"""One connected plugin: its introduction, its subscription, and the requests to it, one at a time and in order.

Plugins expect that; so a request waits for its turn, and a plugin that keeps others waiting keeps only those that want
something of the same plugin.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from crinoid.core.api.errors import Refused
from crinoid.plugins.extensions.nri.mux import PLUGIN_SERVICE, RUNTIME_SERVICE, ConnectionLost, Trunk
from crinoid.plugins.extensions.nri.options import NriOptions, PluginOptions
from crinoid.plugins.extensions.nri.ttrpc import (
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNIMPLEMENTED,
    Client,
    RemoteError,
    Server,
)
from crinoid.plugins.extensions.nri.wire import nri_pb2

PACKAGE = "nri.pkg.api.v1alpha1"
NRI_VERSION = "v0.12.0"
"""The version of NRI that is spoken, as plugins are told."""
ALL_EVENTS = (1 << (nri_pb2.LAST - 1)) - 1
SYNC_BYTES = 2 << 20
"""How much of pods and containers is told in one message; ttrpc takes twice as much."""
MAX_UPDATES = 4096
"""How many containers a plugin may change or evict in one message; a node has some hundreds."""
TURN_S = 30.0
"""How long a request waits for those before it."""
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
_INDEX = re.compile(r"[0-9]{2}")

M = TypeVar("M", bound=Message)
Update = Callable[["Plugin", nri_pb2.UpdateContainersRequest], Awaitable[nri_pb2.UpdateContainersResponse]]


class PluginFailed(Exception):
    """A plugin did not answer: too late, gone, or with what is no answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a plugin is asked or told: the event that it must have subscribed to, and the call.

    ``subject`` names the pod or container for messages.
    """

    event: int
    message: Message
    subject: str

    @property
    def method(self) -> str:
        """The call's name."""
        return type(self.message).__name__.removesuffix("Request")


class Plugin:
    """A plugin at the other end of a socket. ``serve`` runs as long as it is connected."""

    def __init__(self, trunk: Trunk, options: NriOptions, update: Update, log: logging.Logger) -> None:
        self.name, self.index = "", ""
        self.known: set[str] = set()
        """Pods and containers whose making began since the plugin joined: it hears of them by that."""
        self.knows_all = False
        """Whether all others are known to it, too, or will be by the Synchronize that is being written."""
        self.turn = asyncio.Lock()
        self._trunk = trunk
        self._options = options
        self._update = update
        self._log = log
        self._events = 0
        self._registered = asyncio.Event()
        self._updating = asyncio.Lock()
        self._client = Client(trunk.open(PLUGIN_SERVICE))
        self._server = Server(trunk.open(RUNTIME_SERVICE), self._serve_call)

    @property
    def label(self) -> str:
        """The full name, by which plugins are sorted too."""
        return f"{self.index}-{self.name}"

    @property
    def own(self) -> PluginOptions:
        """The site's settings of this plugin."""
        return self._options.plugins.get(self.name, PluginOptions())

    @property
    def deadline_s(self) -> float:
        """How long it may take for a request."""
        return self.own.deadline_s or self._options.deadline_s

    @property
    def fails(self) -> bool:
        """Whether an act fails for which the plugin has no answer."""
        return (self.own.on_failure or self._options.on_failure) == "fail"

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands."""
        return not self._trunk.closed.is_set()

    def wants(self, event: int) -> bool:
        """Return whether the plugin subscribed to an event."""
        return bool(self._events & (1 << (event - 1)))

    async def serve(self) -> None:
        """Read what the plugin says until the connection ends."""
        await asyncio.gather(self._trunk.run(), self._client.run(), self._server.run())

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._trunk.close()

    async def introduce(self, name: str, index: str, config: str, version: str) -> None:
        """Wait until the plugin has registered, then configure it. ``name`` and ``index`` are those of a plugin that
        was started here, empty for others. Raises PluginFailed."""
        self.name, self.index = name, index
        async with _within(self._options.registration_deadline_s, "it did not register"):
            await _first(self._registered.wait(), self._trunk.closed.wait())
        if not self.is_connected:
            raise PluginFailed("it hung up before it had registered")
        request = nri_pb2.ConfigureRequest(
            config=config,
            runtime_name="crinoid",
            runtime_version=version,
            registration_timeout=int(self._options.registration_deadline_s * 1000),
            request_timeout=int(self.deadline_s * 1000),
            NRI_version=NRI_VERSION,
        )
        answer = await self.call("Configure", request, nri_pb2.ConfigureResponse, self.deadline_s)
        if answer.events & ~ALL_EVENTS:
            raise PluginFailed(f"it subscribes to events that don't exist: {answer.events & ~ALL_EVENTS:#x}")
        self._events = answer.events or ALL_EVENTS

    async def synchronize(
        self, pods: list[nri_pb2.PodSandbox], containers: list[nri_pb2.Container]
    ) -> list[nri_pb2.ContainerUpdate]:
        """Tell what there is, in several messages if need be; return what the plugin wants changed. The caller has the
        turn. Raises PluginFailed."""
        requests = split_sync(pods, containers)
        for request in requests:
            answer = await self.call(
                "Synchronize", request, nri_pb2.SynchronizeResponse, self._options.synchronization_deadline_s
            )
            if request.more and not answer.more:
                raise PluginFailed("it takes no list of pods and containers in several parts")
        return list(answer.update)

    async def ask(self, request: Request, expected: type[M]) -> M | None:
        """Send a request when it is its turn; ``None`` without an answer, where that may be ignored.

        Raises Refused when the plugin answers with an error, or has no answer and its ``on_failure`` is ``fail``. A
        plugin without an answer is disconnected: it can't know any more what there is.
        """
        try:
            async with _within(TURN_S, "it is too busy: its turn did not come"):
                await self.turn.acquire()
            try:
                return await self._ask(request, expected)
            finally:
                self.turn.release()
        except RemoteError as error:
            raise Refused(f"NRI plugin {self.label}: {request.method} of {request.subject}: {error}") from error
        except PluginFailed as error:
            self.close()
            self._fail(request, error)
            return None

    async def call(self, method: str, message: Message, expected: type[M], deadline_s: float) -> M:
        """Call a method of the plugin. Raises PluginFailed, RemoteError."""
        try:
            async with _within(deadline_s, f"{method} had no answer"):
                data = await self._client.call(f"{PACKAGE}.Plugin", method, message.SerializeToString(), deadline_s)
            answer = expected()
            answer.ParseFromString(data)
        except (ConnectionLost, DecodeError, ValueError) as error:
            raise PluginFailed(f"{method}: {error}") from error
        return answer

    async def shut_down(self) -> None:
        """Tell the plugin that the daemon stops, as far as it listens, and hang up."""
        try:
            await self.call("Shutdown", nri_pb2.Empty(), nri_pb2.Empty, self.deadline_s)
        except (PluginFailed, RemoteError) as error:
            self._log.debug("NRI plugin %s was not told that the daemon stops: %s", self.label, error)
        finally:
            self.close()

    async def _ask(self, request: Request, expected: type[M]) -> M:
        """Ask; a plugin from before the call existed is told by a change of state."""
        if not self.is_connected:
            raise PluginFailed("it has gone")
        try:
            return await self.call(request.method, request.message, expected, self.deadline_s)
        except RemoteError as error:
            if error.code != UNIMPLEMENTED or len(expected.DESCRIPTOR.fields):
                raise
        pod, container = (getattr(request.message, part, None) for part in ("pod", "container"))
        change = nri_pb2.StateChangeEvent(event=nri_pb2.Event.Name(request.event), pod=pod, container=container)
        await self.call("StateChange", change, nri_pb2.Empty, self.deadline_s)
        return expected()

    def _fail(self, request: Request, error: PluginFailed) -> None:
        text = f"NRI plugin {self.label}: {request.method} of {request.subject}: {error}"
        if self.fails:
            raise Refused(f"{text}; its on_failure is fail") from error
        self._log.warning("%s; ignored, as its on_failure says, and the plugin is disconnected", text)

    async def _serve_call(self, service: str, method: str, payload: bytes) -> bytes:
        if (service, method) == (f"{PACKAGE}.Runtime", "RegisterPlugin"):
            return self._register(nri_pb2.RegisterPluginRequest.FromString(payload)).SerializeToString()
        if (service, method) == (f"{PACKAGE}.Runtime", "UpdateContainers"):
            if not self._events:
                raise RemoteError(INVALID_ARGUMENT, "register first")
            async with self._updating:
                request = nri_pb2.UpdateContainersRequest.FromString(payload)
                if len(request.update) + len(request.evict) > MAX_UPDATES:
                    raise RemoteError(RESOURCE_EXHAUSTED, f"at most {MAX_UPDATES} containers can be changed at once")
                return (await self._update(self, request)).SerializeToString()
        raise RemoteError(UNIMPLEMENTED, f"{service}/{method} is not served")

    def _register(self, request: nri_pb2.RegisterPluginRequest) -> nri_pb2.Empty:
        """Take the name of a plugin that connected; one that was started here has its file's."""
        if self._registered.is_set():
            raise RemoteError(INVALID_ARGUMENT, "register once")
        if not self.name:
            if not _NAME.fullmatch(request.plugin_name):
                raise RemoteError(INVALID_ARGUMENT, f"plugin_name {request.plugin_name!r} is not of letters and digits")
            if not _INDEX.fullmatch(request.plugin_idx):
                raise RemoteError(INVALID_ARGUMENT, f"plugin_idx {request.plugin_idx!r} is not two digits")
            self.name, self.index = request.plugin_name, request.plugin_idx
        self._log.info("NRI plugin %s registers, with NRI %s", self.label, request.NRI_version or "of unknown version")
        self._registered.set()
        return nri_pb2.Empty()


def split_sync(
    pods: list[nri_pb2.PodSandbox], containers: list[nri_pb2.Container], most: int = SYNC_BYTES
) -> list[nri_pb2.SynchronizeRequest]:
    """Return the messages that tell of these, each of at most about ``most`` bytes."""
    requests = [nri_pb2.SynchronizeRequest()]
    size = 0
    for one in (*pods, *containers):
        size += one.ByteSize() + 8
        if size > most and (requests[-1].pods or requests[-1].containers):
            requests[-1].more = True
            requests.append(nri_pb2.SynchronizeRequest())
            size = one.ByteSize() + 8
        part = requests[-1].pods if isinstance(one, nri_pb2.PodSandbox) else requests[-1].containers
        part.append(one)  # type: ignore[arg-type]  # of the kind that was looked at
    return requests


class _within:  # noqa: N801  # reads as a phrase
    """A deadline whose passing is a plugin's failure."""

    def __init__(self, limit_s: float, what: str) -> None:
        self._timeout = asyncio.timeout(limit_s)
        self._text = f"{what} after {limit_s:g} s"

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)  # type: ignore[arg-type]
        except TimeoutError as expired:
            raise PluginFailed(self._text) from expired


async def _first(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
