"""Metrics and traces of RPCs and hooks: what ``cri`` and ``slots`` report to, where the configuration wants it.

prometheus-client is imported once the daemon serves; OpenTelemetry is an optional dependency.
"""

import asyncio
import functools
import importlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import MetricsConfig, TracingConfig
from crinoid.core.cri.calls import service_of
from crinoid.core.daemon.exposition import Health, MetricsEndpoint
from crinoid.core.daemon.metric_families import (
    ABANDONED,
    ERRORS,
    HOOK_SECONDS,
    LEFT_BEHIND,
    LOOP_LAG,
    LOOP_STALL,
    RPC_SECONDS,
)
from crinoid.core.daemon.recorder import Recorder
from crinoid.core.daemon.watchdog import LAG_BOUNDS_S, Watchdog

LOG = logging.getLogger(__name__)
Span = AbstractContextManager[object]
Child = Callable[..., Any]  # Any: prometheus-client's child of a histogram, by its labels
_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120)


class Metrics:
    """Histograms of RPCs by status, of hooks by outcome and of the loop's lag, and what else is added, on ``/metrics``.

    What is told before ``open`` is kept until then: making tables takes time that the first answer can do without.
    """

    def __init__(self, listen: str, watchdog: Watchdog) -> None:
        """Take the address ``host:port``. Raises ConfigurationError when it can't be had."""
        self._watchdog = watchdog
        self._endpoint = MetricsEndpoint(listen, watchdog.health)
        self._early: list[Callable[[], None]] = []
        self._errors: Counter[tuple[str, str]] = Counter()
        self._collectors: list[Collector] = [_LoopCollector(watchdog), _ErrorCollector(self._errors)]
        self._rpc: Child | None = None
        self._hook: Child | None = None

    async def open(self) -> None:
        """Make the tables, and answer who asks for them. Once."""
        prometheus = await asyncio.to_thread(importlib.import_module, "prometheus_client")
        prometheus.disable_created_metrics()  # a series beside each histogram that nobody asks for
        registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        for collector in self._collectors:
            registry.register(collector)
        make = functools.partial(prometheus.Histogram, buckets=_BUCKETS, registry=registry)
        rpcs, hooks = (make(one.name, one.about, one.labels) for one in (RPC_SECONDS, HOOK_SECONDS))
        # a child is found by its labels each time; that takes longer than to observe, and these are few
        self._rpc, self._hook = functools.cache(rpcs.labels), functools.cache(hooks.labels)
        for observe in self._early:
            observe()
        self._early.clear()
        self._endpoint.open(prometheus.MetricsHandler.factory(registry))

    def add(self, collector: "Collector") -> None:
        """Have a collector of prometheus-client's asked, in a thread of ours, each time that somebody asks. Before
        ``open``."""
        self._collectors.append(collector)

    def count_error(self, rpc: str, reason: str) -> None:
        """Take one failure."""
        self._errors[rpc, reason] += 1

    def observe_rpc(self, rpc: str, seconds: float, code: str) -> None:
        """Take one finished call."""
        if self._rpc is None:
            self._early.append(lambda: self.observe_rpc(rpc, seconds, code))
        else:
            self._rpc(rpc, code).observe(seconds)

    def observe_hook(self, role: str, slot: str, hook: str, seconds: float, outcome: str) -> None:
        """Take one finished hook."""
        if self._hook is None:
            self._early.append(lambda: self.observe_hook(role, slot, hook, seconds, outcome))
        else:
            self._hook(role, slot, hook, outcome).observe(seconds)

    def be_ready(self, ready: Health) -> None:
        """Have ``/readyz`` answered by this."""
        self._endpoint.ready = ready

    def close(self) -> None:
        """Stop serving. Idempotent."""
        self._endpoint.close()


class Collector(Protocol):
    """prometheus-client's, which has no types."""

    def collect(self) -> Iterator[Any]:
        """Yield families with their samples."""
        ...


class _LoopCollector:
    """What the watchdog has measured, in prometheus-client's words, each time that somebody asks."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def collect(self) -> Iterator[Any]:
        """See prometheus-client's Collector; it has no types."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        clock, calls = self._watchdog.clock, self._watchdog.calls
        sums = itertools.accumulate(clock.counts)
        buckets = [(str(bound), total) for bound, total in zip((*LAG_BOUNDS_S, "+Inf"), sums, strict=True)]
        yield HistogramMetricFamily(LOOP_LAG.name, LOOP_LAG.about, buckets=buckets, sum_value=clock.total_s)
        yield GaugeMetricFamily(LOOP_STALL.name, LOOP_STALL.about, clock.stall_s)
        yield CounterMetricFamily(ABANDONED.name, ABANDONED.about, calls.abandoned_ever)
        yield GaugeMetricFamily(LEFT_BEHIND.name, LEFT_BEHIND.about, len(calls.abandoned))


