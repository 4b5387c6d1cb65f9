"""Statuses answered from kept bytes: a status is encoded once for as long as what it is made of stays the same.

A client asks for the same status again and again, and every PodSandboxStatus holds those of the pod's containers. A
status is in field 1 of its answer; the fields of an encoded message may come in any order.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

_MAX_KEPT = 1024


class Record(Protocol):
    """What a status is made of; frozen."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Record)


class EncodedStatuses(Generic[R]):
    """The bytes of one kind of status, by the record's id. Of many records the first ones are forgotten."""

    def __init__(self, encode: Callable[[R], Message]) -> None:
        self._encode = encode
        self._kept: dict[str, tuple[R, int, bytes]] = {}

    def encode(self, record: R, version: int = 0) -> bytes:
        """Encode a record's status; ``version`` is that of whatever else it is made of."""
        kept = self._kept.get(record.id)
        if kept is not None and kept[0] is record and kept[1] == version:
            return kept[2]
        data = self._encode(record).SerializeToString()
        if len(self._kept) >= _MAX_KEPT:
            self._kept.pop(next(iter(self._kept)))
        self._kept[record.id] = (record, version, data)
        return data
