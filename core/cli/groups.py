"""What the command groups share: a name that there is not is answered with the nearest one."""

from collections.abc import Mapping
from typing import ClassVar

import click

from crinoid.core.config.origins import suggest


class SuggestingGroup(click.Group):
    """A group that knows what an unknown command may have meant."""

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Commands that people look for here, and what there is instead."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command. Raises UsageError with the nearest name."""
        name = args[0]
        if name in self.elsewhere:
            ctx.fail(f"there is no command {name!r}: {self.elsewhere[name]}")
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            ctx.fail(f"there is no command {name!r}{suggest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)
