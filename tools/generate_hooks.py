"""Writes docs/hooks.md from the code: every hook with its values and the tests of the contract kit that call it, and
every value with the hooks that it crosses (`make docs`). ``--check`` only tells, by the exit code, whether it is so."""

import ast
import dataclasses
import enum
import importlib
import inspect
import os
import pkgutil
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import crinoid.core.api.values as values_package
from crinoid.core.api import sessions
from crinoid.core.api.hooks import extension
from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.slots.roles import ROLES, Role

DOCUMENT = Path(__file__).parents[1] / "docs" / "hooks.md"
UNTESTED = {
    "snapshotter": ("bring_layer",),
}
"""Hooks that no test of the contract kit calls: layers that come from elsewhere are of a kind that only their driver
knows; its own tests have them."""
CONTRACTS = {
    "runtime": "runtimes",
    "network": "networks",
    "snapshotter": "snapshotters",
    "registry": "registries",
    "extension": "extensions",
}
HEAD = """\
# Hooks and values

Written from the code by `make docs`: every hook of every role, the values that it takes and returns, and the tests of
the [contract kit](contract.md) that call it; then every value, and the hooks that it crosses. Modules are those to
import from. [plugins.md](plugins.md) is how to write a driver, [plugin-rules.md](plugin-rules.md) what hooks may rely
on; options of the drivers that come with crinoid are in [configuration.md](configuration.md).
"""
_NAME = re.compile(r"[A-Z]\w+")


def contract_calls(role: str) -> Mapping[str, list[str]]:
    """Return the tests of a role's contract that call each of its hooks, by themselves or by what they use."""
    module = importlib.import_module(f"crinoid.core.api.testing.{CONTRACTS[role]}")
    tree = ast.parse(inspect.getsource(module))
    functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    named = {one.name: _names_in(one) for one in functions}
    for one in tree.body:  # tables of steps, which tests go through
        if isinstance(one, ast.Assign | ast.AnnAssign) and isinstance(one.value, ast.Tuple | ast.List):
            targets = one.targets if isinstance(one, ast.Assign) else [one.target]
            named |= {target.id: _names_in(one.value) for target in targets if isinstance(target, ast.Name)}
    hooks = hooks_of(ROLES[role].specification)
    found: dict[str, list[str]] = {hook: [] for hook in hooks}
    for test in (one.name for one in functions if one.name.startswith("test_")):
        reached, waiting = set[str](), [test]
        while waiting:
            for name in named.get(waiting.pop(), ()):
                if name not in reached:
                    reached.add(name)
                    if name not in hooks:
                        waiting.append(name)
        for hook in reached & hooks.keys():
            found[hook].append(test)
    return found


def _names_in(function: ast.AST) -> set[str]:
    """Return what a function calls or names: attributes, functions, and words of texts, as hooks are called by name."""
    names = set[str]()
    for one in ast.walk(function):
        if isinstance(one, ast.Attribute):
            names.add(one.attr)
        elif isinstance(one, ast.Name):
            names.add(one.id)
        elif isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value.isidentifier():
            names.add(one.value)
    return names


def values() -> dict[str, type]:
    """Return every value that crosses a hook, and what it is made of, by name."""
    modules = [importlib.import_module(f"{values_package.__name__}.{one.name}") for one in _modules()]
    return {
        name: one
        for module in (*modules, extension, sessions)
        for name, one in sorted(vars(module).items())
        if inspect.isclass(one)
        and one.__module__ == module.__name__
        and not name.startswith("_")
        and name != "ExtensionHooks"
    }


def _modules() -> Iterable[Any]:
    return pkgutil.iter_modules(values_package.__path__)


def undocumented(known: Mapping[str, type]) -> list[str]:
    """Return the hooks and values without a text."""
    missing = [
        f"{role.name} {name}"
        for role in ROLES.values()
        for name, hook in hooks_of(role.specification).items()
        if not hook.__doc__
    ]
    return missing + [name for name, one in known.items() if not (one.__doc__ or "").strip() or _is_generated(one)]


