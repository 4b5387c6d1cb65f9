"""Add-ons that clusters have, on two nodes that start without a network.

The network comes as a DaemonSet brings it, long after the runtime's start.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster.addons import NET_D, NODE_DNS, attachment, dns, flannel, multus
from cluster.control_plane import ControlPlane
from cluster.kubelet import Json, wait_for
from cluster.pair import Pair
from cluster.place import Place
from cluster.test_static_pods import container, is_ready, pod
from cluster.test_two_nodes import ask_from, names, spread
from cluster.test_workloads import STAY, WEB, run
from support.patience import patient

PODS = "10.88."


@pytest.fixture(scope="module")
def overlay(bare_pair: Pair, binaries: Path) -> Iterator[Pair]:
    """The two nodes with flannel; what is seen while it comes is asserted on the way."""
    cluster = bare_pair.cluster
    for kubelet in bare_pair.kubelets:
        words = wait_for(partial(why_not_ready, cluster, kubelet.node), kubelet.tail, patient(60))
        assert "NetworkReady=false reason:NoNetworkConfiguration" in words
        early = container(cluster.place, "sh", "-c", STAY)
        tolerations = [{"operator": "Exists"}]
        run(cluster, f"early-on-{kubelet.node}s", early, nodeName=kubelet.node, tolerations=tolerations)
    for kubelet in bare_pair.kubelets:
        name = f"early-on-{kubelet.node}s"
        wait_for(partial(_waits, cluster, name), kubelet.tail, patient(60))
        waiting = cluster.get("Pod", name)
        assert waiting is not None
        assert waiting["status"]["phase"] == "Pending"
    flannel(bare_pair, binaries)
    cluster.until("DaemonSet", "flannel", lambda found: found["status"].get("numberReady") == 2, 180)
    for kubelet in bare_pair.kubelets:
        cluster.wait_for_node(kubelet)
    yield bare_pair
    cluster.clear()


def why_not_ready(cluster: ControlPlane, node: str) -> str:
    """Return the message of a node's condition, if it has said that it is not ready."""
    found = cluster.find(f"/api/v1/nodes/{node}") or {"status": {}}
    ready = [one for one in found["status"].get("conditions", ()) if one["type"] == "Ready"]
    return "".join(str(one["message"]) for one in ready if one["status"] != "True")


def _waits(cluster: ControlPlane, pod: str) -> bool:
    return "NetworkNotReady" in dict(cluster.events(pod))


def _has_multus(place: Place) -> bool:
    return "00-multus.conf" in place.run("ls", NET_D)


def pods_of(cluster: ControlPlane, *wanted: str) -> list[Json]:
    return [cluster.until("Pod", name, is_ready) for name in wanted]


def test_pods_that_waited_for_the_overlay(overlay: Pair) -> None:
    cluster = overlay.cluster
    [one, other] = pods_of(cluster, "early-on-nodes", "early-on-seconds")
    assert one["status"]["podIP"].startswith(PODS)
    assert one["status"]["podIP"].rpartition(".")[0] != other["status"]["podIP"].rpartition(".")[0]


def test_pods_across_the_overlay(overlay: Pair) -> None:
    pods = spread(overlay.cluster, "overlaid")
    addresses = [one["status"]["podIP"] for one in pods]
    for name in names(pods):
        assert ask_from(overlay.cluster, name, *addresses) == names(pods)
    counted = json.loads(overlay.kubelets[0].place.run("ip", "-json", "-statistics", "link", "show", "flannel.1"))
    assert counted[0]["stats64"]["tx"]["packets"] > 0


def test_a_network_that_is_configured_anew(overlay: Pair) -> None:
    cluster, place = overlay.cluster, overlay.kubelets[0].place
    file = f"{NET_D}/10-flannel.conflist"
    before = json.loads(place.run("cat", file))
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "567"}}
    changed = {**before, "plugins": [*before["plugins"], tuning]}
    run(cluster, "old", container(cluster.place, "sh", "-c", STAY), nodeName="node")
    pods_of(cluster, "old")
    _write(overlay, file, changed)
    try:
        run(cluster, "new", container(cluster.place, "sh", "-c", STAY), nodeName="node")
        pods_of(cluster, "new")
        seen = [cluster.kubectl("exec", name, "--", "cat", "/proc/sys/net/core/somaxconn") for name in ("old", "new")]
        assert seen[0] != "567\n" == seen[1]
        for name in ("old", "new"):
            cluster.kubectl("delete", "pod", name, "--wait")
    finally:
        _write(overlay, file, before)


