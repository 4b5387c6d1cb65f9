"""Metrics of pods and containers for the kubelet's cAdvisor endpoint: reads, and takes samples by ``metric_table``.

Descriptors and samples come from one table, so they can't differ. A pod has the figures of its whole cgroup, with
empty ``container``, ``image`` and ``name``, and those of its network; a container has those of its cgroup, its
processes and its writable layer.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import NotFound
from crinoid.core.api.linux import procfs
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.cgroupdetails import read_details
from crinoid.core.api.values.stats import CgroupDetails
from crinoid.core.lifecycle.stats.metric_table import METRICS, DiskFigures, MetricDescriptor, Reading
from crinoid.core.lifecycle.stats.stats import BATCH, StatsService, batched, read_networks
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord
from crinoid.core.state.store import Store


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric; ``label_values`` belong to the descriptor's labels."""

    metric: MetricDescriptor
    label_values: tuple[str, ...]
    value: int
    timestamp_ns: int


@dataclass(frozen=True, slots=True)
class ContainerSamples:
    """A container's samples."""

    container_id: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class PodSamples:
    """A pod's samples, and those of its running containers."""

    pod_id: str
    samples: tuple[Sample, ...]
    containers: tuple[ContainerSamples, ...]


class MetricsService:
    """ListMetricDescriptors, ListPodSandboxMetrics and its stream."""

    def __init__(self, store: Store, stats: StatsService) -> None:
        self._store = store
        self._stats = stats

    def descriptors(self) -> Sequence[MetricDescriptor]:
        """Return every metric there can be; constant."""
        return METRICS

    async def pods(self) -> list[PodSamples]:
        """Read the metrics of every pod that is up and of its running containers."""
        return [pod async for batch in self.batches() for pod in batch]

    async def batches(self) -> AsyncGenerator[list[PodSamples], None]:
        """Read the same a few pods at a time; what has gone meanwhile is left out."""
        for few in batched([one.id for one in self._store.pods if self._stats.is_up(one.id)], BATCH):
            known = [pod for one in few if self._stats.is_up(one) and (pod := self._store.pods.get(one)) is not None]
            samples = await asyncio.gather(*(self._pod(pod) for pod in known))
            yield [pod for pod in samples if self._stats.is_up(pod.pod_id)]

    async def _pod(self, pod: PodRecord) -> PodSamples:
        running = [one for one in self._store.containers_of(pod.id) if one.state is ContainerState.RUNNING]
        containers = await asyncio.gather(*(self._container(pod, one) for one in running))
        reading = await asyncio.to_thread(_read_pod, pod)
        base = ("", below_mount(pod.cgroup_parent), "", "", *_place(pod))
        return PodSamples(pod.id, take_samples(reading, base), tuple(containers))

    async def _container(self, pod: PodRecord, container: ContainerRecord) -> ContainerSamples:
        layer = await self._stats.disk(container, pod)
        used_bytes = None if layer.usage is None else layer.usage.used_bytes
        reading = await asyncio.to_thread(_read_container, container, used_bytes, layer.mountpoint)
        cgroup = below_mount(container.handle.cgroup)
        name = container.config.metadata.name
        base = (name, cgroup, self._image(container), container.id, *_place(pod))
        return ContainerSamples(container.id, take_samples(reading, base))

    def _image(self, container: ContainerRecord) -> str:
        """The name that people know the image by."""
        record = self._store.images.get(container.image_id)
        names = () if record is None else (*record.tags, *record.digests)
        return next(iter(names), container.config.user_specified_image or container.config.image)


def take_samples(reading: Reading, base: tuple[str, ...]) -> tuple[Sample, ...]:
    """Return the samples of all metrics that a reading has values of; ``base`` are the values of ``LABELS``."""
    return tuple(
        Sample(metric, (*base, *labels), max(value, 0), reading.timestamp_ns)
        for metric in METRICS
        for labels, value in metric.values(reading)
    )


def _place(pod: PodRecord) -> tuple[str, str]:
    return pod.config.metadata.namespace, pod.config.metadata.name


def _read_pod(pod: PodRecord) -> Reading:
    (network,) = read_networks([pod.namespaces.get("network")])
    return Reading(
        timestamp_ns=time.time_ns(),
        started_ns=pod.created_at_ns,
        cgroup=_read_cgroup(pod.cgroup_parent),
        interfaces=network.interfaces if network else (),
    )


def _read_container(container: ContainerRecord, used_bytes: int | None, mountpoint: str) -> Reading:
    cgroup = _read_cgroup(container.handle.cgroup)
    return Reading(
        timestamp_ns=time.time_ns(),
        started_ns=container.started_at_ns or container.created_at_ns,
        cgroup=cgroup,
        files=procfs.count_open_files(cgroup.processes) if cgroup else None,
        open_files_limit=procfs.soft_limit(container.pid, "Max open files"),
        disk=None if used_bytes is None else _read_disk(used_bytes, mountpoint),
        resources=container.resources,
    )


def _read_cgroup(cgroup: str) -> CgroupDetails | None:
    try:
        return read_details(below_mount(cgroup))
    except (NotFound, OSError):
        return None


def _read_disk(used_bytes: int, mountpoint: str) -> DiskFigures | None:
    try:
        whole, device = os.statvfs(mountpoint), Path(mountpoint).stat().st_dev
    except OSError:
        return None
    return DiskFigures(
        device=procfs.device_name(os.major(device), os.minor(device)),
        usage_bytes=used_bytes,
        limit_bytes=whole.f_blocks * whole.f_frsize,
        inodes_free=whole.f_ffree,
        inodes=whole.f_files,
    )
