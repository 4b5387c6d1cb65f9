"""The list of a build's files with their hashes, and whether a node has exactly these."""

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.node_build.site_file import Site
from crinoid.core.cli.node_build.tree import Tree

NAME = "build.json"
_FORMAT = 1


def make_list(site: Site, tree: Tree) -> bytes:
    """List all files; those of the prefix by names below it, so that it may lie elsewhere."""
    inside: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    for path, entry in tree.sorted():
        told: dict[str, Any] = {"link": entry.link}
        if not entry.link:
            told = {"sha256": hashlib.sha256(entry.content).hexdigest(), "mode": f"{entry.mode:04o}"}
        if entry.is_config:
            told["config"] = True
        name = path.removeprefix(f"{tree.prefix}/")
        (inside if name != path else outside)[name] = told
    files = {"prefix": inside, "system": outside}
    document = {
        "format": _FORMAT,
        "name": site.name,
        "version": site.version,
        "prefix": site.prefix,
        "id": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        "files": files,
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def read_list(file: Path) -> dict[str, Any]:
    """Read a list, and see whether it is whole. Raises ConfigurationError."""
    try:
        document = json.loads(file.read_bytes())
        files = document["files"]
        whole = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() == document["id"]
    except OSError as error:
        raise ConfigurationError(f"{file}: can't be read: {error.strerror}; is this node a build?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{file}: this is no list of a build: {error}") from error
    if not whole or document.get("format") != _FORMAT:
        raise ConfigurationError(f"{file}: this list has been changed, or is of another version of crinoid")
    return dict(document)


def find_differences(document: dict[str, Any], prefix: Path, root: Path, with_system: bool) -> Iterator[str]:
    """Say what of a node is not as the list has it; bytecode is the node's own."""
    inside = document["files"]["prefix"]
    for name, told in inside.items():
        yield from _compare(prefix / name, told)
    for path in sorted(prefix.rglob("*")) if prefix.is_dir() else ():
        name = str(path.relative_to(prefix))
        if name not in inside and name != f"share/{NAME}" and not path.is_dir() and "__pycache__" not in path.parts:
            yield f"{path}: is not of the build"
    for name, told in document["files"]["system"].items() if with_system else ():
        yield from _compare(root / name.lstrip("/"), told)


def _compare(path: Path, told: dict[str, Any]) -> Iterator[str]:
    what = " (configuration)" if told.get("config") else ""
    try:
        found = path.lstat()
        if "link" in told:
            if not stat.S_ISLNK(found.st_mode) or str(path.readlink()) != told["link"]:
                yield f"{path}: is not the link to {told['link']}"
        elif not stat.S_ISREG(found.st_mode):
            yield f"{path}: is no regular file"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != told["sha256"]:
            yield f"{path}: has another content{what}"
        elif f"{stat.S_IMODE(found.st_mode):04o}" != told["mode"]:
            yield f"{path}: has the mode {stat.S_IMODE(found.st_mode):04o}, not {told['mode']}{what}"
    except FileNotFoundError:
        yield f"{path}: is not there{what}"
    except OSError as error:
        yield f"{path}: can't be read: {error.strerror}"
