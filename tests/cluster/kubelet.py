"""A kubelet: by itself, with manifests in a directory as its pods (static pods), or as the node of an API server."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

from cluster.place import Place
from crinoid.core.api.linux import cgroups
from support.daemon import end_cgroups
from support.patience import patient

Json = dict[str, Any]
START_S = patient(60)


@dataclass
class Kubelet:
    """One kubelet over a runtime's socket: ``start``, ``kill`` and again, ``end``.

    With a ``kubeconfig`` it is a node of an API server. ``settings`` are those of its configuration file that it has
    beyond the ones that every kubelet here has.
    """

    program: Path
    place: Place
    socket: Path
    settings: Json = field(default_factory=dict)
    kubeconfig: Path | None = None
    node: str = "node"
    name: str = field(default_factory=lambda: f"crt{secrets.token_hex(3)}")
    process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        """All its files."""
        return self.place.directory / "kubelet"

    @property
    def address(self) -> str:
        """Where it serves: the API server has to reach it."""
        return "127.0.0.1" if self.kubeconfig is None else self.place.address

    @property
    def manifests(self) -> Path:
        """The directory of its pods' manifests."""
        return self.place.directory / "manifests"

    @property
    def log(self) -> Path:
        """All that it wrote."""
        return self.place.directory / "kubelet.log"

    def prepare(self) -> list[str]:
        """Write all that it reads; return its command line."""
        self.manifests.mkdir(exist_ok=True)
        cgroups.make(f"/{self.name}")
        (self.place.directory / "resolv.conf").write_text("nameserver 192.0.2.1\n")
        config = self.place.directory / "kubelet.json"
        config.write_text(json.dumps(self._configuration()))
        command = [str(self.program), f"--config={config}", f"--root-dir={self.directory}"]
        command += [f"--cert-dir={self.directory}/pki", f"--hostname-override={self.node}"]
        command += [f"--node-ip={self.place.address}", "--v=4"]
        if self.kubeconfig is not None:
            command += [f"--kubeconfig={self.kubeconfig}"]
        return command

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = self.prepare()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.place.prefix, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._answers, lambda: f"the kubelet does not answer:\n{self.tail()}", START_S)

    def kill(self) -> None:
        """Kill it without warning; pods run on."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self, **settings: Any) -> None:
        """Kill it, and start it with other settings."""
        self.kill()
        self.settings = settings
        self.start()

    def end(self) -> None:
        """Kill it, and undo what it made."""
        if self.process is not None:
            self.kill()
        for point in self.place.mounted_below(self.directory):
            subprocess.run([*self.place.prefix, "umount", "--lazy", point], check=False, capture_output=True)
        end_cgroups(self.name)

    def tail(self) -> str:
        """Return the last of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    def run(self, manifest: Json) -> None:
        """Have it run a pod."""
        name = manifest["metadata"]["name"]
        document = {"apiVersion": "v1", "kind": "Pod", **manifest}
        unfinished = self.place.directory / f"{name}.json"
        unfinished.write_text(json.dumps(document))
        unfinished.rename(self.manifests / f"{name}.json")

    def drop(self, name: str) -> None:
        """Take a pod away from it."""
        (self.manifests / f"{name}.json").unlink()

    def pods(self) -> dict[str, Json]:
        """Return all pods by the names of their manifests, as their status is now."""
        found = self.place.fetch_json(f"http://{self.address}:10255/pods").get("items") or []
        return {pod["metadata"]["name"].removesuffix("-node"): pod for pod in found}

    def statuses(self, name: str) -> dict[str, Json]:
        """Return the statuses of a pod's containers by their names."""
        status = self.pods().get(name, {}).get("status", {})
        found = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        return {one["name"]: one for one in found}

    def until(self, name: str, holds: Callable[[Json], object], seconds: float = 60) -> Json:
        """Wait until a pod is as asked for; return it."""

        def look() -> Json | None:
            pod = self.pods().get(name)
            return pod if pod is not None and holds(pod) else None

        def told() -> str:
            return json.dumps(self.pods().get(name, {}).get("status"), indent=1) + "\n" + self.tail()

        found: Json = wait_for(look, told, patient(seconds))
        return found

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return reason and message of each event of a pod, in order: without an API server they are in its log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if '"Event occurred"' in line and f'object="default/{name}-node"' in line:
                words = dict(re.findall(r'(reason|message)=("(?:[^"\\]|\\.)*")', line))
                found.append((json.loads(words["reason"]), json.loads(words["message"])))
        return found

    def written_since(self, size: int) -> str:
        """Return what it wrote since its log was of this size."""
        with self.log.open("rb") as log:
            log.seek(size)
            return log.read().decode(errors="replace")

    def received(self, name: str) -> list[str]:
        """Return the runtime's events on a pod's containers that it was sent (evented PLEG), in order."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if '"container event received"' in line and rf"metadata:{{name:\"{name}-node\"" in line:
                kind = re.search(r"container_event_type:CONTAINER_([A-Z]+)_EVENT", line)
                container, sandbox = re.findall(r'(?:container_id|pod_sandbox_status:{id):\\"([0-9a-f]+)', line)[:2]
                if container != sandbox:
                    found.append(kind[1] if kind else "CREATED")
        return found

    def execute(self, name: str, container: str, command: str) -> str:
        """Run a command of one word in a container, by the kubelet's ``run``."""
        url = f"https://127.0.0.1:10250/run/default/{name}-node/{container}?cmd={command}"
        return self.place.run("curl", "--silent", "--insecure", "--request", "POST", url)

    def container_log(self, name: str, container: str) -> str:
        """Return a container's log, by the kubelet."""
        url = f"https://127.0.0.1:10250/containerLogs/default/{name}-node/{container}"
        return self.place.run("curl", "--silent", "--insecure", url)

    def _answers(self) -> bool:
        assert self._is_alive(), f"the kubelet ended:\n{self.tail()}"
        try:
            self.pods()
        except (URLError, OSError):
            return False
        return True

    def _is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _configuration(self) -> Json:
        return {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "staticPodPath": str(self.manifests),
            "podLogsDir": str(self.place.directory / "pod-logs"),
            "address": self.address,
            "readOnlyPort": 10255,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.name}",
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "resolvConf": str(self.place.directory / "resolv.conf"),
            "fileCheckFrequency": "1s",
            "syncFrequency": "2s",
            **self.settings,
        }


def wait_for(look: Callable[[], Any], told: Callable[[], str], seconds: float) -> Any:
    """Wait for something that is true, and return it; at the end fail with what is told then."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, told()
        time.sleep(patient(0.2))
    return found
