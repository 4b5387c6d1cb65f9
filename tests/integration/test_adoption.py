"""crinoid image adopt over a real containerd, running and stopped: a node that moves does not pull again."""

import gzip
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crinoid.core.cli.main import main
from support.daemon import Daemon
from support.image_archives import docker_archive
from support.images import BuiltImage, Entry, build_image, make_layer, read_blob
from support.patience import patient

NAME, OTHER = "registry.test/app:1", "docker.io/library/other:2"
Adopt = Callable[..., Result]


@dataclass
class Containerd:
    """A containerd of Debian's over directories of its own."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        return self.directory / "root"

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        config = self.directory / "config.toml"
        config.write_text(
            f"version = 2\nroot = '{self.root}'\nstate = '{self.directory}/state'\n"
            f"disabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\naddress = '{self.directory}/c.sock'\n"
        )
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(["containerd", "-c", config], stdout=log, stderr=log)
        deadline = time.monotonic() + patient(30)
        while subprocess.run(self._ctr("version"), capture_output=True).returncode:
            assert time.monotonic() < deadline, (self.directory / "log").read_text()
            time.sleep(0.1)

    def ctr(self, *arguments: str | Path) -> None:
        subprocess.run(self._ctr(*arguments), check=True, capture_output=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def blob(self, digest: str) -> Path:
        return self.root / "io.containerd.content.v1.content/blobs" / digest.replace(":", "/")

    def _ctr(self, *arguments: str | Path) -> list[str]:
        return ["ctr", "-a", f"{self.directory}/c.sock", "-n", "k8s.io", *map(str, arguments)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuiltImage]:
    layout = tmp_path_factory.mktemp("images")
    base = make_layer([Entry(path="base", content=os.urandom(100_000))])
    top = make_layer([Entry(path="top", content=os.urandom(6 << 20))])  # long enough to be unpacked while it comes
    return {NAME: build_image(layout, NAME, [base, top]), OTHER: build_image(layout, OTHER, [base])}


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory, images: dict[str, BuiltImage]) -> Iterator[Containerd]:
    """Below /tmp like the daemon's root: on one file system."""
    containerd = Containerd(tmp_path_factory.mktemp("containerd"))
    containerd.start()
    archive = containerd.directory / "images.tar"
    archive.write_bytes(docker_archive([(image, (name,)) for name, image in images.items()]))
    containerd.ctr("images", "import", "--no-unpack", archive)
    yield containerd
    containerd.stop()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("adopting")
    config = (
        f"[registries.layout]\ndriver = 'layout'\noptions = {{ directory = '{directory}/layouts' }}\n"
        "[network]\ndriver = 'host'\n[snapshotters.overlay]\ndriver = 'overlay'\n"
    )
    daemon = Daemon(directory / "daemon", config)
    try:
        yield daemon.start()
    finally:
        daemon.end()


@pytest.fixture
def adopt(daemon: Daemon, containerd: Containerd) -> Iterator[Adopt]:
    def run(*arguments: object, code: int = 0) -> Result:
        words = ["image", "-r", f"unix://{daemon.socket}", "adopt", "--root", containerd.root, *arguments]
        result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == code, (result.output, result.exception)
        return result

    yield run
    for image in daemon.cri.call("ListImages")["images"]:
        daemon.cri.call("RemoveImage", image={"image": image["id"]})
    assert stored(daemon) == set()
    assert daemon.query("SELECT owner, kind, key FROM ledger") == []


def stored(daemon: Daemon) -> set[str]:
    content = daemon.root / "content"
    return {path.name for path in (*content.glob("blobs/*/*"), *content.glob("blobs/*/.*"), *content.glob("ingest/*"))}


def ids(images: dict[str, BuiltImage]) -> dict[str, list[str]]:
    return {image.config.digest: [name] for name, image in images.items()}


def names(daemon: Daemon) -> dict[str, list[str]]:
    return {image["id"]: image["repo_tags"] for image in daemon.cri.call("ListImages")["images"]}


def state_of(root: Path) -> dict[str, tuple[int, int, int, int, int]]:
    """All files of containerd with what a write or a change of owner or mode would change."""
    found = {str(path): path.lstat() for path in root.rglob("*") if path.is_file()}
    return {name: (one.st_mtime_ns, one.st_size, one.st_mode, one.st_uid, one.st_ino) for name, one in found.items()}


