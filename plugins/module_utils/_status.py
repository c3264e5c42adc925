# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Plan, ledger, files and catalog side by side: the state of every migration."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._drift import (
    Drift,
    catalog_drift,
    drift_evidence,
    file_drift,
    no_other_run,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Ledger, State, new_run_id
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, Plan, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import (
    Selection,
    inspect_step,
    raw_digest,
    select_deploy,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import open_session

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2


@dataclasses.dataclass(frozen=True)
class Status:
    """What is known of one migration set in one database."""

    plan: Plan
    state: State
    selection: Selection
    drift: tuple[Drift, ...]
    history: tuple[dict[str, t.Any], ...]

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "ledger_exists": self.state.exists,
            "migrations": [self._describe(migration) for migration in self.plan.migrations] + self._unknown(),
            "pending": [migration.id for migration in self.selection.todo],
            "manual": [{"id": migration.id, "reason": migration.manual} for migration in self.selection.manual],
            "type_changes": [
                dataclasses.asdict(item) for migration in self.selection.todo for item in migration.retyped
            ],
            "drift": [item.to_dict() for item in self.drift],
            "history": list(self.history),
        }

    def _describe(self, migration: Migration) -> dict[str, t.Any]:
        applied = self.state.applied.get(migration.id)
        return {
            "id": migration.id,
            "summary": migration.summary,
            "state": self._state_of(migration),
            "risk": dataclasses.asdict(migration.risk) if migration.risk else None,
            "expected_seconds": migration.expected,
            "applied_at": applied.applied_at.isoformat() if applied else None,
            "sha256": applied.raw_sha256 if applied else raw_digest(migration.steps),
            "rollback": migration.rollback is not None,
            "loses": list(migration.rollback_loses),
        }

    def _state_of(self, migration: Migration) -> str:
        if migration.id in self.state.partial or migration.id in self.state.undoing:
            return "partial"
        if migration.id in self.state.applied:
            return "applied"
        if migration in self.selection.manual:
            return "manual"
        return "pending" if migration in self.selection.todo else "held"

    def _unknown(self) -> list[dict[str, t.Any]]:
        known = {migration.id for migration in self.plan.migrations}
        return [
            {
                "id": item.migration_id,
                "summary": "",
                "state": "unknown",
                "risk": None,
                "expected_seconds": None,
                "applied_at": item.applied_at.isoformat(),
                "sha256": item.raw_sha256,
                "rollback": False,
                "loses": [],
            }
            for item in self.state.applied.values()
            if item.migration_id not in known
        ]

    def evidence(self) -> list[Evidence]:
        """What the gate wants to know before anything is done."""
        partial = sorted(self.state.partial | self.state.undoing)
        return [
            drift_evidence(self.drift),
            Evidence(
                criterion="ledger.nothing_half_done",
                phase="plan",
                verdict=verdict(not partial),
                measured=partial,
                required=[],
                source="ledger",
            ),
            Evidence(
                criterion="plan.valid",
                phase="plan",
                verdict="pass",  # an invalid one has raised
                measured=[migration.id for migration in self.selection.todo],
                required="every pending file passes validation and its requirements are met",
                source=self.plan.file or self.plan.directory,
            ),
        ]


def read_status(
    plan: Plan,
    options: ConnectionOptions,
    *,
    ledger_schema: str,
    to: str | None,
    only: t.Sequence[str],
    include_manual: t.Sequence[str],
    history: int,
    validate: bool,
    allow_session_pooler: bool,
) -> Status:
    """Read ledger, files and catalog; nothing is written.

    :param history: number of latest attempts to include
    :param validate: whether to validate the files of what is pending
    :raises SurefootError: what would keep a run from starting: plan, files, connection, ledger
    """
    ledger = Ledger(ledger_schema, plan.name, new_run_id())
    with contextlib.closing(
        open_session(options, "status", {"statement_timeout": "60s"}, allow_session_pooler=allow_session_pooler)
    ) as connection:
        state = ledger.read(connection)
        selection = select_deploy(plan, state, to=to, only=only, include_manual=include_manual)
        drift = file_drift(plan, state)
        with no_other_run(connection, ledger) as quiet:
            found = catalog_drift(connection, state, ledger_schema, plan.drift_ignore) if quiet else None
        try:
            attempts = ledger.history(connection, history) if state.exists and history else []
        except psycopg2.Error as exc:
            raise ledger.unreadable(exc) from None
    if validate:
        for migration in selection.todo:
            for step in migration.steps:
                if isinstance(step, SqlStep):
                    inspect_step(step)
    return Status(plan, state, selection, (*drift, *([found] if found else [])), tuple(attempts))
