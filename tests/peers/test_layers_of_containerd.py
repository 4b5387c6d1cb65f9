"""The rules of ``support.layer_model``, which our snapshotters are compared with, are containerd's: where Debian's
containerd is at hand, it unpacks the same layers with its overlay snapshotter (``make test-peers``)."""

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.layer_entries import KINDS, TARGETS, Entry, build, modelled, seen
from support.layer_model import Refused, Stack
from support.layer_model import described as shown_by
from support.patience import patient

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="containerd needs root"),
    pytest.mark.skipif(not shutil.which("containerd") or not shutil.which("ctr"), reason="no containerd here"),
]

_KINDS = [kind for kind in KINDS if kind != "nothing"]  # its snapshotters disagree on devices 0:0
_LAYER, _MANIFEST = "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"


@contextmanager
def containerd(base: Path) -> Iterator[str]:
    """Run a containerd without its CRI; give the address of its socket."""
    address = str(base / "s")
    (base / "config.toml").write_text(
        f'version = 2\nroot = "{base}/root"\nstate = "{base}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{address}"\n[ttrpc]\naddress = "{address}.ttrpc"\n'
    )
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(["containerd", "-c", base / "config.toml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + patient(30)
        while subprocess.run(["ctr", "-a", address, "version"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (base / "log").read_text()[-2000:]
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(patient(30))


def archive(layers: list[bytes], name: str) -> bytes:
    """An image as an archive of an OCI layout."""
    blobs = {digest(layer): layer for layer in layers}

    def keep(document: object) -> tuple[str, int]:
        data = json.dumps(document).encode()
        blobs[digest(data)] = data
        return digest(data), len(data)

    rootfs = {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}
    config = descriptor(_CONFIG, *keep({"architecture": "amd64", "os": "linux", "rootfs": rootfs}))
    descriptors = [descriptor(_LAYER, digest(layer), len(layer)) for layer in layers]
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": descriptors}
    named = {**descriptor(_MANIFEST, *keep(manifest)), "annotations": {"io.containerd.image.name": name}}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    files |= {f"blobs/{one.replace(':', '/')}": data for one, data in blobs.items()}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def shown(address: str, layers: list[bytes], mounted: Path) -> dict[str, object] | None:
    """What containerd shows of an image; None where it refuses it."""
    name = f"docker.io/library/layers:{digest(b''.join(layers))[7:27]}"
    imported = subprocess.run(
        ["ctr", "-a", address, "image", "import", "-"], input=archive(layers, name), capture_output=True, check=False
    )
    if imported.returncode:
        return None
    mounted.mkdir()
    command = ["ctr", "-a", address, "image", "mount", name, str(mounted)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return None  # as is known when the image is unpacked, which import leaves to the mount
    try:
        return seen(mounted, passes_over_idle_whiteouts=True)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def drawn(seed: int) -> list[list[Entry]]:
    one = random.Random(seed)

    def path() -> list[str]:
        return [one.choice("abc") for _ in range(one.randint(1, 3))]

    def entry() -> Entry:
        return one.choice(_KINDS), path(), one.choice(TARGETS), path()

    return [[entry() for _ in range(one.randint(1, 4))] for _ in range(one.randint(2, 3))]


def test_the_model_says_what_containerd_shows(tmp_path: Path) -> None:
    """Left out: layers that containerd refuses, and those that hide what they have, on which its snapshotters disagree
    (the lowest layer it unpacks as ``native`` does); and looks that depend on how its layers were cut."""
    compared = 0
    with containerd(tmp_path) as address:
        for seed in range(250):
            layers = drawn(seed)
            model = Stack()
            try:
                for number, entries in enumerate(layers):
                    model.put(modelled(entries, number))
            except Refused:
                continue
            found = shown(
                address, [build(entries, number) for number, entries in enumerate(layers)], tmp_path / str(seed)
            )
            if found is None or model.is_disputed:
                continue
            compared += 1
            assert comparable(found, model) == comparable(shown_by(model.root), model), (seed, layers)
    assert compared > 60


def comparable(shown: dict[str, object], model: Stack) -> dict[str, object]:
    return {path: facts if path not in model.doubtful else "a directory" for path, facts in shown.items()}
