"""One pull, from a reference to a record: resolve, fetch, unpack, and only then say that there is an image.

Called by the service, once for all requests that ask for the same at the same time. A pull that fails or is cancelled
leaves no record; what came whole is kept for the next try, for a while (``leftovers``).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from crinoid.core.api.errors import CorruptContent, CrinoidError, DeadlineExceeded, ResourceExhausted, Unsupported
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.manifests import parse
from crinoid.core.api.values.image import Credentials, Descriptor, ImageReference, Platform, ResolveRequest
from crinoid.core.config.models import ImagesConfig
from crinoid.core.lifecycle.concurrency.together import run_together
from crinoid.core.lifecycle.images.blobs import Blobs, BlobSource
from crinoid.core.lifecycle.images.catalog import Catalog, names_of
from crinoid.core.lifecycle.images.faults import restate, while_doing
from crinoid.core.lifecycle.images.garbage import GarbageCollector
from crinoid.core.lifecycle.images.image_config import MAX_CONFIG_BYTES, ImageConfig, artifact_type
from crinoid.core.lifecycle.images.index import blobs_of
from crinoid.core.lifecycle.images.layers import Layers
from crinoid.core.lifecycle.images.leases import Leases
from crinoid.core.lifecycle.images.leftovers import Leftover
from crinoid.core.lifecycle.images.plans import LayerPlan, plan_artifact, plan_layers
from crinoid.core.lifecycle.images.progress import LayerState, LayerTracker, PullTracker
from crinoid.core.lifecycle.images.resolution import Resolution, resolve
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore
from crinoid.core.state.records import ImageRecord

LOG = logging.getLogger(__name__)
T = TypeVar("T")
_RUNS_ALSO = {"amd64": frozenset({"386"}), "arm64": frozenset({"arm"})}


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What is pulled, and for which snapshotter. Requests that are equal are one pull.

    ``verify``: what is stored of it is read as a whole before it counts.
    """

    reference: ImageReference
    platform: Platform
    credentials: Credentials | None
    snapshotter: str
    verify: bool = False

    def __str__(self) -> str:
        return str(self.reference)