def _is_generated(one: type) -> bool:
    """A dataclass without a text gets its signature for one."""
    return (one.__doc__ or "").startswith(f"{one.__name__}(")


def render() -> str:
    """Return the whole document."""
    known = values()
    crossed: dict[str, list[str]] = {name: [] for name in known}
    lines = [HEAD]
    for role in ROLES.values():
        lines += _role(role, known, crossed)
    lines += ["## Values", ""]
    lines += [line for name, one in known.items() for line in _value(name, one, known, crossed)]
    return "\n".join(lines).rstrip() + "\n"


def _role(role: Role, known: Mapping[str, type], crossed: dict[str, list[str]]) -> Iterator[str]:
    module = inspect.getmodule(role.specification)
    yield from [
        f"## {role.name.capitalize()}",
        "",
        f"`{role.specification.__module__}.{role.specification.__name__}`",
        "",
    ]
    yield from [_text(inspect.getdoc(module) or ""), ""]
    calls = contract_calls(role.name)
    for name, hook in hooks_of(role.specification).items():
        yield from [
            f"### {role.name}: {name}",
            "",
            f"    {_signature(name, hook)}",
            "",
            _text(inspect.getdoc(hook) or ""),
            "",
        ]
        used = [one for one in dict.fromkeys(_NAME.findall(_signature(name, hook))) if one in known]
        for one in used:
            crossed[one].append(f"[{role.name} {name}](#{_anchor(f'{role.name}: {name}')})")
        if used:
            yield from [f"Values: {', '.join(f'[{one}](#{_anchor(one)})' for one in used)}.", ""]
        tests = ", ".join(f"`{test}`" for test in calls[name])
        yield from [f"Contract: {tests or 'none, as only the driver knows what it brings about'}.", ""]


def _signature(name: str, hook: Any) -> str:
    hints = typing.get_type_hints(hook)
    arguments = ", ".join(f"{one}: {_kind(hints[one])}" for one in [*inspect.signature(hook).parameters][1:])
    return f"{'async ' if inspect.iscoroutinefunction(hook) else ''}{name}({arguments}) -> {_kind(hints['return'])}"


def _kind(kind: Any) -> str:
    text = "None" if kind is type(None) else inspect.formatannotation(kind)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def _value(name: str, one: type, known: Mapping[str, type], crossed: Mapping[str, list[str]]) -> Iterator[str]:
    yield from [f"### {name}", "", f"`{one.__module__}.{name}`", "", _text(inspect.getdoc(one) or ""), ""]
    if issubclass(one, enum.Enum):
        yield from [f"- `{member.name}` = `{member.value!r}`" for member in one]
        yield ""
    elif dataclasses.is_dataclass(one):
        hints = typing.get_type_hints(one)
        for field in dataclasses.fields(one):
            is_optional = not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
            kind = _kind(hints[field.name])
            linked = ", ".join(
                f"[{each}](#{_anchor(each)})" for each in dict.fromkeys(_NAME.findall(kind)) if each in known
            )
            yield f"- `{field.name}: {kind}`{' (optional)' if is_optional else ''}{f': {linked}' if linked else ''}"
        yield ""
    if crossed[name]:
        yield from [f"Crosses: {', '.join(crossed[name])}.", ""]


def _anchor(title: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def _text(text: str) -> str:
    """Return a docstring as Markdown: ``code`` with single backquotes, and no roles of Sphinx."""
    text = re.sub(r":(?:class|mod|func):`[\w.]*?(\w+)`", r"`\1`", text.replace("``", "`"))
    return text.replace("::\n", ":\n")


def main() -> None:
    """Write the document."""
    new = render()
    if "--check" in sys.argv:
        sys.exit(
            "docs/hooks.md is not what the code says: run `make docs`" if DOCUMENT.read_text() != new else os.EX_OK
        )
    DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
