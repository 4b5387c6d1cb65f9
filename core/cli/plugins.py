"""``crinoid plugins``: what is installed, what uses it, and what is wrong with it.

The local installation tells all but the last error of a running daemon's slots, which its verbose Status tells.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from crinoid.core.api.errors import ConfigurationError, CrinoidError
from crinoid.core.cli.options import config_option, output_option
from crinoid.core.cli.tables import print_table
from crinoid.core.config.loader import ConfigPaths, Loaded, load
from crinoid.core.slots.listing import Plugin, list_plugins

_DAEMON_TIMEOUT_S = 3.0

Errors = Mapping[tuple[str, str], str]
"""Last errors of a daemon's slots, by role and slot."""


@click.command()
@config_option
@output_option("table", "json")
def plugins(paths: ConfigPaths, output: str) -> None:
    """List the installed plugins: whose they are, which slots use them, and their last error."""
    loaded = _load(paths)
    found = list_plugins(loaded.config, loaded.origins) if loaded else list_plugins(None)
    errors = asyncio.run(_ask_daemon(str(loaded.config.server.socket))) if loaded else {}
    rows = [_describe(plugin, errors) for plugin in found]
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
    else:
        _print_table(rows)


def _load(paths: ConfigPaths) -> Loaded | None:
    """Load the configuration; one that can't be read is no reason to hide what is installed."""
    try:
        return load(paths)
    except ConfigurationError as error:
        click.echo(f"crinoid: no slots are shown, as the configuration can't be used:\n{error.message}", err=True)
        return None


async def _ask_daemon(socket: str) -> Errors:
    from crinoid.core.cri.client import Client  # it needs grpc, which takes long to import

    try:
        async with Client(socket) as client:
            status = await client.call("Status", {"verbose": True}, _DAEMON_TIMEOUT_S)
    except CrinoidError:
        return {}  # no daemon runs, or it is no crinoid
    return _read_errors(status)


def _read_errors(status: Mapping[str, Any]) -> Errors:  # Any: an answer of the CRI, as JSON
    try:
        slots = json.loads(status.get("info", {}).get("slots", "[]"))
        failed = [slot for slot in slots if slot.get("lastError")]
        return {
            (slot["role"], slot["slot"]): f"{slot['lastError']['hook']}: {slot['lastError']['message']}"
            for slot in failed
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}  # another runtime serves this socket


def _describe(plugin: Plugin, errors: Errors) -> dict[str, Any]:
    driver = plugin.driver
    said = [errors[driver.role, slot] for slot in plugin.slots if (driver.role, slot) in errors]
    return {
        "role": driver.role,
        "name": driver.name,
        "distribution": driver.distribution,
        "version": driver.version,
        "apiVersion": driver.api_version,
        "slots": list(plugin.slots),
        "state": plugin.state.value,
        "lastError": plugin.error or "; ".join(said),
    }


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the plugins as a table, and their errors, which are long, as lines below it."""
    print_table(
        ("ROLE", "NAME", "DISTRIBUTION", "API", "SLOTS", "STATE"),
        (
            (
                row["role"],
                row["name"],
                f"{row['distribution']} {row['version']}".strip() or "-",
                row["apiVersion"] or "-",
                ", ".join(row["slots"]) or "-",
                row["state"],
            )
            for row in rows
        ),
    )
    for row in rows:
        if row["lastError"]:
            click.echo(f"\nlast error of {row['role']} {row['name']}: {row['lastError']}")
