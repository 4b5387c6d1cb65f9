"""What can be wrong with a layer, as the child knows it; ``layer`` in the daemon turns them into the one error tree.

``kind`` is the name that travels over the pipe.
"""


class ArchiveFault(Exception):
    """Base: the layer can't be unpacked, and the message says why. The caller adds the entry's name."""

    kind = "corrupt"


class Corrupt(ArchiveFault):
    """The blob is damaged or malformed, or asks for what no layer may ask for."""


class NotADirectory(Corrupt):
    """The layer has something else where a directory must be."""


class TooLarge(ArchiveFault):
    """A limit of the request is passed."""

    kind = "limit"


class NotSupported(ArchiveFault):
    """The layer is sound but uses something that is not done here."""

    kind = "unsupported"


def show(name: bytes) -> str:
    """Write a name from an archive, which is bytes in no known encoding, for a message."""
    return ascii(name[:300].decode("utf-8", "surrogateescape")) if not name.isascii() else repr(name[:300].decode())
