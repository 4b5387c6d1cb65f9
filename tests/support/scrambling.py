"""Odd requests, made from the descriptors of the API: hypothesis chooses what goes into the fields, and a seeded
mutator what becomes of the bytes. ``tame`` keeps what is sent from harming the host that the tests run on.
"""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
_PATHLIKE = [".", "..", "../..", "/", "//", "/..", "a/b", "/a/../b", "@directory", "@directory/x"]
_WORDS = ["-x", "--help", "%s%n", "$HOME", "`id`", "ü", "\u202e", "\U0001f980", "\ufffe", "0", "-1", "9" * 21, "true"]
_NAMES = [
    "@pod0",
    "@pod1",
    "@container0",
    "@container1",
    "sha256:",
    "127.0.0.1:1/a/b:1",
    "runtime/default",
    "localhost/x",
]
_KNOWN = ["ALL", "NET_ADMIN", "net.core.somaxconn", "2MB", "127.0.0.1", "::1", "0-1"]
_LONG = ["a" * 300, "b/" * 3000, "x" * 70_000, "sha256:" + "0" * 64]
_BLANK = ["", " ", "\0", "a\0b", "\n", "\r\n", "\x1b[31m", "'; DROP TABLE pods; --"]
TEXTS = st.one_of(st.sampled_from([*_PATHLIKE, *_WORDS, *_NAMES, *_KNOWN, *_LONG, *_BLANK]), st.text(max_size=12))
NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    64,
    255,
    1000,
    4096,
    65535,
    65536,
    100_000,
    1 << 24,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
]
_SIGNED = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63, FieldDescriptor.CPPTYPE_ENUM: 31}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}


def scramble(draw: Draw, message: Message, times: int) -> None:
    """Set a few fields, anywhere in the message, to odd values."""
    for _ in range(times):
        _scramble_one(draw, message)


def _scramble_one(draw: Draw, message: Message) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = fields[draw(st.integers(0, len(fields) - 1))]
    if field.message_type is None:
        _set(draw, message, field)
    elif field.message_type.GetOptions().map_entry:
        getattr(message, field.name)[draw(TEXTS)] = draw(TEXTS)
    elif field.is_repeated:
        _scramble_one(draw, getattr(message, field.name).add())
    elif draw(st.integers(0, 19)) == 0:
        message.ClearField(field.name)
    else:
        getattr(message, field.name).SetInParent()
        _scramble_one(draw, getattr(message, field.name))


def _set(draw: Draw, message: Message, field: Any) -> None:
    """Set a scalar. ``Any``: upb's own kind of descriptor has no types."""
    if field.is_repeated:
        getattr(message, field.name).extend(_value(draw, field) for _ in range(draw(st.integers(1, 3))))
    else:
        setattr(message, field.name, _value(draw, field))


