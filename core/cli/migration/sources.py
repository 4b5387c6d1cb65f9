"""Reads the files of other runtimes, and remembers the line of each key."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.linux.files import read_regular
from crinoid.core.config.origins import Origin
from crinoid.core.config.positions import KeyPath, index_keys

_MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A file's table, and where each key stands; ``file`` is named as it is on the node that is moved."""

    file: Path
    table: Mapping[str, Any]  # Any: the values of TOML and JSON
    lines: Mapping[KeyPath, int]

    def origin(self, key: KeyPath) -> Origin:
        """Return the line of a key, or of the innermost table around it."""
        found = (self.lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self.lines)
        return Origin(self.file, next(found, 1))


@dataclass(frozen=True, slots=True)
class Node:
    """The files of the node that is moved: below ``root`` where it is another one than this."""

    root: Path = Path("/")

    def at(self, path: Path | str) -> Path:
        """Return where a path of the node is to be read."""
        return self.root / str(path).lstrip("/")

    def list(self, directory: Path | str, pattern: str) -> list[Path]:
        """Return the files of a directory by name, as paths of the node; none where there is no such directory."""
        found = sorted(self.at(directory).glob(pattern))
        return [Path(directory, path.relative_to(self.at(directory))) for path in found if path.is_file()]

    def read_toml(self, file: Path) -> Source:
        """Read a TOML file. Raises ConfigurationError."""
        text = self._read(file)
        try:
            return Source(file, tomllib.loads(text), index_keys(text))
        except tomllib.TOMLDecodeError as error:
            hint = "; a template is not read: name the file that is made of it" if "{{" in text else ""
            raise ConfigurationError(f"{file}: this is no TOML: {error}{hint}") from error

    def read_json(self, file: Path) -> Source:
        """Read a JSON file that holds an object. Raises ConfigurationError."""
        text = self._read(file)
        try:
            table = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise ConfigurationError(f"{file}: this is no JSON: {error}") from error
        if not isinstance(table, dict):
            raise ConfigurationError(f"{file}: this is no JSON object")
        return Source(file, table, _index_json(text, table))

    def _read(self, file: Path) -> str:
        try:
            return read_regular(self.at(file), _MAX_BYTES).decode("utf-8-sig")
        except OSError as error:
            raise ConfigurationError(f"{file}: can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{file}: this is no UTF-8 text") from error


def leaves(table: Mapping[str, Any], base: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every value that is no table, and every table that is empty, with its key path."""
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*base, name))
        else:
            yield (*base, name), value


def _index_json(text: str, table: Mapping[str, Any]) -> dict[KeyPath, int]:
    """Return the line of each key: keys are met in the order in which they stand."""
    lines: dict[KeyPath, int] = {}
    at = 0

    def visit(table: Mapping[str, Any], base: KeyPath) -> None:
        nonlocal at
        for name, value in table.items():
            found = re.compile(re.escape(json.dumps(name)) + r"\s*:").search(text, at)
            at = found.end() if found else at  # one that is written with escapes has its table's line
            lines[(*base, name)] = text.count("\n", 0, at) + 1
            if isinstance(value, dict):
                visit(value, (*base, name))

    visit(table, ())
    return lines
