"""Cuts the power of a node's disk during pulls, removals and pods' lives, and starts a daemon on what is left.

By hand, as root: ``PYTHONPATH=tests .venv/bin/python -m chaos.power``; ``--lives``, ``--rounds`` and ``--cuts`` say how
many, ``--seed`` repeats. Then no blob or committed layer has a missing or wrong byte, each image whose pull was
answered is there and runs, no pod is told to be ready, and all can be removed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos.disk import Disk, mounted_disk, mounted_image, write_sparse
from integration.conftest import BUSYBOX, Node
from support import network_namespace
from support.daemon import Daemon
from support.images import Entry, build_busybox, build_image, make_layer
from support.registry import RunningRegistry

DISK_BYTES = 128 << 20
LARGE, MANY, OVER = (f"docker.io/test/{name}:1" for name in ("large", "many", "over"))
CONFIG = """
[network]
driver = "bridge"
options = { subnets = ["10.88.9.0/24"] }
[snapshotter]
driver = "overlay"
[snapshotters.native]
driver = "native"
[runtimes.native]
driver = "runc"
snapshotter = "native"
"""


@dataclass(frozen=True)
class Cut:
    """What a cut has left, and which images had been answered for by then."""

    number: int
    image: Path
    answered: frozenset[str]


@dataclass
class Cutter:
    """Cuts at random moments, or when it is told to."""

    disk: Disk
    directory: Path
    chance: random.Random
    most: int
    answered: set[str] = field(default_factory=set)
    cuts: list[Cut] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut(self) -> None:
        """Note the answers first: what comes after them may be on the disk, and need not."""
        with self._lock:
            if len(self.cuts) >= self.most:
                return
            answered = frozenset(self.answered)
            content = self.disk.cut(self.chance)
            cut = Cut(len(self.cuts), self.directory / f"cut{len(self.cuts)}.img", answered)
            write_sparse(cut.image, content)
            self.cuts.append(cut)

    @contextlib.contextmanager
    def at_random(self) -> Iterator[None]:
        """Cut while the block goes on."""
        ended = threading.Event()

        def go_on() -> None:
            while not ended.wait(self.chance.uniform(0.0, 0.3)):
                self.cut()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def live(node: Node, cutter: Cutter, rounds: int) -> None:
    """Pull, run, remove, pull again."""
    for number in range(rounds):
        for image, handler in ((LARGE, ""), (MANY, "native"), (OVER, "")):
            _pull(node, cutter, image, handler)
        pod = node.run_pod(f"pod{number}", "native" if number % 2 else "")
        container = node.create(pod, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=3; sleep 1000", image=MANY)
        node.call("StartContainer", container_id=container)
        image = (LARGE, OVER)[number % 2]
        cutter.answered.discard(image)
        node.call("RemoveImage", image={"image": image})
        node.call("RemovePodSandbox", pod_sandbox_id=pod)
        node.run_pod(f"stays{number}")


def _pull(node: Node, cutter: Cutter, image: str, handler: str = "") -> None:
    node.call("PullImage", image={"image": image, "runtime_handler": handler})
    cutter.answered.add(image)
    cutter.cut()


def build(layouts: Path) -> None:
    """Images of a large layer, of many small files, and of one layer that hides parts of the other."""
    chance = random.Random(7)
    large = [Entry(path=f"srv/large{number}", content=chance.randbytes(1 << 20)) for number in range(6)]
    many = [Entry(path=f"usr/d{n % 20}/f{n}", content=chance.randbytes(chance.randrange(3000))) for n in range(800)]
    build_busybox(layouts / "busybox", BUSYBOX)
    build_busybox(layouts / "large", LARGE, extra=large)
    build_busybox(layouts / "many", MANY, extra=many)
    over = [make_layer([Entry(path="a/x", content=b"1" * 5000), Entry(path="b", content=b"2")])]
    over.append(make_layer([Entry(path="a/.wh.x"), Entry(path="b", content=b"3" * 9000), Entry(path="c/d/e")]))
    build_image(layouts / "over", OVER, over)


def check(daemon: Daemon, cut: Cut, trees: dict[str, str]) -> list[str]:
    """Start a daemon on what a cut has left; say what is wrong. ``trees`` are those of each chain id."""
    shutil.rmtree(daemon.run, ignore_errors=True)  # a tmpfs
    with mounted_image(cut.image, daemon.directory):
        daemon.log.unlink(missing_ok=True)
        blobs = daemon.root.glob("content/blobs/*/*")
        found = [f"blob {path.name} has another content" for path in blobs if not _is_right(path)]
        found += [
            f"layer {chain} has another tree" for chain, tree in trees_of(daemon.root) if trees.get(chain) != tree
        ]
        try:
            daemon.start()
            found += _check_running(daemon, cut)
            daemon.clean()
            found += [f"left: {line}" for line in daemon.leftovers()]
            found += [f"left: address {path.name}" for path in daemon.root.glob("plugins/network/*/addresses/*")]
        except Exception as error:  # noqa: BLE001  # it is a finding, and the next cut is to be looked at as well
            found.append(f"{type(error).__name__}: {str(error)[:3000]}")
        finally:
            daemon.end()
    return found


def _check_running(daemon: Daemon, cut: Cut) -> list[str]:
    found = [f"the state was put aside: {path.name}" for path in daemon.root.glob("state.db.*")]
    found += [f"quarantine: {row}" for row in daemon.query("SELECT source, id, error FROM quarantine")]
    images = daemon.cri.call("ListImages")["images"]
    named = {tag for image in images for tag in image["repo_tags"]}
    found += [f"image {name} was answered for and is gone" for name in cut.answered - named]
    chains = {chain.split()[1] for chain, _ in trees_of(daemon.root)}
    for record in (json.loads(body) for (body,) in daemon.query("SELECT body FROM images")):
        blobs = {*record["manifests"], *(layer["digest"] for layer in record["layers"]), record["id"]}
        missing = [blob for blob in blobs if not (daemon.root / "content/blobs" / blob.replace(":", "/")).exists()]
        found += [f"image {record['tags']} lacks blob {blob}" for blob in missing]
        found += [f"image {record['tags']} lacks layer {chain}" for chain in set(record["chain_ids"]) - chains]
    ready = [pod["id"] for pod in daemon.cri.call("ListPodSandbox")["items"] if pod["state"] == "SANDBOX_READY"]
    runs = [one["id"] for one in daemon.cri.call("ListContainers")["containers"] if one["state"] == "CONTAINER_RUNNING"]
    found += [f"told to be ready: {ready}, to run: {runs}"] if ready or runs else []
    node = Node(daemon, Path(), RunningRegistry(""), "", daemon.directory / "logs")
    pod = node.run_pod("after")
    for image in sorted(named - {OVER}):
        said = node.output(pod, "sh", "-c", "echo it runs", image=image, name=secrets.token_hex(3))
        found += [] if said == "it runs\n" else [f"image {image} does not run: {said}"]
    return found


def _is_right(blob: Path) -> bool:
    with blob.open("rb") as file:
        return hashlib.file_digest(file, blob.parent.name).hexdigest() == blob.name


def trees_of(root: Path) -> Iterator[tuple[str, str]]:
    """Chain id and tree of every committed layer; the snapshotters' forms differ, so their name is in it."""
    for file in root.glob("plugins/snapshotter/*/snapshots/layers/*/layer.json"):
        form = file.relative_to(root).parts[2]
        try:
            chain = str(json.loads(file.read_text())["chain_id"])
        except (ValueError, KeyError):
            chain = f"unreadable {file.parent.name}"
        yield f"{form} {chain}", _tree(file.parent / "fs")


