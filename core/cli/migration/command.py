"""The command ``crinoid config import``."""

from pathlib import Path

import click

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.migration import containerd, crio, docker, registries_conf
from crinoid.core.cli.migration.draft import Draft, Outcome
from crinoid.core.cli.migration.sources import Node
from crinoid.core.cli.migration.trial import make_startable, write
from crinoid.core.config.paths import DIRECTORY

REPORT = "imported.txt"
_RUNTIMES = ("containerd", "cri-o", "docker")


@click.command("import")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--from", "runtime", type=click.Choice(_RUNTIMES), help="The other runtime; by default the one whose file is there."
)
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path),
    default=DIRECTORY,
    show_default=True,
    help="Directory to write into.",
)
@click.option(
    "--sysroot",
    type=click.Path(path_type=Path, exists=True),
    default=Path("/"),
    help="Read the files of the node that is mounted here.",
)
@click.option("--dry-run", is_flag=True, help="Print the configuration and all findings; write nothing.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
def import_(file: Path | None, runtime: str | None, directory: Path, sysroot: Path, dry_run: bool, force: bool) -> None:
    """Make a configuration of another runtime's: containerd's, CRI-O's with registries.conf, or docker's.

    FILE is its main file, by default the one in the usual place; what it refers to is read, too. What comes of it would
    start: it is checked as `config check` does, and what does not hold is taken out. What could not be carried over is
    told line by line; imported.txt has that, and what became of every other key. The other runtime's files are read and
    never written.
    """
    node = Node(sysroot)
    runtime = runtime or _guess(node, file)
    draft = Draft()
    _read(node, runtime, file, draft)
    notes = make_startable(draft)
    files = draft.files(directory.absolute())
    files[REPORT] = ("\n".join(_report(draft)).encode() + b"\n", 0o600)
    if dry_run:
        click.echo(files["config.toml"][0].decode(), nl=False)
        for name in sorted(files.keys() - {"config.toml"}):
            click.echo(f"\n# {name}\n" + _show(name, files[name][0]), nl=False)
    else:
        _place(files, directory, force)
    for finding in draft.of(Outcome.LOST):
        click.echo(f"not carried over: {finding}", err=True)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    counts = {outcome: len(draft.of(outcome)) for outcome in Outcome}
    click.echo(
        f"{counts[Outcome.CARRIED]} keys carried over, {counts[Outcome.LOST]} not, "
        f"{counts[Outcome.MOOT]} with nothing to carry" + ("" if dry_run else f"; see {directory / REPORT}"),
        err=True,
    )


def _guess(node: Node, file: Path | None) -> str:
    if file is not None:
        if file.suffix == ".json":
            return "docker"
        table = node.read_toml(file.absolute()).table
        return "cri-o" if "crio" in table or "registry" in table else "containerd"
    found = [
        name
        for name, files in {
            "containerd": (containerd.DEFAULT_FILE, containerd.K3S_FILE),
            "cri-o": (crio.DEFAULT_FILE, crio.DROP_INS),
            "docker": (docker.DEFAULT_FILE,),
        }.items()
        if any(node.at(path).exists() for path in files)
    ]
    if len(found) != 1:
        there = f"there are files of {' and of '.join(found)}" if found else "there is no file of a known runtime"
        raise ConfigurationError(f"{there}: say --from with one of {', '.join(_RUNTIMES)}")
    return found[0]


def _read(node: Node, runtime: str, file: Path | None, draft: Draft) -> None:
    if file is not None:
        file = file.absolute()
    if runtime == "containerd":
        default = containerd.DEFAULT_FILE
        if not node.at(default).exists() and node.at(containerd.K3S_FILE).exists():
            default = containerd.K3S_FILE
        containerd.import_containerd(node, file or default, draft)
    elif runtime == "docker":
        docker.import_docker(node, file or docker.DEFAULT_FILE, draft)
    elif file is not None and "registry" in node.read_toml(file).table:
        registries_conf.import_registries(node, [file], draft)
    else:
        main = file or crio.DEFAULT_FILE
        drop_ins = node.list(main.parent / "crio.conf.d", "*.conf") or node.list(main.parent / "crio.conf.d", "*")
        registries = [path for path in [registries_conf.DEFAULT_FILE] if node.at(path).is_file()]
        registries += node.list(registries_conf.DROP_INS, "*.conf")
        registries_conf.import_registries(node, registries, draft)
        crio.import_crio(node, [*([main] if node.at(main).is_file() else []), *drop_ins], draft)


def _place(files: dict[str, tuple[bytes, int]], directory: Path, force: bool) -> None:
    there = [str(directory / name) for name in files if (directory / name).exists()]
    if there and not force:
        raise ConfigurationError(f"{', '.join(sorted(there))}: already there; --force writes over it, --to elsewhere")
    try:
        write(files, directory)
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: can't be written: {error.strerror}") from error


def _report(draft: Draft) -> list[str]:
    lines = ["What crinoid config import made of each key of the other runtime."]
    for outcome in (Outcome.LOST, Outcome.CARRIED, Outcome.MOOT):
        lines += ["", f"{outcome.value}:", *(f"  {finding}" for finding in draft.of(outcome))]
    return lines


def _show(name: str, content: bytes) -> str:
    if name == "registry/config.json" or name.endswith(".key"):
        return "(not shown)\n"
    return content.decode(errors="replace")
