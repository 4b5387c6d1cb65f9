"""The contract of the registry role, applied to our own drivers.

``distribution`` runs against Debian's ``docker-registry`` on loopback; ``layout`` reads what skopeo and umoci wrote.
"""

import contextlib
import json
import logging
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crinoid.core.api.host import Host
from crinoid.core.api.testing.registries import BoundRegistry, RegistryContract, RegistrySample, breaking_proxy
from crinoid.core.api.values.image import Credentials, ImageReference, Platform, ResolveRequest
from crinoid.plugins.registries.distribution import DistributionRegistry
from crinoid.plugins.registries.layout import LayoutRegistry
from support.images import (
    HOST_ARCHITECTURE,
    BuiltImage,
    Entry,
    ImageConfig,
    build_image,
    build_index,
    busybox_layer,
    make_layer,
    read_blob,
    read_named,
)
from support.patience import patient
from support.registry import Certificates, RunningRegistry, make_certificates, running_registry

NAME = "registry.test/app:1"
HERE = Platform("linux", HOST_ARCHITECTURE)
NOWHERE = Platform("linux", "s390x")
LONG = make_layer([Entry(path="long", content=random.Random(1).randbytes(5_000_000))])  # no secret
ABSENT = ImageReference.parse("127.0.0.1:5000/absent:1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuiltImage]:
    """A layout with an index of two platforms; the one for this machine has two layers."""
    layout = tmp_path_factory.mktemp("source") / "layout"
    layers = [busybox_layer(), make_layer([Entry(path="hello", content=b"hello\n")])]
    here = build_image(layout, "", layers, ImageConfig(user="alice"))
    there = build_image(layout, "", [make_layer([Entry(path="there")])], ImageConfig(architecture="ppc64le"))
    build_index(layout, NAME, [there, here])
    build_image(layout, "single:1", layers, ImageConfig(user="alice"))
    build_image(layout, "docker:1", layers, ImageConfig(user="alice"), media="docker")
    build_image(layout, "long:1", [LONG], ImageConfig(user="bob"))
    return layout, here


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=patient(60))


@pytest.fixture(scope="module")
def open_registry(
    tmp_path_factory: pytest.TempPathFactory, source: tuple[Path, BuiltImage]
) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push(source[0], NAME, "index:1")
        registry.push(source[0], "docker:1", "docker:1")
        registry.push(source[0], "long:1", "long:1")
        yield registry


def find_config(layout: Path, reference: str) -> str:
    """Return the digest of the configuration of an image of one platform."""
    document = json.loads(read_blob(layout, read_named(layout, reference).digest))
    return str(document["config"]["digest"])


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each class keeps what it wrote once."""
    return tmp_path_factory.mktemp("directories")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def closed_registry(
    tmp_path_factory: pytest.TempPathFactory, source: tuple[Path, BuiltImage], certificates: Certificates
) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry"), {"alice": "s3cret"}, certificates) as registry:
        registry.push(source[0], NAME, "index:1")
        yield registry


class Liar(BaseHTTPRequestHandler):
    """A registry that has one document, under every name and digest."""

    def do_GET(self) -> None:
        content = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.oci.image.index.v1+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815  # the library's name

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class TestDistribution(RegistryContract):
    """An index, by plain http."""

    @pytest.fixture(autouse=True)
    def ending(self) -> Iterator[contextlib.ExitStack]:
        with contextlib.ExitStack() as self.at_end:
            yield self.at_end

    def make_lying_driver(self, host: Host, sample: RegistrySample) -> object:
        server = self.at_end.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Liar))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.at_end.callback(server.shutdown)
        return self.over(host, sample, f"http://127.0.0.1:{server.server_port}")

    def make_breaking_driver(self, host: Host, sample: RegistrySample) -> object:
        """Through a proxy that cuts each connection after 3 MB, of 5."""
        name, _, port = sample.reference.registry.partition(":")
        proxy = self.at_end.enter_context(breaking_proxy((name, int(port)), 3 << 20))
        return self.over(host, sample, f"http://127.0.0.1:{proxy[1]}")

    def over(self, host: Host, sample: RegistrySample, server: str) -> DistributionRegistry:
        """Make a driver that asks another server in the place of the sample's."""
        directory = host.state_dir / "others.d" / sample.reference.registry
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(f'server = "{server}"\n')
        options = DistributionRegistry.Config(config_paths=(directory.parent,), docker_configs=())
        return DistributionRegistry(options, host)

    @pytest.fixture
    def sample(self, open_registry: RunningRegistry, source: tuple[Path, BuiltImage]) -> RegistrySample:
        _, image = source
        reference = ImageReference.parse(f"{open_registry.host}/index:1")
        absent = ImageReference.parse(f"{open_registry.host}/absent:1")
        return RegistrySample(
            reference=reference,
            platform=HERE,
            config_digest=image.config.digest,
            absent=absent,
            absent_platform=NOWHERE,
        )

    def make_driver(self, host: Host, sample: RegistrySample) -> object:
        options = DistributionRegistry.Config(
            plain_http=(sample.reference.registry,), config_paths=(), docker_configs=()
        )
        return DistributionRegistry(options, host)


