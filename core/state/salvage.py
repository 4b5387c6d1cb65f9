"""Saves what can be read of a damaged ``state.db``, row by row, into a new one; the damaged one is put aside whole.

Called by ``opening`` when SQLite says that the file is corrupt or no database, or when its tables are not those of its
schema. Nothing is deleted: file, log and index get a name with the time, and stay until an operator removes them. The
new database is whole before the old one is moved, and its name says under which one that is to be put aside: a kill in
between is made good by ``finish`` at the next start.
"""

import contextlib
import logging
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from crinoid.core.api.linux import rights
from crinoid.core.api.linux.files import sync_directory
from crinoid.core.state.migrations import COLUMNS, bring_forward

LOG = logging.getLogger(__name__)
_SUFFIXES = (
    "-wal",
    "-shm",
    "",
)  # the log goes first: beside another database of the name it would be taken for its own
_SALVAGED = ".salvaged-"
_PIECES = 512
_DRAWN_ID = re.compile(r"[0-9a-f]{64}")


def salvage(path: Path, why: str) -> None:
    """Put a damaged database aside, and a new one with all that could be read in its place. Raises OSError."""
    stamp = time.strftime("%Y%m%dT%H%M%S") + f"-{time.time_ns() % 10**9:09}"
    unfinished, copy = path.with_name(f"{path.name}.salvaging"), path.with_name(f"{path.name}.copy")
    _remove(unfinished, copy)
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")  # to open the file itself could write to it
    try:
        rights.write_file(unfinished, b"")
        counts = _fill(unfinished, copy)
        unfinished.rename(path.with_name(f"{path.name}{_SALVAGED}{stamp}"))
    finally:
        _remove(unfinished, copy)
    aside = finish(path)
    LOG.error(
        "%s is damaged (%s): it is put aside as %s, and what could be read of it is kept: %s",
        path,
        why,
        aside,
        ", ".join(f"{count} {table}" for table, count in counts.items()),
    )


def finish(path: Path) -> Path | None:
    """Move a damaged database aside and its successor into place, if there is one; return where the old one is."""
    for successor in sorted(path.parent.glob(f"{path.name}{_SALVAGED}*")):
        aside = path.with_name(f"{path.name}.broken-{successor.name.rpartition(_SALVAGED)[2]}")
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
        successor.rename(path)
        sync_directory(path.parent)
        return aside
    return None


def _remove(*paths: Path) -> None:
    for path in paths:
        for suffix in (*_SUFFIXES, "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def _fill(target: Path, source: Path) -> dict[str, int]:
    with (
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as new,
        contextlib.closing(sqlite3.connect(source, isolation_level=None)) as old,
    ):
        bring_forward(new, 0)
        # Bytes that are no UTF-8 make a record unreadable, and nothing else.
        old.text_factory = lambda value: value.decode(errors="replace")
        new.execute("BEGIN")  # one transaction: each of thousands of rows would wait for the disk by itself
        counts = {table: _copy_table(old, new, table) for table in COLUMNS}
        counts["lost records"] = _mark_lost(new)
        new.execute("COMMIT")
    return counts


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> int:
    """Copy the rows that can be read; a column that is missing is empty text, so that no row is lost with it."""
    columns = COLUMNS[table]
    there: list[str] = []
    with contextlib.suppress(sqlite3.DatabaseError):
        there = [name for _, name, *_ in old.execute(f"PRAGMA table_info({table})")]
    if not there:
        return 0
    absent = {"ledger": {"id": "NULL"}}.get(table, {})
    wanted = ", ".join(name if name in there else absent.get(name, "''") for name in columns)
    places = ", ".join("?" * len(columns))
    for row in _rows(old, table, wanted, "rowid" if table in ("ledger", "quarantine") else "id", there):
        values = [b"" if value is None and table != "quarantine" else value for value in row]
        if table == "ledger" and not isinstance(values[0], int):
            values[0] = None  # a number of its own
        new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", values)  # noqa: S608  # names of COLUMNS
    (count,) = new.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    return int(count)


def _rows(old: sqlite3.Connection, table: str, wanted: str, key: str, there: list[str]) -> Iterator[tuple[object, ...]]:
    """Read forwards to the first page that can't be read, backwards to the last, then what lies between, in pieces."""
    base = f"SELECT {wanted} FROM {table} NOT INDEXED"  # noqa: S608  # an index may be damaged, too
    whole = yield from _read(lambda: old.execute(base))
    if whole or table == "quarantine" or (key == "id" and key not in there):
        return
    yield from _read(lambda: old.execute(f"{base} ORDER BY {key} DESC"))
    if key == "rowid":
        last = 0
        with contextlib.suppress(sqlite3.DatabaseError):
            (last,) = old.execute(f"SELECT max(rowid) FROM {table}").fetchone()  # noqa: S608
        step = max(1, int(last or 0) // _PIECES)
        for start in range(0, int(last or 0) + 1, step):
            yield from _read(lambda s=start: old.execute(f"{base} WHERE rowid BETWEEN ? AND ?", (s, s + step - 1)))  # type: ignore[misc]
        return
    for prefix in ("", "sha256:", "sha384:", "sha512:"):
        for number in range(_PIECES >> 1):
            first = f"{prefix}{number:02x}"
            yield from _read(lambda s=first: old.execute(f"{base} WHERE id >= ? AND id < ?", (s, f"{s}~")))  # type: ignore[misc]


def _read(query: Callable[[], sqlite3.Cursor]) -> Generator[tuple[object, ...], None, bool]:
    """Give the rows up to the first fault; tell whether there was none."""
    try:
        yield from query()
    except sqlite3.DatabaseError:
        return False
    return True


def _mark_lost(new: sqlite3.Connection) -> int:
    """Give an empty record to a pod or container that has resources and no record: what runs is not undone for that."""
    kinds = {"containers": "kind = 'container'", "pods": "kind = 'directory' AND key LIKE '%/pods/' || owner"}
    lost = 0
    for table, is_one in kinds.items():
        for (owner,) in new.execute(f"SELECT DISTINCT owner FROM ledger WHERE {is_one}").fetchall():  # noqa: S608
            if isinstance(owner, str) and _DRAWN_ID.fullmatch(owner):
                lost += new.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, '')", (owner,)).rowcount  # noqa: S608
    return lost
