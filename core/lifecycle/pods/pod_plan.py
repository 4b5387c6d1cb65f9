"""What RunPodSandbox is going to make: the checks that need nothing of the host, and the choice of slots.

The first step of ``pods``: a request that gets through here fails only by what the host or a driver says.
"""

import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from crinoid.core.api import bounds
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.pod import NamespaceMode, PodConfig, UserNamespace
from crinoid.core.config.models import Config
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths
from crinoid.core.lifecycle.sandbox import pod_files
from crinoid.core.lifecycle.sandbox.pod_files import NAMESPACE_KINDS, PodDirectory
from crinoid.core.lifecycle.sandbox.pod_sysctls import check_sysctls
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.network import NetworkSlot
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot

_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>[kMGTPE]|[KMGTPE]i|m|e[0-9]+)?")
_UNITS = {"m": Decimal("0.001"), "k": Decimal(10**3), None: Decimal(1)}
_UNITS |= {unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", 2)}
_UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}
_BANDWIDTH = (1000, 10**15)


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What RunPodSandbox is going to make, after all checks that need nothing of the host."""

    pod_id: str
    config: PodConfig
    handler: str
    runtime: RuntimeSlot
    network: NetworkSlot
    snapshotter: SnapshotterSlot
    directory: PodDirectory
    host_network: bool
    hostname: str
    cgroup_parent: str
    sysctls: dict[str, str]
    limits: tuple[int, int]

    @property
    def user(self) -> UserNamespace | None:
        """The pod's own user namespace, if it has one."""
        return user_namespaces.wanted_by(self.config)

    @property
    def needs_init(self) -> bool:
        """Whether its containers share a PID namespace that is the kernel's to make, with an init process."""
        return self.config.security.namespaces.pid is NamespaceMode.POD and not self.runtime.traits().shares_processes

    @property
    def pins(self) -> dict[str, Path]:
        """Paths of the namespaces that the pod has to itself."""
        return {kind: self.directory.pin(kind) for kind in own_namespaces(self.config, self.host_network)}


class PodPlanner:
    """Makes plans from requests and the configuration."""

    def __init__(self, config: Config, slots: Slots, cgroups: CgroupPaths) -> None:
        self._config = config
        self._slots = slots
        self._cgroups = cgroups

    def plan(self, config: PodConfig, handler: str) -> PodPlan:
        """Check the request and choose the slots; nothing of the host changes."""
        runtime, network = self._slots.runtime(handler), self._slots.network_of(handler)
        host_network = config.security.namespaces.network is NamespaceMode.NODE or network.features().host_network
        own = own_namespaces(config, host_network)
        check_config(config)
        pod_id = secrets.token_hex(32)
        return PodPlan(
            pod_id=pod_id,
            config=config,
            handler=handler,
            runtime=runtime,
            network=network,
            snapshotter=self._slots.snapshotter_of(handler),
            directory=PodDirectory(self._config.run / "pods" / pod_id),
            host_network=host_network,
            hostname=pod_files.hostname_of(config, host_network),
            cgroup_parent=self._cgroups.pod_parent(config.cgroup_parent, pod_id),
            sysctls=self._default_sysctls(own, user_namespaces.wanted_by(config)) | check_sysctls(config.sysctls, own),
            limits=bandwidth_limits(config.annotations),
        )

    def _default_sysctls(self, own: "tuple[str, ...]", user: UserNamespace | None) -> dict[str, str]:
        """Return the site's sysctls as far as the pod has the namespaces for them, with groups that it can have."""
        pods = self._config.pods
        wanted = dict(pods.default_sysctls)
        if pods.enable_unprivileged_ports:
            wanted.setdefault("net.ipv4.ip_unprivileged_port_start", "0")
        if pods.enable_unprivileged_icmp:
            # The kernel refuses a range with groups that the pod's user namespace does not map.
            wanted.setdefault("net.ipv4.ping_group_range", f"0 {user.gids[0].length - 1 if user else 2147483647}")
        missing = {"network": "net", "ipc": "kernel"}
        foreign = tuple(prefix for kind, prefix in missing.items() if kind not in own)
        return check_sysctls({name: value for name, value in wanted.items() if not name.startswith(foreign)}, own)


def own_namespaces(config: PodConfig, host_network: bool) -> tuple[str, ...]:
    """Return the kinds of namespaces that the pod has to itself; a pod on the host's network has its host name too."""
    absent = {"network", "uts"} if host_network else set()
    if config.security.namespaces.ipc is NamespaceMode.NODE:
        absent.add("ipc")
    if user_namespaces.wanted_by(config) is None:
        absent.add("user")
    return tuple(kind for kind in NAMESPACE_KINDS if kind not in absent)


def check_config(config: PodConfig) -> None:
    """Raise InvalidArgument or Unsupported for what no pod can be."""
    if not config.metadata.name:
        raise InvalidArgument("metadata.name of the pod sandbox is empty")
    if problem := bounds.hostname_problem(config.hostname):
        raise InvalidArgument(f"hostname {problem}")
    if config.log_directory and not config.log_directory.startswith("/"):
        raise InvalidArgument(f"log_directory {config.log_directory!r} is not absolute")
    user_namespaces.check_pod(config)
    for mapping in config.port_mappings:
        if not (0 <= mapping.host_port <= 65535 and 0 <= mapping.container_port <= 65535):
            raise InvalidArgument(f"port mapping {mapping.host_port}:{mapping.container_port} is out of range")
        try:
            ipaddress.ip_address(mapping.host_ip or "0.0.0.0")  # noqa: S104  # any address
        except ValueError as error:
            raise InvalidArgument(f"host_ip of a port mapping: {error}") from error
    if config.dns is not None:
        pod_files.resolv_conf(config.dns)  # for what it raises


def bandwidth_limits(annotations: Mapping[str, str]) -> tuple[int, int]:
    """Return ingress and egress in bits a second, 0 for none, which Kubernetes passes as annotations of the pod.

    Source: ``kubernetes.io/ingress-bandwidth``, a quantity such as ``10M``, as the bandwidth plugin of CNI has it.
    Raises InvalidArgument for what is no sane quantity.
    """
    found = []
    for direction in ("ingress", "egress"):
        key = f"kubernetes.io/{direction}-bandwidth"
        if key not in annotations:
            found.append(0)
            continue
        match = _QUANTITY.fullmatch(annotations[key])
        unit = match["unit"] if match else None
        scale = Decimal(10) ** int(unit[1:]) if unit and unit[0] == "e" and len(unit) < 4 else _UNITS.get(unit)
        if match is None or scale is None:
            raise InvalidArgument(f"annotation {key}: {annotations[key]!r} is not a quantity such as 10M")
        bits = int(Decimal(match["number"]) * scale)
        if not _BANDWIDTH[0] <= bits <= _BANDWIDTH[1]:
            raise InvalidArgument(f"annotation {key}: {annotations[key]!r} is not between 1k and 1P")
        found.append(bits)
    return found[0], found[1]
