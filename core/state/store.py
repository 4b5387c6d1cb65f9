"""Where records live: SQLite on disk, and the same records in memory, from which everything is read.

A write is on disk before it shows in memory (WAL, synchronous NORMAL: 0.02 ms; ``sync`` for an image). ``opening`` has
what happens where the file can't be had or is damaged. A row that does not parse stays where it is, as it is: its id is
``damaged``, a record can stand in for it in memory (``Table.stand_in``), and repaired it is read at the next start. All
calls belong to the event loop's thread.

The file is the daemon's alone (SQLite's VFS ``unix-excl``) for as long as it lives: another process's lock would hold
up the loop, and with it every request. Whoever wants to look into it meanwhile copies it, with its ``-wal``, and looks
into the copy (``transfer.copied``).
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from crinoid.core.api.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StateNotUsable,
)
from crinoid.core.state import bodies
from crinoid.core.state.latewrites import LateWrites
from crinoid.core.state.opening import LOG_BYTES, connect, is_damage, open_database
from crinoid.core.state.records import (
    CONTAINER_STEPS,
    POD_STEPS,
    ContainerRecord,
    ImageRecord,
    PodRecord,
)
from crinoid.core.state.reserve import Reserve

LOG = logging.getLogger(__name__)
LOOK_WRITES = 200
"""After how many statements the size of SQLite's log is looked at."""
MOST_LOG_BYTES = 2 * LOG_BYTES
"""Where a log that was never quiet for long enough is checkpointed on the loop, which waits for the disk then."""
_CHECKPOINT_TRIES, _CHECKPOINT_PAUSE_S = 20, 0.02

