"""What becomes of a key: a table of rules by key path, walked over a file.

A pattern is the key path with ``/`` between its parts; ``*`` is any one part, ``**`` at the end all below, told once. A
key without a rule is one that this version does not know: it is reported as lost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crinoid.core.cli.migration.draft import Draft, Outcome
from crinoid.core.cli.migration.sources import Source, leaves
from crinoid.core.config.origins import name_key, suggest
from crinoid.core.config.positions import KeyPath


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a file with its value; ``names`` are the parts that the pattern's ``*`` stand for."""

    source: Source
    key: KeyPath
    value: Any  # of TOML or JSON
    names: tuple[str, ...]
    draft: Draft

    @property
    def place(self) -> str:
        """The file and the line."""
        return str(self.source.origin(self.key))

    @property
    def items(self) -> list[Any]:
        """The value where a list is due. Raises ValueError for a text, which would be taken letter by letter."""
        if not isinstance(self.value, list):
            raise ValueError(f"{self.value!r} is no list")
        return self.value

    def carry(self, target: KeyPath, value: Any) -> None:
        """Set a key of the new configuration. Raises ValueError for one that another line has set to something else."""
        self.draft.set(target, value, self.place)
        self.tell(Outcome.CARRIED, f"{name_key(target)} = {value!r}")

    def carried(self, how: str) -> None:
        """Say how it was carried over, where that is no single key."""
        self.tell(Outcome.CARRIED, how)

    def lose(self, why: str) -> None:
        """Say why it could not be carried over."""
        self.tell(Outcome.LOST, why)

    def skip(self, why: str) -> None:
        """Say why there is nothing to carry over."""
        self.tell(Outcome.MOOT, why)

    def tell(self, outcome: Outcome, text: str) -> None:
        """Note what became of it."""
        self.draft.tell(outcome, self.place, name_key(self.key), text)


Act = Callable[[Entry], None]
Rules = Mapping[str, Act]


def to(*target: str, convert: Callable[[Any], Any] = lambda value: value) -> Act:
    """Carry the value to a key of the configuration."""
    return lambda entry: entry.carry(target, convert(entry.value))


def lost(why: str, *harmless: Any) -> Act:
    """Report the key as lost, unless its value is one that changes nothing."""

    def act(entry: Entry) -> None:
        if entry.value in harmless:
            entry.skip("asks for nothing that crinoid does not do by itself")
        else:
            entry.lose(why)

    return act


def moot(why: str) -> Act:
    """There is nothing to carry over, whatever the value."""
    return lambda entry: entry.skip(why)


def nonempty(act: Act) -> Act:
    """An empty value is the default of the other runtime, and says nothing."""
    return lambda entry: act(entry) if entry.value not in ("", [], {}, None) else entry.skip("empty: nothing is set")


def apply(source: Source, rules: Rules, draft: Draft, peer: str) -> None:
    """Walk over all of a file's keys."""
    compiled = [(tuple(pattern.split("/")), act) for pattern, act in rules.items()]
    told: set[KeyPath] = set()
    for key, value in leaves(source.table):
        pattern, act = _find(compiled, key)
        if act is None:
            if value == {} and any(_begins(pattern, key) for pattern, _ in compiled):
                continue
            why = f"crinoid does not know this key of {peer}: nothing came of it{_suggest(compiled, key)}"
            Entry(source, key, value, (), draft).lose(why)
            continue
        if pattern[-1] == "**":
            key = key[: len(pattern) - 1]
            if key in told:
                continue
            told.add(key)
        names = tuple(str(part) for part, wanted in zip(key, pattern, strict=False) if wanted == "*")
        entry = Entry(source, key, _value_at(source.table, key), names, draft)
        try:
            act(entry)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            entry.lose(f"its value can't be carried over: {error}")


def _value_at(table: Any, key: KeyPath) -> Any:
    for part in key:
        table = table[part]
    return table


def _suggest(compiled: list[tuple[tuple[str, ...], Act]], key: KeyPath) -> str:
    """Name the nearest key of the same table."""
    length = len(key) - 1
    names = {pattern[-1] for pattern, _ in compiled if len(pattern) == len(key) and _begins(pattern[:length], key[:-1])}
    near = suggest(str(key[-1]), names - {"*", "**"})
    return near if near.startswith("; did you mean") else ""


def _find(compiled: list[tuple[tuple[str, ...], Act]], key: KeyPath) -> tuple[tuple[str, ...], Act | None]:
    """Return the rule that fits best: one with fewer stars."""
    fitting = [(pattern, act) for pattern, act in compiled if _fits(pattern, key)]
    if not fitting:
        return (), None
    return min(fitting, key=lambda one: (one[0][-1] == "**", -len(one[0]), one[0].count("*")))


def _fits(pattern: tuple[str, ...], key: KeyPath) -> bool:
    if pattern[-1] == "**":
        return len(key) >= len(pattern) - 1 and _begins(pattern[:-1], key[: len(pattern) - 1])
    return len(pattern) == len(key) and _begins(pattern, key)


def _begins(pattern: tuple[str, ...], key: KeyPath) -> bool:
    """Tell whether a key, or a table, lies on the way of a pattern."""
    return len(key) <= len(pattern) and all(wanted in ("*", part) for wanted, part in zip(pattern, key, strict=False))
