# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The rehearsal: deploy, verify, roll back, compare, deploy again on a shadow, by the runner that production gets.

``docs/rehearsal.md`` says what is measured and by which rule it is judged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils import _squawk
from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import Catalog, CatalogDiff, diff, snapshot
from ansible_collections.surefoot.dbops.plugins.module_utils._checks import (
    CheckGroup,
    CheckResult,
    Verification,
    is_catalog_query,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    quote_identifier,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._context import RunOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    EnvironmentProblem,
    Interrupted,
    PlanError,
    SurefootError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record, utc_now, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._go import make_key, rehearsed_details
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Actor, Ledger, new_run_id
from ansible_collections.surefoot.dbops.plugins.module_utils._lockmodes import MODES
from ansible_collections.surefoot.dbops.plugins.module_utils._locktrace import SAMPLE_INTERVAL, HeldLock, LockTrace
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import SNAPSHOT_SETTINGS, hash_statement
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, Plan, SqlStep, split_qualified
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._runner import Runner
from ansible_collections.surefoot.dbops.plugins.module_utils._script import executable
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import inspect_step, raw_digest
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, human_size

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

RESULT_FILE = "rehearsal.json"
PHASE = "rehearsal"
SHADOW_MARKER = "surefoot shadow: "  # begins the comment on a shadow database; what follows is a JSON object
OWN_CLUSTER = "surefoot-shadow"  # cluster_name of a shadow with a server of its own

# The runner must not cut short what is to be measured. Waiting for locks stays bounded by the plan's lock_timeout.
_NO_BUDGET = 86400.0
_SHOWN = 5
_REMEDY = "Nothing but the shadow was touched. Mend the migration and rehearse again."

# What does not stay inside the database it is said in.
_CLUSTER_WIDE = frozenset(
    f"{verb} {what}"
    for verb in ("CREATE", "ALTER", "DROP")
    for what in ("ROLE", "USER", "GROUP", "DATABASE", "SYSTEM", "TABLESPACE", "SUBSCRIPTION")
)

_MARKER = """
SELECT d.oid::bigint, pg_catalog.shobj_description(d.oid, 'pg_database'), pg_catalog.current_setting('cluster_name')
FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_ROLES = """
SELECT r.rolname, pg_catalog.concat_ws(' ', r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin,
       r.rolreplication, r.rolbypassrls, r.rolconnlimit, r.rolconfig,
       ARRAY(SELECT g.rolname FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
             WHERE m.member = r.oid ORDER BY 1))
FROM pg_catalog.pg_roles r
"""
# Tables and sequences of an extension too: a migration can change their rows. Leaf tables only: partitions hold the
# rows. ``belongs_to`` is what is lost with it: the table of a sequence, and the tables that either is a partition of.
_RELATIONS = """
SELECT n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
       CASE WHEN c.relkind = 'S' THEN 0 ELSE pg_catalog.pg_table_size(c.oid) END AS bytes,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
             AND NOT a.attisdropped ORDER BY a.attname COLLATE "C") AS columns,
       ARRAY(SELECT tn.nspname || '.' || t.relname FROM (SELECT d.refobjid AS oid FROM pg_catalog.pg_depend d
             WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
               AND d.refclassid = 'pg_catalog.pg_class'::regclass AND c.relkind = 'S' UNION SELECT c.oid) AS o,
             LATERAL (SELECT o.oid UNION SELECT relid FROM pg_catalog.pg_partition_ancestors(o.oid)) AS whole(oid)
             JOIN pg_catalog.pg_class t ON t.oid = whole.oid
             JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace) AS belongs_to
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema' AND n.nspname <> %s
ORDER BY 1, 2
"""


@dataclasses.dataclass(frozen=True)
class RehearsalRequest:
    """What to rehearse. Durations in seconds, sizes in bytes."""

    ledger_schema: str
    to: str | None = None
    only: tuple[str, ...] = ()
    include_manual: tuple[str, ...] = ()
    variables: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    secrets: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict, repr=False)
    lock_budget: float = 0.5
    shadow_factor: float = 1.0
    rewrite_max_size: int = 100 * 1024 * 1024
    lock_timeout: float | None = None
    statement_timeout: float | None = None
    retry: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    shadow: str = "marked"  # marked | any
    squawk: str = "auto"  # auto | required | never
    squawk_path: str | None = None
    squawk_ignore: tuple[str, ...] = _squawk.DEFAULT_IGNORE
    sample_interval: float = SAMPLE_INTERVAL
    on_failure: str = "fail"  # fail | report
    allow_session_pooler: bool = False
    run_id: str | None = None
    run_dir: str | None = None

    def validate(self) -> None:
        """:raises PlanError: an option makes no sense"""
        if self.shadow_factor <= 0:
            raise PlanError(f"shadow_factor is {self.shadow_factor}", remedy="Use a number above 0, such as 1.5.")
        if self.lock_budget <= 0:
            raise PlanError("lock_budget is 0", remedy="Give a duration above 0, such as 500ms.")
        if not 0.001 <= self.sample_interval <= 10:
            raise PlanError("sample_interval is out of range", remedy="Give 1ms to 10s.")


@dataclasses.dataclass(frozen=True)
class Content:
    """What tables and sequences hold: by name, anything that is equal when the content is."""

    tables: t.Mapping[str, t.Mapping[str, t.Any]]
    sequences: t.Mapping[str, tuple[int, bool]]
    sizes: t.Mapping[str, tuple[int, int]]  # bytes and rows
    belongs_to: t.Mapping[str, t.Collection[str]]  # itself, its table, what it is a partition of
    quoted: t.Mapping[str, str]  # as SQL spells the name


@dataclasses.dataclass
class Proof:
    """Whether the rollback led back. ``reason`` says why it was not, or not wholly, tried."""

    migrations: list[str] = dataclasses.field(default_factory=list)
    reason: str | None = None
    error: dict[str, t.Any] | None = None
    catalog: CatalogDiff | None = None
    tables: dict[str, str] = dataclasses.field(default_factory=dict)
    sequences: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)
    moved_by_checks: list[str] = dataclasses.field(default_factory=list)
    compared: tuple[int, int, int] = (0, 0, 0)
    roles: list[str] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, t.Any]:
        tables, rows, sequences = self.compared
        return {
            "migrations": self.migrations,
            "not_measured": self.reason,
            "error": self.error,
            "catalog": self.catalog.to_dict() if self.catalog is not None else None,
            "tables": self.tables,
            "sequences": self.sequences,
            "left_out": self.left_out,
            "sequences_moved_by_checks": self.moved_by_checks,
            "compared": {"tables": tables, "rows": rows, "sequences": sequences},
            "roles_changed": self.roles,
        }


@dataclasses.dataclass
class Pass:
    """One run of the runner over the shadow."""

    phase: str
    migrations: list[str]
    seconds: float = 0.0
    results: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    error: SurefootError | None = None

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "phase": self.phase,
            "migrations": [
                {key: item.get(key) for key in ("id", "seconds", "statements", "attempts")}
                for item in self.results.get("migrations") or []
            ],
            "seconds": round(self.seconds, 3),
            "error": self.error.to_dict() if self.error is not None else None,
        }

    @property
    def done(self) -> list[str]:
        return list(self.results.get("applied") or []) + list(self.results.get("rolled_back") or [])

    @property
    def complete(self) -> bool:
        """Whether all of it was done, whatever failed afterwards."""
        return set(self.done) == set(self.migrations)


def rehearse(
    plan: Plan, options: ConnectionOptions, request: RehearsalRequest, *, check_mode: bool = False
) -> dict[str, t.Any]:
    """Rehearse what is pending on the shadow the options lead to; returns the module's results.

    :raises SurefootError: code ``rehearsal``, with the same results attached, when something failed and ``on_failure``
        is fail; code ``shadow`` when the database is no shadow; any other when there was nothing to judge
    """
    request.validate()
    rehearsal = Rehearsal(plan, options, request, check_mode=check_mode)
    return run_interruptible(rehearsal.run, rehearsal.interrupt)


class Rehearsal:
    """One rehearsal over one shadow."""

    def __init__(
        self, plan: Plan, options: ConnectionOptions, request: RehearsalRequest, *, check_mode: bool = False
    ) -> None:
        self._plan = plan
        self._options = options
        self._request = request
        self._check_mode = check_mode
        self._run_id = request.run_id or new_run_id()
        self._trace: LockTrace | None = None
        self._passes: list[Pass] = []
        self._notes: list[str] = []
        # Checks of what was applied before: as production has them, and after the deployment.
        self._held: list[CheckResult] = []
        self._holding: list[CheckResult] = []
        # Tables of which a shadow made of a sample holds a part: bytes and rows of the whole.
        self._partial: dict[str, tuple[int, int]] = {}
        self._pending_now: tuple[Migration, ...] = ()
        self._stop: t.Callable[[SurefootError], None] | None = None
        self._session: Connection | None = None
        self._reason: str | None = None

    # --- stopping ----------------------------------------------------------------------------------------------------

    def interrupt(self, reason: str) -> None:
        """Stop as soon as possible; quick, thread-safe, may be called again and again."""
        self._reason = reason
        stop, session = self._stop, self._session
        if stop is not None:
            stop(Interrupted(f"stopped: {reason}", remedy="Only the shadow was touched; make a new one."))
        elif session is not None and not session.closed:
            with contextlib.suppress(psycopg2.Error):
                session.cancel()

    def _go_on(self) -> None:
        if self._reason is not None:
            raise Interrupted(f"stopped: {self._reason}", remedy="Only the shadow was touched; make a new one.")

    @contextlib.contextmanager
    def _stoppable(self, stop: t.Callable[[SurefootError], None]) -> t.Iterator[None]:
        self._stop = stop
        try:
            self._go_on()
            yield
        finally:
            self._stop = None

    # --- the whole ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, t.Any]:
        started = time.monotonic()
        settings = {**SNAPSHOT_SETTINGS, "lock_timeout": "30s"}
        with contextlib.closing(connect(self._options, purpose="rehearsal", settings=settings)) as session:
            self._session = session
            try:
                return self._run(session, started)
            except psycopg2.Error as exc:
                self._go_on()  # cancelled by us: the reason is a better one
                raise sql_error(exc) from None
            except SurefootError:
                self._go_on()
                raise
            finally:
                self._session = None

    def _run(self, session: Connection, started: float) -> dict[str, t.Any]:
        marker, own_cluster = require_shadow(session, self._options, self._request.shadow)
        pending = self._pending()
        self._partial, self._pending_now = partial_tables(marker), tuple(pending)
        if self._partial:
            self._notes.append(
                f"the shadow holds a sample: a part of the rows of {len(self._partial)} tables; what depends on all of"
                " them is not measured"
            )
        if not own_cluster and self._request.shadow != "any":
            self._refuse_cluster_wide(pending)
        if self._check_mode:
            evidence = _not_yet(pending)
            return {**self._empty(pending, marker), "changed": bool(pending), "evidence": record(None, evidence)}
        hazards, hazards_reason = self._lint(session, pending)
        if not pending:
            evidence = [_nothing(name, "nothing is pending") for name in _REQUIRED]
            results = self._empty(pending, marker)
            return {**results, "changed": False, "evidence": record(self._request.run_dir, evidence)}
        applied = self._applied(session, pending)
        self._held = self._check(applied)
        catalog_diff, proof, redeploy = self._rehearse(session, pending, applied)
        trace = t.cast(LockTrace, self._trace)
        evidence = [
            *self._judge_deploy(pending, marker),
            *self._judge_rollback(proof),
            self._judge_redeploy(proof, redeploy),
            self._judge_locks(trace.locks),
            self._judge_rewrites(trace.rewrites),
            self._judge_hazards(hazards, hazards_reason),
        ]
        results = {
            **self._empty(pending, marker),
            "changed": True,
            "passes": [item.to_dict() for item in self._passes],
            "statements": [*trace.remembered(), *self._backfills()],
            "locks": [lock.to_dict() for lock in trace.locks],
            "rewrites": trace.rewrites,
            "checks": [
                *[check for item in self._passes if item.phase == "deploy" for check in item.results["checks"]],
                *[result.to_dict() for result in self._holding],
            ],
            "catalog_diff": catalog_diff.to_dict() if catalog_diff is not None else None,
            "rollback_proof": proof.to_dict(),
            "hazards": hazards.to_dict() if hazards is not None else {"not_measured": hazards_reason},
            "seconds": round(time.monotonic() - started, 3),
            "notes": self._notes,
        }
        results["evidence"] = [item.to_dict() for item in evidence]
        if self._request.run_dir:
            write_json(self._request.run_dir, RESULT_FILE, results)
        record(self._request.run_dir, evidence)
        self._raise_failure(evidence, results)
        return results

    def _backfills(self) -> list[dict[str, t.Any]]:
        """Batches are transactions of their own that lock rows, and no table against readers or writers."""
        return [
            {
                "phase": item.phase,
                **{key: record[key] for key in ("migration", "file", "line", "tag", "seconds")},
                "transaction": None,
                "from_seconds": 0.0,
                "locks": 0,
            }
            for item in self._passes
            for record in item.results.get("statements") or []
            if record["tag"].startswith("BACKFILL")
        ]

    def _empty(self, pending: t.Sequence[Migration], marker: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
        """What every result has, before anything was done."""
        request = self._request
        return {
            "run_id": self._run_id,
            "time": utc_now(),
            "plan": {"name": self._plan.name, "sha256": self._plan.digest()},
            "migrations": [
                {
                    "id": migration.id,
                    "sha256": raw_digest(migration.steps),
                    "rollback_sha256": raw_digest(migration.rollback) if migration.rollback else None,
                    "rollback_loses": list(migration.rollback_loses),
                    "expected": migration.expected,
                }
                for migration in pending
            ],
            "shadow": {"database": self._options.label, "marker": dict(marker) if marker is not None else None},
            "lock_budget": request.lock_budget,
            "shadow_factor": request.shadow_factor,
            "sample_interval": request.sample_interval,
            "passes": [],
            "statements": [],
            "locks": [],
            "rewrites": [],
            "checks": [],
            "catalog_diff": None,
            "rollback_proof": None,
            "hazards": None,
            "seconds": 0.0,
            "notes": [],
        }

    # --- before ------------------------------------------------------------------------------------------------------

    def _pending(self) -> list[Migration]:
        """What the shadow's ledger, which is production's at the time of the backup, says is to do; every file of it is
        validated."""
        request = self._request
        results = Runner(
            self._plan,
            self._options,
            self._run_options(
                "applied", check_mode=True, to=request.to, only=request.only, include_manual=request.include_manual
            ),
        ).run()
        self._note(results)
        return [self._plan.migration(name) for name in results["pending"]]

    def _refuse_cluster_wide(self, pending: t.Sequence[Migration]) -> None:
        for migration in pending:
            for step in (*migration.steps, *(migration.rollback or ())):
                if not isinstance(step, SqlStep):
                    continue
                for statement, kind in executable(step.path, inspect_step(step)):
                    if statement.copy_data is not None:
                        while statement.copy_data.read(65536):
                            pass
                    if kind.tag in _CLUSTER_WIDE:
                        raise PlanError(
                            f"{kind.tag} reaches beyond the shadow, whose server has other databases",
                            remedy="Rehearse on a shadow with a server of its own, or, if this server may be changed,"
                            " set shadow: any.",
                            location=statement.location(),
                        )

    def _lint(self, session: Connection, pending: t.Sequence[Migration]) -> tuple[_squawk.Hazards | None, str]:
        request = self._request
        if request.squawk == "never":
            return None, "switched off by squawk: never"
        program = _squawk.find_program(request.squawk_path)
        if program is None:
            if request.squawk == "required":
                raise EnvironmentProblem(
                    "the program squawk is not installed here", remedy="Install it: pip install squawk-cli."
                )
            return None, "squawk was not run: it is not installed (pip install squawk-cli)"
        return (
            _squawk.lint(
                program,
                pending,
                self._plan.directory,
                server_version=session.server_version,
                ignore=request.squawk_ignore,
            ),
            "",
        )

    # --- the passes --------------------------------------------------------------------------------------------------

    def _applied(self, session: Connection, pending: t.Sequence[Migration]) -> list[Migration]:
        """What was applied before and is verified together with what is pending, as a run does after its apply."""
        state = Ledger(self._request.ledger_schema, self._plan.name, self._run_id).read(session)
        only = self._request.only
        wanted = [migration for migration in self._plan.migrations if not only or migration.id in only]
        return [migration for migration in wanted if migration.id in state.applied and migration not in pending]

    def _check(self, migrations: t.Sequence[Migration]) -> list[CheckResult]:
        groups = [
            CheckGroup(migration.verify, migration.id, migration.session_settings)
            for migration in migrations
            if migration.verify
        ]
        variables, _secrets = self._plan.values(self._request.variables, self._request.secrets, complete=False)
        verification = Verification(
            self._options, groups, variables=variables, secret_variables=self._request.secrets, phase=PHASE
        )
        with self._stoppable(lambda _error: verification.stop()):
            return verification.run()

    def _rehearse(
        self, session: Connection, pending: t.Sequence[Migration], applied: t.Sequence[Migration]
    ) -> tuple[CatalogDiff | None, Proof, CatalogDiff | None]:
        """What deploying changes, the proof of the rollback, and how the second deployment differs from the first."""
        first, content = self._catalog(session), self._content(session)
        roles = self._roles(session)
        self._trace = LockTrace(
            self._options,
            self._request.ledger_schema,
            sizes={**content.sizes, **self._partial},
            partial=self._partial,
            interval=self._request.sample_interval,
            allow_session_pooler=self._request.allow_session_pooler,
        )
        with contextlib.closing(self._trace):
            head, tail, reason = self._split(session, pending)
            proof = Proof(reason=reason)
            before = first
            if head and not self._deploy(head):
                return diff(first, self._catalog(session)), self._unproven(proof, "the deployment failed"), None
            if head and tail:
                before, content = self._catalog(session), self._content(session)
            if tail and not self._deploy(tail):
                return diff(first, self._catalog(session)), self._unproven(proof, "the deployment failed"), None
            self._holding = self._check(applied)
            deployed = self._catalog(session)
            change = diff(first, deployed)
            if not tail:
                return change, proof, None
            proof.migrations = [migration.id for migration in reversed(tail)]
            rollback = self._pass("rollback", tail)
            if rollback.error is not None:
                proof.error = rollback.error.to_dict()
                return change, proof, None
            self._compare(session, proof, before, content, tail)
            self._note_roles(session, roles, proof)
            redeploy = self._pass("redeploy", tail)
            return change, proof, diff(deployed, self._catalog(session)) if redeploy.error is None else None

    def _split(
        self, session: Connection, pending: t.Sequence[Migration]
    ) -> tuple[list[Migration], list[Migration], str | None]:
        """What no rollback leads back from, with what comes before it, and the rest, with the reason."""
        state = Ledger(self._request.ledger_schema, self._plan.name, self._run_id).read(session)
        why = {
            migration.id: f"{migration.id} was half applied when the backup was taken"
            if migration.id in state.partial
            else f"{migration.id} has no rollback"
            for migration in pending
            if migration.rollback is None or migration.id in state.partial
        }
        if not why:
            return [], list(pending), None
        last = max(number for number, migration in enumerate(pending) if migration.id in why)
        # In one transaction all are deployed together, or they are not what production gets.
        cut = len(pending) if self._plan.transaction == "together" else last + 1
        return list(pending[:cut]), list(pending[cut:]), "; ".join(why.values())

    @staticmethod
    def _unproven(proof: Proof, reason: str) -> Proof:
        proof.reason = "; ".join(filter(None, (proof.reason, reason)))
        return proof

    def _deploy(self, migrations: t.Sequence[Migration]) -> bool:
        """Whether all of them are applied now; a check that fails after COMMIT leaves its migration applied."""
        return self._pass("deploy", migrations).complete

    def _pass(self, phase: str, migrations: t.Sequence[Migration], *, verify: bool = True, traced: bool = True) -> Pass:
        self._go_on()
        trace = t.cast(LockTrace, self._trace)
        trace.phase = phase
        ids = [migration.id for migration in migrations]
        item = Pass(phase, ids)
        more: dict[str, t.Any] = {"trace": trace} if traced else {}
        options = self._run_options(
            "rolled_back" if phase == "rollback" else "applied",
            only=tuple(ids),
            include_manual=tuple(migration.id for migration in migrations if migration.manual),
            verify=verify,
            guard=self._stoppable,
            run_id=f"{self._run_id}-{phase}-{len(self._passes) + 1}",
            **more,
        )
        clock = time.monotonic()
        try:
            item.results = Runner(self._plan, self._options, options).run()
        except SurefootError as exc:
            self._go_on()
            item.results, item.error = exc.results, exc
        item.results.setdefault("checks", [])
        item.seconds = time.monotonic() - clock
        self._passes.append(item)
        self._note(item.results)
        return item

    def _run_options(self, state: str, **more: t.Any) -> RunOptions:
        request = self._request
        values: dict[str, t.Any] = {
            "state": state,
            "run_id": self._run_id,
            "actor": Actor.current(),
            "ledger_schema": request.ledger_schema,
            "variables": request.variables,
            "secrets": request.secrets,
            "lock_timeout": request.lock_timeout,
            "statement_timeout": request.statement_timeout,
            "retry": request.retry,
            "lock_budget": _NO_BUDGET,
            # A shadow differs from what the ledger recorded: its marker, its owner, who may connect.
            "on_drift": "warn",
            "allow_session_pooler": request.allow_session_pooler,
        }
        return RunOptions(**{**values, **more})

    def _note(self, results: t.Mapping[str, t.Any]) -> None:
        """The run's notes, without the drift of a catalog that is a copy's."""
        expected = {item["message"] for item in results.get("drift") or [] if item["kind"] == "catalog"}
        for note in results.get("notes") or []:
            if note not in expected and note not in self._notes:
                self._notes.append(note)

    # --- what the rollback leaves ------------------------------------------------------------------------------------

    def _compare(
        self, session: Connection, proof: Proof, before: Catalog, content: Content, tail: t.Sequence[Migration]
    ) -> None:
        proof.catalog = diff(before, self._catalog(session))
        lost = {".".join(split_qualified(name)) for migration in tail for name in migration.rollback_loses}
        after = self._content(session)
        gone = {name for name, wholes in content.belongs_to.items() if not lost.isdisjoint(wholes)}
        tables = {name: value for name, value in content.tables.items() if name not in gone}
        sequences = {name: value for name, value in content.sequences.items() if name not in gone}
        kept_out = (content.tables.keys() | content.sequences.keys()) - tables.keys() - sequences.keys()
        proof.left_out = sorted(kept_out)
        proof.compared = (len(tables), sum(int(value["rows"]) for value in tables.values()), len(sequences))
        proof.tables = {
            name: _table_difference(value, after.tables.get(name))
            for name, value in tables.items()
            if value != after.tables.get(name)
        }
        moved = _moved(sequences, after.sequences)
        if moved and any(migration.verify for migration in tail):
            moved = self._moved_without_checks(session, content, sequences, tail, moved, proof)
        proof.sequences = moved

    def _moved_without_checks(
        self,
        session: Connection,
        content: Content,
        sequences: t.Mapping[str, tuple[int, bool]],
        tail: t.Sequence[Migration],
        moved: dict[str, str],
        proof: Proof,
    ) -> dict[str, str]:
        """A check that inserts and rolls back still moves sequences: only what moves without checks is the
        rollback's."""
        with session.cursor() as cursor:
            cursor.execute("BEGIN READ WRITE")  # the session reads only, but for this
            for name in moved:
                if name in content.sequences:
                    value, called = content.sequences[name]
                    arguments = (content.quoted[name], value, called)
                    cursor.execute("SELECT pg_catalog.setval(%s::regclass, %s, %s)", arguments)
            cursor.execute("COMMIT")
        for phase in ("redeploy", "rollback"):
            done = self._pass(phase, tail, verify=False, traced=False)
            if done.error is not None:
                return moved
        still = _moved({name: sequences[name] for name in moved}, self._content(session, tables=False).sequences)
        proof.moved_by_checks = sorted(moved.keys() - still.keys())
        return still

    def _catalog(self, session: Connection) -> Catalog:
        self._go_on()
        return snapshot(session, exclude_schemas=(self._request.ledger_schema,))

    def _content(self, session: Connection, *, tables: bool = True) -> Content:
        """Every table's rows and hash, every sequence's value. The ledger's own are left out."""
        with session.cursor() as cursor:
            cursor.execute(_RELATIONS, (self._request.ledger_schema,))
            relations = cursor.fetchall()
            hashes: dict[str, dict[str, t.Any]] = {}
            sequences: dict[str, tuple[int, bool]] = {}
            belongs: dict[str, list[str]] = {}
            spelled: dict[str, str] = {}
            sizes: dict[str, tuple[int, int]] = {}
            for schema, name, kind, size, columns, belongs_to in relations:
                self._go_on()
                label = f"{schema}.{name}"
                quoted = f"{quote_identifier(schema, session)}.{quote_identifier(name, session)}"
                belongs[label], spelled[label] = belongs_to, quoted
                if kind == "S":
                    cursor.execute(f"SELECT last_value, is_called FROM {quoted}")
                    value, called = cursor.fetchone() or (0, False)
                    sequences[label] = (int(value), bool(called))
                elif tables:
                    cursor.execute(hash_statement(quoted, columns, (), modulus=None, connection=session))
                    names = [column.name for column in cursor.description or ()]
                    hashes[label] = dict(zip(names, cursor.fetchone() or ()))
                    sizes[label] = (int(size), int(hashes[label]["rows"]))
        return Content(hashes, sequences, sizes, belongs, spelled)

    @staticmethod
    def _roles(session: Connection) -> dict[str, str]:
        with session.cursor() as cursor:
            cursor.execute(_ROLES)
            return dict(cursor.fetchall())

    def _note_roles(self, session: Connection, before: t.Mapping[str, str], proof: Proof) -> None:
        after = self._roles(session)
        proof.roles = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if proof.roles:
            self._notes.append(
                f"after the rollback the server's roles differ: {_some(proof.roles)}; roles belong to no database, and"
                " the comparison does not judge them"
            )

    # --- on a sample -------------------------------------------------------------------------------------------------

    def _looked_into(self, *phases: str, written: bool = False) -> list[str]:
        """The tables of which a part is there and that these phases read or wrote (``written``: wrote)."""
        trace = t.cast(LockTrace, self._trace)
        seen = trace.written if written else trace.touched
        found = {name for (phase, _number), names in seen.items() if phase in phases for name in names}
        if "deploy" in phases:
            found |= {
                name
                for migration in self._pending_now
                for step in migration.steps
                if not isinstance(step, SqlStep) and (name := ".".join(split_qualified(step.table))) in self._partial
            }
        return sorted(found)

    def _unsure(self, what: str, names: t.Sequence[str]) -> str:
        whole = [f"{name} ({self._partial[name][1]} rows)" for name in names]
        return f"{what}, but on a sample: it depends on all rows of {_some(whole)}"

    def _reads_rows(self) -> list[str]:
        """Checks whose answer depends on what rows there are."""
        if not self._partial:
            return []
        return [
            f"{check.name} of {migration.id}"
            for migration in self._pending_now
            for check in migration.verify
            if check.kind == "query" and not is_catalog_query(check.parsed)
        ]

    # --- the verdicts ------------------------------------------------------------------------------------------------

    def _judge_deploy(self, pending: t.Sequence[Migration], marker: t.Mapping[str, t.Any] | None) -> list[Evidence]:
        deploys = [item for item in self._passes if item.phase == "deploy"]
        done = [name for item in deploys for name in item.done]
        wanted = [migration.id for migration in pending]
        error = next((item.error for item in deploys if item.error is not None), None)
        partly = self._looked_into("deploy")
        result, applied = verdict(done == wanted), t.cast(t.Any, done)
        if done != wanted:
            applied = f"{len(done)} of {len(wanted)} applied: {error}"
        elif partly:
            # Rows that are not there could be refused by a constraint, or by a unique index.
            result, applied = "not_measured", self._unsure(f"{', '.join(done)} applied", partly)
        deployed = _evidence(
            "rehearsal.deploy",
            result,
            applied,
            "the runner, on the shadow",
            **rehearsed_details(
                self._plan,
                pending,
                backup_id=(marker or {}).get("backup_id"),
                key=make_key(self._request.run_dir, None) if self._request.run_dir else None,
                variables=self._request.variables,
                secrets=self._request.secrets,
            ),
            seconds=round(sum(item.seconds for item in deploys), 3),
        )
        checks = [check for item in deploys for check in item.results["checks"]]
        checks += [result.to_dict() for result in self._holding]
        broken = {(result.migration, result.check.name) for result in self._held if not result.passed}
        failed = [f"{name} of {migration}, before this migration as well" for migration, name in sorted(broken)]
        failed += [
            f"{check['name']} of {check['migration']}"
            for check in checks
            if not check["passed"] and (check["migration"], check["name"]) not in broken
        ]
        if failed or isinstance(error, VerificationFailed):
            verified = _evidence("rehearsal.verify", "fail", {"checks": len(checks), "failed": failed}, "checks")
        elif error is not None:
            verified = _evidence("rehearsal.verify", "not_measured", "the deployment failed before", "checks")
        elif not checks:
            verified = _evidence("rehearsal.verify", "not_applicable", "the plan has no checks", "checks")
        elif self._reads_rows():
            text = f"on a sample: {_some(self._reads_rows())} may answer otherwise where all rows are"
            verified = _evidence("rehearsal.verify", "not_measured", text, "checks", passed=len(checks))
        else:
            verified = _evidence("rehearsal.verify", "pass", {"checks": len(checks), "failed": []}, "checks")
        return [deployed, verified]

    def _judge_rollback(self, proof: Proof) -> list[Evidence]:
        source = "catalog entries before and after"
        hashes = "row count and content hash of each table, value of each sequence, before and after"
        details: dict[str, t.Any] = {"migrations": proof.migrations, "reason": proof.reason}
        names = ("rehearsal.rollback_catalog", "rehearsal.rollback_data")
        if proof.error is not None:
            text = f"the rollback failed: {proof.error['message']}"
            return [_evidence(name, "fail", text, source, **details) for name in names]
        if proof.catalog is None:
            return [_evidence(name, "not_measured", proof.reason or "", source, **details) for name in names]
        # What has been proven of the newer ones does not stand for those that have no way back.
        good = "not_measured" if proof.reason else "pass"
        read, written = self._looked_into("rollback"), self._looked_into("deploy", "rollback", written=True)
        catalog = self._unsure("identical", read) if read and not proof.reason else None
        data = sorted({*read, *written})
        content = self._unsure("the same in the rows that are there", data) if data and not proof.reason else None
        found = {**proof.tables, **proof.sequences}
        tables, rows, sequences = proof.compared
        same: dict[str, t.Any] = {"tables": tables, "rows": rows, "sequences": sequences}
        return [
            _evidence(
                names[0],
                "fail" if proof.catalog else "not_measured" if catalog else good,
                proof.catalog.summary() if proof.catalog else proof.reason or catalog or "identical",
                source,
                **details,
                difference=proof.catalog.to_dict(),
            ),
            _evidence(
                names[1],
                "fail" if found else "not_measured" if content else good,
                _some([f"{name}: {what}" for name, what in found.items()])
                if found
                else proof.reason or content or same,
                hashes,
                **details,
                compared=same,
                differences=found,
                left_out=proof.left_out,
                sequences_moved_by_checks=proof.moved_by_checks,
            ),
        ]

    def _judge_redeploy(self, proof: Proof, change: CatalogDiff | None) -> Evidence:
        name, source = "rehearsal.redeploy", "the runner and the catalog, after the rollback"
        redeploy = self._passes[-1] if self._passes and self._passes[-1].phase == "redeploy" else None
        if redeploy is None:
            why = "the rollback failed" if proof.error is not None else proof.reason or "not tried"
            return _evidence(name, "not_measured", why, source)
        if redeploy.error is not None:
            return _evidence(name, "fail", str(redeploy.error), source)
        if change:
            text = f"the second deployment leaves another catalog: {change.summary()}"
            return _evidence(name, "fail", text, source, difference=change.to_dict())
        partly = self._looked_into("redeploy")
        if partly and not proof.reason:
            return _evidence(name, "not_measured", self._unsure("it ends as the first", partly), source)
        measured = {"migrations": redeploy.done, "seconds": round(redeploy.seconds, 3)}
        return _evidence(name, "not_measured" if proof.reason else "pass", proof.reason or measured, source)

    def _judge_locks(self, locks: t.Sequence[HeldLock]) -> Evidence:
        request = self._request
        factor = request.shadow_factor
        blocking = [lock for lock in locks if lock.blocks and lock.phase in ("deploy", "rollback")]
        worst = sorted(notable(blocking), key=lambda lock: -lock.seconds)
        over = [lock for lock in worst if lock.seconds * factor > request.lock_budget]
        details: dict[str, t.Any] = {
            "shadow_factor": factor,
            "longest_seconds": round(worst[0].seconds * factor, 4) if worst else 0.0,
            "longest": worst[0].to_dict() if worst else None,
            "over": [lock.to_dict() for lock in over[:100]],
            "bound": "a lower bound: the shadow was idle, production waits for other sessions too",
        }
        required = f"at most {human_duration(request.lock_budget)}"
        source = f"pg_locks; statements outside a transaction sampled every {human_duration(request.sample_interval)}"
        if over:
            measured: t.Any = _some([describe_hold(lock, factor) for lock in over])
            return _evidence("rehearsal.lock_budget", "fail", measured, source, required=required, **details)
        if not all(item.complete for item in self._passes if item.phase == "deploy"):
            reason = "the deployment failed before its end"
            return _evidence("rehearsal.lock_budget", "not_measured", reason, source, required=required, **details)
        touched = t.cast(LockTrace, self._trace).touched
        growing = [lock for lock in worst if (lock.phase, lock.transaction) in touched]
        if growing:
            # Its transaction worked through rows of which a part is there: with all of them it lasts longer.
            tables = sorted({name for lock in growing for name in touched[lock.phase, lock.transaction]})
            text = self._unsure(_some([describe_hold(lock, factor) for lock in growing]), tables)
            details["grows_with"] = tables
            return _evidence("rehearsal.lock_budget", "not_measured", text, source, required=required, **details)
        longest = describe_hold(worst[0], factor) if worst else "no lock that blocks readers or writers"
        return _evidence("rehearsal.lock_budget", "pass", longest, source, required=required, **details)

    def _judge_rewrites(self, rewrites: t.Sequence[t.Mapping[str, t.Any]]) -> Evidence:
        limit = self._request.rewrite_max_size
        judged = [item for item in rewrites if item["phase"] in ("deploy", "rollback")]
        # Of unknown size is a table that this rehearsal made itself, and one nobody has analyzed.
        large = [item for item in judged if (item["bytes"] or 0) > limit]
        shown = [
            f"{item['relation']} ({human_size(item['bytes']) if item['bytes'] is not None else 'size unknown'}) by"
            f" {item['tag']} ({item['file']}:{item['line']})"
            for item in large or judged
        ]
        return _evidence(
            "rehearsal.rewrites",
            verdict(not large),
            _some(shown) if shown else "no table was rewritten",
            "pg_class.relfilenode after each statement",
            required=f"no table over {human_size(limit)} is rewritten",
            rewrites=list(judged[:100]),
        )

    def _judge_hazards(self, hazards: _squawk.Hazards | None, reason: str) -> Evidence:
        name = "rehearsal.hazards"
        if hazards is None:
            never = self._request.squawk == "never"
            return _evidence(name, "not_applicable" if never else "not_measured", reason, "squawk")
        source = f"squawk {hazards.version}"
        found = [f"{item.rule} ({item.file}:{item.line})" for item in hazards.findings]
        details = hazards.to_dict()
        if found:
            return _evidence(name, "fail", _some(found), source, **details)
        if hazards.unread:
            first = hazards.unread[0]
            text = f"squawk cannot read {first.file}:{first.line} ({first.message})"
            return _evidence(name, "not_measured", text, source, **details)
        return _evidence(name, "pass", "no findings", source, **details)

    def _raise_failure(self, evidence: t.Sequence[Evidence], results: dict[str, t.Any]) -> None:
        """Hazards are no failure of the rehearsal: they are for the gate to judge."""
        failed = [item for item in evidence if item.verdict == "fail" and item.criterion != "rehearsal.hazards"]
        if not failed or self._request.on_failure == "report":
            return
        shown = "; ".join(f"{item.criterion.partition('.')[2]}: {_measured(item)}" for item in failed)
        error = SurefootError(f"the rehearsal failed: {shown}", remedy=_REMEDY, code="rehearsal")
        error.details["criteria"] = [item.criterion for item in failed]
        error.results = results
        raise error


