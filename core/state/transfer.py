"""Records and ledger as JSON lines, for another crinoid to read: the way down to an earlier one, and to another host.

``crinoid state export`` and ``import``. The first line says what wrote it; each further one is a row of a table, as it
is. What is no text (a damaged row's bytes) goes as base64, so that nothing is lost on the way. ``copied`` is how to
look into a database that a daemon has open.
"""

import base64
import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, StateUnavailable
from crinoid.core.state import bodies
from crinoid.core.state.migrations import COLUMNS, MIGRATIONS
from crinoid.core.state.opening import open_database

_TRIES = 20
_RECORDS = ("pods", "containers", "images")


@contextlib.contextmanager
def copied(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of a database, which may be in use; of an absent one, an empty one. Raises StateUnavailable.

    The copy is right if the database itself was not written meanwhile: only a checkpoint does that. What is added to
    the log after it was copied is not seen.
    """
    with tempfile.TemporaryDirectory(prefix="crinoid-state-") as directory:
        copy = Path(directory) / "state.db"
        try:
            for _ in range(_TRIES):
                before = path.stat()
                shutil.copyfile(path, copy)
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(f"{path}-wal", f"{copy}-wal")
                after = path.stat()
                if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size):
                    break
        except FileNotFoundError:
            copy.touch()
        except OSError as error:
            raise StateUnavailable(f"{path} can't be copied to be read: {error.strerror}") from error
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            yield connection


def known_names(connection: sqlite3.Connection) -> Iterator[str]:
    """Give what names pods and containers: ids of records, owners and keys of the ledger. Raises StateUnavailable."""
    try:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for column in {"pods": ("id",), "containers": ("id",), "ledger": ("owner", "key")}.get(name, ()):
                for (found,) in connection.execute(f"SELECT {column} FROM {name}"):  # noqa: S608
                    yield str(found)
    except sqlite3.DatabaseError as error:
        raise StateUnavailable(f"the state can't be read: {error}; start the daemon once, which salvages it") from error


def export(connection: sqlite3.Connection, version: str) -> Iterator[str]:
    """Give all rows of all tables, a line each. Raises StateUnavailable for a damaged database."""
    yield json.dumps({"crinoid": version, "schema": len(MIGRATIONS), "bodies": bodies.VERSION})
    try:
        for table, columns in COLUMNS.items():
            for row in connection.execute(f"SELECT {', '.join(columns)} FROM {table}"):  # noqa: S608
                yield json.dumps({"table": table, "row": dict(zip(columns, map(_written, row), strict=True))})
    except sqlite3.DatabaseError as error:
        raise StateUnavailable(f"the state can't be read: {error}; start the daemon once, which salvages it") from error


def import_into(path: Path, lines: Iterable[str]) -> list[str]:
    """Read what ``export`` wrote into a state that is empty, all or nothing; return what could not be taken as it is.

    A record of a newer crinoid loses the fields that this one does not know, and each is named. Raises InvalidArgument
    for what is no export, FailedPrecondition for a state that has records or a ledger.
    """
    numbered = enumerate(lines, 1)
    first = _parsed(*next(numbered, (1, "")))
    if "crinoid" not in first:
        raise InvalidArgument("line 1 is not the first of an export of crinoid's state")
    told: list[str] = []
    with contextlib.closing(open_database(path)) as connection:
        for table in (*_RECORDS, "ledger"):
            if connection.execute(f"SELECT count(*) FROM {table}").fetchone() != (0,):  # noqa: S608
                raise FailedPrecondition(f"{path} has {table} already: records are read into an empty state only")
        connection.execute("BEGIN IMMEDIATE")
        for number, line in numbered:
            found = _parsed(number, line)
            table, row = str(found.get("table")), found.get("row")
            if table not in COLUMNS or not isinstance(row, dict):
                told.append(f"line {number}: table {table!r:.50} is not known, left out")
                continue
            values = [_read(row.get(column)) for column in COLUMNS[table]]
            if table in _RECORDS:
                values[1], lost = bodies.bring_down(table, values[0], values[1])
                told += [f"{table} {values[0]}: {one}" for one in lost]
            places = ", ".join("?" * len(values))
            try:
                connection.execute(f"INSERT INTO {table} VALUES ({places})", values)  # noqa: S608
            except sqlite3.IntegrityError as error:
                raise InvalidArgument(f"line {number} can't be a row of {table}: {error}") from error
        connection.execute("COMMIT")
    return told


def _parsed(number: int, line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"line {number} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"line {number} is no JSON object")
    return found


def _written(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _read(value: object) -> object:
    if isinstance(value, dict):
        try:
            return base64.b64decode(str(value["base64"]), validate=True)
        except (KeyError, ValueError) as error:
            raise InvalidArgument("a value is neither text, a number nor base64") from error
    return value
