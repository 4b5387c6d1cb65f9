"""From merged TOML tables to a model, and from what pydantic says to problems with file, line and nearest name.

``loader`` uses it for the configuration itself, ``slots`` for the options of each driver.
"""

import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from crinoid.core.config.origins import Origins, Problem, name_key, suggest
from crinoid.core.config.positions import KeyPath

M = TypeVar("M", bound=BaseModel)
_PLAIN = re.compile(r"[0-9]+|[0-9]+\.[0-9]+|true|false")
_FOREIGN = frozenset({"plugins", "crio", "grpc", "proxy_plugins", "disabled_plugins", "imports", "version", "state"})


def validate(model: type[M], table: Mapping[str, Any], origins: Origins, base: KeyPath = ()) -> M | list[Problem]:
    """Make a model of a table that stands at the key path ``base``, or tell everything that is wrong with it.

    Types are strict, as TOML has types of its own: a number in quotes is no number.
    """
    try:
        return model.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        return [_explain(model, one, origins, base) for one in details if not _is_consequence(one, details)]


def _is_consequence(detail: ErrorDetails, others: Sequence[ErrorDetails]) -> bool:
    """Return whether a list is called too short only because what is wrong with its elements was left out of it."""
    place = detail["loc"]
    is_around = any(one["loc"][: len(place)] == place and one is not detail for one in others)
    return detail["type"] == "too_short" and is_around


def _explain(model: type[BaseModel], detail: ErrorDetails, origins: Origins, base: KeyPath) -> Problem:
    place = tuple(part for part in detail["loc"] if part != "[key]")
    key = base + place
    if detail["type"] == "extra_forbidden":
        around = _model_at(model, place[:-1])
        message = "unknown key" + _where_else(model, around, str(place[-1]))
        return Problem(key, message, origins.nearest(key))
    if detail["type"] == "missing":
        lists = "; `crinoid plugins` lists the drivers" if key[-1] == "driver" else ""
        return Problem(key, f"this key is missing{lists}", origins.nearest(key))
    return Problem(key, _say(detail) + _right_form(model, detail, place), origins.nearest(key))


def _where_else(model: type[BaseModel], around: type[BaseModel] | None, name: str) -> str:
    """Suggest the nearest key of the same table, else the table that has a key of this very name, else name all."""
    near = suggest(name, around.model_fields if around else ())
    if around is None or near.startswith("; did you mean"):
        return near
    if name in _FOREIGN and name not in model.model_fields:
        return "; a table of containerd or CRI-O: `crinoid config import` makes a configuration of theirs"
    if "options" in around.model_fields:
        return f"; did you mean options.{name}, if it is one of the driver's options?"
    homes = [f"{table}.{name}" for table, below in _tables(model) if name in below.model_fields]
    return f"; did you mean {' or '.join(homes)}?{near.replace('; k', ' K')}" if homes else near


def _right_form(model: type[BaseModel], detail: ErrorDetails, place: KeyPath) -> str:
    """Show what was meant by a value of the wrong type, where that can be told."""
    value = detail["input"]
    if detail["type"] in ("list_type", "tuple_type") and isinstance(value, str):
        return f": write [{_write(value)}]"
    if detail["type"] == "string_type" and isinstance(value, int):
        return f': write "{_write(value)}"'
    if detail["type"] in ("int_type", "float_type", "bool_type") and isinstance(value, str) and _PLAIN.fullmatch(value):
        return f": write {value}, without quotes"
    table = _model_at(model, place)
    if detail["type"] == "model_type" and isinstance(value, str) and table and "driver" in table.model_fields:
        return f": write {name_key(place)}.driver = {_write(value)}"
    return ""


def _tables(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the tables right below the top, with their names."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def _say(detail: ErrorDetails) -> str:
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("an object", "a table")
    value = detail["input"]
    shown = "" if isinstance(value, Mapping | list) else f", not {_write(value)}"
    return text + shown


def _write(value: object) -> str:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else json.dumps(value, default=str)


def _model_at(model: type[BaseModel], place: KeyPath) -> type[BaseModel] | None:
    """Follow a path of fields, keys and indexes to the model there, as far as annotations tell."""
    if not place:
        return model
    field = model.model_fields.get(str(place[0]))
    if field is None:
        return None
    return next((found for found in _walk(field.annotation, place[1:]) if found), None)


def _walk(annotation: Any, place: KeyPath) -> Iterator[type[BaseModel] | None]:  # Any: a type expression
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield _model_at(annotation, place)
        return
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _walk(arguments[0], place)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _walk(argument, place)
    elif arguments and place:
        element = arguments[-1] if isinstance(origin, type) and issubclass(origin, Mapping) else arguments[0]
        yield from _walk(element, place[1:])
