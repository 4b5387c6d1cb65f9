"""Values as they travel: each type of the API's specifications made into JSON and back, by its annotations alone.

``form_of`` takes what stands in a hook's signature and returns how to write and how to read it; nothing is written down
for each hook or value. Not pydantic's adapters: bytes and descriptors go beside the JSON, live objects stay where they
are, and strings may hold what was no UTF-8 (surrogateescape), which pydantic refuses. docs/isolation.md has the table.
"""

import dataclasses
import enum
import functools
import os
import socket
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crinoid.core.api.errors import DriverError
from crinoid.core.api.values.snapshot import FileDescriptor

Json = Any
"""What ``json`` writes and reads."""


class Exports(Protocol):
    """The live objects of a channel, as forms use them: see ``interfaces``."""

    def export(self, value: object, interface: Any, out: "Outgoing") -> Json:
        """Make an object callable for the other side; return how it is named there."""

    def adopt(self, named: Json, interface: Any, incoming: "Incoming") -> object:
        """Return what calls an object of the other side."""


class Outgoing:
    """What goes beside the JSON of one message: bytes, and descriptors."""

    def __init__(self, exports: Exports) -> None:
        self.exports = exports
        self.pieces: list[bytes] = []
        self.size = 0
        self.descriptors: list[int] = []
        self.passed: list[socket.socket] = []
        """Sockets that are the receiver's from then on."""

    def add(self, content: bytes) -> list[int]:
        """Put bytes beside the JSON; return where they begin, and their length."""
        place = [self.size, len(content)]
        self.pieces.append(content)
        self.size += len(content)
        return place


class Incoming:
    """What came beside the JSON of one message. Descriptors that nobody takes are closed with it."""

    def __init__(self, exports: Exports, content: memoryview, descriptors: Sequence[int], size: int = 0) -> None:
        """``size``: of the whole message, in bytes."""
        self.exports = exports
        self.size = size
        self._content = content
        self._descriptors: list[int | None] = [*descriptors]
        self._lent: list[int] = []
        self.answer: Any = None
        """What the message says, where ``is_read``: a thread has looked already."""
        self.is_read = False

    def bytes_at(self, place: Json) -> bytes:
        """Return the bytes that a message names."""
        match place:
            case [int(begin), int(length)] if begin >= 0 and length >= 0 and begin + length <= len(self._content):
                return bytes(self._content[begin : begin + length])
        raise DriverError(f"{place!r:.100} names no bytes of its message")

    def take_descriptor(self, number: Json) -> int:
        """Return a descriptor that a message names, which is the caller's to close."""
        if isinstance(number, int) and 0 <= number < len(self._descriptors):
            descriptor, self._descriptors[number] = self._descriptors[number], None
            if descriptor is not None:
                return descriptor
        raise DriverError(f"{number!r:.100} names no descriptor of its message")

    def lend_descriptor(self, number: Json) -> int:
        """Return a descriptor that is open until ``close``."""
        descriptor = self.take_descriptor(number)
        self._lent.append(descriptor)
        return descriptor

    def close(self) -> None:
        """Close what was lent, and what nobody took. Idempotent."""
        for descriptor in (*self._lent, *(one for one in self._descriptors if one is not None)):
            os.close(descriptor)
        self._lent, self._descriptors = [], []


@dataclass(frozen=True, slots=True)
class Form:
    """How values of a type travel. Both raise DriverError for what is not of the type."""

    write: Callable[[Any, Outgoing], Json]
    read: Callable[[Json, Incoming], Any]


INTERFACES: dict[object, Any] = {}
"""By type: live objects, which ``interfaces`` fills in."""


