"""The example distributions as a site would use them: built and installed by pip, selected by name, pods run on them.

All but one are in one daemon: images over HTTP, a farm of links, an IPAM, a guard, and WebAssembly beside runc, with
images of one tag for each. The network of the tutorial, ``ptp``, has a daemon of its own. Nothing of the kernel knows
of any.
"""

import functools
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import grpc
import pytest
from crinoid_network_ipam.protocol import ask
from crinoid_network_ipam.server import Ipam, Server
from crinoid_wasm import samples

from support.cri import Json
from support.daemon import Daemon, container_config, pod_config
from support.examples import install
from support.images import (
    OCI_MANIFEST,
    Entry,
    ImageConfig,
    add_blob,
    add_json,
    build_busybox,
    build_image,
    build_index,
    busybox_layer,
    make_layer,
    name_manifest,
)
from support.patience import patient
from support.subnets import third_octet

PTP_IMAGE, PTP_SUBNET = "docker.io/library/busybox:example", "10.89.253.0/28"
ONLY_WASM = "registry.test/only-wasm:1"
REFERENCE, ARTIFACT, FORBIDDEN = "registry.test/app:1", "registry.test/module:1", "forbidden.test/app:1"
WASM_CONFIG = "application/vnd.wasm.config.v0+json"
CONFIG = """\
[images]
sources = ["mirror"]
[registries.mirror]
driver = "http"
options = {{ url = "http://127.0.0.1:{port}" }}
[snapshotter]
driver = "farm"
[network]
driver = "ipam"
options = {{ socket = "{ipam}", owner = "here" }}
[runtimes.wasm]
driver = "wasm"
[extensions.guard]
driver = "guard"
options = {{ allow = ["registry.test/*"], inject = [{{ environment = {{ SITE = "here" }} }}] }}
"""


pytestmark = pytest.mark.timeout(600)


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Place:
    """The daemon, where its pods log, and the IPAM it asks."""

    daemon: Daemon
    logs: Path
    ipam: Path

    def start(self, pod: str, name: str, reference: str, *command: str) -> str:
        """Make a container of an image that is pulled for its pod's handler, and start it."""
        config = container_config(name, reference, *command)
        made = self.daemon.cri.call("CreateContainer", pod_sandbox_id=pod, config=config)["container_id"]
        self.daemon.cri.call("StartContainer", container_id=made)
        return str(made)

    def run_pod(self, name: str, handler: str = "") -> str:
        config = pod_config(name, log_directory=str(self.logs))
        answer = self.daemon.cri.call("RunPodSandbox", config=config, runtime_handler=handler)
        return str(answer["pod_sandbox_id"])

    def until_exited(self, container: str) -> Json:
        deadline = time.monotonic() + patient(60)
        while True:
            status: Json = self.daemon.cri.call("ContainerStatus", container_id=container)["status"]
            if status["state"] == "CONTAINER_EXITED":
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.02)

    def log(self, name: str) -> list[str]:
        """Return the lines of a container's log, without their times."""
        return [line.split(" ", 1)[1] for line in (self.logs / f"{name}.log").read_text().splitlines()]


def build(images: Path) -> None:
    """An index with an image for the node and one for wasi/wasm; an artifact; an image that is not allowed."""
    app = images / "registry.test/app"
    native = build_image(app, "", [busybox_layer()], ImageConfig(cmd=("sh", "-c", "echo native $SITE")))
    content = [("speaks.wasm", samples.SPEAKS_AND_FAILS), ("sleeps.wasm", samples.SLEEPS)]
    layer = make_layer([Entry(path=name, content=module) for name, module in content])
    wasm_config = ImageConfig(os="wasi", architecture="wasm", entrypoint=("/speaks.wasm",), cmd=())
    wasm = build_image(app, "", [layer], wasm_config)
    build_index(app, REFERENCE, [native, wasm])
    build_image(images / "registry.test/only-wasm", ONLY_WASM, [layer], wasm_config)
    build_artifact(images / "registry.test/module")
    build_image(images / "forbidden.test/app", FORBIDDEN, [busybox_layer()])