def test_all_images_of_one_that_runs_by_links(
    daemon: Daemon, adopt: Adopt, containerd: Containerd, images: dict[str, BuiltImage]
) -> None:
    result = adopt("--from", "containerd")
    assert sorted(result.stdout.splitlines()) == [f"Adopted: {OTHER}", f"Adopted: {NAME}"]
    assert names(daemon) == ids(images)
    linked = daemon.root / "content/blobs" / images[NAME].diff_ids[1].replace(":", "/")
    assert "linked" in result.stderr or "cloned" in result.stderr
    assert linked.samefile(containerd.blob(images[NAME].diff_ids[1])) or "cloned" in result.stderr


def test_one_that_is_stopped_and_nothing_is_written_there(
    daemon: Daemon, adopt: Adopt, containerd: Containerd, images: dict[str, BuiltImage]
) -> None:
    containerd.stop()
    before = state_of(containerd.root)
    try:
        result = adopt("--from", "containerd", "--copy", "registry.test/*")
        assert names(daemon) == {images[NAME].config.digest: [NAME]}
        assert "linked" not in result.stderr
        assert adopt("--from", "containerd", "other:2").stdout == f"Adopted: {OTHER}\n"
        assert state_of(containerd.root) == before
    finally:
        containerd.start()


def test_a_kubelet_s_pull_afterwards_fetches_no_layer(
    daemon: Daemon, adopt: Adopt, images: dict[str, BuiltImage], tmp_path: Path
) -> None:
    adopt("--from", "containerd")
    # What kubelet and registry say of the same image as it came from the registry: its own manifest, gzip'd layers
    image = images[NAME]
    layouts = daemon.directory.parent / "layouts"
    bare = build_image(layouts / "app", NAME, [image_layer(image, 0), image_layer(image, 1)], compression="none")
    for layer in bare.layers:
        (layouts / "app/blobs" / layer.digest.replace(":", "/")).unlink()
    assert daemon.cri.call("ImageStatus", image={"image": NAME})["image"]["id"] == image.config.digest
    assert daemon.cri.call("PullImage", image={"image": NAME})["image_ref"] == image.config.digest


def image_layer(image: BuiltImage, number: int) -> bytes:
    return gzip.decompress(read_blob(image.layout, image.layers[number].digest))


def test_a_blob_that_is_damaged_or_gone_is_named_and_the_others_are_adopted(
    daemon: Daemon, adopt: Adopt, containerd: Containerd, images: dict[str, BuiltImage]
) -> None:
    blob = containerd.blob(images[NAME].diff_ids[1])
    content = blob.read_bytes()
    blob.chmod(0o644)
    try:
        blob.write_bytes(content[:-1] + b"x")
        result = adopt("--from", "containerd", code=1)
        assert f"image {NAME}" in result.stderr
        assert "digest" in result.stderr
        assert names(daemon) == {images[OTHER].config.digest: [OTHER]}
        blob.unlink()
        result = adopt("--from", "containerd", code=1)
        assert "discard_unpacked_layers" in result.stderr
    finally:
        blob.write_bytes(content)
        blob.chmod(0o444)


def test_a_file_that_others_may_write_to_is_copied(
    daemon: Daemon, adopt: Adopt, containerd: Containerd, images: dict[str, BuiltImage]
) -> None:
    blob = containerd.blob(images[OTHER].diff_ids[0])
    blob.chmod(0o666)
    try:
        adopt("--from", "containerd", "other:2")
        own = daemon.root / "content/blobs" / images[OTHER].diff_ids[0].replace(":", "/")
        assert not own.samefile(blob)
    finally:
        blob.chmod(0o444)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "containerd", "--namespace", "moby"], "no namespace 'moby'; it has: k8s.io"),
        (["--from", "containerd", "--root", "/nowhere"], "/nowhere/io.containerd.metadata.v1.bolt/meta.db"),
        (["--from", "cri-o"], "skopeo copy containers-storage:"),
        (["--from", "rkt"], "known: containerd"),
    ],
)
def test_what_can_t_be_adopted_is_said(adopt: Adopt, arguments: list[str], words: str) -> None:
    assert words in adopt(*arguments, code=1).stderr


def test_what_a_kill_leaves_is_gone_after_the_next_start(daemon: Daemon, adopt: Adopt, containerd: Containerd) -> None:
    adopt("--from", "containerd")
    daemon.kill()
    daemon.start()
    assert len(names(daemon)) == 2
