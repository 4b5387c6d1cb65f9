"""docs/differences.md lists all that is refused as INVALID_ARGUMENT: each place in the code is in its table."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECODE, LIFECYCLE = ROOT / "core/cri/decode", ROOT / "core/lifecycle"


def test_every_refusal_is_in_the_table_and_no_other() -> None:
    text = (ROOT / "docs/differences.md").read_text()
    section = text.partition("## What is refused as INVALID_ARGUMENT")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row[-1])}
    assert named == set(_functions_of_decode()) | set(_modules_of_lifecycle())


def _functions_of_decode() -> Iterator[str]:
    for path in DECODE.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and _refuses(function):
                yield function.name


def _modules_of_lifecycle() -> Iterator[str]:
    for path in LIFECYCLE.rglob("*.py"):
        if _refuses(ast.parse(path.read_text())):
            yield str(path.relative_to(LIFECYCLE).with_suffix(""))


def _refuses(tree: ast.AST) -> bool:
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return any(
        isinstance(error, ast.Call) and isinstance(error.func, ast.Name) and error.func.id == "InvalidArgument"
        for error in raised
    )
