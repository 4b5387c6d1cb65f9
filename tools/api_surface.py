"""Writes docs/api-surface.txt: every name of the plugin API with its fields and signature (`make docs`).

The file belongs to the version of the API in its first line. Once that version is released, a change of the surface
needs another one: the tool refuses to write, and tests/unit/core/api/test_surface.py fails, until API_VERSION in
core/api/__init__.py is raised (the minor one for what is added, the major one for what is changed or removed).
"""

import dataclasses
import enum
import importlib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pydantic

import crinoid.core.api as api

DOCUMENT = Path(__file__).parents[1] / "docs" / "api-surface.txt"
UNRELEASED = " (unreleased)"

TOOLKITS = (
    "crinoid.plugins.runtimes.binaries.binary",
    "crinoid.plugins.runtimes.binaries.bundle",
    "crinoid.plugins.runtimes.binaries.options",
    "crinoid.plugins.runtimes.binaries.runtime_errors",
    "crinoid.plugins.runtimes.binaries.scratch",
    "crinoid.plugins.runtimes.crun",
    "crinoid.plugins.runtimes.monitor.monitor",
    "crinoid.plugins.runtimes.oci.oci_runtime",
    "crinoid.plugins.runtimes.oci.traits",
    "crinoid.plugins.runtimes.processes.exec_cgroups",
    "crinoid.plugins.runtimes.processes.pidfds",
    "crinoid.plugins.runtimes.runc",
    "crinoid.plugins.snapshotters.common_hooks",
    "crinoid.plugins.snapshotters.copying",
    "crinoid.plugins.snapshotters.records",
    "crinoid.plugins.snapshotters.storage",
)
"""What a driver may build on of our own drivers' parts, by the same promise."""


def render(version: str) -> str:
    """Return the whole document for this version."""
    lines = [f"crinoid.core.api {version}"]
    for module in _modules():
        for name, value in sorted(vars(module).items()):
            if not name.startswith("_") and _is_defined_here(value, module):
                lines += [
                    "",
                    *_describe(
                        f"{module.__name__.removeprefix('crinoid.core.api.').removeprefix('crinoid.')}.{name}", value
                    ),
                ]
    return "\n".join(lines) + "\n"


def is_released(document: str) -> bool:
    """Return whether the version in a document's first line has been published."""
    return not document.partition("\n")[0].endswith(UNRELEASED)


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(api.__path__, "crinoid.core.api."):
        if not found.name.removeprefix("crinoid.core.api.").startswith(api.UNPROMISED):
            yield importlib.import_module(found.name)
    yield from map(importlib.import_module, TOOLKITS)


def _is_defined_here(value: object, module: ModuleType) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__


def _describe(name: str, value: type | object) -> Iterator[str]:
    if inspect.isfunction(value):
        yield f"{'async ' if inspect.iscoroutinefunction(inspect.unwrap(value)) else ''}{name}{_signature(value)}"
        return
    assert inspect.isclass(value)
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases})"
    if issubclass(value, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in value)
        return
    yield from _attributes(value)
    for member, method in sorted(vars(value).items()):
        function = inspect.unwrap(getattr(method, "__func__", method))  # type: ignore[arg-type]  # whatever it is
        if inspect.isfunction(function) and not member.startswith("_"):
            yield f"    {'async ' if inspect.iscoroutinefunction(function) else ''}{member}{_signature(function)}"
        elif isinstance(method, property) and not member.startswith("_"):
            yield f"    {member} (property)"


def _attributes(value: type) -> Iterator[str]:
    """Yield fields and annotated class attributes, such as options and ``OciRuntime.Monitor``; or how one is made."""
    defaults = {name for name in vars(value) if not isinstance(vars(value)[name], types.MemberDescriptorType)}
    if dataclasses.is_dataclass(value):
        missing = dataclasses.MISSING
        defaults = {
            field.name
            for field in dataclasses.fields(value)
            if field.default is not missing or field.default_factory is not missing
        }
    elif issubclass(value, pydantic.BaseModel):
        defaults = {name for name, field in value.model_fields.items() if not field.is_required()}
    hints = typing.get_type_hints(value)  # without what Annotated adds: functions, whose text has addresses
    for name in inspect.get_annotations(value):
        if not name.startswith("_") and name != "model_config":
            yield f"    {name}: {inspect.formatannotation(hints[name])}{' = …' if name in defaults else ''}"
    is_described = dataclasses.is_dataclass(value) or getattr(value, "_is_protocol", False)
    if inspect.isfunction(made := vars(value).get("__init__")) and not is_described:
        yield f"    __init__{_signature(made)}"


def _signature(function: object) -> str:
    """Return parameters with their annotations; of a default only that there is one: its text may hold addresses."""
    parameters = []
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]  # a function
        default = "" if parameter.default is parameter.empty else " = …"
        parameters.append(f"{parameter.replace(default=parameter.empty)}{default}")
    return f"({', '.join(parameters)})"


def main() -> int:
    """Write the document; 1 when its version was released with another surface."""
    old = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    if old and is_released(old) and old.startswith(f"crinoid.core.api {api.API_VERSION}\n"):
        if old != render(api.API_VERSION):
            print(f"{DOCUMENT} was released as {api.API_VERSION}: raise API_VERSION for this change", file=sys.stderr)
            return 1
        return 0
    DOCUMENT.write_text(render(api.API_VERSION + UNRELEASED))
    return 0


if __name__ == "__main__":
    sys.exit(main())
