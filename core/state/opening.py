"""Opens ``state.db`` for this process alone, and decides what is done where that does not go well.

Called by ``store`` once, at the start. What SQLite calls corrupt, or no database, and what lacks a table or a column is
put aside and salvaged (``salvage``). Everything else that stands against it says nothing of what is in the file: a full
disk, no free inodes or descriptors, another process's lock, a read-only file system. Then the start is refused, nothing
is changed, and the same start succeeds once the cause is gone.
"""

import contextlib
import logging
import os
import secrets
import sqlite3
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError, StateUnavailable
from crinoid.core.api.linux import rights
from crinoid.core.state import salvage
from crinoid.core.state.migrations import MIGRATIONS, bring_forward, describe_lack

LOG = logging.getLogger(__name__)
START_WAIT_S = 5.0
"""How long the start waits for another process that has the database open."""
LOG_BYTES = 4 << 20
"""How long SQLite's write-ahead log (``-wal``) gets before a checkpoint, and how long it stays on disk after that."""
BACKUPS = 3
"""How many databases are kept as they were before a migration."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class DamagedError(Exception):
    """What is in the file is not what it should be."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database at ``path``, making it where absent, salvaging what is damaged, bringing an older one forward.

    Raises StateUnavailable when it can't be had, ConfigurationError for a schema newer than this program's.
    """
    try:
        salvage.finish(path)
        _make(path)
        try:
            _examine(path)
        except DamagedError as error:
            salvage.salvage(path, str(error))
            _examine(path)
        return _begin(path)
    except OSError as error:
        raise StateUnavailable(_say(path, error.strerror or str(error))) from error
    except sqlite3.DatabaseError as error:
        raise StateUnavailable(_explain(path, error)) from error
    except DamagedError as error:
        raise StateUnavailable(
            _say(path, f"what was salvaged of it is damaged again ({error}): is the disk")
        ) from error


def connect(path: Path) -> sqlite3.Connection:
    """Connect by the VFS that locks other processes out; the connections of this one share its lock."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?vfs=unix-excl", uri=True, isolation_level=None, timeout=START_WAIT_S
    )


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite found the file itself wrong, which no further try mends."""
    return _code(error) in _DAMAGED


def _make(path: Path) -> None:
    """Make the file where it is absent: SQLite gives its log the same mode. The kernel says more than SQLite."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, rights.FILE))


def _examine(path: Path) -> None:
    """Look through the whole file without the right to write: SQLite would carry a log over into what is damaged.

    Raises DamagedError, ConfigurationError for a newer schema, sqlite3.DatabaseError.
    """
    if not path.stat().st_size:
        return
    mode = "ro" if path.with_name(path.name + "-wal").exists() else "ro&immutable=1"  # it can't make a log
    uri = f"{path.absolute().as_uri()}?vfs=unix-excl&mode={mode}"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=START_WAIT_S)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise ConfigurationError(
                    f"{path} has schema {version}, this crinoid knows {len(MIGRATIONS)}: run the newer crinoid again, "
                    "or have its 'crinoid state export' write the records, move the file away, and read them with this "
                    "one's 'crinoid state import'; nothing has been changed"
                )
            if version < 1 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                raise DamagedError(f"it has tables, and schema version {version}")
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok" or (version == len(MIGRATIONS) and (found := describe_lack(connection))):
                raise DamagedError(found)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise DamagedError(str(error)) from error
        raise


def _begin(path: Path) -> sqlite3.Connection:
    """Take the file for this process alone; what an earlier version shared with others is gone with that."""
    connection = connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # in WAL: a power cut may lose the last, a kill nothing
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # it would sync within a request; ``store`` has a thread
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        _bring_forward(path, connection)
    except BaseException:
        connection.close()
        raise
    connection.execute("PRAGMA busy_timeout = 0")  # nobody is left to wait for
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    return connection


def _bring_forward(path: Path, connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < len(MIGRATIONS):
        if version:
            _back_up(path, connection, version)
        bring_forward(connection, max(version, 0))


def _back_up(path: Path, connection: sqlite3.Connection, version: int) -> None:
    """Keep the database as it is before a migration, as ``state.db.schema-N``; of such backups the last few."""
    backup = path.with_name(f"{path.name}.schema-{version}")
    unfinished = path.with_name(f"{path.name}.backing-up")
    unfinished.unlink(missing_ok=True)
    rights.write_file(unfinished, b"")
    with contextlib.closing(sqlite3.connect(unfinished)) as target:
        connection.backup(target)
    descriptor = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    unfinished.rename(backup)  # synced before it has its name: half a backup is never taken for one
    LOG.info("%s is brought from schema %d to %d; as it was it is kept as %s", path, version, len(MIGRATIONS), backup)
    earlier = sorted(path.parent.glob(f"{path.name}.schema-*"), key=lambda one: one.stat().st_mtime_ns)
    for one in earlier[:-BACKUPS]:
        one.unlink()


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _explain(path: Path, error: sqlite3.DatabaseError) -> str:
    if _code(error) in _LOCKED:
        return (
            f"{path} is locked: another process has had it open for {START_WAIT_S:g} s. Find it (fuser {path}) and end "
            "it; nothing has been changed"
        )
    # SQLite says "unable to open database file" of most; the kernel says why, of a file like the one it could not make.
    probe, fault = path.parent / f".probe-{secrets.token_hex(4)}", ""
    try:
        rights.write_file(probe, b"\0" * 4096)
    except OSError as kernels:
        fault = f" ({kernels.strerror})"
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return _say(path, f"{error}{fault}")


def _say(path: Path, why: str) -> str:
    return f"{path} can't be used: {why}. Nothing has been changed, pods live on; start again once it can"
