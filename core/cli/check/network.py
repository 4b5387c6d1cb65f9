"""What pods' packets need of the host: forwarding, and a bridge whose packets meet the host's rules."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config

_AREA = Area("network")


def examine_network(config: Config, sys_net: Path = Path("/proc/sys/net"), root: Path = Path("/")) -> Iterator[Finding]:
    """Examine the host's network settings; a node whose pods are on its own network needs none of them."""
    drivers = {config.network.driver, *(slot.driver for slot in config.networks.values())}
    if drivers == {"host"}:
        yield _AREA.ok("settings", "none are needed: every pod uses the host's network")
        return
    yield _judge_switch(sys_net / "ipv4/ip_forward", "net.ipv4.ip_forward", "pods reach nothing beyond this node")
    yield _judge_switch(
        sys_net / "ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding", "pods reach no IPv6 beyond this node"
    )
    yield _judge_bridge(sys_net / "bridge/bridge-nf-call-iptables")
    if config.network.driver == "auto":
        yield from judge_auto(config.network.options, _has_kubelet(root))


def judge_auto(options: Mapping[str, object], has_kubelet: bool) -> Iterator[Finding]:
    """Judge what pods get while there is no CNI configuration: on a node of a cluster a network of the node alone."""
    if has_kubelet and options.get("fallback", "bridge") == "bridge":
        detail = "pods that come before a network add-on's CNI configuration are attached to crinoid's own bridge"
        advice = 'set network.options.fallback = "none", or network.driver = "bridge" where there is no add-on'
        yield _AREA.warning("auto", detail, advice)


def _has_kubelet(root: Path) -> bool:
    return any((root / place).exists() for place in ("var/lib/kubelet", "var/lib/rancher/k3s", "etc/kubernetes"))


def _judge_switch(file: Path, name: str, consequence: str) -> Finding:
    if not file.exists():
        return _AREA.warning(name, "this kernel has none", consequence)
    if file.read_text().strip() == "0":
        advice = f"{consequence}: run sysctl -w {name}=1, and keep it in /etc/sysctl.d"
        return _AREA.warning(name, "0", advice)
    return _AREA.ok(name, file.read_text().strip())


def _judge_bridge(file: Path) -> Finding:
    name = "bridge-nf-call-iptables"
    if not file.exists():
        advice = (
            'kube-proxy with iptables over a bridge needs it: run "modprobe br_netfilter", keep it in modules-load.d'
        )
        return _AREA.warning(name, "the module br_netfilter is not loaded", advice)
    if file.read_text().strip() == "0":
        return _AREA.warning(name, "0", f"run sysctl -w net.bridge.{name}=1 where kube-proxy uses iptables")
    return _AREA.ok(name, "1")