def _write(pair: Pair, file: str, content: Json) -> None:
    """Write a file of the first node, all at once."""
    here = pair.kubelets[0].place.directory / "written"
    here.write_text(json.dumps(content))
    pair.kubelets[0].place.run("sh", "-c", f"cp {here} {file}.part && mv {file}.part {file}")


def test_a_pod_with_a_second_interface(overlay: Pair, binaries: Path) -> None:
    cluster, place = overlay.cluster, overlay.kubelets[0].place
    multus(overlay, binaries)
    cluster.until("DaemonSet", "multus", lambda found: found["status"].get("numberReady") == 2, 180)
    for kubelet in overlay.kubelets:
        wait_for(partial(_has_multus, kubelet.place), kubelet.tail, patient(60))
    state = "/var/lib/addons/second"
    ipam = {"type": "host-local", "dataDir": state, "ranges": [[{"subnet": "10.99.0.0/24"}]]}
    attachment(
        cluster, "aside", {"cniVersion": "1.0.0", "name": "aside", "type": "bridge", "bridge": "br1", "ipam": ipam}
    )
    for name in ("both-0", "both-1"):
        made = pod(name, container(cluster.place, "sh", "-c", WEB), nodeName="node")
        asked = {"annotations": {"k8s.v1.cni.cncf.io/networks": "aside"}}
        cluster.make("Pod", name, metadata=asked, spec=made["spec"])
    [one, other] = pods_of(cluster, "both-0", "both-1")
    statuses = [
        json.loads(each["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"]) for each in (one, other)
    ]
    assert [[each["interface"] for each in status] for status in statuses] == [["eth0", "net1"]] * 2
    assert one["status"]["podIP"] == statuses[0][0]["ips"][0]
    assert one["status"]["podIP"].startswith(PODS)
    addresses = [status[1]["ips"][0] for status in statuses]
    assert all(address.startswith("10.99.0.") for address in addresses)
    assert ask_from(cluster, "both-0", addresses[1], other["status"]["podIP"]) == ["both-1"] * 2
    for name in ("both-0", "both-1"):
        cluster.kubectl("delete", "pod", name, "--wait")
    kept = [name for name in place.run("ls", f"{state}/aside").split() if name.startswith("10.99.")]
    assert kept == []


def test_names_of_the_cluster(overlay: Pair, binaries: Path) -> None:
    cluster = overlay.cluster
    dns(overlay, binaries)
    cluster.until("DaemonSet", "node-dns", lambda found: found["status"].get("numberReady") == 2, 180)
    cluster.until("Deployment", "coredns", lambda found: found["status"].get("readyReplicas") == 2, 180)
    pods = spread(cluster, "named", 2)
    for name, spec in (("named", {}), ("headless", {"clusterIP": "None"})):
        cluster.make("Service", name, spec={"selector": {"app": "named"}, "ports": [{"port": 80}], **spec})
    service = cluster.get("Service", "named")
    assert service is not None
    for name in names(pods):
        assert f"nameserver {NODE_DNS}" in cluster.kubectl("exec", name, "--", "cat", "/etc/resolv.conf")
        expected = {"named": {service["spec"]["clusterIP"]}, "headless": {one["status"]["podIP"] for one in pods}}
        for asked, addresses in expected.items():
            wait_for(
                partial(_finds, cluster, name, asked, addresses), partial(_look_up, cluster, name, asked), patient(60)
            )


def _finds(cluster: ControlPlane, pod: str, name: str, addresses: set[str]) -> bool:
    """Whether these are the addresses that a pod finds for a service."""
    answer = _look_up(cluster, pod, name).partition("Name:")[2]
    return {word for word in answer.split() if word.startswith("10.")} == addresses


def _look_up(cluster: ControlPlane, pod: str, name: str) -> str:
    script = f"nslookup {name}.default.svc.cluster.local 2>&1 || true"
    return cluster.kubectl("exec", pod, "--", "sh", "-c", script)
