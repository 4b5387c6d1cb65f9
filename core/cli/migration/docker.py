"""Docker's ``daemon.json``, as a kubelet used it by way of cri-dockerd, and ``/etc/docker/certs.d``.

Source of the keys: Docker's reference of dockerd. What is about its API, swarm, networks of its own and building has
nothing to carry over: pods have none of it.
"""

from pathlib import Path
from typing import Any

from crinoid.core.cli.migration import values
from crinoid.core.cli.migration.draft import Draft
from crinoid.core.cli.migration.hosts import Mirror
from crinoid.core.cli.migration.registries_conf import import_certificates
from crinoid.core.cli.migration.rules import Act, Entry, apply, lost, moot, nonempty, to
from crinoid.core.cli.migration.runtimes import add_runtime
from crinoid.core.cli.migration.sources import Node

PEER = "docker"
DEFAULT_FILE = Path("/etc/docker/daemon.json")
_API = "Docker's own API, which no kubelet uses"
_NETWORK = "pods' networks are not Docker's: CNI, or crinoid's bridge"
_DNS = "the kubelet says what resolv.conf pods have"


def import_docker(node: Node, file: Path, draft: Draft) -> None:
    """Read the file and the certificates. Raises ConfigurationError."""
    apply(node.read_json(file), _rules(node), draft, PEER)
    import_certificates(node, Path("/etc/docker/certs.d"), draft)
    draft.set(("network", "options", "fallback"), "none", "as with cri-dockerd: no network until CNI is configured")


def _rules(node: Node) -> dict[str, Act]:
    def carry_profile(entry: Entry) -> None:
        if entry.value in ("", "builtin"):
            entry.skip("crinoid has one of its own")
        elif entry.value == "unconfined":
            entry.lose("RuntimeDefault is a profile here: say Unconfined in the pod")
        elif not node.at(entry.value).is_file():
            entry.lose(f"{entry.value} is not there")
        else:
            entry.draft.set(("runtimes", "runc", "driver"), "runc", entry.place)
            entry.carry(("runtimes", "runc", "options", "seccomp_profile"), entry.value)

    return {**_RULES, "seccomp-profile": carry_profile}


def _carry_mirrors(entry: Entry) -> None:
    mirrors = [Mirror(str(url).rstrip("/")) for url in entry.items]
    entry.draft.hosts.registry("docker.io").mirrors += mirrors
    entry.carried("certs.d/docker.io/hosts.toml")


def _carry_insecure(entry: Entry) -> None:
    ranges = [name for name in entry.items if "/" in name]
    for name in entry.items:
        if name not in ranges:
            entry.draft.hosts.allow_insecure(name)
    if ranges:
        entry.lose(f"a range of addresses names no registry: {', '.join(ranges)}; name each in certs.d")
    if len(ranges) < len(entry.items):
        entry.carried("certs.d: https with any certificate, then http")


def _carry_exec_options(entry: Entry) -> None:
    for name, value in values.pairs(entry.items).items():
        if name == "native.cgroupdriver":
            entry.carry(("pods", "cgroup_driver"), value)
        else:
            entry.lose(f"{name} is not known")


def _carry_ulimit(entry: Entry) -> None:
    """``{"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 64000}}``; 0 where one is not named."""
    found = []
    for name, one in entry.value.items():
        hard = one["Hard"]
        found.append(f"{name}={one.get('Soft', hard)}:{hard}")
    entry.carry(("pods", "default_ulimits"), found)


def _carry_runtime(entry: Entry) -> None:
    name, table = entry.names[0], entry.value
    if table.get("runtimeType"):
        entry.lose(f"{table['runtimeType']} is a shim, and crinoid runs none")
        return
    made = add_runtime(entry.draft, name, table.get("path", ""), entry.place)
    entry.carried(made)
    if table.get("runtimeArgs"):
        arguments = " ".join(table["runtimeArgs"])
        entry.lose(f"arguments can't be given ({arguments}): name a script that adds them as its binary")
    for key in table.keys() - {"path", "runtimeArgs", "runtimeType", "options"}:
        entry.lose(f"crinoid does not know {key}: nothing came of it")


def _carry_debug(entry: Entry) -> None:
    if entry.value is True:
        entry.carry(("log", "level"), "debug")
    else:
        entry.skip("off, as here")


def _carry_storage(entry: Entry) -> None:
    drivers = {"overlay2": "overlay", "overlay": "overlay", "overlayfs": "overlay", "vfs": "native"}
    if entry.value in drivers:
        entry.carry(("snapshotter", "driver"), drivers[entry.value])
    else:
        entry.lose(f"crinoid has no snapshotter {entry.value!r}: containers' files are overlays")


def _carry_features(entry: Entry) -> None:
    wanted: dict[str, Any] = {name: value for name, value in entry.value.items() if name not in ("buildkit", "cdi")}
    if entry.value.get("cdi") is False:
        entry.carry(("pods", "cdi_spec_dirs"), [])
    if wanted:
        entry.lose(f"features of Docker's own: {', '.join(wanted)}")
    elif entry.value.get("cdi") is not False:
        entry.skip("CDI is on here")