def require_shadow(
    session: Connection, options: ConnectionOptions, wanted: str
) -> tuple[dict[str, t.Any] | None, bool]:
    """The database's marker as a shadow (None without one), and whether it has a server of its own.

    The marker holds the database's own oid where its maker wrote one: a dump can copy a comment.

    :raises SurefootError: code ``shadow``: it has no marker and ``wanted`` is not "any"
    """
    with session.cursor() as cursor:
        cursor.execute(_MARKER)
        oid, comment, cluster = cursor.fetchone() or (0, None, "")
    marker: dict[str, t.Any] | None = None
    if str(comment or "").startswith(SHADOW_MARKER):
        with contextlib.suppress(ValueError):
            read = json.loads(str(comment)[len(SHADOW_MARKER) :])
            if isinstance(read, dict) and read.get("oid", oid) == oid:
                marker = read
    if marker is None and wanted != "any":
        raise SurefootError(
            f"{options.label} is not a shadow: nothing was done",
            remedy="Make one with surefoot.dbops.postgresql_restore; for a scratch database of your own, set"
            " shadow: any.",
            code="shadow",
        )
    return marker, marker is not None and cluster == OWN_CLUSTER


def partial_tables(marker: t.Mapping[str, t.Any] | None) -> dict[str, tuple[int, int]]:
    """The tables of which a shadow holds a part of the rows: name to bytes and (estimated) rows of the whole."""
    given = (marker or {}).get("incomplete") or {}
    return {str(name): (int(size[1]), int(size[0])) for name, size in given.items()}


