"""Lists answered from kept bytes: an item is encoded once for as long as its record lives.

The kubelet lists pods and containers every second, and few of them change in between. The lists of the API have their
items in field 1, so the encoded items, each with that field's tag and its length before it, are the encoded list.
"""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from google.protobuf.message import Message

R = TypeVar("R")

_TAG = b"\x0a"  # field 1, with a length


class EncodedList(Generic[R]):
    """The bytes of one kind of list.

    Records are frozen, so a record that is the same object has the same bytes. What a full list no longer holds is
    forgotten with it.
    """

    def __init__(self, encode: Callable[[R], Message]) -> None:
        self._encode = encode
        self._kept: dict[int, tuple[R, bytes]] = {}

    def join(self, records: Iterable[R], full: bool) -> bytes:
        """Encode a response with these items, in their order; ``full`` tells that no filter left any out."""
        frames = {id(record): self._kept.get(id(record)) or (record, self._frame(record)) for record in records}
        if full:  # each record stays alive with its bytes, so its id can't become another's
            self._kept = frames
        return b"".join(frame for _, frame in frames.values())

    def _frame(self, record: R) -> bytes:
        """Encode an item, with the tag and the length, a varint, before it."""
        data = self._encode(record).SerializeToString()
        length = len(data)
        digits = bytearray()
        while length > 0x7F:
            digits.append(length & 0x7F | 0x80)
            length >>= 7
        digits.append(length)
        return _TAG + digits + data
