"""All files of a build, by their places on the node.

The installation is a Python environment in the form of PEP 405, but written by hand: ``bin/python3`` is a link to the
node's own, ``pyvenv.cfg`` beside ``bin`` makes it see ``lib/python3.X/site-packages`` and nothing of the node's, and no
file names the prefix. So it works wherever it lies.
"""

import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.node_build.licences import collect
from crinoid.core.cli.node_build.lock import Locked, run_pip, target_options
from crinoid.core.cli.node_build.site_file import Site

CONFIG = "/etc/crinoid"
UNITS = "/usr/lib/systemd/system"
_LAUNCHER = """\
#!/bin/sh
exec "$(dirname -- "$(readlink -f -- "$0")")/python3" -I -m crinoid "$@"
"""
_DROPPED = frozenset({"INSTALLER", "REQUESTED", "direct_url.json"})
"""What pip writes of the installation, and not of the wheel."""
_CHECK = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from crinoid.core.config.loader import ConfigPaths, examine
from crinoid.core.config.origins import refuse
from crinoid.core.slots.selection import examine as examine_slots
etc = Path(sys.argv[2])
loaded, problems = examine(ConfigPaths(etc / "config.toml", etc / "conf.d"))
slots, of_drivers = examine_slots(loaded.config, loaded.origins)
handlers = loaded.config.enabled_runtimes
for name, handler in zip(sys.argv[3::2], sys.argv[4::2]):
    if handler not in handlers:
        print(f"runtime_classes.{name}: there is no slot {handler!r} in [runtimes]", file=sys.stderr)
        sys.exit(1)
try:
    refuse([*problems, *of_drivers])
