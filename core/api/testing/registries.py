"""The contract of the registry role as tests: whoever writes an image source applies them to it.

Subclass the contract, say how a driver is made, and what the source has::

    class TestMine(RegistryContract):
        @pytest.fixture
        def sample(self, host: Host) -> RegistrySample:
            return RegistrySample(reference=ImageReference.parse("example.com/app:1"), ...)

        def make_driver(self, host: Host, sample: RegistrySample) -> object:
            return MySource(MyOptions(), host)

It wants pytest and pytest-asyncio, and no root. The driver is asked only for what the sample names. Override
``make_lying_driver`` and ``make_breaking_driver``, too, where the source can lie or break: ``breaking_proxy`` stands
between a driver and a server.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from crinoid.core.api.errors import CorruptContent, NotFound, Unavailable, Unsupported
from crinoid.core.api.hooks.registry import RegistryHooks
from crinoid.core.api.host import Host
from crinoid.core.api.testing.binding import bind_hooks, cuts
from crinoid.core.api.testing.contract import Contract
from crinoid.core.api.testing.patience import patient
from crinoid.core.api.values.image import (
    BlobRequest,
    Credentials,
    Descriptor,
    ImageReference,
    Platform,
    ReferrersRequest,
    ResolvedImage,
    ResolveRequest,
    SourceStatus,
)

MAX_PIECE_BYTES = 1 << 20
_SETTLE_S = patient(5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySample:
    """What the source under test has, and has not.

    ``reference`` is a tag of an image with at least one layer of more than ``MAX_PIECE_BYTES``, so that streams have
    several pieces; ``config_digest`` is that of its configuration for ``platform``. ``absent_platform`` is one that the
    image is not for; ``None`` where the image is no index, whose platform nobody checks.
    """

    reference: ImageReference
    platform: Platform
    config_digest: str
    absent: ImageReference
    absent_platform: Platform | None = None
    credentials: Credentials | None = None


class BoundRegistry:
    """A driver behind the hooks, called as the kernel calls it: by keyword."""

    def __init__(self, driver: object) -> None:
        self._hook = bind_hooks(driver, RegistryHooks)

    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        """Resolve, and check the answer's type."""
        image = await self._hook.resolve(request=request)
        assert isinstance(image, ResolvedImage), f"resolve returned {image!r}"
        return image

    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        """Open a stream, which must have ``aclose``."""
        stream: AsyncIterator[bytes] = await self._hook.open_blob(request=request)
        return stream

    async def read(self, request: BlobRequest) -> bytes:
        """Read a stream to its end."""
        pieces = []
        async for piece in await self.open_blob(request):
            assert 0 < len(piece) <= MAX_PIECE_BYTES, f"a piece of {len(piece)} bytes"
            pieces.append(bytes(piece))
        return b"".join(pieces)

    async def status(self) -> SourceStatus:
        """Ask for the status, and check its type."""
        status = await self._hook.status()
        assert isinstance(status, SourceStatus), f"status returned {status!r}"
        return status

    async def list_referrers(self, request: ReferrersRequest) -> tuple[Descriptor, ...]:
        """List what refers to a manifest, where the driver has that hook, and check the answer's type."""
        if (answer := self._hook.list_referrers(request=request)) is None:
            return ()
        listed = await answer
        assert isinstance(listed, tuple), f"list_referrers returned {listed!r}"
        assert all(isinstance(one, Descriptor) for one in listed), f"list_referrers returned {listed!r}"
        return listed

    async def close(self) -> None:
        """Close, where the driver has that hook."""
        if (answer := self._hook.close()) is not None:
            await answer


