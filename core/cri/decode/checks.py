"""Checks that the decoders share, and the one that every request goes through first."""

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping, MutableSequence
from pathlib import PurePosixPath
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from crinoid.core.api import bounds
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.lifecycle.spec.exec_limits import MAX_VARIABLES
from crinoid.core.lifecycle.user_ids import MAX_ID, quote

MAX_NAME = 253
"""Bytes of an object's name, as Kubernetes has it."""

MAX_ITEMS = 1 << 12
"""Of any list or map without a bound of its own: far beyond what Kubernetes sends, and little work to look through."""
_MAX_ARGUMENTS = 1 << 18  # what the kernel's default limit on them has room for
_MAX_NOTES = 1 << 15  # 256 KiB, all annotations of an object in Kubernetes, with 8 bytes each
_MOST_OF = {
    "args": _MAX_ARGUMENTS,
    "command": _MAX_ARGUMENTS,
    "cmd": _MAX_ARGUMENTS,
    "envs": MAX_VARIABLES,
    "mounts": bounds.MAX_MOUNTS,
    "devices": bounds.MAX_DEVICES,
    "CDI_devices": bounds.MAX_DEVICES,
    "supplemental_groups": 1 << 17,  # ``users`` knows what a process can have, without those that come twice
    "labels": _MAX_NOTES,
    "annotations": _MAX_NOTES,
}
_LINE = re.compile(r"[^\x00-\x1f\x7f]*")
_WORD = re.compile(r"[^\x00-\x20\x7f]+")


def check_message(message: Message, above: str = "") -> None:
    """Look through a request: no list is too long, no text holds a NUL byte, every enum number is one that we know.

    Only the values of annotations, which nobody but their writer reads, may hold anything. ``above`` is the path of the
    message within the request, for messages.
    """
    # proto3 leaves both to us: a text may hold NUL, and an enum field any number, as another version may know more.
    for field, value in message.ListFields():
        path = f"{above}.{field.name}" if above else field.name
        entry = (
            field.message_type if field.message_type is not None and field.message_type.GetOptions().map_entry else None
        )
        # Of all values only a repeated field's is a mutable sequence: texts and bytes are none.
        items = value if entry is not None or isinstance(value, MutableSequence) else None
        if items is not None and len(items) > (most := _MOST_OF.get(field.name, MAX_ITEMS)):
            # Else it would hold the loop while it is looked through, or the runtime for longer.
            raise InvalidArgument(f"{path} has {len(items)} items, more than the {most} that it can have")
        if entry is not None:  # every map of the API is from text to text
            for key, text in value.items():
                _check_scalar(entry.fields_by_name["key"], key, f"{path} key")
                if not path.endswith("annotations"):
                    _check_scalar(entry.fields_by_name["value"], text, f"{path}[{key!r}]")
            continue
        for index, item in enumerate((value,) if items is None else items):
            place = path if items is None else f"{path}[{index}]"
            if field.message_type is None:
                _check_scalar(field, item, place)
            else:
                check_message(item, place)


def _check_scalar(field: FieldDescriptor, value: Any, path: str) -> None:
    """Check a text or number; ``Any`` because a field's type is known to its descriptor only."""
    if field.type == FieldDescriptor.TYPE_STRING and "\0" in value:
        raise InvalidArgument(f"{path} holds a NUL byte")
    if field.enum_type is not None and value not in field.enum_type.values_by_number:
        raise InvalidArgument(f"{path} has the unknown value {value}")


def require_text(text: str, path: str) -> str:
    """Refuse an empty text."""
    if not text:
        raise InvalidArgument(f"{path} is missing")
    return text


def check_reference(text: str, path: str) -> str:
    """Accept what may be an image's name or id, or none."""
    return check_length(text, bounds.MAX_REFERENCE_BYTES, path)


def require_field(message: Message, name: str, path: str) -> None:
    """Refuse a message in which the part ``name`` is absent."""
    if not message.HasField(name):
        raise InvalidArgument(f"{path} is missing")


