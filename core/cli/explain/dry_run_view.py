"""Prints what would be done for a pod: slots, steps, network, and of each container the specification and commands."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click

JsonObject = Mapping[str, Any]


def print_plan(plan: JsonObject) -> None:
    """Print all of a plan for people."""
    _head("pod")
    for name, value in plan["pod"].items():
        if value:
            click.echo(f"    {name}: {_short(value)}")
    _list("steps", plan["steps"])
    if plan["network"]:
        _head("network: what it would do, and may choose addresses from; none is taken")
        _print_json(plan["network"])
    for container in plan["containers"]:
        click.echo()
        _head(f"container {container['name']}")
        click.echo(f"    image: {container['image']}")
        click.echo(f"    {container['snapshot']}")
        _list("commands", container["commands"])
        mounts = container["spec"]["mounts"]
        _list("mounts", (f"{one['destination']}  {one['type']}  {one['source']}  {_words(one)}" for one in mounts))
        _list("changed by extensions", (f"{one['by']}: {one['field']}" for one in container["adjustments"]))
        _head("OCI specification")
        _print_json(container["spec"])
        _list("notes", container["notes"])
    _list("notes", plan["notes"])


def _head(text: str) -> None:
    click.secho(text, bold=True)


def _list(title: str, items: Iterable[str]) -> None:
    lines = list(items)
    if lines:
        _head(title)
    for line in lines:
        click.echo(f"    {line}")


def _words(mount: JsonObject) -> str:
    return ",".join(mount.get("options") or ())


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _print_json(value: object) -> None:
    for line in json.dumps(value, indent=2).splitlines():
        click.echo(f"    {line}")