def _value(draw: Draw, field: Any) -> object:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return draw(TEXTS).encode() if field.type == FieldDescriptor.TYPE_BYTES else draw(TEXTS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draw(st.booleans())
    if kind in _SIGNED:
        limit = 1 << _SIGNED[kind]
        return max(-limit, min(limit - 1, draw(st.sampled_from(NUMBERS)) * draw(st.sampled_from([1, 1, 1, -1]))))
    if kind in _UNSIGNED:
        return min((1 << _UNSIGNED[kind]) - 1, draw(st.sampled_from(NUMBERS)))
    return draw(st.floats())


def mutate(data: bytes, seed: int) -> bytes:
    """Damage bytes in a way that the seed decides."""
    dice = random.Random(seed)
    content = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        _MUTATIONS[dice.randrange(len(_MUTATIONS))](content, dice)
    return bytes(content)


def _place(content: bytearray, dice: random.Random) -> int:
    return dice.randrange(len(content) + 1)


def _flip(content: bytearray, dice: random.Random) -> None:
    if content:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def _insert(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    content[at:at] = dice.randbytes(dice.randint(1, 9))


def _delete(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    del content[at : at + dice.randint(1, 9)]


def _repeat(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    content += content[at : at + dice.randint(1, 200)]


def _truncate(content: bytearray, dice: random.Random) -> None:
    del content[_place(content, dice) :]


def _unknown_field(content: bytearray, dice: random.Random) -> None:
    """A field of tomorrow, length-delimited, of any number."""
    number, body = dice.randint(100, 500_000_000), dice.randbytes(dice.randint(0, 50))
    content += _varint(number << 3 | 2) + _varint(len(body)) + body


def _nest(content: bytearray, dice: random.Random) -> None:
    """Groups in groups, closed or not."""
    depth = dice.choice([1, 50, 99, 100, 101, 5000])
    content += _varint(200 << 3 | 3) * depth + _varint(200 << 3 | 4) * (depth if dice.random() < 0.7 else depth // 2)


def _huge_varint(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    content[at:at] = b"\xff" * dice.randint(4, 12) + b"\x01"


_MUTATIONS = (_flip, _flip, _flip, _insert, _delete, _repeat, _truncate, _unknown_field, _nest, _huge_varint)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@dataclass(frozen=True, slots=True)
class Confines:
    """What requests may touch on the host: paths in a directory, cgroups below one; ``ids`` by their place holders."""

    directory: Path
    cgroup: str
    ids: Callable[[], dict[str, str]]


_PATHS = {"host_path", "log_directory", "localhost_ref", "location", "output_path", "checkpoint_path"}
_DEVICES = {"/dev/null", "/dev/zero", "/dev/full"}
_SHORT = {"timeout": 1}
_SYSCTLS = ("net.", "kernel.shm", "kernel.msg", "fs.mqueue.")


def tame(kind: type[Message], data: bytes, confines: Confines) -> bytes:
    """Return the bytes with what is dangerous taken out, as far as they can be read at all; the rest stays."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return data
    _tame(message, confines, confines.ids())
    return message.SerializeToString()


def _tame(message: Message, confines: Confines, ids: dict[str, str]) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _tame_map(message, field.name)
        elif field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                _tame(inner, confines, ids)
        elif field.type == FieldDescriptor.TYPE_STRING:
            texts = [_tame_text(field.name, text, confines, ids) for text in (value if field.is_repeated else [value])]
            _put(message, field, texts)
        elif field.name == "privileged":
            message.ClearField("privileged")
        elif field.name in _SHORT and message.DESCRIPTOR.name == "ExecSyncRequest" and not 0 < value <= 1:
            setattr(message, field.name, 1 if value >= 0 else value)
    if message.DESCRIPTOR.name == "ExecSyncRequest" and not message.timeout:  # type: ignore[attr-defined]
        message.timeout = 1  # type: ignore[attr-defined]


def _put(message: Message, field: Any, texts: Sequence[str]) -> None:
    if field.is_repeated:
        del getattr(message, field.name)[:]
        getattr(message, field.name).extend(texts)
    else:
        setattr(message, field.name, texts[0])


def _tame_map(message: Message, name: str) -> None:
    """Only sysctls of a pod's own namespaces are tried."""
    if name == "sysctls":
        sysctls = getattr(message, name)
        for key in [key for key in sysctls if not key.startswith(_SYSCTLS)]:
            sysctls[f"net.{key}"] = sysctls.pop(key)


def _tame_text(name: str, text: str, confines: Confines, ids: dict[str, str]) -> str:
    text = ids.get(text, text).replace("@directory", str(confines.directory))
    if name in _PATHS and text.startswith("/") and text not in _DEVICES:
        return text if _is_below(text, str(confines.directory)) else f"{confines.directory}/{text.replace('..', '__')}"
    if name == "cgroup_parent" and text and not _is_below(text, confines.cgroup):
        return f"{confines.cgroup}/{text.replace('..', '__')}"
    return text


def _is_below(text: str, directory: str) -> bool:
    return os.path.normpath(text).startswith(f"{directory}/") and ".." not in text