def build_artifact(layout: Path) -> None:
    """A module as the CNCF's Wasm OCI artifact layout has it."""
    module = add_blob(layout, "application/wasm", samples.SPEAKS_AND_FAILS)
    config = add_json(layout, WASM_CONFIG, {"architecture": "wasm", "os": "wasip1", "layerDigests": [module.digest]})
    titled = {**module.document(), "annotations": {"org.opencontainers.image.title": "module.wasm"}}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.document(), "layers": [titled]}
    name_manifest(layout, ARTIFACT, add_json(layout, OCI_MANIFEST, document))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with all of them."""
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, python: str) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("examples")
    build(directory / "images")
    handler = functools.partial(_Files, directory=str(directory / "images"))
    ipam = directory / "ipam.sock"
    subnet = IPv4Network(f"10.89.{third_octet()}.0/28")
    with ExitStack() as stack:
        servers: list[http.server.ThreadingHTTPServer | Server] = [
            stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)),
            stack.enter_context(Server(ipam, Ipam(subnet, directory / "ipam.json"))),
        ]
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.shutdown)
        assert isinstance(servers[0], http.server.ThreadingHTTPServer)
        config = CONFIG.format(port=servers[0].server_port, ipam=ipam)
        daemon = Daemon(directory / "daemon", config, python=python)
        stack.callback(daemon.end)
        yield Place(daemon.start(), directory / "logs", ipam)
        daemon.clean()
        assert daemon.leftovers() == []
        assert ask(str(ipam), {"act": "list", "owner": "here"}, patient(5)) == {"tokens": []}


@pytest.fixture(scope="module")
def images(place: Place) -> dict[str, str]:
    """Pull the index for both handlers: the ids by handler."""
    pull = functools.partial(place.daemon.cri.call, "PullImage")
    return {
        handler: pull(image={"image": REFERENCE, "runtime_handler": handler})["image_ref"] for handler in ("", "wasm")
    }


def test_one_tag_has_an_image_for_each_handler(place: Place, images: dict[str, str]) -> None:
    assert images[""] != images["wasm"]
    for handler, image_id in images.items():
        image = {"image": REFERENCE, "runtime_handler": handler}
        found = place.daemon.cri.call("ImageStatus", image=image)["image"]
        assert (found["id"], found["repo_tags"]) == (image_id, [REFERENCE])
    listed = {image["id"] for image in place.daemon.cri.call("ListImages")["images"]}
    assert set(images.values()) <= listed


def test_a_native_pod(place: Place, images: dict[str, str]) -> None:
    """Through registry, snapshotter, network and extension."""
    pod = place.run_pod("native")
    address = place.daemon.cri.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"]
    assert address.startswith("10.89.")
    assert len(ask(str(place.ipam), {"act": "list", "owner": "here"}, patient(5))["tokens"]) == 1  # type: ignore[arg-type]
    container = place.start(pod, "native", REFERENCE)
    assert place.until_exited(container)["exit_code"] == 0
    assert place.log("native") == ["stdout F native here"]
    place.daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)


def test_a_module_in_a_pod(place: Place, images: dict[str, str]) -> None:
    pod = place.run_pod("module", "wasm")
    container = place.start(pod, "module", REFERENCE)
    status = place.until_exited(container)
    assert (status["exit_code"], status["reason"]) == (7, "Error")
    assert sorted(place.log("module")) == ["stderr F err", "stdout F out"]
    wrong = container_config("wrong", images[""])
    with pytest.raises(grpc.RpcError, match=r'is for linux/[a-z0-9/]+, and runtime handler "wasm" runs wasi/wasm'):
        place.daemon.cri.call("CreateContainer", pod_sandbox_id=pod, config=wrong)
    place.daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)


def test_a_module_lives_on_while_the_daemon_is_gone(place: Place, images: dict[str, str]) -> None:
    pod = place.run_pod("lasting", "wasm")
    container = place.start(pod, "lasting", REFERENCE, "/sleeps.wasm")
    place.daemon.kill()
    place.daemon.start(is_forked=False)
    call = place.daemon.cri.call
    assert call("ContainerStatus", container_id=container)["status"]["state"] == "CONTAINER_RUNNING"
    usage = call("ContainerStats", container_id=container)["stats"]
    assert int(usage["memory"]["usage_bytes"]["value"]) > 0
    with pytest.raises(grpc.RpcError) as raised:
        call("ExecSync", container_id=container, cmd=["ls"], timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "can't execute commands in containers" in raised.value.details()
    call("StopContainer", container_id=container, timeout=20)
    assert place.until_exited(container)["exit_code"] == 143
    call("RemovePodSandbox", pod_sandbox_id=pod)


def test_a_pull_for_a_pod_is_one_for_its_handler(place: Place) -> None:
    """As a kubelet asks, which names no handler without a feature gate."""
    pod = place.run_pod("pulling", "wasm")
    call, image = place.daemon.cri.call, {"image": ONLY_WASM}
    with pytest.raises(grpc.RpcError, match=r"the image is for wasi/wasm, and linux/[a-z0-9/]+ is wanted here"):
        call("PullImage", image=image)
    pulled = call("PullImage", image=image, sandbox_config=pod_config("pulling"))["image_ref"]
    assert "image" not in call("ImageStatus", image=image)
    assert place.until_exited(place.start(pod, "pulling", pulled))["exit_code"] == 7
    call("RemovePodSandbox", pod_sandbox_id=pod)


def test_an_artifact_runs_as_it_is(place: Place) -> None:
    place.daemon.cri.call("PullImage", image={"image": ARTIFACT, "runtime_handler": "wasm"})
    pod = place.run_pod("artifact", "wasm")
    container = place.start(pod, "artifact", ARTIFACT)
    assert place.until_exited(container)["exit_code"] == 7
    place.daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)
    native = place.run_pod("native-again")
    with pytest.raises(grpc.RpcError, match="mount it as a volume, it can't be run"):
        place.start(native, "artifact", ARTIFACT)
    place.daemon.cri.call("RemovePodSandbox", pod_sandbox_id=native)


def test_an_image_that_is_not_on_the_list(place: Place) -> None:
    place.daemon.cri.call("PullImage", image={"image": FORBIDDEN})
    pod = place.run_pod("guarded")
    with pytest.raises(grpc.RpcError, match="is not on the list of images that may run"):
        place.start(pod, "forbidden", FORBIDDEN)
    place.daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)


def configure_ptp(directory: Path) -> str:
    layouts = f"[registries.layout]\noptions = {{ directory = '{directory / 'layouts'}' }}\n"
    return f"[network]\ndriver = 'ptp'\noptions = {{ subnet = '{PTP_SUBNET}' }}\n{layouts}"


@pytest.fixture
def ptp(python: str, tmp_path: Path) -> Iterator[Daemon]:
    build_busybox(tmp_path / "layouts/busybox", PTP_IMAGE)
    daemon = Daemon(tmp_path / "daemon", configure_ptp(tmp_path), python=python)
    try:
        yield daemon.start()
        daemon.clean()
        assert daemon.leftovers() == []
    finally:
        daemon.end()


def read_from(address: str, port: int) -> str:
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


def test_a_pod_on_the_network_of_the_tutorial(ptp: Daemon, tmp_path: Path) -> None:
    call = ptp.cri.call
    conditions = {each["type"]: each["status"] for each in call("Status")["status"]["conditions"]}
    assert conditions == {"RuntimeReady": True, "NetworkReady": True}
    call("PullImage", image={"image": PTP_IMAGE})
    pod = call("RunPodSandbox", config=pod_config(log_directory=str(tmp_path / "logs")))["pod_sandbox_id"]
    assert len(links()) == 1
    server = container_config("server", PTP_IMAGE, "sh", "-c", "while true; do echo hello | nc -l -p 8080; done")
    container = call("CreateContainer", pod_sandbox_id=pod, config=server)["container_id"]
    call("StartContainer", container_id=container)
    address = call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"]
    assert address == "10.89.253.2"
    assert read_from(address, 8080) == "hello"
    ptp.kill()
    ptp.start()
    ptp.cri.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert links() == []
