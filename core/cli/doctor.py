"""``crinoid doctor``: lists pods and containers on the host that are on no record, and adopts or removes them."""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from crinoid import __version__
from crinoid.core.api.errors import ConfigurationError, FailedPrecondition
from crinoid.core.cli.options import config_option
from crinoid.core.config.paths import ConfigPaths

if TYPE_CHECKING:
    from crinoid.core.config.loader import Loaded
    from crinoid.core.lifecycle.strays.strays import Stray


@click.command()
@config_option
@click.option("--repair", is_flag=True, help="Adopt what lives, and remove what is left of the rest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_context
def doctor(ctx: click.Context, paths: ConfigPaths, repair: bool, as_json: bool) -> None:
    """List what carries the marks of this crinoid's root and run, and is on no record.

    Those are monitors, directories, mounts, pinned namespaces, cgroups, network links and addresses of pods and
    containers, as they are left when the state is lost. With --repair, a pod or container that lives is adopted: the
    daemon shows it from its next start on, and a kubelet that does not want it removes it. All else is removed, with
    its processes. The daemon has to be stopped for that; pods and containers run on. The exit code is 1 when something
    is left.
    """
    from crinoid.core.config.loader import load
    from crinoid.core.daemon.directories import is_taken

    loaded = load(paths)
    is_up = is_taken(loaded.config.root)
    if repair:
        if os.geteuid() != 0:
            raise ConfigurationError("crinoid doctor --repair needs root")
        if is_up:
            raise FailedPrecondition("crinoid serves: stop it first, and start it again after; pods live on meanwhile")
        strays, done = asyncio.run(_repair(loaded))
    else:
        strays, done = look(loaded), []
    if as_json:
        found = [{"id": stray.id, **stray.facts()} for stray in strays]
        click.echo(json.dumps({"daemon": is_up, "strays": found, "repaired": done}, indent=2))
    else:
        _print(strays, done, is_up)
    if strays and not done:
        ctx.exit(1)


def look(loaded: "Loaded") -> "list[Stray]":
    """Find what neither the records nor the ledger know, whether a daemon runs or not."""
    from crinoid.core.daemon.directories import find_passage
    from crinoid.core.lifecycle.strays.strays import find, ids_in
    from crinoid.core.state.transfer import copied, known_names

    config = loaded.config
    with copied(config.root / "state.db") as connection:
        known = {one for name in known_names(connection) for one in ids_in(name)}
    return find(config.root, find_passage(config.run), known.__contains__)


async def _repair(loaded: "Loaded") -> "tuple[list[Stray], list[str]]":
    """Start up as the daemon does, up to where it would serve, then repair what is found."""
    from crinoid.core.daemon.composition import compose
    from crinoid.core.daemon.directories import taken
    from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths
    from crinoid.core.lifecycle.resources.host_calls import HostCalls
    from crinoid.core.lifecycle.strays.strays import Repair
    from crinoid.core.slots.binding import bind

    with taken(loaded.config) as held:
        config = loaded.config.model_copy(update={"run": held.passage})
        slots = bind(config, loaded.origins, version=__version__)
        node = compose(config, slots, __version__, HostCalls())
        try:
            node.recovery.prepare()
            strays = await node.recovery.find_strays()
            done = await Repair(node.store, slots, config.run, CgroupPaths.of(config.pods).root).run(strays)
        finally:
            await node.close()
    return strays, done


def _print(strays: "Sequence[Stray]", done: Sequence[str], is_up: bool) -> None:
    if not strays:
        click.echo("nothing is on this host that is on no record")
    for stray in strays:
        click.echo(stray.id)
        for kind, names in stray.facts().items() if not done else ():
            click.echo(f"  {len(names)} {kind}: {', '.join(names)}")
    for line in done:
        click.echo(line)
    if strays and not done:
        stop = "stop crinoid (pods live on) and run " if is_up else ""
        click.echo(f"-> {stop}'crinoid doctor --repair' adopts what lives and removes the rest")
