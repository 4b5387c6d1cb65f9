"""Arguments and answers of hooks as JSON, for whoever takes a call out of the process, or keeps it.

The types are those of the specifications in ``core/api/hooks``, read by pydantic, so there is no second text of any
value. Bytes are base64 (RFC 4648, the URL-safe alphabet). What a process is given may be text with bytes that are no
UTF-8 (surrogateescape), which JSON has as escapes of lone surrogates. What has a life of its own (``LIVE``: sessions,
streams, sockets, the kernel that an extension holds) is no value: it is left out, and whoever reads a call says what
takes its place.
"""

import dataclasses
import functools
import json
import socket
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from typing import Any, TypeVar, cast, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter

from crinoid.core.api import errors
from crinoid.core.api.errors import CommandFailed, CrinoidError, DriverError
from crinoid.core.api.hooks.extension import ImageDocuments, Kernel
from crinoid.core.api.sessions import Session

Json = Any
"""What ``json.dumps`` takes."""
Live = Callable[[type], object]
"""Returns what takes the place of something of a live type."""

LIVE: tuple[type, ...] = (Session, socket.socket, AsyncIterator, Kernel, ImageDocuments)

T = TypeVar("T")
_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


@dataclasses.dataclass(frozen=True, slots=True)
class HookTypes:
    """The types of a hook's arguments, by name, and of its answer."""

    arguments: Mapping[str, Any]
    answer: Any


@functools.cache
def types_of(specification: type, hook: str) -> HookTypes:
    """Return what a hook of a role's specification takes and returns."""
    hints = get_type_hints(getattr(specification, hook))
    answer = hints.pop("return")
    return HookTypes(hints, answer)


def is_live(kind: Any) -> bool:
    """Return whether something of this type is no value."""
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and any(one in LIVE for one in origin.__mro__)


def dump(kind: Any, value: object) -> Json:
    """Return a value of a type as JSON; ``None`` for what is live."""
    if is_live(kind):
        return None
    if live := _live_fields(kind):
        hints = get_type_hints(kind)
        return {
            field.name: dump(hints[field.name], getattr(value, field.name))
            for field in dataclasses.fields(kind)
            if field.name not in live
        }
    return _adapter(kind).dump_python((value,), mode="json")[0]


def load(kind: Any, data: Json, live: Live | None = None) -> Any:
    """Return the value that ``dump`` has written. Raises ValueError, which quotes the data, where it is none."""
    if is_live(kind):
        return None if live is None else live(kind)
    if fields := _live_fields(kind):
        hints = get_type_hints(kind)
        given = {name: load(hints[name], one, live) for name, one in data.items() if name in hints}
        return kind(**{name: load(hints[name], None, live) for name in fields} | given)
    text = json.dumps([data])
    # Only JSON has base64, and pydantic's JSON has no lone surrogates; no value has both.
    if "\\ud" in text:
        return _adapter(kind).validate_python((data,))[0]
    return _adapter(kind).validate_json(text)[0]


def dump_arguments(specification: type, hook: str, arguments: Mapping[str, object]) -> dict[str, Json]:
    """Return the arguments of a call as JSON, without those that are live."""
    types = types_of(specification, hook).arguments
    return {name: dump(types[name], one) for name, one in arguments.items() if not is_live(types[name])}


def load_arguments(
    specification: type, hook: str, data: Mapping[str, Json], live: Live | None = None
) -> dict[str, object]:
    """Return what ``dump_arguments`` has written; an argument that is not there is live, or unknown to the writer."""
    types = types_of(specification, hook).arguments
    return {name: load(kind, data.get(name), live) for name, kind in types.items() if name in data or is_live(kind)}


def dump_answer(specification: type, hook: str, answer: object) -> Json:
    """Return a hook's answer as JSON; ``None`` for one that is live, too."""
    return dump(types_of(specification, hook).answer, answer)


def load_answer(specification: type, hook: str, data: Json, live: Live | None = None) -> Any:
    """Return what ``dump_answer`` has written. Raises ValueError."""
    return load(types_of(specification, hook).answer, data, live)


def dump_error(error: CrinoidError) -> dict[str, Json]:
    """Return an error as JSON: its class in ``core.api.errors``, or the nearest one that is there."""
    known = next(one for one in type(error).__mro__ if vars(errors).get(one.__name__) is one)
    data = {"class": known.__name__, "status": error.grpc_status, "reason": error.reason, "message": error.message}
    if isinstance(error, CommandFailed):
        data |= {"command": [*error.command], "exit_code": error.exit_code, "stderr": error.stderr}
    return data


def load_error(data: Mapping[str, Json]) -> CrinoidError:
    """Return an error as ``dump_error`` has written it, with the same status and reason; never raises one."""
    known = vars(errors).get(str(data.get("class")))
    kind = known if isinstance(known, type) and issubclass(known, CrinoidError) else DriverError
    status, reason = str(data.get("status", kind.grpc_status)), str(data.get("reason", kind.reason))
    if (status, reason) != (kind.grpc_status, kind.reason):  # a class of a driver's own
        kind = type(kind.__name__, (kind,), {"grpc_status": status, "reason": reason})
    error = kind.__new__(kind)  # not by its __init__, which may make the text
    error.args = (str(data.get("message", "")),)
    if isinstance(error, CommandFailed):
        error.command = tuple(map(str, data.get("command") or ("?",)))
        error.exit_code, error.stderr = int(data.get("exit_code", -1)), str(data.get("stderr", ""))
    return error


@functools.cache
def _live_fields(kind: Hashable) -> frozenset[str]:
    """Return the fields of a dataclass that are live."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return frozenset()
    return frozenset(name for name, one in get_type_hints(kind).items() if is_live(one))


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[tuple[Any]]:
    """A tuple of one, as pydantic takes no configuration for a dataclass that stands alone."""
    return TypeAdapter(cast(Any, tuple[kind]), config=_CONFIG)  # type: ignore[valid-type]  # known only now
