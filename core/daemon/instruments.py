"""Metrics and traces of RPCs and hooks: what ``cri`` and ``slots`` report to, where the configuration wants it.

prometheus-client is imported once the daemon serves; OpenTelemetry is an optional dependency.
"""

import asyncio
import functools
import importlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import MetricsConfig, TracingConfig
from crinoid.core.daemon.exposition import MetricsEndpoint
from crinoid.core.daemon.watchdog import LAG_BOUNDS_S, Watchdog

LOG = logging.getLogger(__name__)
Span = AbstractContextManager[object]
Child = Callable[..., Any]  # Any: prometheus-client's child of a histogram, by its labels
_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120)
_RPC_LABELS = ("rpc", "code")
_HOOK_LABELS = ("role", "slot", "hook", "outcome")


class Metrics:
    """Histograms of RPCs by status, of hooks by outcome and of the loop's lag, on ``/metrics``.

    What is told before ``open`` is kept until then: making tables takes time that the first answer can do without.
    """

    def __init__(self, listen: str, watchdog: Watchdog) -> None:
        """Take the address ``host:port``. Raises ConfigurationError when it can't be had."""
        self._watchdog = watchdog
        self._endpoint = MetricsEndpoint(listen, watchdog.health)
        self._early: list[Callable[[], None]] = []
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._rpc: Child | None = None
        self._hook: Child | None = None

    async def open(self) -> None:
        """Make the tables, and answer who asks for them. Once."""
        prometheus = await asyncio.to_thread(importlib.import_module, "prometheus_client")
        registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        registry.register(_LoopCollector(self._watchdog))
        registry.register(_GaugeCollector(self._gauges))
        make = functools.partial(prometheus.Histogram, buckets=_BUCKETS, registry=registry)
        rpcs = make("crinoid_rpc_seconds", "CRI calls by RPC and gRPC status", _RPC_LABELS)
        hooks = make("crinoid_hook_seconds", "Hook calls by role, slot, hook and outcome", _HOOK_LABELS)
        # a child is found by its labels each time; that takes longer than to observe, and these are few
        self._rpc, self._hook = functools.cache(rpcs.labels), functools.cache(hooks.labels)
        for observe in self._early:
            observe()
        self._early.clear()
        self._endpoint.open(prometheus.MetricsHandler.factory(registry))

    def show(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Show a figure that ``read`` returns, in a thread of ours, each time that somebody asks."""
        self._gauges[name] = (about, read)

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

    def close(self) -> None:
        """Stop serving. Idempotent."""
        self._endpoint.close()


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
        about = "How long the event loop was away from its sockets, each time: so long did everybody wait"
        yield HistogramMetricFamily("crinoid_loop_lag_seconds", about, buckets=buckets, sum_value=clock.total_s)
        yield GaugeMetricFamily("crinoid_loop_stall_seconds", "How long the event loop is away by now", clock.stall_s)
        about = "Hooks that went on after they were cancelled and were left behind"
        yield CounterMetricFamily("crinoid_hooks_abandoned", about, calls.abandoned_ever)
        yield GaugeMetricFamily("crinoid_hooks_left_behind", f"{about}, and still run", len(calls.abandoned))


class _GaugeCollector:
    """Figures that others keep, in prometheus-client's words."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Any]:
        """See prometheus-client's Collector; it has no types."""
        from prometheus_client.core import GaugeMetricFamily

        for name, (about, read) in self._gauges.items():
            yield GaugeMetricFamily(name, about, read())


class Tracer(Protocol):
    """Opens spans."""

    def span(self, name: str, attributes: Mapping[str, str], carrier: Mapping[str, str]) -> Span:
        """Open a span, child of the current one, or of the one that ``carrier`` (headers) names."""
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
        except ImportError as error:
            raise ConfigurationError(
                f"tracing.endpoint is set, but {error.name} is not installed: pip install 'crinoid[tracing]'"
            ) from error
        resource = Resource.create({"service.name": "crinoid", "service.version": version})
        self._provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(config.sampling_ratio))
        exporter = OTLPSpanExporter(endpoint=config.endpoint, insecure=not config.endpoint.startswith("https:"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("crinoid", version)
        self._extract = propagate.extract

    def span(self, name: str, attributes: Mapping[str, str], carrier: Mapping[str, str]) -> Span:
        """Open a span; a ``traceparent`` in the carrier makes it a child of the caller's."""
        context: Any = self._extract(dict(carrier)) if carrier else None
        return self._tracer.start_as_current_span(name, context=context, attributes=dict(attributes))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class NoTracer:
    """Traces nothing."""

    def span(self, name: str, attributes: Mapping[str, str], carrier: Mapping[str, str]) -> Span:
        """Return a span that does nothing."""
        return nullcontext()

    def close(self) -> None:
        """Nothing is left."""


class DaemonInstruments:
    """Fits what ``slots`` and ``cri`` report to, with or without metrics and traces."""

    def __init__(self, metrics: MetricsConfig, tracing: TracingConfig, version: str, watchdog: Watchdog) -> None:
        self._metrics = Metrics(metrics.listen, watchdog) if metrics.listen else None
        self._tracer: Tracer = OpenTelemetry(tracing, version) if tracing.endpoint else NoTracer()

    async def open(self) -> None:
        """Do what the start need not wait for. Once."""
        if self._metrics is not None:
            await self._metrics.open()

    def show(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Show a figure of somebody else's; ``read`` is called in any thread."""
        if self._metrics is not None:
            self._metrics.show(name, about, read)

    def observe(self, role: str, slot: str, hook: str, seconds: float, outcome: str) -> None:
        """Take one finished hook."""
        if self._metrics is not None:
            self._metrics.observe_hook(role, slot, hook, seconds, outcome)

    def span(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        """Open a span around a hook."""
        return self._tracer.span(name, attributes, {})

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
        return self._tracer.span(rpc, {"rpc.system": "grpc", "rpc.service": "runtime.v1"}, metadata)

    async def close(self) -> None:
        """Stop serving, send what is left."""
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        await asyncio.to_thread(self._tracer.close)  # a collector that does not answer takes half a minute
