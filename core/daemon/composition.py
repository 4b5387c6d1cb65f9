"""Wires the node: store, slots and services, from the configuration; nothing here decides anything."""

from dataclasses import dataclass

from crinoid.core.api.linux.bulkheads import OwnerThreads
from crinoid.core.config.models import Config, ImagesConfig, StreamingConfig
from crinoid.core.cri.services import Services
from crinoid.core.cri.streaming.server import StreamingOptions, StreamingServer
from crinoid.core.lifecycle.checkpoints.capture import CheckpointParts, CheckpointService
from crinoid.core.lifecycle.concurrency.locks import Locks
from crinoid.core.lifecycle.containers.builder import ContainerBuilder
from crinoid.core.lifecycle.containers.containers import ContainerParts, ContainerService
from crinoid.core.lifecycle.events.events import EventBus
from crinoid.core.lifecycle.events.exit_monitor import ExitMonitor
from crinoid.core.lifecycle.events.views import describe_owner
from crinoid.core.lifecycle.images.adoption.adoption import Adoptions
from crinoid.core.lifecycle.images.disk_usage import NodeDisk
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.images.loading import Loads
from crinoid.core.lifecycle.images.saving import Saves
from crinoid.core.lifecycle.node.extension_kernel import ExtensionKernel
from crinoid.core.lifecycle.node.node import NodeService
from crinoid.core.lifecycle.node.recovery import Recovery
from crinoid.core.lifecycle.pods.dry_run import DryRun
from crinoid.core.lifecycle.pods.pod_restore import PodRestorer
from crinoid.core.lifecycle.pods.pods import PodParts, PodService
from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths
from crinoid.core.lifecycle.resources.host_calls import HostCalls
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.lifecycle.sandbox.pod_init import InitParts, PodInit
from crinoid.core.lifecycle.stats.metrics import MetricsService
from crinoid.core.lifecycle.stats.stats import StatsService
from crinoid.core.lifecycle.strays.stand_ins import StandIns
from crinoid.core.lifecycle.streams import StreamService
from crinoid.core.slots.binding import Slots
from crinoid.core.state.content import ContentStore
from crinoid.core.state.store import Store
from crinoid.core.state.timelines import Timelines

START = "start of crinoid"
"""The act of what is brought in order at the start."""


@dataclass(frozen=True, slots=True)
class Composition(Services):
    """The services that ``cri`` serves, and what has to be recovered before and closed after.

    ``threads`` are to be the loop's default executor.
    """

    recovery: Recovery
    init: PodInit
    exit_monitor: ExitMonitor
    resources: Resources
    threads: OwnerThreads
    store: Store
    slots: Slots
    kernel: ExtensionKernel

    async def recover(self) -> None:
        """Bring records and host together, then let extensions in."""
        with self.timelines.recording(START):
            self.recovery.prepare()
            await self.images.recover()
            await self.node.recover()
            await self.recovery.run()
            await self.slots.extensions.connect(self.kernel)

    async def settle(self) -> None:
        """Give up what would change a pod or container from now on, and so be told to nobody. Idempotent."""
        await self.containers.close()
        await self.pods.close()
        await self.init.close()
        await self.exit_monitor.close()

    async def close(self) -> None:
        """Give up what is under way and close the store; pods and containers run on."""
        await self.streams.stop()
        await self.settle()
        await self.images.close()
        await self.resources.close()
        await self.slots.close()
        self.store.close()
        self.timelines.close()


def compose(config: Config, slots: Slots, version: str, host_calls: HostCalls) -> Composition:
    """Build all services. The directories ``config.root`` and ``config.run`` exist; pods and containers
    lie below the latter. ``host_calls``: the kernel, or a test's fake of it."""
    cgroups = CgroupPaths.of(config.pods)
    store, content = Store(config.root / "state.db"), ContentStore(config.root / "content")
    images = ImageService(store, content, slots, pinning(config))
    threads = OwnerThreads()
    resources = Resources(
        store.ledger, slots, cgroups.root, threads, lambda owner: describe_owner(store, owner), host_calls
    )
    events, locks = EventBus(store), Locks()
    exit_monitor = ExitMonitor(store, slots, events)
    builder = ContainerBuilder(config, store, slots, images, resources, cgroups)
    init = PodInit(config, store, slots, InitParts(images, resources, events), cgroups)
    containers = ContainerService(
        config.pods, store, slots, ContainerParts(builder, images, init, exit_monitor, resources, locks, events)
    )
    pods = PodService(config, store, slots, PodParts(containers, init, resources, locks, events), cgroups)
    stats = StatsService(store, slots, images.writables, containers.list, pods.list, pods.is_up)
    return Composition(
        pods=pods,
        containers=containers,
        images=images,
        loads=Loads(images),
        saves=Saves(images, content),
        disk=NodeDisk(config.root, store, content, slots, images),
        adoptions=Adoptions(images, content),
        stats=stats,
        metrics=MetricsService(store, stats),
        checkpoints=CheckpointService(
            config, store, slots, CheckpointParts(images, resources, locks, builder.paths, exit_monitor)
        ),
        restorer=PodRestorer(slots, pods, containers),
        streams=StreamingServer(_streaming_options(config.streaming), StreamService(containers, pods)),
        node=NodeService(store, slots, images, resources, cgroups, version),
        events=events,
        dry_run=DryRun(config, slots, images, pods, cgroups),
        timelines=Timelines(config.root, config.timeline.size_bytes),
        recovery=Recovery(
            (config.root, config.run), StandIns(store, slots, config.run), store, slots, resources, exit_monitor, init
        ),
        init=init,
        exit_monitor=exit_monitor,
        resources=resources,
        threads=threads,
        store=store,
        slots=slots,
        kernel=ExtensionKernel(store, containers, images, config.pods.stop_timeout_s),
    )


def pinning(config: Config) -> ImagesConfig:
    """Return what the configuration says of images, with the pause image pinned.

    The kubelet must not collect an image that a pod's init may need at any moment.
    """
    pinned = (*config.images.pinned, config.pods.pause_image)
    return config.images.model_copy(update={"pinned": pinned})


def _streaming_options(config: StreamingConfig) -> StreamingOptions:
    return StreamingOptions(**{name: getattr(config, name) for name in type(config).model_fields})
