"""The extension ``nri``: passes what happens to pods and containers on to NRI plugins, and what they want back.

Each hook asks the plugins concerned one after the other, in the order of their index, as NRI has it. Pods do not wait
for each other: a plugin is busy with one request at a time, but a pod that needs no answer of it goes its way.
"""

import asyncio
import functools
import socket
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from google.protobuf.message import Message

from crinoid.core.api.adjustments import check_adjustment
from crinoid.core.api.errors import ConfigurationError, CrinoidError, InvalidArgument, Refused
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, Kernel, PodView
from crinoid.core.api.host import Host
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.sockets import SocketPlace
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import ContainerStatus, ExitStatus
from crinoid.plugins.extensions.nri import launch
from crinoid.plugins.extensions.nri.chain import HEAD_START_S, Chain
from crinoid.plugins.extensions.nri.decode import decode_adjustment
from crinoid.plugins.extensions.nri.encode import encode_container, encode_pod
from crinoid.plugins.extensions.nri.mux import Trunk
from crinoid.plugins.extensions.nri.options import NriOptions
from crinoid.plugins.extensions.nri.owners import Owners
from crinoid.plugins.extensions.nri.plugin import MAX_UPDATES, Plugin, PluginFailed, Request
from crinoid.plugins.extensions.nri.resources import decode_resources, encode_resources
from crinoid.plugins.extensions.nri.results import Changes, Creation, LimitsChange
from crinoid.plugins.extensions.nri.roster import Roster
from crinoid.plugins.extensions.nri.ttrpc import INVALID_ARGUMENT, RemoteError
from crinoid.plugins.extensions.nri.wire import nri_pb2

A = TypeVar("A", bound=Message)
_MAX_ENTRIES = 16384  # of one field of an adjustment: more would take long only to be read
_MAX_CONNECTIONS = 128  # the socket is root's: more is a plugin that connects in a loop
_UNCHANGED = (None, LinuxResources())


