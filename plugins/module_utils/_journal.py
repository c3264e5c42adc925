# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What a run has done so far, for its result, its evidence and the next person who reads them."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import CheckResult
from ansible_collections.surefoot.dbops.plugins.module_utils._drift import Drift
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._script import StatementClass
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement

_STATEMENTS_SHOWN = 100


@dataclasses.dataclass
class Journal:
    """Filled while the run goes on; ``touched`` whether something of it may have been committed."""

    done: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    statements: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    retries: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    checks: list[CheckResult] = dataclasses.field(default_factory=list)
    drift: list[Drift] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    touched: bool = False

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
        self.statements.append(
            {
                "number": len(self.statements) + 1,
                "migration": migration.id,
                "file": file,
                "line": line,
                "tag": tag,
                "seconds": round(seconds, 4),
            }
        )

    def finished(self, migration: Migration, seconds: float, attempts: int, held: float | None) -> None:
        """A migration is done; ``held`` the seconds it held a lock that blocks others, None when it held none."""
        self.done.append(
            {
                "id": migration.id,
                "seconds": round(seconds, 4),
                "statements": sum(1 for item in reversed(self.statements) if item["migration"] == migration.id),
                "attempts": attempts,
                "lock_held_seconds": held,
            }
        )

    @property
    def ids(self) -> list[str]:
        """The migrations that are done, in order."""
        return [item["id"] for item in self.done]

    def slowest(self) -> list[dict[str, t.Any]]:
        """The slowest statements, in the order they ran."""
        slowest = sorted(self.statements, key=lambda item: -item["seconds"])[:_STATEMENTS_SHOWN]
        return sorted(slowest, key=lambda item: item["number"])
