# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What to do about an error of the server: SQLSTATE, and words of its message, to one sentence."""

from __future__ import annotations

# (SQLSTATE, word in the message or "", remedy); the first that fits wins, so the special come before the
# general.
_REMEDIES: tuple[tuple[str, str, str], ...] = (
    ("42501", "for schema", "Give the role CREATE on the schema: GRANT USAGE, CREATE ON SCHEMA <schema> TO <role>."),
    (
        "42501",
        "must be owner",
        "Run as the owner of the object (session_role), or ALTER ... OWNER TO the migrating role first.",
    ),
    (
        "42501",
        "row-level security",
        "The policies refuse this row: check USING and WITH CHECK, or run as the table's owner.",
    ),
    ("42501", "extension", "Have an administrator run CREATE EXTENSION beforehand; the migration then finds it."),
    ("42501", "", "Grant the missing right to the migrating role, or run as a role that has it (session_role)."),
    ("58P01", "extension", "Install the extension's package on the server (contrib), then run again."),
    ("0A000", "extension", "Install the extension's package on the server (contrib), then run again."),
    ("0A000", "cached plan", "Reconnect the clients that hold the old plan, then run again."),
    ("42883", "pgp_sym", "Install pgcrypto: CREATE EXTENSION IF NOT EXISTS pgcrypto, in a schema of the search_path."),
    ("42883", "gen_random_uuid", "Install pgcrypto, or use PostgreSQL 13 or newer: it has gen_random_uuid built in."),
    (
        "42883",
        "",
        "The function is missing or its argument types differ: check search_path and the migrations before this one.",
    ),
    (
        "42P01",
        "",
        "The relation is missing: check the migrations this one requires, and search_path (pg_dump sets it empty).",
    ),
    ("3F000", "", "The schema is missing: check the migrations this one requires."),
    ("42703", "", "The column is missing: the table may have been made by other means; compare it with the plan."),
    (
        "42P07",
        "",
        "It exists already: if it was made by hand and is right, record the migration with state: baselined.",
    ),
    (
        "42710",
        "",
        "It exists already: if it was made by hand and is right, record the migration with state: baselined.",
    ),
    (
        "42701",
        "",
        "The column exists already: if it was added by hand and is right, record the migration with state: baselined.",
    ),
    ("42723", "", "The function exists already: use CREATE OR REPLACE, or record the migration with state: baselined."),
    ("25001", "", "It cannot run inside a transaction: set transaction: false on its step."),
    (
        "25006",
        "",
        "The session is read-only: connect to the primary, and check default_transaction_read_only of the role.",
    ),
    ("2D000", "", "The procedure or DO block commits by itself: set transaction: false on its step."),
    (
        "55P04",
        "",
        "A new enum value cannot be used in the transaction that adds it: put its use into a later migration.",
    ),
    (
        "55P03",
        "",
        "Wait for or end the session in the way, or raise retry.deadline; raising lock_timeout makes clients wait "
        "longer.",
    ),
    ("55006", "trigger events", "Put SET CONSTRAINTS ALL IMMEDIATE before the statement: it fires what is pending."),
    ("57014", "", "If it ran too long: raise statement_timeout, or use a backfill. If it was cancelled: run again."),
    ("57P01", "", "An administrator ended the session; what was open is rolled back. Run again."),
    ("53100", "", "The server's disk is full: make room, then run again."),
    ("53200", "", "The server is out of memory or lock slots: see max_locks_per_transaction, or split the migration."),
    ("53300", "", "The server has no connection left: free some, then run again."),
    ("23503", "", "Rows refer to rows that are not there: find the orphans first, or add the constraint NOT VALID."),
    ("23505", "", "Rows are not unique: find the duplicates first."),
    ("23502", "", "Rows hold NULL where none may be: fill them first."),
    ("23514", "", "Rows violate the check: find them first, or add the constraint NOT VALID and validate it later."),
    ("22021", "", "The text is not valid in the database's encoding: save the file as UTF-8."),
    ("42601", "", "Correct the SQL at this place."),
)


def remedy_for(sqlstate: str | None, message: str) -> str | None:
    """What to do about this error; None when only the message can say."""
    if not sqlstate:
        return None
    for state, word, remedy in _REMEDIES:
        if sqlstate == state and word in message:
            return remedy
    return None
