"""Lists answered from kept bytes: an item is encoded once for as long as its record lives.

The kubelet lists pods and containers every second, and few of them change in between. The lists of the API have their
items in field 1, so the encoded items, each with that field's tag and its length before it, are the encoded list. So
are those of the streams, whose messages are pieces of the list. An answer as a whole serves again until a record of
its kind changes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from google.protobuf.message import Message

R = TypeVar("R")

BATCH_BYTES = 1 << 20
"""How much of a list one message of a stream holds, far below any client's limit; a larger item has one of its own."""

_MAX_ANSWERS = 8
_MAX_REQUEST_BYTES = 1 << 10


class EncodedList(Generic[R]):
    """The bytes of one kind of list.

    Records are frozen, so a record that is the same object has the same bytes. What a full list no longer holds is
    forgotten with it.
    """

    def __init__(self, encode: Callable[[R], Message]) -> None:
        self._encode = encode
        self._kept: dict[int, tuple[R, bytes]] = {}
        self._answers: dict[bytes, tuple[int, bytes]] = {}

    def answer(self, request: bytes, version: int, make: Callable[[], bytes]) -> bytes:
        """Return the answer to an encoded request; ``make`` it anew where another ``version`` of the records was asked.

        The few requests that a kubelet repeats are kept with their answers.
        """
        known, answer = self._answers.get(request, (-1, b""))
        if known != version:
            answer = make()
            if len(self._answers) >= _MAX_ANSWERS and request not in self._answers:
                self._answers.clear()
            if len(request) <= _MAX_REQUEST_BYTES:
                self._answers[request] = (version, answer)
        return answer

    def join(self, records: Iterable[R], full: bool) -> bytes:
        """Encode a response with these items, in their order; ``full`` tells that no filter left any out."""
        return b"".join(self._frames(records, full))

    def batches(self, records: Iterable[R], full: bool) -> Iterator[bytes]:
        """Encode the responses of a stream: all items once, in their order, as they are now; none for no item."""
        return join_batches(self._frames(records, full))

    def _frames(self, records: Iterable[R], full: bool) -> list[bytes]:
        frames = {id(one): self._kept.get(id(one)) or (one, frame_item(self._encode(one))) for one in records}
        if full:  # each record stays alive with its bytes, so its id can't become another's
            self._kept = frames
        return [frame for _, frame in frames.values()]


def frame_item(item: Message) -> bytes:
    """Encode an item of a list, with the tag and the length before it."""
    return frame(1, item.SerializeToString())


def frame(field: int, data: bytes) -> bytes:
    """Return an encoded message as a field of another: its tag (of a number below 16) and its length before it."""
    return bytes((field << 3 | 2,)) + varint(len(data)) + data


def varint(number: int) -> bytes:
    """Encode a number, seven bits a byte, the lowest first (protobuf, "Encoding")."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def join_batches(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Join encoded items to messages of at most ``BATCH_BYTES``, unless a single item is larger."""
    batch: list[bytes] = []
    size = 0
    for frame in frames:
        if batch and size + len(frame) > BATCH_BYTES:
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    if batch:
        yield b"".join(batch)
