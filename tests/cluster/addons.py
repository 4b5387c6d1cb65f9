"""The add-ons that clusters have, from programs that the caller names: their images, and the objects that run them.

What their own manifests do is done here, too, at other places: ``/var/lib`` is each node's own in these tests.
"""

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.kubelet import Json
from cluster.pair import Pair
from cluster.test_static_pods import pod
from cluster.test_workloads import workload
from support.images import Entry, build_image, busybox_layer, make_layer

CNI_BIN, NET_D = "/var/lib/addons/bin", "/var/lib/addons/net.d"
_FLANNEL_RUN = "/var/lib/addons/flannel"
_ETC_FLANNEL = "/etc/kube-flannel"


def image(pair: Pair, binaries: Path, name: str, *programs: str, more: tuple[Entry, ...] = ()) -> str:
    """Build a busybox with the caller's programs at its root, on both nodes; return its reference."""
    if missing := [one for one in programs if not (binaries / one).is_file()]:
        pytest.skip(f"CLUSTER_BINARIES has no {', '.join(missing)}")
    entries = [Entry(path=one, content=(binaries / one).read_bytes(), mode=0o755) for one in programs]
    layout = pair.cluster.place.directory / "addons"
    build_image(layout, f"{name}:1", [busybox_layer(), make_layer([*entries, *more])], compression="none")
    for place in (kubelet.place for kubelet in pair.kubelets):
        place.network.call(partial(place.registry.push, layout, f"{name}:1", f"cluster/{name}:1"))
    return f"{pair.cluster.place.images}/{name}:1"


def with_libraries(*programs: str) -> tuple[Entry, ...]:
    """Programs of this machine, such as iptables, with all that they load."""
    paths = {Path(one) for one in programs}
    extensions = set(Path("/usr/lib/x86_64-linux-gnu/xtables").glob("*.so"))
    printed = subprocess.run(["ldd", *paths, *extensions], capture_output=True, text=True, check=True).stdout
    paths |= {Path(word) for word in printed.split() if word.startswith("/") and not word.endswith(":")}
    return tuple(
        Entry(path=str(one).lstrip("/"), content=one.read_bytes(), mode=0o755) for one in sorted(paths | extensions)
    )


def daemon_set(cluster: ControlPlane, name: str, *containers: Json, **spec: Any) -> None:
    """Make a DaemonSet on the hosts' network, as add-ons have it: it comes to nodes that are not ready, too."""
    everywhere = {"hostNetwork": True, "tolerations": [{"operator": "Exists"}], **spec}
    template = {"metadata": {"labels": {"app": name}}, "spec": pod("", *containers, **everywhere)["spec"]}
    cluster.make("DaemonSet", name, **workload(name, template))


def host_path(name: str, path: str, **more: Any) -> Json:
    """A volume."""
    return {"name": name, "hostPath": {"path": path, **more}}


def mount(name: str, path: str, **more: Any) -> Json:
    """Where a container has a volume."""
    return {"name": name, "mountPath": path, **more}


