"""The third step of a pull: unpacks blobs of the content store into layers of a snapshotter, each one once.

A large blob is unpacked while it comes in, and its layer committed only when the blob turned out to be what it should.
A layer is in the ledger from before ``prepare_layer`` until it is committed or discarded, so that nothing of a pull
that failed, was cancelled or died is left. Pulls that need the same layer at the same time share the work.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from crinoid.core.api.errors import CrinoidError, Unsupported
from crinoid.core.api.finishing import finish
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.timeline import stage
from crinoid.core.api.values.image import Credentials, ImageReference
from crinoid.core.api.values.snapshot import LayerDescriptor, LayerForm, LayerStream, LayerTarget
from crinoid.core.lifecycle.concurrency.single_flight import SharedTasks
from crinoid.core.lifecycle.images.blobs import Follower, InflightBlobs
from crinoid.core.lifecycle.images.faults import while_doing
from crinoid.core.lifecycle.images.implied import LEFT, OWNER, settle
from crinoid.core.lifecycle.images.plans import LayerPlan
from crinoid.core.lifecycle.images.unpack.child import ARCHIVE
from crinoid.core.lifecycle.images.unpack.launcher import Launcher
from crinoid.core.lifecycle.images.unpack.layer import UnpackRequest, UnpackResult, unpack_layer
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore
from crinoid.core.state.store import Ledger, LedgerEntry

LOG = logging.getLogger(__name__)
LAYER = "layer"
TAR_LAYER = "application/vnd.oci.image.layer.v1.tar"
PATIENCE_S = 5.0
"""How long a preparation that is given up may take to tell what it made."""


class _BrokenOffError(Exception):
    """The blob that was being followed did not become whole."""


class Layers:
    """Unpacks layers, at most ``max_unpacks`` at a time besides those whose blobs are still coming in."""

    def __init__(
        self, ledger: Ledger, content: ContentStore, inflight: InflightBlobs, max_unpacks: int, keep_free_percent: float
    ) -> None:
        self._ledger = ledger
        self._keep_free_percent = keep_free_percent
        self._content = content
        self.inflight = inflight
        self._turns = asyncio.Semaphore(max_unpacks)
        self._launcher = Launcher()
        self._shared = SharedTasks("unpacking of layer", orphans="cancel")
        self._commits: WeakValueDictionary[tuple[str, str], asyncio.Event] = WeakValueDictionary()

    async def select_missing(self, slot: SnapshotterSlot, plans: Sequence[LayerPlan]) -> Sequence[LayerPlan]:
        """Return the layers that the snapshotter lacks; below one that it has, it has all."""
        for count in range(len(plans), 0, -1):
            if await slot.has_layer(plans[count - 1].chain_id):
                return plans[count:]
        return plans

    async def bring(
        self, slot: SnapshotterSlot, plans: Sequence[LayerPlan], image: ImageReference, credentials: Credentials | None
    ) -> Sequence[LayerPlan]:
        """Have the snapshotter bring layers by itself, from the bottom; return those that it does not."""
        for count, plan in enumerate(plans if slot.implements("bring_layer") else ()):
            layer = LayerDescriptor(plan.chain_id, plan.parent, plan.diff_id, plan.blob, image, credentials)
            if not await slot.bring_layer(layer):
                return plans[count:]
        return () if slot.implements("bring_layer") else plans

    def check(self, slot: SnapshotterSlot, plans: Sequence[LayerPlan]) -> None:
        """Raise Unsupported for an image of more layers than the snapshotter takes."""
        most = slot.features().max_layers
        if most is not None and len(plans) > most:
            raise Unsupported(
                f"the image has {len(plans)} layers, and {slot.label} stacks at most {most}: flatten some of them, or "
                "use a handler with another snapshotter, such as native"
            )

    def warm_up(self) -> None:
        """Have what unpacks ready: layers are on their way."""
        self._launcher.warm_up()

    async def install(self, slot: SnapshotterSlot, plan: LayerPlan) -> None:
        """Return when the layer is committed; its blob is in the store, or is brought and expected (``inflight``).

        Its parent is committed, or is being installed by another call: this one waits for that at the latest moment
        that the snapshotter allows. Raises what ``unpack_layer`` and the snapshotter raise.
        """
        with stage(f"unpack {plan.blob.digest[:19]}"):
            await self._shared.join((slot.name, plan.chain_id), lambda: self._install(slot, plan))

    @contextmanager
    def remembering_commits(self, slot: SnapshotterSlot, plans: Sequence[LayerPlan]) -> Iterator[None]:
        """Remember the commits of layers while the block installs them.

        Otherwise the snapshotter is asked about the parent of each, and looks after all that is below.
        """
        committed = [self._committed(slot, plan.chain_id) for plan in plans]
        yield
        committed.clear()

    def follows(self, plan: LayerPlan) -> bool:
        """Return whether the layer is better installed while its blob is fetched than after that."""
        return not plan.file and self.inflight.follows(plan.blob)

    async def close(self) -> None:
        """Give up what is under way, and discard it."""
        await self._shared.close()
        await self._launcher.close()

    async def _install(self, slot: SnapshotterSlot, plan: LayerPlan) -> None:
        with while_doing(f"layer {plan.blob.digest} unpack"):
            if not slot.features().parallel_unpack:  # it prepares a copy of the parent, which has to be there
                await self._await_commit(slot, plan.parent)
            is_there = await slot.has_layer(plan.chain_id)
            while not is_there:
                # Behind the writer of its blob where there is one; None: the blob is in the store.
                follower = await self.inflight.follow(plan.blob)
                try:
                    await self._make(slot, plan, follower)
                    is_there = True
                except _BrokenOffError:
                    LOG.info("layer %s: what came of blob %s is dropped", plan.chain_id, plan.blob.digest)
                finally:
                    if follower is not None:
                        follower.close()
        if (committed := self._commits.get((slot.name, plan.chain_id))) is not None:
            committed.set()

    async def _make(self, slot: SnapshotterSlot, plan: LayerPlan, follower: Follower | None) -> None:
        """Prepare, fill and commit a layer; what was made of it is discarded when that fails or is cancelled."""
        facts = {"snapshotter": slot.name, "parent": plan.parent}
        entry = self._ledger.record(OWNER, LAYER, plan.chain_id, facts)
        preparing = asyncio.create_task(slot.prepare_layer(plan.chain_id, plan.parent))
        try:
            # Shielded: whoever gives up here must yet learn what the driver made, to have it discarded.
            target = await asyncio.shield(preparing)
            entry = self._ledger.update(entry, facts | {"key": target.key})
            unpacked = await self._fill(slot, plan, target, follower)
            # Overlay layers are unpacked side by side, each without its parents; only the commit goes from the bottom
            # up, since a layer that is there promises that all below it are.
            await self._await_commit(slot, plan.parent)
            if target.form is LayerForm.DIRECTORY:
                await settle(self._ledger, slot, plan.parent, target, unpacked)
            await slot.commit_layer(target.key, plan.chain_id, plan.parent)  # syncs, then renames
        except BaseException:
            await finish(self._discard(slot, preparing, entry))
            raise
        self._ledger.forget(entry)

    async def _fill(
        self, slot: SnapshotterSlot, plan: LayerPlan, target: LayerTarget, follower: Follower | None
    ) -> UnpackResult:
        """Give the layer to the snapshotter in the form that it wants: most of them, unpacked in a directory."""
        if target.form is LayerForm.BLOB or (plan.file and not target.writer):
            return await self._place(slot, plan, target, follower)
        request = UnpackRequest(
            blob=self._content.path(plan.blob.digest),
            media_type=plan.blob.media_type,
            target=target.directory,
            whiteouts=target.whiteouts,
            expected_diff_id="" if plan.file else plan.diff_id,
            keep_free_percent=self._keep_free_percent,
            sync=False,  # commit_layer does that
            writer=target.writer,
            file=plan.file,
            form="tar" if target.form is LayerForm.TAR else "layer",
        )
        unpacked = await self._unpack(request, follower)
        if target.form is LayerForm.TAR:
            archive = target.directory / ARCHIVE
            with archive.open("rb") as file:
                archive.unlink()
                stream = LayerStream(file.fileno(), os.fstat(file.fileno()).st_size, TAR_LAYER, plan.diff_id)
                await slot.write_layer(target.key, stream)
        return unpacked

    async def _unpack(self, request: UnpackRequest, follower: Follower | None) -> UnpackResult:
        """Unpack the blob, or what comes of it behind its writer."""
        if follower is None:
            async with self._turns:
                return await unpack_layer(request, self._launcher)
        unpacking = asyncio.create_task(unpack_layer(replace(request, growing=follower.growing), self._launcher))
        try:
            # The transfer's end comes first: what the unpacker makes of bytes that turn out to be not the blob's
            # is nothing to raise, for it would blame the image where the source or the connection is at fault.
            if not await follower.wait():
                raise _BrokenOffError
            return await unpacking
        finally:
            await finish(_end(unpacking))
            follower.close()  # before the wait for the parent: the place is another layer's now

    async def _place(
        self, slot: SnapshotterSlot, plan: LayerPlan, target: LayerTarget, follower: Follower | None
    ) -> UnpackResult:
        """Give the blob as it is: to the driver, or, one that is a file of an artifact, to the target's directory."""
        if follower is not None and not await follower.wait():
            raise _BrokenOffError
        blob = self._content.path(plan.blob.digest)
        if target.form is LayerForm.DIRECTORY:
            await call_in_thread(lambda: place_file(blob, target.directory, plan.file))
            return UnpackResult("", 0, 0, (".",))
        with blob.open("rb") as file:
            stream = LayerStream(file.fileno(), plan.blob.size, plan.blob.media_type, plan.diff_id, plan.file)
            await slot.write_layer(target.key, stream)
        return UnpackResult("", 0, 0, ())

    async def _discard(self, slot: SnapshotterSlot, preparing: "asyncio.Task[LayerTarget]", entry: LedgerEntry) -> None:
        """Drop a prepared layer, once it is known what to drop; what can't be dropped now stays in the ledger."""
        _, late = await asyncio.wait({preparing}, timeout=PATIENCE_S)
        if late:
            preparing.cancel()
            await asyncio.wait(late)
        has_failed = preparing.cancelled() or preparing.exception() is not None
        is_gone = has_failed and not late  # what a late one made, list_unfinished tells at the next start
        if not has_failed and not late:
            try:
                await slot.discard_layer(preparing.result().key)
                is_gone = True
            except CrinoidError as error:
                LOG.warning("a half unpacked layer is left until the next garbage collection: %s", error.message)
        if is_gone:
            self._ledger.forget(entry)
        elif not has_failed:
            self._ledger.update(entry, {**entry.data, "key": preparing.result().key, LEFT: True})

    async def _await_commit(self, slot: SnapshotterSlot, chain_id: str | None) -> None:
        """Wait until a layer is there that this pull or another one installs; ``None`` stands below the lowest."""
        if chain_id is None:
            return
        # The event is there before the question: a commit that comes between the two is not missed.
        committed = self._committed(slot, chain_id)
        if not committed.is_set() and not await slot.has_layer(chain_id):
            await committed.wait()

    def _committed(self, slot: SnapshotterSlot, chain_id: str) -> asyncio.Event:
        key = (slot.name, chain_id)
        return self._commits.get(key) or self._commits.setdefault(key, asyncio.Event())


async def _end(unpacking: "asyncio.Task[UnpackResult]") -> None:
    """End an unpacker, unless it has ended; nobody asks any more what came of it."""
    unpacking.cancel()
    await asyncio.gather(unpacking, return_exceptions=True)


def place_file(blob: Path, root: Path, name: str) -> None:
    """Link or copy a blob, a file of an artifact, to ``name`` below a directory that holds nothing but such files.

    The layer is only ever mounted read-only, so that a link can't be a way to write to the content store. Blocks.
    """
    target = root / name
    for directory in reversed(target.relative_to(root).parents[:-1]):
        rights.make_directories(root / directory, rights.SHOWN_DIRECTORY)
    try:
        os.link(blob, target)
    except OSError:  # another file system, or too many links
        shutil.copyfile(blob, target)
    target.chmod(rights.SHOWN_FILE)  # a link's is the blob's, too, which lies behind a private directory
