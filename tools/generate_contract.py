"""Writes the tables of docs/contract.md, below a marker line: `make docs`.

The tests are those of the contracts, what they catch comes from tests/contract/bugs.
"""

import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from contract.bugs import bugs_of, extensions, guests, networks, registries, runtimes, snapshotters  # noqa: E402
from crinoid.core.api.testing.contract import Contract  # noqa: E402
from crinoid.core.api.testing.extensions import ExtensionContract  # noqa: E402
from crinoid.core.api.testing.networks import NetworkContract  # noqa: E402
from crinoid.core.api.testing.registries import RegistryContract  # noqa: E402
from crinoid.core.api.testing.runtimes import RuntimeContract  # noqa: E402
from crinoid.core.api.testing.snapshotters import SnapshotterContract  # noqa: E402

DOCUMENT = ROOT / "docs" / "contract.md"
MARKER = "<!-- Below this line `make docs` writes what the contracts and tests/contract/bugs say; change those. -->\n"
ROLES: dict[str, tuple[type, tuple[Any, ...]]] = {
    "runtime": (RuntimeContract, (runtimes, guests)),
    "network": (NetworkContract, (networks,)),
    "snapshotter": (SnapshotterContract, (snapshotters,)),
    "registry": (RegistryContract, (registries,)),
    "extension": (ExtensionContract, (extensions,)),
}


def render() -> str:
    """Return, role by role, the switches, the tests and the bugs that each of them was seen to catch."""
    every = sum(len(bugs_of(module)) for _, modules in ROLES.values() for module in modules)
    lines = ["", f"{every} bugs in drivers of {len(ROLES)} roles, each caught by the test beside it."]
    for role, (contract, modules) in ROLES.items():
        lines += ["", f"## {role.capitalize()}", "", *_switches(contract), *_tests(contract, modules)]
    return "\n".join(lines) + "\n"


def _switches(contract: type) -> Iterator[str]:
    source = inspect.getsource(contract).splitlines()
    found = []
    for number, line in enumerate(source):
        name, _, default = line.strip().partition(": ClassVar")
        if default and source[number + 1].strip().startswith('"""'):
            text = []
            for further in source[number + 1 :]:
                text.append(further.strip())
                if further.rstrip().endswith('"""') and further.strip() != '"""':
                    break
            found.append(f"| `{name}` | {default.partition('= ')[2]} | {' '.join(text).strip(chr(34))} |")
    if found:
        yield from ["| switch | default | |", "|---|---|---|", *found, ""]


def _tests(contract: type, modules: tuple[Any, ...]) -> Iterator[str]:
    bugs = defaultdict(list)
    for bug in chain.from_iterable(map(bugs_of, modules)):
        text = inspect.getdoc(bug) or ""
        bugs[bug.catch.test].append(" ".join(text.split()))
    yield from ["| test | caught |", "|---|---|"]
    for name in _names(Contract) + [one for one in _names(contract) if one not in _names(Contract)]:
        yield f"| `{name}` | {'<br>'.join(bugs.pop(name, ()))} |"
    assert not bugs, f"no such tests: {sorted(bugs)}"


def _names(contract: type) -> list[str]:
    return [name for name in vars(contract) if name.startswith("test_")]


def main() -> None:
    """Rewrite what is below the marker; with ``--check`` only tell, by the exit code, whether that changes anything."""
    text = DOCUMENT.read_text()
    head, _, _ = text.partition(MARKER)
    new = head + MARKER + render()
    if "--check" in sys.argv:
        sys.exit(f"{DOCUMENT.name} is not what the contracts say: run `make docs`" if new != text else os.EX_OK)
    DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
