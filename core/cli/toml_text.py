"""Writes tables as TOML: for ``config show``, and for configurations that commands make."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from crinoid.core.config.origins import name_key
from crinoid.core.config.positions import KeyPath


def write_table(table: dict[str, Any], comment: Callable[[KeyPath], str], base: KeyPath = ()) -> Iterator[str]:
    """Yield the lines of a table, its own values first; ``comment`` says what stands behind a key, if anything.

    Any: the values of TOML.
    """
    plain = {name: value for name, value in table.items() if not isinstance(value, dict)}
    if base and (plain or not table):
        yield ""
        yield f"[{name_key(base)}]"
    for name, value in plain.items():
        unset = "# " if value is None else ""  # TOML has no word for it
        text = '""' if value is None else write_value(value)
        said = comment((*base, name))
        yield f"{unset}{name_key((name,))} = {text}" + (f"  # {said}" if said else "")
    for name, value in table.items():
        if isinstance(value, dict):
            yield from write_table(value, comment, (*base, name))


def write_value(value: Any) -> str:
    """Write a value in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name_key((key,))} = {write_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(write_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
