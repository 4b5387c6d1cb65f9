"""What is written down before a pod is attached: every input of the plugins, so that undoing never needs today's files.

``plan_attachment`` makes a plan of a request and the networks that are configured; the kernel records it as JSON. With
the results of ADD in it, the same object is the attachment's data.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from crinoid.core.api.errors import DriverError, InvalidArgument
from crinoid.core.api.values.network import NetworkRequest
from crinoid.plugins.networks.cni.configuration import InvalidConfiguration, Network
from crinoid.plugins.networks.cni.results import Result

LOOPBACK = "lo"
MAX_BURST_BITS = (1 << 32) - 1
"""The bandwidth plugin wants a burst; peers give it the largest that it takes."""

_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_INTERFACE = re.compile(r"(?!\.{1,2}$)[^\s/:\x00]{1,15}")


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class NetworkPlan(_Recorded):
    """One network of a pod: ``text`` is the whole configuration list that is used, ``result`` what ADD gave.

    ``capabilities`` are the capability arguments, by name; a plugin gets those that its configuration declares.
    """

    file: str
    text: str
    version: str
    interface: str
    capabilities: dict[str, Any] = {}
    result: Result | None = None

    @property
    def network(self) -> Network:
        """The configuration list, read from the recorded text."""
        try:
            return Network.parse(self.file, self.text)
        except InvalidConfiguration as error:
            raise DriverError(f"the recorded configuration {self.file} does not parse: {error}") from error


class Plan(_Recorded):
    """All that ADD, CHECK and DEL of one pod need; ``args`` is CNI_ARGS.

    ``kernel_loopback``: the driver brings ``lo`` up. Plans of earlier versions may have a network for it instead.
    """

    container_id: str
    netns: str
    args: str
    bin_dirs: tuple[str, ...]
    networks: tuple[NetworkPlan, ...]
    kernel_loopback: bool = False

    @classmethod
    def read(cls, data: Mapping[str, object]) -> "Plan":
        """Read a recorded plan; raise DriverError when it is none."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DriverError(f"the recorded plan of a CNI attachment does not parse: {error}") from error

    def of_pod(self, request: NetworkRequest) -> "Plan":
        """Return what is to be undone by this plan; raise DriverError unless it is that pod's.

        Plugins change the namespace that it names: where the pod has none any more, none is named to them.
        """
        netns = "" if request.netns is None else str(request.netns)
        if self.container_id != request.pod_id or (netns and self.netns != netns):
            raise DriverError(
                f"the recorded plan of pod {request.pod_id} is for {self.container_id} in {self.netns}: nothing is done"
            )
        return self.model_copy(update={"netns": netns})

    def write(self) -> dict[str, object]:
        """Return the plan as a JSON object."""
        return self.model_dump(mode="json")


def plan_network(network: Network, version: str, interface: str, capabilities: Mapping[str, Any]) -> NetworkPlan:
    """Write down one network of a pod, with those capability arguments that one of its plugins declares."""
    if not _INTERFACE.fullmatch(interface):
        raise InvalidArgument(f"{interface!r} can't be the name of a network interface")
    return NetworkPlan(
        file=network.file,
        text=network.text,
        version=version,
        interface=interface,
        capabilities={name: value for name, value in capabilities.items() if name in network.capabilities},
    )


def plan_attachment(request: NetworkRequest, bin_dirs: Sequence[str], networks: Sequence[NetworkPlan]) -> Plan:
    """Write down a pod's attachment to its networks. Raises InvalidArgument for names that CNI can't carry."""
    if request.netns is None:
        raise InvalidArgument(f"pod {request.pod_id} has no network namespace to attach")
    if not _CONTAINER_ID.fullmatch(request.pod_id):
        raise InvalidArgument(f"pod id {request.pod_id!r} can't be a CNI container id")
    return Plan(
        container_id=request.pod_id,
        netns=str(request.netns),
        args=_format_args(request),
        bin_dirs=tuple(bin_dirs),
        networks=tuple(networks),
    )


def _format_args(request: NetworkRequest) -> str:
    """CNI_ARGS as every Kubernetes runtime gives them."""
    args = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": request.metadata.namespace,
        "K8S_POD_NAME": request.metadata.name,
        "K8S_POD_INFRA_CONTAINER_ID": request.pod_id,
        "K8S_POD_UID": request.metadata.uid,
    }
    for key, value in args.items():
        if any(character in value for character in ";=\0\n"):
            raise InvalidArgument(f"{key} {value!r} can't be passed to CNI plugins: ';' and '=' separate arguments")
    return ";".join(f"{key}={value}" for key, value in args.items())


def derive_capabilities(request: NetworkRequest, pod_cidrs: Sequence[str]) -> dict[str, Any]:
    """Return the capability arguments by name, only those that the pod asks for (CNI CONVENTIONS.md)."""
    arguments = {
        "portMappings": _port_mappings(request),
        "bandwidth": _bandwidth(request),
        "dns": _dns(request),
        "ips": list(request.ips),
        "ipRanges": [[{"subnet": cidr}] for cidr in pod_cidrs],
        "cgroupPath": request.cgroup_parent,
        "io.kubernetes.cri.pod-annotations": dict(request.annotations),
    }
    return {name: value for name, value in arguments.items() if value}


def _port_mappings(request: NetworkRequest) -> list[dict[str, object]]:
    return [
        {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol.value,
            **({"hostIP": mapping.host_ip} if mapping.host_ip else {}),
        }
        for mapping in request.port_mappings
        if mapping.host_port > 0
    ]


def _bandwidth(request: NetworkRequest) -> dict[str, int]:
    """Rates and bursts in bits; a direction without a limit has 0 for both."""
    rates = {"ingress": request.ingress_bits_per_s, "egress": request.egress_bits_per_s}
    if not any(rates.values()):
        return {}
    bursts = {f"{direction}Burst": MAX_BURST_BITS if rate else 0 for direction, rate in rates.items()}
    return {**{f"{direction}Rate": rate for direction, rate in rates.items()}, **bursts}


def _dns(request: NetworkRequest) -> dict[str, list[str]]:
    if request.dns is None:
        return {}
    parts = {"servers": request.dns.servers, "searches": request.dns.searches, "options": request.dns.options}
    return {name: list(values) for name, values in parts.items() if values}
