# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Statements outside a transaction: an intent before, a result after, the catalog asked what became of an intent."""

from __future__ import annotations

import contextlib
import hashlib
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils import _nontransactional as nontransactional
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_literal
from ansible_collections.surefoot.dbops.plugins.module_utils._context import (
    BUSY_POLL,
    WHOLE_STEP,
    Attempts,
    Context,
    OverBudget,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    LedgerError,
    Location,
    LockBusy,
    OutcomeUnknown,
    SqlError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Progress
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Limits, Migration, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._script import (
    StatementClass,
    concurrent_target,
    executable,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import load as load_secrets
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import secret_names
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement
from ansible_collections.surefoot.dbops.plugins.module_utils._values import milliseconds
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import CommitLost

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

_SESSION_SETUP = ("SET", "RESET", "SET SESSION CHARACTERISTICS")
# Behind one who waits for their lock no reader or writer queues up. An autovacuum of the table holds it, and yields
# only to who waits longer than deadlock_timeout, a second by default.
_WAITS_ALONE = ("ALTER TABLE VALIDATE CONSTRAINT", "ANALYZE")
_PATIENCE = 5.0
_TAKES_AWAY = ("drop_index", "detach_partition")


@contextlib.contextmanager
def worker_lock(context: Context, migration: Migration, limits: Limits) -> t.Iterator[None]:
    """The worker lock for the session, as no transaction spans the work."""
    worker = context.worker
    worker.ready(context.settings(migration, limits))
    obtain_worker_lock(context)
    try:
        context.require_turn()
        yield
    finally:
        # The end of a session can take a while, and frees its locks only then.
        with contextlib.suppress(psycopg2.Error, SurefootError):
            worker.execute("SELECT pg_catalog.pg_advisory_unlock_all()")
        worker.close()  # frees the lock, whatever state the session is in


@contextlib.contextmanager
def one_batch(context: Context, migration: Migration, location: Location, *, enforce: bool) -> t.Iterator[None]:
    """Around one of many transactions of a step, which begins with the block's first statement: committed at its end,
    or nothing of it is left.

    :param enforce: whether the lock budget bounds its locks
    :raises OutcomeUnknown: the connection died at COMMIT
    :raises SurefootError: what the server says
    """
    worker, watch = context.worker, context.watch
    watch.begin(worker.pid, enforce=enforce)
    try:
        yield
        worker.commit()
    except CommitLost:
        raise OutcomeUnknown(
            f"{migration.id}: the connection died at COMMIT of a batch",
            remedy="Run again: what tells of it was in the same transaction, so the next run knows.",
            location=location,
        ) from None
    except psycopg2.Error as exc:
        raise context.failed(exc, location, None) from None
    finally:
        worker.rollback()
        watch.end()


def obtain_worker_lock(context: Context) -> None:
    """Take the worker lock for the session; again after a statement that gives up every lock.

    :raises LockBusy: another session has it for longer than busy_timeout
    """
    worker = context.worker
    deadline = time.monotonic() + context.options.busy_timeout
    # A session of ours that was just closed frees the lock a moment later.
    while not worker.fetch(f"SELECT pg_catalog.pg_try_advisory_lock({context.ledger.worker_key})")[0][0]:
        if time.monotonic() > deadline:
            raise LockBusy(
                "the session of a killed run is still at work", remedy="Wait for it, or set on_orphan: terminate."
            )
        worker.sleep(BUSY_POLL / 5)


class Autonomous:
    """Runs the steps that no transaction can hold."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._options = context.options
        self._action = context.action
        self._ledger = context.ledger
        self._worker = context.worker
        self._watch = context.watch
        self._journal = context.journal

    def run(
        self,
        migration: Migration,
        number: int,
        step: SqlStep,
        digest: str,
        progress: t.Mapping[tuple[int, int], Progress],
        limits: Limits,
        attempts: Attempts,
    ) -> None:
        """Statement by statement: an intent before, a result after, and the catalog asked what became of an intent."""
        with worker_lock(self._context, migration, limits):
            self._mark(migration, number, WHOLE_STEP, "intended", digest)
            self._journal.touched = True
            for statement, kind in executable(step.path, self._context.script(step)):
                earlier = progress.get((number, statement.index))
                text = self._context.render(statement, step)
                fingerprint = hashlib.sha256(statement.text.encode()).hexdigest()
                # What sets up the session is needed again after a resume; only it is: its effect died with the session.
                if earlier is not None and earlier.state == "done" and not _sets_up_session(kind):
                    continue
                clock = time.monotonic()
                if kind.in_transaction == "yes" and kind.tag not in ("CALL", "DO"):
                    self._single(migration, number, statement, step, kind, text, fingerprint, limits, attempts)
                else:
                    self._alone(migration, number, statement, step, kind, text, fingerprint, earlier, limits)
                self._journal.statement(migration, step, statement, kind, time.monotonic() - clock)
                if kind.tag == "DISCARD ALL" or b"advisory_unlock" in statement.raw.lower():
                    obtain_worker_lock(self._context)
            self._mark(migration, number, WHOLE_STEP, "done", digest)

    def _mark(
        self,
        migration: Migration,
        step: int,
        statement: int,
        state: str,
        digest: str,
        oid: int | None = None,
        *,
        final: bool = False,
    ) -> None:
        """:param final: of what took effect already, so that no stop may keep it from being recorded"""
        send = self._worker.record if final else self._worker.execute
        send(
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
        attempts: Attempts,
    ) -> None:
        """An ordinary statement of a non-transactional file: a transaction of its own, with its result in the same
        one."""
        worker, watch = self._worker, self._watch
        # VALIDATE CONSTRAINT reads a whole table under a lock that blocks nobody; the deadline governs it.
        timeout = limits.retry.deadline if not kind.may_block else limits.statement_timeout
        patience = max(limits.lock_timeout, _PATIENCE) if kind.tag in _WAITS_ALONE else limits.lock_timeout

        def attempt(tried: int) -> None:
            attempts.tried(tried)
            watch.begin(worker.pid, enforce=kind.may_block)
            self._options.trace.begin(worker.connection)
            try:
                worker.execute(
                    f"BEGIN; SET LOCAL lock_timeout = {milliseconds(patience)};"
                    f" SET LOCAL statement_timeout = {milliseconds(timeout)}"
                )
                names = secret_names(statement, self._options.secrets)
                if names:
                    load_secrets(worker.connection, names, self._options.secrets)
                with watch.statement(may_block=kind.may_block):
                    self._context.execute(migration, statement, kind, text)
                self._mark(migration, number, statement.index, "done", fingerprint)
                if kind.may_block:
                    self._context.within_budget()
                self._commit_statement(migration, statement)
            except psycopg2.Error as exc:
                if watch.over_budget:
                    raise OverBudget() from None
                raise self._context.failed(exc, statement.location(), statement) from None
            finally:
                worker.rollback()
                held = watch.end()
                self._options.trace.end()
            attempts.held_for(held)

        if statement.copy_data is not None:
            attempt(1)  # its rows stream from the file once
        else:
            self._context.with_retries(migration, limits, attempt)

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
        worker, watch = self._worker, self._watch
        target = concurrent_target(text)
        location = statement.location()
        deadline = time.monotonic() + limits.retry.deadline
        repeatable = (
            target is not None or kind.tag in nontransactional.RERUNNABLE or nontransactional.in_catalog(kind.tag)
        )
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
                    remedy="Look, then either undo it and roll the migration back, or mark it:"
                    f" UPDATE \"{self._ledger.schema}\".progress SET state = 'done' WHERE set_name ="
                    f" {quote_literal(self._ledger.set_name, worker.connection)} AND migration_id = '{migration.id}'"
                    f" AND action = '{self._action}' AND step = {number} AND statement = {statement.index}.",
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
                    worker.sleep(BUSY_POLL)
                    verdict_ = nontransactional.judge(worker.connection, target, intended=intended, location=location)
                if verdict_.action == nontransactional.DONE:
                    return
                if not intended:
                    self._mark(migration, number, statement.index, "intended", fingerprint, verdict_.oid)
                    # An object that is already there, whole, is not what this statement will have made.
                    intended = verdict_.oid is None or bool(verdict_.before)
                for cleanup in verdict_.before:
                    self._journal.warn(f"{migration.id}: {verdict_.reason}; {cleanup}")
                    self._unbounded(cleanup, deadline, "0", location, statement)
                instead = verdict_.instead or text
            elif not intended:
                self._mark(migration, number, statement.index, "intended", fingerprint)
                intended = True
            # The waits of CREATE INDEX CONCURRENTLY block nobody; behind one for ACCESS EXCLUSIVE (DETACH, VACUUM FULL,
            # CLUSTER) all clients of the table queue up. A procedure's lock waits are its own business: it may have
            # committed a part.
            bounded = kind.may_block and repeatable
            watch.begin(worker.pid, enforce=False)
            try:
                looks_on = self._options.trace.alone(worker.connection, migration, statement, kind)
                with watch.statement(may_block=False), looks_on:
                    self._unbounded(
                        instead,
                        deadline,
                        f"{milliseconds(limits.lock_timeout)}" if bounded else "0",
                        location,
                        statement,
                    )
            except SqlError:
                if nontransactional.in_catalog(kind.tag) and not worker.lost:
                    # What the catalog shows afterwards was there before: it must not be taken for ours.
                    worker.record(
                        self._ledger.forget_intent_sql(
                            worker.connection, migration.id, self._action, number, statement.index
                        )
                    )
                    intended = False
                raise
            finally:
                watch.end()
            if target is not None and target.kind == "create_index":
                after = nontransactional.judge(worker.connection, target, intended=True, location=location)
                if after.action != nontransactional.DONE:
                    raise LedgerError(f"the index is not valid after it was built: {after.reason}", location=location)

        if repeatable:
            self._context.with_retries(migration, limits, attempt)
        else:
            attempt(1)  # a procedure that met a deadlock may have committed a part
        self._mark(migration, number, statement.index, "done", fingerprint, final=True)

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
                blockers = self._watch.blockers
                waits = "; it waited for " + ", ".join(str(blocker) for blocker in blockers) if blockers else ""
                remedy = f"The deadline passed{waits}. Raise retry.deadline, or end the transactions it waits for."
            raise self._context.failed(exc, location, statement, remedy) from None
        finally:
            if not worker.lost:
                with contextlib.suppress(psycopg2.Error, SurefootError):
                    worker.execute("RESET lock_timeout")
                    worker.execute("RESET statement_timeout")


def _sets_up_session(kind: StatementClass) -> bool:
    """SET and kin, and a SELECT that calls set_config, as pg_dump writes it."""
    return kind.tag in _SESSION_SETUP or (kind.tag == "SELECT" and kind.session == "unknown")


def _last_name(statement: Statement) -> str | None:
    """The object a CREATE or DROP of a database, tablespace or subscription names."""
    names = [token.value for token in statement.head if token.kind in ("word", "quoted_identifier")]
    rest = [name for name in names[2:] if name not in ("if", "exists", "not", "concurrently")]
    return rest[0] if rest else None
