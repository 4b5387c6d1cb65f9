"""Writes the reference part of docs/configuration.md from the models, below a marker line: `make docs`.

The JSON Schema of the models has all that is needed: every table, key, type, default and description.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crinoid.core.config.models import Config
from crinoid.core.slots.drivers import Installation

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
MARKER = "<!-- Below this line `make docs` writes what the models say; change those. -->\n"
SLOTS = {
    "runtimes": ("RuntimeSlotConfig", "[runtimes.NAME]"),
    "network": ("SlotConfig", "[network], [networks.NAME], [snapshotter], [snapshotters.NAME], [registries.NAME]"),
    "extensions": ("ExtensionSlotConfig", "[extensions.NAME]"),
}
ORDER = ("runtime", "network", "snapshotter", "registry", "extension")
Schema = dict[str, Any]
"""A JSON Schema; ``Any`` as its form is JSON Schema's."""


def render() -> str:
    """Return the reference: the whole file's own tables, then the options of the drivers that come with crinoid."""
    lines = ["", "## The tables", "", *_render_tables(), "## Options of the drivers", ""]
    installation = Installation()
    for installed in sorted(installation.discover(), key=lambda each: (ORDER.index(each.role), each.name)):
        if installed.distribution != "crinoid":
            continue
        schema = installation.load(installed.role, installed.name).options.model_json_schema()
        lines += [f"### {installed.role} `{installed.name}`", "", *_render_options(schema)]
    return "\n".join(lines).rstrip() + "\n"


def _render_tables() -> Iterator[str]:
    schema = Config.model_json_schema()
    definitions, properties = schema["$defs"], schema["properties"]
    yield from _table("### At the top, before any table", {k: p for k, p in properties.items() if "type" in p}, schema)
    for name, prop in properties.items():
        definition = _resolve(prop, definitions)
        if name in SLOTS:
            model, title = SLOTS[name]
            yield from _table(f"### `{title}`", definitions[model]["properties"], definitions[model])
        elif "properties" in definition and "driver" not in definition["properties"]:
            yield from _sections(name, definition, definitions)
    isolation = definitions["IsolationConfig"]
    yield from _table("### `isolation` of a slot, where it is a table", isolation["properties"], isolation)


def _sections(path: str, definition: Schema, definitions: Schema) -> Iterator[str]:
    """A table's own keys, then the tables in it."""
    inner = {name: _resolve(prop, definitions) for name, prop in definition["properties"].items()}
    plain = {name: prop for name, prop in definition["properties"].items() if "properties" not in inner[name]}
    yield from [f"### `[{path}]`", "", definition.get("description", ""), ""]
    yield from _rows(plain, definition)
    for name, below in inner.items():
        if "properties" in below:
            yield from _sections(f"{path}.{name}", below, definitions)


def _render_options(schema: Schema) -> Iterator[str]:
    definitions = schema.get("$defs", {})
    rows = dict(_flatten(schema, definitions))
    yield from _rows(rows, schema) if rows else ["It has none.", ""]


def _flatten(definition: Schema, definitions: Schema, base: str = "") -> Iterator[tuple[str, Schema]]:
    for name, prop in definition.get("properties", {}).items():
        below = _resolve(prop, definitions)
        if "properties" in below:
            yield from _flatten(below, definitions, f"{base}{name}.")
        else:
            described = {key: value for key, value in prop.items() if key != "$ref"}
            yield f"{base}{name}", {**below, **described}


def _table(title: str, properties: Schema, schema: Schema) -> Iterator[str]:
    plain = {name: prop for name, prop in properties.items() if prop.get("type") != "object" or name == "options"}
    yield from [title, ""]
    yield from _rows(plain, schema)


def _rows(properties: Schema, schema: Schema) -> Iterator[str]:
    if not properties:
        return
    yield from ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, prop in properties.items():
        default = _write(prop["default"]) if "default" in prop else "" if name in schema.get("required", ()) else "`{}`"
        meaning = " ".join(prop.get("description", "").split()).replace("|", "\\|")
        yield f"| `{name}` | {_type(prop)} | {default} | {meaning} |"
    yield ""


def _resolve(prop: Schema, definitions: Schema) -> Schema:
    definition: Schema = definitions[prop["$ref"].rpartition("/")[2]] if "$ref" in prop else prop
    return definition


def _write(default: Any) -> str:
    text = "none" if default is None else json.dumps(default, ensure_ascii=False)
    if len(text) > 60:
        return "see `crinoid config show`"
    return text if default is None else f"`{text}`"


def _type(prop: Schema) -> str:
    if "enum" in prop:
        return " or ".join(f"`{json.dumps(value)}`" for value in prop["enum"])
    if "$ref" in prop:
        return "table"
    if "anyOf" in prop:
        return " or ".join(_type(each) for each in prop["anyOf"] if each.get("type") != "null")
    match prop.get("type"):
        case "array":
            return f"list of {_type(prop.get('items', {}))}"
        case "object":
            return "table"
        case "string":
            return {"path": "path"}.get(prop.get("format", ""), "string")
    return f"{prop.get('type', 'any')}{_limits(prop)}"


def _limits(prop: Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {_exact(prop[key])}" for key, sign in signs.items() if key in prop]
    return f" {', '.join(limits)}" if limits else ""


def _exact(limit: float) -> str:
    """Six digits, as a format would have them, are another number than the one that holds."""
    return str(int(limit)) if int(limit) == limit else str(limit)


def main() -> None:
    """Rewrite what is below the marker; with ``--check`` only tell, by the exit code, whether that changes anything."""
    text = DOCUMENT.read_text()
    head, _, _ = text.partition(MARKER)
    new = head + MARKER + render()
    if "--check" in sys.argv:
        sys.exit(new != text)
    DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
