"""``crinoid plugin``: begin the project of a plugin, and check a plugin before a daemon uses it.

``check`` does all that ``serve`` does with a driver before it serves, and then applies the role's contract.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # options are JSON

import click

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.plugin.project import Project
from crinoid.core.config.models import Config, SlotConfig
from crinoid.core.config.origins import NO_ORIGINS, Problem, refuse
from crinoid.core.slots.drivers import Installation, InstalledDriver
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.selection import Selection, ValidSlot, check_slot
from crinoid.core.slots.trial import try_driver

_CONTRACTS = {
    "runtime": ("runtimes", "RuntimeContract"),
    "network": ("networks", "NetworkContract"),
    "snapshotter": ("snapshotters", "SnapshotterContract"),
    "extension": ("extensions", "ExtensionContract"),
}
_CONTRACT = """\
from crinoid.core.api.testing.{module} import {contract}
from crinoid.core.slots.drivers import Installation


class Test{number}({contract}):
{settings}
    def make_driver(self, host):
        loaded = Installation().load({role!r}, {name!r})
        return loaded.factory(loaded.options.model_validate_json({options!r}, strict=True), host)
"""


@click.group()
def plugin() -> None:
    """Begin a plugin, or check one before it is used."""


@plugin.command()
@click.argument("role", type=click.Choice([*ROLES]))
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write it; by default ./DISTRIBUTION.",
)
def new(role: str, name: str, directory: Path | None) -> None:
    """Write the project of a plugin: a driver that works, its options, its contract tests, packaging and CI."""
    project = Project(role, name)
    directory = directory or Path(project.distribution)
    project.write(directory)
    click.echo(f"{directory} has the {role} driver {name}; its README.md says what comes next")
    click.echo(f"    pip install -e '{directory}[test]' && crinoid plugin check {project.distribution}")


@plugin.command()
@click.argument("distribution")
@click.option("--options", default="{}", metavar="JSON", help="The drivers' options, as a JSON object.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=JSON", help="A switch of the contract, such as has_streams=false."
)
@click.option("--no-contract", is_flag=True, help="Leave the contract's tests out.")
def check(distribution: str, options: str, settings: tuple[str, ...], no_contract: bool) -> None:
    """Load, bind and make every driver of an installed distribution as the daemon would, and apply its role's contract.

    Exits with 78 for a driver that would stop the start, with 1 where the contract's tests fail.
    """
    drivers = _drivers_of(distribution)
    table = _read_options(options)
    problems: list[Problem] = []
    for driver in drivers:
        slot = _select(driver, table)
        if isinstance(slot, ValidSlot):
            trial = try_driver(slot, NO_ORIGINS, Config().deadlines)
            problems += trial.problems
            for note in trial.notes:
                click.echo(f"note: {note}", err=True)
        else:
            problems += slot
    refuse(problems)
    for driver in drivers:
        click.echo(f"{driver.title} is fit to be used")
    if not no_contract:
        _apply_contracts(drivers, options, settings)


def _drivers_of(distribution: str) -> list[InstalledDriver]:
    wanted = distribution.lower().replace("_", "-")
    installed = Installation().discover()
    found = [driver for driver in installed if driver.distribution.lower().replace("_", "-") == wanted]
    if not found:
        groups = ", ".join(role.group for role in ROLES.values())
        raise ConfigurationError(
            f"no driver of a distribution {distribution} is installed in {sys.prefix}: install it there, and give it "
            f"an entry point in one of the groups {groups}"
        )
    return found


def _read_options(text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--options is no JSON: {error}") from error
    if not isinstance(table, dict):
        raise ConfigurationError("--options is no JSON object")
    return table


def _select(driver: InstalledDriver, table: dict[str, Any]) -> ValidSlot | list[Problem]:
    config = SlotConfig(driver=driver.name, options=table)
    return check_slot(Selection(driver.role, driver.name, config, ("options",)), NO_ORIGINS, Installation())


def _apply_contracts(drivers: Sequence[InstalledDriver], options: str, settings: Sequence[str]) -> None:
    """Run pytest over a file that applies the contract to each driver."""
    lines = [f"    {name} = {json.loads(value)!r}" for name, _, value in (each.partition("=") for each in settings)]
    with tempfile.TemporaryDirectory(prefix="crinoid-contract-") as directory:
        for number, driver in enumerate(drivers):
            if driver.role not in _CONTRACTS:
                click.echo(
                    f"note: the contract of {driver.title} needs a sample of its images: run its own tests", err=True
                )
                continue
            module, contract = _CONTRACTS[driver.role]
            text = _CONTRACT.format(
                module=module,
                contract=contract,
                number=number,
                role=driver.role,
                name=driver.name,
                options=options,
                settings="\n".join(lines),
            )
            Path(directory, f"test_contract_{number}.py").write_text(text)
        if not any(Path(directory).iterdir()):
            return
        run = ["-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", f"--rootdir={directory}", directory]
        done = subprocess.run([sys.executable, *run], check=False)
        if done.returncode != 0:
            sys.exit(1)
