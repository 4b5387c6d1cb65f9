"""What errors say of docs/troubleshooting.md is there, and each entry says something to do."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text()
_NAMED = re.compile(r"docs/troubleshooting\.md#([\w-]+)")
SOURCES = [path for top in ("core", "plugins") for path in (REPOSITORY / top).rglob("*.py")]
ENTRIES = {
    re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"): text
    for title, text in re.findall(r"^### (.+)\n((?:(?!^##).*\n)*)", PAGE, re.MULTILINE)
}


def test_every_entry_that_an_error_names_is_there() -> None:
    named = {anchor for path in SOURCES for anchor in _NAMED.findall(path.read_text())}
    assert len(named) >= 12
    assert named <= set(ENTRIES)


def test_there_are_enough_entries_and_each_has_something_to_do() -> None:
    assert len(ENTRIES) >= 25
    assert [title for title, text in ENTRIES.items() if "`" not in text or len(text.split()) < 15] == []


def test_commands_that_entries_name_exist() -> None:
    from crinoid.core.cli.ctl import FAMILIES
    from crinoid.core.cli.main import COMMANDS

    verbs = {verb for family in FAMILIES.values() for verb in family}
    assert set(re.findall(r"`crinoid ctl ([a-z][a-z-]+)", PAGE)) <= verbs
    assert set(re.findall(r"`crinoid ([a-z][a-z-]+)", PAGE)) <= set(COMMANDS)
