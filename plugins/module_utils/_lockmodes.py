# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""PostgreSQL's table-level lock modes: which of them conflict, and so whose work a held one keeps waiting.

Source: PostgreSQL manual, section 13.3.1 "Table-Level Locks" and table 13.2 "Conflicting Lock Modes"; the modes of
statements outside a transaction are those on the statements' own pages.
"""

from __future__ import annotations

import re
import typing as t

# From the weakest to the strongest, spelt as in pg_locks.mode.
MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
(
    ACCESS_SHARE,
    ROW_SHARE,
    ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    SHARE,
    SHARE_ROW_EXCLUSIVE,
    EXCLUSIVE,
    ACCESS_EXCLUSIVE,
) = MODES

# Table 13.2, a row a mode held: the modes that must wait for it. The relation is symmetric.
CONFLICTS: t.Mapping[str, frozenset[str]] = {
    ACCESS_SHARE: frozenset(MODES[7:]),
    ROW_SHARE: frozenset(MODES[6:]),
    ROW_EXCLUSIVE: frozenset(MODES[4:]),
    SHARE_UPDATE_EXCLUSIVE: frozenset(MODES[3:]),
    SHARE: frozenset(MODES[2:]) - {SHARE},
    SHARE_ROW_EXCLUSIVE: frozenset(MODES[2:]),
    EXCLUSIVE: frozenset(MODES[1:]),
    ACCESS_EXCLUSIVE: frozenset(MODES),
}

# The mode a client's statement takes on the tables, and the indexes of the tables, that it works on.
TAKEN_BY: t.Mapping[str, str] = {
    "SELECT": ACCESS_SHARE,
    "INSERT": ROW_EXCLUSIVE,
    "UPDATE": ROW_EXCLUSIVE,
    "DELETE": ROW_EXCLUSIVE,
}

# What statements that no transaction can hold take on the relation they name, at least for a moment.
_OUTSIDE: t.Mapping[str, str] = {
    "CREATE INDEX CONCURRENTLY": SHARE_UPDATE_EXCLUSIVE,
    "DROP INDEX CONCURRENTLY": SHARE_UPDATE_EXCLUSIVE,
    "REINDEX CONCURRENTLY": SHARE_UPDATE_EXCLUSIVE,
    "VACUUM": SHARE_UPDATE_EXCLUSIVE,
    "VACUUM FULL": ACCESS_EXCLUSIVE,
    "CLUSTER": ACCESS_EXCLUSIVE,
    # On the partition, in its second transaction; SHARE UPDATE EXCLUSIVE on the parent.
    "ALTER TABLE DETACH PARTITION CONCURRENTLY": ACCESS_EXCLUSIVE,
}


def blocks(mode: str) -> tuple[str, ...]:
    """Which of SELECT, INSERT, UPDATE and DELETE wait while somebody else holds this mode (as in pg_locks.mode).
    Modes that are none of a table block none of them."""
    conflicting = CONFLICTS.get(mode, frozenset())
    return tuple(statement for statement, taken in TAKEN_BY.items() if taken in conflicting)


def documented(tag: str) -> str | None:
    """The mode PostgreSQL's manual names for a statement outside a transaction; None where it names none, or the
    statement can be any (CALL, DO)."""
    return _OUTSIDE.get(tag)


def spelt(mode: str) -> str:
    """The mode as SQL and the manual spell it: ``ACCESS EXCLUSIVE``."""
    name = mode[: -len("Lock")] if mode.endswith("Lock") else mode
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).upper()
