"""The contract of the registry role, applied to this driver over a web server of static files."""

import functools
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from crinoid_registry_http import HttpOptions, HttpRegistry

from crinoid.core.api.errors import NotFound, Unavailable
from crinoid.core.api.host import Host
from crinoid.core.api.testing.registries import BoundRegistry, RegistryContract, RegistrySample, breaking_proxy
from crinoid.core.api.values.image import BlobRequest, Descriptor, ImageReference, Platform, ResolveRequest

REFERENCE = ImageReference.parse("registry.test/team/app:1")
MANIFEST, INDEX = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"


class Files(http.server.SimpleHTTPRequestHandler):
    """The standard library's server, which knows no ranges, quiet."""

    def log_message(self, *_: object) -> None:
        pass


class Ranges(Files):
    """A server that has ranges, as nginx and buckets do."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()[begin:]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def add(layout: Path, media_type: str, content: bytes) -> dict[str, object]:
    """Put a blob into a layout and return its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def make_layout(layout: Path) -> str:
    """Make an index of one image with a layer of two megabytes; return the digest of its configuration."""
    config = add(layout, "application/vnd.oci.image.config.v1+json", b'{"architecture": "amd64", "os": "linux"}')
    layer = add(layout, "application/vnd.oci.image.layer.v1.tar", os.urandom(2 << 20))
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    manifest = add(layout, MANIFEST, json.dumps(document).encode())
    entry = {**manifest, "platform": {"os": "linux", "architecture": "amd64"}}
    index = add(layout, INDEX, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode())
    named = {**index, "annotations": {"org.opencontainers.image.ref.name": REFERENCE.tag}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    return str(config["digest"])


@contextmanager
def serving(kind: type[Files], directory: Path) -> Iterator[tuple[str, int]]:
    """Serve a directory, on a port that the kernel chooses."""
    handler = functools.partial(kind, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield "127.0.0.1", server.server_port
        server.shutdown()
        thread.join()


class TestHttp(RegistryContract):
    @pytest.fixture(autouse=True)
    def server(self, host: Host) -> Iterator[None]:
        """Serve the state directory."""
        with ExitStack() as self.at_end:
            self.address = self.at_end.enter_context(serving(Ranges, host.state_dir))
            yield

    @pytest.fixture
    def sample(self, host: Host) -> RegistrySample:
        return RegistrySample(
            reference=REFERENCE,
            platform=Platform("linux", "amd64"),
            config_digest=make_layout(host.state_dir / REFERENCE.name),
            absent=ImageReference.parse("registry.test/absent:1"),
            absent_platform=Platform("linux", "s390x"),
        )

    def over(self, host: Host, address: tuple[str, int]) -> HttpRegistry:
        return HttpRegistry(HttpOptions.model_validate({"url": f"http://{address[0]}:{address[1]}/"}), host)

    def make_driver(self, host: Host, sample: RegistrySample) -> object:
        return self.over(host, self.address)

    def make_lying_driver(self, host: Host, sample: RegistrySample) -> object:
        for blob in (host.state_dir / REFERENCE.name / "blobs/sha256").iterdir():
            blob.write_bytes(blob.read_bytes().replace(b"linux", b"xunil"))
        return self.make_driver(host, sample)

    def make_breaking_driver(self, host: Host, sample: RegistrySample) -> object:
        return self.over(host, self.at_end.enter_context(breaking_proxy(self.address, 3 << 19)))

    async def test_another_tag_of_the_repository_is_named(
        self, registry: BoundRegistry, sample: RegistrySample
    ) -> None:
        with pytest.raises(NotFound, match=r"registry\.test/team/app/index\.json does not name the tag 2"):
            other = ImageReference.parse("registry.test/team/app:2")
            await registry.resolve(ResolveRequest(other, sample.platform))

    async def test_a_server_that_is_not_there(self, host: Host, sample: RegistrySample) -> None:
        registry = BoundRegistry(self.over(host, ("127.0.0.1", 1)))
        with pytest.raises(Unavailable, match="can't be asked for"):
            await registry.resolve(ResolveRequest(REFERENCE, sample.platform))
        await registry.close()

    async def test_a_server_without_ranges(self, host: Host, sample: RegistrySample) -> None:
        registry = BoundRegistry(self.over(host, self.at_end.enter_context(serving(Files, host.state_dir))))
        image = await registry.resolve(ResolveRequest(REFERENCE, sample.platform))
        layer = json.loads(image.manifest_content)["layers"][0]
        blob = Descriptor(layer["mediaType"], layer["digest"], layer["size"])
        whole, rest = [await registry.read(BlobRequest(REFERENCE, blob, offset=offset)) for offset in (0, 1 << 20)]
        assert (len(whole), rest == whole[1 << 20 :]) == (2 << 20, True)
        await registry.close()

    async def test_the_password_is_in_no_message(self, host: Host, sample: RegistrySample) -> None:
        options = HttpOptions.model_validate({"url": f"http://me:secret@127.0.0.1:{self.address[1]}/"})
        registry = BoundRegistry(HttpRegistry(options, host))
        with pytest.raises(NotFound) as caught:
            await registry.resolve(ResolveRequest(sample.absent, sample.platform))
        assert "secret" not in caught.value.message
        await registry.close()