class TestDistributionRanges(TestDistribution):
    """A layer of several ranges, each of which may have a connection of its own."""

    @pytest.fixture
    def sample(self, open_registry: RunningRegistry, source: tuple[Path, BuiltImage]) -> RegistrySample:
        return RegistrySample(
            reference=ImageReference.parse(f"{open_registry.host}/long:1"),
            platform=HERE,
            config_digest=find_config(source[0], "long:1"),
            absent=ImageReference.parse(f"{open_registry.host}/long:absent"),
        )

    def make_driver(self, host: Host, sample: RegistrySample) -> object:
        options = DistributionRegistry.Config(
            plain_http=(sample.reference.registry,),
            config_paths=(),
            docker_configs=(),
            connections_per_blob=3,
            range_bytes=1 << 20,
        )
        return DistributionRegistry(options, host)


class TestDistributionDocker(TestDistribution):
    """A Docker manifest, which is no index."""

    @pytest.fixture
    def sample(self, open_registry: RunningRegistry, source: tuple[Path, BuiltImage]) -> RegistrySample:
        _, image = source
        return RegistrySample(
            reference=ImageReference.parse(f"{open_registry.host}/docker:1"),
            platform=HERE,
            config_digest=image.config.digest,
            absent=ImageReference.parse(f"{open_registry.host}/docker:absent"),
        )


class TestDistributionTls(TestDistribution):
    """A registry with a private authority, which wants a user and a password."""

    make_lying_driver = RegistryContract.make_lying_driver  # tried by plain http
    make_breaking_driver = RegistryContract.make_breaking_driver

    @pytest.fixture
    def sample(
        self, closed_registry: RunningRegistry, source: tuple[Path, BuiltImage], certificates: Certificates, host: Host
    ) -> RegistrySample:
        _, image = source
        directory = host.state_dir / "certs.d" / closed_registry.host
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(f'ca = "{certificates.ca}"\n')
        return RegistrySample(
            reference=ImageReference.parse(f"{closed_registry.host}/index:1"),
            platform=HERE,
            config_digest=image.config.digest,
            absent=ImageReference.parse(f"{closed_registry.host}/absent:1"),
            absent_platform=NOWHERE,
            credentials=Credentials("alice", "s3cret"),
        )

    def make_driver(self, host: Host, sample: RegistrySample) -> object:
        options = DistributionRegistry.Config(config_paths=(host.state_dir / "certs.d",), docker_configs=())
        return DistributionRegistry(options, host)


