"""Layers as a pull plans them: each with its blob, what it unpacks to, and what it stands on.

Each blob of an artifact makes a layer of one file, named by the blob's title; so artifacts are kept, shared, collected
and mounted as images are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crinoid.core.api.errors import CorruptContent, Unsupported
from crinoid.core.api.values.image import Descriptor
from crinoid.core.lifecycle.images.image_config import chain_ids
from crinoid.core.state.records import ImageRecord

TITLE = "org.opencontainers.image.title"
MAX_FILES = 400
"""The kernel stacks 500 layers."""
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer of an image; ``parent`` is the chain id below it.

    ``file``: the layer is no archive, but a file of this name, relative to the root.
    """

    blob: Descriptor
    diff_id: str
    chain_id: str
    parent: str | None
    file: str = ""


def plan_layers(blobs: Sequence[Descriptor], diff_ids: Sequence[str]) -> tuple[LayerPlan, ...]:
    """Pair the manifest's layers with the configuration's; raise CorruptContent where they are not as many."""
    if len(blobs) != len(diff_ids):
        raise CorruptContent(f"the manifest has {len(blobs)} layers, but the configuration {len(diff_ids)} diffIDs")
    chain = chain_ids(diff_ids)
    parents = (None, *chain)  # one too many
    return tuple(LayerPlan(*facts) for facts in zip(blobs, diff_ids, chain, parents, strict=False))


def plan_artifact(blobs: Sequence[Descriptor]) -> tuple[LayerPlan, ...]:
    """Plan a layer for each blob of an artifact. Raises CorruptContent for names that lead elsewhere or come twice.

    A chain id of an artifact is never that of an image, whatever archives the artifact holds.
    """
    if len(blobs) > MAX_FILES:
        raise Unsupported(f"the artifact has {len(blobs)} files, more than {MAX_FILES}")
    names = [_file_of(blob) for blob in blobs]
    if len(set(names)) != len(names):
        raise CorruptContent("the artifact has two files of one name")
    facts = [f"artifact {blob.digest} {name}" for blob, name in zip(blobs, names, strict=True)]
    plans = plan_layers(blobs, [f"sha256:{hashlib.sha256(fact.encode()).hexdigest()}" for fact in facts])
    return tuple(replace(plan, file=name) for plan, name in zip(plans, names, strict=True))


def _file_of(blob: Descriptor) -> str:
    """Return the path of a blob's file: its title, or its digest where it has none."""
    title = blob.annotations.get(TITLE, "") or blob.digest.replace(":", "-")
    parts = title.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > _MAX_NAME for part in parts) or "\0" in title:
        raise CorruptContent(f"a file of the artifact has the title {title[:200]!r}, which is no name in a volume")
    return title


def top_of(record: ImageRecord) -> str | None:
    """Return the chain id of the whole image; ``None`` for one without layers."""
    return record.chain_ids[-1] if record.chain_ids else None
