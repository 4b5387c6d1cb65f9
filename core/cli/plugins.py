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

Told = Mapping[tuple[str, str], Mapping[str, Any]]
"""What a daemon tells of its slots, by role and slot; Any: an answer of the CRI, as JSON."""


@click.command()
@config_option
@output_option("table", "json")
def plugins(paths: ConfigPaths, output: str) -> None:
    """List the installed plugins: whose they are, which slots use them, and their last error."""
    loaded = _load(paths)
    found = list_plugins(loaded.config, loaded.origins) if loaded else list_plugins(None)
    told = asyncio.run(_ask_daemon(str(loaded.config.server.socket))) if loaded else {}
    rows = [_describe(plugin, told) for plugin in found]
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


async def _ask_daemon(socket: str) -> Told:
    from crinoid.core.cri.client import Client  # it needs grpc, which takes long to import

    try:
        async with Client(socket) as client:
            status = await client.call("Status", {"verbose": True}, _DAEMON_TIMEOUT_S)
    except CrinoidError:
        return {}  # no daemon runs, or it is no crinoid
    return _read_slots(status)


def _read_slots(status: Mapping[str, Any]) -> Told:
    try:
        slots = json.loads(status.get("info", {}).get("slots", "[]"))
        return {(slot["role"], slot["slot"]): slot for slot in slots}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}  # another runtime serves this socket


def _say_error(slot: Mapping[str, Any]) -> str:
    error, process = slot.get("lastError"), slot.get("process")
    down = process.get("problem", "") if isinstance(process, dict) else ""
    said = f"{error.get('hook')}: {error.get('message')}" if isinstance(error, dict) else ""
    return "; ".join(filter(None, (down, said)))


def _describe(plugin: Plugin, told: Told) -> dict[str, Any]:
    driver = plugin.driver
    slots = [told[driver.role, slot] for slot in plugin.slots if (driver.role, slot) in told]
    said = [error for slot in slots if (error := _say_error(slot))]
    return {
        "role": driver.role,
        "name": driver.name,
        "distribution": driver.distribution,
        "version": driver.version,
        "apiVersion": driver.api_version,
        "slots": list(plugin.slots),
        "isolated": list(plugin.isolated),
        "processes": [slot["process"] for slot in slots if slot.get("process")],
        "state": plugin.state.value,
        "lastError": plugin.error or "; ".join(said),
    }


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the plugins as a table, and their errors, which are long, as lines below it."""
    print_table(
        ("ROLE", "NAME", "DISTRIBUTION", "API", "SLOTS", "ISOLATED", "STATE"),
        (
            (
                row["role"],
                row["name"],
                f"{row['distribution']} {row['version']}".strip() or "-",
                row["apiVersion"] or "-",
                ", ".join(row["slots"]) or "-",
                ", ".join(row["isolated"]) or "-",
                row["state"],
            )
            for row in rows
        ),
    )
    for row in rows:
        if row["lastError"]:
            click.echo(f"\nlast error of {row['role']} {row['name']}: {row['lastError']}")