except Exception as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or a symbolic link where ``link`` is set."""

    content: bytes = b""
    mode: int = 0o644
    link: str = ""
    is_config: bool = False


@dataclass
class Tree:
    """The files by their absolute paths on the node."""

    prefix: str
    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, path: str, entry: Entry) -> None:
        """Add a file. Raises ConfigurationError for one that is there already."""
        if not path.startswith("/") or ".." in Path(path).parts or path.endswith("/"):
            raise ConfigurationError(f"files: {path!r} is not the absolute path of a file")
        if path in self.entries:
            raise ConfigurationError(f"files: {path} is a file of the build itself")
        self.entries[path] = entry

    def sorted(self) -> Iterator[tuple[str, Entry]]:
        """Yield all files by name."""
        yield from sorted(self.entries.items())


def make_tree(site: Site, directory: Path, wheels: dict[Locked, Path]) -> Tree:
    """Put together what a site says, and check its configuration with the crinoid that it is for."""
    tree = Tree(site.prefix)
    with tempfile.TemporaryDirectory(prefix="crinoid-build-") as name:
        packages = Path(name, "packages")
        _install(site, wheels, packages, Path(name))
        _add_packages(tree, site, packages)
        _add_launcher(tree, site)
        _add_unit(tree, site, directory, packages)
        _add_site_files(tree, site, directory)
        _check_configuration(tree, site, packages)
    return tree


def _install(site: Site, wheels: dict[Locked, Path], into: Path, scratch: Path) -> None:
    """Let pip unpack the wheels: no bytecode, which is not the same each time; the installation compiles it."""
    exact = scratch / "lock.txt"
    exact.write_text("\n".join(map(str, wheels)))
    links = [
        word for place in sorted({str(path.parent) for path in wheels.values()}) for word in ("--find-links", place)
    ]
    options = ["--quiet", "--no-compile", "--no-deps", "--no-index", "--require-hashes", "--no-warn-script-location"]
    run_pip(["install", *options, *target_options(site), *links, "--target", str(into), "-r", str(exact)], site)


def _add_packages(tree: Tree, site: Site, packages: Path) -> None:
    where = f"{tree.prefix}/lib/python{site.python}/site-packages"
    dropped = {path for path in packages.glob("*.dist-info/*") if path.name in _DROPPED}
    dropped |= set((packages / "bin").rglob("*"))  # scripts name the Python that installed them
    gone = {str(path.relative_to(packages)) for path in dropped} | {f"../../bin/{path.name}" for path in dropped}
    for path in sorted(packages.rglob("*")):
        name = path.relative_to(packages)
        if path.is_dir() or path in dropped or "__pycache__" in path.parts:
            continue
        content = path.read_bytes()
        if name.name == "RECORD" and name.parent.suffix == ".dist-info":
            lines = [line for line in content.decode().splitlines() if line.split(",")[0].strip('"') not in gone]
            content = "".join(f"{line}\n" for line in sorted(lines)).encode()
        executable = path.stat().st_mode & stat.S_IXUSR
        tree.add(f"{where}/{name}", Entry(content, 0o755 if executable else 0o644))
    for text, content in collect(packages).items():
        tree.add(f"{tree.prefix}/share/licenses/{text}", Entry(content))


def _add_launcher(tree: Tree, site: Site) -> None:
    tree.add(f"{tree.prefix}/bin/python3", Entry(link="/usr/bin/python3"))
    tree.add(f"{tree.prefix}/bin/crinoid", Entry(_LAUNCHER.encode(), 0o755))
    settings = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {site.python}\n"
    tree.add(f"{tree.prefix}/pyvenv.cfg", Entry(settings.encode()))
    tree.add("/usr/bin/crinoid", Entry(link=f"{tree.prefix}/bin/crinoid"))


def _add_unit(tree: Tree, site: Site, directory: Path, packages: Path) -> None:
    """Add the unit that came with the crinoid of the build, or the one of this crinoid."""
    own = packages / "crinoid/core/cli/node_build/crinoid.service"
    text = own.read_text() if own.exists() else resources.files(__package__).joinpath("crinoid.service").read_text()
    tree.add(
        f"{UNITS}/crinoid.service", Entry(text.replace("/usr/local/bin/crinoid", f"{site.prefix}/bin/crinoid").encode())
    )
    lines = [f'Environment="{name}={_escape(value)}"' for name, value in sorted(site.unit.environment.items())]
    if lines:
        tree.add(f"{UNITS}/crinoid.service.d/10-site.conf", Entry("\n".join(["[Service]", *lines, ""]).encode()))
    for name in site.unit.drop_ins:
        tree.add(f"{UNITS}/crinoid.service.d/{Path(name).name}", Entry(_read(directory / name)))


def _add_site_files(tree: Tree, site: Site, directory: Path) -> None:
    for name in site.config:
        place = "" if Path(name).name == "config.toml" else "conf.d/"
        tree.add(f"{CONFIG}/{place}{Path(name).name}", Entry(_read(directory / name), is_config=True))
    for path in sorted((directory / site.certs).rglob("*")) if site.certs else ():
        if path.is_file():
            mode = 0o600 if path.suffix == ".key" else 0o644
            tree.add(
                f"{CONFIG}/certs.d/{path.relative_to(directory / site.certs)}", Entry(_read(path), mode, is_config=True)
            )
    for place, file in sorted(site.files.items()):
        is_config = file.config or place.startswith("/etc/")
        tree.add(place, Entry(_read(directory / file.source), int(file.mode, 8), is_config=is_config))
    if site.runtime_classes:
        manifests = "".join(
            f"---\napiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {name}\nhandler: {handler}\n"
            for name, handler in sorted(site.runtime_classes.items())
        )
        tree.add(f"{tree.prefix}/share/runtimeclasses.yaml", Entry(manifests.encode()))


def _check_configuration(tree: Tree, site: Site, packages: Path) -> None:
    """Check it with the crinoid and the plugins of the build, where this Python can run them."""
    is_empty = not site.runtime_classes and not any(
        path.startswith((f"{CONFIG}/config.toml", f"{CONFIG}/conf.d/")) for path in tree.entries
    )
    if is_empty or site.python != f"3.{sys.version_info.minor}":
        return
    with tempfile.TemporaryDirectory(prefix="crinoid-build-") as name:
        for file, entry in tree.sorted():
            if file.startswith(f"{CONFIG}/"):
                place = Path(name, file.removeprefix(f"{CONFIG}/"))
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(entry.content)
        classes = [word for pair in sorted(site.runtime_classes.items()) for word in pair]
        command = [sys.executable, "-I", "-S", "-B", "-c", _CHECK, str(packages), name, *classes]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigurationError((done.stderr.strip() or "the configuration can't be checked").replace(name, CONFIG))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from error


def _escape(value: str) -> str:
    """systemd.exec(5), Environment: quotes and backslashes are escaped, and a percent sign is doubled."""
    if "\n" in value:
        raise ConfigurationError("unit.environment: a value must be one line")
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