def describe_hold(lock: HeldLock, factor: float = 1.0) -> str:
    """One line: mode, relation, size, seconds, whom it blocks, and the statement."""
    relation = lock.relation
    rows = "" if relation.table else f", {relation.rows} rows"
    size = f" ({human_size(relation.bytes)}{rows})" if relation.bytes is not None else ""
    scaled = f" (measured {human_duration(lock.seconds)}, times {factor:g})" if factor != 1.0 else ""
    where = "rollback of " if lock.phase == "rollback" else ""
    return (
        f"{lock.mode_name} on {relation.name}{size} for {human_duration(lock.seconds * factor)}{scaled}, blocks"
        f" {', '.join(lock.blocks)}; {where}{lock.migration}, {lock.tag} ({lock.file}:{lock.line})"
    )


def notable(locks: t.Sequence[HeldLock]) -> list[HeldLock]:
    """Those that say something more than another one of the same transaction, which blocks as many on the same table
    for as long: a weaker mode on it, or a lock on its index."""
    longest: dict[tuple[str, int, str], list[HeldLock]] = {}
    for lock in locks:
        longest.setdefault((lock.phase, lock.transaction, lock.relation.name), []).append(lock)

    def says_more(lock: HeldLock) -> bool:
        for name in filter(None, (lock.relation.name, lock.relation.table)):
            for other in longest.get((lock.phase, lock.transaction, name), ()):
                covers = set(other.blocks) >= set(lock.blocks) and other.seconds >= lock.seconds
                if covers and (name != lock.relation.name or MODES.index(other.mode) > MODES.index(lock.mode)):
                    return False
        return True

    return [lock for lock in locks if says_more(lock)]


