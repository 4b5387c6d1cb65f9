"""Large layers, unpacked while a registry sends them, good or bad; with a real daemon and its real unpackers."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from support.daemon import Daemon
from support.faults import Answer, FaultRegistry, fault_registry, manifest_of, range_of, refuse, send, stream
from support.images import HOST_ARCHITECTURE, Entry, digest_of, make_layer
from support.patience import patient
from support.processes import descendants

pytestmark = pytest.mark.integration

FILE_BYTES = 1 << 20
UNFINISHED = "plugins/snapshotter/*/snapshots/unfinished/*"


@dataclass
class Source:
    """A registry with an image of one large layer, new for each test; ``gate`` opens what ``hold`` holds."""

    server: FaultRegistry
    layer: bytes
    gate: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return f"{self.server.host}/app:1"

    def answer(self, *answers: Answer) -> None:
        """Say how the layer is sent."""
        self.server.on_blob(digest_of(self.layer), *answers)

    def hold(self, then: Callable[[web.StreamResponse], Awaitable[None]] | None = None, change: int = 0) -> Answer:
        """Send three quarters, wait for the gate, then the rest; ``change`` is added to the last byte."""
        content = self.layer[:-1] + bytes([(self.layer[-1] + change) % 256])

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = len(content)
            await response.prepare(request)
            middle = len(content) * 3 // 4
            await response.write(content[:middle])
            await asyncio.to_thread(self.gate.wait, patient(60))
            if then is not None:
                await then(response)
            await response.write(content[middle:])
            return response

        return answer


@pytest.fixture
def source() -> Iterator[Source]:
    entries = [Entry(path=f"srv/file{number}", content=os.urandom(FILE_BYTES)) for number in range(8)]
    layer = make_layer(entries)
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
    config = json.dumps({"os": "linux", "architecture": HOST_ARCHITECTURE, "config": {}, "rootfs": rootfs}).encode()
    manifest = manifest_of(config, layer)
    ended, sources = threading.Event(), list[Source]()

    async def serve(started: threading.Event) -> None:
        async with fault_registry() as server:
            server.on_manifest("1", send(manifest))
            server.on_blob(digest_of(config), send(config))
            sources.append(Source(server, layer))
            started.set()
            await asyncio.to_thread(ended.wait)

    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(started)))
    thread.start()
    assert started.wait(patient(60))
    yield sources[0]
    sources[0].gate.set()
    ended.set()
    thread.join(patient(60))


@pytest.fixture
def daemon(source: Source, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    more = getattr(request, "param", "")
    options = f"{more}plain_http = ['{source.server.host}']\nbackoff_s = 0.01\nstall_timeout_s = {patient(60)}\n"
    daemon = Daemon(tmp_path, f"[network]\ndriver = 'host'\n[registries.distribution.options]\n{options}")
    try:
        daemon.start()
        yield daemon
        daemon.stop()
    finally:
        daemon.end()


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + patient(60)
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fetch(daemon: Daemon, source: Source, **fields: Any) -> str:
    """Pull the image; return its id."""
    return str(daemon.cri.call("PullImage", 90, image={"image": source.name}, **fields)["image_ref"])


@contextmanager
def pulling(daemon: Daemon, source: Source) -> "Iterator[Future[str]]":
    """Pull, and give the block the pull once files of the layer are there and its blob is not."""
    with ThreadPoolExecutor(1) as pool:
        pull = pool.submit(fetch, daemon, source)
        try:
            until(lambda: list(daemon.root.glob(f"{UNFINISHED}/fs/srv/file3")) or pull.done())
            assert not pull.done(), pull.exception()
            assert not blob_of(daemon, source).exists()
            yield pull
        finally:
            source.gate.set()


def blob_of(daemon: Daemon, source: Source) -> Path:
    (content,) = daemon.root.glob("**/oci-layout")
    return content.parent / "blobs" / digest_of(source.layer).replace(":", "/")


def layers_told(daemon: Daemon) -> list[dict[str, Any]]:
    """Return the layers of all pulls, as verbose Status tells them for ``ctl pull``."""
    pulls = json.loads(daemon.cri.call("Status", verbose=True)["info"]["pulls"])
    return [layer for pull in pulls for layer in pull["layers"]]


def nothing_half_made(daemon: Daemon) -> bool:
    return not list(daemon.root.glob(UNFINISHED))


def layers_below(daemon: Daemon) -> list[Path]:
    """Return it of each layer that is committed."""
    return list(daemon.root.glob("plugins/snapshotter/*/snapshots/layers/**/srv/file7"))


def test_a_layer_is_unpacked_while_it_comes_and_progress_is_told(daemon: Daemon, source: Source) -> None:
    source.answer(source.hold())
    with pulling(daemon, source) as pull:
        (layer,) = layers_told(daemon)
        assert layer["state"] == "fetching"
        assert FILE_BYTES < int(layer["fetched_bytes"]) < int(layer["total_bytes"]) == len(source.layer)
        source.gate.set()
        pull.result()
    (file,) = layers_below(daemon)
    assert file.stat().st_size == FILE_BYTES
    assert blob_of(daemon, source).read_bytes() == source.layer
    assert nothing_half_made(daemon)


def test_a_lie_at_the_end_is_not_committed(daemon: Daemon, source: Source) -> None:
    source.answer(source.hold(change=1))
    with pulling(daemon, source) as pull:
        source.gate.set()
        error = pull.exception()
    assert "what the source sent has digest" in str(error)
    assert layers_below(daemon) == []
    assert nothing_half_made(daemon)
    source.answer(stream(source.layer))
    fetch(daemon, source)
    assert len(layers_below(daemon)) == 1


def test_a_connection_that_drops_is_resumed_under_the_unpacker(daemon: Daemon, source: Source) -> None:
    async def drop(response: web.StreamResponse) -> None:
        assert response._req is not None and response._req.transport is not None
        response._req.transport.abort()

    source.answer(source.hold(drop), stream(source.layer))
    with pulling(daemon, source) as pull:
        source.gate.set()
        pull.result()
    asked = [asked.headers.get("Range", "") for asked in source.server.asked if digest_of(source.layer) in asked.path]
    assert asked[0] == "" and asked[1].startswith("bytes=")
    assert len(layers_below(daemon)) == 1
    assert nothing_half_made(daemon)


def test_a_source_that_fails_for_good_leaves_nothing(daemon: Daemon, source: Source) -> None:
    async def drop(response: web.StreamResponse) -> None:
        assert response._req is not None and response._req.transport is not None
        response._req.transport.abort()

    source.answer(source.hold(drop), refuse(404))
    with pulling(daemon, source) as pull:
        source.gate.set()
        assert "404" in str(pull.exception())
    assert layers_below(daemon) == []
    assert nothing_half_made(daemon)


def test_a_killed_daemon_takes_the_unpacker_with_it(daemon: Daemon, source: Source) -> None:
    source.answer(source.hold(), stream(source.layer))
    with pulling(daemon, source) as pull:
        assert daemon.process is not None
        below = descendants(daemon.process.pid)
        assert len(below) >= 2, "the process that forks unpackers, and one of them"
        daemon.kill()
        assert pull.exception() is not None
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
    daemon.start()
    assert nothing_half_made(daemon)
    assert daemon.cri.call("ListImages")["images"] == []
    fetch(daemon, source)
    assert len(layers_below(daemon)) == 1
    asked = [asked.headers.get("Range", "") for asked in source.server.asked if digest_of(source.layer) in asked.path]
    assert asked[-1].startswith("bytes="), "what had come is not fetched again"


def test_stopping_the_daemon_ends_it(daemon: Daemon, source: Source) -> None:
    source.answer(source.hold())
    with pulling(daemon, source) as pull:
        assert daemon.process is not None
        below = descendants(daemon.process.pid)
        daemon.stop()
        assert pull.exception() is not None
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)
    assert nothing_half_made(daemon)
    daemon.start()


@pytest.mark.parametrize("daemon", ["connections_per_blob = 3\nrange_bytes = 1048576\n"], indirect=True)
def test_ranges_that_come_side_by_side_are_unpacked_in_order(daemon: Daemon, source: Source) -> None:
    async def hold_the_last(request: web.Request) -> web.StreamResponse:
        if range_of(request, len(source.layer))[0] >= 6 * FILE_BYTES:
            await asyncio.to_thread(source.gate.wait, patient(60))
        return await stream(source.layer)(request)

    source.answer(hold_the_last)
    with pulling(daemon, source) as pull:
        (layer,) = layers_told(daemon)
        assert layer["state"] == "fetching"
        source.gate.set()
        pull.result()
    assert blob_of(daemon, source).read_bytes() == source.layer
    asked = [asked.headers.get("Range", "") for asked in source.server.asked if digest_of(source.layer) in asked.path]
    assert len(set(asked)) == len(asked) == len(source.layer) // FILE_BYTES + 1
    assert len(layers_below(daemon)) == 1
    assert nothing_half_made(daemon)


def test_a_second_pull_joins(daemon: Daemon, source: Source) -> None:
    source.answer(source.hold())
    with pulling(daemon, source) as pull, ThreadPoolExecutor(1) as pool:
        second = pool.submit(fetch, daemon, source, auth={"username": "alice", "password": "secret"})
        until(lambda: [layer["state"] for layer in layers_told(daemon)] == ["fetching"] * 2)
        source.gate.set()
        assert pull.result() == second.result()
    assert len([asked for asked in source.server.asked if digest_of(source.layer) in asked.path]) == 1
    assert len(layers_below(daemon)) == 1
    assert nothing_half_made(daemon)
