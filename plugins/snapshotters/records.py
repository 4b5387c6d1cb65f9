"""What is written beside each layer and snapshot, and read again at start."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crinoid.core.api.values.snapshot import DiskUsage

LAYER_FILE = "layer.json"
SNAPSHOT_FILE = "snapshot.json"
NOT_MEASURED = DiskUsage(0, 0)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Layer:
    """A committed layer; ``number`` names its directory. ``usage`` counts no inode until somebody has measured it."""

    number: int
    chain_id: str
    parent: str | None
    usage: DiskUsage = NOT_MEASURED

    def encode(self) -> bytes:
        """Return the content of the layer's record."""
        record = {
            "chain_id": self.chain_id,
            "parent": self.parent,
            "used_bytes": self.usage.used_bytes,
            "inodes": self.usage.inodes,
        }
        return json.dumps(record).encode()

    @classmethod
    def read(cls, directory: Path) -> "Layer":
        """Read the layer of a directory. Raises OSError, ValueError, KeyError or TypeError for a damaged one."""
        record = json.loads((directory / LAYER_FILE).read_bytes())
        usage = DiskUsage(int(record["used_bytes"]), int(record["inodes"]))
        return cls(int(directory.name), str(record["chain_id"]), _text_or_none(record["parent"]), usage)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A writable part, or a read-only view, on top of ``parent``; ``number`` names its directory."""

    number: int
    key: str
    parent: str | None
    readonly: bool

    def encode(self) -> bytes:
        """Return the content of the snapshot's record."""
        return json.dumps({"key": self.key, "parent": self.parent, "readonly": self.readonly}).encode()

    @classmethod
    def read(cls, directory: Path) -> "Snapshot":
        """Read the snapshot of a directory. Raises OSError, ValueError, KeyError or TypeError for a damaged one."""
        record = json.loads((directory / SNAPSHOT_FILE).read_bytes())
        parent = _text_or_none(record["parent"])
        return cls(int(directory.name), str(record["key"]), parent, bool(record["readonly"]))


def read_all(directory: Path, read: Callable[[Path], R], damaged: list[Path]) -> Iterator[R]:
    """Read the record of every directory below one; name those without a readable one in ``damaged``."""
    for below in sorted(directory.iterdir()):
        try:
            record = read(below)
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(below)
        else:
            yield record


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
