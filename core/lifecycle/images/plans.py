"""Layers as a pull plans them: each with its blob, what it unpacks to, and what it stands on."""

from collections.abc import Sequence
from dataclasses import dataclass

from crinoid.core.api.errors import CorruptContent
from crinoid.core.api.values.image import Descriptor
from crinoid.core.lifecycle.images.documents import chain_ids
from crinoid.core.state.records import ImageRecord


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer of an image; ``parent`` is the chain id below it."""

    blob: Descriptor
    diff_id: str
    chain_id: str
    parent: str | None


def plan_layers(blobs: Sequence[Descriptor], diff_ids: Sequence[str]) -> tuple[LayerPlan, ...]:
    """Pair the manifest's layers with the configuration's; raise CorruptContent where they are not as many."""
    if len(blobs) != len(diff_ids):
        raise CorruptContent(f"the manifest has {len(blobs)} layers, but the configuration {len(diff_ids)} diffIDs")
    chain = chain_ids(diff_ids)
    parents = (None, *chain)  # one too many
    return tuple(LayerPlan(*facts) for facts in zip(blobs, diff_ids, chain, parents, strict=False))


def top_of(record: ImageRecord) -> str | None:
    """Return the chain id of the whole image; ``None`` for one without layers."""
    return record.chain_ids[-1] if record.chain_ids else None
