"""The command ``crinoid build``."""

import os
import sys
import tempfile
from pathlib import Path

import click

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.node_build.archives import write_deb, write_tar
from crinoid.core.cli.node_build.hashes import NAME, find_differences, make_list, read_list
from crinoid.core.cli.node_build.licences import Distribution, distributions
from crinoid.core.cli.node_build.lock import get_wheels
from crinoid.core.cli.node_build.sbom import make_sbom
from crinoid.core.cli.node_build.scripts import control_files
from crinoid.core.cli.node_build.site_file import Site, read_site
from crinoid.core.cli.node_build.tree import Entry, Tree, make_tree

_EPOCH = 315532800
"""1980-01-01, where SOURCE_DATE_EPOCH is not set: ZIP files know no earlier time."""


class BuildGroup(click.Group):
    """A group whose first argument may be a site's file instead of a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; all else is a file to build."""
        if args and self.get_command(ctx, args[0]) is None:
            return "make", make, args
        return super().resolve_command(ctx, args)


@click.group("build", cls=BuildGroup, subcommand_metavar="SITE.toml | verify [OPTIONS]")
def build() -> None:
    """Build a node from one file, and verify that a node is that build.

    `crinoid build SITE.toml` writes a .deb, a tar, an SBOM and a list of all files with their hashes. See docs/site.md.
    """


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), default=Path("dist"), show_default=True, help="Directory."
)
@click.option("--relock", is_flag=True, help="Choose the wheels anew, and write the lock.")
def make(file: Path, output: Path, relock: bool) -> None:
    """Build a node from a site's file: .deb, tar, SBOM and list of files."""
    site = read_site(file)
    epoch = _epoch()
    with tempfile.TemporaryDirectory(prefix="crinoid-wheels-") as wheels:
        locked = get_wheels(site, file.absolute().parent, Path(wheels), relock)
        tree = make_tree(site, file.absolute().parent, locked)
    lock = (file.absolute().parent / site.wheels.lock).read_bytes()
    sbom = make_sbom(site, list(locked), _read_distributions(site, tree), epoch)
    tree.add(f"{site.prefix}/share/sbom.cdx.json", Entry(sbom))
    tree.add(f"{site.prefix}/share/site.lock", Entry(lock))
    listed = make_list(site, tree)
    tree.add(f"{site.prefix}/share/{NAME}", Entry(listed))
    data = write_tar(tree.sorted(), epoch)
    stem = f"{site.name}_{site.version}_{site.architecture}"
    output.mkdir(parents=True, exist_ok=True)
    for name, content in {
        f"{stem}.deb": write_deb(tree, control_files(site, tree), data, epoch),
        f"{stem}.tar.gz": data,
        f"{stem}.cdx.json": sbom,
        f"{stem}.build.json": listed,
    }.items():
        (output / name).write_bytes(content)
        click.echo(output / name)


@build.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--prefix", type=click.Path(path_type=Path), help="Where the installation lies, by default that of this crinoid."
)
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path("/"), help="Root of the node, if it is not this one."
)
@click.option("--prefix-only", is_flag=True, help="Look at the installation alone, not at units and configuration.")
def verify(file: Path | None, prefix: Path | None, root: Path, prefix_only: bool) -> None:
    """Say whether this node is the build that FILE (.build.json) lists; by default the one that it says it is.

    Exit code 1 when a file is missing, changed, or not of the build. Give the file that came with the build where the
    node's own word is not enough.
    """
    place = prefix or Path(sys.prefix)
    if prefix is None and file is not None and root != Path("/"):
        place = root / read_list(file)["prefix"].lstrip("/")
    document = read_list(file or place / "share" / NAME)
    differences = list(find_differences(document, place, root, not prefix_only))
    for difference in differences:
        click.echo(difference)
    what = f"{document['name']} {document['version']} ({document['id'][:12]})"
    if differences:
        raise click.ClickException(f"{len(differences)} differences from {what}")
    click.echo(f"this is {what}")


def _epoch() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", str(_EPOCH))
    if not text.isdigit():
        raise ConfigurationError(f"SOURCE_DATE_EPOCH: {text!r} is no number of seconds")
    return int(text)


def _read_distributions(site: Site, tree: Tree) -> list[Distribution]:
    """Read the metadata of the tree's distributions."""
    where = f"{site.prefix}/lib/python{site.python}/site-packages/"
    with tempfile.TemporaryDirectory(prefix="crinoid-build-") as name:
        for path, entry in tree.sorted():
            if path.startswith(where) and ".dist-info/" in path:
                place = Path(name, path.removeprefix(where))
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(entry.content)
        return list(distributions(Path(name)))