class Puller:
    """Pulls images with the parts that the service shares out."""

    def __init__(
        self,
        slots: Slots,
        content: ContentStore,
        catalog: Catalog,
        leases: Leases,
        layers: Layers,
        garbage: GarbageCollector,
    ) -> None:
        self._slots = slots
        self._garbage = garbage
        self._content = content
        self._catalog = catalog
        self._leases = leases
        self._layers = layers
        self._blobs = Blobs(content, layers.inflight)

    async def pull(self, request: PullRequest, config: ImagesConfig, tracker: PullTracker) -> ImageRecord:
        """Return the image's record, written when all of it was there."""
        work = self._pull(request, config.max_parallel_layers, tracker)
        try:
            return await run_until_idle(work, tracker.idle_s, config.pull_idle_timeout_s)
        except CrinoidError as error:  # the reference once, at the end: the kubelet puts it before the words, too
            words = error.message.replace(f"pull {request.reference}: ", "")
            raise restate(error, f"{words} (image {request.reference})") from error

    async def close(self) -> None:
        """Give up transfers that are under way."""
        await self._blobs.close()

    async def _pull(self, request: PullRequest, max_fetches: int, tracker: PullTracker) -> ImageRecord:
        asked = ResolveRequest(request.reference, request.platform, request.credentials)
        resolution = await resolve(self._slots.registries, asked)
        source = BlobSource(resolution.source, request.reference, request.credentials)
        fetch = _Fetch(self._blobs, source, asyncio.Semaphore(max_fetches))
        blobs = tuple(layer.descriptor() for layer in resolution.manifest.layers)
        digests = _digests_of(resolution, blobs)
        async with self._leases.hold(digests):
            with self._leaving(Leftover(digests)):
                if request.verify:
                    await self._remove_damaged(digests, tracker)
                artifact, text, plans = await self._plan(resolution, request.platform, fetch)
                self._layers.check(self._slots.snapshotters[request.snapshotter], plans)
            chain_ids = tuple(plan.chain_id for plan in plans)
            image_id = _id_of(resolution, artifact)
            async with self._leases.hold(chain_ids):
                with self._leaving(Leftover(digests, chain_ids)):
                    slot, old = self._slots.snapshotters[request.snapshotter], self._catalog.get_whole(image_id)
                    await self._provide(slot, plans, old, tracker, fetch)
                    await self._store_documents(resolution)
                    added = self._catalog.add(self._record(request.reference, resolution, plans, text, artifact))
                self._garbage.leftovers.forget(digests)
                await self._catalog.sync()
                self._content.settle(blobs_of(added))
                return added

    @contextmanager
    def _leaving(self, left: Leftover) -> Iterator[None]:
        """Have what a block brought kept for the next try when it fails, but for a full disk: that needs the space."""
        try:
            yield
        except ResourceExhausted:
            self._garbage.let_go(left)
            raise
        except BaseException:
            self._garbage.leftovers.add(left)
            raise

    async def _remove_damaged(self, digests: Sequence[str], tracker: PullTracker) -> None:
        """Have what is stored in another form than it should be fetched again."""
        for digest in digests:
            for wrong in (await call_in_thread(partial(self._content.remove_damaged, [digest]))).values():
                LOG.warning("blob %s %s; it is fetched again", digest, wrong)
            tracker.touch()

    async def _plan(
        self, resolution: Resolution, platform: Platform, fetch: "_Fetch"
    ) -> tuple[str, str, tuple[LayerPlan, ...]]:
        """Fetch the configuration; return the type of an artifact, the configuration's text and the layers to be.

        An artifact's configuration is of its own kind and means nothing here.
        """
        blobs = [layer.descriptor() for layer in resolution.manifest.layers]
        content = await self._read_config(resolution, fetch)
        if artifact := artifact_type(resolution.manifest, content):
            return artifact, "{}", plan_artifact(blobs)
        image = parse(ImageConfig, content, f"image configuration {resolution.manifest.config.digest}")
        if resolution.image.target.digest == resolution.image.manifest.digest:
            _check_platform(image, platform)
        return "", content.decode(), plan_layers(blobs, image.rootfs.diff_ids)

    async def _read_config(self, resolution: Resolution, fetch: "_Fetch") -> bytes:
        """Fetch the configuration."""
        blob = resolution.manifest.config.descriptor()
        if blob.size > MAX_CONFIG_BYTES:
            raise CorruptContent(f"the image configuration is {blob.size} bytes long, more than {MAX_CONFIG_BYTES}")
        with while_doing("image configuration"):
            await fetch(blob, LayerTracker(blob))
            try:
                return self._content.read(blob.digest, MAX_CONFIG_BYTES)
            except CorruptContent as error:  # its size is right: nobody had looked closer
                LOG.warning("%s; it is fetched again", error.message)
            self._content.remove(blob.digest)
            await fetch(blob, LayerTracker(blob))
            return self._content.read(blob.digest, MAX_CONFIG_BYTES)

    async def _provide(
        self,
        slot: SnapshotterSlot,
        plans: Sequence[LayerPlan],
        old: ImageRecord | None,
        tracker: PullTracker,
        fetch: "_Fetch",
    ) -> None:
        """Fetch and unpack what is missing; layers are fetched side by side, and unpacked as they come.

        ``old`` is what was pulled of this image before: a layer that is unpacked needs no blob of this pull's where it
        has one of that (gzip, say, not zstd), or where none was ever asked for.
        """
        missing = {plan.chain_id for plan in await self._layers.select_missing(slot, plans)}
        if missing:
            self._layers.warm_up()
        steps = []
        layers = tracker.follow(tuple(plan.blob for plan in plans))
        for plan, layer, earlier in zip(plans, layers, old.layers if old else [None] * len(plans), strict=True):
            is_damaged = self._content.has(plan.blob.digest) and not self._content.has(plan.blob)
            is_lost = earlier is not None and not self._content.has(earlier) and not self._content.has(plan.blob)
            if plan.chain_id in missing:
                steps.append(self._provide_layer(slot, plan, layer, fetch))
            elif len(self._slots.snapshotters) > 1 or is_damaged or is_lost:
                steps.append(_keep_blob(plan, layer, fetch))
            else:
                layer.enter(LayerState.DONE)
        await run_together(steps)

    async def _provide_layer(
        self, slot: SnapshotterSlot, plan: LayerPlan, tracker: LayerTracker, fetch: "_Fetch"
    ) -> None:
        """Fetch and unpack a layer, and fetch it once more where what was stored of it is damaged."""
        try:
            await self._fetch_and_install(slot, plan, tracker, fetch)
        except CorruptContent:
            wrong = await call_in_thread(partial(self._content.remove_damaged, [plan.blob.digest]))
            if not wrong:
                raise
            LOG.warning("blob %s %s; it is fetched again", plan.blob.digest, wrong[plan.blob.digest])
            await self._fetch_and_install(slot, plan, tracker, fetch)
        tracker.enter(LayerState.DONE)

    async def _fetch_and_install(
        self, slot: SnapshotterSlot, plan: LayerPlan, tracker: LayerTracker, fetch: "_Fetch"
    ) -> None:
        if self._layers.follows(plan):
            with self._layers.inflight.expect(plan.blob):
                await run_together((_fetch_layer(plan, tracker, fetch), self._layers.install(slot, plan)))
        else:
            await _fetch_layer(plan, tracker, fetch)
            await self._layers.install(slot, plan)

    async def _store_documents(self, resolution: Resolution) -> None:
        """Keep index and manifest, so that the content store is a whole OCI layout."""
        image = resolution.image
        for blob, content in ((image.manifest, image.manifest_content), (image.target, image.target_content)):
            for wrong in self._content.remove_damaged([blob.digest]).values():  # small, and no one else reads them
                LOG.warning("blob %s %s; it is stored again", blob.digest, wrong)
            await self._content.ingest(blob, partial(_open_document, content), _ignore)

    def _record(
        self, reference: ImageReference, resolution: Resolution, plans: Sequence[LayerPlan], text: str, artifact: str
    ) -> ImageRecord:
        manifest, target = resolution.image.manifest, resolution.image.target
        tags, digests = names_of(reference, target.digest)
        config = resolution.manifest.config
        blobs = tuple(plan.blob for plan in plans)
        image_id = _id_of(resolution, artifact)
        return ImageRecord(
            id=image_id,
            tags=tags,
            digests=digests,
            manifests=tuple(dict.fromkeys((target.digest, manifest.digest, *([config.digest] if artifact else [])))),
            layers=self._stored(image_id, blobs),
            chain_ids=tuple(plan.chain_id for plan in plans),
            size_bytes=manifest.size + config.size + sum(blob.size for blob in blobs),
            pulled_at_ns=time.time_ns(),
            config=text,
            artifact=artifact,
            annotations=resolution.manifest.annotations,
        )

    def _stored(self, image_id: str, blobs: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
        """Return the blobs to be kept: those of an earlier pull, where only they are there (gzip, say, not zstd)."""
        if (old := self._catalog.get_whole(image_id)) is None:
            return blobs
        return tuple(
            earlier if self._content.has(earlier) and not self._content.has(blob) else blob
            for blob, earlier in zip(blobs, old.layers, strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Fetches blobs of one pull, a bounded number at a time."""

    blobs: Blobs
    source: BlobSource
    turns: asyncio.Semaphore

    async def __call__(self, blob: Descriptor, tracker: LayerTracker) -> None:
        async with self.turns:
            tracker.enter(LayerState.FETCHING)
            await self.blobs.fetch(blob, self.source, tracker)


async def run_until_idle(work: Coroutine[object, object, T], idle_s: Callable[[], float], limit_s: float) -> T:
    """Run work to its end, or cancel it and raise DeadlineExceeded once ``idle_s()`` reaches the limit."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            rest_s = limit_s - idle_s()
            if rest_s <= 0:
                raise DeadlineExceeded(f"nothing has arrived for {limit_s:g} s (images.pull_idle_timeout_s)")
            await asyncio.wait({task}, timeout=rest_s)
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _fetch_layer(plan: LayerPlan, tracker: LayerTracker, fetch: _Fetch) -> None:
    await fetch(plan.blob, tracker)
    tracker.enter(LayerState.UNPACKING)


async def _keep_blob(plan: LayerPlan, tracker: LayerTracker, fetch: _Fetch) -> None:
    """Have the blob of a layer that is unpacked: another snapshotter may be asked for the image later."""
    await fetch(plan.blob, tracker)
    tracker.enter(LayerState.DONE)


def _check_platform(image: ImageConfig, platform: Platform) -> None:
    """Refuse a lone manifest for another machine: its configuration alone says what it is for.

    Where a manifest was chosen from an index, the index counts, as with peers: builders write odd configurations.
    """
    wanted = platform.normalized()
    found = Platform(image.os or wanted.os, image.architecture or wanted.architecture, image.variant).normalized()
    runs = {wanted.architecture, *_RUNS_ALSO.get(wanted.architecture, ())}
    if found.os != wanted.os or found.architecture not in runs:
        raise Unsupported(f"the image is for {image.os}/{image.architecture}, and {platform} is wanted here")


def _id_of(resolution: Resolution, artifact: str) -> str:
    """All artifacts may have the same empty configuration."""
    return resolution.image.manifest.digest if artifact else resolution.manifest.config.digest


def _digests_of(resolution: Resolution, layers: Sequence[Descriptor]) -> tuple[str, ...]:
    image = resolution.image
    config = resolution.manifest.config.digest
    return (image.target.digest, image.manifest.digest, config, *(layer.digest for layer in layers))


async def _open_document(content: bytes, offset: int) -> AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        yield content[offset:]

    return pieces()


def _ignore(_stored_bytes: int) -> None:
    """Nobody watches a document arrive that is in memory already."""
