"""Spans as a collector gets them: an RPC's joins the kubelet's trace, a hook's stands below its RPC."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Answer
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from crinoid.core.config.models import MetricsConfig, TracingConfig
from crinoid.core.daemon.instruments import DaemonInstruments
from crinoid.core.daemon.watchdog import Watchdog
from crinoid.core.slots.running import HookCalls

TRACE, KUBELET = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self._server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(
            self._export, ExportTraceServiceRequest.FromString, Answer.SerializeToString
        )
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def _export(self, request: ExportTraceServiceRequest, _context: object) -> Answer:
        for resource in request.resource_spans:
            self.services |= {one.value.string_value for one in resource.resource.attributes if "name" in one.key}
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return Answer()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def instruments(tracing: TracingConfig) -> DaemonInstruments:
    return DaemonInstruments(MetricsConfig(), tracing, "1", Watchdog(HookCalls(), 1.0))


async def test_spans_join_the_trace_of_whoever_calls(collector: Collector) -> None:
    traced = instruments(TracingConfig(endpoint=f"http://127.0.0.1:{collector.port}"))
    assert traced.traces
    with traced.rpc_span("RunPodSandbox", {"traceparent": f"00-{TRACE}-{KUBELET}-01"}):  # noqa: SIM117
        with traced.span("network.attach", {"crinoid.slot": "default"}):
            pass
    with traced.rpc_span("Version", {}):
        pass
    await traced.close()  # sends what is left
    spans = {span.name: span for span in collector.spans}
    rpc, hook, other = (
        spans[name]
        for name in ("runtime.v1.RuntimeService/RunPodSandbox", "network.attach", "runtime.v1.RuntimeService/Version")
    )
    assert (rpc.kind, hook.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL)
    assert {one.key: one.value.string_value for one in rpc.attributes} == {
        "rpc.system": "grpc",
        "rpc.service": "runtime.v1.RuntimeService",
        "rpc.method": "RunPodSandbox",
    }
    assert (rpc.trace_id.hex(), rpc.parent_span_id.hex()) == (TRACE, KUBELET)
    assert (hook.trace_id, hook.parent_span_id) == (rpc.trace_id, rpc.span_id)
    assert other.trace_id.hex() != TRACE
    assert {one.key: one.value.string_value for one in hook.attributes} == {"crinoid.slot": "default"}
    assert "crinoid" in collector.services


async def test_without_an_endpoint_there_are_no_spans() -> None:
    assert not instruments(TracingConfig()).traces
