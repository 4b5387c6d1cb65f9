"""Options that several verbs share, and a way to hand many of them to a verb as one value."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
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


def output(default: str = TABLE, forms: Sequence[str] = (JSON, YAML, TABLE)) -> Callable[[F], F]:
    """Add ``--output``, given to the verb as ``output``, and crictl's ``--template``, which says what to use."""

    def decorate(verb: F) -> F:
        chosen = click.option(
            "--output", "-o", type=_Form(forms), default=default, show_default=True, help="Form of the output."
        )
        template = click.option("--template", expose_value=False, hidden=True, callback=_refuse_template)
        return chosen(template(verb))

    return decorate


def flag(*names: str, help: str) -> Callable[[F], F]:  # noqa: A002  # click's own name
    """Add an option without a value."""
    return click.option(*names, is_flag=True, help=help)


def labels(name: str = "--label") -> Callable[[F], F]:
    """Add an option ``key=value`` that may be given again, as a tuple of pairs."""
    return click.option(name, type=PAIR, multiple=True, metavar="KEY=VALUE", help="Only with this label.")


_NO_TEMPLATES = (
    "Go's templates are not here: use `-o json` and a program that reads JSON, such as "
    "`crinoid ctl inspect -o json NAME | jq -r .status.state`"
)


class _Form(click.Choice):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.2 on
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Say of crictl's go-template what to use instead."""
        if value == "go-template":
            self.fail(_NO_TEMPLATES, param, ctx)
        return super().convert(value, param, ctx)


def _refuse_template(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.BadParameter(_NO_TEMPLATES, ctx, parameter)


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


def without_dashes(command: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out ``--`` before a command, as kubectl wants it between the container and the command."""
    return command[1:] if command[:1] == ("--",) else command
