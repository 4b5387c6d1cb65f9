"""Whether what a row of the ledger names is its owner's: told by the names themselves, never by the row's word alone.

Undoing unmounts, removes and ends what rows name, and a row may be damaged. Every owner holds a part that crinoid drew
at random (``drawn_part``), and whatever is made for an owner has that part in its name or in the name of a directory
above. Nobody could know it before, so a path with it is the owner's, wherever ``run`` and ``root`` lie today; a path
without it is not, another pod's neither. Cgroups tell by themselves (``core.api.linux.cgroups.belongs_to``).

All checks raise ValueError or TypeError that says what is wrong.
"""

import re
import secrets
from pathlib import Path

_DRAWN = re.compile(r"[0-9a-f]{32,64}")
_CHECKPOINT_OWNER = "checkpoint/"
_SEPARATOR, _CHECKPOINT = ".image-", "checkpoint-"


def drawn_part(owner: str) -> str:
    """Return what was drawn for an owner: an id, that of the pod of ``ID/init``, the last part of ``checkpoint/…``."""
    found = next((part for part in owner.split("/") if _DRAWN.fullmatch(part)), None)
    if found is None:
        raise ValueError(f"owner {owner!r:.100} is none that crinoid gives")
    return found


def require_path(path: str, owner: str) -> None:
    """Check a path: absolute, without ``..``, and with the owner's part in one of its names."""
    require_absolute(path)
    if not is_own(path, owner):
        raise ValueError(f"path {path!r:.300} has no name that was given for owner {owner}")


def require_paths(paths: object, owner: str) -> None:
    """Check what should be a list of paths."""
    if not isinstance(paths, list):
        raise TypeError(f"{paths!r:.100} is no list of paths")
    for path in paths:
        require_path(path, owner)


def require_absolute(path: object) -> None:
    """Check that this is the path of something below the root."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"{path!r:.300} is no absolute path")


def is_own(path: str, owner: str) -> bool:
    """Return whether one of a path's names, or a name alone, holds the owner's part."""
    return drawn_part(owner) in path


def require_id(one: str, owner: str) -> None:
    """Check the id of a pod or container."""
    if one != drawn_part(owner):
        raise ValueError(f"{one!r:.100} is not the id of owner {owner}")


def require_snapshot(key: str, owner: str) -> None:
    """Check a snapshot's key: it begins with the owner's id, but for the snapshots that a checkpoint compares with."""
    if owner.startswith(_CHECKPOINT_OWNER):
        if not key.partition(_SEPARATOR)[2].startswith(_CHECKPOINT):
            raise ValueError(f"snapshot {key!r:.100} is none of a checkpoint")
    else:
        require_id(owner_of(key), owner)


def own_directory(directory: Path, owner: str) -> bool:
    """Return whether a directory lies there that has the owner's part in its name."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    return any(is_own(path.name, owner) and path.is_dir() and not path.is_symlink() for path in directory.iterdir())


def owner_of(snapshot_key: str) -> str:
    """Return the id of the pod or container that a snapshot is for: keys of further ones go on after it."""
    return snapshot_key.partition(_SEPARATOR)[0]


def volume_key(container_id: str, name: str) -> str:
    """Return the key of the snapshot that is a container's image volume."""
    return f"{container_id}{_SEPARATOR}{name}"


def checkpoint_key(container_id: str) -> str:
    """Return the key of the snapshot that a container's files are compared with for a checkpoint, or restored from."""
    return f"{container_id}{_SEPARATOR}{_CHECKPOINT}{secrets.token_hex(4)}"
