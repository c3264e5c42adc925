# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What the parts of the runner share: who works on what, within which limits, and how a failure is told."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import random
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    Location,
    LockBusy,
    SqlError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._journal import Journal
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Actor, Ledger
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Limits, Migration, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._remedies import remedy_for
from ansible_collections.surefoot.dbops.plugins.module_utils._script import (
    Script,
    StatementClass,
    classify,
    may_return_many_rows,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import guarded, render
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import Step, inspect_step
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import Throttle
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, milliseconds
from ansible_collections.surefoot.dbops.plugins.module_utils._watch import LockWatch, runner_lock_lost
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import DRAIN_PREFIX, Worker, open_session

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

BUSY_POLL = 0.25
WHOLE_STEP = -1  # the statement number of a record about a step as a whole

# lock_not_available, deadlock_detected, serialization_failure: the whole transaction may be tried again.
_RETRYABLE = frozenset({"55P03", "40P01", "40001"})
_OVER_BUDGET_ATTEMPTS = 3  # work that overran the budget will overrun it again; waiting and a cold cache may not
_FIRST_DELAY = 0.1
# An index build or a scan with parallel workers would take from others what the pace of the backfill leaves them.
_ONE_PROCESS = {"max_parallel_maintenance_workers": "0", "max_parallel_workers_per_gather": "0"}

T = t.TypeVar("T")


class Trace:
    """Looks on while a run works. This one sees nothing; a rehearsal's (``_rehearsal.py``) sees every lock."""

    def begin(self, connection: Connection) -> None:
        """The worker is about to begin a transaction of a migration in this session."""

    def end(self) -> None:
        """That transaction is over, one way or the other."""

    def statement(
        self, connection: Connection, migration: Migration, statement: Statement, kind: StatementClass
    ) -> t.ContextManager[None]:
        """Around one statement of a file inside a transaction; after it the session may be asked, in the same one."""
        return contextlib.nullcontext()

    def alone(
        self, connection: Connection, migration: Migration, statement: Statement, kind: StatementClass
    ) -> t.ContextManager[None]:
        """Around one statement that no transaction can hold; only another session can look on."""
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run is asked to do. Durations in seconds; None takes the plan's value."""

    state: str  # applied | rolled_back | baselined
    run_id: str
    actor: Actor
    ledger_schema: str
    to: str | None = None
    only: tuple[str, ...] = ()
    include_manual: tuple[str, ...] = ()
    variables: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    secrets: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict, repr=False)
    lock_timeout: float | None = None
    statement_timeout: float | None = None
    lock_budget: float = 0.5
    retry: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    on_busy: str = "wait"
    busy_timeout: float = 60.0
    on_orphan: str = "wait"
    on_drift: str = "fail"
    verify: bool = True
    allow_session_pooler: bool = False
    run_dir: str | None = None
    check_mode: bool = False
    show_text: bool = False
    trace: Trace = Trace()
    # Under the runner lock, before anything is written, with the migrations to do: raises to refuse them.
    before_apply: t.Callable[[Connection, t.Sequence[Migration]], None] | None = None
    # What a backfill leaves to others, where the plan says nothing.
    throttle: Throttle = Throttle()
    # Shows a line while the run lasts.
    say: t.Callable[[str], None] | None = None
    # Around the work, with a function that stops it for the reason given: sampling of limits.
    guard: t.Callable[[t.Callable[[SurefootError], None]], t.ContextManager[None]] | None = None


class OverBudget(Exception):
    """A lock that blocks others was held for longer than the lock budget."""


class OrphanBusy(Exception):
    """The worker lock is taken although the runner lock was free: a killed run's backend is still at work."""


@dataclasses.dataclass
class Attempts:
    """How often a migration's most stubborn step was tried, and the longest that a transaction of it held a lock that
    blocks others, in seconds."""

    number: int = 1
    held: float | None = None

    def tried(self, number: int) -> None:
        self.number = max(self.number, number)

    def held_for(self, seconds: float | None) -> None:
        if seconds is not None:
            self.held = round(max(seconds, self.held or 0.0), 4)