class _ErrorCollector:
    """How often calls failed, by RPC and reason."""

    def __init__(self, errors: Mapping[tuple[str, str], int]) -> None:
        self._errors = errors

    def collect(self) -> Iterator[Any]:
        """See prometheus-client's Collector; it has no types."""
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(ERRORS.name, ERRORS.about, labels=ERRORS.labels)
        for labels, count in tuple(self._errors.items()):
            family.add_metric(labels, count)
        yield family


class Tracer(Protocol):
    """Opens spans."""

    def span(self, name: str, attributes: Mapping[str, str]) -> Span:
        """Open a span, child of the current one."""
        ...

    def rpc_span(self, service: str, rpc: str, carrier: Mapping[str, str]) -> Span:
        """Open a span of a call that is served, child of the one that ``carrier`` (headers) names."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class OpenTelemetry:
    """Spans by OTLP over gRPC."""

    def __init__(self, config: TracingConfig, version: str) -> None:
        """Raises ConfigurationError where the optional packages are not installed."""
        try:
            from opentelemetry import propagate  # optional
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
            from opentelemetry.trace import SpanKind
        except ImportError as error:
            raise ConfigurationError(
                f"tracing.endpoint is set, but {error.name} is not installed: pip install 'crinoid[tracing]'"
            ) from error
        resource = Resource.create({"service.name": "crinoid", "service.version": version})
        self._provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(config.sampling_ratio))
        exporter = OTLPSpanExporter(endpoint=config.endpoint, insecure=not config.endpoint.startswith("https:"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("crinoid", version)
        self._extract, self._server = propagate.extract, SpanKind.SERVER

    def span(self, name: str, attributes: Mapping[str, str]) -> Span:
        """Open a span."""
        return self._tracer.start_as_current_span(name, attributes=dict(attributes))

    def rpc_span(self, service: str, rpc: str, carrier: Mapping[str, str]) -> Span:
        """Open a span as OpenTelemetry's conventions for RPC servers have it; by its kind collectors draw the edge from
        the kubelet."""
        context: Any = self._extract(dict(carrier)) if carrier else None
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc}
        return self._tracer.start_as_current_span(
            f"{service}/{rpc}", context=context, kind=self._server, attributes=attributes
        )

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class NoTracer:
    """Traces nothing."""

    def span(self, name: str, attributes: Mapping[str, str]) -> Span:
        """Return a span that does nothing."""
        return nullcontext()

    def rpc_span(self, service: str, rpc: str, carrier: Mapping[str, str]) -> Span:
        """Return a span that does nothing."""
        return nullcontext()

    def close(self) -> None:
        """Nothing is left."""


class DaemonInstruments:
    """Fits what ``slots`` and ``cri`` report to, with or without metrics and traces."""

    def __init__(self, metrics: MetricsConfig, tracing: TracingConfig, version: str, watchdog: Watchdog) -> None:
        self.tape: Recorder | None = None
        """Where calls are taken down while somebody records; see ``recording``."""
        self._metrics = Metrics(metrics.listen, watchdog) if metrics.listen else None
        self._tracer: Tracer = OpenTelemetry(tracing, version) if tracing.endpoint else NoTracer()

    async def open(self) -> None:
        """Do what the start need not wait for. Once."""
        if self._metrics is not None:
            await self._metrics.open()

    def add(self, collector: "Collector") -> None:
        """Show what somebody else has; it is asked in any thread. Before ``open``."""
        if self._metrics is not None:
            self._metrics.add(collector)

    def be_ready(self, ready: Health) -> None:
        """Have ``/readyz`` answered by this, in any thread, once the daemon serves."""
        if self._metrics is not None:
            self._metrics.be_ready(ready)

    def count_error(self, rpc: str, reason: str) -> None:
        """Take one failure of an RPC."""
        if self._metrics is not None:
            self._metrics.count_error(rpc, reason)

    def observe(self, role: str, slot: str, hook: str, seconds: float, outcome: str) -> None:
        """Take one finished hook."""
        if self._metrics is not None:
            self._metrics.observe_hook(role, slot, hook, seconds, outcome)

    def span(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        """Open a span around a hook."""
        return self._tracer.span(name, attributes)

    def observe_rpc(self, rpc: str, seconds: float, code: str) -> None:
        """Take one finished RPC."""
        if self._metrics is not None:
            self._metrics.observe_rpc(rpc, seconds, code)

    @property
    def traces(self) -> bool:
        """Return whether spans go anywhere."""
        return not isinstance(self._tracer, NoTracer)

    def rpc_span(self, rpc: str, metadata: Mapping[str, str]) -> AbstractContextManager[object]:
        """Open a span around an RPC, as a child of the client's."""
        return self._tracer.rpc_span(service_of(rpc), rpc, metadata)

    async def close(self) -> None:
        """Stop serving, send what is left."""
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        await asyncio.to_thread(self._tracer.close)  # a collector that does not answer takes half a minute
