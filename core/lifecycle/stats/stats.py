"""What containers and pods use: from their runtime, their cgroups, their snapshotter and their network namespace.

A look at several objects reads them all in one pass: a runtime is asked for all its containers at once, and one thread
reads the pods' cgroups, another enters one network namespace after the other. Nothing runs in the background. The rate
of CPU use is taken between two looks at least a second apart, as peers do; writable layers are measured every ten
seconds at most.
"""

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from crinoid.core.api.errors import CrinoidError, NotFound
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.namespaces import call_in_each
from crinoid.core.api.values.stats import CgroupUsage, InterfaceUsage, NetworkUsage
from crinoid.core.lifecycle.queries import ContainerFilter, ContainerUsage, PodFilter, PodUsage
from crinoid.core.lifecycle.stats.writable_layers import LayerUsage, WritableLayers
from crinoid.core.slots.binding import Slots
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
T = TypeVar("T")
MIN_INTERVAL_NS = 1_000_000_000
_READ_BYTES = 1 << 14
BATCH = 32
"""Objects that are measured at the same time for a stream."""


class Rates:
    """CPU use of each cgroup as a rate: nano-cores between the last two looks that are far enough apart."""

    def __init__(self) -> None:
        self._samples: dict[str, tuple[int, int, int | None]] = {}

    def rate(self, key: str, timestamp_ns: int, cpu_ns: int) -> int | None:
        """Take a look at a counter and return its rate.

        ``None`` at the first look, and at one after the counter or the clock was set back: there is no telling then
        how much was used, nor since when.
        """
        at, counter, rate = self._samples.get(key, (0, 0, None))
        if at and 0 <= timestamp_ns - at < MIN_INTERVAL_NS and cpu_ns >= counter:
            return rate
        known = at and timestamp_ns > at and cpu_ns >= counter
        rate = (cpu_ns - counter) * 1_000_000_000 // (timestamp_ns - at) if known else None
        self._samples[key] = (timestamp_ns, cpu_ns, rate)
        return rate

    def keep(self, keys: Iterable[str]) -> None:
        """Forget all but these."""
        wanted = set(keys)
        self._samples = {key: sample for key, sample in self._samples.items() if key in wanted}