@functools.cache
def form_of(kind: Any) -> Form:
    """Return how values of a type travel. Raises TypeError for a type that can't."""
    if kind in INTERFACES:
        return _live(INTERFACES[kind])
    if kind == FileDescriptor:
        return Form(lambda value, out: _pass(value, out), lambda value, incoming: incoming.lend_descriptor(value))
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return form_of(parts[0])
    if kind is Any or kind is object:
        return Form(lambda value, _: value, lambda value, _: value)
    if kind in _SCALARS:
        return _scalar(kind, _SCALARS[kind])
    if kind in (None, types.NoneType):
        return Form(lambda _value, _out: None, lambda _value, _incoming: None)  # hooks without an answer
    if kind is bytes:
        return Form(
            lambda value, out: out.add(bytes(_is(value, bytes, bytearray, memoryview))),
            lambda value, incoming: incoming.bytes_at(value),
        )
    if kind is socket.socket:
        return Form(_pass_socket, _take_socket)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Form(lambda value, _: _is(value, kind).value, lambda value, _: _member(kind, value))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind)
    if origin in (types.UnionType, typing.Union) and len(parts) == 2 and parts[1] is types.NoneType:
        return _optional(form_of(parts[0]))
    if origin is tuple:
        return _row(parts) if parts[-1:] != (Ellipsis,) else _many(tuple, form_of(parts[0]))
    if origin is frozenset:
        return _many(frozenset, form_of(parts[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping) and parts[0] is str:
        return _table(form_of(parts[1]))
    raise TypeError(f"{kind} can't travel to a driver in a process of its own")


_SCALARS: Mapping[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (float, int),
    bool: (bool,),
    Path: (str, Path),
}


def _scalar(kind: type, accepted: tuple[type, ...]) -> Form:
    def write(value: Any, _: Outgoing) -> Json:
        return os.fspath(_is(value, Path)) if kind is Path else _is(value, *accepted)

    def read(value: Json, _: Incoming) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise _wrong(value, kind)
        try:
            return value if kind is str else kind(value)
        except OverflowError:  # an integer that no float holds
            raise _wrong(value, kind) from None

    return Form(write, read)


def _record(kind: type) -> Form:
    """A dataclass: an object by its fields' names. Fields that are missing have their defaults, others are ignored."""
    hints = typing.get_type_hints(kind, include_extras=True)
    forms = {field.name: form_of(hints[field.name]) for field in dataclasses.fields(kind)}

    def write(value: Any, out: Outgoing) -> Json:
        _is(value, kind)
        return {name: _within(name, form.write, getattr(value, name), out) for name, form in forms.items()}

    def read(value: Json, incoming: Incoming) -> Any:
        if not isinstance(value, dict):
            raise _wrong(value, kind)
        found = {name: _within(name, forms[name].read, value[name], incoming) for name in value.keys() & forms.keys()}
        try:
            return kind(**found)
        except TypeError as error:
            missing = ", ".join(sorted(_due(kind) - found.keys()))
            raise DriverError(f"{kind.__name__} without {missing or 'what is due'}") from error

    return Form(write, read)


def _due(kind: type) -> set[str]:
    none = dataclasses.MISSING
    return {one.name for one in dataclasses.fields(kind) if one.default is none and one.default_factory is none}


def _within(name: str, convert: Callable[[Any, Any], Any], value: Any, beside: Any) -> Any:
    try:
        return convert(value, beside)
    except DriverError as error:
        raise DriverError(f"{name}: {error}") from error


def _optional(form: Form) -> Form:
    return Form(
        lambda value, out: None if value is None else form.write(value, out),
        lambda value, incoming: None if value is None else form.read(value, incoming),
    )


def _many(kind: type, form: Form) -> Form:
    def read(value: Json, incoming: Incoming) -> Any:
        if not isinstance(value, list):
            raise _wrong(value, kind)
        return kind(form.read(one, incoming) for one in value)

    return Form(lambda value, out: [form.write(one, out) for one in _is(value, kind)], read)


def _row(parts: tuple[Any, ...]) -> Form:
    forms = [form_of(part) for part in parts]

    def write(value: Any, out: Outgoing) -> Json:
        if len(_is(value, tuple)) != len(forms):
            raise DriverError(f"returned {value!r:.100} where {len(forms)} values are due")
        return [form.write(one, out) for form, one in zip(forms, value, strict=True)]

    def read(value: Json, incoming: Incoming) -> Any:
        if not isinstance(value, list) or len(value) != len(forms):
            raise _wrong(value, tuple)
        return tuple(form.read(one, incoming) for form, one in zip(forms, value, strict=True))

    return Form(write, read)


def _table(form: Form) -> Form:
    def read(value: Json, incoming: Incoming) -> Any:
        if not isinstance(value, dict):
            raise _wrong(value, dict)
        return {name: form.read(one, incoming) for name, one in value.items()}

    return Form(lambda value, out: {str(name): form.write(one, out) for name, one in _is(value, Mapping).items()}, read)


def _live(interface: Any) -> Form:
    return Form(
        lambda value, out: out.exports.export(value, interface, out),
        lambda value, incoming: incoming.exports.adopt(value, interface, incoming),
    )


def _pass(descriptor: int, out: Outgoing) -> Json:
    out.descriptors.append(descriptor)
    return len(out.descriptors) - 1


def _pass_socket(value: Any, out: Outgoing) -> Json:
    out.passed.append(_is(value, socket.socket))
    return _pass(value.fileno(), out)


def _take_socket(value: Json, incoming: Incoming) -> socket.socket:
    taken = socket.socket(fileno=incoming.take_descriptor(value))
    taken.setblocking(False)  # Python makes it block, whatever it was before; all that comes here is for a loop
    return taken


def _member(kind: Any, value: Json) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise _wrong(value, kind) from None


def _is(value: Any, *kinds: Any) -> Any:
    """Return a value that is of one of these types."""
    if not isinstance(value, kinds):
        raise _wrong(value, kinds[0])
    return value


def _wrong(value: object, due: Any) -> DriverError:
    told = "nothing" if value is None else type(value).__name__
    return DriverError(f"returned {told} where {due.__name__} is due")


def plain(value: object) -> Json:
    """Give ``json`` what it does not know of values of any type, such as an OCI specification's."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
