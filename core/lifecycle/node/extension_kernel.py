"""What extensions may ask of the kernel: the pods and containers there are, new limits, the end of a container.

Handed to every extension by ``connect``. It goes the same ways as requests do, but asks no extension.
"""

import asyncio
import logging

from crinoid.core.api.adjustments import check_resources
from crinoid.core.api.hooks.extension import ContainerView, ImageView, PodView
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.lifecycle.containers.containers import ContainerService
from crinoid.core.lifecycle.events.views import read_spec, view_container, view_pod
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.state.records import ContainerRecord
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)


class ExtensionKernel:
    """The kernel as extensions see it: see :class:`crinoid.core.api.hooks.extension.Kernel`."""

    def __init__(self, store: Store, containers: ContainerService, images: ImageService, stop_timeout_s: float) -> None:
        """``stop_timeout_s``: the grace of containers that an extension stops."""
        self._store = store
        self._images = images
        self.documents = images.documents()
        self._containers = containers
        self._stop_timeout_s = stop_timeout_s

    def pods(self) -> tuple[PodView, ...]:
        """Return all pods there are."""
        return tuple(view_pod(record) for record in self._store.pods)

    async def containers(self) -> tuple[ContainerView, ...]:
        """Return all containers as they were when this was called."""
        pods = {pod.pod_id: pod for pod in self.pods()}
        records = [record for record in self._store.containers if record.pod_id in pods]
        return await asyncio.to_thread(_view_all, records, pods)

    def image(self, name: str) -> ImageView | None:
        """Return the image of a name or an id."""
        if (record := self._images.find(name)) is None:
            return None
        return ImageView(record.id, record.tags, record.digests, record.manifests, record.decisions)

    async def update_container(self, container_id: str, resources: LinuxResources) -> None:
        """Change limits of a container, without asking extensions. Raises InvalidArgument for what no request holds."""
        check_resources(resources)
        await self._containers.change_limits(container_id, resources)

    async def stop_container(self, container_id: str, reason: str) -> None:
        """Stop a container."""
        LOG.warning("container %s is stopped for an extension: %s", container_id, reason)
        await self._containers.stop(container_id, self._stop_timeout_s)


def _view_all(records: list[ContainerRecord], pods: dict[str, PodView]) -> tuple[ContainerView, ...]:
    return tuple(view_container(record, pods[record.pod_id], read_spec(record)) for record in records)
