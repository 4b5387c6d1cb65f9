"""What crosses the network's hooks: a pod's wish for a network, and what it got."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.values.pod import DnsConfig, PodMetadata, PortMapping

DEFAULT_INTERFACE = "eth0"
"""What a pod's own interface is called inside the pod, as with every runtime; statistics go by this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRequest:
    """A pod that wants a network.

    ``netns`` is the path of the pod's pinned network namespace, ``None`` when the driver said in its features that
    it uses the host's. ``ingress_bits_per_s`` and ``egress_bits_per_s`` come from the pod's bandwidth annotations,
    0 for no limit. ``ips`` are addresses asked for. ``pod_cidrs`` is what UpdateRuntimeConfig last told, if anything.
    """

    pod_id: str
    metadata: PodMetadata
    netns: Path | None
    interface: str = DEFAULT_INTERFACE
    port_mappings: tuple[PortMapping, ...] = ()
    dns: DnsConfig | None = None
    ingress_bits_per_s: int = 0
    egress_bits_per_s: int = 0
    ips: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    cgroup_parent: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A pod's network as it is: addresses without prefix, the pod's own first one first.

    ``data`` is the driver's own JSON object; the kernel keeps it and gives it back at check and detach, so that
    an attachment is undone by what was recorded, never by today's configuration.
    """

    addresses: tuple[str, ...]
    data: Mapping[str, object] = field(default_factory=dict)
    dns: DnsConfig | None = None


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """``ready`` with an empty reason, or a reason in CamelCase and a message that says what to do."""

    ready: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class NetworkFeatures:
    """``host_network``: pods of this slot get no network namespace of their own."""

    host_network: bool = False