def check_words(words: Iterable[str], path: str) -> tuple[str, ...]:
    """Accept words of one line: not empty, no blanks, no control characters."""
    taken = tuple(words)
    for index, word in enumerate(taken):
        if not _WORD.fullmatch(word):
            raise InvalidArgument(f"{path}[{index}] {quote(word)} is not one word")
        check_length(word, bounds.MAX_WORD_BYTES, f"{path}[{index}]")
    return taken


def check_path(text: str, path: str) -> str:
    """Accept an absolute path of a length the kernel takes, or none."""
    if text and not text.startswith("/"):
        raise InvalidArgument(f"{path} {quote(text)} is not an absolute path")
    return _good(text, path, bounds.path_problem(text))


def check_hostname(text: str, path: str) -> str:
    """Accept a host name that the kernel takes, or none."""
    return _good(text, path, bounds.hostname_problem(text))


def check_inner_path(text: str, path: str) -> str:
    """Accept a relative path that stays below where it begins, or none."""
    if text.startswith("/") or ".." in PurePosixPath(text).parts:
        raise InvalidArgument(f"{path} {quote(text)} leads outside: it has to be relative, without ..")
    return _good(text, path, bounds.path_problem(text))


def check_descent(text: str, path: str) -> str:
    """Accept any path without ``..``."""
    if ".." in PurePosixPath(text).parts:
        raise InvalidArgument(f"{path} {quote(text)} must not hold ..")
    return _good(text, path, bounds.path_problem(text))


def check_path_length(text: str, path: str) -> str:
    """Accept any path of a length the kernel takes, or none."""
    return _good(text, path, bounds.path_problem(text))


def check_range(number: int, low: int, high: int, path: str) -> int:
    """Accept a number from low to high, both included."""
    if not low <= number <= high:
        raise InvalidArgument(f"{path} is {number}; it has to be from {low} to {high}")
    return number


def check_least(number: int, low: int, path: str) -> int:
    """Accept a number that is not below ``low``."""
    if number < low:
        raise InvalidArgument(f"{path} is {number}; it must not be below {low}")
    return number


def check_id(number: int, path: str) -> int:
    """Accept a user or group id, as high as Kubernetes allows them and runc takes them."""
    return check_range(number, 0, MAX_ID, path)


def check_address(text: str, path: str) -> str:
    """Accept an IP address, or none."""
    try:
        return text and str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidArgument(f"{path} {quote(text)} is not an IP address") from None


def check_choice(text: str, choices: Collection[str], path: str) -> str:
    """Accept one of a few letters, each at most once."""
    if not set(text) <= set(choices) or len(set(text)) != len(text):
        raise InvalidArgument(f"{path} {quote(text)} is not made of {', '.join(choices)}")
    return text


def check_length(text: str, most: int, path: str) -> str:
    """Accept a text of at most so many bytes."""
    return _good(text, path, bounds.long_problem(text, most))


def check_cpuset(text: str, path: str) -> str:
    """Accept a list of processors or memory nodes, or none."""
    return _good(text, path, bounds.cpuset_problem(text))


def check_line(text: str, most: int, path: str) -> str:
    """Accept a text of one line."""
    if not _LINE.fullmatch(text):
        raise InvalidArgument(f"{path} {quote(text)} has a control character in it")
    return check_length(text, most, path)


def check_lines(texts: Iterable[str], most: int, path: str) -> tuple[str, ...]:
    """Accept texts of one line each."""
    return tuple(check_line(text, most, f"{path}[{index}]") for index, text in enumerate(texts))


def check_notes(notes: Mapping[str, str], path: str) -> dict[str, str]:
    """Accept annotations or labels of a size that can be kept."""
    taken = dict(notes)
    size = sum(len(key) + len(value) for key, value in taken.items())
    if size > bounds.MAX_ANNOTATIONS_BYTES:
        raise InvalidArgument(f"{path} have {size} characters, more than {bounds.MAX_ANNOTATIONS_BYTES}")
    return taken


def _good(text: str, path: str, problem: str) -> str:
    if problem:
        raise InvalidArgument(f"{path} {problem}")
    return text
