"""The services that the RPC methods call; ``daemon.composition`` makes them.

Every method of theirs raises errors of :mod:`crinoid.core.api.errors` only; ids may be given as unique prefixes.
Methods that are no coroutines read what is committed and never wait.
"""

from dataclasses import dataclass

from crinoid.core.cri.streaming.server import StreamingServer
from crinoid.core.lifecycle.checkpoints.capture import CheckpointService
from crinoid.core.lifecycle.containers.containers import ContainerService
from crinoid.core.lifecycle.events.events import EventBus
from crinoid.core.lifecycle.images.adoption.adoption import Adoptions
from crinoid.core.lifecycle.images.disk_usage import NodeDisk
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.images.loading import Loads
from crinoid.core.lifecycle.images.saving import Saves
from crinoid.core.lifecycle.node.node import NodeService
from crinoid.core.lifecycle.pods.dry_run import DryRun
from crinoid.core.lifecycle.pods.pod_restore import PodRestorer
from crinoid.core.lifecycle.pods.pods import PodService
from crinoid.core.lifecycle.stats.metrics import MetricsService
from crinoid.core.lifecycle.stats.stats import StatsService
from crinoid.core.state.timelines import Timelines


@dataclass(frozen=True, slots=True)
class Services:
    """All that the RPC methods need. ``streams`` gives out the URLs of Exec, Attach and PortForward; ``timelines``
    has what was done."""

    pods: PodService
    containers: ContainerService
    images: ImageService
    loads: Loads
    saves: Saves
    disk: NodeDisk
    adoptions: Adoptions
    stats: StatsService
    metrics: MetricsService
    node: NodeService
    checkpoints: CheckpointService
    restorer: PodRestorer
    streams: StreamingServer
    events: EventBus
    timelines: Timelines
    dry_run: DryRun
