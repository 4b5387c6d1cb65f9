"""Images that are out of the ordinary: very many layers or files, empty and foreign layers, artifacts."""

import hashlib
import json
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from integration.conftest import SNAPSHOTTERS, Node
from integration.pods import QUICK, Pod, refused, until
from integration.test_user_namespaces import in_user_namespace
from support import programs
from support.images import (
    OCI_CONFIG,
    OCI_MANIFEST,
    BuiltImage,
    Entry,
    ImageConfig,
    add_blob,
    add_json,
    build_image,
    busybox_layer,
    make_layer,
    name_manifest,
    read_blob,
)
from support.patience import patient

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
FILES = 200_000


@pytest.fixture
def name(node: Node) -> Iterator[str]:
    """A name of the test's own; the image is removed at the end."""
    name = f"docker.io/corner/image:{time.time_ns()}"
    yield name
    node.remove_pods()
    node.call("RemoveImage", image={"image": name})


def test_a_hundred_layers(node: Node, name: str) -> None:
    """Their names fill more than a page, which is all that mount(2) takes."""
    tiny = [make_layer([Entry(path=f"layer/{number}", content=b"x")]) for number in range(99)]
    build_image(node.layouts / "hundred", name, [busybox_layer(), *tiny], compression="none")
    node.pull(name)
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    assert pod.sh("ls /layer | wc -l; rm /layer/7; touch /layer/new; ls /layer | wc -l", image=name) == "99\n99\n"


def test_as_many_layers_as_the_kernel_stacks(node: Node, name: str) -> None:
    """In a user namespace, too, where each is mapped for itself. Each layer lists its directory, as builders have it:
    for one that only implies it, all layers below are asked, which the hundred layers above show."""
    directory = Entry(path="layer", kind="directory", mode=0o755)
    tiny = [make_layer([directory, Entry(path=f"layer/{number}", content=b"x")]) for number in range(499)]
    build_image(node.layouts / "many", name, [busybox_layer(), *tiny], compression="none")
    node.call("PullImage", image={"image": name}, timeout_s=patient(120))
    plain = Pod(node, node.run_pod("plain", handler=QUICK["runc"]))
    mapped = Pod(node, node.run_pod("mapped", handler=QUICK["runc"], linux=in_user_namespace()))
    assert [pod.sh("ls /layer | wc -l", image=name) for pod in (plain, mapped)] == ["499\n"] * 2


def test_more_layers_than_the_kernel_stacks_are_refused_before_they_are_fetched(node: Node, name: str) -> None:
    tiny = [make_layer([Entry(path=f"layer/{number}", content=b"x")]) for number in range(510)]
    build_image(node.layouts / "too-many", name, tiny, compression="none")
    with refused("FAILED_PRECONDITION", "510 layers.*at most 500"):
        node.pull(name)


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
def test_layers_with_nothing_in_them(node: Node, name: str, snapshotter: str) -> None:
    empty = make_layer([])
    layers = [empty, busybox_layer(), empty, make_layer([Entry(path="mark", content=b"made")]), empty, b"\0" * 1024]
    build_image(node.layouts / "empty", name, layers)
    node.pull(name)
    pod = Pod(node, node.run_pod(handler=f"runc-host-{snapshotter}"))
    assert pod.sh("cat /mark", image=name) == "made"


def test_an_image_whose_configuration_is_odd(node: Node, name: str) -> None:
    """As with containerd it runs: an entry point taken away, variables without a value, a stop signal that is none."""
    script = "trap 'exit 15' TERM; echo ${FOO-none} ${A}; while true; do sleep 0.02; done"
    odd = ImageConfig(entrypoint=("",), cmd=("/bin/sh", "-c", script), env=("", "FOO", "A=1"), stop_signal="SIGODD")
    build_image(node.layouts / "odd", name, [busybox_layer()], odd)
    node.pull(name)
    container = node.run_container(node.run_pod(handler=QUICK["runc"]), image=name)
    until(lambda: node.log(container) == "none 1\n")
    node.call("StopContainer", container_id=container, timeout=20)
    assert node.status(container)["exit_code"] == 15


def test_an_image_without_layers(node: Node, name: str) -> None:
    build_image(node.layouts / "none", name, [])
    node.pull(name)
    container = node.create(node.run_pod(handler=QUICK["runc"]), "/nothing", image=name)
    with refused("INVALID_ARGUMENT", "/nothing|not found|no such file"):
        node.call("StartContainer", container_id=container)


