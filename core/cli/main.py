"""The command group ``crinoid``: finds a sub-command by name and imports it only then, so that help is quick.

Exit codes: 0, 1 for a failure that was told on standard error, 2 for a wrong use of the command line, and of sysexits.h
78 (``EX_CONFIG``) for a configuration that can't be used, 75 (``EX_TEMPFAIL``) for a state that can't be had now, as on
a full disk: the same start succeeds once the cause is gone.
"""

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from crinoid import __version__
from crinoid.core.api.errors import CrinoidError
from crinoid.core.cli.groups import SuggestingGroup
from crinoid.core.daemon.journal import ERROR, is_journal, with_priority


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command that is imported when it is called; ``summary`` is its line in the help of the group, if it has one."""

    module: str
    attribute: str
    summary: str
    is_hidden: bool = False


COMMANDS: Mapping[str, LazyCommand] = {
    "serve": LazyCommand("crinoid.core.cli.serve", "serve", "Serve the CRI on a unix socket until SIGTERM."),
    "upgrade": LazyCommand(
        "crinoid.core.cli.upgrade", "upgrade", "Take over from the daemon that runs: no client's call fails."
    ),
    "reload": LazyCommand(
        "crinoid.core.cli.reload", "reload", "Have the daemon that runs read its configuration again."
    ),
    "log-level": LazyCommand("crinoid.core.cli.reload", "log_level", "Change how much the daemon that runs logs."),
    "ctl": LazyCommand("crinoid.core.cli.ctl", "ctl", "Work with the pods, containers and images of a CRI endpoint."),
    "image": LazyCommand("crinoid.core.cli.image", "image", "Verify, repair, prune and adopt the images of a node."),
    "check": LazyCommand("crinoid.core.cli.check", "check", "Examine the host: what is fit, what is not, what to do."),
    "explain": LazyCommand(
        "crinoid.core.cli.explain", "explain", "Tell what was done to a pod or an image, and what took how long."
    ),
    "doctor": LazyCommand("crinoid.core.cli.doctor", "doctor", "Find what is on no record, and adopt or remove it."),
    "report": LazyCommand("crinoid.core.cli.report", "report", "Gather what a bug report needs, without secrets."),
    "trace": LazyCommand(
        "crinoid.core.cli.trace", "trace", "Record a daemon's calls without secrets, and replay them without a node."
    ),
    "state": LazyCommand("crinoid.core.cli.state", "state", "Write records and ledger to a file, and read them again."),
    "config": LazyCommand("crinoid.core.cli.config", "config", "Check and show the configuration."),
    "build": LazyCommand("crinoid.core.cli.node_build", "build", "Build a node from one file, or verify one."),
    "plugins": LazyCommand("crinoid.core.cli.plugins", "plugins", "List the installed plugins and what uses them."),
    "plugin": LazyCommand("crinoid.core.cli.plugin", "plugin", "Begin a plugin, or check one before it is used."),
    "plugin-host": LazyCommand(
        "crinoid.core.cli.plugin_host", "plugin_host", "Serve one driver to a daemon (the daemon starts it).", True
    ),
    "demo": LazyCommand("crinoid.core.cli.demo", "demo", "Show a node at work, from an image to an empty host."),
}


class Refusal(click.ClickException):
    """A CrinoidError as the command line shows it: its message on standard error, and its exit code."""

    def __init__(self, error: CrinoidError) -> None:
        super().__init__(error.message)
        self.exit_code = error.cli_exit_code  # type: ignore[misc]  # click looks at the object

    def show(self, file: Any = None) -> None:  # Any: click's own signature
        """Print each line of the message after the program's name; in the journal as an error."""
        for line in self.format_message().splitlines():
            text = f"crinoid: {line}"
            click.echo(with_priority(ERROR, text) if is_journal(2) else text, file=file, err=True)


class LazyGroup(SuggestingGroup):
    """A group whose commands are imported one by one, and whose CrinoidErrors need no traceback."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the program; an output that can't be written, as on a full disk, is an error like any other."""
        if os.environ.get("NO_COLOR"):  # click knows nothing of it
            options.setdefault("color", False)
        try:
            try:
                return super().main(*arguments, **options)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.errno not in _OUTPUT_ERRORS or error.filename is not None:
                raise
            with contextlib.suppress(OSError):
                click.echo(f"crinoid: the output can't be written: {error.strerror}", err=True)
            _drop_output()
            sys.exit(1)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; a verb of ctl's is told as such."""
        if args[0] not in COMMANDS:
            from crinoid.core.cli.ctl import FAMILIES

            if args[0] == "version":
                ctx.fail("there is no command 'version'; did you mean `crinoid --version`, or `crinoid ctl version`?")
            if any(args[0] in verbs for verbs in FAMILIES.values()):
                ctx.fail(f"there is no command {args[0]!r}; did you mean `crinoid ctl {args[0]}`?")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return [name for name, lazy in COMMANDS.items() if not lazy.is_hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        command: click.Command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their summaries, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in COMMANDS.items() if not lazy.is_hidden])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; end a CrinoidError here, with its message."""
        try:
            return super().invoke(ctx)
        except CrinoidError as error:
            raise Refusal(error) from error


_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE})
"""What write(2) says of an output; an error of a file that was opened has the file's name."""


def _drop_output() -> None:
    """Let what is still buffered go nowhere, or the interpreter would complain of it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `crinoid check`, then `crinoid serve`, and in another terminal `crinoid ctl status`. "
    "When something does not work: docs/troubleshooting.md, in the environment's share/doc/crinoid.",
)
@click.version_option(__version__, prog_name="crinoid")
def main() -> None:
    """A Kubernetes container runtime (CRI v1) whose every organ is a plugin."""