def _tree(top: Path) -> str:
    """A digest of all that is told of a tree: names, kinds, modes, owners, contents, attributes."""
    found = hashlib.sha256()
    paths = sorted(Path(directory, name) for directory, names, files in os.walk(top) for name in (*names, *files))
    for path in (top, *paths):
        status = path.lstat()
        facts = [str(path.relative_to(top)), status.st_mode, status.st_uid, status.st_gid, status.st_rdev]
        facts += [
            (name, os.getxattr(path, name, follow_symlinks=False)) for name in os.listxattr(path, follow_symlinks=False)
        ]
        if stat.S_ISREG(status.st_mode):
            facts.append(hashlib.sha256(path.read_bytes()).hexdigest())
        if stat.S_ISLNK(status.st_mode):
            facts.append(os.readlink(path))
        found.update(repr(facts).encode())
    return found.hexdigest()


def run(directory: Path, seed: int, rounds: int, cuts: int) -> tuple[int, list[str]]:
    """Lead a node's life on a disk, cut it, and check every cut; return how many there were, and what is wrong."""
    build(directory / "layouts")
    sources = f"[registries.layout]\ndriver = 'layout'\noptions = {{ directory = '{directory / 'layouts'}' }}\n"
    with network_namespace.held() as network:
        daemon = Daemon(directory / "disk", CONFIG + sources, network.prefix)
        try:
            with mounted_disk(directory / "fuse", daemon.directory, DISK_BYTES) as disk:
                cutter = Cutter(disk, directory, random.Random(seed), cuts)
                daemon.start()
                node = Node(daemon, directory / "layouts", RunningRegistry(""), "", directory / "logs")
                _pull(node, cutter, BUSYBOX)
                with cutter.at_random():
                    live(node, cutter, rounds)
                for image, handler in ((LARGE, ""), (OVER, ""), (MANY, "native")):  # so that all trees are there
                    node.call("PullImage", image={"image": image, "runtime_handler": handler})
                trees = dict(trees_of(daemon.root))
                daemon.end()
            wrong = []
            for cut in cutter.cuts:
                wrong += [f"seed {seed}, cut {cut.number}: {one}" for one in check(daemon, cut, trees)]
            return len(cutter.cuts), wrong
        finally:
            daemon.end()


def main() -> None:
    if "--here" not in sys.argv:  # a mount that another mount namespace has copied could not be taken away
        command = [sys.executable, "-m", "chaos.power", "--here", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", *command])
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--lives", type=int, default=5, help="each with another seed")
    arguments.add_argument("--rounds", type=int, default=4, help="of each life")
    arguments.add_argument("--cuts", type=int, default=20, help="of each life, at most")
    arguments.add_argument("--here", action="store_true", help="in this process's mount namespace")
    options = arguments.parse_args()
    bad = 0
    for seed in range(options.seed, options.seed + options.lives):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="crinoid-power-", dir="/var/tmp") as directory:
            cuts, wrong = run(Path(directory), seed, options.rounds, options.cuts)
        bad += len(wrong)
        print(
            f"seed {seed}: {cuts} cuts, {len(wrong)} wrong; {time.monotonic() - began:.0f} s",
            *wrong,
            sep="\n  ",
            flush=True,
        )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
