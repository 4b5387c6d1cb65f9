"""Names in an archive: what they mean, before any file system is asked."""

from crinoid.core.lifecycle.images.unpack.faults import Corrupt, show

_NO_NAMES = frozenset({b"", b".", b".."})


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return the parent and the last part of an entry's name; both empty for the root itself.

    A leading slash, ``./``, doubled slashes and a trailing slash mean nothing, and ``a/..`` is nothing, as with
    peers. The parent comes as it is written where it can, so that it serves as a key. Raises Corrupt for a name
    that leads above the root.
    """
    parent, _, base = name.rpartition(b"/")
    if base not in _NO_NAMES:
        return parent, base
    parts = parse(name)
    return (b"/".join(parts[:-1]), parts[-1]) if parts else (b"", b"")


def parse(name: bytes) -> list[bytes]:
    """Return the parts of a path relative to the root. Raises Corrupt for one that leads above it."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise Corrupt(f"the name {show(name)} leads out of the layer")
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    return parts
