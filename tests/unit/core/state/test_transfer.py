"""Export and import: all rows come over as they are, into an empty state only, also down to an earlier format."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument
from crinoid.core.state import bodies
from crinoid.core.state.migrations import COLUMNS
from crinoid.core.state.store import Store
from crinoid.core.state.transfer import copied, export, import_into, known_names
from unit.core.state.test_bodies import golden


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with copied(path) as connection:
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in COLUMNS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state with everything in it, damaged rows too."""
    path = tmp_path / "state.db"
    store = Store(path)
    for row in golden(bodies.VERSION):
        if row["table"] != "ledger":
            store._database.execute(f"INSERT INTO {row['table']} VALUES (?, ?)", (row["id"], row["body"]))
    store._database.execute("INSERT INTO pods VALUES ('torn', ?)", (b"\xff\x00",))
    store.ledger.record("a" * 64, "mount", "/x", {"y": ["é"]})
    store.set("pod_cidrs", "10.0.0.0/24")
    store._database.execute("INSERT INTO quarantine VALUES ('pods', 'p', ?, 'e', 5)", (b"\x00",))
    store.close()
    return path


def exported(path: Path) -> list[str]:
    with copied(path) as connection:
        return list(export(connection, "1.0"))


def test_all_rows_come_over_as_they_are(path: Path, tmp_path: Path) -> None:
    lines = exported(path)
    assert json.loads(lines[0]) == {"crinoid": "1.0", "schema": 1, "bodies": bodies.VERSION}
    told = import_into(tmp_path / "other.db", lines)
    assert [one.partition(":")[0] for one in told] == ["pods torn"]
    assert rows(tmp_path / "other.db") == rows(path)
    assert exported(tmp_path / "other.db") == lines


def test_a_database_in_use_is_read_from_a_copy(path: Path) -> None:
    store = Store(path)
    store.set("late", "1")
    with copied(path) as connection:
        assert connection.execute("SELECT body FROM settings WHERE id = 'late'").fetchall() == [("1",)]
        assert {"torn", "a" * 64, "/x"} <= set(known_names(connection))
    store.set("later", "1")
    store.close()
    with copied(path.with_name("absent.db")) as connection:
        assert list(known_names(connection)) == []


def test_records_are_read_into_an_empty_state_only(path: Path) -> None:
    before = rows(path)
    with pytest.raises(FailedPrecondition, match="has pods already"):
        import_into(path, exported(path))
    assert rows(path) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], "line 1 is not the first"),
        (lambda lines: [], "line 1 is no JSON"),
        (lambda lines: [*lines, "{"], "is no JSON"),
        (lambda lines: [*lines, lines[1]], "can't be a row of pods"),
        (lambda lines: [*lines, '{"table": "pods", "row": {"id": "x", "body": {"base64": "!"}}}'], "neither text"),
        (lambda lines: [*lines, '{"table": "pods", "row": {}}'], "can't be a row of pods"),
    ],
)
def test_what_is_no_export_changes_nothing(
    path: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said):
        import_into(tmp_path / "other.db", change(exported(path)))
    store = Store(tmp_path / "other.db")
    assert [len(store.pods), store.pods.damaged, store.ledger.entries(), store.quarantined()] == [0, {}, [], []]


def test_a_record_of_a_newer_crinoid_loses_what_is_not_known_here_and_that_is_told(tmp_path: Path) -> None:
    row = golden(bodies.VERSION)[0]
    body = json.loads(row["body"]) | {"v": bodies.VERSION + 1, "mood": "good"}
    body["config"]["security"]["namespaces"]["time"] = "pod"
    lines = [
        json.dumps({"crinoid": "9"}),
        json.dumps({"table": "pods", "row": {"id": row["id"], "body": json.dumps(body)}}),
        json.dumps({"table": "moods", "row": {}}),
    ]
    told = import_into(tmp_path / "state.db", lines)
    assert sorted(told) == [
        "line 3: table 'moods' is not known, left out",
        f"pods {row['id']}: config.security.namespaces.time is not known here, and is lost",
        f"pods {row['id']}: mood is not known here, and is lost",
    ]
    assert list(Store(tmp_path / "state.db").pods) == [bodies.parse("pods", row["id"], row["body"])]
