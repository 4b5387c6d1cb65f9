"""What goes wrong from outside: errors that name the object, the plugin and the stage; nothing is left half made."""

import asyncio
import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from integration.conftest import BUSYBOX, Node
from support import programs
from support.daemon import Daemon, container_config, pod_config
from support.faults import FaultRegistry, fault_registry, manifest_of, refuse, send, stream
from support.images import HOST_ARCHITECTURE, Entry, build_busybox, busybox_layer, digest_of, make_layer
from support.patience import patient
from support.registry import RunningRegistry

PLUGIN = """#!/bin/sh
[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' && exit 0
"""
ADD_ONLY = '[ "$CNI_COMMAND" = ADD ] || exit 0\n'
PLUGINS = {
    "failing": ADD_ONLY + """echo '{"cniVersion":"1.0.0","code":7,"msg":"no luck","details":"today"}'; exit 1""",
    "rubbish": ADD_ONLY + "echo 'ceci n est pas JSON'",
    "killed": ADD_ONLY + "kill -9 $$",
    "stuck": ADD_ONLY + "exec sleep 1000",
    "undeletable": """[ "$CNI_COMMAND" = DEL ] && exit 1
        echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'""",
}
RUNTIME = """#!/bin/sh
case "$*" in *--version* | *features*) exec runc "$@" ;; esac
"""
RUNTIMES = {"crashing": RUNTIME + "kill -SEGV $$", "rambling": RUNTIME + "echo blah >&2; exit 3"}


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def bad_configuration(directory: Path, registry: str) -> str:
    lines = ["[network]\ndriver = 'host'", f"[registries.layout]\noptions.directory = '{directory}/layouts'"]
    lines.append(f"[registries.distribution]\noptions = {{ plain_http = ['{registry}'], tries = 2, backoff_s = 0.01 }}")
    for name, text in PLUGINS.items():
        write_program(directory / f"bin/{name}", PLUGIN + text)
        conf = {"cniVersion": "1.0.0", "name": f"net-{name}", "plugins": [{"type": name}]}
        (directory / name).mkdir()
        (directory / name / "10.conflist").write_text(json.dumps(conf))
        lines.append(f"[networks.{name}]\ndriver = 'cni'\n[networks.{name}.options]\nconf_dir = '{directory}/{name}'")
        lines.append(f"bin_dirs = ['{directory}/bin', '/usr/lib/cni']\nadd_timeout_s = 1\nloopback = false")
        lines.append(f"[runtimes.{name}]\ndriver = 'runc'\nnetwork = '{name}'")
    lines.append(f"[networks.empty]\ndriver = 'cni'\noptions.conf_dir = '{directory}/nothing'")
    lines.append("[runtimes.empty]\ndriver = 'runc'\nnetwork = 'empty'")
    for name, text in RUNTIMES.items():
        program = write_program(directory / f"bin/{name}", text)
        lines.append(f"[runtimes.{name}]\ndriver = 'runc'\noptions.binary = '{program}'")
    lines.append(f"[runtimes.absent]\ndriver = 'runc'\noptions.binary = '{directory}/bin/absent'")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def liar() -> Iterator[FaultRegistry]:
    """A registry that misbehaves, on an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = fault_registry()
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(60)
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture(scope="module")
def bad_node(tmp_path_factory: pytest.TempPathFactory, liar: FaultRegistry) -> Iterator[Node]:
    """A node with handlers that fail in every way; its default handler works, on the host's network."""
    directory = tmp_path_factory.mktemp("bad")
    build_busybox(directory / "layouts/busybox", BUSYBOX)
    write_program(directory / "bin/absent", RUNTIMES["rambling"])
    daemon = Daemon(directory / "daemon", bad_configuration(directory, liar.host)).start()
    (directory / "bin/absent").unlink()
    node = Node(daemon, directory / "layouts", RunningRegistry(""), "", directory / "logs")
    node.pull()
    try:
        yield node
        daemon.clean()
        assert daemon.leftovers() == []
    finally:
        daemon.end()


