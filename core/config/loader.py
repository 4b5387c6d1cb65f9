"""Reads the configuration: finds the files, merges them, makes the model and remembers where each value came from.

First thing that ``serve`` and most commands do. The main file comes first, then the drop-ins in the order of their
names; tables are merged key by key, everything else is replaced. Every file is optional.
"""

import copy
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import BUILT_IN, DEFAULT_SLOT, Config
from crinoid.core.config.origins import Origin, Origins, Problem, refuse, suggest
from crinoid.core.config.paths import ConfigPaths as ConfigPaths  # for whoever loads
from crinoid.core.config.positions import KeyPath, index_keys
from crinoid.core.config.validation import validate


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
    files = find_files(paths or ConfigPaths())
    merging = _Merging(copy.deepcopy(BUILT_IN))
    problems = [problem for file in files if (problem := merging.add_file(file))]
    refuse(problems)
    origins = Origins(merging.origins)
    config = validate(Config, merging.table, origins)
    if isinstance(config, list):
        refuse(config)
        raise AssertionError("refuse raises")
    refuse(find_conflicts(config, origins))
    return Loaded(config, origins, files)


def find_files(paths: ConfigPaths) -> tuple[Path, ...]:
    """Return the files that exist, in the order in which they are read."""
    if paths.required and not paths.main.is_file():
        raise ConfigurationError(f"{paths.main}: there is no such file; --config must name one")
    main = (paths.main,) if paths.main.is_file() else ()
    return (*main, *sorted(file for file in paths.drop_ins.glob("*.toml") if file.is_file()))


def find_conflicts(config: Config, origins: Origins) -> list[Problem]:
    """Return every name in the configuration that names nothing in it."""
    runtimes = config.enabled_runtimes
    names: list[tuple[KeyPath, str, set[str], str]] = [
        (("images", "sources", index), source, set(config.registries), "[registries]")
        for index, source in enumerate(config.images.sources)
    ]
    names.append((("pods", "default_runtime"), config.pods.default_runtime, set(runtimes), "[runtimes]"))
    for handler, slot in runtimes.items():
        names.append((("runtimes", handler, "network"), slot.network, {DEFAULT_SLOT, *config.networks}, "[networks]"))
        snapshotters = {DEFAULT_SLOT, *config.snapshotters}
        names.append((("runtimes", handler, "snapshotter"), slot.snapshotter, snapshotters, "[snapshotters]"))
    problems = [
        Problem(key, f'there is no slot "{name}" in {table}{suggest(name, known)}', origins.nearest(key))
        for key, name, known, table in names
        if name not in known
    ]
    return problems + _find_shadowed(config, origins)


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
            text = file.read_bytes().decode()
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
    return Problem((), f"this is no TOML: {message or error}", Origin(file, line))
