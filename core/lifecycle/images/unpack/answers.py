"""What the child tells the daemon when it is done: fields of bytes between NULs, which no name in a tree contains.

Neither JSON nor dataclasses: both import ``re``, and a child would take half as long again to start.
"""

IMPLIED, RENEWED, HIDING = b"i", b"r", b"h"


class Unpacked:
    """The layer is in the target. ``directories``: paths of directories that need a look at lower layers, by kind.

    A kind is ``IMPLIED`` (made without an entry of their own), ``RENEWED`` or ``HIDING``, as ``Tree`` has them.
    """

    __slots__ = ("diff_id", "directories", "inodes", "used_bytes")

    def __init__(
        self, diff_id: str, used_bytes: int, inodes: int, directories: tuple[tuple[bytes, bytes], ...]
    ) -> None:
        self.diff_id = diff_id
        self.used_bytes = used_bytes
        self.inodes = inodes
        self.directories = directories

    def encode(self) -> bytes:
        """Write the answer."""
        head = (b"done", self.diff_id.encode(), b"%d" % self.used_bytes, b"%d" % self.inodes)
        return b"\0".join((*head, *(kind + path for kind, path in self.directories)))


class Failed:
    """The layer is not, or not all, in the target. ``errno`` is 0 where the system had no part in it."""

    __slots__ = ("entry", "errno", "kind", "message")

    def __init__(self, kind: str, errno: int, entry: bytes, message: str) -> None:
        self.kind = kind
        self.errno = errno
        self.entry = entry
        self.message = message

    def encode(self) -> bytes:
        """Write the answer."""
        entry = self.entry.replace(b"\0", b"")
        message = self.message.encode("utf-8", "backslashreplace").replace(b"\0", b"")
        return b"\0".join((b"failed", self.kind.encode(), b"%d" % self.errno, entry, message))


def decode(answer: bytes) -> Unpacked | Failed | None:
    """Read an answer; None where there is none, as when the child was killed."""
    match answer.split(b"\0"):
        case [b"done", diff_id, used_bytes, inodes, *directories]:
            return Unpacked(diff_id.decode(), int(used_bytes), int(inodes), tuple((f[:1], f[1:]) for f in directories))
        case [b"failed", kind, number, entry, message]:
            return Failed(kind.decode(), int(number), entry, message.decode("utf-8", "backslashreplace"))
    return None
