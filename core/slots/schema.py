"""JSON Schema of the configuration, with the options of every installed driver: for editors and tests."""

from typing import Any

from crinoid.core.config.models import BUILT_IN, Config
from crinoid.core.slots.drivers import Installation, LoadedDriver, UnusableDriverError

Schema = dict[str, Any]
"""A JSON Schema; ``Any`` as its form is JSON Schema's."""

_SLOTS = {
    "runtimes": "runtime",
    "network": "network",
    "networks": "network",
    "snapshotter": "snapshotter",
    "snapshotters": "snapshotter",
    "registries": "registry",
    "extensions": "extension",
}
_BY_DEFAULT = "-by-default"
_MODELS = {"runtime": "RuntimeSlotConfig", "extension": "ExtensionSlotConfig"}


def make_schema() -> Schema:
    """Return the schema of the whole file; drivers that can't be loaded are left out."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions, properties = schema["$defs"], schema["properties"]
    alternatives = {role: _alternatives(role, definitions) for role in dict.fromkeys(_SLOTS.values())}
    for table, role in _SLOTS.items():
        built_in = BUILT_IN.get(table, {})
        field = properties[table]
        if "driver" in built_in:
            field = {"description": field["description"], **_choose(alternatives[role], built_in["driver"])}
        else:
            field["propertyNames"] = {"pattern": next(iter(field.pop("patternProperties")))}
            field["additionalProperties"] = _choose(alternatives[role])
            field["properties"] = {n: _choose(alternatives[role], slot["driver"]) for n, slot in built_in.items()}
        properties[table] = field
    for model in {"SlotConfig", *_MODELS.values()}:
        definitions.pop(model, None)
    return schema


def _choose(names: list[str], default: str = "") -> Schema:
    """A slot is one of these; where it is there by default it need not name its driver."""
    if not names:
        return {"type": "object"}
    return {"oneOf": [{"$ref": f"#/$defs/{name}{_BY_DEFAULT if _is(name, default) else ''}"} for name in names]}


def _is(name: str, driver: str) -> bool:
    return name.partition("-")[2].removesuffix("-slot") == driver


def _alternatives(role: str, definitions: dict[str, Schema]) -> list[str]:
    """Define a slot of each driver of a role, with that driver's options; return the names of the definitions."""
    common = definitions[_MODELS.get(role, "SlotConfig")]
    names = []
    for driver in _loadable(role):
        name = f"{role}-{driver.installed.name}-slot"
        definitions[name] = _driver_schema(driver, common, definitions)
        definitions[name + _BY_DEFAULT] = {key: part for key, part in definitions[name].items() if key != "required"}
        names.append(name)
    return names


def _driver_schema(driver: LoadedDriver, common: Schema, definitions: dict[str, Schema]) -> Schema:
    name = f"{driver.installed.role}-{driver.installed.name}"
    options = driver.options.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    for inner, definition in options.pop("$defs", {}).items():
        definitions[f"{name}.{inner}"] = definition
    definitions[name] = options
    properties = {
        **common["properties"],
        "driver": {"const": driver.installed.name, "description": common["properties"]["driver"]["description"]},
        "options": {"$ref": f"#/$defs/{name}"},
    }
    title = f"{driver.installed.name} ({driver.installed.distribution} {driver.installed.version})"
    return {**common, "title": title, "properties": properties}


def _loadable(role: str) -> list[LoadedDriver]:
    found, installation = [], Installation()
    for name in dict.fromkeys(driver.name for driver in installation.discover() if driver.role == role):
        try:
            found.append(installation.load(role, name))
        except UnusableDriverError:
            continue
    return found
