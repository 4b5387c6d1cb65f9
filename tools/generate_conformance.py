"""Writes the tables of docs/conformance.md, below a marker line: `make docs`.

What crinoid does with each RPC and field comes from tests/conformance/fields.toml, the differences to containerd from
the marks of the tests themselves.
"""

import contextlib
import io
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conformance import facts  # noqa: E402  # tests are no package of the installed ones
from conformance.facts import Fact  # noqa: E402

DOCUMENT = ROOT / "docs" / "conformance.md"
MARKER = "<!-- Below this line `make docs` writes what tests/conformance says; change that. -->\n"


class Marks:
    """A plugin of pytest that notes the reasons of the tests' differences."""

    def __init__(self) -> None:
        self.reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Count, per reason and test, the cases that containerd fails."""
        for item in items:
            callspec = getattr(item, "callspec", None)
            if callspec is None or callspec.params.get("runtime_under_test") != "containerd":
                continue
            for marker in (*item.iter_markers("differs"), *item.iter_markers("differs_at_times")):
                if reason := marker.kwargs.get("containerd"):
                    self.reasons[reason][f"{item.path.name}::{item.originalname}"] += 1  # type: ignore[attr-defined]


def render() -> str:
    """Return the differences, the RPCs and the fields, message by message."""
    return "\n".join(["", *_differences(), *_rpcs(), *_fields()]).rstrip() + "\n"


def _differences() -> Iterator[str]:
    marks = Marks()
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "--cri-peer=containerd"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*options, str(ROOT / "tests" / "conformance")], plugins=[marks])
    if code:
        sys.exit(said.getvalue())
    yield from ["## Where containerd 1.6 differs", "", "| why | tests (cases) |", "|---|---|"]
    for reason, tests in sorted(marks.reasons.items()):
        names = ", ".join(f"`{name}` ({count})" for name, count in sorted(tests.items()))
        yield f"| {reason} | {names} |"
    yield ""


def _rpcs() -> Iterator[str]:
    rpcs, _ = facts.read()
    names = facts.all_rpcs()
    served = sum(rpcs[name].state == "honoured" for name in names)
    summary = f"{served} of the {len(names)} RPCs of CRI v1 are served."
    yield from ["## RPCs", "", summary, "", "| RPC | | shown by |", "|---|---|---|"]
    for name in names:
        yield _row(name, rpcs[name])
    yield ""


def _fields() -> Iterator[str]:
    _, known = facts.read()
    yield from ["## Fields", "", "| field | | shown by |", "|---|---|---|"]
    for name, fact in _merged(known):
        yield _row(name, fact)
    yield ""


def _merged(known: dict[str, Fact]) -> Iterator[tuple[str, Fact]]:
    """Go through the API; fields of a message that share a line come as one."""
    done: set[str] = set()
    for field in facts.all_fields():
        message, _, _ = field.partition(".")
        name = field if field in known else f"{message}.*"
        if name not in done:
            done.add(name)
            yield _spell(name, known), known[name]


def _spell(name: str, known: dict[str, Fact]) -> str:
    """Name the fields that a ``*`` stands for."""
    message, _, last = name.partition(".")
    if last != "*":
        return name
    own = [field for field in facts.all_fields() if field.startswith(f"{message}.") and field not in known]
    return f"{message}: {', '.join(field.partition('.')[2] for field in own)}"


def _row(name: str, fact: Fact) -> str:
    test = f"`{fact.test.removeprefix('conformance/')}`" if fact.test else ""
    return f"| {name} | {fact.state}{': ' if fact.note else ''}{fact.note} | {test} |"


def main() -> None:
    """Rewrite what is below the marker; with ``--check`` only tell, by the exit code, whether that changes anything."""
    text = DOCUMENT.read_text()
    head, _, _ = text.partition(MARKER)
    new = head + MARKER + render()
    if "--check" in sys.argv:
        sys.exit(f"{DOCUMENT.name} is not what tests/conformance says: run `make docs`" if new != text else 0)
    DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
