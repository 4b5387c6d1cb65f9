"""``crinoid ctl``: pods, containers and images of any CRI endpoint, for people at a node and for programs.

Verbs, flags and documents are those of crictl where it has one. ``session`` talks to the endpoint, ``directory`` finds
what an argument means, ``queries`` are the filters of lists; ``json_documents``, ``tables`` and ``figures`` are the
output. The other modules are the verbs, one family each. A CrinoidError ends a verb with one line and exit code 1.
"""

import importlib
from collections.abc import Mapping

import click

from crinoid import __version__
from crinoid.core.cli.ctl.durations import DURATION
from crinoid.core.cli.ctl.flags import flag
from crinoid.core.cli.ctl.session import Target
from crinoid.core.cli.groups import SuggestingGroup
from crinoid.core.cli.options import config_option
from crinoid.core.config.paths import ConfigPaths

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "pods": ("pods", "runp", "stopp", "rmp"),
    "containers": ("ps", "create", "start", "stop", "kill", "wait", "rm", "update", "checkpoint"),
    "run": ("run",),
    "execution": ("exec", "attach"),
    "forwarding": ("port-forward",),
    "logs": ("logs",),
    "stats": ("stats", "statsp", "metricsp", "metricdescs"),
    "top": ("top",),
    "copying": ("cp",),
    "prune": ("prune",),
    "inspection": ("inspect", "inspectp", "inspecti"),
    "images": ("images", "rmi", "imagefsinfo"),
    "pull": ("pull",),
    "load": ("load",),
    "save": ("save",),
    "names": ("tag", "untag"),
    "system": ("system",),
    "node": ("version", "info", "status", "runtime-config", "update-runtime-config", "events", "completion"),
}
"""The verbs of each module, in the order of the help; a module is imported when one of its verbs is used."""
ALIASES: Mapping[str, str] = {"image": "images", "img": "images", "event": "events"}
"""crictl's second names of verbs; they work without being listed."""
_WHOLE = 1000
ELSEWHERE: Mapping[str, str] = {
    "apply": "`ctl run FILE` takes a pod in a short form of its own; manifests are the kubelet's",
    "build": "crinoid builds no images; `ctl load` takes those that another tool wrote",
    "config": "the client has no file of its own: its endpoint is that of CONTAINER_RUNTIME_ENDPOINT, or of --endpoint",
    "commit": "crinoid makes no images of containers; `ctl checkpoint` writes what runs",
    "container": "its verbs stand by themselves: `ctl ps`, `ctl rm`, `ctl inspect`",
    "delete": "`ctl rmp` removes pods, `ctl rm` containers, `ctl rmi` images",
    "describe": "`ctl inspectp` and `ctl inspect` tell what it is, `crinoid explain` what was done to it",
    "diff": "the CRI tells no changes of a container; `ctl cp` brings files",
    "du": "`ctl system df` tells what takes how much",
    "get": "`ctl pods`, `ctl ps` and `ctl images` list",
    "history": "`ctl inspecti` tells what an image is made of",
    "jsonschema": "`ctl run` takes the configurations of crictl; a field that they don't have is told by its name",
    "login": "credentials are in the configuration, see docs/registries.md; `ctl pull --creds` takes them once",
    "network": "networks are slots of the configuration: `crinoid config show`, docs/networks.md",
    "pause": "the CRI can't freeze a container",
    "pod": "its verbs stand by themselves: `ctl pods`, `ctl runp`, `ctl stopp`, `ctl rmp`",
    "port": "`ctl inspectp` tells a pod's addresses, `ctl port-forward` brings a port here",
    "push": "crinoid pushes no images; `ctl save` writes them for a tool that does",
    "rename": "a container keeps its name",
    "restart": "a container has one life: `ctl stop`, `ctl rm` and `ctl run`, or let its kubelet make the next",
    "search": "registries are not searched; `ctl pull` takes a name",
    "unpause": "the CRI can't freeze a container",
    "volume": "volumes are the kubelet's; `ctl run --volume` mounts a directory of the host",
}
"""Verbs that people look for, and what there is instead."""