R = TypeVar("R", PodRecord, ContainerRecord, ImageRecord)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A host resource that was, or was going to be, made: enough in ``data`` (a JSON object) to undo it."""

    id: int
    owner: str
    kind: str
    key: str
    data: Mapping[str, object]
    damaged: str = ""
    """Why ``data`` is not what was written, and empty here; the row stays as it is until it is deleted."""


class Database:
    """The SQLite file: transactions, checkpoints of the write-ahead log, and the reserve for a full disk."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, making it where absent. Raises as ``open_database``."""
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self.damage = ""
        """What SQLite found wrong with the file itself, at any time: only the next start puts it aside."""
        self._statements = 0
        self._checkpoint = threading.Thread()
        self._connection = open_database(path)
        self._reserve = Reserve(self._log)
        with contextlib.suppress(OSError):
            path.with_name("reserve").unlink(missing_ok=True)  # an earlier version's

    def execute(self, statement: str, parameters: tuple[object, ...] = (), *, grows: bool = False) -> sqlite3.Cursor:
        """Run one statement that returns no rows; one that ``grows`` tells of something new, which a full disk has no
        room for.

        Raises ResourceExhausted on a full disk, StateNotUsable when the database can't be used otherwise.
        """
        if grows and not self._reserve.is_whole():
            raise self._full()
        with self._explaining():
            self._checkpoint_sometimes()
            return self._executed(statement, parameters)

    def rows(self, query: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query: SQLite may find only at the last that it can't be read. Raises as ``execute``."""
        with self._explaining():
            return self._connection.execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Raise what SQLite has against the file as one of our errors; of others' errors it is no part."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if self._note_damage(error):
                raise StateNotUsable(self.damage) from error
            if not isinstance(error, sqlite3.OperationalError):
                raise
            if _is_full(error):
                raise self._full() from error
            raise StateNotUsable(f"{self._path} can't be used, and nothing has been changed in it: {error}") from error

    def _note_damage(self, error: sqlite3.DatabaseError) -> bool:
        if is_damage(error):
            self.damage = (
                f"{self._path} is damaged ({error}): restart crinoid, which puts it aside and goes on with every row "
                "that can be read; pods live on meanwhile"
            )
        return is_damage(error)

    def _executed(self, statement: str, parameters: tuple[object, ...]) -> sqlite3.Cursor:
        """Once the reserve is used up, too, carry the log over, so that it is written from its start again."""
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.OperationalError as error:
            if not _is_full(error):
                raise
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            return self._connection.execute(statement, parameters)

    async def sync(self) -> None:
        """Return once what was written before is safe from a power cut.

        The wait for the disk, which any pod that writes much prolongs, is a thread's.
        """

        def sync_log() -> None:
            # What was checkpointed from the log already was synced on the way. The log itself carries no lock of
            # SQLite's, which closing any descriptor of a locked file would give up (fcntl(2), POSIX locks).
            descriptor = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        await asyncio.to_thread(sync_log)

    def close(self) -> None:
        """Close the file; nothing is pending."""
        if self._checkpoint.ident is not None:
            self._checkpoint.join()
        self._reserve.close()
        self._connection.close()

    def _checkpoint_sometimes(self) -> None:
        """Checkpoint the log into the database once it is long, in a thread: the fsync would hold up every request.

        SQLite writes the log from its beginning again once all of it was checkpointed and nothing has come since. Where
        pods come and go without a pause the thread never sees that moment: then the little that has come is
        checkpointed here, between two statements, and the loop waits for the disk.
        """
        self._statements += 1
        if self._statements % LOOK_WRITES or self._checkpoint.is_alive() or self._log_bytes() < LOG_BYTES:
            return
        if self._checkpoint.ident is not None and self._log_bytes() >= MOST_LOG_BYTES:
            self._checkpoint = threading.Thread()
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            return
        self._checkpoint = threading.Thread(target=self._run_checkpoint, name="checkpoint", daemon=True)
        self._checkpoint.start()

    def _run_checkpoint(self) -> None:
        try:
            with contextlib.closing(connect(self._path)) as connection:
                for _ in range(_CHECKPOINT_TRIES):
                    _, logged, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    if logged == moved:
                        return
                    time.sleep(_CHECKPOINT_PAUSE_S)
        except (OSError, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.DatabaseError):
                self._note_damage(error)
            LOG.warning("the log of %s could not be checkpointed, it grows until it can: %s", self._path, error)

    def _log_bytes(self) -> int:
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0

    def _full(self) -> ResourceExhausted:
        return ResourceExhausted(f"the disk that holds {self._path} is full: free some space")


def _is_full(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


@dataclass(frozen=True, slots=True)
class Damaged:
    """A row that does not parse: what stands in it, and why that is nothing."""

    id: object
    body: object
    why: str


class Table(Generic[R]):
    """The records of one kind, by id."""

    def __init__(self, database: Database, late: LateWrites, name: str, check: Callable[[R, R], None]) -> None:
        self.name = name
        self._database = database
        self._late = late
        self._check: Callable[[R, R], None] = check
        self._records: dict[str, R] = {}
        self._damaged: dict[str, Damaged] = {}
        self.version = 0
        """Another number after each change: what was made of the records holds for as long as it stays the same."""
        for key, body in self._database.rows(f"SELECT id, body FROM {self.name}"):  # noqa: S608
            try:
                self._records[key] = bodies.parse(self.name, key, body)
            except bodies.Unreadable as error:
                LOG.error(
                    "the record of %s %s can't be read (%s): it stays as it is, and so does what it stands for",
                    self.name,
                    key,
                    error,
                )
                self._damaged[_as_text(key)] = Damaged(key, body, str(error))

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
            raise InvalidArgument(f"{prefix!r} is the beginning of {len(matching)} ids of {self.name}: give more of it")
        if not matching:
            raise NotFound(f"no id in {self.name} is or begins with {prefix!r}")
        return matching[0]

    @property
    def damaged(self) -> Mapping[str, Damaged]:
        """The rows that do not parse, by id; some may have a record that stands in for them."""
        return self._damaged

    def put(self, record: R) -> R:
        """Write a record, new or changed; the steps of its state are checked. One that stands in is not written."""
        if (old := self._records.get(record.id)) is not None:
            self._check(old, record)
        if record.id not in self._damaged:  # its row stays as it is, for somebody to repair
            statement = f"INSERT OR REPLACE INTO {self.name} VALUES (?, ?)"  # noqa: S608
            self._database.execute(statement, (record.id, bodies.dump(record)), grows=old is None)
            self._late.discard((self.name, record.id))
        return self._hold(record)

    def put_fact(self, record: R) -> R:
        """As ``put``, for what has happened already, such as a start or an end: it holds from now on, written or not.

        What can't be written now is written as soon as it can be.
        """
        try:
            return self.put(record)
        except (ResourceExhausted, StateNotUsable) as error:
            LOG.warning("what happened to %s of %s can't be recorded yet: %s", record.id, self.name, error.message)
            self._late.add((self.name, record.id), lambda: self.put(self._records[record.id]))
            return self._hold(record)

    def _hold(self, record: R) -> R:
        self._records[record.id] = record
        self.version += 1
        return record

    def stand_in(self, record: R) -> None:
        """Have a record in memory for a damaged row, or one that is lost: its changes last until the daemon ends."""
        self._damaged.setdefault(record.id, Damaged(record.id, "", "it is missing"))
        self._records[record.id] = record
        self.version += 1

    def lose(self, key: str) -> None:
        """Write an empty row for who is there and has no record: from the next start on a record stands in for it."""
        self._database.execute(f"INSERT OR IGNORE INTO {self.name} VALUES (?, '')", (key,))  # noqa: S608

    def drop(self, key: str) -> None:
        """Forget a record; what a damaged row says is kept in the table ``quarantine``. Idempotent."""
        damaged = self._damaged.get(key)
        if damaged is not None:  # kept first: a kill in between leaves it twice, and not nowhere
            values = (self.name, key, damaged.body, damaged.why, time.time_ns())
            self._database.execute("INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)", values)
        row = key if damaged is None else damaged.id
        self._database.execute(f"DELETE FROM {self.name} WHERE id = ?", (row,))  # noqa: S608
        self._late.discard((self.name, key))
        self._records.pop(key, None)
        self._damaged.pop(key, None)
        self.version += 1


class Ledger:
    """Host resources with their owner, written before they are made and deleted after they are undone."""

    _data: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])

    def __init__(self, database: Database, late: LateWrites) -> None:
        self._database = database
        self._late = late
        counts = database.rows("SELECT owner, count(*) FROM ledger GROUP BY owner")
        self._counts: Counter[str] = Counter(dict(counts))  # so that who has no entry is not looked up
        self._reported: set[int] = set()

    def record(self, owner: str, kind: str, key: str, data: Mapping[str, object]) -> LedgerEntry:
        """Write that ``owner`` is about to make the resource ``key``."""
        return self._insert(owner, kind, key, data, grows=True)

    def hand_over(self, entry: LedgerEntry, owner: str, data: Mapping[str, object]) -> LedgerEntry:
        """Give an entry to another owner, at the end of the first."""
        changed = self._insert(owner, entry.kind, entry.key, data, grows=False)
        self.delete(entry)
        return changed

    def _insert(self, owner: str, kind: str, key: str, data: Mapping[str, object], *, grows: bool) -> LedgerEntry:
        statement = "INSERT INTO ledger (owner, kind, key, data) VALUES (?, ?, ?, ?)"
        cursor = self._database.execute(statement, (owner, kind, key, self._text(data)), grows=grows)
        self._counts[owner] += 1
        return LedgerEntry(cursor.lastrowid or 0, owner, kind, key, data)

    def record_all(self, owner: str, resources: Sequence[tuple[str, str, Mapping[str, object]]]) -> None:
        """Write that ``owner`` is about to make these, each a kind, key and data, in this order: all or none."""
        if resources:
            rows = [value for kind, key, data in resources for value in (owner, kind, key, self._text(data))]
            places = ", ".join(["(?, ?, ?, ?)"] * len(resources))
            statement = f"INSERT INTO ledger (owner, kind, key, data) VALUES {places}"  # noqa: S608
            self._database.execute(statement, tuple(rows), grows=True)
            self._counts[owner] += len(resources)

    def update(self, entry: LedgerEntry, data: Mapping[str, object]) -> LedgerEntry:
        """Replace what is needed to undo the resource, now that more is known."""
        self._database.execute("UPDATE ledger SET data = ? WHERE id = ?", (self._text(data), entry.id))
        return LedgerEntry(entry.id, entry.owner, entry.kind, entry.key, data)

    def delete(self, *entries: LedgerEntry) -> None:
        """The resources, all of one owner, are gone. Idempotent."""
        if entries:
            (owner,) = {entry.owner for entry in entries}
            places = ", ".join("?" * len(entries))
            numbers = tuple(entry.id for entry in entries)
            deleted = self._database.execute(f"DELETE FROM ledger WHERE id IN ({places})", numbers)  # noqa: S608  # question marks
            self._counts[owner] -= deleted.rowcount
            if not self._counts[owner]:
                del self._counts[owner]

    def forget(self, entry: LedgerEntry) -> None:
        """Delete an entry now, or as soon as that can be written: until then nothing may be taken for its resource.

        For one that is gone for good, or has become another's, such as a layer that is committed.
        """
        try:
            self.delete(entry)
        except (ResourceExhausted, StateNotUsable) as error:
            LOG.warning("%s %s is deleted from the ledger later: %s", entry.kind, entry.key, error.message)
            self._late.add(("ledger", str(entry.id)), lambda: self.delete(entry))

    def count(self, owner: str) -> int:
        """Return how many entries an owner has. May be called in any thread."""
        return self._counts[owner]

    def total(self) -> int:
        """Return how many entries there are. May be called in any thread."""
        return sum(tuple(self._counts.values()))

    def entries(self, owner: str | None = None) -> list[LedgerEntry]:
        """Return entries, the latest first: the order in which to undo."""
        if owner is not None and owner not in self._counts:
            return []
        where, parameters = ("", ()) if owner is None else ("WHERE owner = ?", (owner,))
        rows = self._database.rows(
            f"SELECT id, owner, kind, key, data FROM ledger {where} ORDER BY id DESC",  # noqa: S608  # a constant
            parameters,
        )
        return [self._entry(*row) for row in rows]

    def mend(self, entry: LedgerEntry, data: Mapping[str, object]) -> None:
        """Replace what a damaged row says, and keep that in the table ``quarantine``."""
        self._keep(entry, entry.damaged)
        self.update(entry, data)

    def give(self, entry: LedgerEntry, owner: str) -> None:
        """Make an entry another owner's."""
        self._database.execute("UPDATE ledger SET owner = ? WHERE id = ?", (owner, entry.id))
        self._counts[owner] += 1

    def quarantine(self, entry: LedgerEntry, error: Exception) -> None:
        """Delete an entry that can't be undone, as it is invalid, and keep its row in the table ``quarantine``.

        What it stands for may be left.
        """
        why = entry.damaged or (str(error) if not isinstance(error, ValidationError) else "its data can't be read")
        LOG.error(
            "row %d of the ledger, %s %s of %s, is invalid and was put in quarantine: %s; 'crinoid doctor' looks "
            "for what is left",
            entry.id,
            entry.kind,
            entry.key,
            entry.owner,
            why,
        )
        self._keep(entry, why)
        self.delete(entry)

    def _keep(self, entry: LedgerEntry, why: str) -> None:
        for (data,) in self._database.rows("SELECT data FROM ledger WHERE id = ?", (entry.id,)):
            values = ("ledger", f"{entry.owner} {entry.kind} {entry.key}", data, why, time.time_ns())
            self._database.execute("INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)", values)

    def _entry(self, number: int, owner: object, kind: object, key: object, data: object) -> LedgerEntry:
        """Whatever a row holds, it is an entry, so that its owner is known to have something."""
        try:
            if not isinstance(data, str | bytes) or not all(isinstance(one, str) for one in (owner, kind, key)):
                raise bodies.Unreadable("a column is no text")
            found = bodies.upgrade("ledger", self._data.validate_json(data))
            del found["v"]
            return LedgerEntry(number, str(owner), str(kind), str(key), found)
        except ValueError:  # pydantic's is one, whose message quotes the row
            if number not in self._reported:
                self._reported.add(number)
                LOG.error(
                    "row %d of the ledger, %s %s of %s, can't be read: it stays as it is", number, kind, key, owner
                )
            return LedgerEntry(number, _as_text(owner), _as_text(kind), _as_text(key), {}, "its data can't be read")

    def _text(self, data: Mapping[str, object]) -> str:
        return self._data.dump_json({**data, "v": bodies.VERSION}).decode()