class StatsService:
    """ContainerStats, PodSandboxStats and their lists."""

    def __init__(
        self,
        store: Store,
        slots: Slots,
        writables: WritableLayers,
        containers: "Callable[[ContainerFilter], list[ContainerRecord]]",
        pods: "Callable[[PodFilter], list[PodRecord]]",
        is_up: Callable[[str], bool],
    ) -> None:
        """``containers`` and ``pods`` answer filters, as the services of those names do, and so does ``is_up``."""
        self._store = store
        self._slots = slots
        self._writables = writables
        self._list_containers = containers
        self._list_pods = pods
        self.is_up = is_up
        self._rates = Rates()

    async def container(self, container_id: str) -> ContainerUsage:
        """Measure one container, its writable layer too. Raises NotFound."""
        (usage,) = await self._containers([self._store.containers.find(container_id)], anew=True)
        return usage

    async def containers(self, wanted: ContainerFilter) -> list[ContainerUsage]:
        """Measure the containers that fit, but for those that have ended."""
        records = [one for one in self._list_containers(wanted) if one.state is not ContainerState.EXITED]
        self._forget_the_gone()
        return await self._containers(records)

    async def container_batches(self, wanted: ContainerFilter) -> AsyncGenerator[list[ContainerUsage], None]:
        """Measure the containers that ``containers`` would, a few at a time; what has gone meanwhile is left out."""
        records = [one for one in self._list_containers(wanted) if one.state is not ContainerState.EXITED]
        for few in batched(records, BATCH):
            known = [current for one in few if (current := self._store.containers.get(one.id)) is not None]
            yield await self._containers(known)

    async def pod(self, pod_id: str) -> PodUsage:
        """Measure one pod with its containers; the network only while it is whole. Raises NotFound."""
        (usage,) = await self._pods([self._store.pods.find(pod_id)])
        return usage if self.is_up(usage.record.id) else dataclasses.replace(usage, network=None)

    async def pods(self, wanted: PodFilter) -> list[PodUsage]:
        """Measure the pods that fit and are up."""
        self._forget_the_gone()
        return await self._pods_up(self._list_pods(wanted))

    async def pod_batches(self, wanted: PodFilter) -> AsyncGenerator[list[PodUsage], None]:
        """Measure the pods that ``pods`` would, a few at a time; what has gone meanwhile is left out."""
        records = [one for one in self._list_pods(wanted) if self.is_up(one.id)]
        for few in batched(records, BATCH):
            yield await self._pods_up([current for one in few if (current := self._store.pods.get(one.id))])

    async def _pods_up(self, records: Iterable[PodRecord]) -> list[PodUsage]:
        """Measure those that are up before and after: of one that went down between, half may have been read."""
        usages = await self._pods([one for one in records if self.is_up(one.id)])
        return [one for one in usages if self.is_up(one.record.id)]

    async def disk(self, record: ContainerRecord, pod: PodRecord | None) -> LayerUsage:
        """Tell what a container's writable layer took a short while ago."""
        return await self._writables.measure(pod.snapshotter if pod else "", record.id)

    async def _containers(self, records: Sequence[ContainerRecord], anew: bool = False) -> list[ContainerUsage]:
        usages = await self._usages(records)
        layers = await self._layers(records, anew)
        return [
            ContainerUsage(one, usage, self._rate(one, usage), layer.usage, layer.timestamp_ns, layer.mountpoint)
            for one, layer in zip(records, layers, strict=True)
            for usage in (usages.get(one.id),)
        ]

    async def _usages(self, records: Sequence[ContainerRecord]) -> Mapping[str, CgroupUsage | None]:
        """Read what those use that run, by their ids: each runtime is asked for all of its own at once."""
        of_runtimes: dict[str, list[ContainerRecord]] = {}
        for one in records:
            pod = self._store.pods.get(one.pod_id)
            if pod is not None and one.state is ContainerState.RUNNING and pod.runtime in self._slots.runtimes:
                of_runtimes.setdefault(pod.runtime, []).append(one)
        found = await asyncio.gather(*(self._of_runtime(name, its) for name, its in of_runtimes.items()))
        return {id_: usage for usages in found for id_, usage in usages}

    async def _of_runtime(
        self, name: str, records: Sequence[ContainerRecord]
    ) -> Iterable[tuple[str, CgroupUsage | None]]:
        """Read what those of one runtime use: nothing where it fails, so that it does not take all others' with it."""
        usages: Sequence[CgroupUsage | None] = ()
        try:
            usages = await self._slots.runtimes[name].stats_many([one.handle for one in records])
        except CrinoidError as error:
            LOG.warning("%d containers are reported without what they use: %s", len(records), error.message)
        return zip((one.id for one in records), usages, strict=False)

    async def _layers(self, records: Sequence[ContainerRecord], anew: bool) -> list[LayerUsage]:
        """Tell what their writable layers take; only those that have to be measured are waited for."""
        pods = [self._store.pods.get(one.pod_id) for one in records]
        keys = [(pod.snapshotter if pod else "", one.id) for one, pod in zip(records, pods, strict=True)]
        known = {key: None if anew else self._writables.known(*key) for key in keys}
        missing = [key for key, layer in known.items() if layer is None]
        measured = await asyncio.gather(*(self._writables.measure(*key, anew) for key in missing))
        known.update(zip(missing, measured, strict=True))
        return [layer for key in keys if (layer := known[key]) is not None]

    async def _pods(self, records: Sequence[PodRecord]) -> list[PodUsage]:
        places = [(record.cgroup_parent, record.namespaces.get("network")) for record in records]
        members = self._members(records)
        readings = await asyncio.to_thread(read_pods, places)
        containers = {one.record.id: one for one in await self._containers(list(chain.from_iterable(members)))}
        told = await asyncio.gather(
            *(self._reported_usage(record, usage) for record, (usage, _) in zip(records, readings, strict=True))
        )
        return [
            PodUsage(record, usage, self._rate(record, usage), network, tuple(containers[one.id] for one in own))
            for record, own, usage, (_, network) in zip(records, members, told, readings, strict=True)
        ]

    async def _reported_usage(self, record: PodRecord, of_cgroup: CgroupUsage | None) -> CgroupUsage | None:
        """Return what the runtime reports of a pod where it does, else what its cgroup has."""
        slot = self._slots.runtimes.get(record.runtime)
        if slot is None or not slot.implements("pod_stats"):
            return of_cgroup
        try:
            return await slot.pod_stats(record.sandbox)
        except NotFound:
            return None
        except CrinoidError as error:
            LOG.warning("pod %s is reported without what it uses: %s", record.id, error.message)
            return None

    def _rate(self, record: PodRecord | ContainerRecord, usage: CgroupUsage | None) -> int | None:
        return None if usage is None else self._rates.rate(record.id, usage.timestamp_ns, usage.cpu_ns)

    def _members(self, pods: Sequence[PodRecord]) -> list[list[ContainerRecord]]:
        """Return each pod's containers that have not ended."""
        found: dict[str, list[ContainerRecord]] = {pod.id: [] for pod in pods}
        for one in self._store.containers:
            if one.pod_id in found and one.state is not ContainerState.EXITED:
                found[one.pod_id].append(one)
        return [found[pod.id] for pod in pods]

    def _forget_the_gone(self) -> None:
        containers = {one.id for one in self._store.containers}
        self._rates.keep(containers.union(one.id for one in self._store.pods))
        self._writables.keep(containers)


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces of at most so many items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _pod_usage(cgroup_parent: str) -> CgroupUsage | None:
    try:
        return cgroups.read_usage(below_mount(cgroup_parent))
    except (NotFound, OSError):
        return None


