"""The formats of a store: its tables as they are made, and what older ones had instead."""

from __future__ import annotations

import sqlite3

from retroact.experiments import sealed
from retroact.experiments.sealed import FORMAT, Packed, Tally, pack

# Where format 1 has the same: it knows no checksums, and its records stand in the cells' table.
FIRST = {
    "cells": "(SELECT rowid AS id, key, cell, fields, n, written, kept, '' AS record_sum,"
    " '' AS images_sum, '' AS seal FROM cells)",
    "records": "(SELECT key, record, images FROM cells)",
    "facts": "(SELECT rowid AS id, key, what, written, seconds, facts, '' AS seal FROM facts)",
    "ledger": "(SELECT min(id) AS id, 'cell ' || key AS key, '' AS what, count(*) AS times,"
    " 1 AS there, '' AS seal FROM runs GROUP BY key)",
}


def create(db: sqlite3.Connection) -> None:
    """The tables of a new store, in the open transaction."""
    for table in sealed.TABLES:
        db.execute(table)
    for name in sealed.COLUMNS:
        db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, str(Tally(0, 0))))
    db.execute("INSERT OR REPLACE INTO about VALUES ('format', ?)", (str(FORMAT),))


def upgrade(db: sqlite3.Connection) -> None:
    """Format 1 as format 2, in the open transaction."""
    for table in ("cells", "facts", "runs"):
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    create(db)
    times = dict(db.execute("SELECT key, count(*) FROM old_runs GROUP BY key"))
    query = (
        "SELECT key, cell, fields, n, written, kept, record, images FROM old_cells ORDER BY rowid"
    )
    for *said, record, images in db.execute(query):
        packed = Packed.of((*said,), pack(record), pack(images))  # type: ignore[arg-type]
        sealed.insert_cell(db, packed, times.pop(packed.row.key, 1))
    for key, n in times.items():  # removed since
        sealed.note(db, f"cell {key}", "", n, there=0)
    query = "SELECT key, what, written, seconds, facts FROM old_facts ORDER BY rowid"
    for row in db.execute(query):
        sealed.insert_facts(db, tuple(row))
    for table in ("cells", "facts", "runs"):
        db.execute(f"DROP TABLE old_{table}")
