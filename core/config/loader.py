"""Reads the configuration: finds the files, merges them, makes the model and remembers where each value came from.

First thing that ``serve`` and most commands do. The main file comes first, then the drop-ins in the order of their
names; tables are merged key by key, everything else is replaced. Every file is optional.
"""

import copy
import itertools
import os
import re
import stat
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import BUILT_IN, DEFAULT_SLOT, Config
from crinoid.core.config.origins import Origin, Origins, Problem, refuse, suggest
from crinoid.core.config.paths import ConfigPaths as ConfigPaths  # for whoever loads
from crinoid.core.config.positions import KeyPath, index_keys
from crinoid.core.config.validation import validate

_NULL = os.makedev(1, 3)
_BARE_VALUE = re.compile(r"=\s*([\w/~][^\s#\"',\]}]*)\s*(?:#.*)?$")
_SLIPS = (
    (re.compile("[\u201c\u201d\u2018\u2019]"), "these are typographic quotes; TOML has \" and '"),
    (re.compile(r"(^|\s)//"), "a comment begins with #"),
    (re.compile(r"=\s*(True|False|TRUE|FALSE)\b"), "write true or false, in small letters"),
    (re.compile(r"^\s*[\w.\"-]+\s*:"), "a key is followed by =, not by a colon"),
    (re.compile(r"^\s*(\{|- )"), "it looks like JSON or YAML"),
)
"""What slips into TOML from other languages, by the line that tomllib can't read."""
_DECLARED = re.compile(r"\('([^)]*)\)")
_OVERWRITTEN = "Cannot overwrite a value"


_PLACES = (("root",), ("run",), ("server",))


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration, where its values came from, and the files that were read, in their order."""

    config: Config
    origins: Origins
    files: tuple[Path, ...] = ()


def load(paths: ConfigPaths | None = None) -> Loaded:
    """Read and check all files; raise a ConfigurationError that lists every problem with file, line and key.

    Drivers and their options are not looked at here, but in ``slots``.
    """
    loaded, problems = examine(paths)
    refuse(problems)
    return loaded


def load_places(paths: ConfigPaths | None = None) -> tuple[Config, list[Problem]]:
    """Read what says where the daemon is that runs; return that and the mistakes elsewhere, which can't matter to it.

    It serves by the files of its start: a mistake made since must not keep anybody from asking it. Raises
    ConfigurationError where its place can't be told.
    """
    loaded, problems = examine(paths)
    refuse(problem for problem in problems if problem.key[:1] in _PLACES)
    return loaded.config, problems


def examine(paths: ConfigPaths | None = None) -> tuple[Loaded, list[Problem]]:
    """Read all files; return every problem, and the configuration without the keys that have one.

    So that whoever checks drivers and their options next can tell what is wrong there in the same run. Raises
    ConfigurationError where a file can't be read at all.
    """
    files = find_files(paths or ConfigPaths())
    merging = _Merging(copy.deepcopy(BUILT_IN))
    refuse([problem for file in files if (problem := merging.add_file(file))])
    origins = Origins(merging.origins)
    problems = [
        Problem(key, "must be a number of 64 bits, as TOML has no other", origins.nearest(key))
        for key in _find_large(merging.table)
    ]
    for problem in problems:
        _remove(merging.table, problem.key)
    while isinstance(config := validate(Config, merging.table, origins), list):
        # What lacks a key only because it was taken out here is no second mistake.
        problems += [one for one in config if one.key not in {problem.key for problem in problems}]
        removed = [_remove(merging.table, problem.key) for problem in config]
        if not any(removed):
            refuse(problems)
    refused = {(str(problem.key[0]), str(problem.key[1])) for problem in problems if len(problem.key) > 1}
    problems += find_conflicts(config, origins, refused)
    return Loaded(config, origins, files), problems


def _remove(table: dict[str, Any], key: KeyPath) -> bool:
    """Take out the innermost part of a key path that is there: a list for its element, a table that lacks a key."""
    holder = table
    for name, below in itertools.pairwise(key):
        found = holder.get(str(name))
        if not isinstance(found, dict) or below not in found:
            return holder.pop(str(name), None) is not None
        holder = found
    return holder.pop(str(key[-1]), None) is not None


def find_files(paths: ConfigPaths) -> tuple[Path, ...]:
    """Return the files that exist, in the order in which they are read.

    Raises ConfigurationError for what is there and can't be read as a file: what it says could change anything, so to
    leave it out is not for us. /dev/null stands for an empty file, by which a drop-in of a package is switched off.
    """
    has_main = _is_file(paths.main)
    if paths.required and not has_main:
        raise ConfigurationError(f"{paths.main}: there is no such file; --config must name one")
    drop_ins = [path for path in _list_drop_ins(paths) if _is_drop_in(path) and _is_file(path)]
    return (*((paths.main,) if has_main else ()), *drop_ins)


def find_overlooked(paths: ConfigPaths) -> tuple[Path, ...]:
    """Return what lies in the directory of drop-ins and is not read, because of its name or as it is a directory."""
    return tuple(path for path in _list_drop_ins(paths) if not _is_drop_in(path) and not path.name.startswith("."))


def _list_drop_ins(paths: ConfigPaths) -> list[Path]:
    try:
        return sorted(paths.drop_ins.iterdir())
    except FileNotFoundError as error:
        if paths.drop_ins.is_symlink():
            raise ConfigurationError(f"{paths.drop_ins}: this link leads nowhere") from error
        return []
    except NotADirectoryError as error:
        if paths.drop_ins.exists():
            raise ConfigurationError(f"{paths.drop_ins}: must be a directory, of drop-ins") from error
        return []
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: can't be read: {error.strerror}") from error


def _is_drop_in(path: Path) -> bool:
    """Hidden files are editors' own: copies, and locks that are links to nowhere."""
    return path.suffix == ".toml" and not path.name.startswith(".")


