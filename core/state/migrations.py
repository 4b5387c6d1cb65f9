"""The schema of ``state.db``, step by step, and what a whole one looks like.

Called by ``opening``. A step is only ever added. What a step changes for good (a table, or bodies of records in a way
that an older crinoid can't read) keeps older crinoids out: they refuse a schema that is newer than theirs.
"""

import sqlite3
from collections.abc import Mapping

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

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "pods": ("id", "body"),
    "containers": ("id", "body"),
    "images": ("id", "body"),
    "settings": ("id", "body"),
    "ledger": ("id", "owner", "kind", "key", "data"),
    "quarantine": ("source", "id", "body", "error", "at_ns"),
}
"""The tables of today's schema with their columns, in order."""


def bring_forward(connection: sqlite3.Connection, version: int) -> None:
    """Apply the steps that come after ``version``, all or none."""
    steps = "".join(MIGRATIONS[version:])
    connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {len(MIGRATIONS)}; COMMIT;")


def describe_lack(connection: sqlite3.Connection) -> str:
    """Say what a database of today's schema lacks, or has otherwise than it should; empty: nothing."""
    for table, columns in COLUMNS.items():
        found = tuple(name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})"))
        if not found:
            return f"table {table} is missing"
        if found != columns:
            return f"table {table} has the columns {', '.join(found)} instead of {', '.join(columns)}"
    return ""