def _as_text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class Store:
    """All that survives the daemon: three tables of records, the ledger, and a few settings."""

    def __init__(self, path: Path) -> None:
        """Open the store at ``path``; its directory exists."""
        self.is_new = not path.exists() or not path.stat().st_size
        self._database, self._late = database, late = Database(path), LateWrites()
        self.pods: Table[PodRecord] = Table(database, late, "pods", _check_pod)
        self.containers: Table[ContainerRecord] = Table(database, late, "containers", _check_container)
        self.images: Table[ImageRecord] = Table(database, late, "images", lambda _old, _new: None)
        self.ledger = Ledger(database, late)

    async def sync(self) -> None:
        """Return once all that was written before outlives a power cut, as an image must whose pull is answered."""
        await self._database.sync()

    def containers_of(self, pod_id: str) -> list[ContainerRecord]:
        """Return the containers of one pod."""
        return [record for record in self.containers if record.pod_id == pod_id]

    def setting(self, name: str) -> str | None:
        """Return what ``set`` stored under a name."""
        rows = self._database.rows("SELECT body FROM settings WHERE id = ?", (name,))
        return rows[0][0] if rows and isinstance(rows[0][0], str) else None

    def set(self, name: str, value: str) -> None:
        """Keep a small value across restarts."""
        self._database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value), grows=True)

    @property
    def damage(self) -> str:
        """What was found wrong with the file while it is in use; empty if nothing was so far."""
        return self._database.damage

    def count_late(self) -> int:
        """Return how many changes hold and are not written yet. May be called in any thread."""
        return len(self._late)

    def quarantined(self) -> list[tuple[str, str, str]]:
        """Return table, id and error of every record that does not parse, and of those that were dropped so."""
        tables: tuple[Table[PodRecord] | Table[ContainerRecord] | Table[ImageRecord], ...]
        tables = (self.pods, self.containers, self.images)
        present = [(table.name, key, one.why) for table in tables for key, one in table.damaged.items()]
        rows = [("ledger", f"{e.owner} {e.kind} {e.key}", e.damaged) for e in self.ledger.entries() if e.damaged]
        kept = self._database.rows("SELECT source, id, error FROM quarantine")
        return present + rows + [(_as_text(source), _as_text(key), _as_text(why)) for source, key, why in kept]

    def close(self) -> None:
        """Close the database."""
        self._late.close()
        self._database.close()


def _check_pod(old: PodRecord, new: PodRecord) -> None:
    if new.state is not old.state and new.state not in POD_STEPS[old.state]:
        raise FailedPrecondition(f"pod {new.id} can't go from {old.state.value} to {new.state.value}")


def _check_container(old: ContainerRecord, new: ContainerRecord) -> None:
    if new.state is not old.state and new.state not in CONTAINER_STEPS[old.state]:
        raise FailedPrecondition(f"container {new.id} can't go from {old.state.value} to {new.state.value}")
