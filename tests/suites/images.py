"""Images under the names that critest and Kubernetes' suites pull, without their registries: from Debian's packages.

``python -m suites.images REGISTRY`` fills the storage of a ``docker-registry`` with critest's, and prints the digest
that its ``test-image-digest`` has here; with ``--kubernetes DIR --programs DIR``, the source and what its test/images
builds by Go, also with those of e2e_node and e2e. What stands behind a name does what the tests ask of it; it is not
the image of that name.
"""

import argparse
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.images import BuiltImage, Entry, ImageConfig, build_image, find_busybox, make_layer
from support.registry import running_registry

E2E = "e2e-test-images"
CRI_TOOLS = "k8s-staging-cri-tools"
PACKAGES = (
    "bash,bind9-dnsutils,curl,iperf,iproute2,iputils-ping,netcat-openbsd,nginx-light,perl,procps,stress,util-linux"
)
# Of the users of the official busybox image those that the suites ask for.
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\nnobody:x:65534:65534::/:/bin/false\n"
_GROUP = b"root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"
_NGINX = ("nginx", "-g", "daemon off;")
_IN_MOUNTS = ("unshare", "--mount", "--propagation", "private")  # debootstrap leaves some behind
_NOT_NEEDED = (
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./var/cache/apt",
    "./var/lib/apt",
    "./debootstrap",
)


@dataclass
class Images:
    """An OCI layout that grows, and the names below which its images are pushed."""

    layout: Path
    names: list[str] = field(default_factory=list)

    def add(self, names: Sequence[str], layers: Sequence[bytes], **config: object) -> BuiltImage:
        """Add an image under names such as ``pause:3.9``."""
        for name in names:
            made = build_image(self.layout, name, layers, ImageConfig(**config), compression="zstd")  # type: ignore[arg-type]
            self.names.append(name)
        return made


def add_common(images: Images, debian: bytes) -> None:
    """Add what all of the suites use."""
    pause = make_layer([Entry(path="pause", content=Path("/usr/bin/catatonit").read_bytes(), mode=0o755)])
    pauses = [f"pause:{tag}" for tag in ("3.9", "3.10", "3.10.1", "3.10.2")]
    images.add(pauses, [pause], entrypoint=("/pause", "-P"), cmd=())
    images.add([f"{E2E}/busybox:{tag}" for tag in ("1.29-2", "1.36.1-1", "1.37.0-1")], [busybox(), _date_of(debian)])
    nginx = [f"{E2E}/nginx:{tag}" for tag in ("1.14-2", "1.15-4", "1.27-0")]
    images.add(nginx, [debian, _logs_of_nginx()], cmd=_NGINX)


def add_of_kubernetes(images: Images, debian: bytes, kubernetes: Path, programs: Path) -> None:
    """Add what e2e_node and e2e use besides."""

    def program(name: str, path: str = "", mode: int = 0o755) -> Entry:
        return Entry(path=path or name, content=(programs / name).read_bytes(), mode=mode)

    agnhost = make_layer(
        [
            program("agnhost"),
            Entry(path="agnhost-2", kind="symlink", target="agnhost"),
            Entry(path="uploads", kind="directory", mode=0o755),
            *(
                Entry(path=name, content=(kubernetes / "test/images/agnhost/porter" / name).read_bytes())
                for name in ("localhost.crt", "localhost.key")
            ),
            *_users("user-defined-in-image"),
        ]
    )
    pauses = {"entrypoint": ("/agnhost",), "cmd": ("pause",)}
    images.add([f"{E2E}/agnhost:{tag}" for tag in ("2.55", "2.63.0")], [debian, agnhost], **pauses)
    for name, picture in (("kitten", "kitten.jpg"), ("nautilus", "nautilus.jpg")):
        pages = kubernetes / "test/images" / name / "html"
        web = make_layer([Entry(path=one, content=(pages / one).read_bytes()) for one in (picture, "data.json")])
        images.add([f"{E2E}/{name}:1.8"], [debian, agnhost, web], entrypoint=("/agnhost",), cmd=("test-webserver",))
    set_id = make_layer([program("nnp", "usr/local/bin/nnp", 0o6755)])
    images.add([f"{E2E}/nonewprivs:{tag}" for tag in ("1.3", "1.4")], [debian, set_id], cmd=("nnp",))
    images.add([f"{E2E}/nonroot:1.5"], [debian], user="1234")
    for name in ("perl:5.26", "ipc-utils:1.4", "glibc-dns-testing:2.0.0"):
        images.add([f"{E2E}/{name}"], [debian])
    regression = "regression-issue-74839"
    images.add([f"{E2E}/{regression}:1.5"], [make_layer([program(regression)])], entrypoint=(f"/{regression}",), cmd=())
    plugin = make_layer([program("sampledeviceplugin")])
    started = ("/sampledeviceplugin", "-alsologtostderr")
    images.add([f"{E2E}/sample-device-plugin:1.7"], [debian, plugin], entrypoint=started, cmd=())
    consumer = make_layer([program("consumer"), program("consume-cpu")])
    images.add([f"{E2E}/resource-consumer:1.14"], [debian, consumer], entrypoint=("/consumer",), cmd=())


