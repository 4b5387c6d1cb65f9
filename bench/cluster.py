"""``python -m bench.cluster``: a Deployment under a kubelet, over crinoid and containerd, each in its own cluster.

Programs of Kubernetes are none of this repository's: ``--binaries`` names their directory (see tests/cluster). One
cluster runs at a time, on a fresh node; in each round every endpoint has its turn, in rotation. The floor is a kubelet
on crinoid with drivers that do nothing: what the cluster itself takes.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import document, report
from bench.document import Run
from bench.endpoints import Endpoint, version_of
from bench.measure import cpu_of, memory_mib, pss_mib, spent
from bench.report import FLOOR
from bench.results import Gap, Results
from bench.scenarios import tell
from cluster.control_plane import PROGRAMS, ControlPlane
from cluster.kubelet import Kubelet
from cluster.place import Place, place_in
from support.containerd import Containerd
from support.daemon import Daemon
from support.distributions import Site

DOCUMENT = document.REPOSITORY / "docs" / "performance.md"
OURS = ("crinoid bridge+crun", "crinoid cni+runc")
_PROBED_S = 30.0
_LOOK_S = 0.1
_PATIENCE_S = 600.0


def main() -> None:
    """Measure, print the table, and write what is asked for."""
    parser = argparse.ArgumentParser("bench.cluster", description=__doc__)
    parser.add_argument("--binaries", type=Path, required=True, help=f"a directory with {', '.join(PROGRAMS)}")
    parser.add_argument("--containerd", default="containerd", help="the program; its shim lies beside it")
    parser.add_argument("--pods", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--on", default="", metavar="ENDPOINT,…", help="measure only these")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--render", action="store_true", help="write its part of docs/performance.md, too")
    wanted = parser.parse_args()
    peer = f"containerd {version_of(wanted.containerd)}"
    endpoints = [one for one in (*OURS, peer, FLOOR) if not wanted.on or one.startswith(tuple(wanted.on.split(",")))]
    began, at, results = time.monotonic(), document.now(), Results()
    for number in range(wanted.rounds):
        first = number % len(endpoints)
        for name in (*endpoints[first:], *endpoints[:first]):
            tell(f"round {number + 1}, {name} …")
            try:
                _measure(results, name, wanted)
            except Exception as error:  # noqa: BLE001  # whatever fails there is a gap
                results.gaps.append(Gap(f"cluster, round {number + 1}", name, " ".join(str(error).split())[:300]))
                tell(f"gap: {results.gaps[-1].reason}")
    settings = {"cluster_pods": wanted.pods, "probed_s": _PROBED_S}
    took_s = time.monotonic() - began
    versions = document.programs() | {"Kubernetes": version_of(str(wanted.binaries / "kubelet"))}
    run = Run(at, took_s, document.machine(), versions, settings, endpoints, peer, results)
    report.print_table(run)
    if wanted.json:
        document.write(wanted.json, run)
        if wanted.render:
            report.update_cluster(DOCUMENT, document.read(wanted.json))


def _measure(results: Results, name: str, wanted: argparse.Namespace) -> None:
    """One cluster: pods come, pods that are probed stand there, pods go."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as directory,
        _cluster(Path(directory), name, wanted) as (cluster, endpoint),
    ):
        if name == FLOOR:  # its containers execute nothing, and never end
            _deploy(cluster, "warm", 1)
            results.add("cluster-ready", name, _deploy(cluster, "plain", wanted.pods))
            return
        _warm_up(cluster)
        before = cpu_of(endpoint.processes())
        came_s = _deploy(cluster, "plain", wanted.pods)
        results.add("cluster-ready", name, came_s)
        results.add("cluster-cpu", name, spent(before, cpu_of(endpoint.processes())))
        time.sleep(3)  # for what goes on after the last pod is ready
        results.add("cluster-memory", name, memory_mib(endpoint.processes()))
        results.add("cluster-pss", name, pss_mib(endpoint.processes()))
        results.add("cluster-gone", name, _delete(cluster, "plain"))
        _deploy(cluster, "probed", wanted.pods, {"exec": {"command": ["true"]}, "periodSeconds": 10})
        time.sleep(5)
        before = cpu_of(endpoint.processes())
        time.sleep(_PROBED_S)
        results.add("cluster-probed", name, spent(before, cpu_of(endpoint.processes())))
        _delete(cluster, "probed")


