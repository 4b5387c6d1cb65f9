"""``crinoid plugin-host``: the process of a slot's driver that is not to run in the daemon; see ``slots/isolation``.

For the daemon, which starts it. It says nothing and serves nobody else.
"""

import click

from crinoid.core.slots.isolation.plugin_host import run
from crinoid.core.slots.roles import ROLES


@click.command(hidden=True)
@click.argument("role", type=click.Choice([*ROLES]))
@click.argument("slot")
@click.argument("parent_pid", type=int)
def plugin_host(role: str, slot: str, parent_pid: int) -> None:
    """Serve one driver of ROLE for SLOT on descriptor 3, as long as the daemon PARENT_PID lives."""
    run(role, parent_pid)