def _is_file(path: Path) -> bool:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise ConfigurationError(f"{path}: this link leads nowhere") from error
        return False
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from error
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL:
        return False
    if not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise ConfigurationError(f"{path}: is {what}; it must be a file of TOML")
    return True


def _find_large(value: object, key: KeyPath = ()) -> Iterator[KeyPath]:
    """Find integers that TOML has not: tomllib reads them, and what they become elsewhere is anybody's guess."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _find_large(below, (*key, name))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _find_large(below, (*key, index))
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield key


def find_conflicts(config: Config, origins: Origins, refused: Collection[tuple[str, str]] = ()) -> list[Problem]:
    """Return every name in the configuration that names nothing in it; ``refused``: tables and slots left out of it."""
    runtimes = config.enabled_runtimes
    networks, snapshotters = {DEFAULT_SLOT, *config.networks}, {DEFAULT_SLOT, *config.snapshotters}
    names: list[tuple[KeyPath, str, set[str], str]] = [
        (("images", "sources", index), source, set(config.registries), "registries")
        for index, source in enumerate(config.images.sources)
    ]
    names.append((("pods", "default_runtime"), config.pods.default_runtime, set(runtimes), "runtimes"))
    for handler, slot in runtimes.items():
        names.append((("runtimes", handler, "network"), slot.network, networks, "networks"))
        names.append((("runtimes", handler, "snapshotter"), slot.snapshotter, snapshotters, "snapshotters"))
    problems = [
        Problem(key, f'there is no slot "{name}" in [{table}]{_suggest_slot(name, known, table)}', origins.nearest(key))
        for key, name, known, table in names
        if name not in known and (table, name) not in refused
    ]
    return problems + _find_shadowed(config, origins)


def _suggest_slot(name: str, known: set[str], table: str) -> str:
    near = suggest(name, known)
    return near if near.startswith("; did you mean") else f"{near}; a table [{table}.{name}] with a driver makes it"


def _find_shadowed(config: Config, origins: Origins) -> list[Problem]:
    """``default`` is the slot of the tables [network] and [snapshotter]; no other may have that name."""
    tables: tuple[tuple[str, Mapping[str, object], str], ...] = (
        ("networks", config.networks, "network"),
        ("snapshotters", config.snapshotters, "snapshotter"),
    )
    return [
        Problem((plural, DEFAULT_SLOT), f"this name is the table [{single}]'s", origins.nearest((plural, DEFAULT_SLOT)))
        for plural, slots, single in tables
        if DEFAULT_SLOT in slots
    ]


class _Merging:
    """The tables read so far, and the origin of each key in them."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table
        self.origins: dict[KeyPath, Origin] = {}

    def add_file(self, file: Path) -> Problem | None:
        """Lay a file over what is there; return why it can't be read, if it can't."""
        try:
            text = file.read_bytes().decode("utf-8-sig")  # editors of Windows put a mark before the text
            table = tomllib.loads(text)
        except OSError as error:
            return Problem((), f"{file}: can't be read: {error.strerror}")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            return Problem((), "this is no UTF-8 text", Origin(file, line))
        except tomllib.TOMLDecodeError as error:
            return _explain_syntax(file, text, error)
        index = {key: Origin(file, line) for key, line in index_keys(text).items()}
        self._overlay(self.table, table, (), index)
        return None

    def _overlay(
        self, below: dict[str, Any], above: Mapping[str, Any], base: KeyPath, index: Mapping[KeyPath, Origin]
    ) -> None:
        for name, value in above.items():
            key = (*base, name)
            if isinstance(value, dict) and isinstance(below.get(name), dict):
                self._note(key, index)
                self._overlay(below[name], value, key, index)
            else:
                below[name] = value
                self._replace(key, index)

    def _note(self, key: KeyPath, index: Mapping[KeyPath, Origin]) -> None:
        if key in index:
            self.origins[key] = index[key]

    def _replace(self, key: KeyPath, index: Mapping[KeyPath, Origin]) -> None:
        """Forget what earlier files said of a key and all below it; take this file's lines."""
        for old in [old for old in self.origins if old[: len(key)] == key]:
            del self.origins[old]
        self.origins |= {new: origin for new, origin in index.items() if new[: len(key)] == key}


def _explain_syntax(file: Path, text: str, error: tomllib.TOMLDecodeError) -> Problem:
    """tomllib tells the line in its text: "... (at line 3, column 7)", or "(at end of document)"."""
    message, _, place = str(error).rpartition(" (at ")
    words = place.rstrip(")").replace(",", "").split()
    line = int(words[1]) if words[:1] == ["line"] else text.count("\n") + 1
    message = _DECLARED.sub(lambda found: "[" + ".".join(re.findall(r"[^', ]+", found[1])) + "]", message or str(error))
    hint = ": its key is there already" if message == _OVERWRITTEN else _find_slip(text.splitlines()[line - 1 : line])
    return Problem((), f"this is no TOML: {message}{hint}", Origin(file, line))


def _find_slip(lines: list[str]) -> str:
    """Say what the line seems to be where it is no TOML."""
    for line in lines:
        for form, said in _SLIPS:
            if form.search(line):
                return f": {said}"
        if bare := _BARE_VALUE.search(line):
            return f': a text needs quotes, as in "{bare[1]}"'
    return ""
