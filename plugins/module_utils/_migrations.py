# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""One migration after the other: its steps, each by the means it needs, from where an earlier run stopped."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import os
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._autonomous import Autonomous
from ansible_collections.surefoot.dbops.plugins.module_utils._backfill import Backfills
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact_sql
from ansible_collections.surefoot.dbops.plugins.module_utils._context import WHOLE_STEP, Attempts, Context, now
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    DriftError,
    EnvironmentProblem,
    LedgerError,
    OutcomeUnknown,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import TEXT_LIMIT, Progress, Text, executed_text
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import BackfillStep, Limits, Migration, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import (
    Step,
    raw_digest,
    read_step,
    step_digest,
    token_digest,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import SweepStep
from ansible_collections.surefoot.dbops.plugins.module_utils._sweep import Sweeps
from ansible_collections.surefoot.dbops.plugins.module_utils._transaction import Transactions, Work

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


class Migrations:
    """Applies or rolls back single migrations. The control connection reads progress and records failures."""

    def __init__(self, context: Context, control: Connection, begun: frozenset[str]) -> None:
        """:param begun: migrations that an earlier run began with the same action and did not finish"""
        self._context = context
        self._control = control
        self._begun = begun
        self._options = context.options
        self._action = context.action
        self._ledger = context.ledger
        self._worker = context.worker
        self._journal = context.journal
        self._transactions = Transactions(context)
        self._autonomous = Autonomous(context)
        self._backfills = Backfills(context)
        self._sweeps = Sweeps(context)

    def carry_out(self, migration: Migration) -> None:
        """All steps of one migration, from where an earlier run stopped; then its checks."""
        steps = self._context.steps_of(migration)
        limits = self._context.limits(migration)
        started = now()
        clock = time.monotonic()
        # What was begun in several steps goes on as that, even if only one is left in the plan.
        simple = len(steps) == 1 and isinstance(steps[0], SqlStep) and steps[0].transaction
        simple = simple and migration.id not in self._begun and not t.cast(SqlStep, steps[0]).brief
        attempts = Attempts()
        text: Text | None = None
        try:
            self._worker.check_stop()
            not_begun = self._not_begun(migration, steps)
            simple = simple and not not_begun
            text = self._text(steps)
            if simple:
                # A rollback also forgets how far a half-applied deployment had come.
                clear = self._action == "rollback"
                work = Work(migration, 0, t.cast(SqlStep, steps[0]), self._context.script(steps[0]), text, True, clear)
                self._transactions.run([work], limits, attempts)
            else:
                self._steps(migration, steps, text, limits, attempts, not_begun)
        except BaseException as exc:
            self._record_failure(migration, text, started, attempts.number, exc)
            if not simple and not self._control.closed:
                with contextlib.suppress(psycopg2.Error):
                    self._left_unfinished(migration, steps)
            raise
        self._journal.finished(migration, time.monotonic() - clock, attempts.number, attempts.held)
        if self._action == "deploy":
            self._transactions.check_after_commit(migration, limits)

    def _left_unfinished(self, migration: Migration, steps: tuple[Step, ...]) -> None:
        """What was only looked at is not begun: the plan may still be changed, and the next run looks again."""
        progress = self._ledger.progress(self._control, migration.id, self._action)
        if not progress:
            return
        done = [steps[number] for number, _statement in progress if number < len(steps)]
        if len(done) == len(progress) and all(isinstance(step, SweepStep) and step.mode == "count" for step in done):
            with self._control.cursor() as cursor:
                cursor.execute(self._ledger.clear_progress_sql(self._control, migration.id))
        else:
            self._journal.unfinished = migration.id

    def _steps(
        self,
        migration: Migration,
        steps: tuple[Step, ...],
        text: Text,
        limits: Limits,
        attempts: Attempts,
        not_begun: t.Collection[int],
    ) -> None:
        progress = self._ledger.progress(self._control, migration.id, self._action)
        last = len(steps) - 1
        if any(step > last for step, _statement in progress):
            raise DriftError(
                f"{migration.id}: a step was taken out of the plan after a part of it was applied",
                remedy="Put it back and finish; or roll back.",
                location=migration.location,
            )
        recorded = False
        for number, step in enumerate(steps):
            digest = step_digest(step)
            self._same_step(migration, step, digest, progress.get((number, WHOLE_STEP)))
            if (number, WHOLE_STEP) in progress and progress[number, WHOLE_STEP].state == "done":
                continue
            if number in not_begun:
                continue
            if isinstance(step, BackfillStep):
                self._backfills.run(migration, number, step, digest, progress, limits)
            elif isinstance(step, SweepStep):
                self._sweeps.run(migration, number, step, digest, progress, limits)
            elif not step.transaction:
                self._autonomous.run(migration, number, step, digest, progress, limits, attempts)
            else:
                final = number == last and not step.brief
                self._transactions.run(
                    [Work(migration, number, step, self._context.script(step), text, final, True)], limits, attempts
                )
                recorded = final
        if not recorded:
            self._transactions.run([Work(migration, last + 1, None, None, text, True, True)], limits, attempts)

    def _not_begun(self, migration: Migration, steps: tuple[Step, ...]) -> frozenset[int]:
        """Rollback steps that have nothing to take back: what they undo was never begun, and what may be there by its
        name is somebody else's."""
        if self._action != "rollback" or all(step.undoes is None for step in steps):
            return frozenset()
        deployed = self._ledger.progress(self._control, migration.id, "deploy")
        if not deployed:  # of an applied migration nothing is kept: all of it was done
            return frozenset()
        begun = {number for (number, _statement), entry in deployed.items() if _made_something(entry)}
        return frozenset(
            number
            for number, step in enumerate(steps)
            if step.undoes is not None and not begun.intersection(step.undoes)
        )

    def _same_step(self, migration: Migration, step: Step, digest: str, earlier: Progress | None) -> None:
        if earlier is not None and earlier.text_sha256 != digest:
            raise DriftError(
                f"{migration.id}: {step.name} was changed after a part of it was applied",
                remedy="Restore the text, finish, and write the change as a new migration; or roll back.",
                location=step.location,
            )

    def _text(self, steps: tuple[Step, ...]) -> Text:
        if len(steps) == 1 and isinstance(steps[0], SqlStep):
            script = self._context.script(steps[0])
            raw, token = script.raw_sha256, script.token_sha256
            if script.content is not None:
                return executed_text([(steps[0].name, script.content)], raw, token)
        else:
            raw, token = raw_digest(steps), token_digest(steps)
        sizes = [os.path.getsize(step.path) if isinstance(step, SqlStep) and step.text is None else 0 for step in steps]
        if sum(sizes) > TEXT_LIMIT:
            self._keep_large_texts(steps)
            return Text(raw, token, None, sum(sizes))
        return executed_text([(step.name, read_step(step)) for step in steps], raw, token)

    def _keep_large_texts(self, steps: tuple[Step, ...]) -> None:
        """What is too large for the ledger goes, compressed, into the run directory."""
        if not self._options.run_dir:
            return
        directory = os.path.join(self._options.run_dir, "sql")
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            for step in steps:
                if not isinstance(step, SqlStep) or step.text is not None:
                    continue
                target = os.path.join(directory, step.file.replace("/", "_") + ".gz")
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as raw, gzip.open(raw, "wt", compresslevel=1, encoding="utf-8") as out:
                    self._copy_redacted(step.path, out)
        except OSError as exc:
            raise EnvironmentProblem(
                f"cannot write {directory}: {exc.strerror}", remedy="Make room or the directory writable."
            ) from exc

    @staticmethod
    def _copy_redacted(path: str, target: t.IO[str]) -> None:
        with open(path, encoding="utf-8") as source:
            target.writelines(redact_sql(line) for line in source)

    def _record_failure(
        self,
        migration: Migration,
        text: Text | None,
        started: datetime.datetime,
        tries: int,
        exc: BaseException,
    ) -> None:
        if self._control.closed:
            return
        error = exc.to_dict() if isinstance(exc, SurefootError) else {"code": "internal", "message": type(exc).__name__}
        outcome = "unknown" if isinstance(exc, OutcomeUnknown) else "failed"
        # Best effort: the reason of the failure matters more than its record.
        with contextlib.suppress(psycopg2.Error):
            self._ledger.record_failure(self._control, migration.id, self._action, text, started, tries, outcome, error)

    def apply_together(self, todo: t.Sequence[Migration]) -> None:
        """All pending migrations in one transaction: all of them, or none."""
        works: list[Work] = []
        for migration in todo:
            if migration.id in self._begun:
                raise LedgerError(
                    f"{migration.id} was begun step by step and is not finished",
                    remedy="Finish it with transaction: per_migration, or roll it back.",
                    location=migration.location,
                )
            steps = self._context.steps_of(migration)
            text = self._text(steps)
            for number, step in enumerate(steps):
                works.append(
                    Work(
                        migration,
                        number,
                        t.cast(SqlStep, step),
                        self._context.script(step),
                        text,
                        number == len(steps) - 1,
                        False,
                    )
                )
        limits = self._context.limits(todo[0])
        attempts = Attempts()
        started, clock = now(), time.monotonic()
        try:
            self._transactions.run(works, limits, attempts)
        except BaseException as exc:
            self._record_failure(works[0].migration, works[0].text, started, attempts.number, exc)
            raise
        seconds = time.monotonic() - clock
        for migration in todo:
            self._journal.finished(migration, seconds, attempts.number, attempts.held)
        for migration in todo:
            self._transactions.check_after_commit(migration, limits)


def _made_something(entry: Progress) -> bool:
    """Whether a record of a deployment says that there may be an effect: not the mere beginning of a step, nor the
    intent to make what was there already."""
    if entry.statement == WHOLE_STEP:
        return entry.state in ("done", "cursor")
    return entry.state == "done" or entry.object_oid is None