@pytest.fixture
def clean_node(bad_node: Node) -> Iterator[Node]:
    yield bad_node
    bad_node.remove_pods()
    assert bad_node.daemon.query("SELECT owner, kind, key FROM ledger") == []
    assert [line for line in bad_node.daemon.leftovers() if not line.startswith(("cgroup", "process"))] == []


@contextlib.contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    """Expect a status whose message has all of these words."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error: Any = caught.value
    assert error.code().name == code, error.details()
    missing = [word for word in words if word not in error.details()]
    assert not missing, f"{missing} not in {error.details()!r}"


@pytest.mark.parametrize(
    ("handler", "code", "words"),
    [
        ("failing", "INTERNAL", ('network "failing"', "attach", "plugin failing", "10.conflist", "no luck", "today")),
        ("rubbish", "INTERNAL", ('network "rubbish"', "attach", "plugin rubbish", "ceci n est pas JSON")),
        ("killed", "INTERNAL", ('network "killed"', "attach", "plugin killed", "signal 9")),
        ("stuck", "DEADLINE_EXCEEDED", ('network "stuck"', "attach", "plugin stuck")),
        ("empty", "UNAVAILABLE", ('network "empty"', "plan", "nothing")),
        ("none-such", "INVALID_ARGUMENT", ("none-such", "known", "failing")),
    ],
)
def test_networks_that_fail(clean_node: Node, handler: str, code: str, words: tuple[str, ...]) -> None:
    with refused(code, *words):
        clean_node.run_pod(handler=handler)
    assert clean_node.call("ListPodSandbox")["items"] == []


def test_a_network_that_can_not_be_undone_never_holds_up_a_pod(clean_node: Node) -> None:
    """The pod ends; what the plugin did not take back waits, visibly, and is undone once the plugin works again."""
    pod = clean_node.run_pod(handler="undeletable")
    clean_node.call("StopPodSandbox", pod_sandbox_id=pod)
    clean_node.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert clean_node.call("ListPodSandbox")["items"] == []
    info = clean_node.call("Status", verbose=True)["info"]
    assert [entry["kind"] for entry in json.loads(info["deferred"])] == ["network"]
    plugin = clean_node.daemon.directory.parent / "bin/undeletable"
    write_program(plugin, PLUGIN + "exit 0")
    clean_node.daemon.restart()
    assert json.loads(clean_node.call("Status", verbose=True)["info"]["deferred"]) == []


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("crashing", ('runtime "crashing"', "create", "was it killed")),
        ("rambling", ('runtime "rambling"', "create", "blah")),
        ("absent", ('runtime "absent"', "create", "bin/absent")),
    ],
)
def test_runtimes_that_fail(clean_node: Node, handler: str, words: tuple[str, ...]) -> None:
    pod = clean_node.run_pod(handler=handler)
    with pytest.raises(grpc.RpcError) as caught:
        clean_node.create(pod, "sleep", "1000")
    details = caught.value.details()
    assert all(word in details for word in words), details
    assert clean_node.call("ListContainers")["containers"] == []
    assert not list((clean_node.daemon.run / "containers").glob("*"))


def test_an_entry_point_that_is_not_there(clean_node: Node) -> None:
    pod = clean_node.run_pod()
    container = clean_node.create(pod, "/no/such/program")
    with refused("INVALID_ARGUMENT", 'runtime "runc"', "/no/such/program", "no such file"):
        clean_node.call("StartContainer", container_id=container)


def test_names_that_are_taken(clean_node: Node) -> None:
    pod = clean_node.run_pod("taken")
    with refused("ALREADY_EXISTS", "test/taken", pod, "remove"):
        clean_node.run_pod("taken")
    container = clean_node.create(pod, "sleep", "1000")
    with refused("ALREADY_EXISTS", "'app'", container):
        clean_node.create(pod, "sleep", "1000")


def test_the_same_request_twice_at_once_is_one_pod(clean_node: Node) -> None:
    config = pod_config("twice", log_directory="/tmp/x")
    ids: list[str] = []

    def ask() -> None:
        with contextlib.suppress(grpc.RpcError):
            ids.append(clean_node.call("RunPodSandbox", config=config)["pod_sandbox_id"])

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 1
    assert len(clean_node.call("ListPodSandbox")["items"]) == 1


@pytest.mark.parametrize(
    ("rpc", "payload"),
    [
        ("RunPodSandbox", b"\xff\xff\xff"),
        ("CreateContainer", b"\x0a\xff"),
        ("PullImage", b"\x0a\x05ab"),
        ("Version", b"\x0a\x01\xff"),
    ],
)
def test_malformed_requests(clean_node: Node, rpc: str, payload: bytes) -> None:
    with refused("INVALID_ARGUMENT", rpc):
        clean_node.daemon.cri.raw(rpc, payload)


def test_oversized_requests(clean_node: Node) -> None:
    with refused("RESOURCE_EXHAUSTED"):
        clean_node.call("Version", version="x" * (17 << 20))
    assert clean_node.call("Version")["runtime_name"] == "crinoid"


@pytest.mark.parametrize(
    ("rpc", "fields", "code", "words"),
    [
        ("RunPodSandbox", {}, "INVALID_ARGUMENT", ("config",)),
        ("RunPodSandbox", {"config": {"metadata": {"uid": "x"}}}, "INVALID_ARGUMENT", ("metadata",)),
        ("RunPodSandbox", {"config": pod_config("x", hostname="a\n")}, "INVALID_ARGUMENT", ("hostname",)),
        (
            "RunPodSandbox",
            {"config": pod_config("x", linux={"sysctls": {"vm.swappiness": "1"}})},
            "INVALID_ARGUMENT",
            ("vm.swappiness",),
        ),
        (
            "RunPodSandbox",
            {"config": pod_config("x", annotations={"kubernetes.io/ingress-bandwidth": "fast"})},
            "INVALID_ARGUMENT",
            ("ingress-bandwidth", "fast"),
        ),
        ("CreateContainer", {"pod_sandbox_id": "00", "config": container_config("x", BUSYBOX)}, "NOT_FOUND", ("00",)),
        ("StartContainer", {"container_id": "00"}, "NOT_FOUND", ("00",)),
        ("ContainerStatus", {"container_id": "00"}, "NOT_FOUND", ("00",)),
        ("PodSandboxStatus", {"pod_sandbox_id": "00"}, "NOT_FOUND", ("00",)),
        ("ExecSync", {"container_id": "00", "cmd": ["x"]}, "NOT_FOUND", ("00",)),
        ("ContainerStats", {"container_id": "00"}, "NOT_FOUND", ("00",)),
        ("PullImage", {"image": {"image": "UPPER CASE"}}, "INVALID_ARGUMENT", ("UPPER CASE",)),
        ("PullImage", {}, "INVALID_ARGUMENT", ("image",)),
        ("StopPodSandbox", {}, "INVALID_ARGUMENT", ("pod_sandbox_id",)),
    ],
)
def test_requests_that_make_no_sense(
    clean_node: Node, rpc: str, fields: dict[str, Any], code: str, words: tuple[str, ...]
) -> None:
    with refused(code, *words):
        clean_node.call(rpc, **fields)
    assert clean_node.call("ListPodSandbox")["items"] == []


def test_acts_in_the_wrong_state(clean_node: Node) -> None:
    pod = clean_node.run_pod()
    container = clean_node.create(pod, "true")
    with refused("FAILED_PRECONDITION", "created"):
        clean_node.execute(container, "true")
    clean_node.call("StartContainer", container_id=container)
    clean_node.wait_exit(container)
    for rpc, fields in (
        ("StartContainer", {}),
        ("ExecSync", {"cmd": ["true"]}),
        ("ReopenContainerLog", {}),
        ("UpdateContainerResources", {"linux": {"cpu_shares": 5}}),
    ):
        with refused("FAILED_PRECONDITION", container, "exited"):
            clean_node.call(rpc, container_id=container, **fields)
    clean_node.call("StopPodSandbox", pod_sandbox_id=pod)
    with refused("FAILED_PRECONDITION", pod, "not ready"):
        clean_node.create(pod, "true", name="late")


def test_an_unknown_image(clean_node: Node) -> None:
    pod = clean_node.run_pod()
    with refused("NOT_FOUND", "none/such:1", "pull it"):
        clean_node.create(pod, "true", image="none/such:1")
    assert clean_node.call("ImageStatus", image={"image": "none/such:1"}).get("image") is None
    clean_node.call("RemoveImage", image={"image": "none/such:1"})


def test_a_registry_that_is_down(clean_node: Node) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed = listener.getsockname()[1]
    with refused("UNKNOWN", f"127.0.0.1:{closed}/x/y:1", 'registry "distribution"'):
        clean_node.pull(f"127.0.0.1:{closed}/x/y:1")


LAYER = make_layer([Entry(path="extra", content=b"whole\n" * 1000)])
DIFF_IDS = [digest_of(busybox_layer()), digest_of(LAYER)]
IMAGE = json.dumps(
    {"os": "linux", "architecture": HOST_ARCHITECTURE, "rootfs": {"type": "layers", "diff_ids": DIFF_IDS}}
).encode()


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (stream(b"x" * len(LAYER)), "DATA_LOSS", ("digest", digest_of(LAYER))),
        (stream(LAYER, cut_at=1000, ranges=False), "UNKNOWN", (digest_of(LAYER),)),
        (refuse(404, "BLOB_UNKNOWN"), "NOT_FOUND", (digest_of(LAYER), "404")),
        (refuse(500), "UNKNOWN", (digest_of(LAYER), "500")),
    ],
    ids=["lies", "cuts", "lacks", "breaks"],
)
def test_a_registry_that_does_not_give_a_layer(
    clean_node: Node, liar: FaultRegistry, answer: Any, code: str, words: tuple[str, ...]
) -> None:
    liar.on_manifest("1", send(manifest_of(IMAGE, busybox_layer(), LAYER)))
    liar.on_blob(digest_of(IMAGE), stream(IMAGE))
    liar.on_blob(digest_of(LAYER), answer)
    reference = f"{liar.host}/app:1"
    with refused(code, reference, '"distribution"', *words):
        clean_node.pull(reference)
    assert clean_node.call("ImageStatus", image={"image": reference}).get("image") is None
    liar.on_blob(digest_of(LAYER), stream(LAYER))
    clean_node.pull(reference)
    pod = clean_node.run_pod()
    assert clean_node.output(pod, "head", "-n", "1", "/extra", image=reference) == "whole\n"
    clean_node.call("RemoveImage", image={"image": reference})


CONFIG_PROBLEMS = [
    ("[podz]\n", ("50-test.toml:1", "podz", "pods")),
    ("[network]\ndriver = 'cnii'\n", ("50-test.toml:2", "cnii", "cni")),
    ("[network]\ndriver = 'cni'\noptions = { conf_dirr = '/x' }\n", ("50-test.toml:3", "conf_dirr", "conf_dir")),
    ("[pods]\nshm_size_bytes = 'many'\n", ("50-test.toml:2", "shm_size_bytes")),
    ("[runtimes.x]\ndriver = 'runc'\nnetwork = 'none'\n", ("50-test.toml:3", "none")),
    ("[server\n", ("50-test.toml:1",)),
]


@pytest.mark.parametrize(("text", "words"), CONFIG_PROBLEMS)
def test_a_configuration_with_a_mistake(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    daemon = Daemon(tmp_path, text)
    daemon.launch()
    try:
        assert daemon.process is not None
        assert daemon.process.wait(patient(30)) == 78
        assert all(word in daemon.tail() for word in words), daemon.tail()
        assert "Traceback" not in daemon.tail()
        command = [sys.executable, "-m", "crinoid", "config", "check", "--config", str(daemon.config_file)]
        checked = programs.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode != 0
        assert all(word in checked.stdout + checked.stderr for word in words)
    finally:
        daemon.end()
