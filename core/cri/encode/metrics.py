"""Metrics of pods and containers as the kubelet takes them for its cAdvisor endpoint."""

from crinoid.core.cri.encode.texts import clean
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.stats.metric_table import MetricDescriptor
from crinoid.core.lifecycle.stats.metrics import PodSamples, Sample


def encode_descriptor(metric: MetricDescriptor) -> api_pb2.MetricDescriptor:
    """A metric that there can be."""
    return api_pb2.MetricDescriptor(name=metric.name, help=metric.help, label_keys=metric.labels)


def encode_pod_metrics(pod: PodSamples) -> api_pb2.PodSandboxMetrics:
    """A pod's samples with those of its containers."""
    return api_pb2.PodSandboxMetrics(
        pod_sandbox_id=pod.pod_id,
        metrics=map(_encode_sample, pod.samples),
        container_metrics=[
            api_pb2.ContainerMetrics(container_id=one.container_id, metrics=map(_encode_sample, one.samples))
            for one in pod.containers
        ],
    )


def _encode_sample(sample: Sample) -> api_pb2.Metric:
    return api_pb2.Metric(
        name=sample.metric.name,
        timestamp=sample.timestamp_ns,
        metric_type=api_pb2.COUNTER if sample.metric.is_counter else api_pb2.GAUGE,
        label_values=map(clean, sample.label_values),
        value=api_pb2.UInt64Value(value=sample.value),
    )
