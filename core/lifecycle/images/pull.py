"""One pull, from a reference to a record: resolve, fetch, unpack, and only then say that there is an image.

Called by the service, once for all requests that ask for the same at the same time. ``Puller`` shows the order;
``resolution``, ``blobs`` and ``layers`` are its steps, ``catalog`` has the names. A pull that fails or is cancelled
leaves no record; what came whole is kept for the next try, for a while (``garbage``).
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
from crinoid.core.api.hooks.extension import PullView
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.manifests import as_text, parse
from crinoid.core.api.timeline import IMAGE, about, note, stage
from crinoid.core.api.values.image import Credentials, Descriptor, ImageReference, Platform, ResolveRequest
from crinoid.core.config.models import ImagesConfig
from crinoid.core.lifecycle.concurrency.together import run_together
from crinoid.core.lifecycle.images.blobs import Blobs, BlobSource
from crinoid.core.lifecycle.images.catalog import Catalog, blobs_of, names_of
from crinoid.core.lifecycle.images.documents import SourceDocuments
from crinoid.core.lifecycle.images.faults import restate, while_doing
from crinoid.core.lifecycle.images.garbage import GarbageCollector, Leftover
from crinoid.core.lifecycle.images.image_config import MAX_CONFIG_BYTES, ImageConfig, artifact_type
from crinoid.core.lifecycle.images.layers import Layers
from crinoid.core.lifecycle.images.leases import Leases
from crinoid.core.lifecycle.images.plans import LayerPlan, plan_artifact, plan_layers
from crinoid.core.lifecycle.images.progress import LayerState, LayerTracker, PullTracker
from crinoid.core.lifecycle.images.resolution import Resolution, resolve
from crinoid.core.lifecycle.images.targets import ImageSource
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore
from crinoid.core.state.records import ImageRecord

LOG = logging.getLogger(__name__)
T = TypeVar("T")
#: By architecture, those whose programs the kernel of such a machine runs, too.
_RUNS_ALSO = {"amd64": frozenset({"386"}), "arm64": frozenset({"arm"})}


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What is pulled, and for which snapshotter. Requests that are equal are one pull.

    ``verify``: what is stored of it is read as a whole before it counts. ``source`` is asked in the place of those that
    are configured. One that is not ``is_named`` gets no name.
    """

    reference: ImageReference
    platform: Platform
    credentials: Credentials | None
    snapshotter: str
    verify: bool = False
    source: ImageSource | None = None
    is_named: bool = True

    def __str__(self) -> str:
        return str(self.reference) if self.is_named else "an image without a name"


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

    async def pull(
        self, request: PullRequest, platform: str, config: ImagesConfig, tracker: PullTracker
    ) -> ImageRecord:
        """Return the image's record, written when all of it was there; it tells its platform as ``platform`` does."""
        work = self._pull(request, platform, config.max_parallel_layers, tracker)
        try:
            return await run_until_idle(work, tracker.idle_s, config.pull_idle_timeout_s)
        except CrinoidError as error:  # the reference once, at the end: the kubelet puts it before the words, too
            words = error.message.replace(f"pull {request.reference}: ", "")
            raise restate(error, f"{words} (image {request})" if request.is_named else words) from error

    async def close(self) -> None:
        """Give up transfers that are under way."""
        await self._blobs.close()

    async def _pull(self, request: PullRequest, platform: str, max_fetches: int, tracker: PullTracker) -> ImageRecord:
        """Read downwards: documents, leases, configuration, layers, record. Each step says what a failure leaves."""
        # The manifest names all the rest by digest, so it does not matter who serves the blobs: each is verified.
        asked = ResolveRequest(request.reference, request.platform, request.credentials)
        resolution = await resolve({"": request.source} if request.source else self._slots.registries, asked)
        about(*(f"{IMAGE}{one}" for one in (request, resolution.image.target.digest)))
        with stage(f"decide on {resolution.image.target.digest}"):
            decisions = await self._judge(request, resolution)
        source = BlobSource(resolution.source, request.reference, request.credentials)
        fetch = _Fetch(self._blobs, source, asyncio.Semaphore(max_fetches))
        slot, manifest = self._slots.snapshotters[request.snapshotter], resolution.manifest
        documents = (resolution.image.target.digest, resolution.image.manifest.digest, manifest.config.digest)
        digests = (*documents, *(layer.digest for layer in manifest.layers))
        # No record names any of this before the end. The lease comes before the first look at what is stored: without
        # it, a garbage collection might remove a blob between the look and the use.
        async with self._leases.hold(digests):
            with self._leaving(Leftover(digests), request):
                if request.verify:
                    await self._remove_damaged(digests, tracker)
                image = await self._read_config(resolution, request.platform, fetch)
                self._layers.check(slot, image.plans)  # before gigabytes are fetched that can't be stacked
            # Chain ids follow from the configuration's diffIDs, so layers can be leased only now.
            chain_ids = tuple(plan.chain_id for plan in image.plans)
            async with self._leases.hold(chain_ids):
                with self._leaving(Leftover(digests, chain_ids), request):
                    await self._provide_layers(request, image, tracker, fetch)
                    added = await self._add_record(request, image, platform, decisions)
                self._garbage.leftovers.forget(digests)
                # The record is on disk before its blobs are marked as an image's: after a power cut in the other order
                # they would be garbage that no record names, and not what an interrupted pull had brought.
                with stage("sync the record"):
                    await self._catalog.sync()
                self._content.settle(blobs_of(added))
                return added

    async def _judge(self, request: PullRequest, resolution: Resolution) -> tuple[tuple[str, str], ...]:
        """Ask extensions whether the image may be had, before anything of it is; by digests, whatever its tag says."""
        image = resolution.image
        served_by = resolution.source.name
        documents = SourceDocuments(self._slots.registries, request.platform, request.credentials, served_by)
        reference = request.reference if request.is_named else None
        view = PullView(reference, image.target, image.manifest, served_by, documents)
        decisions = await self._slots.extensions.image_pulling(view)
        for slot, words in decisions:
            LOG.info('extension "%s" on %s, manifest %s: %s', slot, request, image.target.digest, words)
            note(f'decision of extension "{slot}" on {image.target.digest}: {words}')
        return decisions

    @contextmanager
    def _leaving(self, left: Leftover, request: PullRequest) -> Iterator[None]:
        """Have what a block brought kept for the next try when it fails, but for a full disk: that needs the space.

        What did not come from a registry costs little to be had again.
        """
        try:
            yield
        except BaseException as error:  # cancelled, too
            if isinstance(error, ResourceExhausted) or request.source is not None:
                self._garbage.let_go(left)
            else:
                self._garbage.leftovers.add(left)
            raise

    async def _remove_damaged(self, digests: Sequence[str], tracker: PullTracker | None = None) -> bool:
        """Remove what is stored in another form than it should be, so that it is fetched again; return if any was."""
        found = False
        for digest in digests:
            for wrong in (await call_in_thread(partial(self._content.remove_damaged, [digest]))).values():
                LOG.warning("blob %s %s; it is fetched again", digest, wrong)
                found = True
            if tracker is not None:
                tracker.touch()  # to read gigabytes is not to be idle
        return found

    async def _read_config(self, resolution: Resolution, platform: Platform, fetch: "_Fetch") -> "_Image":
        """Fetch the configuration, and see from it what the image is and what its layers unpack to."""
        manifest, blob = resolution.manifest, resolution.manifest.config.descriptor()
        if blob.size > MAX_CONFIG_BYTES:  # it is read into memory, and its size is the registry's word
            raise CorruptContent(f"the image configuration is {blob.size} bytes long, more than {MAX_CONFIG_BYTES}")
        with while_doing("image configuration"):
            await fetch(blob, LayerTracker(blob))
            try:
                content = self._content.read(blob.digest, MAX_CONFIG_BYTES)
            except CorruptContent as error:  # its size is right: nobody had looked closer
                LOG.warning("%s; it is fetched again", error.message)
                self._content.remove(blob.digest)
                await fetch(blob, LayerTracker(blob))
                content = self._content.read(blob.digest, MAX_CONFIG_BYTES)
        layers = [layer.descriptor() for layer in manifest.layers]
        if artifact := artifact_type(manifest, content):
            # Its configuration is of its own kind and means nothing here. All artifacts may have the same empty one
            # (image-spec, "Guidance for an Empty Descriptor"), so the id is the manifest's digest.
            return _Image(resolution.image.manifest.digest, resolution, artifact, "{}", plan_artifact(layers))
        config = parse(ImageConfig, content, f"image configuration {blob.digest}")
        if resolution.image.target.digest == resolution.image.manifest.digest:
            # Of a lone manifest the configuration alone says what machine it is for. Where a manifest was chosen from
            # an index, the index counts, as with peers: builders write odd configurations.
            wanted = platform.normalized()
            found = Platform(config.os or wanted.os, config.architecture or wanted.architecture, config.variant)
            runs = {wanted.architecture, *_RUNS_ALSO.get(wanted.architecture, ())}
            if found.normalized().os != wanted.os or found.normalized().architecture not in runs:
                raise Unsupported(f"the image is for {config.os}/{config.architecture}, and {platform} is wanted here")
        return _Image(blob.digest, resolution, "", as_text(content), plan_layers(layers, config.rootfs.diff_ids))

    async def _provide_layers(
        self, request: PullRequest, image: "_Image", tracker: PullTracker, fetch: "_Fetch"
    ) -> None:
        """Fetch and unpack what is missing; layers are fetched side by side, and unpacked as they come.

        A layer that is unpacked needs no blob of this pull's where it has one of an earlier pull (gzip, say, not zstd),
        or where none was ever asked for.
        """
        slot, old = self._slots.snapshotters[request.snapshotter], self._catalog.get_whole(image.id)
        absent = await self._layers.select_missing(slot, image.plans)
        absent = await self._layers.bring(slot, absent, request.reference, request.credentials)
        missing = {plan.chain_id for plan in absent}
        if missing:
            self._layers.warm_up()  # the unpacker's start goes on beside the first bytes from the registry
        steps = []
        layers = tracker.follow(tuple(plan.blob for plan in image.plans))
        earlier_blobs = old.layers if old else [None] * len(image.plans)
        for plan, layer, earlier in zip(image.plans, layers, earlier_blobs, strict=True):
            is_damaged = self._content.has(plan.blob.digest) and not self._content.has(plan.blob)
            is_lost = earlier is not None and not self._content.has(earlier) and not self._content.has(plan.blob)
            if plan.chain_id in missing:
                steps.append(self._provide_layer(slot, plan, layer, fetch))
            elif slot.implements("bring_layer"):
                layer.enter(LayerState.DONE)  # its blob may never have been here
            elif len(self._slots.snapshotters) > 1 or is_damaged or is_lost:
                # It is unpacked here, but a handler with another snapshotter may be asked for the image later.
                steps.append(fetch(plan.blob, layer))
            else:
                layer.enter(LayerState.DONE)
        with self._layers.remembering_commits(slot, absent):
            await run_together(steps)

    async def _provide_layer(
        self, slot: SnapshotterSlot, plan: LayerPlan, tracker: LayerTracker, fetch: "_Fetch"
    ) -> None:
        """Fetch and unpack a layer; and once more, where what was stored of its blob turns out to be damaged."""
        for is_second in (False, True):
            try:
                if self._layers.follows(plan):
                    # A large blob is unpacked behind its writer. What it unpacks to is committed only once the blob's
                    # digest was right; before that, none of it is believed.
                    with self._layers.inflight.expect(plan.blob):
                        installing = self._layers.install(slot, plan)
                        await run_together((fetch(plan.blob, tracker, then=LayerState.UNPACKING), installing))
                else:
                    await fetch(plan.blob, tracker, then=LayerState.UNPACKING)
                    await self._layers.install(slot, plan)
                break
            except CorruptContent:
                # ``fetch`` looks at the size of a blob alone. If its digest is right, the image itself is malformed,
                # and another fetch would bring the same.
                if is_second or not await self._remove_damaged([plan.blob.digest]):
                    raise
        tracker.enter(LayerState.DONE)

    async def _add_record(
        self, request: PullRequest, image: "_Image", platform: str, decisions: tuple[tuple[str, str], ...]
    ) -> ImageRecord:
        """Store manifest and index, then write the record: from here on there is such an image.

        With these two the content store is a whole OCI layout, out of which skopeo and others can read the image.
        """
        resolved, manifest = image.resolution.image, image.resolution.manifest
        for document, content in (
            (resolved.manifest, resolved.manifest_content),
            (resolved.target, resolved.target_content),
        ):
            for wrong in self._content.remove_damaged([document.digest]).values():  # small, and no one else reads them
                LOG.warning("blob %s %s; it is stored again", document.digest, wrong)
            await self._content.ingest(document, partial(_open_document, content), lambda _stored_bytes: None)
        blobs = tuple(plan.blob for plan in image.plans)
        kept = blobs
        if (old := self._catalog.get_whole(image.id)) is not None:  # keep the blobs of an earlier pull that are there
            kept = tuple(
                earlier if self._content.has(earlier) and not self._content.has(blob) else blob
                for blob, earlier in zip(blobs, old.layers, strict=True)
            )
        documents = (
            resolved.target.digest,
            resolved.manifest.digest,
            *([manifest.config.digest] * bool(image.artifact)),
        )
        tags, digests = names_of(request.reference, resolved.target.digest) if request.is_named else ((), ())
        record = ImageRecord(
            id=image.id,
            tags=tags,
            digests=digests,
            manifests=tuple(dict.fromkeys(documents)),
            layers=kept,
            chain_ids=tuple(plan.chain_id for plan in image.plans),
            size_bytes=resolved.manifest.size + manifest.config.size + sum(blob.size for blob in blobs),
            pulled_at_ns=time.time_ns(),
            config=image.config,
            artifact=image.artifact,
            annotations=manifest.annotations,
            decisions=decisions,
            platform="" if image.artifact else platform,
        )
        return self._catalog.add(record)


@dataclass(frozen=True, slots=True)
class _Image:
    """What is being pulled, as its manifest and configuration describe it.

    ``id`` is the digest of the configuration, whose text is ``config``; ``artifact`` is an artifact's type, or empty.
    """

    id: str
    resolution: Resolution
    artifact: str
    config: str
    plans: tuple[LayerPlan, ...]


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Fetches blobs of one pull, a bounded number at a time."""

    blobs: Blobs
    source: BlobSource
    turns: asyncio.Semaphore

    async def __call__(self, blob: Descriptor, tracker: LayerTracker, then: LayerState = LayerState.DONE) -> None:
        """Fetch a blob unless it is stored; ``then``: what its layer is at after that."""
        async with self.turns:
            tracker.enter(LayerState.FETCHING)
            with stage(f"fetch {blob.digest[:19]}, {blob.size} bytes"):
                await self.blobs.fetch(blob, self.source, tracker)
        tracker.enter(then)


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
        task.cancel()  # of one that has ended it does nothing
        await asyncio.wait({task})


async def _open_document(content: bytes, offset: int) -> AsyncIterator[bytes]:
    """Be the stream of a document that is in memory already."""

    async def pieces() -> AsyncIterator[bytes]:
        yield content[offset:]

    return pieces()
