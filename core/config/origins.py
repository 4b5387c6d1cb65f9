"""Where each value of the configuration came from, and problems told with that place.

``loader`` fills an :class:`Origins` while it merges the files; ``slots`` uses it for what drivers say about their
options, ``cli`` to show it.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.positions import KeyPath


@dataclass(frozen=True, slots=True)
class Origin:
    """A line of a file."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Origins:
    """The origin of every key that a file has set; what is not here has its default."""

    by_key: Mapping[KeyPath, Origin] = field(default_factory=dict)

    def of(self, key: KeyPath) -> Origin | None:
        """Return where exactly this key was set, or ``None`` for a default."""
        return self.by_key.get(key)

    def nearest(self, key: KeyPath) -> Origin | None:
        """Return where the key, or else the innermost table around it, was set."""
        return next((self.by_key[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self.by_key), None)

    def tell(self, key: KeyPath) -> str:
        """Return ``file:line`` or ``default``; an element of a list stands where the list does."""
        origin = self.of(key)
        return str(origin) if origin else "default"


NO_ORIGINS = Origins()
"""Of a configuration that was made in code."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: at which key, what, and where that stands."""

    key: KeyPath
    message: str
    origin: Origin | None = None

    def __str__(self) -> str:
        place = f"{self.origin}: " if self.origin else ""
        name = f"{name_key(self.key)}: " if self.key else ""
        return f"{place}{name}{self.message}"


def refuse(problems: Iterable[Problem]) -> None:
    """Raise a ConfigurationError that lists every problem, one a line, in the order of files and lines; or nothing."""
    lines = [str(problem) for problem in sorted(problems, key=_place)]
    if lines:
        raise ConfigurationError("\n".join(lines))


def name_key(key: KeyPath) -> str:
    """Write a key path as it stands in a file: ``runtimes.fast.options.binary``, ``images.sources[0]``."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _is_bare(part) else f'"{part}"')
    return text


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "x"?`` for the nearest known name, or what is known where nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.61)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(names)}" if names else ""


def _is_bare(part: str) -> bool:
    return part != "" and all(c.isascii() and (c.isalnum() or c in "_-") for c in part)


def _place(problem: Problem) -> tuple[str, int, str]:
    origin = problem.origin
    return (str(origin.file), origin.line, str(problem)) if origin else ("", 0, str(problem))
