"""A JSON or YAML file as a value, with the line of every key and element in it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class Malformed(Exception):
    """The text is not what its ending says; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Located:
    """A value (``Any``: what JSON can hold) and the line of each part of it, the whole's being that of ``()``."""

    value: Any
    lines: Mapping[KeyPath, int]

    def line_of(self, path: KeyPath) -> int:
        """Return the line of a part, or of the nearest one around it that the text has. Keys count in any case."""
        if path in self.lines:
            return self.lines[path]
        folded = {_folded(known): line for known, line in self.lines.items()}
        path = _folded(path)
        while path and path not in folded:
            path = path[:-1]
        return folded.get(path, 1)


def _folded(path: KeyPath) -> KeyPath:
    return tuple(key.lower() if isinstance(key, str) else key for key in path)


def read_json(text: str) -> Located:
    """Read JSON. Raises Malformed. Its lines are found as YAML, which reads all of JSON but tabs."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise Malformed(error.lineno, error.msg) from error
    return Located(value, _index(_compose(text.replace("\t", " "))))


def read_yaml(text: str) -> Located:
    """Read YAML, one document. Raises Malformed."""
    node = _compose(text)
    loader = yaml.SafeLoader("")
    try:
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _malformed(error) from error
    except (ValueError, RecursionError) as error:  # a date that is none
        raise Malformed(1, str(error)) from error
    finally:
        loader.dispose()
    return Located(value, _index(node))


def _compose(text: str) -> "yaml.Node | None":
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _malformed(error) from error
    except (yaml.YAMLError, RecursionError) as error:  # a character that YAML does not allow; no end of brackets
        raise Malformed(1, str(error).splitlines()[0]) from error


def _malformed(error: yaml.MarkedYAMLError) -> Malformed:
    mark = error.problem_mark or error.context_mark
    return Malformed(mark.line + 1 if mark else 1, error.problem or str(error))


def _index(node: "yaml.Node | None") -> dict[KeyPath, int]:
    try:
        return {} if node is None else dict(_places(node, (), node.start_mark.line + 1))
    except RecursionError as error:  # an alias to what is around it
        raise Malformed(1, "it contains itself") from error


def _places(node: "yaml.Node", path: KeyPath, line: int) -> Iterator[tuple[KeyPath, int]]:
    """Raises Malformed for a key that comes twice, which one of the two would win silently."""
    yield path, line
    if isinstance(node, yaml.SequenceNode):
        for number, element in enumerate(node.value):
            yield from _places(element, (*path, number), element.start_mark.line + 1)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                raise Malformed(key.start_mark.line + 1, f"key {key.value!r} comes twice")
            seen.add(str(key.value))
            yield from _places(value, (*path, str(key.value)), key.start_mark.line + 1)