def flannel(pair: Pair, binaries: Path) -> None:
    """Make flannel's DaemonSet, with the backend vxlan: init containers bring plugin and configuration."""
    tables = with_libraries("/usr/sbin/iptables", "/usr/sbin/iptables-save", "/usr/sbin/iptables-restore")
    reference = image(pair, binaries, "flannel", "flanneld", "flannel", more=tables)
    delegate = {"hairpinMode": True, "isDefaultGateway": True}
    plugins = [
        {"type": "flannel", "subnetFile": "/var/lib/addons/flannel/subnet.env", "delegate": delegate},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    conf = {"name": "cbr0", "cniVersion": "0.3.1", "plugins": plugins}
    network = {"Network": pair.cluster.pods_in, "EnableNFTables": False, "Backend": {"Type": "vxlan"}}
    data = {"cni-conf.json": json.dumps(conf), "net-conf.json": json.dumps(network)}
    pair.cluster.make("ConfigMap", "flannel", data=data)

    def init(name: str, source: str, target: str, *mounts: Json) -> Json:
        command = ["cp", "-f", source, target]
        return {"name": name, "image": reference, "command": command, "volumeMounts": list(mounts)}

    def field(name: str, path: str) -> Json:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    app = {
        "name": "kube-flannel",
        "image": reference,
        "command": ["/flanneld", "--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8081}},
        "securityContext": {"privileged": False, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
        "env": [field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")],
        "volumeMounts": [mount("run", "/run/flannel"), mount("cfg", _ETC_FLANNEL), mount("lock", "/run/xtables.lock")],
    }
    daemon_set(
        pair.cluster,
        "flannel",
        app,
        initContainers=[
            init("install-plugin", "/flannel", "/opt/cni/bin/flannel", mount("bin", "/opt/cni/bin")),
            init(
                *("install-conf", f"{_ETC_FLANNEL}/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"),
                *(mount("net-d", "/etc/cni/net.d"), mount("cfg", _ETC_FLANNEL)),
            ),
        ],
        volumes=[
            host_path("run", _FLANNEL_RUN),
            host_path("bin", CNI_BIN),
            host_path("net-d", NET_D),
            host_path("lock", "/run/xtables.lock", type="FileOrCreate"),
            {"name": "cfg", "configMap": {"name": "flannel"}},
        ],
    )


_ATTACHMENTS = "network-attachment-definitions"
_GROUP = "k8s.cni.cncf.io"


def multus(pair: Pair, binaries: Path) -> None:
    """Make multus' DaemonSet, the thin one, and the kind of object by which it knows further networks."""
    cluster = pair.cluster
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"config": {"type": "string"}}}},
    }
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    kind = "NetworkAttachmentDefinition"
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{_ATTACHMENTS}.{_GROUP}"},
        "spec": {
            "group": _GROUP,
            "scope": "Namespaced",
            "names": {"plural": _ATTACHMENTS, "singular": _ATTACHMENTS[:-1], "kind": kind},
            "versions": [version],
        },
    }
    cluster.kubectl("create", "--validate=false", "-f", "-", given=json.dumps(definition))
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{_ATTACHMENTS}.{_GROUP}", "--timeout=60s")
    reference = image(pair, binaries, "multus", "thin_entrypoint", "multus")
    command = ["/thin_entrypoint", "--multus-bin-file=/multus", "--skip-tls-verify"]
    command += [f"--multus-kubeconfig-file-host={NET_D}/multus.d/multus.kubeconfig"]
    app = {
        "name": "kube-multus",
        "image": reference,
        "command": command,
        "securityContext": {"privileged": True},
        "volumeMounts": [mount("bin", "/host/opt/cni/bin"), mount("net-d", "/host/etc/cni/net.d")],
    }
    daemon_set(cluster, "multus", app, volumes=[host_path("bin", CNI_BIN), host_path("net-d", NET_D)])


def attachment(cluster: ControlPlane, name: str, conf: Json) -> None:
    """Make a network that pods may ask for by an annotation."""
    made = {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name},
        "spec": {"config": json.dumps(conf)},
    }
    cluster.kubectl("create", "--validate=false", "-f", "-", given=json.dumps(made))


DNS, NODE_DNS = "10.96.0.10", "169.254.20.10"


def dns(pair: Pair, binaries: Path) -> None:
    """Make the cluster's CoreDNS, two pods behind a service, and one on each node that asks it and keeps answers."""
    cluster = pair.cluster
    reference = image(pair, binaries, "coredns", "coredns")
    central = ".:53 {\n errors\n ready :8181\n kubernetes cluster.local in-addr.arpa\n cache 30\n}\n"
    local = f".:53 {{\n errors\n bind {NODE_DNS}\n ready {NODE_DNS}:8181\n cache 30\n"
    local += f" forward . {DNS} {{\n force_tcp\n }}\n}}\n"
    limits = {"capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}, "readOnlyRootFilesystem": True}

    def server(name: str, host: str) -> Json:
        cluster.make("ConfigMap", name, data={"Corefile": central if name == "coredns" else local})
        return {
            "name": "coredns",
            "image": reference,
            "command": ["/coredns", "-conf", "/etc/coredns/Corefile"],
            "volumeMounts": [mount("cfg", "/etc/coredns", readOnly=True)],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181, **({"host": host} if host else {})}},
            "securityContext": {"allowPrivilegeEscalation": False, **limits},
        }

    def config(name: str) -> list[Json]:
        return [{"name": "cfg", "configMap": {"name": name}}]

    made = pod("", server("coredns", ""), dnsPolicy="Default", volumes=config("coredns"))["spec"]
    template = {"metadata": {"labels": {"app": "coredns"}}, "spec": made}
    cluster.make("Deployment", "coredns", **workload("coredns", template, replicas=2))
    ports = [{"name": name.lower(), "port": 53, "protocol": name} for name in ("TCP", "UDP")]
    cluster.make("Service", "kube-dns", spec={"clusterIP": DNS, "selector": {"app": "coredns"}, "ports": ports})
    init = {
        "name": "address",
        "image": reference,
        # On an interface of its own, of the kind dummy, where the kernel has that.
        "command": ["sh", "-ec", f"ip addr replace {NODE_DNS}/32 dev lo"],
        "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}},
    }
    daemon_set(cluster, "node-dns", server("node-dns", NODE_DNS), initContainers=[init], volumes=config("node-dns"))
