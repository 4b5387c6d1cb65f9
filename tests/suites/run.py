"""Run one of the suites of others over crinoid, or over Debian's containerd, on a node in namespaces of its own.

``python -m suites.run critest|node|cluster --binaries DIR --registry DIR --results DIR [-- FLAGS OF THE SUITE]``;
``--registry`` was filled by ``suites.images``. Whatever registry the suite names, the runtime asks that one. Output,
JUnit report and logs come into ``--results``; the failures and the counts are printed at the end. The exit code is the
suite's own, and 1 where its report tells of failures or there is none.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet
from cluster.place import Place, place_in
from support.containerd import Containerd
from support.cri import Cri
from support.daemon import CGROUPS, Daemon, end_cgroups
from support.registry import RunningRegistry, running_registry

REGISTRIES = ("registry.k8s.io", "k8s.gcr.io", "gcr.io")
# Without a service manager the suite starts the kubelet itself; it looks for these programs, not whether they work.
_SERVICE_MANAGER = ("systemd-run", "systemctl", "journalctl")
_WELL = {"passed", "skipped", "pending"}
_BASE = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": "/",
    "failCgroupV1": False,
    "failSwapOn": False,
    "makeIPTablesUtilChains": False,
    "podCIDR": "10.100.0.0/24",
    "volumeStatsAggPeriod": "10s",
    "fileCheckFrequency": "10s",
    "evictionPressureTransitionPeriod": "30s",
    "evictionHard": {"memory.available": "250Mi", "nodefs.available": "5%", "nodefs.inodesFree": "5%"},
    "serializeImagePulls": False,
}


@dataclass(frozen=True)
class Suite:
    """One run: what was asked for, and the node it runs on."""

    given: argparse.Namespace
    place: Place
    runtime: Daemon | Containerd

    def critest(self) -> int:
        """The suite of cri-tools."""
        return self._run("critest", f"--runtime-endpoint=unix://{self.runtime.socket}")

    def node(self) -> int:
        """Kubernetes' e2e_node, which starts all that it needs itself; its pods are in ``/kubepods``."""
        tops = list(CGROUPS.glob("*/kubepods"))
        if tops:
            sys.exit(f"a kubelet has been here, or is: {tops}")
        config = self.given.results / "kubelet-config.json"
        config.write_text(json.dumps(_BASE))
        for program in _SERVICE_MANAGER:
            if found := shutil.which(program):
                self.place.run("mount", "--bind", str(config), found)
        try:
            return self._run(
                "e2e_node.test",
                f"--k8s-bin-dir={self.given.binaries}",
                f"--container-runtime-endpoint=unix://{self.runtime.socket}",
                "--prepull-images=false",
                f"--report-dir={self.given.results}",
                f"--kubelet-config-file={config}",
                "--kubelet-flags=--system-cgroups= --kubelet-cgroups= --runtime-cgroups=",
            )
        finally:
            end_cgroups("kubepods")

    def cluster(self) -> int:
        """Kubernetes' e2e, in a cluster of this node with kube-proxy."""
        binaries: Path = self.given.binaries
        kubeconfig = self.place.directory / "kubeconfig.json"
        kubelet = Kubelet(binaries / "kubelet", self.place, self.runtime.socket, kubeconfig=kubeconfig)
        cluster = ControlPlane(binaries, self.place, kubelet, self.runtime)
        try:
            cluster.start()
            with cluster.proxy(self.given.proxy):
                return self._run(
                    "e2e.test",
                    f"--kubeconfig={kubeconfig}",
                    f"--kubectl-path={binaries / 'kubectl'}",
                    f"--kubelet-root-dir={kubelet.directory}",
                    f"--report-dir={self.given.results}",
                    "--provider=local",
                )
        finally:
            cluster.end()

    def pull(self) -> None:
        """Pull all images, as the suite's own preparation would if it had them."""
        repositories = self.given.registry / "storage/docker/registry/v2/repositories"
        client = Cri(self.runtime.socket)
        for tag in sorted(repositories.glob("**/_manifests/tags/*")):
            name = tag.relative_to(repositories).parent.parent.parent
            client.call("PullImage", image={"image": f"{REGISTRIES[0]}/{name}:{tag.name}"}, timeout_s=300)
        client.close()

    def _run(self, program: str, *options: str) -> int:
        """Run it, and return its exit code.

        By ``ginkgo`` where several processes are to share the tests: its flags are then the starter's.
        """
        output = self.given.results / f"{program}.log"
        flags = ["--ginkgo.no-color", f"--ginkgo.junit-report={self.given.results / 'junit.xml'}", *self.given.flags]
        command = [str(self.given.binaries / program), *flags, *options]
        if self.given.procs > 1:
            own = [flag.replace("--ginkgo.", "--") for flag in flags if flag.startswith("--ginkgo.")]
            rest = [flag for flag in flags if not flag.startswith("--ginkgo.")]
            starter = [str(self.given.binaries / "ginkgo"), f"--procs={self.given.procs}", *own]
            command = [*starter, command[0], "--", *rest, *options]
        with output.open("wb") as log:
            there = [*self.place.prefix, "env", f"--chdir={self.given.results}"]
            done = subprocess.run([*there, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        print(f"{program}: exit code {done.returncode}")
        return done.returncode


@contextlib.contextmanager
def _node(given: argparse.Namespace, directory: Path) -> Iterator[Suite]:
    with place_in(directory) as place, contextlib.ExitStack() as stack:
        registry = place.network.call(lambda: stack.enter_context(running_registry(given.registry)))
        if given.runtime == "containerd":
            peer = Containerd(
                directory / "peer", place.cni_conf, place.registry.host, f"{place.images}/pause:1", place.prefix
            )
            _mirror(peer.directory / "certs.d", registry)
            stack.callback(peer.end)
            peer.start()
            yield Suite(given, place, peer)
            return
        _mirror(directory / "certs.d", registry)
        daemon = Daemon(directory / "daemon", _config(given, place, directory / "certs.d"), place.prefix)
        stack.callback(daemon.end)
        daemon.start()
        try:
            yield Suite(given, place, daemon)
            daemon.clean()
            print("left behind:", daemon.leftovers() or "nothing")
        finally:
            (given.results / "daemon.log").write_bytes(daemon.log.read_bytes())


def _mirror(directory: Path, registry: RunningRegistry) -> None:
    """Have the local registry asked in the place of those that the suites name."""
    for host in REGISTRIES:
        (directory / host).mkdir(parents=True, exist_ok=True)
        (directory / host / "hosts.toml").write_text(f'[host."http://{registry.host}"]\n')


def _config(given: argparse.Namespace, place: Place, certs: Path) -> str:
    return f"""
        network.options.fallback = "none"
        network.options.cni.conf_dir = "{place.cni_conf}"
        pods.default_runtime = "{given.handler}"
        [registries.distribution]
        driver = "distribution"
        options = {{ plain_http = ["{place.registry.host}"], config_paths = ["{certs}"] }}
        [runtimes.crun]
        driver = "crun"
        {given.config}
    """


def _tell(report: Path) -> bool:
    """Print the failures of a JUnit report, and the counts; return whether all is well."""
    if not report.exists():
        print(f"{report} was not written")
        return False
    counts: dict[str, int] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if not case.get("name", "").startswith("[It]"):  # what goes before and after all
            continue
        status = case.get("status", "")
        counts[status] = counts.get(status, 0) + 1
        if status not in _WELL:
            problem = next((one for one in case if one.tag in ("failure", "error")), None)
            message = "" if problem is None else problem.get("message", "")
            print(f"{status}: {case.get('name')} ({float(case.get('time', '0')):.0f} s)\n    {message[:1000]}")
    print(", ".join(f"{number} {status}" for status, number in sorted(counts.items())))
    return counts.keys() <= _WELL and "passed" in counts


def main() -> int:
    """Run the suite that the command line names; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=["critest", "node", "cluster"])
    parser.add_argument("--binaries", type=Path, required=True)
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--runtime", choices=["crinoid", "containerd"], default="crinoid")
    parser.add_argument("--handler", choices=["runc", "crun"], default="runc")
    parser.add_argument("--proxy", choices=["iptables", "nftables"], default="iptables")
    parser.add_argument("--procs", type=int, default=1, help="how many of the suite's processes share its tests")
    parser.add_argument("--config", default="", help="TOML that crinoid's configuration has besides")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:end])
    given.flags = sys.argv[end + 1 :]
    for name in ("binaries", "registry", "results"):
        setattr(given, name, getattr(given, name).resolve())
    given.results.mkdir(parents=True)
    with _node(given, given.results / "node") as suite:
        if given.suite == "node":
            suite.pull()
        code: int = getattr(suite, given.suite)()
    return code if _tell(given.results / "junit.xml") else code or 1


if __name__ == "__main__":
    sys.exit(main())