class LayoutContract(RegistryContract):
    """The sample is put into the driver's directory by ``put``."""

    reference = NAME
    absent_platform: Platform | None = NOWHERE

    def put(self, layout: Path, directory: Path) -> None:
        raise NotImplementedError

    @pytest.fixture
    def directory(self, source: tuple[Path, BuiltImage], directories: Path) -> Path:
        directory = directories / type(self).__name__
        if not directory.exists():
            directory.mkdir()
            self.put(source[0], directory)
        return directory

    @pytest.fixture
    def sample(self, host: Host, source: tuple[Path, BuiltImage], directory: Path) -> RegistrySample:
        _, image = source
        (host.state_dir / "layouts").symlink_to(directory)
        return RegistrySample(
            reference=ImageReference.parse(self.reference),
            platform=HERE,
            config_digest=image.config.digest,
            absent=ABSENT,
            absent_platform=self.absent_platform,
        )

    def make_driver(self, host: Host, sample: RegistrySample) -> object:
        return LayoutRegistry(LayoutRegistry.Config(directory=host.state_dir / "layouts"), host)


class TestLayoutDirectory(LayoutContract):
    """A directory that skopeo wrote, with both platforms."""

    def put(self, layout: Path, directory: Path) -> None:
        run("skopeo", "copy", "-q", "--all", f"oci:{layout}:{NAME}", f"oci:{directory}/copied:{NAME}")


class TestLayoutItself(LayoutContract):
    """The driver's directory is the layout."""

    def make_lying_driver(self, host: Host, sample: RegistrySample) -> object:
        lies = host.state_dir / "lies"
        shutil.copytree(host.state_dir / "layouts", lies)
        digest = read_named(lies, self.reference).digest
        blob = lies / "blobs" / digest.replace(":", "/")
        blob.write_bytes(blob.read_bytes().replace(b"linux", b"xunil"))
        return LayoutRegistry(LayoutRegistry.Config(directory=lies), host)

    def put(self, layout: Path, directory: Path) -> None:
        shutil.copytree(layout, directory, dirs_exist_ok=True)


class TestOciArchive(LayoutContract):
    """An archive that skopeo wrote."""

    def put(self, layout: Path, directory: Path) -> None:
        run("skopeo", "copy", "-q", "--all", f"oci:{layout}:{NAME}", f"oci-archive:{directory}/app.tar:{NAME}")


class TestDockerArchive(LayoutContract):
    """What ``docker save`` writes, by skopeo; the layers are plain tars in it, the configuration is the same."""

    reference = "registry.test/saved:2"
    absent_platform = None

    def put(self, layout: Path, directory: Path) -> None:
        target = f"docker-archive:{directory}/saved.tar:{self.reference}"
        run("skopeo", "copy", "-q", f"oci:{layout}:single:1", target)


class TestUmociTag(LayoutContract):
    """umoci names an image by a mere tag; the directory's name is the repository then."""

    reference = "app:v2"
    absent_platform = None

    def put(self, layout: Path, directory: Path) -> None:
        run("skopeo", "copy", "-q", f"oci:{layout}:single:1", f"oci:{directory}/app:v1")
        run("umoci", "tag", "--image", f"{directory}/app:v1", "v2")


async def test_the_same_image_has_the_same_id_from_every_source(
    source: tuple[Path, BuiltImage], open_registry: RunningRegistry, tmp_path: Path
) -> None:
    layout, _ = source
    host = Host("both", tmp_path, tmp_path, logging.getLogger("both"))
    reference = ImageReference.parse(f"{open_registry.host}/index:1")
    options = DistributionRegistry.Config(plain_http=(open_registry.host,), docker_configs=())
    remote = BoundRegistry(DistributionRegistry(options, host))
    local = BoundRegistry(LayoutRegistry(LayoutRegistry.Config(directory=layout), host))
    pulled = await remote.resolve(ResolveRequest(reference, HERE))
    found = await local.resolve(ResolveRequest(ImageReference.parse(NAME), HERE))
    await remote.close()
    assert (pulled.target.digest, pulled.manifest_content) == (found.target.digest, found.manifest_content)
