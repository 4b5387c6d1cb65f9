"""The list of RPCs and fields leaves nothing out, names nothing that is not there, and the document is made of it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from conformance import facts

TESTS = Path(__file__).parents[1]
RPCS, FIELDS = facts.read()


def test_every_rpc_is_listed() -> None:
    assert set(RPCS) == set(facts.all_rpcs())


def test_every_field_is_listed() -> None:
    assert [field for field in facts.all_fields() if facts.fact_of(field, FIELDS) is None] == []


def test_nothing_else_is_listed() -> None:
    known = {*facts.all_fields(), *(f"{field.partition('.')[0]}.*" for field in facts.all_fields())}
    assert [field for field in FIELDS if field not in known] == []


@cache
def _functions(file: Path) -> set[str]:
    nodes = ast.parse(file.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("name", sorted(RPCS) + sorted(FIELDS))
def test_what_is_listed_is_shown(name: str) -> None:
    fact = RPCS.get(name) or FIELDS[name]
    assert fact.state in facts.STATES
    assert fact.test or fact.state == "meaningless"
    if fact.test:
        file, _, function = fact.test.partition("::")
        assert (TESTS / file).is_file()
        assert not function or function in _functions(TESTS / file)


def test_the_document_is_made_of_it() -> None:
    script = TESTS.parent / "tools" / "generate_conformance.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
