"""Where records live: SQLite on disk, and the same records in memory, from which everything is read.

A write is on disk before it shows in memory (WAL, synchronous NORMAL: 0.02 ms; ``sync`` for an image). The daemon
always starts: a record that does not parse is moved to ``quarantine``, a database that is damaged is put aside. One
that is locked, full or can't be had stops the start and is left as it is. All calls belong to the event loop's thread.

The file is the daemon's alone (SQLite's VFS ``unix-excl``) for as long as it lives: another process's lock would hold
up the loop, and with it every request. Whoever wants to look into it meanwhile copies it, with its ``-wal``, and looks
into the copy.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from crinoid.core.api.errors import ConfigurationError, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from crinoid.core.api.frozen import dataclass
from crinoid.core.api.linux import rights
from crinoid.core.state.records import (
    CONTAINER_STEPS,
    POD_STEPS,
    ContainerRecord,
    ImageRecord,
    PodRecord,
)

LOG = logging.getLogger(__name__)
CHECKPOINT_WRITES = 2000
RESERVE_BYTES = 1 << 20
"""Disk kept free for the store itself, so that stop and remove are recorded on a full disk."""

START_WAIT_S = 5.0
"""How long the start waits for another process that has the database open."""

_NOT_DAMAGED = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
    | {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS}
)
"""Errors that say nothing of what is in the file."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE pods (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE containers (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE images (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE settings (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE ledger (
        id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
        data TEXT NOT NULL
    );
    CREATE INDEX ledger_by_owner ON ledger (owner);
    CREATE TABLE quarantine (source TEXT, id TEXT, body TEXT, error TEXT, at_ns INTEGER);
    """,
)
"""Schema steps; the number of those applied is SQLite's ``user_version``."""