OF_IMAGES: Mapping[str, str] = {
    "history": "`ctl inspecti`",
    "import": "`ctl load`",
    "inspect": "`ctl inspecti`",
    "list": "`ctl images`",
    "load": "`ctl load`",
    "ls": "`ctl images`",
    "prune": "`ctl rmi --prune`, or `ctl prune`",
    "pull": "`ctl pull`",
    "rm": "`ctl rmi`",
    "save": "`ctl save`",
    "tag": "`ctl tag`",
}
"""What docker and podman have below ``image``, which is ``images`` here, as for crictl."""


class VerbGroup(SuggestingGroup):
    """A group that finds its verbs in their families."""

    elsewhere = ELSEWHERE

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a verb; ``image ls`` would list the images of the name "ls"."""
        if ALIASES.get(args[0]) == "images" and args[1:2] and args[1] in OF_IMAGES:
            ctx.fail(f"there is no command '{args[0]} {args[1]}': here it is {OF_IMAGES[args[1]]}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the help."""
        return [verb for verbs in FAMILIES.values() for verb in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        name = ALIASES.get(cmd_name, cmd_name)
        family = next((family for family, verbs in FAMILIES.items() if name in verbs), None)
        if family is None:
            return None
        verbs: tuple[click.Command, ...] = importlib.import_module(f"{__name__}.{family}").VERBS
        return next(verb for verb in verbs if verb.name == name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each verb with all of its first sentence; click would cut it at 80 columns."""
        verbs = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(_WHOLE)) for name, verb in verbs if verb])


@click.group(cls=VerbGroup)
@click.option(
    "--runtime-endpoint",
    "--endpoint",
    "-r",
    "runtime_endpoint",
    envvar=["CRINOID_ENDPOINT", "CONTAINER_RUNTIME_ENDPOINT"],
    show_envvar=True,
    metavar="SOCKET",
    help="CRI endpoint, such as unix:///run/containerd/containerd.sock; by default the socket of the configuration.",
)
@click.option(
    "--image-endpoint",
    "-i",
    envvar="IMAGE_SERVICE_ENDPOINT",
    show_envvar=True,
    metavar="SOCKET",
    help="CRI endpoint for images, where it is another one.",
)
@click.option(
    "--timeout",
    "-t",
    type=DURATION,
    metavar="DURATION",
    help="How long one call may take, such as 2s; by default 10s for a question and 5m for an act.",
)
@click.option(
    "--max-retries",
    default=0,
    metavar="N",
    help="How often to try again, with growing pauses, while nobody serves the endpoint; negative is for ever.",
)
@flag("--debug", "-D", help="Show each call, its answer and how long it took, on standard error.")
@config_option
@click.version_option(__version__, "--version", "-v", prog_name="crinoid ctl")
@click.pass_context
def ctl(
    ctx: click.Context,
    paths: ConfigPaths,
    runtime_endpoint: str | None,
    image_endpoint: str | None,
    timeout: float | None,
    max_retries: int,
    debug: bool,
) -> None:
    """Work with the pods, containers and images of a CRI endpoint.

    Containers and pods are named by their id, by the beginning of it, or by their name where that is unique;
    POD/CONTAINER means a container by its pod's name.
    """
    if paths.main.suffix in (".yaml", ".yml"):
        raise click.UsageError(
            f"{paths.main} is no configuration of crinoid's: of crictl.yaml nothing is read; give its endpoints as "
            "--runtime-endpoint and --image-endpoint, or as CONTAINER_RUNTIME_ENDPOINT and IMAGE_SERVICE_ENDPOINT"
        )
    ctx.obj = Target(paths, runtime_endpoint, image_endpoint, timeout or None, max_retries, debug)