def test_a_layer_from_elsewhere(node: Node) -> None:
    """A foreign layer is not at the registry: its descriptor says where it is."""
    layer = make_layer([Entry(path="mark", content=b"from elsewhere")])
    layout = node.layouts.parent / "foreign"
    with serving(layer) as url:
        built = build_image(layout, "docker.io/corner/foreign:1", [busybox_layer(), layer], compression="none")
        document = json.loads(read_blob(layout, built.manifest.digest))
        kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
        document["layers"][1] |= {"mediaType": kind, "urls": [url]}
        reference = push(node, built, json.dumps(document).encode(), document)
        node.pull(reference)
        pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
        assert pod.sh("cat /mark", image=reference) == "from elsewhere"
    node.remove_pods()
    node.call("RemoveImage", image={"image": reference})


@contextmanager
def serving(content: bytes) -> Iterator[str]:
    """Serve one blob on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/blob"
        server.shutdown()


def push(node: Node, built: BuiltImage, manifest: bytes, document: dict[str, object]) -> str:
    """Push a manifest as it is, its configuration, and its first layer alone."""
    base = f"http://{node.registry.host}/v2/corner/foreign"
    for digest in (built.config.digest, built.layers[0].digest):
        with urllib.request.urlopen(request("POST", f"{base}/blobs/uploads/", b"")) as answer:
            place = answer.headers["Location"]
        url = f"{place}{'&' if '?' in place else '?'}digest={digest}"
        urllib.request.urlopen(request("PUT", url, read_blob(built.layout, digest))).close()
    urllib.request.urlopen(request("PUT", f"{base}/manifests/1", manifest, str(document["mediaType"]))).close()
    return f"{node.registry.host}/corner/foreign:1"


def request(method: str, url: str, body: bytes, kind: str = "application/octet-stream") -> urllib.request.Request:
    return urllib.request.Request(url, data=body, method=method, headers={"Content-Type": kind})


def test_hundreds_of_thousands_of_files(node: Node, name: str) -> None:
    build_image(node.layouts / "files", name, [busybox_layer(), many_files()], compression="none")
    started = time.monotonic()
    node.call("PullImage", image={"image": name}, timeout_s=120)
    pulled = time.monotonic()
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    assert pod.sh("find /many -type f | wc -l", image=name) == f"{FILES}\n"
    node.remove_pods()
    looked = time.monotonic()
    node.call("RemoveImage", image={"image": name}, timeout_s=120)
    removed = time.monotonic()
    assert pulled - started < patient(90)
    assert removed - looked < patient(60)


def many_files() -> bytes:
    """A layer of empty files; by hand, as tarfile takes longer for it than the whole test."""
    directories = [
        make_layer([Entry(path=f"many/{n}", kind="directory", mode=0o755)])[:512] for n in range(FILES // 1000)
    ]
    header = bytearray(make_layer([Entry(path="many/000/000")])[:512])
    header[148:156] = b" " * 8
    pieces = [*directories]
    for number in range(FILES):
        path = b"many/%d/%d" % divmod(number, 1000)
        header[0:100] = path.ljust(100, b"\0")
        header[148:156] = b" " * 8
        pieces.append(bytes(header[:148]) + b"%06o\0 " % sum(header) + bytes(header[156:]))
    return b"".join([*pieces, b"\0" * 1024])


def build_artifact(node: Node, name: str, files: dict[str, bytes], **more: object) -> str:
    """Build an artifact of files with titles; return the digest of its manifest, which is its id."""
    layout = node.layouts / f"artifact-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    layers = []
    for title, content in files.items():
        blob = add_blob(layout, "application/octet-stream", content).document()
        layers.append(blob | ({"annotations": {TITLE: title}} if title else {}))
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.test.model",
        "config": add_json(layout, EMPTY_TYPE, {}).document(),
        "layers": layers,
    }
    manifest = add_json(layout, OCI_MANIFEST, document | more)
    name_manifest(layout, name, manifest)
    return manifest.digest


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
def test_an_artifact_is_a_volume(node: Node, name: str, snapshotter: str) -> None:
    weights = b"\1\2\3" * 1000
    digest = build_artifact(node, name, {"model.bin": weights, "doc/read.me": b"read", "doc/deep/x": b"x", "": b"bare"})
    assert node.pull(name) == digest
    assert node.call("ImageStatus", image={"image": name})["image"]["id"] == digest
    pod = Pod(node, node.run_pod(handler=f"runc-host-{snapshotter}"))
    whole = {"container_path": "/whole", "readonly": True, "image": {"image": name}}
    part = whole | {"container_path": "/part", "image_sub_path": "doc"}
    file = whole | {"container_path": "/file", "image_sub_path": "model.bin"}
    bare = "sha256-" + hashlib.sha256(b"bare").hexdigest()
    files = f"/whole/doc/read.me /part/deep/x /whole/{bare}"
    script = f"cat {files}; md5sum /file | cut -c -32; touch /whole/new 2>&1 || echo no"
    wanted = f"readxbare{hashlib.md5(weights, usedforsecurity=False).hexdigest()}\n"
    said = pod.sh(script, mounts=[whole, part, file])
    assert said.startswith(wanted)
    assert said.endswith("no\n")
    alice = {"security_context": {"run_as_user": {"value": "1000"}, "namespace_options": {"pid": "CONTAINER"}}}
    assert pod.sh("cat /whole/doc/read.me", mounts=[whole], linux=alice) == "read"
    with refused("NOT_FOUND", "absent"):
        pod.create("true", mounts=[part | {"image_sub_path": "absent"}])
    with refused("INVALID_ARGUMENT", "artifact of type application/vnd.test.model"):
        pod.create("true", image=name)
    node.daemon.restart()
    assert pod.sh("cat /part/read.me", mounts=[part]) == "read"


def test_an_artifact_and_an_image_of_the_same_bytes(node: Node, name: str) -> None:
    """The blob of an artifact may be the very layer of an image: neither is ever taken for the other."""
    layer = make_layer([Entry(path="mark", content=b"of the layer")])
    build_artifact(node, name, {"layer.tar": layer})
    node.pull(name)
    image = name.replace("corner/image", "corner/other")
    build_image(node.layouts / "same", image, [layer, busybox_layer()], compression="none")
    node.pull(image)
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    volume = {"container_path": "/v", "readonly": True, "image": {"image": name}}
    assert pod.sh("cat /mark; ls /v; ls /layer.tar 2>/dev/null | wc -l", image=image, mounts=[volume]).splitlines() == [
        "of the layerlayer.tar",
        "0",
    ]
    node.remove_pods()
    node.call("RemoveImage", image={"image": image})


@pytest.mark.parametrize("title", ["../up", "/etc/passwd", "a//b", "a/..", "x" * 300])
def test_an_artifact_with_a_bad_title(node: Node, name: str, title: str) -> None:
    build_artifact(node, name, {title: b"x"})
    with refused("DATA_LOSS", "no name in a volume"):
        node.pull(name)


def test_an_artifact_with_two_files_of_one_name(node: Node, name: str) -> None:
    layout = node.layouts / "twice"
    layers = [
        add_blob(layout, "text/plain", content).document() | {"annotations": {TITLE: "same"}}
        for content in (b"1", b"2")
    ]
    config = add_json(layout, OCI_CONFIG.replace("image", "thing"), {}).document()
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    name_manifest(layout, name, add_json(layout, OCI_MANIFEST, document))
    with refused("DATA_LOSS", "two files of one name"):
        node.pull(name)


# Damage on disk


def verify(node: Node, *arguments: str) -> tuple[int, str]:
    """Run ``crinoid image verify``; return its exit code and output."""
    command = [sys.executable, "-m", "crinoid", "image", "-r", f"unix://{node.daemon.socket}", "verify", *arguments]
    done = programs.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
    return done.returncode, done.stdout + done.stderr


def test_damage_is_named_and_repaired(node: Node, name: str) -> None:
    """A truncated layer, a wrong manifest and a layer whose files are gone: told, fetched again, unpacked again."""
    layer = make_layer([Entry(path="mark", content=b"made")])
    built = build_image(node.layouts / "damaged", name, [busybox_layer(), layer], compression="none")
    node.pull(name)
    assert verify(node, name) == (0, f"{name}: whole\n")
    root = node.daemon.root
    blobs = root / "content/blobs/sha256"
    digest = built.layers[1].digest.removeprefix("sha256:")
    (blobs / digest).write_bytes((blobs / digest).read_bytes()[:-512])
    (blobs / built.manifest.digest.removeprefix("sha256:")).write_text("{}")
    (mark,) = root.glob("plugins/snapshotter/*overlay/snapshots/layers/*/fs/mark")
    shutil.rmtree(mark.parent)
    code, told = verify(node, name)
    assert code == 1
    for words in (f"blob sha256:{digest} is damaged", f"blob {built.manifest.digest} is damaged", "has lost its files"):
        assert words in told
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    with refused("FAILED_PRECONDITION", f"{name}.*blob sha256:{digest} is damaged.*pull the image again"):
        node.create(pod.id, "cat", "/mark", image=name)
    assert "image" not in node.call("ImageStatus", image={"image": name}), "a kubelet pulls what is absent"
    code, told = verify(node, "--repair", name)
    assert code == 0, told
    assert f"{name}: repaired" in told
    assert pod.sh("cat /mark", image=name) == "made"
    assert verify(node, name) == (0, f"{name}: whole\n")
