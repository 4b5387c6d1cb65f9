"""Every claim of docs/security.md names tests, and each of them is there; so are those of docs/reliability.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/security.md").read_text()
CLAIMS = [row for row in re.findall(r"^\| (.+) \| (.+) \|$", TEXT, re.MULTILINE) if "---" not in row[0]]


def names_in(path: Path) -> set[str]:
    """Return the names of a module's test functions, also those of classes."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("document", "least"), [("security.md", 30), ("reliability.md", 15)])
def test_every_test_that_is_named_is_there(document: str, least: int) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / document).read_text())
    assert len(named) > least
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(ROOT / "tests" / path)]
    assert missing == []


def test_every_claim_names_a_test() -> None:
    claims = [row for row in CLAIMS if row[1] not in ("trusted with", "shown by")]
    beyond_the_first_table = [row for row in claims if "::" in row[1]]
    assert len(beyond_the_first_table) > 25
    first_table = TEXT[: TEXT.index("## Users of the host")]
    assert [row for row in claims if "::" not in row[1] and row[0] not in first_table] == []
