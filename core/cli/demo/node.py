"""The demo's node as a client sees it: pods, containers and what they say, by way of the daemon's socket."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded
from crinoid.core.cli.demo.daemon import Daemon

T = TypeVar("T")

POD = "shop"
GREETING = "hello from busybox"
_PATIENCE_S = 60.0
_OWN_PROCESSES = {"namespace_options": {"pid": "CONTAINER"}}


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod of the demo: its id, address, and its containers' ids by name."""

    id: str
    address: str
    containers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Executed:
    """What a command in a container came to."""

    exit_code: int
    output: str


class Node:
    """Calls the daemon in the words of the story; ``port`` is where the pod's server listens."""

    def __init__(self, daemon: Daemon, port: int, logs: Path) -> None:
        self.daemon = daemon
        self._port = port
        self._logs = logs
        self._pods = 0

    async def pull(self, image: str) -> str:
        """Pull an image and return its id."""
        answer = await self.daemon.call("PullImage", {"image": {"image": image}})
        return str(answer["image_ref"])

    async def images(self) -> list[dict[str, Any]]:
        """Return all images."""
        return list((await self.daemon.call("ListImages"))["images"])

    async def run_pod(self, image: str) -> Pod:
        """Run the pod: ``web`` serves a greeting, ``client`` fetches it over loopback."""
        self._pods += 1
        request = {"config": self._pod_config()}
        pod = str((await self.daemon.call("RunPodSandbox", request))["pod_sandbox_id"])
        containers = {
            name: await self.run_container(pod, name, image, script) for name, script in scripts(self._port).items()
        }
        status = (await self.daemon.call("PodSandboxStatus", {"pod_sandbox_id": pod}))["status"]
        return Pod(pod, str(status["network"]["ip"]), containers)

    async def run_container(self, pod: str, name: str, image: str, script: str) -> str:
        """Create and start a container that runs a shell script; return its id."""
        config = {
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": image},
            "command": ["sh", "-c", script],
            "log_path": f"{name}.log",
            "linux": {"security_context": _OWN_PROCESSES},
        }
        request = {"pod_sandbox_id": pod, "config": config, "sandbox_config": self._pod_config()}
        container = str((await self.daemon.call("CreateContainer", request))["container_id"])
        await self.daemon.call("StartContainer", {"container_id": container})
        return container

    async def execute(self, container: str, *command: str) -> Executed:
        """Run a command in a container."""
        request = {"container_id": container, "cmd": list(command), "timeout": int(_PATIENCE_S)}
        answer = await self.daemon.call("ExecSync", request)
        return Executed(int(answer["exit_code"]), base64.b64decode(answer["stdout"]).decode().strip())

    async def status(self, container: str) -> dict[str, Any]:
        """Return a container's status."""
        answer = await self.daemon.call("ContainerStatus", {"container_id": container})
        return dict(answer["status"])

    async def log(self, container: str) -> list[str]:
        """Return the lines of a container's log, as they stand in the file."""
        path = Path((await self.status(container))["log_path"])
        return (await asyncio.to_thread(path.read_text)).splitlines()

    async def stop(self, container: str) -> None:
        """Stop a container, with ten seconds of grace."""
        await self.daemon.call("StopContainer", {"container_id": container, "timeout": 10})

    async def remove_all(self) -> None:
        """Remove every pod with its containers."""
        for pod in (await self.daemon.call("ListPodSandbox"))["items"]:
            await self.daemon.call("StopPodSandbox", {"pod_sandbox_id": pod["id"]})
            await self.daemon.call("RemovePodSandbox", {"pod_sandbox_id": pod["id"]})

    async def remove_images(self) -> None:
        """Remove every image."""
        for image in await self.images():
            await self.daemon.call("RemoveImage", {"image": {"image": image["id"]}})

    def _pod_config(self) -> dict[str, Any]:
        return {
            "metadata": {"name": POD, "namespace": "demo", "uid": "demo-shop", "attempt": 0},
            "hostname": POD,
            "log_directory": str(self._logs / str(self._pods)),
            "linux": {"security_context": _OWN_PROCESSES},
        }


def scripts(port: int) -> dict[str, str]:
    """Return the pod's two containers: each ends politely when it is asked to."""
    fetch = f"wget -qO- http://127.0.0.1:{port}/ 2>/dev/null"
    return {
        "web": f'echo {GREETING} > /www/index.html; httpd -f -p {port} -h /www & trap "kill $!; exit 0" TERM; wait',
        "client": f'trap "exit 0" TERM; until {fetch}; do sleep 0.1; done; sleep 999 & wait',
    }


async def wait_for(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what an attempt answers, once that is true; raise DeadlineExceeded if it never is."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if answer := await attempt():
                return answer
        except CrinoidError:
            pass  # not yet
        await asyncio.sleep(0.05)
    raise DeadlineExceeded(f"{what}: it did not come about within {_PATIENCE_S:g} s")
