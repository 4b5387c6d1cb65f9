"""Writes docs/words.md, by `make docs`, from docs/words.json: `CLUSTER_WORDS=docs/words.json make test-cluster`."""

import json
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
TOP = """# What a pod's users read, word by word

A kubelet (Kubernetes 1.36.2) over Debian's containerd 1.6 and over crinoid, both with Debian's runc and the same pods:
reason, exit code and message of the container's state, and all events of the pod, but for those of a pull that went
well. `tests/cluster/test_words.py` makes the pods, and asserts phases, reasons, exit codes and the events' reasons;
[conformance.md](conformance.md) has its counts, and [differences.md](differences.md) why something differs. Names and
numbers that no two runs share are in capitals.

Written by `make docs` from `docs/words.json`, which a run with `CLUSTER_WORDS=docs/words.json` keeps.
"""


def render(table: dict[str, dict[str, list[list[str]]]]) -> str:
    """Return the document; what both say in the same words stands in one column."""
    return "\n".join([TOP, *(line for name, said in table.items() for line in _render_pod(name, said))])


def _render_pod(name: str, said: dict[str, list[list[str]]]) -> Iterator[str]:
    theirs, ours = (said.get(runtime, []) for runtime in ("containerd", "crinoid"))
    yield from [f"## {name}", "", "| | containerd | crinoid |", "|---|---|---|"]
    for what in dict.fromkeys(what for what, _ in [*theirs, *ours] if what not in ("event Pulling", "event Pulled")):
        left, right = ([text for kind, text in words if kind == what] for words in (theirs, ours))
        for number in range(max(len(left), len(right))):
            cells = [_cell(words[number]) if number < len(words) else "" for words in (left, right)]
            yield f"| {what} | {cells[0]} | {'the same' if cells[0] == cells[1] else cells[1]} |"
    yield ""


def _cell(text: str) -> str:
    return "`" + " ".join(text.split()).replace("|", "\\|").replace("`", "'") + "`" if text.strip() else ""


if __name__ == "__main__":
    words = json.loads((DOCS / "words.json").read_text())
    (DOCS / "words.md").write_text(render(words))