def read_pods(places: Sequence[tuple[str, Path | None]]) -> list[tuple[CgroupUsage | None, NetworkUsage | None]]:
    """Read the cgroups and the pinned network namespaces of pods. Blocks."""
    networks = read_networks([netns for _, netns in places])
    return [(_pod_usage(parent), network) for (parent, _), network in zip(places, networks, strict=True)]


def read_networks(pins: Sequence[Path | None]) -> list[NetworkUsage | None]:
    """Read the counters of pinned network namespaces; ``None`` on the host's network, or where that is gone. Blocks."""
    pinned = [pin for pin in pins if pin is not None]
    readings = iter(call_in_each("network", pinned, _read_interfaces) if pinned else ())
    taken = (None if pin is None else next(readings) for pin in pins)
    return [one if isinstance(one, NetworkUsage) else None for one in taken]


def _read_interfaces() -> NetworkUsage:
    """Read those of the calling thread's namespace."""
    fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b"".join(iter(lambda: os.read(fd, _READ_BYTES), b""))
    finally:
        os.close(fd)
    return NetworkUsage(time.time_ns(), tuple(parse_interfaces(text)))


def parse_interfaces(text: bytes) -> list[InterfaceUsage]:
    """Read ``/proc/net/dev`` (proc(5)), without loopback.

    A pod with NET_ADMIN names its interfaces: any bytes but blanks, colons and slashes. What is no UTF-8 is replaced.
    """
    found = []
    for line in text.split(b"\n")[2:]:
        name, colon, counters = line.partition(b":")
        if colon and (name := name.strip(b" ")) != b"lo":
            found.append(_interface(name.decode(errors="replace"), counters.split()))
    return found


def _interface(name: str, values: list[bytes]) -> InterfaceUsage:
    """Pick the columns: bytes, packets, errs and drop, of eight for receiving and then of those for sending."""
    return InterfaceUsage(
        name=name,
        rx_bytes=int(values[0]),
        rx_packets=int(values[1]),
        rx_errors=int(values[2]),
        rx_dropped=int(values[3]),
        tx_bytes=int(values[8]),
        tx_packets=int(values[9]),
        tx_errors=int(values[10]),
        tx_dropped=int(values[11]),
    )
