"""The base of every driver's ``Config``: what the ``options`` table of a slot may hold."""

import ast
import functools
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Described(BaseModel):
    """A frozen model in which an unknown key is an error, and a string below a field is the field's description.

    Descriptions are read from the source when a schema is wanted. pydantic's own ``use_attribute_docstrings`` reads
    them when the class is made: half of the time that a configuration's models take at each start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the descriptions to what pydantic makes; ``Any`` as the form is JSON Schema's."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for ancestor in reversed(cls.__mro__):
            for name, text in _descriptions(ancestor):
                field = cls.model_fields.get(name)
                if field is not None and field.description is None:
                    key = field.alias or name
                    properties[key] = {**properties[key], "description": text}
        return schema


class DriverConfig(Described):
    """A frozen model in which an unknown key is an error and every field has a default and a description.

    ``crinoid config schema`` prints the fields with their descriptions; ``config check`` reports what does
    not validate with file, line and the nearest valid name.
    """


@dataclass(frozen=True, slots=True)
class Form:
    """An annotation of a string option that must match ``pattern``, as a whole; people are told ``words`` instead.

    ``Annotated[str, Form(r"[a-z]+:[0-9]+", "a host and a port, such as localhost:9090")]`` refuses another value with
    "must be a host and a port, such as localhost:9090"; the pattern stands in the schema.
    """

    pattern: str
    words: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^({self.pattern})$"}

    def _check(self, value: str) -> str:
        if re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"must be {self.words}")
        return value


def _be_absolute(path: Path) -> Path:
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise ValueError("must be an absolute path; ~ is not expanded")
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    if any(ord(character) < 0x20 for character in str(path)):
        raise ValueError("must be a path without line ends and other control characters")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_be_absolute)]
"""A path of the host: the daemon's working directory and home say nothing to whoever writes a configuration."""


class NoOptions(DriverConfig):
    """For a driver that has no options."""


def _descriptions(model: type) -> Iterator[tuple[str, str]]:
    """Find strings that stand below the annotated names of a class; none where its source can't be had."""
    for field, below in itertools.pairwise(_classes_of(model.__module__).get(model.__qualname__, ())):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                yield field.target.id, inspect.cleandoc(text)


@functools.cache
def _classes_of(module: str) -> dict[str, list[ast.stmt]]:
    """Parse a module once, and return the bodies of its classes by qualified name.

    inspect.getsource of a class would parse the whole file again each time: most of the time that a schema took.
    """
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):  # TypeError: a module in C
        return {}
    found: dict[str, list[ast.stmt]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                found[prefix + child.name] = child.body
                visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{prefix}{child.name}.<locals>.")
            else:
                visit(child, prefix)

    visit(ast.parse(source), "")
    return found
