"""Blobs that are read while they are written: who may, what is told, and when it ends."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import CorruptContent, CrinoidError, Unavailable
from crinoid.core.api.values.image import BlobRequest, Descriptor, ImageReference
from crinoid.core.lifecycle.images import blobs as module
from crinoid.core.lifecycle.images.blobs import Blobs, BlobSource, Follower, InflightBlobs
from crinoid.core.lifecycle.images.progress import LayerTracker
from crinoid.core.state.content import ContentStore

CONTENT = bytes(range(256)) * 16_384
BLOB = Descriptor("application/x", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", len(CONTENT))


@pytest.fixture(autouse=True)
def descriptors_are_given_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of all that is open in the process, other tests' threads may close some meanwhile: so calls are counted."""
    opened: list[int] = []

    def counted(function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            opened.append(function(*arguments))
            return opened[-1]

        return call

    def close(fd: int) -> None:
        if fd in opened:
            opened.remove(fd)
        original(fd)

    original = os.close
    monkeypatch.setattr(os, "close", close)
    for owner, name in ((ContentStore, "open_partial"), (os, "dup"), (os, "eventfd")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    yield
    assert opened == []


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "content")


@pytest.fixture
def inflight(content: ContentStore) -> Iterator[InflightBlobs]:
    """With two places, and a pull that brings the blob."""
    inflight = InflightBlobs(content, 2)
    with inflight.expect(BLOB):
        yield inflight


def store(content: ContentStore, data: bytes = CONTENT) -> None:
    """Have so much of the blob where an ingest has it."""
    (content.root / "ingest" / BLOB.digest).write_bytes(data)


def finish(content: ContentStore) -> None:
    """Have the blob in the store, as an ingest that ends well."""
    path = content.path(BLOB.digest)
    path.parent.mkdir(exist_ok=True)
    (content.root / "ingest" / BLOB.digest).rename(path)


async def followed(inflight: InflightBlobs) -> Follower:
    follower = await inflight.follow(BLOB)
    assert follower is not None
    return follower


async def stays_pending(task: "asyncio.Task[object]") -> bool:
    for _ in range(10):
        await asyncio.sleep(0)
    return not task.done()


def test_only_large_blobs_are_followed(content: ContentStore) -> None:
    small = Descriptor("application/x", BLOB.digest, module.LEAST_BYTES - 1)
    assert InflightBlobs(content, 1).follows(BLOB)
    assert not InflightBlobs(content, 1).follows(small)
    assert not InflightBlobs(content, 0).follows(BLOB)


async def test_what_is_there_needs_no_follower(inflight: InflightBlobs, content: ContentStore) -> None:
    store(content)
    finish(content)
    assert await inflight.follow(BLOB) is None


async def test_nobody_waits_for_what_nobody_brings(content: ContentStore) -> None:
    inflight = InflightBlobs(content, 2)
    assert await inflight.follow(BLOB) is None
    with inflight.expect(BLOB):
        with inflight.expect(BLOB):
            waiting = asyncio.create_task(inflight.follow(BLOB))
            assert await stays_pending(waiting)
        assert await stays_pending(waiting)
    assert await waiting is None


async def test_bytes_are_told_as_they_come(inflight: InflightBlobs, content: ContentStore) -> None:
    waiting = asyncio.create_task(followed(inflight))
    assert await stays_pending(waiting)
    with inflight.announce(BLOB) as tell:
        store(content, CONTENT[:1000])
        tell(1000)
        follower = await waiting
        growing = follower.growing
        assert (growing.size, os.eventfd_read(growing.inflight)) == (len(CONTENT), 1000)
        assert os.pread(growing.fd, 5000, 0) == CONTENT[:1000]
        store(content)
        tell(3000)
        tell(len(CONTENT))
        assert os.eventfd_read(growing.inflight) == len(CONTENT) - 1000
        assert not growing.whole.done()
        finish(content)
    assert await follower.wait()
    assert os.pread(growing.fd, len(CONTENT), 0) == CONTENT, "also when the file has got its name"
    follower.close()
    follower.close()


async def test_one_that_comes_late_is_told_all_at_once(inflight: InflightBlobs, content: ContentStore) -> None:
    store(content, CONTENT[:3000])
    with inflight.announce(BLOB) as tell:
        tell(1000)
        tell(3000)
        follower = await followed(inflight)
        assert os.eventfd_read(follower.growing.inflight) == 3000
        follower.close()
        store(content)
        finish(content)


async def test_a_failure_is_told(inflight: InflightBlobs, content: ContentStore) -> None:
    store(content, b"")
    with pytest.raises(RuntimeError), inflight.announce(BLOB) as tell:
        tell(0)
        follower = await followed(inflight)
        raise RuntimeError
    assert not await follower.wait()
    follower.close()
    waiting = asyncio.create_task(inflight.follow(BLOB))
    assert await stays_pending(waiting), "until somebody tries again"
    store(content)
    finish(content)
    with inflight.announce(BLOB):
        pass
    assert await waiting is None


async def test_what_begins_anew_is_another_inflight_blob(inflight: InflightBlobs, content: ContentStore) -> None:
    store(content, bytes(2000))
    with inflight.announce(BLOB) as tell:
        tell(2000)
        torn = await followed(inflight)
        store(content, CONTENT)
        tell(0)
        assert not await torn.wait()
        fresh = await followed(inflight)
        tell(500)
        assert os.eventfd_read(fresh.growing.inflight) == 500
        finish(content)
    assert await fresh.wait()
    torn.close()
    fresh.close()


async def test_places_are_bounded_and_given_on(inflight: InflightBlobs, content: ContentStore) -> None:
    store(content)
    with inflight.announce(BLOB) as tell:
        tell(1)
        first, second = [await followed(inflight) for _ in range(2)]
        third, fourth = [asyncio.create_task(inflight.follow(BLOB)) for _ in range(2)]
        assert await stays_pending(third) and await stays_pending(fourth)
        first.close()
        third_follower = await third
        assert third_follower is not None
        assert await stays_pending(fourth)
        finish(content)
    assert await fourth is None, "the blob is whole before there is a place"
    second.close()
    third_follower.close()


async def test_without_descriptors_nobody_follows(
    inflight: InflightBlobs, content: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "too many open files")

    store(content)
    with inflight.announce(BLOB) as tell:
        monkeypatch.setattr(os, "eventfd", refuse)
        tell(1)
        waiting = asyncio.create_task(inflight.follow(BLOB))
        assert await stays_pending(waiting)
        finish(content)
    assert await waiting is None


class Source:
    """An image source that has another blob until it is told that what it gave was wrong."""

    name = label = "two-faced"

    def __init__(self, second: bytes | CrinoidError) -> None:
        self.second = second
        self.asked: list[tuple[bool, int]] = []

    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        self.asked.append((request.doubted, request.offset))
        if not request.doubted:
            return pieces_of(b"x" * len(CONTENT))
        if isinstance(self.second, CrinoidError):
            raise self.second
        return pieces_of(self.second)


async def pieces_of(content: bytes) -> AsyncIterator[bytes]:
    yield content


def fetch(content: ContentStore, source: Source) -> Any:
    blobs = Blobs(content, InflightBlobs(content, 2))
    blob_source = BlobSource(source, ImageReference.parse("registry.test/app:1"), None)  # type: ignore[arg-type]
    return blobs.fetch(BLOB, blob_source, LayerTracker(BLOB))


async def test_a_blob_that_came_whole_and_is_another_is_asked_for_once_more(content: ContentStore) -> None:
    """As of a mirror that is stale or behind a login page: the source then begins with the registry."""
    source = Source(CONTENT)
    await fetch(content, source)
    assert source.asked == [(False, 0), (True, 0)]
    assert content.examine(BLOB.digest) == ""


@pytest.mark.parametrize(
    ("second", "words"),
    [(b"y" * len(CONTENT), ""), (CorruptContent("no other host"), ""), (Unavailable("refused"), "refused")],
)
async def test_of_two_that_are_wrong_the_first_is_told(content: ContentStore, second: Any, words: str) -> None:
    source = Source(second)
    with pytest.raises(CorruptContent, match=hashlib.sha256(b"x" * len(CONTENT)).hexdigest()) as caught:
        await fetch(content, source)
    assert words in caught.value.message
    assert "no other host" not in caught.value.message
    assert source.asked == [(False, 0), (True, 0)]
    assert not content.has(BLOB)
