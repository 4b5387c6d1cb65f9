"""The opening of ``state.db``: what is damaged is put aside whole and salvaged, what can't be had is left as it is."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError, StateUnavailable
from crinoid.core.state import migrations, opening
from crinoid.core.state.store import Store
from unit.core.state.test_store import a_pod

PAGE = 4096
POD, CONTAINER = "a" * 64, "b" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def fill(path: Path, count: int) -> None:
    store = Store(path)
    for number in range(count):
        store.pods.put(a_pod(f"{number:064x}"))
    store.close()


def put_aside(path: Path) -> Path:
    (aside,) = (one for one in path.parent.glob("state.db.broken-*") if one.name[-4:] not in ("-wal", "-shm"))
    return aside


def test_all_rows_but_those_of_a_damaged_page_are_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path, 400)
    damaged = bytearray(path.read_bytes())
    leaf = next(n for n in range(len(damaged) // PAGE - 1, 0, -1) if damaged[n * PAGE] == 10)  # a leaf of an index tree
    damaged[leaf * PAGE : (leaf + 1) * PAGE] = b"\xa5" * PAGE
    path.write_bytes(damaged)
    store = Store(path)
    assert 380 < len(store.pods) < 400
    assert not store.pods.damaged
    assert put_aside(path).read_bytes() == damaged
    assert f"it is put aside as {put_aside(path)}, and what could be read of it is kept: {len(store.pods)} pods" in (
        caplog.text
    )
    store.close()
    assert len(Store(path).pods) == len(store.pods)
    assert sorted(one.name for one in path.parent.iterdir()) == sorted(
        [put_aside(path).name, "state.db", "state.db-wal"]
    )


def test_what_is_only_in_the_log_of_a_damaged_database_is_kept_too(path: Path) -> None:
    fill(path, 50)
    reader = sqlite3.connect(path)  # keeps the log from being carried over
    with database(path) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("INSERT INTO settings VALUES ('late', '1')")
        connection.commit()
        log = path.with_name("state.db-wal").read_bytes()
    whole = path.read_bytes()
    reader.close()
    path.with_name("state.db-shm").unlink(missing_ok=True)
    path.write_bytes(whole[: 3 * PAGE] + b"\xa5" * PAGE + whole[4 * PAGE :])
    path.with_name("state.db-wal").write_bytes(log)
    store = Store(path)
    assert store.setting("late") == "1"
    assert path.with_name(f"{put_aside(path).name}-wal").read_bytes() == log


def test_a_file_that_is_no_database_is_put_aside(path: Path) -> None:
    path.write_bytes(b"rubbish" * 1000)
    Store(path).pods.put(a_pod())
    assert put_aside(path).read_bytes() == b"rubbish" * 1000


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE pods",
        "DROP TABLE ledger",
        "DROP TABLE quarantine",
        "DROP TABLE images; CREATE TABLE images (id TEXT, other TEXT); INSERT INTO images VALUES ('i', 'j')",
        "ALTER TABLE containers ADD COLUMN more TEXT",
        "ALTER TABLE settings RENAME COLUMN body TO text",
        "ALTER TABLE ledger DROP COLUMN data",
        "DROP INDEX ledger_by_owner; ALTER TABLE ledger DROP COLUMN owner",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = -5",
    ],
)
def test_tables_that_are_not_as_they_should_be(path: Path, damage: str) -> None:
    """Whatever is missing, all else is kept, and the daemon starts."""
    store = Store(path)
    store.pods.put(a_pod(POD))
    store.set("a", "1")
    store.ledger.record(POD, "directory", f"/run/pods/{POD}", {})
    store.close()
    with database(path) as connection:
        connection.executescript(damage)
    before = path.read_bytes()
    store = Store(path)
    assert put_aside(path).read_bytes() == before
    assert store.setting("a") == (None if "RENAME" in damage else "1") or store.setting("a") == ""
    assert POD in store.pods or POD in store.pods.damaged
    assert (POD in store.pods) is ("TABLE pods" not in damage)
    if "ledger" not in damage:
        assert [(entry.kind, entry.key) for entry in store.ledger.entries(POD)] == [("directory", f"/run/pods/{POD}")]
    store.close()
    Store(path).close()
    assert len(list(path.parent.glob("*.broken-*"))) == 1


def test_who_has_resources_and_lost_its_record_is_not_forgotten(path: Path) -> None:
    """Else the start would undo a pod that runs, as one that never came to be."""
    store = Store(path)
    store.ledger.record(POD, "directory", f"/run/crinoid/pods/{POD}", {})
    store.ledger.record(CONTAINER, "directory", f"/run/crinoid/containers/{CONTAINER}", {})
    store.ledger.record(CONTAINER, "container", CONTAINER, {})
    store.ledger.record("images", "layer", "sha256:1", {})
    store.close()
    with database(path) as connection:
        connection.executescript("DROP TABLE pods")
    store = Store(path)
    assert (list(store.pods.damaged), list(store.containers.damaged)) == ([POD], [CONTAINER])


@pytest.mark.parametrize("killed_before", range(6))
def test_a_kill_while_a_damaged_database_is_put_aside(
    path: Path, killed_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, 3)
    path.with_name("state.db-wal").write_bytes(b"torn")
    path.with_name("state.db-shm").write_bytes(b"stale")
    with database(path) as connection:
        connection.executescript("PRAGMA journal_mode = DELETE; DROP TABLE images")
    path.with_name("state.db-wal").write_bytes(b"torn")
    steps, rename = iter(range(100)), Path.rename

    def rename_or_die(self: Path, target: object) -> Path:
        if next(steps) == killed_before:
            raise KeyboardInterrupt
        return rename(self, target)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "rename", rename_or_die)
    with contextlib.suppress(KeyboardInterrupt):
        Store(path).close()
    monkeypatch.undo()
    assert len(Store(path).pods) == 3
    assert len([one for one in path.parent.glob("state.db.broken-*") if one.name[-4:] not in ("-wal", "-shm")]) == 1
    assert not list(path.parent.glob("state.db.salvag*"))
    assert not list(path.parent.glob("state.db.copy*"))


FAULTS = [
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG,
]  # fmt: skip


@pytest.mark.parametrize("code", FAULTS)
@pytest.mark.parametrize("at", ["connect", "_bring_forward", "_examine"])
def test_what_does_not_say_that_the_file_is_damaged_touches_nothing(
    path: Path, code: int, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, 2)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        error = sqlite3.OperationalError("no luck")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(opening, at, fail)
    with pytest.raises(StateUnavailable, match="othing has been changed"):
        Store(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert {one.name for one in path.parent.iterdir()} <= {"state.db", "reserve", "state.db-wal"}
    assert len(Store(path).pods) == 2


def test_no_room_to_salvage_refuses_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"rubbish" * 1000)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StateUnavailable, match="No space left on device"):
        Store(path)
    assert [one.name for one in path.parent.iterdir()] == ["state.db"]
    assert path.read_bytes() == b"rubbish" * 1000


def test_a_newer_schema_is_refused_with_the_way_out(path: Path) -> None:
    Store(path).close()
    with database(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"schema 99, this crinoid knows 1: run the newer.*state import"):
        Store(path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.broken-*"))


def test_the_database_is_kept_as_it_was_before_a_migration(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, 3)
    for number in range(2, 8):
        steps = (*migrations.MIGRATIONS, f"CREATE TABLE extra{number} (id TEXT);")
        monkeypatch.setattr(migrations, "MIGRATIONS", steps)
        monkeypatch.setattr(opening, "MIGRATIONS", steps)
        store = Store(path)
        store.pods.put(a_pod(f"new{number}"))
        store.close()
    kept = sorted(path.parent.glob("state.db.schema-*"))
    assert [one.name for one in kept] == ["state.db.schema-4", "state.db.schema-5", "state.db.schema-6"]
    with database(kept[0]) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
        assert connection.execute("SELECT count(*) FROM pods").fetchone() == (6,)
    assert all(one.stat().st_mode & 0o777 == 0o600 for one in kept)


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, 3)
    steps = (*migrations.MIGRATIONS, "DROP TABLE settings; CREATE TABLE pods (id TEXT);")
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    monkeypatch.setattr(opening, "MIGRATIONS", steps)
    with pytest.raises(StateUnavailable, match="table pods already exists"):
        Store(path)
    monkeypatch.undo()
    assert len(Store(path).pods) == 3
