"""docs/moving.md for real: a node moves from Debian's containerd to crinoid and back, and pulls no image."""

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from crinoid.core.cli.main import main
from integration.conftest import write_conflist
from support.containerd import Containerd
from support.cri import Cri
from support.daemon import Daemon, container_config, pod_config
from support.image_archives import docker_archive
from support.images import Entry, ImageConfig, build_busybox, build_image, make_layer

APP, PAUSE = "registry.test/app:1", "registry.test/pause:1"
HOST_NETWORK = {"namespace_options": {"network": "NODE", "pid": "CONTAINER"}}


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Containerd]:
    """A containerd with two images and no registry that answers."""
    write_conflist(tmp_path / "net.d", "moving0", "10.86.0.0/24", tmp_path / "ipam")
    peer = Containerd(tmp_path / "peer", tmp_path / "net.d", "registry.test", PAUSE)
    try:
        peer.start()
        catatonit = Entry(path="pause", content=Path("/usr/bin/catatonit").read_bytes(), mode=0o755)
        pause = ImageConfig(entrypoint=("/pause", "-P"), cmd=())
        images = [
            (build_busybox(tmp_path / "images", APP, extra=[Entry(path="site", content=b"moved")]), (APP,)),
            (build_image(tmp_path / "images", PAUSE, [make_layer([catatonit])], pause), (PAUSE,)),
        ]
        archive = tmp_path / "images.tar"
        archive.write_bytes(docker_archive(images))
        command = ["ctr", "-a", str(peer.socket), "-n", "k8s.io", "images", "import", str(archive)]
        subprocess.run(command, check=True, capture_output=True)
        yield peer
    finally:
        peer.end()
    assert peer.leftovers() == []


def run(*words: object) -> str:
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


class Endpoint:
    """What a kubelet does at the runtime of the day: it never pulls an image that is there."""

    def __init__(self, socket: Path, cgroup: str, logs: Path) -> None:
        self.socket, self.cgroup, self.logs = socket, cgroup, logs

    def call(self, rpc: str, **fields: Any) -> Any:
        cri = Cri(self.socket)
        try:
            return cri.call(rpc, **fields)
        finally:
            cri.close()

    def run_pod(self) -> str:
        """Run a pod with a container of the image; return what the container finds in its file."""
        linux = {"security_context": HOST_NETWORK, "cgroup_parent": self.cgroup}
        pod = pod_config("moved", hostname="", linux=linux, log_directory=str(self.logs))
        sandbox = self.call("RunPodSandbox", config=pod)["pod_sandbox_id"]
        image = self.call("ImageStatus", image={"image": APP})["image"]
        config = container_config("main", image["id"], "sleep", "1000")
        made = self.call("CreateContainer", pod_sandbox_id=sandbox, config=config, sandbox_config=pod)
        self.call("StartContainer", container_id=made["container_id"])
        answer = self.call("ExecSync", container_id=made["container_id"], cmd=["cat", "/site"], timeout=30)
        return base64.b64decode(answer["stdout"]).decode()

    def ids(self) -> dict[str, str]:
        images = self.call("ListImages")["images"]
        return {name: image["id"] for image in images for name in image["repo_tags"]}

    def remove_pods(self) -> None:
        """As docs/moving.md has it, with crinoid's own client."""
        run("ctl", "--endpoint", f"unix://{self.socket}", "rmp", "--all", "--force")
        assert self.call("ListPodSandbox")["items"] == []


def test_a_node_moves_and_moves_back(peer: Containerd, tmp_path: Path) -> None:
    before = Endpoint(peer.socket, peer.cgroup, tmp_path / "logs")
    assert before.run_pod() == "moved"
    ids = before.ids()

    # Beside the runtime that serves, and whose pod runs on
    run("config", "import", peer.directory / "config.toml", "--to", tmp_path / "etc")
    daemon = Daemon(tmp_path / "daemon")
    imported = daemon.directory / "conf.d/10-imported.toml"
    imported.parent.mkdir(parents=True)
    imported.write_bytes((tmp_path / "etc/config.toml").read_bytes())
    after = Endpoint(daemon.socket, daemon.cgroup, tmp_path / "logs")
    try:
        daemon.start()
        endpoint = f"unix://{daemon.socket}"
        run("image", "-r", endpoint, "adopt", "--from", "containerd", "--root", peer.directory / "root")
        assert after.ids() == ids

        # The kubelet is stopped: what was not drained is removed by the runtime that made it
        before.remove_pods()
        assert peer.process is not None
        peer.process.terminate()
        peer.process.wait(30)
        assert after.run_pod() == "moved"

        # And back
        after.remove_pods()
        assert daemon.stop() == 0
        peer.launch()
        peer.wait()
        assert before.ids() == ids
        assert before.run_pod() == "moved"
        before.remove_pods()
        daemon.clean()
        assert daemon.leftovers() == []
    finally:
        daemon.end()
