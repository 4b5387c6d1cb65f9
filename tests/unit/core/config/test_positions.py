"""The line of every key in a TOML file."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crinoid.core.config.positions import index_keys

VALID = """\
root = "/x"  # = "y"

[runtimes.fast]
driver = "crun"
options = { binary = "/opt/crun", deep.er = [1, 2] }
"quoted.key" = 'a # b'
text = \"\"\"
[not.a.table]
key = 1 \\\\
\"\"\"\"
list = [
    "one",  # comment ]
    { name = "two" },
]
network.driver = "host"

[[items]]
name = 1
[items.sub]
x = 1979-05-27 07:32:00
[[items]]
name = 2
[items.sub]
y = '''a
b'''
z = ""
"""


def test_every_form_of_key_has_its_line() -> None:
    lines = index_keys(VALID)
    assert lines[("root",)] == 1
    assert lines[("runtimes",)] == 3
    assert lines[("runtimes", "fast", "driver")] == 4
    assert lines[("runtimes", "fast", "options", "binary")] == 5
    assert lines[("runtimes", "fast", "options", "deep", "er", 1)] == 5
    assert lines[("runtimes", "fast", "quoted.key")] == 6
    assert lines[("runtimes", "fast", "list", 0)] == 12
    assert lines[("runtimes", "fast", "list", 1, "name")] == 13
    assert lines[("runtimes", "fast", "network", "driver")] == 15
    assert lines[("items", 0, "name")] == 18
    assert lines[("items", 0, "sub", "x")] == 20
    assert lines[("items", 1, "name")] == 22
    assert lines[("items", 1, "sub", "z")] == 26
    assert not any("not" in key for key in lines)


def _paths(value: object, base: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path for key, child in children for path in {(*base, key), *_paths(child, (*base, key))}}


def test_the_index_has_exactly_the_keys_that_tomllib_finds() -> None:
    assert set(index_keys(VALID)) == _paths(tomllib.loads(VALID))


_keys = st.text("ab-_9", min_size=1, max_size=3) | st.text(min_size=1, max_size=4).filter(str.isprintable).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
_texts = st.sampled_from(['"a=b"', "'#'", '""', "'''x\n[y]\n'''", '"""q"" \\" """', "1", "-1.5e3", "true", "inf"])
_values = st.recursive(
    _texts,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ",\n ".join(items) + "]")
        | st.dictionaries(_keys, inner, max_size=3).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        )
    ),
    max_leaves=5,
)


@given(st.lists(st.tuples(st.sampled_from(["", "[{}]", "[[{}]]"]), _keys, _keys, _values), max_size=6))
def test_any_document_that_tomllib_takes_is_indexed(parts: list[tuple[str, str, str, str]]) -> None:
    text = "\n".join(f"{header.format(table)}\n{key} = {value} # end" for header, table, key, value in parts)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(index_keys(text)) == _paths(table)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment"])
def test_an_empty_document_has_no_keys(text: str) -> None:
    assert index_keys(text) == {}