R = TypeVar("R", PodRecord, ContainerRecord, ImageRecord)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A host resource that was, or was going to be, made: enough in ``data`` (a JSON object) to undo it."""

    id: int
    owner: str
    kind: str
    key: str
    data: Mapping[str, object]


class Database:
    """The SQLite file: opening, migration, transactions, and the reserve for a full disk."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, making it where absent.

        Raises ConfigurationError for a schema newer than this program, and for a file that can't be had, or that
        another process has open for longer than ``START_WAIT_S``.
        """
        self._path = path
        self._writes = 0
        self._checkpoint = threading.Thread()
        self._reserve = path.with_name("reserve")
        self._connection = self._open()
        self._keep_reserve()

    def execute(self, statement: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Run one statement; on a full disk give up the reserve and try once more."""
        self._checkpoint_sometimes()
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.OperationalError as error:
            if "full" not in str(error) or not self._reserve.exists():
                raise self._explained(error) from error
            self._reserve.unlink()
            LOG.warning("the disk of %s is full: living on the reserve", self._path)
            return self._connection.execute(statement, parameters)

    async def sync(self) -> None:
        """Return once what was written before is safe from a power cut.

        The wait for the disk, which any pod that writes much prolongs, is a thread's.
        """
        await asyncio.to_thread(self._sync_log)

    def _sync_log(self) -> None:
        """What was carried over from the log already was synced on the way; the log itself carries no lock of SQLite's,
        which closing any descriptor of a locked file would give up."""
        descriptor = os.open(self._path.with_name(self._path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the file; nothing is pending."""
        if self._checkpoint.ident is not None:
            self._checkpoint.join()
        self._connection.close()

    def _checkpoint_sometimes(self) -> None:
        """Carry the log over into the database in a thread: its fsync would hold up every request on a slow disk."""
        self._writes += 1
        if self._writes % CHECKPOINT_WRITES == 0 and not self._checkpoint.is_alive():
            self._checkpoint = threading.Thread(target=self._carry_over, name="checkpoint", daemon=True)
            self._checkpoint.start()

    def _carry_over(self) -> None:
        with contextlib.closing(self._connected(START_WAIT_S)) as connection:
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.OperationalError as error:
                LOG.warning("the log of %s could not be carried over, it grows until it can: %s", self._path, error)

    def _open(self) -> sqlite3.Connection:
        try:
            return self._begun()
        except sqlite3.DatabaseError as error:
            if (code := getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF) in _NOT_DAMAGED:
                raise ConfigurationError(self._say_unavailable(error, code)) from error
            aside = self._path.with_name(f"{self._path.name}.broken-{time.time_ns()}")
            LOG.error(
                "%s can't be read (%s): it is put aside as %s, and the state starts empty", self._path, error, aside
            )
            self._path.rename(aside)
            self._path.with_name(self._path.name + "-wal").unlink(missing_ok=True)
            return self._begun()

    def _begun(self) -> sqlite3.Connection:
        """Take the file for this process alone; what an earlier version shared with others is gone with that."""
        with contextlib.suppress(OSError):  # SQLite can say better what is wrong
            # SQLite makes its log with the mode of the database. Only here, while it has no lock on the file yet: POSIX
            # locks of a process go when it closes any descriptor of the file (fcntl(2)).
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, rights.FILE))
        connection = self._connected(START_WAIT_S)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            self._migrated(connection)
        except BaseException:
            connection.close()
            raise
        connection.execute("PRAGMA busy_timeout = 0")  # nobody is left to wait for
        self._path.with_name(self._path.name + "-shm").unlink(missing_ok=True)
        return connection

    def _connected(self, timeout_s: float) -> sqlite3.Connection:
        """Connect by the VFS that locks other processes out; the connections of this one share its lock."""
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?vfs=unix-excl", uri=True, isolation_level=None, timeout=timeout_s
        )

    def _say_unavailable(self, error: sqlite3.DatabaseError, code: int) -> str:
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return (
                f"{self._path} is locked: another process has had it open for {START_WAIT_S:g} s. Find it (fuser"
                f" {self._path}) and end it; nothing has been changed"
            )
        return f"{self._path} can't be used: {error}. Nothing has been changed; start again once it can"

    def _migrated(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise ConfigurationError(
                f"{self._path} has schema {version}, this crinoid knows {len(MIGRATIONS)}: run the newer crinoid again"
            )
        for number in range(version, len(MIGRATIONS)):
            connection.executescript(f"BEGIN; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;")

    def _keep_reserve(self) -> None:
        if self._reserve.exists() and self._reserve.stat().st_size == RESERVE_BYTES:
            return
        try:
            rights.write_file(self._reserve, b"\0" * RESERVE_BYTES)
        except OSError as error:
            LOG.warning("no reserve for a full disk could be kept at %s: %s", self._reserve, error)

    def _explained(self, error: sqlite3.OperationalError) -> ResourceExhausted | sqlite3.OperationalError:
        if "full" in str(error):
            return ResourceExhausted(f"the disk that holds {self._path} is full: free some space")
        return error


@functools.cache
def _codec(record: Hashable) -> TypeAdapter[Any]:  # Any: a cache's arguments have no type variables
    """Make the codec of a kind of records; it takes tens of milliseconds."""
    return TypeAdapter(cast(type[Any], record))


class Table(Generic[R]):
    """The records of one kind, by id."""

    def __init__(self, database: Database, name: str, record: type[R], check: Callable[[R, R], None]) -> None:
        self._database = database
        self._name = name
        self._codec: TypeAdapter[R] = _codec(cast(Hashable, record))  # mypy takes a class's __hash__ for its own
        self._check: Callable[[R, R], None] = check
        self._records: dict[str, R] = {}
        self.version = 0
        """Another number after each change: what was made of the records holds for as long as it stays the same."""
        self._load()

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __iter__(self) -> Iterator[R]:
        return iter(tuple(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> R | None:
        """Return the record with exactly this id, if there is one."""
        return self._records.get(key)

    def find(self, prefix: str) -> R:
        """Return the record whose id is, or alone begins with, ``prefix``. Raises NotFound, InvalidArgument."""
        if (exact := self._records.get(prefix)) is not None:
            return exact
        matching = [record for key, record in self._records.items() if prefix and key.startswith(prefix)]
        if len(matching) > 1:
            raise InvalidArgument(
                f"{prefix!r} is the beginning of {len(matching)} ids of {self._name}: give more of it"
            )
        if not matching:
            raise NotFound(f"no id in {self._name} is or begins with {prefix!r}")
        return matching[0]

    def put(self, record: R) -> R:
        """Write a record, new or changed; the steps of its state are checked."""
        if (old := self._records.get(record.id)) is not None:
            self._check(old, record)
        body = self._dump(record)
        self._database.execute(f"INSERT OR REPLACE INTO {self._name} VALUES (?, ?)", (record.id, body))  # noqa: S608
        self._records[record.id] = record
        self.version += 1
        return record

    def drop(self, key: str) -> None:
        """Forget a record. Idempotent."""
        self._database.execute(f"DELETE FROM {self._name} WHERE id = ?", (key,))  # noqa: S608
        self._records.pop(key, None)
        self.version += 1

    def _dump(self, record: R) -> str:
        """Write a record as JSON; pydantic's own writer refuses text with bytes that are no UTF-8 (surrogateescape)."""
        try:
            return self._codec.dump_json(record).decode()
        except PydanticSerializationError:
            return json.dumps(self._codec.dump_python(record, mode="json"))

    def _parse(self, body: str) -> R:
        """Read what ``_dump`` wrote; pydantic's own reader refuses such text, too."""
        strange = "\\udc" in body
        record: R = self._codec.validate_python(json.loads(body)) if strange else self._codec.validate_json(body)
        return record

    def _load(self) -> None:
        for key, body in self._database.execute(f"SELECT id, body FROM {self._name}").fetchall():  # noqa: S608
            try:
                self._records[key] = self._parse(body)
            except ValueError as error:  # pydantic's is one
                self._quarantine(key, body, error)

    def _quarantine(self, key: str, body: str, error: ValueError) -> None:
        why = _without_values(error)
        LOG.error("the record of %s %s does not parse and is put in quarantine: %s", self._name, key, why)
        values = (self._name, key, body, why, time.time_ns())
        self._database.execute("INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)", values)
        self._database.execute(f"DELETE FROM {self._name} WHERE id = ?", (key,))  # noqa: S608


def _without_values(error: ValueError) -> str:
    """Say what is wrong with a record and quote none of it: log and status are no place for containers' environment."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
    return str(error)


class Ledger:
    """Host resources with their owner, written before they are made and struck after they are undone."""

    _data: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])

    def __init__(self, database: Database) -> None:
        self._database = database
        counts = database.execute("SELECT owner, count(*) FROM ledger GROUP BY owner").fetchall()
        self._counts: Counter[str] = Counter(dict(counts))  # so that who has no entry is not looked up

    def intend(self, owner: str, kind: str, key: str, data: Mapping[str, object]) -> LedgerEntry:
        """Write that ``owner`` is about to make the resource ``key``."""
        cursor = self._database.execute(
            "INSERT INTO ledger (owner, kind, key, data) VALUES (?, ?, ?, ?)", (owner, kind, key, self._text(data))
        )
        self._counts[owner] += 1
        return LedgerEntry(cursor.lastrowid or 0, owner, kind, key, data)

    def intend_all(self, owner: str, resources: Sequence[tuple[str, str, Mapping[str, object]]]) -> None:
        """Write that ``owner`` is about to make these, each a kind, key and data, in this order: all or none."""
        if resources:
            rows = [value for kind, key, data in resources for value in (owner, kind, key, self._text(data))]
            places = ", ".join(["(?, ?, ?, ?)"] * len(resources))
            self._database.execute(f"INSERT INTO ledger (owner, kind, key, data) VALUES {places}", tuple(rows))  # noqa: S608
            self._counts[owner] += len(resources)

    def amend(self, entry: LedgerEntry, data: Mapping[str, object]) -> LedgerEntry:
        """Replace what is needed to undo the resource, now that more is known."""
        self._database.execute("UPDATE ledger SET data = ? WHERE id = ?", (self._text(data), entry.id))
        return LedgerEntry(entry.id, entry.owner, entry.kind, entry.key, data)

    def strike(self, *entries: LedgerEntry) -> None:
        """The resources, all of one owner, are gone. Idempotent."""
        if entries:
            (owner,) = {entry.owner for entry in entries}
            places = ", ".join("?" * len(entries))
            numbers = tuple(entry.id for entry in entries)
            struck = self._database.execute(f"DELETE FROM ledger WHERE id IN ({places})", numbers)  # noqa: S608  # question marks
            self._counts[owner] -= struck.rowcount
            if not self._counts[owner]:
                del self._counts[owner]

    def entries(self, owner: str | None = None) -> list[LedgerEntry]:
        """Return entries, the latest first: the order in which to undo."""
        if owner is not None and owner not in self._counts:
            return []
        where, parameters = ("", ()) if owner is None else ("WHERE owner = ?", (owner,))
        rows = self._database.execute(
            f"SELECT id, owner, kind, key, data FROM ledger {where} ORDER BY id DESC",  # noqa: S608  # a constant
            parameters,
        ).fetchall()
        found = []
        for row in rows:
            try:
                found.append(LedgerEntry(row[0], row[1], row[2], row[3], self._data.validate_json(row[4])))
            except ValueError as error:  # pydantic's is one
                self._quarantine(row, error)
        return found

    def put_aside(self, entry: LedgerEntry, error: Exception) -> None:
        """Put an entry in quarantine that can't be undone, as it says nonsense: what it stands for may be left."""
        self._quarantine((entry.id, entry.owner, entry.kind, entry.key, self._text(entry.data)), error)

    def _quarantine(self, row: tuple[int, str, str, str, str], error: Exception) -> None:
        number, owner, kind, key, text = row
        why = _without_values(error) if isinstance(error, ValueError) else str(error)
        LOG.error("ledger row %d, %s %s of %s, is nonsense and put in quarantine: %s", number, kind, key, owner, why)
        values = ("ledger", f"{owner} {kind} {key}", text, why, time.time_ns())
        self._database.execute("INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)", values)
        self.strike(LedgerEntry(number, owner, kind, key, {}))

    def _text(self, data: Mapping[str, object]) -> str:
        return self._data.dump_json(dict(data)).decode()


class Store:
    """All that survives the daemon: three tables of records, the ledger, and a few settings."""

    def __init__(self, path: Path) -> None:
        """Open the store at ``path``; its folder exists."""
        self._database = Database(path)
        self.pods: Table[PodRecord] = Table(self._database, "pods", PodRecord, _check_pod)
        self.containers: Table[ContainerRecord] = Table(self._database, "containers", ContainerRecord, _check_container)
        self.images: Table[ImageRecord] = Table(self._database, "images", ImageRecord, lambda _old, _new: None)
        self.ledger = Ledger(self._database)

    async def sync(self) -> None:
        """Return once all that was written before outlives a power cut, as an image must whose pull is answered."""
        await self._database.sync()

    def containers_of(self, pod_id: str) -> list[ContainerRecord]:
        """Return the containers of one pod."""
        return [record for record in self.containers if record.pod_id == pod_id]

    def setting(self, name: str) -> str | None:
        """Return what ``set`` stored under a name."""
        row = self._database.execute("SELECT body FROM settings WHERE id = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set(self, name: str, value: str) -> None:
        """Keep a small value across restarts."""
        self._database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def quarantined(self) -> list[tuple[str, str, str]]:
        """Return table, id and error of every record that did not parse."""
        return self._database.execute("SELECT source, id, error FROM quarantine").fetchall()

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def _check_pod(old: PodRecord, new: PodRecord) -> None:
    if new.state is not old.state and new.state not in POD_STEPS[old.state]:
        raise FailedPrecondition(f"pod {new.id} can't go from {old.state.value} to {new.state.value}")


def _check_container(old: ContainerRecord, new: ContainerRecord) -> None:
    if new.state is not old.state and new.state not in CONTAINER_STEPS[old.state]:
        raise FailedPrecondition(f"container {new.id} can't go from {old.state.value} to {new.state.value}")