_RULES: dict[str, Act] = {
    "registry-mirrors": nonempty(_carry_mirrors),
    "insecure-registries": nonempty(_carry_insecure),
    "exec-opts": nonempty(_carry_exec_options),
    "default-ulimits/**": lambda entry: _carry_ulimit(entry),
    "runtimes/*/**": _carry_runtime,
    "default-runtime": to("pods", "default_runtime"),
    "max-concurrent-downloads": to("images", "max_parallel_layers", convert=values.parallel),
    "max-download-attempts": to("registries", "distribution", "options", "tries", convert=lambda n: min(int(n), 20)),
    "default-shm-size": to("pods", "shm_size_bytes", convert=values.size),
    "debug": _carry_debug,
    "log-level": nonempty(to("log", "level", convert=values.log_level)),
    "log-format": lambda entry: (
        entry.carry(("log", "format"), "json") if entry.value == "json" else entry.skip("plain lines are the default")
    ),
    "metrics-addr": nonempty(to("metrics", "listen")),
    "storage-driver": nonempty(_carry_storage),
    "storage-opts": nonempty(lost("see snapshotter.options: root and mount_options")),
    "features/**": _carry_features,
    "cdi-spec-dirs": nonempty(to("pods", "cdi_spec_dirs")),
    "log-driver": lost("crinoid writes the kubelet's log files alone", "json-file"),
    "log-opts/**": lost("the kubelet rotates logs: containerLogMaxSize, containerLogMaxFiles"),
    "live-restore": moot("containers always live on when the daemon ends"),
    "cgroup-parent": moot("the kubelet names each pod's cgroup"),
    "data-root": moot("its images: skopeo copy docker-daemon:…, or docker save and ctl load"),
    "graph": moot("see data-root"),
    "userns-remap": nonempty(lost("pods have user namespaces by the kubelet: hostUsers")),
    "selinux-enabled": lost("crinoid labels containers wherever SELinux is on, by the pod's own options", False),
    "no-new-privileges": lost("say allowPrivilegeEscalation: false in the pod", False),
    "init": lost("containers have no init process but in pods that share their processes", False),
    "init-path": lost("see pods.init_binary, for pods that share their processes", ""),
    "icc": lost("NetworkPolicies say which pods may talk", True),
    "proxies/**": lost("the daemon's proxies are environment variables of its unit: write them into crinoid.service.d"),
    "http-proxy": nonempty(lost("write HTTP_PROXY into crinoid.service.d")),
    "https-proxy": nonempty(lost("write HTTPS_PROXY into crinoid.service.d")),
    "no-proxy": nonempty(lost("write NO_PROXY into crinoid.service.d")),
    "oom-score-adjust": moot("the unit says it: OOMScoreAdjust"),
    "authorization-plugins": nonempty(lost("extensions decide in crinoid: docs/plugins.md")),
    "default-cgroupns-mode": lost("containers on cgroup v2 have a namespace of their own", "private"),
    "default-ipc-mode": moot("the pod says it"),
    "cpu-rt-period": lost("crinoid sets no realtime limits", 0),
    "cpu-rt-runtime": lost("crinoid sets no realtime limits", 0),
    "dns": nonempty(lost(_DNS)),
    "dns-opts": nonempty(lost(_DNS)),
    "dns-search": nonempty(lost(_DNS)),
    "labels": moot(_API),
    **{
        name: moot(_NETWORK)
        for name in (
            "bip",
            "bip6",
            "bridge",
            "fixed-cidr",
            "fixed-cidr-v6",
            "default-gateway",
            "default-gateway-v6",
            "mtu",
            "ipv6",
            "iptables",
            "ip6tables",
            "ip-forward",
            "ip-forward-no-drop",
            "ip-masq",
            "ip",
            "userland-proxy",
            "userland-proxy-path",
            "default-address-pools",
            "host-gateway-ip",
            "host-gateway-ips",
            "allow-direct-routing",
            "bridge-accept-fwmark",
            "firewall-backend",
            "network-control-plane-mtu",
        )
    },
    **{f"{name}/**": moot(_NETWORK) for name in ("default-network-opts",)},
    **{
        name: moot(_API)
        for name in (
            "hosts",
            "group",
            "tls",
            "tlsverify",
            "tlscacert",
            "tlscert",
            "tlskey",
            "api-cors-header",
            "pidfile",
            "exec-root",
            "raw-logs",
            "experimental",
            "shutdown-timeout",
            "max-concurrent-uploads",
            "containerd",
            "containerd-namespace",
            "containerd-plugin-namespace",
            "swarm-default-advertise-addr",
            "cluster-store",
            "cluster-advertise",
            "node-generic-resources",
            "allow-nondistributable-artifacts",
            "validate",
            "rootless",
            "disable-legacy-registry",
            "min-api-version",
            "deprecated-key-path",
        )
    },
    "builder/**": moot(_API),
    "cluster-store-opts/**": moot(_API),
}
