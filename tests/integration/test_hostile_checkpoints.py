"""Strangers' checkpoint archives against a real daemon: each is refused by name, and the daemon hardly notices.

What is tested ends before criu would read anything, at CreateContainer; so a criu that only says that it works will do.
"""

import contextlib
import gzip
import io
import json
import os
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crinoid.core.api.linux import files
from integration.conftest import BUSYBOX, Node, configuration, write_conflist
from integration.pods import refused
from integration.test_checkpoint import build_checkpoint_image
from support.archives import END, ArchiveBuilder, header
from support.cri import Cri
from support.daemon import Daemon
from support.images import build_busybox
from support.patience import patient
from support.registry import running_registry
from support.subnets import third_octet

HANDLER = "runc-host-overlay"
PARTS = {
    "config.dump": json.dumps({"rootfsImageName": BUSYBOX}).encode(),
    "spec.dump": json.dumps({"process": {"args": ["sh"], "cwd": "/"}}).encode(),
    "checkpoint/inventory.img": b"i",
}


@pytest.fixture(scope="module")
def trusting_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with a criu on its PATH that has no complaints, and a limit of 64 MiB."""
    directory = tmp_path_factory.mktemp("hostile")
    criu = directory / "bin" / "criu"
    criu.parent.mkdir()
    criu.write_text("#!/bin/sh\nexit 0\n")
    criu.chmod(0o755)
    build_busybox(directory / "layouts" / "busybox", BUSYBOX)
    write_conflist(directory / "net.d", f"crt{secrets.token_hex(3)}", f"10.89.{third_octet()}.0/24", directory / "ipam")
    with running_registry(directory / "registry") as registry:
        config = configuration(directory / "layouts", registry.host, directory / "net.d")
        config = config.replace("[pods]\n", f"[pods]\ncheckpoint_max_bytes = {64 << 20}\n")
        prefix = ("env", f"PATH={criu.parent}:/usr/sbin:/usr/bin:/sbin:/bin")
        daemon = Daemon(directory / "daemon", config, prefix)
        try:
            daemon.start()
            node = Node(daemon, directory / "layouts", registry, "", directory / "logs")
            node.pull()
            yield node
            daemon.clean()
            assert daemon.leftovers() == []
        finally:
            daemon.end()
            files.remove_tree(daemon.root)  # what waits in the trash is deeper than pytest's own removal goes


@pytest.fixture(scope="module")
def pod(trusting_node: Node) -> str:
    return trusting_node.run_pod(handler=HANDLER)


def tar(parts: dict[str, bytes]) -> bytes:
    builder = ArchiveBuilder()
    for name, content in parts.items():
        builder.file(name, content)
    return builder.build()


def members() -> bytes:
    return tar(PARTS)[: len(PARTS) * 1024]


def large(name: bytes, kind: bytes, gibibytes: int) -> bytes:
    size = b"\x80" + (gibibytes << 30).to_bytes(11, "big")
    return gzip.compress(header(name, kind, size)) + gzip.compress(bytes(1 << 26), 1) * (16 * gibibytes)


def nested(diff: bytes) -> bytes:
    return tar({**PARTS, "rootfs-diff.tar": diff})


def outside(where: str) -> bytes:
    """A root file system difference that leads out by a link, and by names."""
    return ArchiveBuilder().symlink("out", where).file("out/evil", b"x").build()


HOSTILE: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "header": (lambda: large(b"x", b"x", 1), "DATA_LOSS", "extended header of 1073741824 bytes"),
    "deleted": (
        lambda: gzip.compress(members()) + large(b"deleted.files", b"0", 2),
        "RESOURCE_EXHAUSTED",
        "deleted.files.*at most 16777216",
    ),
    "bomb": (
        lambda: gzip.compress(members()) + large(b"checkpoint/pages-1.img", b"0", 8),
        "RESOURCE_EXHAUSTED",
        "more than 67108864 bytes",
    ),
    "members": (
        lambda: gzip.compress(header(b"m") * 10_000, 1) * 60 + gzip.compress(END),
        "RESOURCE_EXHAUSTED",
        "entry 'm': the archive has more than 67108864 bytes",
    ),
    "no values": (
        lambda: tar(PARTS | {"spec.dump": b"[" + b"[]," * 2_000_000 + b"[]]"}),
        "DATA_LOSS",
        "spec.dump has more than 131072 values",
    ),
    "list": (lambda: tar(PARTS | {"deleted.files": b"[" * 1_000_000}), "DATA_LOSS", "deleted.files.*no JSON list"),
    "kinds": (lambda: tar(PARTS | {"deleted.files": b'{"a": 1}'}), "DATA_LOSS", "deleted.files.*no list of paths"),
    "up": (lambda: tar(PARTS | {"deleted.files": b'["/../../etc"]'}), "DATA_LOSS", "deleted.files.*leads out"),
    "root": (lambda: tar(PARTS | {"deleted.files": b'["/"]'}), "DATA_LOSS", "deleted.files.*can't be deleted"),
    "NUL": (lambda: tar(PARTS | {"deleted.files": b'["/a\\u0000"]'}), "DATA_LOSS", "deleted.files.*can't be deleted"),
    "diff": (lambda: nested(b"no archive" * 100), "DATA_LOSS", "rootfs-diff.tar.*checksum"),
    "diff up": (
        lambda: nested(ArchiveBuilder().file("../../evil", b"x").build()),
        "DATA_LOSS",
        "rootfs-diff.tar.*leads out",
    ),
    "diff without end": (lambda: nested(header(b"f")), "DATA_LOSS", "rootfs-diff.tar.*end is missing"),
    "diff bomb": (
        lambda: nested(gzip.compress(header(b"f", size=b"\x80" + (1 << 33).to_bytes(11, "big")) + bytes(1 << 27), 1)),
        "RESOURCE_EXHAUSTED",
        "rootfs-diff.tar.*more than 67108864 bytes",
    ),
    "diff deep": (
        lambda: nested(
            ArchiveBuilder().symlink("l", "a/" * 900).file("l/" + "b/" * 1100 + "f").hard_link("h", "l/" * 5000).build()
        ),
        "DATA_LOSS",
        "rootfs-diff.tar",
    ),
}


class Watch:
    """Calls Version all the time; ``slowest`` is the longest that it took, in seconds, ``grown`` the daemon in KiB."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self.slowest = 0.0
        self.grown = 0

    def __enter__(self) -> "Watch":
        self._before = self._memory("VmRSS")
        process = self._node.daemon.process
        assert process is not None
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.grown = self._memory("VmHWM") - self._before

    def _call(self) -> None:
        client = Cri(self._node.daemon.socket)
        client.call("Version")
        while not self._end.is_set():
            begin = time.monotonic()
            client.call("Version")
            self.slowest = max(self.slowest, time.monotonic() - begin)
            time.sleep(0.005)

    def _memory(self, what: str) -> int:
        assert self._node.daemon.process is not None
        lines = Path(f"/proc/{self._node.daemon.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what))


@pytest.mark.parametrize("which", HOSTILE)
def test_a_hostile_archive_is_refused_and_felt_by_nobody(
    trusting_node: Node, pod: str, tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, code, words = HOSTILE[which]
    archive = tmp_path / "archive.tar"
    archive.write_bytes(make())
    before = everything(trusting_node)
    with Watch(trusting_node) as watch, refused(code, words):
        trusting_node.create(pod, name=f"c-{which.replace(' ', '-')}", image=str(archive))
    print(f"{which}: Version took at most {watch.slowest * 1000:.0f} ms, the daemon grew by {watch.grown} KiB")
    assert watch.grown < 48 << 10
    assert watch.slowest < patient(0.25)
    assert everything(trusting_node) == before
    # not rglob, which stumbles over what the daemon removes meanwhile
    assert [path for path, directories, files in os.walk(tmp_path.parent) if "evil" in (*directories, *files)] == []


def everything(node: Node) -> tuple[object, ...]:
    """What a failed creation may not have left: ledger, files, mounts."""
    directories = [node.daemon.root / "checkpoints", node.daemon.run / "containers"]
    files = [path for directory in directories for path in directory.glob("*")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if node.daemon.name in line]
    return node.daemon.query("SELECT owner, kind, key FROM ledger"), files, len(mounts)


def test_links_lead_nowhere_but_into_the_container(trusting_node: Node, pod: str, tmp_path: Path) -> None:
    """What is changed through a link, and what is deleted through one, are the container's own files."""
    host = tmp_path / "host"
    host.mkdir()
    (host / "kept").touch()
    diff = ArchiveBuilder().symlink("out", str(host)).file("out/evil", b"x").symlink("up", "../" * 20).file("up/evil2")
    archive = tmp_path / "archive.tar"
    archive.write_bytes(
        tar(
            PARTS
            | {"deleted.files": json.dumps(["/bin/../bin/vi", "/absent/x"]).encode(), "rootfs-diff.tar": diff.build()}
        )
    )
    container = trusting_node.create(pod, name="links", image=str(archive))
    rootfs = trusting_node.daemon.run / "containers" / container / "rootfs"
    assert [path.name for path in host.iterdir()] == ["kept"]
    assert (rootfs / str(host).lstrip("/") / "evil").read_text() == "x"
    assert (rootfs / "evil2").exists()
    assert not (rootfs / "bin/vi").exists()
    again = tar(
        PARTS | {"deleted.files": json.dumps(["/out/kept", "/bin/sh"]).encode(), "rootfs-diff.tar": diff.build()}
    )
    archive.write_bytes(again)
    trusting_node.create(pod, name="again", image=str(archive))
    assert (host / "kept").exists()
    trusting_node.call("RemoveContainer", container_id=container)


def test_a_checkpoint_image_needs_the_nodes_leave(trusting_node: Node, pod: str, tmp_path: Path) -> None:
    """An image could make itself root of the node otherwise: by an annotation."""
    archive = tmp_path / "archive.tar"
    archive.write_bytes(tar(PARTS))
    for name in ("docker.io/evil/checkpoint:1", "docker.io/test/checkpoint:1"):
        build_checkpoint_image(trusting_node.layouts / name.split("/")[1], name, archive)
        trusting_node.pull(name)
        trusted = name.startswith("docker.io/test")
        with contextlib.nullcontext() if trusted else refused("FAILED_PRECONDITION", r"pods\.checkpoint_images"):
            container = trusting_node.create(pod, name="image", image=name)
        if trusted:
            trusting_node.call("RemoveContainer", container_id=container)
        trusting_node.call("RemoveImage", image={"image": name})


def test_an_image_with_traps_in_the_place_of_its_parts(trusting_node: Node, pod: str, tmp_path: Path) -> None:
    archive, name = tmp_path / "archive.tar", "docker.io/test/checkpoint:traps"
    content = io.BytesIO(tar(PARTS | {"config.dump": b"{}"}))
    with tarfile.open(fileobj=content, mode="a") as appended:
        pipe = tarfile.TarInfo("config.dump")
        pipe.type = tarfile.FIFOTYPE
        appended.addfile(pipe)
    archive.write_bytes(content.getvalue())
    build_checkpoint_image(trusting_node.layouts / "traps", name, archive)
    trusting_node.pull(name)
    with refused("DATA_LOSS", "config.dump is a link or another thing"):
        trusting_node.create(pod, name="traps", image=name)
    trusting_node.call("RemoveImage", image={"image": name})
