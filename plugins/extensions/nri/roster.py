"""The plugins that are connected, what is being made meanwhile, and how a new plugin joins without missing anything.

A plugin that joins hears of every pod and container once: by Synchronize, if its making had begun before, or by its own
creation. For that it takes its turn at once, so that whatever concerns it waits behind Synchronize; that in turn waits
for what was being made when it joined, which is not on record yet. Nobody else waits for either.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.hooks.extension import Kernel, PodView
from crinoid.plugins.extensions.nri.encode import encode_container, encode_pod
from crinoid.plugins.extensions.nri.plugin import Plugin, PluginFailed
from crinoid.plugins.extensions.nri.ttrpc import RemoteError
from crinoid.plugins.extensions.nri.wire import nri_pb2

_ENDED = (nri_pb2.CONTAINER_UNKNOWN, nri_pb2.CONTAINER_STOPPED)


class Roster:
    """All plugins, in the order in which they are asked, and what is in the making."""

    def __init__(self) -> None:
        self._plugins: list[Plugin] = []
        self._making: dict[str, asyncio.Event] = {}

    def __iter__(self) -> Iterator[Plugin]:
        return iter(tuple(self._plugins))

    def concerned(self, event: int, subject_id: str, pod: PodView) -> list[Plugin]:
        """Return the plugins that an event of a pod or container is told to, in order."""
        return [
            plugin
            for plugin in self._plugins
            if plugin.is_connected
            and plugin.wants(event)
            and (plugin.knows_all or subject_id in plugin.known)
            and plugin.own.concerns(pod.config)
        ]

    def begin(self, subject_id: str) -> None:
        """Note that a pod or container is being made: whoever is here now hears of it by its creation."""
        self._making[subject_id] = asyncio.Event()
        for plugin in self._plugins:
            plugin.known.add(subject_id)

    def end(self, subject_id: str) -> None:
        """Note that it is on record, or came to nothing. Idempotent."""
        if (made := self._making.pop(subject_id, None)) is not None:
            made.set()

    def forget(self, subject_id: str) -> None:
        """Note that it was removed."""
        self.end(subject_id)
        for plugin in self._plugins:
            plugin.known.discard(subject_id)

    @contextmanager
    def membership(self, plugin: Plugin) -> Iterator[None]:
        """Count a plugin among those that are asked."""
        self._plugins = sorted([*self._plugins, plugin], key=lambda one: one.label)
        try:
            yield
        finally:
            self._plugins.remove(plugin)

    async def synchronize(self, plugin: Plugin, kernel: Kernel, deadline_s: float) -> list[nri_pb2.ContainerUpdate]:
        """Tell a plugin that has just joined what there is; the caller has its turn. Return what it wants changed.

        Raises PluginFailed.
        """
        pending = [asyncio.create_task(made.wait()) for made in self._making.values()]
        if pending:
            _done, late = await asyncio.wait(pending, timeout=deadline_s)
            for task in late:
                task.cancel()
        try:
            return await self._synchronize(plugin, kernel)
        except (RemoteError, CrinoidError) as error:
            raise PluginFailed(f"Synchronize: {error}") from error

    async def _synchronize(self, plugin: Plugin, kernel: Kernel) -> list[nri_pb2.ContainerUpdate]:
        """What happens from now on is told, after this: so the list must be of now, though it comes later."""
        begun, plugin.knows_all = frozenset(plugin.known), True
        pods = [pod for pod in kernel.pods() if pod.pod_id not in begun]
        containers = [view for view in await kernel.containers() if view.container_id not in begun]
        told = [encode_pod(pod) for pod in pods if plugin.own.concerns(pod.config)]
        alive = [encode_container(view) for view in containers if plugin.own.concerns(view.pod.config)]
        return await plugin.synchronize(told, [one for one in alive if one.state not in _ENDED])