@dataclasses.dataclass(frozen=True)
class Context:
    """One run, from the moment its lock is held."""

    target: ConnectionOptions
    options: RunOptions
    action: str  # deploy | rollback | baseline
    ledger: Ledger
    worker: Worker
    watch: LockWatch
    journal: Journal
    variables: t.Mapping[str, t.Any]
    scripts: dict[str, Script]
    timeline: str

    def turn_sql(self) -> str:
        """Query for the worker: whether it got the worker lock, and whether this run is still the one that counts."""
        return self.ledger.turn_sql(self.worker.connection)

    def require_turn(self) -> None:
        """To be called under the session's worker lock, which the next run must get before it reads the ledger.

        :raises ConnectionFailed: another run has taken over, or the control connection is known to be lost
        """
        if not self.worker.fetch(self.turn_sql())[0][1] or self.watch.lost:
            raise runner_lock_lost()

    def steps_of(self, migration: Migration) -> tuple[Step, ...]:
        return migration.steps if self.action != "rollback" else tuple(migration.rollback or ())

    def limits(self, migration: Migration) -> Limits:
        """The plan's limits, overridden by the task's, and never a lock wait beyond the lock budget."""
        limits, options = migration.limits, self.options
        retry = dataclasses.replace(limits.retry, **options.retry) if options.retry else limits.retry
        lock_timeout = limits.lock_timeout if options.lock_timeout is None else options.lock_timeout
        statement_timeout = limits.statement_timeout if options.statement_timeout is None else options.statement_timeout
        return Limits(min(lock_timeout, options.lock_budget), statement_timeout, retry)

    def settings(self, migration: Migration, limits: Limits) -> dict[str, str]:
        """Startup settings of the worker session: limits that DISCARD ALL comes back to, and secrets as settings."""
        return {
            "lock_timeout": f"{milliseconds(limits.lock_timeout)}ms",
            "statement_timeout": f"{milliseconds(limits.statement_timeout)}ms",
            **(_ONE_PROCESS if migration.held_back else {}),
            **{setting: str(self.options.secrets[name]) for setting, name in migration.session_settings.items()},
        }

    def script(self, step: Step) -> Script:
        sql = t.cast(SqlStep, step)
        if sql.path not in self.scripts:
            self.scripts[sql.path] = inspect_step(sql)
        return self.scripts[sql.path]

    def open_control(self) -> Connection:
        return open_session(
            self.target,
            f"control {self.options.run_id}",
            {"lock_timeout": "5s", "statement_timeout": "60s"},
            allow_session_pooler=self.options.allow_session_pooler,
        )

    def render(self, statement: Statement, step: SqlStep) -> str:
        if not statement.variables:
            return statement.text
        return render(
            statement,
            variables=self.variables,
            secrets=self.options.secrets,
            connection=self.worker.connection,
            file=step.path,
        )

    def execute(self, migration: Migration, statement: Statement, kind: StatementClass, text: str) -> None:
        """Send one statement of a file; no row it returns is kept."""
        with self.options.trace.statement(self.worker.connection, migration, statement, kind):
            self._send(migration, statement, kind, text)

    def _send(self, migration: Migration, statement: Statement, kind: StatementClass, text: str) -> None:
        if statement.copy_data is not None:
            self.worker.copy(text, statement.copy_data)
        elif (
            self.options.secrets
            and (
                guard := guarded(
                    statement,
                    text,
                    secrets=self.options.secrets,
                    settings=migration.session_settings,
                    connection=self.worker.connection,
                )
            )
            != text
        ):
            self.worker.execute(guard)
        elif may_return_many_rows(statement, kind):
            self.worker.drain(text)
        else:
            self.worker.execute(text)

    def within_budget(self) -> float | None:
        """Seconds of the lock budget that are left; None while nothing that blocks others is held."""
        watch = self.watch
        left = watch.remaining()
        if watch.over_budget or (left is not None and left <= 0):
            raise OverBudget()
        return left

    def failed(
        self, exc: t.Any, location: Location, statement: Statement | None, remedy: str | None = None
    ) -> SurefootError:
        """The server's error with the place in the file it speaks of, and what to do."""
        if self.worker.lost:
            return ConnectionFailed(
                f"the connection was lost: {' '.join(str(sql_error(exc).message).split())}",
                remedy="What was open is rolled back; run again to go on where it stopped.",
                location=location,
            )
        place = location
        offset = getattr(getattr(exc, "diag", None), "statement_position", None)
        if statement is not None and offset and not statement.variables:
            sent_before = len(DRAIN_PREFIX) if may_return_many_rows(statement, classify(statement)) else 0
            place = statement.location(int(offset) - 1 - sent_before)
        primary = getattr(exc.diag, "message_primary", None) or ""
        hint = getattr(exc.diag, "message_hint", None)
        return sql_error(
            exc,
            location=place,
            statement=statement.text if statement is not None else None,
            # Ours know what a migration can do about it; the server's hints speak to whoever types SQL.
            remedy=remedy or remedy_for(exc.pgcode, primary) or hint,
        )

    def with_retries(self, migration: Migration, limits: Limits, attempt: t.Callable[[int], T]) -> T:
        policy = limits.retry
        deadline = time.monotonic() + policy.deadline
        over_budget = 0
        number = 0
        while True:
            number += 1
            try:
                return attempt(number)
            except (SqlError, OverBudget, OrphanBusy) as exc:
                if isinstance(exc, SqlError) and exc.sqlstate not in _RETRYABLE:
                    raise
                over_budget += isinstance(exc, OverBudget)
                delay = min(policy.max_delay, _FIRST_DELAY * 2 ** min(number - 1, 20)) * random.uniform(0.5, 1.0)
                spent = number >= policy.attempts or time.monotonic() + delay > deadline
                self._note_retry(migration, number, exc, None if spent else delay)
                if spent or over_budget >= _OVER_BUDGET_ATTEMPTS:
                    raise self._gave_up(migration, number, exc) from None
                self.worker.sleep(delay)

    def _note_retry(self, migration: Migration, number: int, exc: Exception, delay: float | None) -> None:
        watch = self.watch
        self.journal.retries.append(
            {
                "migration": migration.id,
                "attempt": number,
                "sqlstate": getattr(exc, "sqlstate", None),
                "reason": getattr(exc, "condition", None)
                or ("lock_budget" if isinstance(exc, OverBudget) else "orphan"),
                "delay_seconds": round(delay, 3) if delay is not None else None,
                "blockers": [blocker.to_dict() for blocker in watch.blockers],
                "held": dict(watch.held) if isinstance(exc, OverBudget) else {},
            }
        )

    def _gave_up(self, migration: Migration, number: int, exc: Exception) -> SurefootError:
        watch = self.watch
        if isinstance(exc, OrphanBusy):
            return LockBusy(
                f"{migration.id}: the session of a killed run is still at work",
                remedy="Wait for it, or set on_orphan: terminate.",
                location=migration.location,
            )
        if isinstance(exc, OverBudget):
            relations = ", ".join(f"{name} ({mode})" for name, mode in sorted(watch.held.items()))
            return SqlError(
                f"{migration.id} held {relations} for more than the lock budget of"
                f" {human_duration(self.options.lock_budget)}; rolled back after {number} attempts",
                sqlstate="55P03",
                location=migration.location,
                remedy="Make the change online (CREATE INDEX CONCURRENTLY, NOT VALID and VALIDATE, backfill), split it,"
                " or raise lock_budget if clients may be blocked that long.",
                code="lock_budget",
                details={"held": dict(watch.held), "attempts": number},
            )
        error = t.cast(SqlError, exc)
        blockers = watch.blockers
        if blockers:
            error.message += "; blocked by " + ", ".join(str(blocker) for blocker in blockers)
            error.details["blockers"] = [blocker.to_dict() for blocker in blockers]
        error.message += f"; gave up after {number} attempts"
        return error


def timeline_of(connection: Connection) -> str:
    """The WAL timeline of the server: another one after a failover means that commits may have been lost."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)")
        return str((cursor.fetchone() or ("",))[0])


def now() -> datetime.datetime:
    """The current time, with its zone."""
    return datetime.datetime.now(datetime.timezone.utc)
