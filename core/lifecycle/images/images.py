"""Images as ``cri`` and the pods' services see them: pull, find, list, remove, and layers ready for a container.

It shares runs between requests that are alike and hands them on: ``pull`` for the way in, ``catalog`` for names,
``garbage`` for the way out, ``image_recovery`` for the start.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from crinoid.core.api.backoff import Backoff
from crinoid.core.api.errors import CorruptContent, CrinoidError, FailedPrecondition, InvalidArgument, NotFound
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.manifests import parse
from crinoid.core.api.values.image import Credentials, ImageReference, Platform
from crinoid.core.config.models import ImagesConfig
from crinoid.core.lifecycle.concurrency.single_flight import SharedTasks
from crinoid.core.lifecycle.concurrency.together import run_together
from crinoid.core.lifecycle.images.blobs import InflightBlobs
from crinoid.core.lifecycle.images.catalog import Catalog, name_of
from crinoid.core.lifecycle.images.documents import SourceDocuments
from crinoid.core.lifecycle.images.exports import Exports
from crinoid.core.lifecycle.images.faults import while_doing
from crinoid.core.lifecycle.images.filesystems import Filesystems
from crinoid.core.lifecycle.images.garbage import KEPT_S, GarbageCollector, Leftover
from crinoid.core.lifecycle.images.image_config import ContainerDefaults, ImageConfig
from crinoid.core.lifecycle.images.image_recovery import discard_left, discard_unfinished, is_usable
from crinoid.core.lifecycle.images.layers import Layers
from crinoid.core.lifecycle.images.leases import Leases
from crinoid.core.lifecycle.images.plans import plan_artifact, plan_layers, top_of
from crinoid.core.lifecycle.images.progress import PullProgress, PullTracker
from crinoid.core.lifecycle.images.pull import Puller, PullRequest
from crinoid.core.lifecycle.images.pull_figures import PullFigures, PullSums
from crinoid.core.lifecycle.images.targets import ImageSource
from crinoid.core.lifecycle.queries import FilesystemReport
from crinoid.core.lifecycle.stats.writable_layers import WritableLayers
from crinoid.core.lifecycle.user_ids import image_user
from crinoid.core.slots.binding import Slots
from crinoid.core.state.content import ContentStore
from crinoid.core.state.records import ImageRecord
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
VERIFY = "crinoid.io/verify"
"""An annotation of the image in PullImage: ``true`` has all that is stored of it read, and damage fetched again. In a
verbose ImageStatus: the answer tells what is damaged."""
_NAMELESS = ImageReference("localhost", "nameless", "latest")
"""Stands for the name of an image that is to get none; no record has it."""
_COLLECTION = "collection"
_MACHINES: Mapping[str, tuple[str, str]] = {
    "x86_64": ("amd64", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}


class ImageService:
    """All images of the node. Methods that are no coroutines read what is committed."""

    def __init__(self, store: Store, content: ContentStore, slots: Slots, config: ImagesConfig) -> None:
        self._store = store
        self._content = content
        self._slots = slots
        self._config = config
        self._platform = parse_platform(config.platform) if config.platform else host_platform()
        self._catalog = Catalog(store, config.pinned)
        self._leases = Leases()
        inflight = InflightBlobs(content, config.max_early_unpacks)
        self._layers = Layers(store.ledger, content, inflight, config.max_parallel_unpacks, config.keep_free_percent)
        self._garbage = GarbageCollector(self._catalog, content, self._leases, slots.snapshotters)
        self._puller = Puller(slots, content, self._catalog, self._leases, self._layers, self._garbage)
        self.writables = WritableLayers(slots.snapshotters)
        self._filesystems = Filesystems(content, slots.snapshotters.values(), self.writables)
        self._exports = Exports(content)
        self._pulls = SharedTasks("pull of")
        self._pulled = PullFigures()
        self._collections = SharedTasks("garbage collection")
        self._collecting = asyncio.Lock()
        self._collected = 0
        self._left = asyncio.Event()
        self._retries = Backoff()
        self._is_clean, self._is_due = True, False
        self._expiry: asyncio.Task[None] | None = None
        self._trackers: dict[PullRequest, PullTracker] = {}
        self._configs: dict[str, ImageConfig] = {}
        self._unusable: set[str] = set()

    def reconfigure(self, config: ImagesConfig) -> None:
        """Pull and pin by another configuration from now on, as far as that can change: see ``daemon.reload``."""
        self._config = config
        self._catalog.pin(config.pinned)

    async def settle_pulls(self) -> None:
        """Wait for the pulls that are under way now."""
        await self._pulls.settle()

    async def pull(
        self, reference: str, credentials: Credentials | None, annotations: Mapping[str, str], runtime_handler: str
    ) -> str:
        """Fetch an image for the handler's platform, unpack it for its snapshotter, and return its id.

        Requests for the same image at the same time share one pull, which goes on when all of them were cancelled.
        Of the ``annotations`` only ``VERIFY`` means something here. Raises InvalidArgument for a malformed reference or
        an unknown handler, NotFound when no source has the image, and what sources, unpacking and snapshotters raise.
        """
        request = PullRequest(
            ImageReference.parse(reference),
            self._slots.runtime(runtime_handler).traits().platform or self._platform,
            credentials,
            self._slots.snapshotter_of(runtime_handler).name,
            verify=annotations.get(VERIFY) == "true",
        )
        record = await self._pulls.join(request, lambda: self._pull(request))
        return record.id

    async def take_in(
        self, source: ImageSource, reference: ImageReference | None, platform: Platform | None = None
    ) -> ImageRecord:
        """As ``pull``, of a source that no configuration names; without a reference the image gets no name."""
        request = PullRequest(
            reference or _NAMELESS,
            platform or self._platform,
            None,
            self._slots.snapshotter_of("").name,
            source=source,
            is_named=reference is not None,
        )
        try:
            return await self._pulls.join(request, lambda: self._pull(request))
        except CrinoidError:
            await self.collect_garbage()  # what it brought is gone by the time that anybody hears of the failure
            raise

    async def tag(self, image: str, name: str) -> ImageRecord:
        """Give an image one more name, which leaves the image that had it. Idempotent.

        Raises NotFound, and InvalidArgument for what is no name with a tag.
        """
        wanted = ImageReference.parse(name)
        if wanted.digest:
            raise InvalidArgument(f"{name!r} has a digest: a name that an image is given is a repository and a tag")
        record = self._get(image)
        return await self._rename(replace(record, tags=tuple(dict.fromkeys((*record.tags, str(wanted))))))

    async def untag(self, name: str) -> ImageRecord:
        """Take a name, with a tag or a digest, from its image, which stays with what names it has left.

        Raises NotFound for what is no image's name.
        """
        full = name_of(ImageReference.parse(name))
        record = self._catalog.find(full)
        if record is None or full not in (*record.tags, *record.digests):
            raise NotFound(f"no image is called {full}; `crinoid ctl images` lists those there are")
        left = ((one for one in names if one != full) for names in (record.tags, record.digests))
        tags, digests = map(tuple, left)
        return await self._rename(replace(record, tags=tags, digests=digests))

    @contextlib.asynccontextmanager
    async def holding(self, digests: Iterable[str]) -> AsyncIterator[None]:
        """Keep blobs, which garbage collection leaves alone while the block runs."""
        async with self._leases.hold(digests):
            yield

    async def let_go(self, digests: Iterable[str]) -> None:
        """Remove blobs that no image needs after all."""
        self._garbage.let_go(Leftover(tuple(digests)))
        await self.collect_garbage()

    def documents(self) -> SourceDocuments:
        """Return what image sources have beside layers, asked with the node's own credentials."""
        return SourceDocuments(self._slots.registries, self._platform)

    @property
    def platform(self) -> Platform:
        """What images are for on this node."""
        return self._platform

    def _get(self, image: str) -> ImageRecord:
        if (record := self._catalog.find(image)) is None:
            raise NotFound(f"there is no image {image!r}; `crinoid ctl images` lists those there are")
        return record

    async def _rename(self, record: ImageRecord) -> ImageRecord:
        renamed = self._catalog.rename(record)
        await self._catalog.sync()
        await self._exports.write(self._store.images)
        return renamed

    def find(self, reference: str, handler: str | None = None) -> ImageRecord | None:
        """Return the image of a reference in full or short form, an id, or four and more digits that begin one id.

        A name means the image for the platform of a runtime handler (empty: the default); ``None``: for any platform.
        """
        return self._catalog.find(reference, None if handler is None else self._platform_of(handler))

    def check_platform(self, record: ImageRecord, handler: str) -> None:
        """Raise InvalidArgument for an image that a runtime handler can't run: an id may be that of any image."""
        artifacts = self._slots.runtimes[handler].traits().artifact_types if handler in self._slots.runtimes else ()
        if record.artifact:
            if record.artifact not in artifacts:
                raise InvalidArgument(
                    f"{_name(record)} is an artifact of type {record.artifact}: mount it as a volume, it can't be run"
                )
        elif record.platform != (wanted := self._platform_of(handler)):
            platforms = [one or str(self._platform) for one in (record.platform, wanted)]
            raise InvalidArgument(
                f'{_name(record)} is for {platforms[0]}, and runtime handler "{handler}" runs {platforms[1]}'
            )

    def _platform_of(self, handler: str) -> str:
        """Return the platform of a handler's images, as records tell it."""
        platform = self._slots.platform_of(handler)
        return "" if platform is None else self._recorded_as(platform)

    def _recorded_as(self, platform: Platform) -> str:
        """Return a platform as records tell it: empty for the node's own, or where no handler asks for it."""
        wanted = platform.normalized()
        asked = [slot.traits().platform for slot in self._slots.runtimes.values()]
        is_own = wanted == self._platform.normalized()
        return str(wanted) if not is_own and wanted in [one.normalized() for one in asked if one is not None] else ""

    def get(self, image_id: str) -> ImageRecord | None:
        """Return the image with exactly this id."""
        return self._catalog.get(image_id)

    def find_usable(self, reference: str, handler: str = "") -> ImageRecord | None:
        """Return the image of a reference as ``find``, but none that containers can't be made of until it is pulled.

        What asks before it pulls, as the kubelet does, pulls it then.
        """
        record = self.find(reference, handler)
        return None if record is None or record.id in self._unusable else record

    async def verify(self, record: ImageRecord) -> Sequence[str]:
        """Read all that is stored of an image, and look for its layers; return what is wrong.

        A blob that is not stored is no fault where its layer is unpacked: it may never have been fetched.
        """
        wrong = [
            f"blob {digest} {words}"
            for digest in dict.fromkeys((*record.manifests, *(() if record.artifact else (record.id,))))
            if (words := await call_in_thread(partial(self._content.examine, digest)))
        ]
        unpacked: set[str] = set()
        for slot in self._slots.snapshotters.values():
            listed = {chain_id for chain_id, _ in await slot.list_layers()}
            whole = {chain_id for chain_id in record.chain_ids if await slot.has_layer(chain_id)}
            for chain_id in sorted(whole) if slot.implements("verify_layer") else ():
                try:
                    await slot.verify_layer(chain_id)
                except CorruptContent as error:
                    wrong.append(error.message)
                    whole.remove(chain_id)
            unpacked |= whole
            if lost := [chain_id for chain_id in record.chain_ids if chain_id in listed - whole]:
                wrong.append(f"{slot.label}: layer {lost[0]} has lost its files, or one below it has")
        for layer, chain_id in zip(record.layers, record.chain_ids, strict=True):
            words = await call_in_thread(partial(self._content.examine, layer.digest))
            if words and not (chain_id in unpacked and not self._content.has(layer.digest)):
                wrong.append(f"blob {layer.digest} {words}")
        return wrong

    @property
    def version(self) -> int:
        """Another number after each change of any image's record."""
        return self._store.images.version

    def list(self) -> Sequence[ImageRecord]:
        """Return all images, the one pulled last first."""
        return self._catalog.list()

    def info(self, record: ImageRecord) -> Mapping[str, str]:
        """Return what verbose ImageStatus tells, in the form that clients of containerd know."""
        info = {"info": json.dumps({"chainID": top_of(record) or "", "imageSpec": json.loads(record.config)})}
        return info | ({"decisions": json.dumps(dict(record.decisions))} if record.decisions else {})

    def user_of(self, record: ImageRecord) -> tuple[int | None, str]:
        """Return the image's user: a uid, or a name where it is none; neither where the image names no user.

        The group after a colon is not told (api.proto, Image).
        """
        try:
            return image_user(self.config_of(record).config.user)
        except CrinoidError as error:  # no reason to show none of the others
            LOG.debug("the user of image %s is not known: %s", record.id, error.message)
            return None, ""

    def config_of(self, record: ImageRecord) -> ImageConfig:
        """Return the image configuration, parsed."""
        if record.id not in self._configs:
            self._configs[record.id] = parse(ImageConfig, record.config, f"image configuration {record.id}")
        return self._configs[record.id]

    def defaults_of(self, record: ImageRecord) -> ContainerDefaults:
        """Return what containers of the image take from it; of an artifact its first file is the program."""
        defaults = self.config_of(record).config
        if not record.artifact or not record.layers:
            return defaults
        return defaults.model_copy(update={"entrypoint": (f"/{plan_artifact(record.layers)[0].file}",)})

    @property
    def pulled(self) -> Mapping[tuple[str, str], PullSums]:
        """What pulls that ended come to, by registry and outcome. May be called in any thread."""
        return self._pulled.sums()

    def progress(self) -> tuple[PullProgress, ...]:
        """Return how far each pull is that is under way."""
        return tuple(tracker.report() for tracker in self._trackers.values())

    async def remove(self, reference: str, handler: str = "") -> None:
        """Forget an image with all its names, and give back what only it needed. Idempotent.

        By whatever name it is called, all of the image goes. Containers that stand on it keep its layers.
        """
        record = self.find(reference, handler or None)
        if record is None:
            return
        # The record first: a kill from here on leaves layers and blobs that nobody names, and the next start collects
        # them. In the other order it would leave an image without its layers.
        self._drop(record)
        await self.collect_garbage()
        await self._exports.write(self._store.images)
        await self._slots.extensions.image_removed(record.id)

    async def ensure_unpacked(self, record: ImageRecord, snapshotter: str) -> str | None:
        """Return the chain id of the image in a snapshotter, unpacking stored blobs where layers are missing there.

        ``None`` for an image without layers. Raises FailedPrecondition when blobs are gone or damaged, too; from then
        on ``find_usable`` finds the image no more, until it is pulled.
        """
        if (
            slot := self._slots.snapshotters.get(snapshotter)
        ) is None:  # a pod's that was made with another configuration
            known = ", ".join(sorted(self._slots.snapshotters))
            raise InvalidArgument(f'snapshotter "{snapshotter}" is not in the configuration; known: {known}')
        if record.artifact:
            plans = plan_artifact(record.layers)
        else:
            plans = plan_layers(record.layers, self.config_of(record).rootfs.diff_ids)
        with while_doing(_name(record)):
            self._layers.check(slot, plans)
        # Leased before the look at what is missing, so that no collection removes what was found there.
        names = [name for plan in plans for name in (plan.chain_id, plan.blob.digest)]
        async with self._leases.hold(names):
            missing = await self._layers.select_missing(slot, plans)
            gone = [plan.blob.digest for plan in missing if not self._content.has(plan.blob)]
            if gone:
                wrong = await call_in_thread(partial(self._content.examine, gone[0]))
                raise self._unusable_now(record, f"{slot.label} lacks layers of it, and blob {gone[0]} {wrong}")
            try:
                with while_doing(_name(record)):
                    await run_together(self._layers.install(slot, plan) for plan in missing)
            except CorruptContent as error:
                blobs = [plan.blob.digest for plan in missing]
                if not (found := await call_in_thread(partial(self._content.remove_damaged, blobs))):
                    raise
                words = "; ".join(f"blob {digest} {wrong}" for digest, wrong in found.items())
                raise self._unusable_now(record, f"{slot.label} lacks layers of it, and {words}") from error
        return top_of(record)

    def _unusable_now(self, record: ImageRecord, why: str) -> FailedPrecondition:
        self._unusable.add(record.id)
        return FailedPrecondition(f"{_name(record)}: {why}: pull the image again (crinoid image verify --repair does)")

    async def filesystems(self) -> tuple[tuple[FilesystemReport, ...], tuple[FilesystemReport, ...]]:
        """Measure what images take, and what writable layers take; the default snapshotter comes first."""
        return await self._filesystems.images(), await self._filesystems.containers()

    async def collect_garbage(self) -> None:
        """Remove layers and blobs that no image needs; what containers or pulls use stays.

        Callers that come before a collection has begun share it; it goes on when they are cancelled.
        """
        await self._collections.join(self._collected, self._collect)

    async def recover(self) -> None:
        """Put in order what a killed daemon left. Call once, before anything else."""
        await discard_unfinished(self._store.ledger, self._slots.snapshotters)
        self._content.remove_stale(KEPT_S)  # what an interrupted pull had fetched in part: the next try resumes it
        for record in self._store.images:
            if record.id in self._catalog.damaged:  # what it needs is not known
                if not self._is_complete(record):
                    self._unusable.add(record.id)
                continue
            if not await is_usable(record, self._content, self._slots.snapshotters):
                LOG.error("%s has lost its layers and blobs and is forgotten: pull it again", _name(record))
                self._drop(record)
        self._catalog.tidy()
        if self._store.is_new:
            LOG.debug("the state is new: layers and blobs that are there stay until the next start")
        else:
            await self._garbage.find_all(KEPT_S)
        await self._collect()
        self._watch_leftovers(at_once=False)
        await self._exports.write(self._store.images)

    async def close(self) -> None:
        """Give up pulls that are under way, leaving nothing half made. Idempotent."""
        await self._pulls.close()
        await self._layers.close()
        await self._puller.close()
        await self._collections.close()
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.wait({self._expiry})

    async def _pull(self, request: PullRequest) -> ImageRecord:
        tracker = self._trackers[request] = PullTracker(str(request.reference))
        outcome, began_s = "cancelled", time.monotonic()
        try:
            with on_behalf_of(f"the pull of {request.reference}"):
                record = await self._puller.pull(request, self._recorded_as(request.platform), self._config, tracker)
            outcome = "ok"
        except BaseException as error:  # cancelled, too: what came is kept, but not for ever
            outcome = error.reason if isinstance(error, CrinoidError) else outcome
            self._watch_leftovers()
            raise
        finally:
            registry = request.reference.registry if request.source is None else "archive"
            self._pulled.note(registry, outcome, time.monotonic() - began_s, tracker.fetched_bytes)
            del self._trackers[request]
        LOG.info("pulled %s: %s", request.reference, record.id)
        self._configs.pop(record.id, None)  # it may be that of a record that could not be read
        self._unusable.discard(record.id)
        await self._exports.write(self._store.images)
        await self._slots.extensions.image_pulled(str(request.reference), record.id)
        return record

    async def _collect(self) -> None:
        async with self._collecting:
            self._collected += 1  # who comes from here on may have garbage that this collection has passed by
            is_clean = await discard_left(self._store.ledger, self._slots.snapshotters)
            is_clean &= await self._garbage.collect()
            self._is_clean = is_clean
            if is_clean:
                self._retries.forget(_COLLECTION)
            else:
                self._retries.note_failure(_COLLECTION)
        if not is_clean:
            self._watch_leftovers(at_once=False)

    def _watch_leftovers(self, *, at_once: bool = True) -> None:
        """See to it that what failed pulls left, and what could not be removed, is collected in time."""
        self._is_due |= at_once
        self._left.set()
        if self._expiry is None or self._expiry.done():
            self._expiry = asyncio.create_task(self._expire(), name="leftovers of failed pulls")

    async def _expire(self) -> None:
        while True:
            self._left.clear()
            if self._is_due:
                self._is_due = False
                try:
                    await self.collect_garbage()
                except CrinoidError as error:
                    LOG.warning("what failed pulls left could not be collected: %s", error.message)
            waits_s = [] if self._is_clean else [self._retries.wait_s([_COLLECTION])]
            if (next_s := self._garbage.leftovers.next_s()) is not None:
                waits_s.append(next_s)
            if self._catalog.damaged or not waits_s:
                return
            try:
                async with asyncio.timeout(min(waits_s)):
                    await self._left.wait()
            except TimeoutError:
                self._is_due = True

    def _is_complete(self, record: ImageRecord) -> bool:
        """Return whether what can be read of an image's record is enough to make containers of it."""
        if record.artifact:
            return bool(record.layers)
        try:
            diff_ids = self.config_of(record).rootfs.diff_ids
        except CrinoidError:
            return False
        return 0 < len(diff_ids) == len(record.layers) == len(record.chain_ids)

    def _drop(self, record: ImageRecord) -> None:
        self._catalog.remove(record)
        self._configs.pop(record.id, None)
        self._unusable.discard(record.id)


def parse_platform(text: str) -> Platform:
    """Read ``os/architecture[/variant]``."""
    system, architecture, *variant = text.split("/")
    return Platform(system, architecture, *variant)


def host_platform() -> Platform:
    """Return what this machine runs, in Go's terms."""
    machine = os.uname().machine
    return Platform("linux", *_MACHINES.get(machine, (machine, "")))


def _name(record: ImageRecord) -> str:
    """Call an image by the name that an operator knows it by."""
    return f"image {next(iter((*record.tags, *record.digests)), record.id)}"
