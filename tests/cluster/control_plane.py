"""A control plane of one node: etcd, API server, controllers, scheduler and kube-proxy, beside a kubelet of its own.

All of them are ``system:masters`` by one token: what is tried is the node, not who may do what.
"""

import contextlib
import json
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from cluster.kubelet import Json, Kubelet, wait_for
from cluster.place import NODE_IP, Place
from crinoid.core.api.linux import namespaces
from support.containerd import Containerd
from support.daemon import Daemon
from support.patience import patient

PROGRAMS = ("kubelet", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl")
SERVICES = "10.96.0.0/16"
_TOKEN = "of-tests"  # good in a network namespace without a way out
_URL = f"https://{NODE_IP}:6443"
_CORE, _APPS = "/api/v1", "/apis/apps/v1"
_PATHS = {
    "Pod": f"{_CORE}/namespaces/default/pods",
    "Service": f"{_CORE}/namespaces/default/services",
    "ConfigMap": f"{_CORE}/namespaces/default/configmaps",
    "Deployment": f"{_APPS}/namespaces/default/deployments",
    "DaemonSet": f"{_APPS}/namespaces/default/daemonsets",
    "StatefulSet": f"{_APPS}/namespaces/default/statefulsets",
    "Job": "/apis/batch/v1/namespaces/default/jobs",
    "RuntimeClass": "/apis/node.k8s.io/v1/runtimeclasses",
}


@dataclass
class ControlPlane:
    """The processes, and a client of the API server; ``kubelet`` is the one node's, or the first's.

    Pods have their addresses ``pods_in`` there; where the cluster ``allocates``, each node is given a part of it.
    """

    binaries: Path
    place: Place
    kubelet: Kubelet
    runtime: Daemon | Containerd
    pods_in: str = "10.88.0.0/24"
    allocates: bool = False
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """All its files."""
        return self.place.directory / "control-plane"

    @property
    def kubeconfig(self) -> Path:
        """By which all of its programs, and kubectl, find the API server."""
        return self.place.directory / "kubeconfig.json"

    def start(self) -> None:
        """Start all but kube-proxy, and wait until the node is ready."""
        self.start_programs()
        self.kubelet.start()
        self.wait_for_node()

    def start_programs(self) -> None:
        """Start what a cluster has besides its nodes, and wait until pods may be made."""
        self.directory.mkdir()
        forward(self.place)
        self.kubeconfig.write_text(json.dumps(_kubeconfig()))
        (self.directory / "tokens").write_text(f"{_TOKEN},admin,admin,system:masters\n")
        for command in (
            "openssl genrsa -out accounts.key 2048",
            "openssl rsa -in accounts.key -pubout -out accounts.pub",
        ):
            subprocess.run(command.split(), cwd=self.directory, check=True, capture_output=True)
        store = "http://127.0.0.1:2379"
        self.launch(
            "etcd",
            *("--data-dir", str(self.directory / "etcd"), "--listen-client-urls", store),
            *("--advertise-client-urls", store, "--listen-peer-urls", "http://127.0.0.1:2380"),
        )
        accounts = self.directory / "accounts"
        self.launch(
            "kube-apiserver",
            *(f"--etcd-servers={store}", f"--advertise-address={NODE_IP}", f"--cert-dir={self.directory / 'pki'}"),
            *(f"--service-cluster-ip-range={SERVICES}", f"--token-auth-file={self.directory / 'tokens'}"),
            *("--authorization-mode=AlwaysAllow", "--allow-privileged", f"--service-account-issuer={_URL}"),
            *(f"--service-account-key-file={accounts}.pub", f"--service-account-signing-key-file={accounts}.key"),
            "--kubelet-preferred-address-types=InternalIP",
        )
        wait_for(lambda: self._is_up("/readyz"), lambda: self.tail("kube-apiserver"), patient(120))
        by = f"--kubeconfig={self.kubeconfig}"
        self.launch(
            "kube-controller-manager",
            *(by, "--leader-elect=false", f"--service-account-private-key-file={accounts}.key"),
            f"--root-ca-file={self.directory / 'pki' / 'apiserver.crt'}",
            *([f"--cluster-cidr={self.pods_in}", "--allocate-node-cidrs"] if self.allocates else ()),
        )
        self.launch("kube-scheduler", by, "--leader-elect=false")
        wait_for(
            lambda: self.find(f"{_CORE}/namespaces/default/serviceaccounts/default"),
            lambda: self.tail("kube-controller-manager"),
            patient(60),
        )

    def wait_for_node(self, kubelet: Kubelet | None = None) -> None:
        """Wait until pods may come to the node, or to that of another kubelet."""
        kubelet = kubelet or self.kubelet
        wait_for(lambda: self._takes_pods(kubelet.node), kubelet.tail, patient(120))

    def launch(self, program: str, *arguments: str, kubelet: Kubelet | None = None) -> None:
        """Start one of the programs, beside another kubelet than the first where that is given."""
        place, name = self.place, program
        if kubelet is not None and kubelet is not self.kubelet:
            place, name = kubelet.place, f"{program}-{kubelet.node}"
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*place.prefix, str(self.binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )

    def kill(self, program: str) -> None:
        """Kill one of them."""
        process = self.processes.pop(program)
        process.kill()
        process.wait()

    def end(self) -> None:
        """Kill all, and undo what they made."""
        self.kubelet.end()
        for program in list(self.processes):
            self.kill(program)

    def tail(self, program: str) -> str:
        """Return the last of a program's log."""
        return f"{program}:\n" + (self.directory / f"{program}.log").read_text(errors="replace")[-4000:]

    @contextlib.contextmanager
    def proxy(self, mode: str, kubelet: Kubelet | None = None) -> Iterator[None]:
        """A kube-proxy for as long as the context lasts; what it wrote into the kernel goes with it."""
        kubelet = kubelet or self.kubelet
        settings = {
            "kind": "KubeProxyConfiguration",
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "mode": mode,
            "clientConnection": {"kubeconfig": str(self.kubeconfig)},
            "hostnameOverride": kubelet.node,
            "clusterCIDR": self.pods_in,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        config = self.directory / f"proxy-{kubelet.node}-{mode}.json"
        config.write_text(json.dumps(settings))
        self.launch("kube-proxy", f"--config={config}", "--v=2", kubelet=kubelet)
        try:
            yield
        finally:
            self.kill("kube-proxy" if kubelet is self.kubelet else f"kube-proxy-{kubelet.node}")
            kubelet.place.run(str(self.binaries / "kube-proxy"), f"--config={config}", "--cleanup")

    def kubectl(self, *arguments: str, given: str | None = None, succeeds: bool = True) -> str:
        """Run kubectl, and return what it prints; without ``succeeds`` what it prints as its error."""
        done = subprocess.run(
            [*self.place.prefix, str(self.binaries / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=patient(120),
            check=False,
        )
        assert (done.returncode == 0) is succeeds, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if succeeds else done.stderr

    def ask(self, method: str, path: str, body: Json | None = None, kind: str = "application/json") -> Any:
        """Call the API."""
        request = urllib.request.Request(
            f"{_URL}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {_TOKEN}", "Content-Type": kind},
        )
        trusting = ssl._create_unverified_context()

        def call() -> bytes:
            with urllib.request.urlopen(request, timeout=patient(30), context=trusting) as answer:
                return bytes(answer.read())

        assert self.place.network.path is not None
        try:
            answer = namespaces.call_in(self.place.network.path, call)
        except HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error
        return json.loads(answer) if answer[:1] == b"{" else answer.decode()

    def find(self, path: str) -> Json | None:
        """Return an object, if there is one."""
        try:
            found: Json = self.ask("GET", path)
        except AssertionError as error:
            if ": 404 " in str(error):
                return None
            raise
        return found

    def make(self, kind: str, name: str, **content: Any) -> None:
        """Make an object of the namespace ``default``."""
        metadata = {"name": name, **content.pop("metadata", {})}
        version = _PATHS[kind].removeprefix("/apis/").removeprefix("/api/").split("/namespaces")[0]
        version = version.removesuffix("/runtimeclasses")
        self.ask("POST", _PATHS[kind], {"apiVersion": version, "kind": kind, "metadata": metadata, **content})

    def clear(self) -> None:
        """Remove all objects of tests, and wait until their pods are gone."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        for kind, path in _PATHS.items():
            if kind in ("Service", "ConfigMap"):  # the cluster has its own of them
                for one in self.ask("GET", f"{path}?labelSelector=!component")["items"]:
                    if one["metadata"]["name"] != "kube-root-ca.crt":
                        self.ask("DELETE", f"{path}/{one['metadata']['name']}", options)
            else:
                self.ask("DELETE", path, options)
        wait_for(lambda: not self.pods(), lambda: json.dumps(self.pods()), patient(120))

    def get(self, kind: str, name: str) -> Json | None:
        """Return an object, if it is there."""
        return self.find(f"{_PATHS[kind]}/{name}")

    def pods(self, selector: str = "") -> list[Json]:
        """Return the pods that have a label."""
        found: list[Json] = self.ask("GET", f"{_PATHS['Pod']}?labelSelector={selector}")["items"]
        return found

    def until(self, kind: str, name: str, holds: Callable[[Json], object], seconds: float = 60) -> Json:
        """Wait until an object is as asked for; return it."""

        def look() -> Json | None:
            found = self.get(kind, name)
            return found if found is not None and holds(found) else None

        def told() -> str:
            found = self.get(kind, name) or {}
            return json.dumps(found.get("status"), indent=1) + "\n" + "\n".join(map(str, self.events()))

        found: Json = wait_for(look, told, patient(seconds))
        return found

    def events(self, name: str = "") -> list[tuple[str, str]]:
        """Return reasons and messages of the events of an object, or of all, in order."""
        selector = f"?fieldSelector=involvedObject.name={name}" if name else ""
        found: Sequence[Json] = self.ask("GET", f"{_CORE}/namespaces/default/events{selector}")["items"]
        found = sorted(found, key=lambda one: (one["firstTimestamp"] or one["eventTime"], one["metadata"]["name"]))
        return [(one["reason"], one["message"]) for one in found]

    def _is_up(self, path: str) -> bool:
        for program, process in self.processes.items():
            assert process.poll() is None, self.tail(program)
        try:
            return bool(self.ask("GET", path) == "ok")
        except (AssertionError, URLError, OSError):
            return False

    def _takes_pods(self, name: str) -> bool:
        node = self.find(f"{_CORE}/nodes/{name}") or {"status": {}, "spec": {}}
        ready = [one["status"] for one in node["status"].get("conditions", ()) if one["type"] == "Ready"]
        return ready == ["True"] and not node["spec"].get("taints")


def forward(place: Place) -> None:
    """Have a node forward what its pods send, as documents on nodes ask for."""
    for setting in ("net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1"):
        place.run("sysctl", "-qw", setting)


def _kubeconfig() -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": _URL, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "u", "user": {"token": _TOKEN}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
