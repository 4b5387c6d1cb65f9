"""The example plugin as a site would use it: installed by pip, selected by name, and a pod run on it.

The daemon runs from a throw-away environment that sees our packages and has the example on top; nothing of the kernel
knows of the example.
"""

import shutil
import site
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import Daemon, container_config, pod_config
from support.images import build_busybox
from support.patience import patient

EXAMPLE = Path(__file__).parents[2] / "examples" / "crinoid-network-ptp"
IMAGE = "docker.io/library/busybox:example"
SUBNET = "10.89.253.0/28"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a new environment with the example; pip works offline, on a copy, as it leaves files."""
    directory, copy = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("example") / EXAMPLE.name
    shutil.copytree(EXAMPLE, copy)
    venv.create(directory, symlinks=True, with_pip=False)
    interpreter = directory / "bin" / "python"
    packages = next((directory / "lib").glob("python*/site-packages"))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (packages / "base.pth").write_text("".join(lines))
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", str(copy)]
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter)]
    subprocess.run([*pip, *install], check=True, timeout=patient(100))
    return str(interpreter)


def configure(directory: Path) -> str:
    layouts = f"[registries.layout]\noptions = {{ directory = '{directory / 'layouts'}' }}\n"
    return f"[network]\ndriver = 'ptp'\noptions = {{ subnet = '{SUBNET}' }}\n{layouts}"


@pytest.fixture
def daemon(python: str, tmp_path: Path) -> Iterator[Daemon]:
    build_busybox(tmp_path / "layouts/busybox", IMAGE)
    daemon = Daemon(tmp_path / "daemon", configure(tmp_path), python=python)
    try:
        yield daemon.start()
        daemon.clean()
        assert daemon.leftovers() == []
    finally:
        daemon.end()


def fetch(address: str, port: int) -> str:
    """Read what a server says; it may need a moment to listen."""
    deadline = time.monotonic() + patient(60)
    while True:
        try:
            with socket.create_connection((address, port), timeout=patient(10)) as connection:
                return connection.makefile().read().strip()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def links() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith("ptp")]


def test_a_pod_runs_on_it(daemon: Daemon, tmp_path: Path) -> None:
    call = daemon.cri.call
    conditions = {each["type"]: each["status"] for each in call("Status")["status"]["conditions"]}
    assert conditions == {"RuntimeReady": True, "NetworkReady": True}
    call("PullImage", image={"image": IMAGE})
    pod = call("RunPodSandbox", config=pod_config(log_directory=str(tmp_path / "logs")))["pod_sandbox_id"]
    assert len(links()) == 1
    server = container_config("server", IMAGE, "sh", "-c", "while true; do echo hello | nc -l -p 8080; done")
    container = call("CreateContainer", pod_sandbox_id=pod, config=server)["container_id"]
    call("StartContainer", container_id=container)
    address = call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"]
    assert address == "10.89.253.2"
    assert fetch(address, 8080) == "hello"
    daemon.kill()
    daemon.start()
    daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert links() == []