@contextlib.contextmanager
def _cluster(directory: Path, name: str, wanted: argparse.Namespace) -> Iterator[tuple[ControlPlane, Endpoint]]:
    """A cluster of one node over an endpoint."""
    with place_in(directory) as place, contextlib.ExitStack() as stack:
        runtime = _containerd(place, wanted) if name.startswith("containerd") else _crinoid(place, name)
        stack.callback(runtime.end)
        runtime.start()
        kubelet = Kubelet(
            wanted.binaries / "kubelet",
            place,
            runtime.socket,
            settings={"maxPods": wanted.pods + 20, "syncFrequency": "1m", "fileCheckFrequency": "20s"},
            kubeconfig=place.directory / "kubeconfig.json",
        )
        cluster = ControlPlane(wanted.binaries, place, kubelet, runtime)
        stack.callback(cluster.end)
        cluster.start()
        assert runtime.process is not None
        marks = (f"/run/{runtime.name}/",)
        yield cluster, Endpoint(name, runtime.socket, f"/{kubelet.name}", marks, runtime.process.pid)
        if name != FLOOR:
            cluster.clear()


def _containerd(place: Place, wanted: argparse.Namespace) -> Containerd:
    pause = f"{place.images}/pause:1"
    directory = place.directory / "peer"
    return Containerd(directory, place.cni_conf, place.registry.host, pause, place.prefix, program=wanted.containerd)


def _crinoid(place: Place, name: str) -> Daemon:
    config = f"""
        [registries.distribution]
        driver = "distribution"
        options = {{ plain_http = ["{place.registry.host}"] }}
        [log]
        level = "info"
    """
    if name == FLOOR:
        site = Site(place.directory / "site")
        site.install_quiet()
        config += """
            pods.default_runtime = "quiet"
            network.driver = "quiet"
            snapshotter.driver = "quiet"
            runtimes.quiet.driver = "quiet"
            runtimes.runc.enabled = false
        """
        return Daemon(
            place.directory / "daemon", _ordered(config), place.prefix, environment={"PYTHONPATH": str(site.directory)}
        )
    network, runtime = name.removeprefix("crinoid ").split("+")
    options = f"conf_dir = '{place.cni_conf}'" if network == "cni" else 'subnets = ["10.88.0.0/22"]'
    config += f"""
        [network]
        driver = "{network}"
        options = {{ {options} }}
        [pods]
        default_runtime = "{runtime}"
        [runtimes.{runtime}]
        driver = "{runtime}"
    """
    return Daemon(place.directory / "daemon", config, place.prefix)


def _ordered(config: str) -> str:
    """Put keys before tables, as TOML wants it."""
    lines = [line.strip() for line in config.splitlines() if line.strip()]
    start = next(number for number, line in enumerate(lines) if line.startswith("["))
    end = next(number for number, line in enumerate(lines) if number > start and "." in line.split("=")[0])
    return "\n".join((*lines[:start], *lines[end:], *lines[start:end]))


def _template(cluster: ControlPlane, name: str, probe: dict[str, Any] | None) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "main",
        "image": f"{cluster.place.images}/busybox:1",
        "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"],
        "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}, "limits": {"memory": "64Mi"}},
    }
    if probe is not None:
        container["livenessProbe"] = probe
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 5, "automountServiceAccountToken": False},
    }


def _warm_up(cluster: ControlPlane) -> None:
    """Have the image on the node, and every program in memory."""
    _deploy(cluster, "warm", 1)
    _delete(cluster, "warm")


def _deploy(cluster: ControlPlane, name: str, replicas: int, probe: dict[str, Any] | None = None) -> float:
    """Make a Deployment; return the seconds until all of its pods are ready."""
    began = time.monotonic()
    cluster.make(
        "Deployment",
        name,
        spec={
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": _template(cluster, name, probe),
        },
    )
    _wait(lambda: (cluster.get("Deployment", name) or {}).get("status", {}).get("readyReplicas", 0) >= replicas, name)
    return time.monotonic() - began


def _delete(cluster: ControlPlane, name: str) -> float:
    """Delete a Deployment; return the seconds until its pods are gone."""
    began = time.monotonic()
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
    cluster.ask("DELETE", f"/apis/apps/v1/namespaces/default/deployments/{name}", options)
    _wait(lambda: not cluster.pods(f"app={name}"), name)
    return time.monotonic() - began


def _wait(look: Any, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not as it should be after {_PATIENCE_S:g} s")
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