_REQUIRED = {
    "rehearsal.deploy": "every pending migration is applied",
    "rehearsal.verify": "every check passes",
    "rehearsal.rollback_catalog": "the catalog as it was before, grants, defaults, policies and comments included",
    "rehearsal.rollback_data": "every table not in rollback_loses, and every sequence, as before",
    "rehearsal.redeploy": "a second deployment ends as the first",
    "rehearsal.lock_budget": "no lock that blocks readers or writers for longer than lock_budget",
    "rehearsal.rewrites": "no large table is rewritten",
    "rehearsal.hazards": "squawk finds nothing",
}


def _evidence(
    criterion: str, result: str, measured: t.Any, source: str, *, required: str | None = None, **details: t.Any
) -> Evidence:
    return Evidence(criterion, PHASE, result, measured, required or _REQUIRED[criterion], source, details=details)


def _nothing(criterion: str, reason: str) -> Evidence:
    return _evidence(criterion, "not_applicable", reason, "ledger")


def _not_yet(pending: t.Sequence[Migration]) -> list[Evidence]:
    if not pending:
        return [_nothing(name, "nothing is pending") for name in _REQUIRED]
    return [_evidence(name, "not_measured", "check mode: nothing was run", "ledger") for name in _REQUIRED]


def _measured(item: Evidence) -> str:
    value = item.measured
    if isinstance(value, dict) and "failed" in value:
        return _some([str(name) for name in value["failed"]]) or "a check failed"
    return str(value).rstrip(".")


def _some(names: t.Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return "; ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _table_difference(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any] | None) -> str:
    if after is None:
        return "is gone"
    if before["rows"] != after["rows"]:
        return f"{before['rows']} rows before, {after['rows']} after"
    return f"{before['rows']} rows before and after, with other content"


def _moved(before: t.Mapping[str, tuple[int, bool]], after: t.Mapping[str, tuple[int, bool]]) -> dict[str, str]:
    found = {}
    for name, value in before.items():
        now = after.get(name)
        if now is None:
            found[name] = "is gone"
        elif now != value:
            found[name] = f"sequence at {_at(value)} before, {_at(now)} after"
    return found


def _at(value: tuple[int, bool]) -> str:
    return f"{value[0]}" if value[1] else f"{value[0]} (not yet used)"
