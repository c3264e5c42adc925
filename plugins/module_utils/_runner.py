# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Applies and rolls back migrations: exactly once or not at all, and able to say which.

One control connection holds the runner lock, reads the ledger and watches; one worker connection does the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gzip
import hashlib
import io
import os
import random
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils import _nontransactional as nontransactional
from ansible_collections.surefoot.dbops.plugins.module_utils._backfill import BackfillSql, prepare_backfill
from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import entry_hashes
from ansible_collections.surefoot.dbops.plugins.module_utils._checks import (
    Check,
    CheckResult,
    due,
    run_checks,
    validate_checks,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    redact_sql,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._drift import (
    Drift,
    catalog_drift,
    drift_evidence,
    file_drift,
    no_other_run,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    DriftError,
    EnvironmentProblem,
    LedgerError,
    Location,
    LockBusy,
    OutcomeUnknown,
    PlanError,
    SqlError,
    SqlTextError,
    SurefootError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, append_lines, record, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import (
    TEXT_LIMIT,
    Actor,
    Ledger,
    Progress,
    State,
    Text,
    executed_text,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import BackfillStep, Limits, Migration, Plan, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._remedies import remedy_for
from ansible_collections.surefoot.dbops.plugins.module_utils._script import (
    Script,
    StatementClass,
    concurrent_target,
    executable,
    inspect,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import load as load_secrets
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import render, secret_names
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import (
    Selection,
    Step,
    raw_digest,
    read_step,
    select_deploy,
    select_rollback,
    token_digest,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement, statements
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, milliseconds
from ansible_collections.surefoot.dbops.plugins.module_utils._watch import LockWatch
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import CommitLost, Worker, open_session

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# lock_not_available, deadlock_detected, serialization_failure: the whole transaction may be tried again.
_RETRYABLE = frozenset({"55P03", "40P01", "40001"})
_OVER_BUDGET_ATTEMPTS = 3  # work that overran the budget will overrun it again; waiting and a cold cache may not
_FIRST_DELAY = 0.1
_BUSY_POLL = 0.25
_STATEMENTS_SHOWN = 100
_SESSION_SETUP = ("SET", "RESET", "SET SESSION CHARACTERISTICS")
_TAKES_AWAY = ("drop_index", "detach_partition")
_WHOLE_STEP = -1  # the statement number of a record about a step as a whole

T = t.TypeVar("T")


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


@dataclasses.dataclass(frozen=True)
class _Work:
    """One SQL step of one migration, about to run in a transaction; ``step`` is None when only the ledger row is
    left."""

    migration: Migration
    number: int
    step: SqlStep | None
    script: Script | None
    text: Text
    final: bool
    clear: bool


class _OverBudget(Exception):
    """A lock that blocks others was held for longer than the lock budget."""


class _OrphanBusy(Exception):
    """The worker lock is taken although the runner lock was free: a killed run's backend is still at work."""


class Runner:
    """One run over one database."""

    def __init__(self, plan: Plan, connection: ConnectionOptions, options: RunOptions) -> None:
        self._plan = plan
        self._target = connection
        self._options = options
        self._action = {"applied": "deploy", "rolled_back": "rollback", "baselined": "baseline"}[options.state]
        self._ledger = Ledger(options.ledger_schema, plan.name, options.run_id)
        self._worker = Worker(connection, options.run_id, allow_session_pooler=options.allow_session_pooler)
        # What a file needs and does not get is said when that file is validated: a run may not need it.
        self._variables, _secrets = plan.values(options.variables, options.secrets, complete=False)
        self._scripts: dict[str, Script] = {}
        self._selection = Selection((), (), ())
        self._done: list[dict[str, t.Any]] = []
        self._retries: list[dict[str, t.Any]] = []
        self._statements: list[dict[str, t.Any]] = []
        self._checks: list[CheckResult] = []
        self._warnings: list[str] = []
        self._drift: list[Drift] = []
        self._watch: LockWatch | None = None
        self._xid = ""
        self._touched = False  # something of this run may have been committed

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, t.Any]:
        """Do it; the results are the module's return values, and ``notes`` what did not stop the run but should be
        known.

        :raises SurefootError: with the same results attached, as far as it came
        """
        try:
            run_interruptible(self._run, self._worker.request_stop)
        except SurefootError as exc:
            exc.results = self._results()
            raise
        finally:
            self._worker.close()
        return self._results()

    def _run(self) -> None:
        with contextlib.closing(self._open_control()) as control:
            state = self._ledger.read(control)
            self._select(state)
            self._check_file_drift(state)
            if not self._selection.todo:
                self._check_catalog_drift_unless_busy(control, state)
                return
            self._validate()
            if self._options.check_mode:
                self._check_catalog_drift_unless_busy(control, state)
                return
            with self._locked(control):
                state = self._ledger.read(control)  # somebody may have been faster
                self._select(state)
                if not self._selection.todo:
                    return
                self._check_catalog_drift(control, state)
                if not state.exists:
                    self._ledger.create(control)
                self._ledger.start_run(control, self._action, self._options.actor)
                self._carry_out(control)

    def _carry_out(self, control: Connection) -> None:
        outcome = "failed"
        try:
            with LockWatch(control, self._options.lock_budget, self._worker.cancel_statement) as self._watch:
                if self._action == "baseline":
                    self._baseline()
                elif self._action == "deploy" and self._plan.transaction == "together":
                    self._apply_together(control)
                else:
                    for migration in self._selection.todo:
                        self._migrate(control, migration)
            outcome = "succeeded"
        finally:
            self._finish_run(control, outcome)

    def _finish_run(self, control: Connection, outcome: str) -> None:
        # A run that failed may have changed the catalog too: finished steps, an INVALID index.
        try:
            if not control.closed:
                catalog = entry_hashes(control, exclude_schemas=(self._ledger.schema,)) if self._touched else None
                self._ledger.finish_run(control, outcome, catalog)
                return
        except (psycopg2.Error, SurefootError):
            pass
        self._warn_once(
            "how the run ended could not be recorded, as the control connection was lost; what was applied is recorded"
        )

    def _results(self) -> dict[str, t.Any]:
        done = [item["id"] for item in self._done]
        pending = [migration.id for migration in self._selection.todo if migration.id not in done]
        slowest = sorted(self._statements, key=lambda item: -item["seconds"])[:_STATEMENTS_SHOWN]
        results: dict[str, t.Any] = {
            "changed": bool(done) or (self._options.check_mode and bool(pending)),
            "run_id": self._options.run_id,
            "applied": done if self._action != "rollback" else [],
            "rolled_back": done if self._action == "rollback" else [],
            "pending": pending,
            "manual": [{"id": m.id, "reason": m.manual} for m in self._selection.manual],
            "migrations": self._done,
            "statements": sorted(slowest, key=lambda item: item["number"]),
            "statement_count": len(self._statements),
            "retries": self._retries,
            "checks": [result.to_dict() for result in self._checks],
            "drift": [item.to_dict() for item in self._drift],
            "notes": list(dict.fromkeys(self._warnings)),
            "evidence": record(None if self._options.check_mode else self._options.run_dir, self._evidence()),
        }
        if self._options.show_text:
            results["diff"] = self._diff()
        if self._options.run_dir and self._statements:
            append_lines(os.path.join(self._options.run_dir, "statements.jsonl"), self._statements)
        return results

    def _evidence(self) -> list[Evidence]:
        """What this run measured, for the gate and the report."""
        done = [item["id"] for item in self._done]
        required = [migration.id for migration in self._selection.todo]
        records = [drift_evidence(self._drift)]
        if not self._options.check_mode:
            records.append(
                Evidence(
                    criterion=f"migration.{'rolled_back' if self._action == 'rollback' else 'applied'}",
                    phase="rollback" if self._action == "rollback" else "apply",
                    verdict=verdict(done == required),
                    measured=done,
                    required=required,
                    source="ledger",
                    details={"retries": len(self._retries), "statements": len(self._statements)},
                )
            )
        held = [item["lock_held_seconds"] for item in self._done if item.get("lock_held_seconds") is not None]
        if held:
            records.append(
                Evidence(
                    criterion="migration.lock_budget",
                    phase="apply",
                    verdict=verdict(max(held) <= self._options.lock_budget),
                    measured=round(max(held), 4),
                    required=f"at most {self._options.lock_budget} s",
                    source="pg_locks",
                )
            )
        return records + [result.evidence() for result in self._checks]

    def _diff(self) -> dict[str, str]:
        parts = []
        for migration in self._selection.todo:
            for step in self._steps_of(migration):
                text = read_step(step)[:TEXT_LIMIT].decode("utf-8", errors="replace")
                name = step.file if isinstance(step, SqlStep) else f"backfill {step.name}"
                parts.append(f"-- {migration.id}: {name}\n{redact_sql(text).rstrip()}\n")
        return {
            "before_header": "ledger",
            "after_header": f"{self._action} {len(self._selection.todo)} migration(s)",
            "before": "",
            "after": "".join(parts),
        }

    # --- what to do --------------------------------------------------------------------------------------------------

    def _select(self, state: State) -> None:
        options = self._options
        if self._action == "rollback":
            self._selection = select_rollback(self._plan, state, to=options.to, only=options.only)
        else:
            self._selection = select_deploy(
                self._plan, state, to=options.to, only=options.only, include_manual=options.include_manual
            )

    def _steps_of(self, migration: Migration) -> tuple[Step, ...]:
        return migration.steps if self._action != "rollback" else tuple(migration.rollback or ())

    def _validate(self) -> None:
        """Every file of every pending migration, before anything is written: all or none is known to be runnable."""
        for migration in self._selection.todo:
            for setting, name in migration.session_settings.items():
                if not self._options.secrets.get(name):
                    raise PlanError(
                        f"{migration.id} needs the secret variable {name} (for the setting {setting})",
                        remedy=f"Give it: secret_variables: {{{name}: ...}}.",
                        location=migration.location,
                    )
            if self._action == "baseline":
                continue
            if self._action == "deploy" and migration.verify:
                validate_checks(migration.verify, set(self._variables) | set(self._options.secrets))
            for step in self._steps_of(migration):
                if isinstance(step, SqlStep):
                    script = inspect(step.path, transaction=step.transaction)
                    self._scripts[step.path] = script
                    self._warnings.extend(script.warnings)
                    self._require_variables(step, script)

    def _require_variables(self, step: SqlStep, script: Script) -> None:
        known = set(self._variables) | set(self._options.secrets)
        missing = sorted(script.variables - known)
        if missing:
            kind = "secret_variables" if missing[0] in self._plan.secret_variables else "variables"
            raise PlanError(
                f"{step.file} uses the variable {missing[0]}, which has no value",
                remedy=f"Give it in {kind}; if it is no variable, put a space after the colon.",
                location=Location(step.path),
            )

    def _check_file_drift(self, state: State) -> None:
        concerned = {migration.id for migration in self._selection.todo}
        found = file_drift(self._plan, state)
        if self._action == "rollback":  # what stays applied is not touched, whatever its file says
            found = [item for item in found if item.migration_id in concerned]
        self._drifted(
            found, "Restore the file as it was applied (the ledger keeps the executed text), or set on_drift: warn."
        )

    def _check_catalog_drift(self, control: Connection, state: State) -> None:
        if state.cut_off:
            self._warn_once(
                f"run {state.cut_off} was cut off; the catalog is not compared with what the run before it left, as "
                "its own"
                " changes would look like drift"
            )
        found = catalog_drift(control, state, self._ledger.schema, self._plan.drift_ignore)
        self._drifted(
            [found] if found else [],
            "Put it back or write it as a migration; name what others may change in drift_ignore; or set on_drift: "
            "warn to"
            " accept it.",
        )

    def _check_catalog_drift_unless_busy(self, control: Connection, state: State) -> None:
        if state.mark is None:
            return
        with no_other_run(control, self._ledger) as quiet:
            if quiet:
                self._check_catalog_drift(control, state)
            else:
                self._warnings.append("catalog drift was not looked at: another run is in progress")

    def _drifted(self, found: t.Sequence[Drift], remedy: str) -> None:
        self._drift.extend(found)
        stops = [item for item in found if item.matters and self._options.on_drift == "fail"]
        if stops:
            more = f" (and {len(stops) - 1} more)" if len(stops) > 1 else ""
            raise DriftError(stops[0].message + more, remedy=remedy)
        self._warnings.extend(item.message for item in found)

    # --- locks -------------------------------------------------------------------------------------------------------

    def _open_control(self) -> Connection:
        return open_session(
            self._target,
            f"control {self._options.run_id}",
            {"lock_timeout": "5s", "statement_timeout": "60s"},
            allow_session_pooler=self._options.allow_session_pooler,
        )

    @contextlib.contextmanager
    def _locked(self, control: Connection) -> t.Iterator[None]:
        """The runner lock, polled: the blocking form holds a snapshot, which deadlocks with CREATE INDEX
        CONCURRENTLY."""
        self._obtain(control, self._ledger.runner_key, "another run")
        try:
            self._await_orphan(control)
            yield
        finally:
            if not control.closed:
                with contextlib.suppress(psycopg2.Error), control.cursor() as cursor:
                    cursor.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (self._ledger.runner_key,))

    def _obtain(self, control: Connection, key: int, what: str, remedy: str | None = None) -> None:
        deadline = time.monotonic() + (self._options.busy_timeout if self._options.on_busy == "wait" else 0)
        while True:
            with control.cursor() as cursor:
                cursor.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (key,))
                if (cursor.fetchone() or (False,))[0]:
                    return
            if time.monotonic() >= deadline:
                holder = _describe_holders(_lock_holders(control, key))
                raise LockBusy(
                    f"{what} holds the lock of ledger {self._ledger.schema}: {holder}",
                    remedy=remedy or "Wait for it to end, or raise busy_timeout.",
                )
            self._worker.sleep(_BUSY_POLL)

    def _await_orphan(self, control: Connection) -> None:
        """The worker lock must be free: taken under our runner lock, it belongs to the backend of a run that was
        killed."""
        holders = _lock_holders(control, self._ledger.worker_key)
        if holders and self._options.on_orphan == "terminate":
            for holder in holders:
                self._warnings.append(f"ended the session of a killed run: {_describe_holders([holder])}")
                with control.cursor() as cursor:
                    cursor.execute("SELECT pg_catalog.pg_terminate_backend(%s)", (holder["pid"],))
        pids = ", ".join(str(holder["pid"]) for holder in holders)
        self._obtain(
            control,
            self._ledger.worker_key,
            "the session of a killed run is still at work and",
            f"Wait for it, set on_orphan: terminate, or run SELECT pg_terminate_backend({pids}).",
        )
        with control.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (self._ledger.worker_key,))

    # --- one migration -----------------------------------------------------------------------------------------------

    def _limits(self, migration: Migration) -> Limits:
        """The plan's limits, overridden by the task's, and never a lock wait beyond the lock budget."""
        limits, options = migration.limits, self._options
        retry = dataclasses.replace(limits.retry, **options.retry) if options.retry else limits.retry
        lock_timeout = limits.lock_timeout if options.lock_timeout is None else options.lock_timeout
        statement_timeout = limits.statement_timeout if options.statement_timeout is None else options.statement_timeout
        return Limits(min(lock_timeout, options.lock_budget), statement_timeout, retry)

    def _settings(self, migration: Migration, limits: Limits) -> dict[str, str]:
        """Startup settings of the worker session: limits that DISCARD ALL comes back to, and secrets as settings."""
        return {
            "lock_timeout": f"{milliseconds(limits.lock_timeout)}ms",
            "statement_timeout": f"{milliseconds(limits.statement_timeout)}ms",
            **{setting: str(self._options.secrets[name]) for setting, name in migration.session_settings.items()},
        }

    def _migrate(self, control: Connection, migration: Migration) -> None:
        """All steps of one migration, from where an earlier run stopped; then its checks."""
        steps = self._steps_of(migration)
        limits = self._limits(migration)
        started = _now()
        clock = time.monotonic()
        simple = len(steps) == 1 and isinstance(steps[0], SqlStep) and steps[0].transaction
        counters = {"tries": 1, "held": None, "first_statement": len(self._statements)}
        text: Text | None = None
        try:
            self._heartbeat(control)
            text = self._text(steps)
            if simple:
                # A rollback also forgets how far a half-applied deployment had come.
                clear = self._action == "rollback"
                work = _Work(migration, 0, t.cast(SqlStep, steps[0]), self._script(steps[0]), text, True, clear)
                self._transaction([work], limits, counters)
            else:
                self._steps(control, migration, steps, text, limits, counters)
        except BaseException as exc:
            self._record_failure(control, migration, text, started, int(counters["tries"] or 1), exc)
            raise
        self._done.append(
            {
                "id": migration.id,
                "seconds": round(time.monotonic() - clock, 4),
                "statements": len(self._statements) - int(counters["first_statement"] or 0),
                "attempts": counters["tries"],
                "lock_held_seconds": counters["held"],
            }
        )
        if self._action == "deploy":
            self._check_after_commit(migration, limits)

    def _steps(
        self,
        control: Connection,
        migration: Migration,
        steps: tuple[Step, ...],
        text: Text,
        limits: Limits,
        counters: dict[str, t.Any],
    ) -> None:
        progress = self._ledger.progress(control, migration.id, self._action)
        last = len(steps) - 1
        recorded = False
        for number, step in enumerate(steps):
            digest = hashlib.sha256(read_step(step)).hexdigest()
            self._same_step(migration, step, digest, progress.get((number, _WHOLE_STEP)))
            if (number, _WHOLE_STEP) in progress and progress[number, _WHOLE_STEP].state == "done":
                continue
            if isinstance(step, BackfillStep):
                self._backfill(migration, number, step, digest, progress, limits, counters)
            elif not step.transaction:
                self._nontransactional(migration, number, step, digest, progress, limits)
            else:
                final = number == last
                self._transaction(
                    [_Work(migration, number, step, self._script(step), text, final, True)], limits, counters
                )
                recorded = final
        if not recorded:
            self._transaction([_Work(migration, last + 1, None, None, text, True, True)], limits, counters)

    def _same_step(self, migration: Migration, step: Step, digest: str, earlier: Progress | None) -> None:
        if earlier is not None and earlier.text_sha256 != digest:
            raise DriftError(
                f"{migration.id}: {step.name} was changed after a part of it was applied",
                remedy="Restore the text, finish, and write the change as a new migration; or roll back.",
                location=step.location,
            )

    def _script(self, step: Step) -> Script:
        if step.path not in self._scripts:  # type: ignore[union-attr]
            sql = t.cast(SqlStep, step)
            self._scripts[sql.path] = inspect(sql.path, transaction=sql.transaction)
        return self._scripts[t.cast(SqlStep, step).path]

    def _text(self, steps: tuple[Step, ...]) -> Text:
        if len(steps) == 1 and isinstance(steps[0], SqlStep):
            script = self._script(steps[0])
            raw, token = script.raw_sha256, script.token_sha256
        else:
            raw, token = raw_digest(steps), token_digest(steps)
        sizes = [os.path.getsize(step.path) if isinstance(step, SqlStep) else 0 for step in steps]
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
                if not isinstance(step, SqlStep):
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

    def _heartbeat(self, control: Connection) -> None:
        """The runner lock lives on this connection; without it nothing may begin."""
        self._worker.check_stop()
        try:
            with control.cursor() as cursor:
                cursor.execute("SELECT 1")
        except psycopg2.Error:
            raise ConnectionFailed(
                "the control connection, and with it the runner lock, was lost",
                remedy="Run again: what was open is rolled back, what was applied stays applied.",
            ) from None

    def _record_failure(
        self,
        control: Connection,
        migration: Migration,
        text: Text | None,
        started: datetime.datetime,
        tries: int,
        exc: BaseException,
    ) -> None:
        if control.closed:
            return
        error = exc.to_dict() if isinstance(exc, SurefootError) else {"code": "internal", "message": type(exc).__name__}
        outcome = "unknown" if isinstance(exc, OutcomeUnknown) else "failed"
        # Best effort: the reason of the failure matters more than its record.
        with contextlib.suppress(psycopg2.Error):
            self._ledger.record_failure(control, migration.id, self._action, text, started, tries, outcome, error)

    # --- in a transaction --------------------------------------------------------------------------------------------

    def _apply_together(self, control: Connection) -> None:
        """All pending migrations in one transaction: all of them, or none."""
        works: list[_Work] = []
        for migration in self._selection.todo:
            steps = self._steps_of(migration)
            text = self._text(steps)
            for number, step in enumerate(steps):
                works.append(
                    _Work(
                        migration,
                        number,
                        t.cast(SqlStep, step),
                        self._script(step),
                        text,
                        number == len(steps) - 1,
                        False,
                    )
                )
        limits = self._limits(self._selection.todo[0])
        counters: dict[str, t.Any] = {"tries": 1, "held": None}
        started, clock = _now(), time.monotonic()
        try:
            self._transaction(works, limits, counters)
        except BaseException as exc:
            self._record_failure(control, works[0].migration, works[0].text, started, counters["tries"], exc)
            raise
        seconds = round(time.monotonic() - clock, 4)
        for migration in self._selection.todo:
            self._done.append(
                {
                    "id": migration.id,
                    "seconds": seconds,
                    "statements": sum(1 for item in self._statements if item["migration"] == migration.id),
                    "attempts": counters["tries"],
                    "lock_held_seconds": counters["held"],
                }
            )
        for migration in self._selection.todo:
            self._check_after_commit(migration, limits)

    def _transaction(self, works: t.Sequence[_Work], limits: Limits, counters: dict[str, t.Any]) -> None:
        """Attempts until it is done, the attempts or the deadline run out, or an error no retry can mend."""
        mark = len(self._statements)

        def attempt(number: int) -> None:
            del self._statements[mark:]
            counters["tries"] = number
            counters["held"] = self._attempt(works, limits, number)

        self._with_retries(works[0].migration, limits, attempt)

    def _with_retries(self, migration: Migration, limits: Limits, attempt: t.Callable[[int], T]) -> T:
        policy = limits.retry
        deadline = time.monotonic() + policy.deadline
        over_budget = 0
        number = 0
        while True:
            number += 1
            try:
                return attempt(number)
            except (SqlError, _OverBudget, _OrphanBusy) as exc:
                if isinstance(exc, SqlError) and exc.sqlstate not in _RETRYABLE:
                    raise
                over_budget += isinstance(exc, _OverBudget)
                delay = min(policy.max_delay, _FIRST_DELAY * 2 ** min(number - 1, 20)) * random.uniform(0.5, 1.0)
                spent = number >= policy.attempts or time.monotonic() + delay > deadline
                self._note_retry(migration, number, exc, None if spent else delay)
                if spent or over_budget >= _OVER_BUDGET_ATTEMPTS:
                    raise self._gave_up(migration, number, exc) from None
                self._worker.sleep(delay)

    def _note_retry(self, migration: Migration, number: int, exc: Exception, delay: float | None) -> None:
        watch = self._watch
        self._retries.append(
            {
                "migration": migration.id,
                "attempt": number,
                "sqlstate": getattr(exc, "sqlstate", None),
                "reason": getattr(exc, "condition", None)
                or ("lock_budget" if isinstance(exc, _OverBudget) else "orphan"),
                "delay_seconds": round(delay, 3) if delay is not None else None,
                "blockers": [blocker.to_dict() for blocker in watch.blockers] if watch else [],
                "held": dict(watch.held) if watch and isinstance(exc, _OverBudget) else {},
            }
        )

    def _gave_up(self, migration: Migration, number: int, exc: Exception) -> SurefootError:
        watch = self._watch
        if isinstance(exc, _OrphanBusy):
            return LockBusy(
                f"{migration.id}: the session of a killed run is still at work",
                remedy="Wait for it, or set on_orphan: terminate.",
                location=migration.location,
            )
        if isinstance(exc, _OverBudget):
            relations = ", ".join(f"{name} ({mode})" for name, mode in sorted(watch.held.items())) if watch else ""
            return SqlError(
                f"{migration.id} held {relations} for more than the lock budget of"
                f" {human_duration(self._options.lock_budget)}; rolled back after {number} attempts",
                sqlstate="55P03",
                location=migration.location,
                remedy="Make the change online (CREATE INDEX CONCURRENTLY, NOT VALID and VALIDATE, backfill), split it,"
                " or raise lock_budget if clients may be blocked that long.",
                code="lock_budget",
                details={"held": dict(watch.held) if watch else {}, "attempts": number},
            )
        error = t.cast(SqlError, exc)
        blockers = watch.blockers if watch else []
        if blockers:
            error.message += "; blocked by " + ", ".join(str(blocker) for blocker in blockers)
            error.details["blockers"] = [blocker.to_dict() for blocker in blockers]
        error.message += f"; gave up after {number} attempts"
        return error

    def _attempt(self, works: t.Sequence[_Work], limits: Limits, number: int) -> float | None:
        """One transaction, from BEGIN to COMMIT; returns the seconds a blocking lock was held."""
        worker, watch = self._worker, t.cast(LockWatch, self._watch)
        settings: dict[str, str] = {}
        for work in works:
            settings.update(self._settings(work.migration, limits))
        started = _now()
        worker.ready(settings)
        watch.begin(worker.pid, enforce=True)
        current = works[0]
        try:
            self._begin(works, limits)
            for position, work in enumerate(works):
                current = work
                if position:  # the next migration of the same transaction starts with a session as at the start
                    worker.execute(f"SET SESSION AUTHORIZATION DEFAULT; RESET ALL; {_arm(limits)}")
                if work.step is not None and work.script is not None:
                    self._run_script(work, limits)
                if work.final:
                    self._finish(work, limits, started, number)
                else:
                    self._finish_step(work)
            self._within_budget()
            self._commit(works[-1], self._xid)
        except psycopg2.Error as exc:
            if watch.over_budget:
                raise _OverBudget() from None
            raise self._failed(exc, _end_of(current), None) from None
        finally:
            with contextlib.suppress(psycopg2.Error):
                worker.rollback()
            held = watch.end()
            if any(work.script is not None and work.script.needs_fresh_connection for work in works) or any(
                work.migration.session_settings for work in works
            ):
                worker.taint()
        return round(held, 4) if held is not None else None

    def _begin(self, works: t.Sequence[_Work], limits: Limits) -> None:
        worker = self._worker
        modes = works[0].script.begin_modes if len(works) == 1 and works[0].script is not None else None
        got = worker.fetch(
            f"BEGIN {modes or ''}; {_arm(limits)} SELECT "
            f"pg_catalog.pg_try_advisory_xact_lock({self._ledger.worker_key})"
        )
        if not got[0][0]:
            raise _OrphanBusy()
        names: set[str] = set()
        for work in works:
            if work.script is not None:
                names |= set(work.script.variables) & set(self._options.secrets)
        if names:
            load_secrets(worker.connection, names, self._options.secrets)
        tables = sorted({table for work in works for table in work.migration.lock_tables if work.number == 0})
        if tables and self._action == "deploy":
            with t.cast(LockWatch, self._watch).statement(may_block=True):
                worker.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")

    def _run_script(self, work: _Work, limits: Limits) -> None:
        step, script = t.cast(SqlStep, work.step), t.cast(Script, work.script)
        watch, worker = t.cast(LockWatch, self._watch), self._worker
        for statement, kind in executable(step.path, script):
            text = self._render(statement, step)
            left = self._within_budget()
            if left is not None:
                worker.execute(f"SET LOCAL statement_timeout = {milliseconds(min(left, limits.statement_timeout))}")
            clock = time.monotonic()
            try:
                with watch.statement(may_block=kind.may_block):
                    if statement.copy_data is not None:
                        worker.copy(text, statement.copy_data)
                    else:
                        worker.execute(text)
            except psycopg2.Error as exc:
                if watch.over_budget or (
                    exc.pgcode == "57014" and left is not None and left < limits.statement_timeout
                ):
                    raise _OverBudget() from None
                raise self._failed(exc, statement.location(), statement) from None
            if not worker.in_transaction:
                raise SqlTextError(
                    "the statement ended the transaction",
                    remedy="Take the COMMIT or ROLLBACK out, or set transaction: false.",
                    location=statement.location(),
                )
            self._note_statement(work.migration, step, statement, kind, time.monotonic() - clock)
            if kind.disarms:
                self._rearm(kind, limits, statement)

    def _within_budget(self) -> float | None:
        """Seconds of the lock budget that are left; None while nothing that blocks others is held."""
        watch = t.cast(LockWatch, self._watch)
        left = watch.remaining()
        if watch.over_budget or (left is not None and left <= 0):
            raise _OverBudget()
        return left

    def _rearm(self, kind: StatementClass, limits: Limits, statement: Statement) -> None:
        """A file that switches a limit off, as every pg_dump preamble does, gets it back; a stricter one of its own
        stays."""
        ours = {"lock_timeout": limits.lock_timeout, "statement_timeout": limits.statement_timeout}
        for name, limit in ours.items():
            if name not in kind.disarms:
                continue
            value = self._worker.fetch(
                f"SELECT extract(epoch FROM pg_catalog.current_setting('{name}')::pg_catalog.interval)::float8"
            )[0][0]
            if value == 0 or value > limit:
                self._worker.execute(f"SET LOCAL {name} = {milliseconds(limit)}")
                self._warn_once(
                    f"{statement.location()}: sets {name} to {human_duration(value) if value else 'no limit'};"
                    f" {human_duration(limit)} stays in force"
                )

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.append(message)

    def _finish(self, work: _Work, limits: Limits, started: datetime.datetime, number: int) -> None:
        """What belongs to the same transaction as the change: constraints, checks, and the ledger row."""
        worker = self._worker
        deploys = self._action == "deploy"
        if deploys and self._options.verify and work.migration.verify:
            checks = due(work.migration.verify, "before_commit")
            if checks:
                worker.execute("SET CONSTRAINTS ALL IMMEDIATE")
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

    def _finish_step(self, work: _Work) -> None:
        """The same for a step that is not the migration's last: its record instead of the ledger row."""
        digest = hashlib.sha256(read_step(t.cast(SqlStep, work.step))).hexdigest()
        connection = self._worker.connection
        parts = self._before_record(work)
        parts.append(
            self._ledger.progress_sql(
                connection, work.migration.id, self._action, work.number, _WHOLE_STEP, "done", digest
            )
        )
        parts.append("SELECT pg_catalog.pg_current_xact_id()::text")
        self._xid = str(self._worker.fetch("; ".join(parts))[0][0])

    def _before_record(self, work: _Work) -> list[str]:
        parts = ["SET CONSTRAINTS ALL IMMEDIATE"]
        if work.script is not None and work.script.needs_fresh_connection:
            parts.append("RESET SESSION AUTHORIZATION; RESET ROLE")
        parts.append("SET LOCAL synchronous_commit = on")
        return parts

    def _commit(self, work: _Work, xid: str) -> None:
        self._touched = True
        try:
            self._worker.commit()
        except CommitLost:
            self._resolve(work, xid)

    def _resolve(self, work: _Work, xid: str) -> None:
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
                with contextlib.closing(self._open_control()) as connection:
                    applied = self._ledger.is_applied(connection, work.migration.id)
                    if applied != (self._action == "rollback") and work.final:
                        self._warnings.append(
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
            time.sleep(_BUSY_POLL)

    def _require(self, results: t.Sequence[CheckResult], migration: Migration, consequence: str) -> None:
        self._checks.extend(results)
        failed = [result for result in results if not result.passed]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise VerificationFailed(
                f"{migration.id}: check failed: {failed[0].summary}{more}; {consequence}",
                location=failed[0].check.location,
                details={"failed_checks": [result.check.name for result in failed]},
            )

    def _check_after_commit(self, migration: Migration, limits: Limits) -> None:
        if not migration.verify or not self._options.verify:
            return
        checks = due(migration.verify, "after_commit")
        if not checks:
            return
        self._worker.ready(self._settings(migration, limits))
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
            variables=self._variables,
            secret_variables=self._options.secrets,
            phase="verify",
            inside_transaction=inside,
            migration=migration.id,
            cancelled=lambda: self._worker.stopping,
            # Inside the transaction the checks run while its locks are held.
            time_left=self._time_left if inside else None,
        )

    def _time_left(self) -> float:
        left = t.cast(LockWatch, self._watch).remaining()
        return left if left is not None else float("inf")

    # --- outside a transaction ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _worker_lock(self, migration: Migration, limits: Limits) -> t.Iterator[None]:
        """The worker lock for the session, as no transaction spans the work."""
        worker = self._worker
        worker.ready(self._settings(migration, limits))
        if not worker.fetch(f"SELECT pg_catalog.pg_try_advisory_lock({self._ledger.worker_key})")[0][0]:
            raise LockBusy(
                "the session of a killed run is still at work", remedy="Wait for it, or set on_orphan: terminate."
            )
        try:
            yield
        finally:
            worker.close()  # frees the lock, whatever state the session is in

    def _nontransactional(
        self,
        migration: Migration,
        number: int,
        step: SqlStep,
        digest: str,
        progress: t.Mapping[tuple[int, int], Progress],
        limits: Limits,
    ) -> None:
        """Statement by statement: an intent before, a result after, and the catalog asked what became of an intent."""
        with self._worker_lock(migration, limits):
            self._mark(migration, number, _WHOLE_STEP, "intended", digest)
            self._touched = True
            for statement, kind in executable(step.path, self._script(step)):
                earlier = progress.get((number, statement.index))
                text = self._render(statement, step)
                fingerprint = hashlib.sha256(statement.text.encode()).hexdigest()
                # What sets up the session is needed again after a resume; only it is: its effect died with the session.
                if earlier is not None and earlier.state == "done" and kind.tag not in _SESSION_SETUP:
                    continue
                clock = time.monotonic()
                if kind.in_transaction == "yes" and kind.tag not in ("CALL", "DO"):
                    self._single(migration, number, statement, step, kind, text, fingerprint, limits)
                else:
                    self._alone(migration, number, statement, step, kind, text, fingerprint, earlier, limits)
                self._note_statement(migration, step, statement, kind, time.monotonic() - clock)
            self._mark(migration, number, _WHOLE_STEP, "done", digest)

    def _mark(
        self, migration: Migration, step: int, statement: int, state: str, digest: str, oid: int | None = None
    ) -> None:
        self._worker.execute(
            self._ledger.progress_sql(
                self._worker.connection, migration.id, self._action, step, statement, state, digest, object_oid=oid
            )
        )

    def _single(
        self,
        migration: Migration,
        number: int,
        statement: Statement,
        step: SqlStep,
        kind: StatementClass,
        text: str,
        fingerprint: str,
        limits: Limits,
    ) -> None:
        """An ordinary statement of a non-transactional file: a transaction of its own, with its result in the same
        one."""
        worker, watch = self._worker, t.cast(LockWatch, self._watch)
        # VALIDATE CONSTRAINT reads a whole table under a lock that blocks nobody; the deadline governs it.
        timeout = limits.retry.deadline if not kind.may_block else limits.statement_timeout

        def attempt(_number: int) -> None:
            watch.begin(worker.pid, enforce=kind.may_block)
            try:
                worker.execute(
                    f"BEGIN; SET LOCAL lock_timeout = {milliseconds(limits.lock_timeout)};"
                    f" SET LOCAL statement_timeout = {milliseconds(timeout)}"
                )
                names = secret_names(statement, self._options.secrets)
                if names:
                    load_secrets(worker.connection, names, self._options.secrets)
                with watch.statement(may_block=kind.may_block):
                    if statement.copy_data is not None:
                        worker.copy(text, statement.copy_data)
                    else:
                        worker.execute(text)
                self._mark(migration, number, statement.index, "done", fingerprint)
                if kind.may_block:
                    self._within_budget()
                self._commit_statement(migration, statement)
            except psycopg2.Error as exc:
                if watch.over_budget:
                    raise _OverBudget() from None
                raise self._failed(exc, statement.location(), statement) from None
            finally:
                worker.rollback()
                watch.end()

        if statement.copy_data is not None:
            attempt(1)  # its rows stream from the file once
        else:
            self._with_retries(migration, limits, attempt)

    def _commit_statement(self, migration: Migration, statement: Statement) -> None:
        try:
            self._worker.commit()
        except CommitLost:
            raise OutcomeUnknown(
                f"{migration.id}: the connection died at COMMIT of one statement",
                remedy="Run again: the statement's record was in the same transaction, so the next run knows.",
                location=statement.location(),
            ) from None

    def _alone(
        self,
        migration: Migration,
        number: int,
        statement: Statement,
        step: SqlStep,
        kind: StatementClass,
        text: str,
        fingerprint: str,
        earlier: Progress | None,
        limits: Limits,
    ) -> None:
        """A statement that no transaction can hold: the catalog is asked before each attempt what is left to do."""
        worker, watch = self._worker, t.cast(LockWatch, self._watch)
        target = concurrent_target(text)
        location = statement.location()
        deadline = time.monotonic() + limits.retry.deadline
        intended = earlier is not None
        if (
            earlier is not None
            and earlier.object_oid is not None
            and target is not None
            and target.kind == "create_index"
        ):
            # What was there before an earlier attempt, and still is, is not what that attempt made.
            found = nontransactional.judge(worker.connection, target, intended=True, location=location)
            intended = found.oid != earlier.object_oid
        if earlier is not None and earlier.object_oid is None and target is not None and target.kind in _TAKES_AWAY:
            # It was not there when an earlier attempt began: the server refused that one.
            intended = False
        if target is None and earlier is not None:
            done = nontransactional.catalog_says_done(worker.connection, kind.tag, _last_name(statement))
            if done:
                self._mark(migration, number, statement.index, "done", fingerprint)
                return
            if done is None and kind.tag not in nontransactional.RERUNNABLE:
                raise OutcomeUnknown(
                    f"{migration.id}: an earlier run was cut off in {kind.tag}; whether it took effect cannot be told",
                    remedy=f"Look, then either undo it and roll the migration back, or mark it: UPDATE"
                    f" {self._ledger.schema}.progress SET state = 'done' WHERE migration_id = '{migration.id}' AND "
                    f"step = {number}"
                    f" AND statement = {statement.index}.",
                    location=location,
                )

        def attempt(_number: int) -> None:
            nonlocal intended
            instead = text
            if target is not None:
                verdict_ = nontransactional.judge(worker.connection, target, intended=intended, location=location)
                while verdict_.action == nontransactional.WAIT:
                    if time.monotonic() > deadline:
                        raise LockBusy(verdict_.reason, remedy="Wait for it, then run again.", location=location)
                    worker.sleep(_BUSY_POLL)
                    verdict_ = nontransactional.judge(worker.connection, target, intended=intended, location=location)
                if verdict_.action == nontransactional.DONE:
                    return
                if not intended:
                    self._mark(migration, number, statement.index, "intended", fingerprint, verdict_.oid)
                    # An object that is already there, whole, is not what this statement will have made.
                    intended = verdict_.oid is None or bool(verdict_.before)
                for cleanup in verdict_.before:
                    self._warn_once(f"{migration.id}: {verdict_.reason}; {cleanup}")
                    self._unbounded(cleanup, deadline, "0", location, statement)
                instead = verdict_.instead or text
            elif not intended:
                self._mark(migration, number, statement.index, "intended", fingerprint)
                intended = True
            # The waits of CREATE INDEX CONCURRENTLY block nobody; DETACH takes ACCESS EXCLUSIVE on the partition.
            bounded = target is not None and target.kind == "detach_partition"
            watch.begin(worker.pid, enforce=False)
            try:
                with watch.statement(may_block=False):
                    self._unbounded(
                        instead,
                        deadline,
                        f"{milliseconds(limits.lock_timeout)}" if bounded else "0",
                        location,
                        statement,
                    )
            finally:
                watch.end()
            if target is not None and target.kind == "create_index":
                after = nontransactional.judge(worker.connection, target, intended=True, location=location)
                if after.action != nontransactional.DONE:
                    raise LedgerError(f"the index is not valid after it was built: {after.reason}", location=location)

        self._with_retries(migration, limits, attempt)
        self._mark(migration, number, statement.index, "done", fingerprint)

    def _unbounded(
        self, text: str, deadline: float, lock_timeout: str, location: Location, statement: Statement
    ) -> None:
        """One autocommitted statement under the deadline instead of the statement timeout."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise SqlError(
                "the deadline passed before the statement could be tried again",
                sqlstate="57014",
                location=location,
                remedy="Raise retry.deadline, or end the transactions it waits for.",
            )
        worker = self._worker
        try:
            worker.execute(f"SET lock_timeout = {lock_timeout}")
            worker.execute(f"SET statement_timeout = {milliseconds(left)}")
            worker.execute(text)
        except psycopg2.Error as exc:
            remedy = None
            if exc.pgcode == "57014":
                blockers = (self._watch.blockers if self._watch else []) or []
                waits = "; it waited for " + ", ".join(str(blocker) for blocker in blockers) if blockers else ""
                remedy = f"The deadline passed{waits}. Raise retry.deadline, or end the transactions it waits for."
            raise self._failed(exc, location, statement, remedy) from None
        finally:
            if not worker.lost:
                with contextlib.suppress(psycopg2.Error, SurefootError):
                    worker.execute("RESET lock_timeout")
                    worker.execute("RESET statement_timeout")

    # --- backfill ----------------------------------------------------------------------------------------------------

    def _backfill(
        self,
        migration: Migration,
        number: int,
        step: BackfillStep,
        digest: str,
        progress: t.Mapping[tuple[int, int], Progress],
        limits: Limits,
        counters: dict[str, t.Any],
    ) -> None:
        """Batches until no row is left; the position is committed with each batch, so any stop resumes exactly
        there."""
        with self._worker_lock(migration, limits):
            worker, watch = self._worker, t.cast(LockWatch, self._watch)
            sql = prepare_backfill(worker.connection, step)
            earlier = progress.get((number, _WHOLE_STEP))
            position: list[str] | None = earlier.position if earlier is not None else None
            rows = int(earlier.rows or 0) if earlier is not None else 0
            clock = time.monotonic()
            finished = False

            def attempt(_number: int) -> tuple[int, int, list[str] | None]:
                watch.begin(worker.pid, enforce=True)
                try:
                    worker.execute(
                        f"BEGIN; SET LOCAL lock_timeout = {milliseconds(limits.lock_timeout)};"
                        f" SET LOCAL statement_timeout = {milliseconds(limits.statement_timeout)}"
                    )
                    read, changed, last = self._batch(sql, position, step)
                    worker.execute(
                        self._ledger.progress_sql(
                            worker.connection,
                            migration.id,
                            self._action,
                            number,
                            _WHOLE_STEP,
                            "done" if read < step.batch else "cursor",
                            digest,
                            rows=rows + changed,
                            position=last or position,
                        )
                    )
                    worker.commit()
                    return read, changed, last
                except CommitLost:
                    raise OutcomeUnknown(
                        f"{migration.id}: the connection died at COMMIT of a batch",
                        remedy="Run again: the position was in the same transaction, so the next run knows.",
                        location=step.location,
                    ) from None
                except psycopg2.Error as exc:
                    raise self._failed(exc, step.location, None) from None
                finally:
                    worker.rollback()
                    watch.end()

            while not finished:
                read, changed, last = self._with_retries(migration, limits, attempt)
                rows, position = rows + changed, last or position
                finished = read < step.batch
                if not finished and step.pause:
                    worker.sleep(step.pause)
            self._statements.append(
                {
                    "number": len(self._statements) + 1,
                    "migration": migration.id,
                    "file": step.name,
                    "line": step.location.line,
                    "tag": f"BACKFILL {rows}",
                    "seconds": round(time.monotonic() - clock, 4),
                }
            )

    def _batch(self, sql: BackfillSql, position: list[str] | None, step: BackfillStep) -> tuple[int, int, t.Any]:
        worker = self._worker
        text = sql.batch(worker.connection, position)
        statement = next(statements(io.BytesIO(text.encode()), name=str(step.location.file)))
        names = secret_names(statement, self._options.secrets)
        if names:
            load_secrets(worker.connection, names, self._options.secrets)
        row = worker.fetch(
            render(statement, variables=self._variables, secrets=self._options.secrets, connection=worker.connection)
        )[0]
        return int(row[0]), int(row[1]), row[2]

    # --- baseline ----------------------------------------------------------------------------------------------------

    def _baseline(self) -> None:
        """Record as applied what is there already, without running it."""
        worker = self._worker
        for migration in self._selection.todo:
            steps = migration.steps
            text = Text(raw_digest(steps), token_digest(steps), None, 0)
            worker.ready({})
            self._touched = True
            worker.execute("BEGIN")
            worker.fetch(self._ledger.record_applied_sql(worker.connection, migration.id, "baseline", text, _now(), 1))
            worker.commit()
            self._done.append(
                {"id": migration.id, "seconds": 0.0, "statements": 0, "attempts": 1, "lock_held_seconds": None}
            )

    # --- small things ------------------------------------------------------------------------------------------------

    def _render(self, statement: Statement, step: SqlStep) -> str:
        if not statement.variables:
            return statement.text
        return render(
            statement,
            variables=self._variables,
            secrets=self._options.secrets,
            connection=self._worker.connection,
            file=step.path,
        )

    def _note_statement(
        self, migration: Migration, step: SqlStep, statement: Statement, kind: StatementClass, seconds: float
    ) -> None:
        self._statements.append(
            {
                "number": len(self._statements) + 1,
                "migration": migration.id,
                "file": step.file,
                "line": statement.line,
                "tag": kind.tag,
                "seconds": round(seconds, 4),
            }
        )

    def _failed(
        self, exc: t.Any, location: Location, statement: Statement | None, remedy: str | None = None
    ) -> SurefootError:
        """The server's error with the place in the file it speaks of, and what to do."""
        if self._worker.lost:
            return ConnectionFailed(
                f"the connection was lost: {' '.join(str(sql_error(exc).message).split())}",
                remedy="What was open is rolled back; run again to go on where it stopped.",
                location=location,
            )
        place = location
        offset = getattr(getattr(exc, "diag", None), "statement_position", None)
        if statement is not None and offset and not statement.variables:
            place = statement.location(int(offset) - 1)
        primary = getattr(exc.diag, "message_primary", None) or ""
        hint = getattr(exc.diag, "message_hint", None)
        return sql_error(
            exc,
            location=place,
            statement=statement.text if statement is not None else None,
            remedy=remedy or hint or remedy_for(exc.pgcode, primary),
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _end_of(work: _Work) -> Location:
    """Where an error belongs that no single statement raised: a deferred constraint, the record, COMMIT."""
    return Location(work.step.path) if work.step is not None else work.migration.location


def _arm(limits: Limits) -> str:
    return (
        f"SET LOCAL lock_timeout = {milliseconds(limits.lock_timeout)};"
        f" SET LOCAL statement_timeout = {milliseconds(limits.statement_timeout)};"
    )


def _last_name(statement: Statement) -> str | None:
    """The object a CREATE or DROP of a database, tablespace or subscription names."""
    names = [token.value for token in statement.head if token.kind in ("word", "quoted_identifier")]
    rest = [name for name in names[2:] if name not in ("if", "exists", "not", "concurrently")]
    return rest[0] if rest else None


def _lock_holders(connection: Connection, key: int) -> list[dict[str, t.Any]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT l.pid, a.usename, a.application_name, a.client_addr::text, a.state, a.backend_start::text"
            " FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
            " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_catalog.pg_backend_pid()"
            " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
            " AND (l.classid::bigint << 32) | l.objid::bigint = %s",
            (key,),
        )
        names = ("pid", "user", "application", "client", "state", "since")
        return [dict(zip(names, row)) for row in cursor.fetchall()]


def _describe_holders(holders: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    if not holders:
        return "a session that has just ended"
    return ", ".join(
        f"process {h['pid']} ({h['application'] or 'unknown'}, {h['user'] or 'unknown'}@{h['client'] or 'local'}, "
        f"since {h['since']})"
        for h in holders
    )
