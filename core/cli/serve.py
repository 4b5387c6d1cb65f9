"""``crinoid serve``: the daemon."""

import gc

import click

from crinoid.core.cli.options import config_option
from crinoid.core.config.paths import ConfigPaths


@click.command()
@click.option("--takeover", is_flag=True, help="Take over from the daemon that runs, if one does: no call fails.")
@config_option
def serve(paths: ConfigPaths, takeover: bool) -> None:
    """Serve the CRI on a unix socket until SIGTERM.

    Containers run on when the daemon ends, and are there again when it starts.
    """
    gc.disable()  # an import makes no garbage, and much to look through; the daemon enables it once it serves
    from crinoid.core.daemon.serve import serve as serve_forever  # it needs grpc, which takes long to import

    serve_forever(paths, takeover=takeover)
