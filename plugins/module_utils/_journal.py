# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What a run has done so far, for its result, its evidence and the next person who reads them."""

from __future__ import annotations

import dataclasses
import heapq
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import CheckResult
from ansible_collections.surefoot.dbops.plugins.module_utils._drift import Drift
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._script import StatementClass
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement

# A file may hold half a million statements: only the slowest are remembered one by one.
_REMEMBERED = 1000
_SHOWN = 100


class StatementRecord(t.NamedTuple):
    """One statement that was run; ``number`` is its place in the run, from 1."""

    number: int
    migration: str
    file: str
    line: int | None
    tag: str
    seconds: float

    def to_dict(self) -> dict[str, t.Any]:
        return {**self._asdict(), "seconds": round(self.seconds, 4)}


class Mark(t.NamedTuple):
    """A place in the journal to come back to."""

    number: int
    counts: dict[str, int]


@dataclasses.dataclass
class Journal:
    """Filled while the run goes on; ``touched`` whether something of it may have been committed, ``unfinished`` the
    migration that failed after a part of it was."""

    done: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    retries: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    checks: list[CheckResult] = dataclasses.field(default_factory=list)
    drift: list[Drift] = dataclasses.field(default_factory=list)
    # By migration: rows that its sweeps moved. And what the quarantine holds at the end, None without one.
    moved: dict[str, int] = dataclasses.field(default_factory=dict)
    quarantine: dict[str, t.Any] | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    touched: bool = False
    unfinished: str | None = None
    statement_count: int = 0
    _records: list[StatementRecord] = dataclasses.field(default_factory=list)
    _counts: dict[str, int] = dataclasses.field(default_factory=dict)

    def warn(self, message: str) -> None:
        """Something that does not stop the run; said once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def statement(
        self, migration: Migration, step: SqlStep, statement: Statement, kind: StatementClass, seconds: float
    ) -> None:
        """One statement was run."""
        self.note(migration, step.file, statement.line, kind.tag, seconds)

    def note(self, migration: Migration, file: str, line: int | None, tag: str, seconds: float) -> None:
        """One piece of work was done."""
        self.statement_count += 1
        self._counts[migration.id] = self._counts.get(migration.id, 0) + 1
        self._records.append(StatementRecord(self.statement_count, migration.id, file, line, tag, seconds))
        if len(self._records) > 2 * _REMEMBERED:
            self._records = self._slowest(_REMEMBERED)

    def mark(self, migrations: t.Iterable[Migration]) -> Mark:
        """The present place, before an attempt at these migrations."""
        return Mark(self.statement_count, {item.id: self._counts.get(item.id, 0) for item in migrations})

    def undo(self, mark: Mark) -> None:
        """Forget the statements of an attempt that was rolled back."""
        if self.statement_count > mark.number:
            self._records = [record for record in self._records if record.number <= mark.number]
            self._counts.update(mark.counts)
            self.statement_count = mark.number

    def finished(self, migration: Migration, seconds: float, attempts: int, held: float | None) -> None:
        """A migration is done; ``held`` the seconds it held a lock that blocks others, None when it held none."""
        self.done.append(
            {
                "id": migration.id,
                "seconds": round(seconds, 4),
                "statements": self._counts.get(migration.id, 0),
                "attempts": attempts,
                "lock_held_seconds": held,
            }
        )

    def _slowest(self, limit: int) -> list[StatementRecord]:
        if len(self._records) <= limit:
            return self._records
        return sorted(heapq.nlargest(limit, self._records, key=lambda record: record.seconds))

    def shown(self) -> list[dict[str, t.Any]]:
        """The 100 slowest statements, in the order they ran: a task result should stay readable."""
        return [record.to_dict() for record in self._slowest(_SHOWN)]

    def remembered(self) -> list[dict[str, t.Any]]:
        """The 1000 slowest statements, in the order they ran."""
        return [record.to_dict() for record in self._slowest(_REMEMBERED)]

    @property
    def ids(self) -> list[str]:
        """The migrations that are done, in order."""
        return [item["id"] for item in self.done]
