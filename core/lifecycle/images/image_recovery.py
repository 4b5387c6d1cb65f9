"""Puts the images in order when the daemon starts: what a killed daemon left half made goes, what is whole stays."""

import logging
from collections.abc import Mapping

from crinoid.core.api.errors import CrinoidError
from crinoid.core.lifecycle.images.implied import LEFT, OWNER, VIEW
from crinoid.core.lifecycle.images.layers import LAYER
from crinoid.core.lifecycle.images.plans import top_of
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore
from crinoid.core.state.records import ImageRecord
from crinoid.core.state.store import Ledger, LedgerEntry

LOG = logging.getLogger(__name__)


async def discard_unfinished(ledger: Ledger, snapshotters: Mapping[str, SnapshotterSlot]) -> None:
    """Discard every layer that was being unpacked and delete it from the ledger. No pull is under way.

    What a snapshotter can't discard now is logged, and ``discard_left`` tries it again; what is of a snapshotter that
    is no longer configured stays in the ledger.
    """
    for name, slot in snapshotters.items():
        # The snapshotter knows best what is unfinished: a kill may have come before the key of it was in the ledger.
        try:
            unfinished = await slot.list_unfinished()
        except CrinoidError as error:
            LOG.warning("what was half unpacked can't be discarded before the next start: %s", error.message)
            continue
        left = {key for key in unfinished if not await _discard_layer(slot, key)}
        for entry in ledger.entries(OWNER):
            if entry.kind != LAYER or entry.data.get("snapshotter") != name:
                continue
            if (key := entry.data.get("key")) in left:
                left.discard(str(key))
                ledger.update(entry, {**entry.data, LEFT: True})
            else:
                ledger.forget(entry)
        ledger.record_all(OWNER, [(LAYER, key, {"snapshotter": name, "key": key, LEFT: True}) for key in left])
    for entry in ledger.entries(OWNER):
        named = snapshotters.get(str(entry.data.get("snapshotter")))
        if named is None:
            LOG.warning("%s %s is left in snapshotter %s, which is not configured", entry.kind, entry.key, entry.data)
        elif entry.kind == VIEW:
            await _remove_view(ledger, named, entry)


async def discard_left(ledger: Ledger, snapshotters: Mapping[str, SnapshotterSlot]) -> bool:
    """Try again to discard what pulls have left since a snapshotter could not; tell whether nothing is left.

    Other pulls may be under way.
    """
    are_gone = []
    for entry in ledger.entries(OWNER):
        slot = snapshotters.get(str(entry.data.get("snapshotter")))
        if slot is None or not entry.data.get(LEFT):
            continue
        if entry.kind == VIEW:
            are_gone.append(await _remove_view(ledger, slot, entry))
            continue
        are_gone.append(await _discard_layer(slot, str(entry.data["key"])))
        if are_gone[-1]:
            ledger.forget(entry)
    return all(are_gone)


async def is_usable(record: ImageRecord, content: ContentStore, snapshotters: Mapping[str, SnapshotterSlot]) -> bool:
    """Return whether containers can be made of the image: some snapshotter has it, or all its blobs are there.

    A snapshotter that can't answer may have it.
    """
    top = top_of(record)
    if top is None or all(content.has(layer) for layer in record.layers):
        return True
    for slot in snapshotters.values():
        try:
            if await slot.has_layer(top):
                return True
        except CrinoidError as error:
            LOG.warning("whether image %s is unpacked can't be found out: %s", record.id, error.message)
            return True
    return False


async def _discard_layer(slot: SnapshotterSlot, key: str) -> bool:
    LOG.info("%s: layer %s was half unpacked and is discarded", slot.label, key)
    try:
        await slot.discard_layer(key)
    except CrinoidError as error:
        LOG.warning("layer %s could not be discarded: %s", key, error.message)
        return False
    return True


async def _remove_view(ledger: Ledger, slot: SnapshotterSlot, entry: LedgerEntry) -> bool:
    try:
        await slot.remove_snapshot(entry.key)
        ledger.forget(entry)
    except CrinoidError as error:
        LOG.warning("snapshot %s could not be removed: %s", entry.key, error.message)
        return False
    return True