def add_of_cri_tools(images: Images, debian: bytes) -> str:
    """Add critest's; return the digest of the one that it pulls by its digest."""
    base = busybox()
    serves = "echo httpd; echo It works >/var/www/index.html; exec httpd -f -p 80 -h /var/www"
    images.add([f"{E2E}/httpd:2.4.39-4"], [base], cmd=("sh", "-c", serves))
    for name, user in (
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ):
        images.add([f"{CRI_TOOLS}/test-image-user-{name}:latest"], [base], user=user)
    groups = make_layer([*_users("default-user")])
    images.add([f"{CRI_TOOLS}/test-image-predefined-group:latest"], [base, groups], user="1000")
    site = b"server { listen 12003; location / { root /var/www/html; index index.nginx-debian.html; } }\n"
    files = [Entry(path="etc/nginx/sites-enabled/default", content=site)]
    images.add([f"{CRI_TOOLS}/hostnet-nginx-amd64:latest"], [debian, _logs_of_nginx(), make_layer(files)], cmd=_NGINX)
    for name in (
        "test-image-1:latest",
        "test-image-2:latest",
        "test-image-3:latest",
        "test-image-latest:latest",
        "test-image-tag:test",
        "test-image-tag:all",
    ):
        images.add([f"{CRI_TOOLS}/{name}"], [base, make_layer([Entry(path=name.replace(":", "-"))])])
    same = make_layer([Entry(path="same-image")])
    images.add([f"{CRI_TOOLS}/test-image-tags:{tag}" for tag in "123"], [base, same])
    # Of a layer that never changes, nor its digest, which critest has in its source.
    constant = make_layer([Entry(path="test-image-digest")])
    return images.add([f"{CRI_TOOLS}/test-image-digest:latest"], [constant]).manifest.digest


def busybox() -> bytes:
    """Return a layer with Debian's static busybox under all its names."""
    listed = subprocess.run([find_busybox(), "--list"], check=True, capture_output=True, text=True).stdout.split()
    others = [name for name in listed if name != "busybox"]
    directories = ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/bin", "var", "var/www")
    return make_layer(
        [
            *(Entry(path=name, kind="directory", mode=0o755) for name in directories),
            Entry(path="tmp", kind="directory", mode=0o1777),
            Entry(path="bin/busybox", content=find_busybox().read_bytes(), mode=0o755),
            # What Debian's has not, for what the suites ask of it.
            Entry(path="bin/ipcs", content=b"#!/bin/sh\nexec cat /proc/sysvipc/shm\n", mode=0o755),
            Entry(path="bin/nmeter", content=b"#!/bin/sh\nexec date -u +%T.%3N\n", mode=0o755),
            Entry(path="bin/pgrep", content=b'#!/bin/sh\nexec pidof "$1"\n', mode=0o755),
            # Hard links, as in busybox' own image: masking one of them leaves the others.
            *(Entry(path=f"bin/{name}", kind="hardlink", target="bin/busybox") for name in others),
            Entry(path="etc/passwd", content=_PASSWD),
            Entry(path="etc/group", content=_GROUP),
        ]
    )


def _date_of(debian: bytes) -> bytes:
    """A ``date`` that knows nanoseconds, by which Kubernetes' tests sort what their containers did."""
    with tarfile.open(fileobj=io.BytesIO(debian)) as archive:

        def read(path: str) -> bytes:
            found = archive.extractfile(f"./{path}")
            assert found is not None
            return found.read()

        loader, library = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6"
        return make_layer(
            [
                Entry(path="lib64/ld-linux-x86-64.so.2", content=read(f"usr/{loader}"), mode=0o755),
                Entry(path=library, content=read(f"usr/{library}"), mode=0o755),
                Entry(path="bin/date", content=read("usr/bin/date"), mode=0o755),
            ]
        )


def _users(name: str) -> Iterator[Entry]:
    """The user 1000, a member of a group that only the image knows."""
    yield Entry(path="etc/passwd", content=_PASSWD + f"{name}:x:1000:1000::/home/{name}:/bin/sh\n".encode())
    yield Entry(path="etc/group", content=_GROUP + f"{name}:x:1000:\ngroup-defined-in-image:x:50000:{name}\n".encode())


def _logs_of_nginx() -> bytes:
    """Logs as nginx' own image has them, and a grep that says nothing about binary files, as that image's."""
    return make_layer(
        [
            Entry(path="usr/bin/grep", kind="symlink", target="busybox"),
            Entry(path="usr/bin/busybox", content=find_busybox().read_bytes(), mode=0o755),
            Entry(path="var/log/nginx/access.log", kind="symlink", target="/dev/stdout"),
            Entry(path="var/log/nginx/error.log", kind="symlink", target="/dev/stderr"),
        ]
    )


def debian(directory: Path) -> bytes:
    """Return a layer with a small Debian; it is made in the directory once, by ``debootstrap``."""
    archive = directory / "debian.tar"
    if not archive.exists():
        root = directory / "debian"
        shutil.rmtree(root, ignore_errors=True)  # what an attempt before left
        subprocess.run(
            [*_IN_MOUNTS, "debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root], check=True
        )
        options = ["--sort=name", "--mtime=@0", "--numeric-owner", *(f"--exclude={path}" for path in _NOT_NEEDED)]
        part = directory / "debian.tar.part"
        subprocess.run(["tar", *options, "-C", root, "-cf", part, "."], check=True)
        part.rename(archive)
    return archive.read_bytes()


def main() -> None:
    """Build all, and push them into the registry's storage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("registry", type=Path)
    parser.add_argument("--kubernetes", type=Path)
    parser.add_argument("--programs", type=Path)
    given = parser.parse_args()
    given.registry.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.registry) as layout, running_registry(given.registry) as registry:
        images, base = Images(Path(layout)), debian(given.registry)
        add_common(images, base)
        digest = add_of_cri_tools(images, base)
        if given.kubernetes:
            add_of_kubernetes(images, base, given.kubernetes, given.programs)
        for name in images.names:
            registry.push(images.layout, name, name)
    print(digest)


if __name__ == "__main__":
    main()
