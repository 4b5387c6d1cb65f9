"""Options that several verbs share, and a way to hand many of them to a verb as one value."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])  # Any: click calls commands by what their decorators say

JSON, YAML, TABLE = "json", "yaml", "table"


def gather(into: str, kind: type, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Add options, and give the verb their values as one ``kind``, a dataclass of such fields, named ``into``."""
    names = [field.name for field in dataclasses.fields(kind)]

    def decorate(verb: F) -> F:
        @functools.wraps(verb)
        def collect(*arguments: Any, **values: Any) -> Any:
            chosen = kind(**{name: values.pop(name) for name in names})
            return verb(*arguments, **values, **{into: chosen})

        decorated: Any = collect
        for option in reversed(options):
            decorated = option(decorated)
        typed: F = decorated
        return typed

    return decorate


def output(default: str = TABLE) -> Callable[[F], F]:
    """Add ``--output``, given to the verb as ``output``."""
    return click.option(
        "--output",
        "-o",
        type=click.Choice((JSON, YAML, TABLE)),
        default=default,
        show_default=True,
        help="Form of the output.",
    )


def flag(*names: str, help: str) -> Callable[[F], F]:  # noqa: A002  # click's own name
    """Add an option without a value."""
    return click.option(*names, is_flag=True, help=help)


def labels(name: str = "--label") -> Callable[[F], F]:
    """Add an option ``key=value`` that may be given again, as a tuple of pairs."""
    return click.option(name, type=PAIR, multiple=True, metavar="KEY=VALUE", help="Only with this label.")


class _Pair(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.4 on
    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split at the first equals sign."""
        if isinstance(value, tuple):
            return value
        key, equals, rest = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        return key, rest


PAIR = _Pair()
