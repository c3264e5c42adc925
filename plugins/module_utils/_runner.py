# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Applies and rolls back migrations: exactly once or not at all, and able to say which.

One control connection holds the runner lock, reads the ledger and watches; one worker connection does the work.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import entry_hashes
from ansible_collections.surefoot.dbops.plugins.module_utils._checks import (
    validate_checks,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    redact_sql,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._context import (
    BUSY_POLL,
    Context,
    RunOptions,
    now,
    timeline_of,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._drift import (
    Drift,
    catalog_drift,
    drift_evidence,
    file_drift,
    no_other_run,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    DriftError,
    EnvironmentProblem,
    Location,
    LockBusy,
    OutcomeUnknown,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, append_lines, record, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._journal import Journal
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import (
    TEXT_LIMIT,
    Ledger,
    State,
    Text,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._migrations import Migrations
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import BackfillStep, Migration, Plan, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._remedies import remedy_for
from ansible_collections.surefoot.dbops.plugins.module_utils._script import (
    Script,
    executable,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import (
    Selection,
    Step,
    inspect_step,
    raw_digest,
    read_step,
    refuse_half_rolled_back,
    select_deploy,
    select_rollback,
    token_digest,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._watch import LockWatch
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import CommitLost, Worker, open_session

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


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
        self._journal = Journal()
        for name in options.variables:
            # A plan that lists its variables and gets another one: most likely a misspelt name and a default in force.
            if plan.variables and name not in plan.variables:
                self._journal.warn(f"variable {name} is given, and the plan does not declare it")

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, t.Any]:
        """Do it; the results are the module's return values, ``notes`` what did not stop the run but should be known.

        :raises SurefootError: with the same results attached, as far as it came
        """
        try:
            run_interruptible(self._run, self._worker.request_stop)
        except SurefootError as exc:
            exc.results = self._results()
            raise
        except psycopg2.Error as exc:  # of the control connection; the worker's are told with their place in a file
            failure = sql_error(exc, remedy=remedy_for(exc.pgcode, str(exc)))
            failure.results = self._results()
            raise failure from None
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
                if self._options.before_apply is not None:
                    self._options.before_apply(control, self._selection.todo)
                if not state.exists:
                    self._ledger.create(control)
                    self._ledger.take_over(control)
                self._journal.touched = self._ledger.start_run(control, self._action, self._options.actor)
                self._carry_out(control, state.undoing if self._action == "rollback" else state.partial)

    def _carry_out(self, control: Connection, begun: frozenset[str]) -> None:
        outcome = "failed"
        try:
            with contextlib.ExitStack() as stack:
                if self._options.guard is not None:
                    stack.enter_context(self._options.guard(self._worker.stop_for))
                watch = stack.enter_context(
                    LockWatch(control, self._options.lock_budget, self._worker.cancel_statement)
                )
                context = Context(
                    target=self._target,
                    options=self._options,
                    action=self._action,
                    ledger=self._ledger,
                    worker=self._worker,
                    watch=watch,
                    journal=self._journal,
                    variables=self._variables,
                    scripts=self._scripts,
                    timeline=timeline_of(control),
                )
                if self._action == "baseline":
                    self._baseline()
                elif self._action == "deploy" and self._plan.transaction == "together":
                    Migrations(context, control, begun).apply_together(self._selection.todo)
                else:
                    migrations = Migrations(context, control, begun)
                    for migration in self._selection.todo:
                        migrations.carry_out(migration)
            outcome = "succeeded"
        finally:
            self._finish_run(control, outcome)

    def _finish_run(self, control: Connection, outcome: str) -> None:
        if not control.closed:
            try:
                self._journal.quarantine = self._ledger.quarantined(control)
            except psycopg2.Error as exc:
                self._journal.warn(f"the quarantine could not be read: {sql_error(exc).message}")
        # A run that failed may have changed the catalog too: finished steps, an INVALID index.
        try:
            if not control.closed:
                catalog = (
                    entry_hashes(control, exclude_schemas=(self._ledger.schema,)) if self._journal.touched else None
                )
                self._ledger.finish_run(control, outcome, catalog)
                return
        except (psycopg2.Error, SurefootError):
            pass
        self._journal.warn(
            "how the run ended could not be recorded; what was applied is recorded, and the next run does not look for"
            " catalog drift"
        )

    def _results(self) -> dict[str, t.Any]:
        journal = self._journal
        evidence = self._evidence()
        try:
            record(None if self._options.check_mode else self._options.run_dir, evidence)
            if self._options.run_dir and journal.statement_count:
                append_lines(os.path.join(self._options.run_dir, "statements.jsonl"), journal.remembered())
        except EnvironmentProblem as exc:  # it must hide neither what was done nor why the run failed
            journal.warn(str(exc))
        done = journal.ids
        pending = [migration.id for migration in self._selection.todo if migration.id not in done]
        results: dict[str, t.Any] = {
            "changed": bool(done) or (self._options.check_mode and bool(pending)),
            "run_id": self._options.run_id,
            "applied": done if self._action != "rollback" else [],
            "rolled_back": done if self._action == "rollback" else [],
            "pending": pending,
            "unfinished": journal.unfinished,
            "manual": [{"id": m.id, "reason": m.manual} for m in self._selection.manual],
            "migrations": journal.done,
            "statements": journal.shown(),
            "statement_count": journal.statement_count,
            "retries": journal.retries,
            "checks": [result.to_dict() for result in journal.checks],
            "drift": [item.to_dict() for item in journal.drift],
            "notes": journal.warnings,
            "evidence": record(None, evidence),
        }
        if self._options.show_text:
            results["diff"] = self._diff()
        return results

    def _evidence(self) -> list[Evidence]:
        """What this run measured, for the gate and the report."""
        journal = self._journal
        done = journal.ids
        required = [migration.id for migration in self._selection.todo]
        records = [drift_evidence(journal.drift)]
        if not self._options.check_mode:
            records.append(
                Evidence(
                    criterion=f"migration.{'rolled_back' if self._action == 'rollback' else 'applied'}",
                    phase="rollback" if self._action == "rollback" else "apply",
                    verdict=verdict(done == required),
                    measured=_brief(done),
                    required=_brief(required),
                    source="ledger",
                    details={"retries": len(journal.retries), "statements": journal.statement_count},
                )
            )
        if journal.quarantine is not None:
            records.append(self._quarantine_evidence(journal.quarantine))
        held = [item["lock_held_seconds"] for item in journal.done if item.get("lock_held_seconds") is not None]
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
        return records + [result.evidence() for result in journal.checks]

    def _quarantine_evidence(self, found: dict[str, t.Any]) -> Evidence:
        """What is in the quarantine, against what went there; after a rollback, nothing of what was rolled back."""
        there: dict[str, int] = {}
        for item in found["by"]:
            there[item["migration"]] = there.get(item["migration"], 0) + item["rows"]
        back = self._action == "rollback"
        if back:
            passed = not any(there.get(id_) for id_ in self._journal.ids)
        else:
            passed = all(there.get(id_, 0) >= rows for id_, rows in self._journal.moved.items())
        return Evidence(
            criterion="migration.quarantine",
            phase="rollback" if back else "apply",
            verdict=verdict(passed),
            measured=found,
            required="no row of what was rolled back" if back else f"the rows that were moved: {self._journal.moved}",
            source="the ledger's quarantine",
        )

    def _diff(self) -> dict[str, str]:
        parts = []
        for migration in self._selection.todo:
            for step in self._steps_of(migration):
                text = read_step(step)[:TEXT_LIMIT].decode("utf-8", errors="replace")
                name = step.file if isinstance(step, SqlStep) else step.name
                name = f"backfill {name}" if isinstance(step, BackfillStep) else name
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
            refuse_half_rolled_back(self._plan, state)
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
                    script = inspect_step(step)
                    self._scripts[step.path] = script
                    for warning in script.warnings:
                        self._journal.warn(warning)
                    self._require_variables(step, script)

    def _require_variables(self, step: SqlStep, script: Script) -> None:
        known = set(self._variables) | set(self._options.secrets)
        missing = sorted(script.variables - known)
        if missing:
            kind = "secret_variables" if missing[0] in self._plan.secret_variables else "variables"
            raise PlanError(
                f"{step.file} uses the variable {missing[0]}, which has no value",
                remedy=f"Give it in {kind}; if it is no variable, put a space after the colon.",
                location=_first_use(step, script, missing[0]),
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
            self._journal.warn(
                f"run {state.cut_off} was cut off; the catalog is not compared with what the run before it left, as its"
                " own changes would look like drift"
            )
        found = catalog_drift(control, state, self._ledger.schema, self._plan.drift_ignore)
        self._drifted(
            [found] if found else [],
            "Put it back or write it as a migration; name what others may change in drift_ignore; or accept it with"
            " on_drift: warn.",
        )

    def _check_catalog_drift_unless_busy(self, control: Connection, state: State) -> None:
        if state.mark is None:
            return
        with no_other_run(control, self._ledger) as quiet:
            if quiet:
                self._check_catalog_drift(control, state)
            else:
                self._journal.warn("catalog drift was not looked at: another run is in progress")

    def _drifted(self, found: t.Sequence[Drift], remedy: str) -> None:
        self._journal.drift.extend(found)
        stops = [item for item in found if item.matters and self._options.on_drift == "fail"]
        if stops:
            more = f" (and {len(stops) - 1} more)" if len(stops) > 1 else ""
            raise DriftError(stops[0].message + more, remedy=remedy)
        for item in found:
            self._journal.warn(item.message)

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
        patience = self._options.busy_timeout if self._options.on_busy == "wait" else 0.0
        self._obtain(control, self._ledger.runner_key, "another run", patience)
        try:
            self._await_orphan(control)
            yield
        finally:
            if not control.closed:
                with contextlib.suppress(psycopg2.Error), control.cursor() as cursor:
                    cursor.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (self._ledger.runner_key,))

    def _obtain(self, control: Connection, key: int, what: str, patience: float, remedy: str | None = None) -> None:
        deadline = time.monotonic() + patience
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
            self._worker.sleep(BUSY_POLL)

    def _await_orphan(self, control: Connection) -> None:
        """The worker lock must be free: taken under our runner lock, it belongs to the backend of a run that was
        killed."""
        holders = _lock_holders(control, self._ledger.worker_key)
        if holders and self._options.on_orphan == "terminate":
            for holder in holders:
                self._journal.warn(f"ended the session of a killed run: {_describe_holders([holder])}")
                with control.cursor() as cursor:
                    cursor.execute("SELECT pg_catalog.pg_terminate_backend(%s)", (holder["pid"],))
        pids = ", ".join(str(holder["pid"]) for holder in holders)
        self._obtain(
            control,
            self._ledger.worker_key,
            "the session of a killed run is still at work and",
            # on_orphan alone decides; one that was just ended needs a moment to go, too.
            self._options.busy_timeout,
            f"Wait for it, set on_orphan: terminate, or run SELECT pg_terminate_backend({pids}).",
        )
        if self._ledger.exists(control):
            self._ledger.take_over(control)
        with control.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (self._ledger.worker_key,))

    # --- baseline ----------------------------------------------------------------------------------------------------

    def _baseline(self) -> None:
        """Record as applied what is there already, without running it."""
        worker = self._worker
        for migration in self._selection.todo:
            steps = migration.steps
            text = Text(raw_digest(steps), token_digest(steps), None, 0)
            worker.ready({})
            self._journal.touched = True
            worker.execute("BEGIN")
            worker.fetch(self._ledger.record_applied_sql(worker.connection, migration.id, "baseline", text, now(), 1))
            try:
                worker.commit()
            except CommitLost:
                raise OutcomeUnknown(
                    f"{migration.id}: the connection died at COMMIT of its record",
                    remedy="Run again: what is recorded already is left out.",
                    location=migration.location,
                ) from None
            self._journal.finished(migration, 0.0, 1, None)


def _brief(ids: t.Sequence[str]) -> t.Any:
    """The names, or of very many their number and ends: the ledger has them all."""
    return list(ids) if len(ids) <= 100 else {"count": len(ids), "first": ids[0], "last": ids[-1]}


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


def _first_use(step: SqlStep, script: Script, name: str) -> Location:
    for statement, _kind in executable(step.path, script):
        for reference in statement.variables:
            if reference.name == name:
                return Location(step.path, *statement.location_of(reference.offset))
        if statement.copy_data is not None:
            while statement.copy_data.read(65536):
                pass
    return Location(step.path)
