"""What the node has: read from its services each time that somebody asks for metrics, in a thread of the endpoint.

Nothing here waits for the event loop: records and counts are in memory, and a dictionary is copied at one go.
"""

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from crinoid.core.config.models import Config
from crinoid.core.daemon import metric_families as families
from crinoid.core.daemon.composition import Composition
from crinoid.core.daemon.metric_families import Metric
from crinoid.core.slots.isolation.proxy import DriverProcess
from crinoid.core.state.records import ContainerState, PodState
from crinoid.core.state.timelines import DIRECTORY

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Values, each with the values of its labels."""


class NodeFigures:
    """A collector of prometheus-client's; what can't be read, as a directory that is gone, has no sample."""

    def __init__(self, config: Config, node: Composition, version: str) -> None:
        self._config = config
        self._node = node
        self._version = version
        self._readers: tuple[tuple[Metric, Callable[[], Samples]], ...] = (
            (families.PODS, lambda: _by_state(PodState, (one.state for one in node.store.pods))),
            (families.CONTAINERS, lambda: _by_state(ContainerState, (one.state for one in node.store.containers))),
            (families.IMAGES, self._images),
            (families.IMAGE_BYTES, self._image_bytes),
            (families.PULLS, lambda: [(key, one.count) for key, one in node.images.pulled.items()]),
            (families.PULL_SECONDS, lambda: [(key, one.seconds) for key, one in node.images.pulled.items()]),
            (families.PULL_BYTES, lambda: [(key, one.fetched_bytes) for key, one in node.images.pulled.items()]),
            (families.PULLS_UNDER_WAY, lambda: [((), len(node.images.progress()))]),
            (families.LEDGER, lambda: [((), node.store.ledger.total())]),
            (families.DEFERRED, lambda: [((), node.resources.count_deferred())]),
            (families.UNREMOVED, lambda: [((s.role, s.name), len(s.unremoved)) for s in node.slots.all()]),
            (families.UNRECORDED, lambda: [((), node.store.count_late())]),
            (families.FILESYSTEM_SIZE, lambda: self._filesystems("f_blocks")),
            (families.FILESYSTEM_FREE, lambda: self._filesystems("f_bavail")),
            (families.STATE_BYTES, self._state_bytes),
            (families.BUILD, lambda: [((version, platform.python_version()), 1)]),
            (families.PLUGINS, self._plugins),
            (families.PLUGIN_UP, lambda: self._processes(lambda one: not one.problem)),
            (families.PLUGIN_RESTARTS, lambda: self._processes(lambda one: one.restarts)),
            (families.PLUGIN_MEMORY, lambda: self._processes(lambda one: one.memory_bytes)),
        )

    def collect(self) -> Iterator[Any]:
        """See prometheus-client's Collector; it has no types."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric, read in self._readers:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.about, labels=metric.labels)
            for labels, value in read():
                family.add_metric(labels, value)
            yield family

    def _images(self) -> Samples:
        images = tuple(self._node.store.images)
        named = sum(bool(image.tags or image.digests) for image in images)
        pinned = sum(image.pinned for image in images)
        return [(("named",), named), (("unnamed",), len(images) - named), (("pinned",), pinned)]

    def _image_bytes(self) -> Samples:
        sizes = {layer.digest: layer.size for image in self._node.store.images for layer in image.layers}
        return [((), sum(sizes.values()))]

    def _filesystems(self, field: str) -> Samples:
        for name, path in (("root", self._config.root), ("run", self._config.run)):
            try:
                found = os.statvfs(path)
            except OSError:
                continue
            yield (name,), getattr(found, field) * found.f_frsize

    def _state_bytes(self) -> Samples:
        root = self._config.root
        yield ("state",), _size_of(root.glob("state.db*"))
        yield ("timeline",), _size_of((root / DIRECTORY).glob("*"))

    def _plugins(self) -> Samples:
        for slot in self._node.slots.all():
            driver = slot.installed
            yield (slot.role, slot.name, slot.driver, driver.distribution, driver.version), 1

    def _processes(self, read: Callable[[DriverProcess], float | None]) -> Samples:
        for slot in self._node.slots.all():
            if slot.process is not None and (value := read(slot.process)) is not None:
                yield (slot.role, slot.name), value


def _by_state(kind: type[PodState] | type[ContainerState], found: Iterable[PodState | ContainerState]) -> Samples:
    counts = Counter(found)
    return [((state.value,), counts[state]) for state in kind]


def _size_of(paths: Iterable[Path]) -> int:
    total = 0
    try:
        for path in paths:
            total += path.stat().st_size
    except OSError:  # gone meanwhile
        pass
    return total
