"""The base of every driver's ``Config``: what the ``options`` table of a slot may hold."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


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


class NoOptions(DriverConfig):
    """For a driver that has no options."""


def _descriptions(model: type) -> Iterator[tuple[str, str]]:
    """Find strings that stand below the annotated names of a class; none where its source can't be had."""
    try:
        source = textwrap.dedent(inspect.getsource(model))
    except (OSError, TypeError):  # TypeError: a built-in class
        return
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                yield field.target.id, inspect.cleandoc(text)