@pytest.mark.asyncio
class RegistryContract(Contract):
    """What every image source does; ``sample`` and ``make_driver`` are the author's."""

    specification = RegistryHooks

    def make_driver(self, host: Host, sample: RegistrySample) -> object:
        """Return a driver over a source that has the sample."""
        raise NotImplementedError

    def make_lying_driver(self, host: Host, sample: RegistrySample) -> object:
        """Return a driver over a source that has something else under the digests of the sample's documents."""
        pytest.skip("no make_lying_driver: it is not tried whether this driver checks the digests of documents")

    def make_breaking_driver(self, host: Host, sample: RegistrySample) -> object:
        """Return a driver over a source that has the sample, and whose streams break, now and again."""
        pytest.skip("no make_breaking_driver: it is not tried whether this driver resumes streams")

    @pytest.fixture
    def sample(self, host: Host) -> RegistrySample:
        """Return what the source has."""
        raise NotImplementedError

    @pytest.fixture
    def driver(self, host: Host, sample: RegistrySample) -> object:
        """The driver under test."""
        return self.make_driver(host, sample)

    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        """The driver's place on the node."""
        for name in ("state", "run"):
            (tmp_path / name).mkdir()
        return Host("contract", tmp_path / "state", tmp_path / "run", logging.getLogger("contract"), "0")

    @pytest_asyncio.fixture
    async def registry(self, driver: object) -> AsyncIterator[BoundRegistry]:
        """The driver, bound."""
        bound = BoundRegistry(driver)
        yield bound
        await bound.close()

    async def test_a_tag_is_resolved_to_verified_documents(
        self, registry: BoundRegistry, sample: RegistrySample
    ) -> None:
        image = await registry.resolve(_request(sample))
        _assert_is(image.target_content, image.target)
        _assert_is(image.manifest_content, image.manifest)
        assert json.loads(image.manifest_content)["config"]["digest"] == sample.config_digest

    async def test_the_manifest_is_the_target_or_listed_by_it(
        self, registry: BoundRegistry, sample: RegistrySample
    ) -> None:
        image = await registry.resolve(_request(sample))
        listed = [entry["digest"] for entry in json.loads(image.target_content).get("manifests", ())]
        assert image.manifest.digest in (listed or [image.target.digest])

    async def test_a_digest_is_resolved_to_the_same(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        by_tag = await registry.resolve(_request(sample))
        pinned = replace(sample.reference, tag="", digest=by_tag.target.digest)
        by_digest = await registry.resolve(replace(_request(sample), reference=pinned))
        assert by_digest.target_content == by_tag.target_content
        assert by_digest.manifest.digest == by_tag.manifest.digest

    async def test_nothing_refers_to_the_sample(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        digest = (await registry.resolve(_request(sample))).target.digest
        reference = replace(sample.reference, tag="", digest=digest)
        asked = ReferrersRequest(reference, "application/vnd.crinoid.nothing", sample.credentials)
        assert await registry.list_referrers(asked) == ()

    async def test_a_digest_decides_when_there_is_a_tag_too(
        self, registry: BoundRegistry, sample: RegistrySample
    ) -> None:
        by_tag = await registry.resolve(_request(sample))
        both = replace(sample.reference, tag="no-such-tag", digest=by_tag.target.digest)
        assert (await registry.resolve(replace(_request(sample), reference=both))).target.digest == by_tag.target.digest

    async def test_an_unknown_reference_is_not_found_by_name(
        self, registry: BoundRegistry, sample: RegistrySample
    ) -> None:
        with pytest.raises(NotFound) as caught:
            await registry.resolve(replace(_request(sample), reference=sample.absent))
        assert str(sample.absent) in caught.value.message

    async def test_an_unknown_digest_is_not_found(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        absent = replace(sample.reference, tag="", digest=_digest(b"nobody has this"))
        with pytest.raises(NotFound):
            await registry.resolve(replace(_request(sample), reference=absent))

    async def test_another_platform_is_unsupported(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        if sample.absent_platform is None:
            pytest.skip("the sample is no index")
        with pytest.raises(Unsupported) as caught:
            await registry.resolve(replace(_request(sample), platform=sample.absent_platform))
        assert str(sample.absent_platform) in caught.value.message
        assert sample.platform.architecture in caught.value.message, "the message names the platforms there are"

    async def test_every_blob_is_streamed_whole(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        requests = await _blobs(registry, sample)
        assert max(request.blob.size for request in requests) > MAX_PIECE_BYTES, "the sample's layers are too small"
        for request in requests:
            _assert_is(await registry.read(request), request.blob)

    async def test_streams_run_at_once(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        requests = (await _blobs(registry, sample)) * 3
        contents = await asyncio.gather(*(registry.read(request) for request in requests))
        for content, request in zip(contents, requests, strict=True):
            _assert_is(content, request.blob)

    @pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
    async def test_a_stream_begins_at_its_offset(
        self, registry: BoundRegistry, sample: RegistrySample, part: float
    ) -> None:
        request = await _largest(registry, sample)
        whole = await registry.read(request)
        offset = int(request.blob.size * part)
        read, wanted = await registry.read(replace(request, offset=offset)), whole[offset:]
        assert (len(read), _digest(read)) == (len(wanted), _digest(wanted))  # pytest would compare line by line

    async def test_a_stream_that_is_left_early_hinders_nobody(
        self, registry: BoundRegistry, sample: RegistrySample
    ) -> None:
        request = await _largest(registry, sample)
        for _ in range(20):
            stream: Any = await registry.open_blob(request)
            await anext(stream)
            await stream.aclose()
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        _assert_is(await registry.read(request), request.blob)

    async def test_an_unknown_blob_is_not_found(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        absent = Descriptor("application/octet-stream", _digest(b"no such blob"), 12)
        with pytest.raises(NotFound):
            await registry.read(BlobRequest(sample.reference, absent, sample.credentials))

    async def test_a_blob_is_never_longer_than_it_says(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        request = await _largest(registry, sample)
        short = replace(request, blob=replace(request.blob, size=request.blob.size - 7))
        try:
            content = await registry.read(short)
        except (CorruptContent, Unavailable):
            return  # the source knows better, and says so
        assert len(content) <= short.blob.size

    async def test_the_status_is_ready(self, registry: BoundRegistry) -> None:
        assert (await registry.status()).ready

    async def test_documents_that_are_not_of_their_digest_are_corrupt(
        self, registry: BoundRegistry, host: Host, sample: RegistrySample
    ) -> None:
        image = await registry.resolve(_request(sample))
        lying = BoundRegistry(self.make_lying_driver(host, sample))
        pinned = replace(_request(sample), reference=replace(sample.reference, digest=image.target.digest))
        with pytest.raises(CorruptContent):
            await lying.resolve(pinned)
        await lying.close()

    async def test_a_stream_that_breaks_is_resumed(self, host: Host, sample: RegistrySample) -> None:
        registry = BoundRegistry(self.make_breaking_driver(host, sample))
        request = await _largest(registry, sample)
        _assert_is(await registry.read(request), request.blob)
        await registry.close()

    async def test_what_is_cancelled_hinders_nobody(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        """At every await of a resolution and of a stream, as when a client gives up a pull."""
        for cut in cuts():
            await cut(registry.resolve(_request(sample)))
        request = await _largest(registry, sample)
        for cut in cuts():
            await cut(registry.read(request))
        _assert_is(await registry.read(request), request.blob)

    async def test_closing_leaves_nothing_open(self, host: Host, sample: RegistrySample) -> None:
        tasks, descriptors = asyncio.all_tasks(), _descriptors()
        registry = BoundRegistry(self.make_driver(host, sample))
        request = await _largest(registry, sample)
        await registry.read(request)
        stream: Any = await registry.open_blob(request)
        await anext(stream)
        await stream.aclose()
        await registry.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while asyncio.all_tasks() - tasks or _descriptors() - descriptors:  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.01)
        assert (asyncio.all_tasks() - tasks, _descriptors() - descriptors) == (set(), set())

    async def test_closing_twice_is_closing_once(self, registry: BoundRegistry, sample: RegistrySample) -> None:
        await registry.resolve(_request(sample))
        await registry.close()
        await registry.close()


@contextlib.contextmanager
def breaking_proxy(address: tuple[str, int], after_bytes: int) -> Iterator[tuple[str, int]]:
    """Stand between a driver and a server at ``address``: yield where to connect instead.

    Each connection is cut once the server has sent so many bytes by it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, address, after_bytes), daemon=True)
        accepting.start()
        yield listener.getsockname()[:2]
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _accept(listener: socket.socket, address: tuple[str, int], after_bytes: int) -> None:
    with contextlib.suppress(OSError):  # the listener is shut down
        while True:
            client, server = listener.accept()[0], socket.create_connection(address)
            for source, target, most in ((client, server, None), (server, client, after_bytes)):
                threading.Thread(target=_pass_on, args=(source, target, most), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, most_bytes: int | None) -> None:
    left = most_bytes
    with contextlib.suppress(OSError):
        while (left is None or left > 0) and (data := source.recv(1 << 16)):
            target.sendall(data[:left])
            left = None if left is None else left - len(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _descriptors() -> set[tuple[str, str]]:
    """Return number and target of what this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # numbers, not paths
        with contextlib.suppress(OSError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))  # noqa: PTH115
    return {one for one in found if not one[1].startswith(("anon_inode:", "/proc"))}


def _request(sample: RegistrySample) -> ResolveRequest:
    return ResolveRequest(sample.reference, sample.platform, sample.credentials)


async def _blobs(registry: BoundRegistry, sample: RegistrySample) -> list[BlobRequest]:
    """Return requests for the configuration and every layer."""
    manifest = json.loads((await registry.resolve(_request(sample))).manifest_content)
    entries = [manifest["config"], *manifest["layers"]]
    blobs = [Descriptor(entry["mediaType"], entry["digest"], entry["size"]) for entry in entries]
    return [BlobRequest(sample.reference, blob, sample.credentials) for blob in blobs]


async def _largest(registry: BoundRegistry, sample: RegistrySample) -> BlobRequest:
    return max(await _blobs(registry, sample), key=lambda request: request.blob.size)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _assert_is(content: bytes, descriptor: Descriptor) -> None:
    algorithm = descriptor.digest.partition(":")[0]
    assert f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}" == descriptor.digest
    assert len(content) == descriptor.size
