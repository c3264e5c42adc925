# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A migration's statements, its checks and its ledger row in one transaction."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import Check, CheckResult, due, run_checks
from ansible_collections.surefoot.dbops.plugins.module_utils._context import (
    BUSY_POLL,
    WHOLE_STEP,
    Attempts,
    Context,
    OrphanBusy,
    OverBudget,
    now,
    timeline_of,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    Location,
    OutcomeUnknown,
    SqlError,
    SqlTextError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Text
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Limits, Migration, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._script import (
    Script,
    StatementClass,
    executable,
    indexed_table,
    made_table,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import guarded_constraints
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import load as load_secrets
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import step_digest
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, milliseconds
from ansible_collections.surefoot.dbops.plugins.module_utils._watch import runner_lock_lost
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import CommitLost

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


@dataclasses.dataclass(frozen=True)
class Work:
    """One SQL step of one migration, about to run in a transaction; ``step`` is None when only the ledger row is
    left."""

    migration: Migration
    number: int
    step: SqlStep | None
    script: Script | None
    text: Text
    final: bool
    clear: bool


class Transactions:
    """Runs work in transactions, each tried again until it is done or may not be tried any more."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._options = context.options
        self._action = context.action
        self._ledger = context.ledger
        self._worker = context.worker
        self._watch = context.watch
        self._journal = context.journal
        self._xid = ""

    def run(self, works: t.Sequence[Work], limits: Limits, attempts: Attempts) -> None:
        """Attempts until it is done, the attempts or the deadline run out, or an error no retry can mend."""
        mark = self._journal.mark(work.migration for work in works)

        def attempt(number: int) -> None:
            self._journal.undo(mark)
            attempts.tried(number)
            attempts.held_for(self._attempt(works, limits, number))

        self._context.with_retries(works[0].migration, limits, attempt)

    def _attempt(self, works: t.Sequence[Work], limits: Limits, number: int) -> float | None:
        """One transaction, from BEGIN to COMMIT; returns the seconds a blocking lock was held."""
        worker, watch = self._worker, self._watch
        settings: dict[str, str] = {}
        for work in works:
            settings.update(self._context.settings(work.migration, limits))
        started = now()
        worker.ready(settings)
        watch.begin(worker.pid, enforce=True)
        self._options.trace.begin(worker.connection)
        current = works[0]
        try:
            self._begin(works, limits)
            for position, work in enumerate(works):
                current = work
                own = self._context.limits(work.migration) if len(works) > 1 else limits
                if position:  # the next migration of the same transaction starts with a session as at the start
                    worker.execute(f"SET SESSION AUTHORIZATION DEFAULT; RESET ALL; {_arm(own)}")
                if work.step is not None and work.script is not None:
                    self._run_script(work, own)
                if work.final:
                    self._finish(work, own, started, number)
                else:
                    self._finish_step(work)
            self._context.within_budget()
            self._commit(works[-1], self._xid)
        except psycopg2.Error as exc:
            if watch.over_budget:
                raise OverBudget() from None
            raise self._context.failed(exc, _end_of(current), None) from None
        finally:
            with contextlib.suppress(psycopg2.Error):
                worker.rollback()
            held = watch.end()
            self._options.trace.end()
            if any(work.script is not None and work.script.needs_fresh_connection for work in works) or any(
                work.migration.session_settings for work in works
            ):
                worker.taint()
        return held

    def _begin(self, works: t.Sequence[Work], limits: Limits) -> None:
        worker = self._worker
        modes = self._modes(works)
        # The limits are in force already: the session was started with them.
        # In every transaction, as the next run may begin as soon as one of ours has ended.
        ours, our_turn = worker.fetch(f"BEGIN {modes or ''}; {self._context.turn_sql()}")[0]
        if not ours:
            raise OrphanBusy()
        if not our_turn or self._watch.lost:
            raise runner_lock_lost()
        names: set[str] = set()
        for work in works:
            if work.script is not None:
                names |= set(work.script.variables) & set(self._options.secrets)
        if names:
            load_secrets(worker.connection, names, self._options.secrets)
        tables = sorted({table for work in works for table in work.migration.lock_tables if work.number == 0})
        if tables and self._action == "deploy":
            with self._watch.statement(may_block=True):
                worker.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")

    @staticmethod
    def _modes(works: t.Sequence[Work]) -> str | None:
        """The modes of the files' own BEGIN; one transaction has one set of them."""
        modes = {work.script.begin_modes for work in works if work.script is not None}
        if len(modes) > 1:
            odd = next(work for work in works if work.script is not None and work.script.begin_modes)
            raise SqlTextError(
                "the file's BEGIN has modes that others of the same transaction do not have",
                remedy="Remove the modes, or use transaction: per_migration for the plan.",
                location=Location(t.cast(SqlStep, odd.step).path),
            )
        return modes.pop() if modes else None

    def _run_script(self, work: Work, limits: Limits) -> None:
        step, script = t.cast(SqlStep, work.step), t.cast(Script, work.script)
        watch, worker = self._watch, self._worker
        made: set[tuple[str | None, str]] = set()
        for statement, kind in executable(step.path, script):
            text = self._context.render(statement, step)
            # What this transaction made nobody else can see: an index on it blocks nobody, and its locks need no look.
            may_block = kind.may_block and indexed_table(statement, kind) not in made
            left = self._context.within_budget()
            if left is not None:
                worker.execute(f"SET LOCAL statement_timeout = {milliseconds(min(left, limits.statement_timeout))}")
            clock = time.monotonic()
            try:
                with watch.statement(may_block=may_block):
                    self._context.execute(work.migration, statement, kind, text)
            except psycopg2.Error as exc:
                if watch.over_budget or (
                    exc.pgcode == "57014" and left is not None and left < limits.statement_timeout
                ):
                    raise OverBudget() from None
                raise self._context.failed(exc, statement.location(), statement) from None
            if not worker.in_transaction:
                raise SqlTextError(
                    "the statement ended the transaction",
                    remedy="Take the COMMIT or ROLLBACK out, or set transaction: false.",
                    location=statement.location(),
                )
            self._journal.statement(work.migration, step, statement, kind, time.monotonic() - clock)
            if kind.session != "clean":
                made.clear()  # the names may mean something else now
            elif table := made_table(statement, kind):
                made.add(table)
            if kind.disarms or kind.session == "unknown":
                self._rearm(kind, limits, statement)

    def _rearm(self, kind: StatementClass, limits: Limits, statement: Statement) -> None:
        """A file that switches a limit off, as every pg_dump preamble does, gets it back; a stricter one of its own
        stays."""
        ours = {"lock_timeout": limits.lock_timeout, "statement_timeout": limits.statement_timeout}
        for name, limit in ours.items():
            if name not in kind.disarms and kind.session != "unknown":  # a DO block can set anything
                continue
            value = self._worker.fetch(
                f"SELECT extract(epoch FROM pg_catalog.current_setting('{name}')::pg_catalog.interval)::float8"
            )[0][0]
            if value == 0 or value > limit:
                self._worker.execute(f"SET LOCAL {name} = {milliseconds(limit)}")
                self._journal.warn(
                    f"{statement.location()}: sets {name} to {human_duration(value) if value else 'no limit'};"
                    f" {human_duration(limit)} stays in force"
                )

    def _finish(self, work: Work, limits: Limits, started: datetime.datetime, number: int) -> None:
        """What belongs to the same transaction as the change: constraints, checks, and the ledger row."""
        worker = self._worker
        deploys = self._action == "deploy"
        if deploys and self._options.verify and work.migration.verify:
            checks = due(work.migration.verify, "before_commit")
            if checks:
                worker.execute(self._constraints(work))
                self._require(self._run_checks(checks, work.migration, True), work.migration, "nothing was changed")
        parts = self._before_record(work)
        if work.clear:
            parts.append(self._ledger.clear_progress_sql(worker.connection, work.migration.id))
        parts.append(
            self._ledger.record_applied_sql(
                worker.connection, work.migration.id, self._action, work.text, started, number
            )
        )
        self._xid = str(worker.fetch("; ".join(parts))[0][0])

    def _finish_step(self, work: Work) -> None:
        """The same for a step that is not the migration's last: its record instead of the ledger row."""
        digest = step_digest(t.cast(SqlStep, work.step))
        connection = self._worker.connection
        parts = self._before_record(work)
        parts.append(
            self._ledger.progress_sql(
                connection, work.migration.id, self._action, work.number, WHOLE_STEP, "done", digest
            )
        )
        parts.append("SELECT pg_catalog.pg_current_xact_id()::text")
        self._xid = str(self._worker.fetch("; ".join(parts))[0][0])

    def _constraints(self, work: Work) -> str:
        variables = work.script.variables if work.script is not None else frozenset()
        return guarded_constraints(
            uses=bool(variables & set(self._options.secrets)),
            settings=work.migration.session_settings,
            connection=self._worker.connection,
        )

    def _before_record(self, work: Work) -> list[str]:
        parts = [self._constraints(work)]
        if work.script is not None and work.script.needs_fresh_connection:
            parts.append("RESET SESSION AUTHORIZATION; RESET ROLE")
        # The records are written with the task's own rights: nothing a file's search_path leads to may run with them.
        parts.append("SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL synchronous_commit = on")
        return parts

    def _commit(self, work: Work, xid: str) -> None:
        self._journal.touched = True
        try:
            self._worker.commit()
        except CommitLost:
            self._resolve(work, xid)

    def _resolve(self, work: Work, xid: str) -> None:
        """The connection died at COMMIT. The ledger row decides; the transaction's status only says whether to wait.

        :raises OutcomeUnknown: nobody can say, so nothing is retried
        :raises SqlError: it was not committed
        """
        unknown = OutcomeUnknown(
            f"{work.migration.id}: the connection died at COMMIT and the server cannot say what became of it",
            remedy="Look into the ledger's table applied and at the objects before you run again.",
            location=work.migration.location,
            details={"xid": xid},
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with contextlib.closing(self._context.open_control()) as connection:
                    if timeline_of(connection) != self._context.timeline:
                        raise unknown
                    if self._is_recorded(connection, work, xid):
                        self._journal.warn(
                            f"{work.migration.id}: the connection died at COMMIT; the ledger says committed"
                        )
                        return
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT pg_catalog.pg_xact_status(%s::xid8)", (xid,))
                        status = (cursor.fetchone() or (None,))[0]
            except psycopg2.Error:
                raise unknown from None
            except ConnectionFailed:
                status = "in progress"
            if status == "aborted":
                raise SqlError(
                    f"{work.migration.id}: the connection died at COMMIT; nothing was committed",
                    sqlstate="08007",
                    remedy="Run again.",
                    location=work.migration.location,
                )
            if status != "in progress" or time.monotonic() > deadline:
                raise unknown
            time.sleep(BUSY_POLL)

    def _is_recorded(self, connection: Connection, work: Work, xid: str) -> bool:
        if work.final:
            return self._ledger.is_recorded(connection, work.migration.id, self._action, xid)
        return self._ledger.is_step_recorded(connection, work.migration.id, self._action, work.number)

    def _require(self, results: t.Sequence[CheckResult], migration: Migration, consequence: str) -> None:
        self._journal.checks.extend(results)
        failed = [result for result in results if not result.passed]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise VerificationFailed(
                f"{migration.id}: check failed: {failed[0].summary}{more}; {consequence}",
                location=failed[0].check.location,
                details={"failed_checks": [result.check.name for result in failed]},
            )

    def check_after_commit(self, migration: Migration, limits: Limits) -> None:
        if not migration.verify or not self._options.verify:
            return
        checks = due(migration.verify, "after_commit")
        if not checks:
            return
        self._worker.ready(self._context.settings(migration, limits))
        try:
            results = self._run_checks(checks, migration, False)
        finally:
            if migration.session_settings:
                self._worker.taint()
        self._require(results, migration, "the migration is committed: roll it back or fix forward")

    def _run_checks(self, checks: t.Sequence[Check], migration: Migration, inside: bool) -> list[CheckResult]:
        return run_checks(
            self._worker.connection,
            checks,
            variables=self._context.variables,
            secret_variables=self._options.secrets,
            phase="verify",
            inside_transaction=inside,
            migration=migration.id,
            cancelled=lambda: self._worker.stopping,
            # Inside the transaction the checks run while its locks are held.
            time_left=self._time_left if inside else None,
        )

    def _time_left(self) -> float:
        left = self._watch.remaining()
        return left if left is not None else float("inf")


def _end_of(work: Work) -> Location:
    """Where an error belongs that no single statement raised: a deferred constraint, the record, COMMIT."""
    return Location(work.step.path) if work.step is not None else work.migration.location


def _arm(limits: Limits) -> str:
    return (
        f"SET LOCAL lock_timeout = {milliseconds(limits.lock_timeout)};"
        f" SET LOCAL statement_timeout = {milliseconds(limits.statement_timeout)};"
    )