class NriExtension:
    """Lets NRI plugins take part."""

    api_version = "1.0"
    Config = NriOptions
    deadline_s: ClassVar[float] = 120.0
    """Of a whole chain of plugins; each of them has its own."""

    def __init__(self, config: NriOptions, host: Host) -> None:
        self._config = config
        self._host = host
        self._log = host.log
        self._roster = Roster()
        self._kernel: Kernel | None = None
        self._live: set[str] = set()
        """Pods and containers whose end plugins have not been told."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._evicting: set[str] = set()
        self._connections = 0
        self._children: list[launch.LaunchedPlugin] = []
        self._listener: asyncio.Server | None = None
        self._place = SocketPlace(config.socket, rights.DIRECTORY)

    @hookimpl
    async def connect(self, kernel: Kernel) -> None:
        """Start the plugins of the directory, wait until they are ready, and let others in.

        Raises ConfigurationError, before any plugin is started, when another daemon serves the socket.
        """
        if self._config.listen:
            await asyncio.to_thread(self._place.check)
        self._kernel = kernel
        self._live = {pod.pod_id for pod in kernel.pods() if pod.ready}
        alive = (ContainerStatus.CREATED, ContainerStatus.RUNNING)
        self._live |= {one.container_id for one in await kernel.containers() if one.state in alive}
        await self._launch_all()
        if self._config.listen:
            await self._listen()

    @hookimpl
    async def close(self) -> None:
        """Hang up on all plugins, and end those that were started here. Idempotent."""
        self._place.withdraw()  # while it is open, no other socket can have its inode
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*(plugin.shut_down() for plugin in self._roster))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(child.end() for child in self._children))

    @hookimpl
    async def pod_starting(self, pod: PodView) -> None:
        """RunPodSandbox."""
        self._roster.begin(pod.pod_id)
        self._live.add(pod.pod_id)
        await self._notify_pod(nri_pb2.RUN_POD_SANDBOX, nri_pb2.RunPodSandboxRequest(pod=encode_pod(pod)), pod)

    @hookimpl
    async def pod_started(self, pod: PodView) -> None:
        """It is on record: plugins that join find it there."""
        self._roster.end(pod.pod_id)

    @hookimpl
    async def pod_updating(
        self, pod: PodView, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        """UpdatePodSandbox."""
        request = nri_pb2.UpdatePodSandboxRequest(
            pod=encode_pod(pod),
            linux_resources=encode_resources(resources),
            overhead_linux_resources=encode_resources(overhead),
        )
        await self._notify_pod(nri_pb2.UPDATE_POD_SANDBOX, request, pod)

    @hookimpl
    async def pod_updated(self, pod: PodView) -> None:
        """PostUpdatePodSandbox."""
        request = nri_pb2.PostUpdatePodSandboxRequest(pod=encode_pod(pod))
        await self._notify_pod(nri_pb2.POST_UPDATE_POD_SANDBOX, request, pod)

    @hookimpl
    async def pod_stopping(self, pod: PodView) -> None:
        """StopPodSandbox, while the pod's network is there."""
        await self._stop_pod(pod)

    @hookimpl
    async def pod_removed(self, pod: PodView) -> None:
        """RemovePodSandbox; for a pod that came to nothing StopPodSandbox first."""
        await self._stop_pod(pod)
        request = nri_pb2.RemovePodSandboxRequest(pod=encode_pod(pod))
        await self._notify_pod(nri_pb2.REMOVE_POD_SANDBOX, request, pod)
        self._roster.forget(pod.pod_id)

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        """CreateContainer, and ValidateContainerAdjustment where a plugin wants to judge."""
        self._roster.begin(container.container_id)
        self._live.add(container.container_id)
        self._require_all(container)
        request = nri_pb2.CreateContainerRequest(pod=encode_pod(container.pod), container=encode_container(container))
        asked = self._concerned(nri_pb2.CREATE_CONTAINER, container)
        chain = Chain(
            nri_pb2.CREATE_CONTAINER,
            _name(container),
            nri_pb2.CreateContainerResponse,
            lambda: Creation(request, lambda answer, plugin: _check(answer, plugin, container)),
            functools.partial(self._revoke, container),
        )
        creation = await chain.ask(asked)
        await self._validate(creation, asked, container)
        self._evict(creation.evictions)
        await self._update(creation.changes.of_others)
        if not creation.adjust.ByteSize():
            return None
        authors = ", ".join(creation.authors)
        author = creation.owners.owner(container.container_id, nri_pb2.Field.CgroupsPath) or authors
        adjustment = replace(
            decode_adjustment(creation.adjust, container),
            author=f"NRI plugin {author}",
            authors=tuple(creation.owners.list(container.container_id)),
        )
        try:  # each one's was checked; all together may be more than a container can have
            check_adjustment(adjustment)
        except InvalidArgument as error:
            name = _name(container)
            raise Refused(f"NRI plugins {authors} together make invalid adjustments to {name}: {error}") from error
        return adjustment

    @hookimpl
    async def container_created(self, container: ContainerView) -> None:
        """PostCreateContainer."""
        self._roster.end(container.container_id)
        await self._notify(nri_pb2.POST_CREATE_CONTAINER, nri_pb2.PostCreateContainerRequest(), container)

    @hookimpl
    async def container_starting(self, container: ContainerView) -> None:
        """StartContainer."""
        await self._notify(nri_pb2.START_CONTAINER, nri_pb2.StartContainerRequest(), container)

    @hookimpl
    async def container_started(self, container: ContainerView) -> None:
        """PostStartContainer."""
        await self._notify(nri_pb2.POST_START_CONTAINER, nri_pb2.PostStartContainerRequest(), container)

    @hookimpl
    async def container_updating(self, container: ContainerView, resources: LinuxResources) -> LinuxResources | None:
        """UpdateContainer."""
        request = nri_pb2.UpdateContainerRequest(
            pod=encode_pod(container.pod),
            container=encode_container(container),
            linux_resources=encode_resources(resources),
        )
        chain = Chain(
            nri_pb2.UPDATE_CONTAINER,
            _name(container),
            nri_pb2.UpdateContainerResponse,
            lambda: LimitsChange(request),
            _needs_no_revoking,
        )
        change = await chain.ask(self._concerned(nri_pb2.UPDATE_CONTAINER, container))
        self._evict(change.evictions)
        await self._update(change.changes.of_others)
        if container.container_id not in change.changes.wanted:
            return None
        return decode_resources(change.request.linux_resources)

    @hookimpl
    async def container_updated(self, container: ContainerView) -> None:
        """PostUpdateContainer."""
        await self._notify(nri_pb2.POST_UPDATE_CONTAINER, nri_pb2.PostUpdateContainerRequest(), container)

    @hookimpl
    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        """StopContainer, once, whoever ended it."""
        await self._stop_container(container)

    @hookimpl
    async def container_removed(self, container: ContainerView) -> None:
        """RemoveContainer; for a container that came to nothing StopContainer first."""
        await self._stop_container(container)
        try:
            await self._notify(nri_pb2.REMOVE_CONTAINER, nri_pb2.RemoveContainerRequest(), container)
        finally:
            self._roster.forget(container.container_id)

    async def _stop_pod(self, pod: PodView) -> None:
        if pod.pod_id in self._live:
            self._live.discard(pod.pod_id)
            request = nri_pb2.StopPodSandboxRequest(pod=encode_pod(pod))
            await self._notify_pod(nri_pb2.STOP_POD_SANDBOX, request, pod)

    async def _stop_container(self, container: ContainerView) -> None:
        """Tell every plugin of an end; what one raises holds up nothing."""
        if container.container_id not in self._live:
            return
        self._live.discard(container.container_id)
        request = nri_pb2.StopContainerRequest(pod=encode_pod(container.pod), container=encode_container(container))
        question = Request(nri_pb2.STOP_CONTAINER, request, _name(container))
        changes = Changes(Owners())
        plugins = self._concerned(nri_pb2.STOP_CONTAINER, container)
        for plugin, answer in await self._ask_all(question, plugins, nri_pb2.StopContainerResponse):
            try:
                changes.add(answer.update, plugin.label)
            except Refused as error:
                self._log.warning("%s; the container has ended all the same", error.message)
        await self._update(changes.of_others)

    async def _revoke(self, container: ContainerView, plugins: list[Plugin]) -> None:
        """Tell plugins that their answers to CreateContainer are void, as the end of a container that was none."""
        pod, view = encode_pod(container.pod), encode_container(container)
        for event, message in (
            (nri_pb2.STOP_CONTAINER, nri_pb2.StopContainerRequest(pod=pod, container=view)),
            (nri_pb2.REMOVE_CONTAINER, nri_pb2.RemoveContainerRequest(pod=pod, container=view)),
        ):
            told = [plugin for plugin in plugins if plugin.wants(event)]
            await self._notify_all(Request(event, message, _name(container)), told)

    async def _notify_pod(self, event: int, message: Any, pod: PodView) -> None:
        """Notify of a pod; ``Any``: a request of NRI that has one."""
        question = Request(event, message, f"pod {pod.pod_id}")
        await self._notify_all(question, self._roster.concerned(event, pod.pod_id, pod))

    async def _notify(self, event: int, message: Any, container: ContainerView) -> None:
        """Notify of a container; ``Any``: a request of NRI that has one, and nothing else."""
        plugins = self._concerned(event, container)
        if plugins:
            message.pod.CopyFrom(encode_pod(container.pod))
            message.container.CopyFrom(encode_container(container))
            await self._notify_all(Request(event, message, _name(container)), plugins)

    async def _notify_all(self, question: Request, plugins: Iterable[Plugin]) -> None:
        await self._ask_all(question, plugins, getattr(nri_pb2, f"{question.method}Response"))

    async def _ask_all(self, question: Request, plugins: Iterable[Plugin], expected: type[A]) -> list[tuple[Plugin, A]]:
        """Ask plugins whose answers don't depend on each other; return those that came, in the plugins' order.

        Each begins when the one before it has answered, as NRI has it, or has been silent for a while: so any number of
        silent plugins costs one deadline. Raises Refused of the first that refuses, unless something ends; those after
        it are not asked.
        """
        asked: list[tuple[Plugin, asyncio.Task[A | None]]] = []
        ends = question.event in _ENDS
        try:
            for plugin in plugins:
                asked.append((plugin, asyncio.create_task(plugin.ask(question, expected))))
                await asyncio.wait({asked[-1][1]}, timeout=HEAD_START_S)
                if not ends and any(task.done() and task.exception() is not None for _plugin, task in asked):
                    break
            await asyncio.wait({task for _plugin, task in asked}) if asked else None
        finally:
            for _plugin, task in asked:
                task.cancel()
        answers = []
        for plugin, task in asked:
            try:
                answer = task.result()
            except Refused as error:
                if not ends:
                    raise
                self._log.warning("%s; it goes on all the same", error.message)
            else:
                answers += [] if answer is None else [(plugin, answer)]
        return answers

    def _concerned(self, event: int, container: ContainerView) -> list[Plugin]:
        return self._roster.concerned(event, container.container_id, container.pod)

    def _require_all(self, container: ContainerView) -> None:
        """Refuse a container while a plugin is away that the site wants to be asked about it."""
        connected = {plugin.name for plugin in self._roster if plugin.is_connected}
        for name, own in self._config.plugins.items():
            if own.required and name not in connected and own.concerns(container.pod.config):
                raise Refused(f"NRI plugin {name} is required for {_name(container)}, and it is not connected")

    async def _validate(self, creation: Creation, asked: list[Plugin], container: ContainerView) -> None:
        """Let all plugins that want to judge do so, at the same time."""
        event = nri_pb2.VALIDATE_CONTAINER_ADJUSTMENT
        judges = self._concerned(event, container)
        if not judges:
            return
        message = nri_pb2.ValidateContainerAdjustmentRequest(
            pod=creation.request.pod,
            container=creation.pristine,
            adjust=creation.adjust,
            update=creation.changes.of_others,
            owners=creation.owners.told,
            plugins=[nri_pb2.PluginInstance(name=plugin.name, index=plugin.index) for plugin in asked],
        )
        question = Request(event, message, _name(container))
        answers = await asyncio.gather(
            *(plugin.ask(question, nri_pb2.ValidateContainerAdjustmentResponse) for plugin in judges)
        )
        for plugin, answer in zip(judges, answers, strict=True):
            if answer is not None and answer.reject:
                reason = answer.reason or "it gives no reason"
                raise Refused(f"NRI plugin {plugin.label} rejects the adjustment of {_name(container)}: {reason}")

    async def _update(self, updates: Iterable[nri_pb2.ContainerUpdate]) -> list[nri_pb2.ContainerUpdate]:
        """Change other containers; return what failed and may not be ignored. It holds nothing up."""
        assert self._kernel is not None, "no plugin is asked before connect"
        failed = []
        for update in updates:
            resources = decode_resources(update.linux.resources)
            if resources in _UNCHANGED:
                continue
            try:
                await self._kernel.update_container(update.container_id, resources)
            except CrinoidError as error:
                self._log.warning(
                    "limits of container %s are not what an NRI plugin wants: %s", update.container_id, error
                )
                if not update.ignore_failure:
                    failed.append(update)
        return failed

    def _evict(self, evictions: Iterable[nri_pb2.ContainerEviction]) -> None:
        """Stop containers in the background: a stop waits for hooks, and hooks must not wait for it."""
        for eviction in evictions:
            if eviction.container_id not in self._evicting and len(self._evicting) < MAX_UPDATES:
                self._evicting.add(eviction.container_id)
                self._start(self._stop_evicted(eviction))

    async def _stop_evicted(self, eviction: nri_pb2.ContainerEviction) -> None:
        assert self._kernel is not None, "no plugin is asked before connect"
        reason = f"an NRI plugin evicts it: {eviction.reason or 'it gives no reason'}"
        try:
            await self._kernel.stop_container(eviction.container_id, reason)
        except CrinoidError as error:
            self._log.error("container %s could not be evicted: %s", eviction.container_id, error.message)
        finally:
            self._evicting.discard(eviction.container_id)

    async def _serve_update(
        self, plugin: Plugin, request: nri_pb2.UpdateContainersRequest
    ) -> nri_pb2.UpdateContainersResponse:
        """UpdateContainers: what a plugin wants by itself."""
        self._log.info(
            "NRI plugin %s updates %d and evicts %d containers", plugin.label, len(request.update), len(request.evict)
        )
        changes = Changes(Owners())
        try:
            changes.add(request.update, plugin.label)
        except Refused as error:
            raise RemoteError(INVALID_ARGUMENT, error.message) from error
        self._evict(request.evict)
        return nri_pb2.UpdateContainersResponse(failed=await self._update(changes.of_others))

    async def _launch_all(self) -> None:
        """Start the plugins of the directory and wait until each is ready or has failed, which is logged."""
        config = self._config
        try:
            found = await asyncio.to_thread(launch.installed_plugins, config.plugin_dir, config.plugin_config_dir)
        except OSError as error:
            raise ConfigurationError(f"{error.filename} can't be read: {error.strerror}") from error
        await asyncio.gather(*(self._launch(installed) for installed in found))

    async def _launch(self, installed: launch.InstalledPlugin) -> None:
        try:
            child = await asyncio.to_thread(launch.launch, installed)
        except CrinoidError as error:
            self._log.error("NRI plugin %s can't be started: %s", installed.path, error.message)
            return
        self._children.append(child)
        ready = asyncio.Event()
        self._start(self._attend(*await launch.open_socket(child.socket), installed, ready))
        await ready.wait()

    async def _listen(self) -> None:
        place = self._place
        await asyncio.to_thread(place.claim)
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                listener.bind(str(place.passing))
                self._listener = await asyncio.start_unix_server(self._welcome, sock=listener)
            except BaseException:
                listener.close()
                raise
            place.publish(rights.FILE)
        except OSError as error:
            raise ConfigurationError(f"socket {place.path} for NRI plugins can't be made: {error}") from error
        finally:
            place.release()
        self._log.info("NRI plugins may connect to %s", place.path)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= _MAX_CONNECTIONS:
            self._log.error("an NRI plugin is turned away: %d are connected", self._connections)
            writer.close()
            return
        self._start(self._attend(reader, writer))

    async def _attend(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        installed: launch.InstalledPlugin | None = None,
        ready: asyncio.Event | None = None,
    ) -> None:
        """A plugin's whole stay, from its connection to its end."""
        plugin = Plugin(Trunk(reader, writer), self._config, self._serve_update, self._log)
        self._connections += 1
        serving = asyncio.create_task(plugin.serve())
        try:
            name, index, config = (installed.name, installed.index, installed.config) if installed else ("", "", "")
            await plugin.introduce(name, index, config, self._host.version)
            await self._stay(plugin, serving, ready)
        except (PluginFailed, RemoteError) as error:
            self._log.error("NRI plugin %s is not used: %s", plugin.label.strip("-") or "without a name", error)
        finally:
            self._connections -= 1
            plugin.close()
            if ready is not None:
                ready.set()
            serving.cancel()
            await asyncio.wait({serving})

    async def _stay(self, plugin: Plugin, serving: "asyncio.Task[None]", ready: asyncio.Event | None) -> None:
        assert self._kernel is not None, "nobody may connect before connect"
        with self._roster.membership(plugin):
            async with plugin.turn:
                deadline_s = self._config.synchronization_deadline_s
                updates = await self._roster.synchronize(plugin, self._kernel, deadline_s)
            changes = Changes(Owners())
            changes.add(updates, plugin.label)
            await self._update(changes.of_others)
            self._log.info("NRI plugin %s is connected and knows what there is", plugin.label)
            if ready is not None:
                ready.set()
            await asyncio.wait({serving})
        self._log.info("NRI plugin %s has gone", plugin.label)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_ENDS = frozenset(
    {nri_pb2.STOP_POD_SANDBOX, nri_pb2.REMOVE_POD_SANDBOX, nri_pb2.STOP_CONTAINER, nri_pb2.REMOVE_CONTAINER}
)


async def _needs_no_revoking(_plugins: list[Plugin]) -> None:
    """Limits that are told again take the place of those before."""


def _check(answer: nri_pb2.CreateContainerResponse, plugin: str, container: ContainerView) -> None:
    """Refuse what is invalid while it is known who wants it. ``ValueError``: a word that NRI does not have."""
    try:
        for descriptor, value in (*answer.adjust.ListFields(), *answer.adjust.linux.ListFields()):
            if descriptor.message_type is not None and hasattr(value, "__len__") and len(value) > _MAX_ENTRIES:
                raise InvalidArgument(f"{descriptor.name}: there are {len(value)}, more than {_MAX_ENTRIES}")
        check_adjustment(decode_adjustment(answer.adjust, container))
    except (InvalidArgument, ValueError) as error:
        raise Refused(f"NRI plugin {plugin} makes an invalid adjustment to {_name(container)}: {error}") from error


def _name(container: ContainerView) -> str:
    return f"container {container.container_id} ({container.config.metadata.name})"
