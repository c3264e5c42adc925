# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The criteria of the gate, and the tick boxes of the two source documents, as tables. ``docs/criteria.md`` shows them.

A criterion is judged from evidence records of its name. A box is judged from its criteria: all of them must hold.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._preflight import ADVISORY
from ansible_collections.surefoot.dbops.plugins.module_utils._preflight import CRITERIA as PREFLIGHT

GO, SIGN_OFF, MONITOR = "go", "sign_off", "monitor"
STAGES = (GO, SIGN_OFF, MONITOR)

# What a criterion demands where the policy's key ``criteria`` does not name it.
REQUIRED = "required"  # must be measured and hold
WHEN_CONFIGURED = "when_configured"  # likewise, once the plan, the task or a record shows that it is configured
WHEN_MEASURABLE = "when_measurable"  # must not fail; what this server or host does not let us measure stops nothing
ATTESTATION = "attestation"  # a person's statement: who, when, what, until when
OPTIONAL = "optional"  # shown, stops nothing
DEFAULTS = {
    REQUIRED: "must be measured and hold",
    WHEN_CONFIGURED: "must be measured and hold once it is configured",
    WHEN_MEASURABLE: "must not fail; what cannot be measured here stops nothing",
    ATTESTATION: "a person says so: who, when, what, until when",
    OPTIONAL: "shown, stops nothing",
}


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One thing that must hold.

    ``stages``: where it is judged. ``how``: what measures it. ``policy_key``: the key of the policy that switches it
    (``backup``, ``rehearsal``, ``restore_proof``). ``configured_by``: criteria of checks; a plan that declares one of
    them configures this criterion as well. ``after_apply``: only measurements made after the migration count.
    """

    id: str
    stages: tuple[str, ...]
    default: str
    how: str
    policy_key: str | None = None
    configured_by: tuple[str, ...] = ()
    after_apply: bool = False


@dataclasses.dataclass(frozen=True)
class Box:
    """One tick box. ``document`` and ``line`` say where it stands, ``text`` what it asks, in few words. ``migration``:
    the box speaks of this migration alone, which must be among those that were applied."""

    document: str
    line: int
    section: str
    text: str
    stage: str
    criteria: tuple[str, ...]
    migration: str | None = None

    @property
    def id(self) -> str:
        return f"{self.document}:{self.line}"


DOCUMENTS = {
    "integrity": "ScraperSky Database Integrity Migration Playbook",
    "platform": "Database Migration Master Plan",
}

DATABASES = "006_add_platform_databases_table"
RLS = "006_enable_rls_with_permissive_policies"
REGISTRATION = "006_register_railway_databases"


def _each(
    names: str,
    stages: t.Union[str, tuple[str, ...]],
    default: str,
    how: str,
    **more: t.Any,
) -> list[Criterion]:
    stages = (stages,) if isinstance(stages, str) else stages
    return [Criterion(name, stages, default, how, **more) for name in names.split()]


# Preflight criteria that some servers and hosts hide, or that exist only where something is set up.
_UNSEEN = (
    "preflight.disk_backup",
    "preflight.disk_server",
    "preflight.lock_table",
    "preflight.pg_monitor",
    "preflight.publications",
    "preflight.relations_exist",
    "preflight.replica_lag",
    "preflight.replication_slots",
    "preflight.subscriptions",
    "preflight.synchronous_standby",
    "preflight.wraparound",
)


def _preflight(name: str) -> Criterion:
    default = OPTIONAL if name in ADVISORY else WHEN_MEASURABLE if name in _UNSEEN else REQUIRED
    return Criterion(name, (GO,), default, "postgresql_preflight_info")


_PLAN_CHECK = "a check of the plan, run by postgresql_migration and postgresql_verification"
_AFTER = (SIGN_OFF, MONITOR)

CRITERIA: dict[str, Criterion] = {
    item.id: item
    for item in [
        *_each("plan.valid ledger.nothing_half_done ledger.no_drift", GO, REQUIRED, "postgresql_migration_info"),
        *[_preflight(name) for name in PREFLIGHT],
        *_each(
            "backup.created backup.verified",
            (GO, SIGN_OFF),
            REQUIRED,
            "postgresql_backup: pg_dump in one snapshot, read back, every file hashed",
            policy_key="backup",
        ),
        *_each(
            "backup.minimum_size backup.contains_tables backup.stored_securely",
            GO,
            REQUIRED,
            "postgresql_backup reads the finished backup",
            policy_key="backup",
        ),
        *_each("backup.client_version backup.off_host_copy", GO, WHEN_MEASURABLE, "postgresql_backup"),
        *_each(
            "backup.confirmed",
            GO,
            WHEN_CONFIGURED,
            "postgresql_external_backup: a second program confirms the backup that another one took",
        ),
        *_each(
            "gate.backup_age gate.backup_identity gate.catalog",
            GO,
            REQUIRED,
            "postgresql_gate compares the backup's manifest with the clock and the database",
            policy_key="backup",
        ),
        *_each(
            "restore.completed restore.row_counts restore.content restore.sequences restore.constraints"
            " restore.extensions restore.privileges restore.catalog",
            GO,
            REQUIRED,
            "postgresql_restore compares the restored copy with what the backup recorded in its own snapshot",
            policy_key="restore_proof",
        ),
        *_each(
            "shadow.sample",
            GO,
            WHEN_CONFIGURED,
            "postgresql_restore compares a shadow of the schema and a sample of the rows with the snapshot it is of",
        ),
        *_each(
            "rehearsal.deploy rehearsal.verify rehearsal.rollback_catalog rehearsal.rollback_data rehearsal.redeploy"
            " rehearsal.lock_budget rehearsal.rewrites",
            GO,
            REQUIRED,
            "postgresql_rehearsal on the restored copy",
            policy_key="rehearsal",
        ),
        *_each(
            "gate.rehearsed_files",
            GO,
            WHEN_MEASURABLE,
            "postgresql_gate: hashes of plan, files and variables, and the shadow's backup, against the rehearsal's",
        ),
        *_each("rehearsal.hazards", GO, OPTIONAL, "postgresql_rehearsal runs squawk where it is installed"),
        *_each("baseline.recorded", GO, WHEN_CONFIGURED, "postgresql_baseline"),
        *_each("baseline.shadow_regression", GO, WHEN_MEASURABLE, "postgresql_baseline on the restored copy"),
        *_each("gate.window", GO, REQUIRED, "postgresql_gate: the clock against the policy's window and its reserve"),
        *_each("gate.approvals", GO, REQUIRED, "postgresql_gate: a name for each of the policy's approvals"),
        *_each(
            "gate.notified_24h", GO, WHEN_CONFIGURED, "postgresql_gate: when the notification was sent (notify.sent)"
        ),
        *_each(
            "railway.redis.deployed railway.mongodb.deployed",
            GO,
            WHEN_CONFIGURED,
            "railway_service_info: an active deployment with a replica that runs",
        ),
        *_each(
            "railway.redis.variable railway.mongodb.variable",
            GO,
            WHEN_CONFIGURED,
            "railway_variables_info: the first of the named variables that can be used from here",
        ),
        *_each(
            "railway.redis.healthy railway.mongodb.healthy", GO, WHEN_CONFIGURED, "Railway's API and a probe of each"
        ),
        *_each(
            "rds.snapshot_available",
            GO,
            WHEN_CONFIGURED,
            "rds_snapshot: available, of this very instance, young enough, encrypted",
        ),
        # RDS cannot forbid a failover. One is noticed: before the apply, and after it once it is through.
        *_each(
            "rds.no_failover",
            (GO, SIGN_OFF),
            WHEN_CONFIGURED,
            "rds_status_info: events of the instance, and its zones against an earlier look",
            after_apply=True,
        ),
        *_each(
            "rds.maintenance_held",
            SIGN_OFF,
            WHEN_MEASURABLE,
            "rds_maintenance_window: nothing of AWS's own was due within the hold's horizon",
        ),
        *_each("gate.decision", SIGN_OFF, REQUIRED, "the record of postgresql_gate before the apply"),
        *_each("migration.applied", SIGN_OFF, REQUIRED, "the ledger, after postgresql_migration"),
        *_each("migration.lock_budget", SIGN_OFF, WHEN_CONFIGURED, "pg_locks during the apply"),
        *_each(
            "migration.quarantine",
            SIGN_OFF,
            WHEN_CONFIGURED,
            "postgresql_migration: rows in the quarantine by reason and its size, against what the sweeps moved",
        ),
        *_each(
            "run.writes_paused run.writes_resumed",
            SIGN_OFF,
            WHEN_CONFIGURED,
            "surefoot_pause_writes: its two files of tasks ended well, before the apply and after it",
        ),
        *_each(
            "pgbouncer.paused pgbouncer.resumed pgbouncer.reconnected",
            SIGN_OFF,
            WHEN_CONFIGURED,
            "pgbouncer: SHOW DATABASES, POOLS and SERVERS after its command",
        ),
        *_each("pgbouncer.clients_waiting", _AFTER, OPTIONAL, "pgbouncer_info: SHOW POOLS"),
        *_each(
            "platform.databases.table platform.databases.indexes platform.databases.functions platform.databases.views",
            SIGN_OFF,
            WHEN_CONFIGURED,
            _PLAN_CHECK,
        ),
        *_each(
            "platform.rls.enabled platform.rls.tables platform.rls.policies platform.rls.permissive"
            " platform.rls.verify_rls_enabled platform.rls.test_rls_policies platform.registration.rows"
            " platform.registration.encrypted platform.registration.redacted platform.registration.decryption",
            _AFTER,
            WHEN_CONFIGURED,
            _PLAN_CHECK,
        ),
        *_each(
            "rbac.orphans rbac.isolation rbac.plans rbac.refused rbac.tenant_bound",
            _AFTER,
            WHEN_CONFIGURED,
            _PLAN_CHECK,
        ),
        *_each(
            "registration.encrypted registration.decryption",
            _AFTER,
            WHEN_CONFIGURED,
            "database_registration decrypts what it wrote before it commits",
        ),
        *_each("databases.healthy", _AFTER, WHEN_CONFIGURED, "database_health: a login and a ping of each database"),
        *_each("watch.connections watch.wal_rate", SIGN_OFF, REQUIRED, "a sample a second during the apply"),
        *_each(
            "watch.temp_tables watch.quarantine watch.waiters watch.replica_lag watch.endpoints",
            SIGN_OFF,
            WHEN_CONFIGURED,
            "a sample a second during the apply",
        ),
        *_each("watch.disk", SIGN_OFF, WHEN_MEASURABLE, "a sample a second during the apply"),
        *_each(
            "serverlog.permission_denied serverlog.foreign_key_violation serverlog.fatal serverlog.errors",
            _AFTER,
            WHEN_CONFIGURED,
            "the server log (csvlog, jsonlog) since the start of the run",
        ),
        *_each(
            "baseline.regression",
            _AFTER,
            WHEN_CONFIGURED,
            "postgresql_baseline before and after: medians, beyond the threshold and the spread of the runs",
            after_apply=True,
        ),
        *_each(
            "http.status http.latency_p95 http.error_rate http.no_new_403",
            _AFTER,
            WHEN_CONFIGURED,
            "http_probe before and after",
            after_apply=True,
        ),
        *_each(
            "statements.slow",
            MONITOR,
            WHEN_MEASURABLE,
            "postgresql_load_info: pg_stat_statements against what it said before the migration",
        ),
        *_each("host.cpu_memory", MONITOR, OPTIONAL, "postgresql_load_info: /proc of the server's host"),
        *_each("rds.cpu_memory", MONITOR, WHEN_CONFIGURED, "CloudWatch, against the days before"),
        *_each("notify.sent", SIGN_OFF, WHEN_CONFIGURED, "notify: the answer of each receiver", after_apply=True),
        *_each("attestation.no_incident", GO, ATTESTATION, "no critical incident is in progress"),
        *_each(
            "attestation.team_available attestation.ciso_briefed attestation.mongodb_not_used",
            GO,
            OPTIONAL,
            "a person says so; required where the policy's criteria say so",
        ),
        *_each(
            "attestation.frontends_scaled attestation.jobs_disabled",
            GO,
            OPTIONAL,
            "a person says so, where the policy's criteria say so and surefoot_pause_writes does not do it",
        ),
        *_each("attestation.no_user_facing_errors", SIGN_OFF, ATTESTATION, "no error reached a user"),
        *_each("attestation.no_support_tickets", SIGN_OFF, ATTESTATION, "no support ticket speaks of the migration"),
        *_each(
            "attestation.redis_foundation attestation.mongodb_foundation",
            SIGN_OFF,
            ATTESTATION,
            "the registered database is ready to be integrated",
            configured_by=("platform.registration.rows",),
        ),
        *_each("attestation.final_sign_off", SIGN_OFF, OPTIONAL, "a person takes the result over"),
        *_each("attestation.no_user_reports", MONITOR, ATTESTATION, "no user reported a problem"),
    ]
}

# What a person may say instead of a measurement, because no measurement exists. Nothing else can be attested.
ATTESTATIONS = tuple(name for name in CRITERIA if name.startswith("attestation."))

# A service that is not used needs no evidence: its criterion does not apply once a person has said so.
NOT_USED = {
    name: "attestation.mongodb_not_used"
    for name in ("railway.mongodb.deployed", "railway.mongodb.variable", "railway.mongodb.healthy")
}

# What nobody has to say where the run itself does it: without it there is no apply.
DONE_BY_RUN = dict.fromkeys(("attestation.frontends_scaled", "attestation.jobs_disabled"), "run.writes_paused")

# Which phases work on a copy: what they measure says nothing of the target.
SHADOW_PHASES = ("rehearsal", "restore", "shadow")
# Phases before the apply, for criteria that the table does not know.
PHASES_BEFORE = ("plan", "preflight", "backup", "gate", *SHADOW_PHASES)

_RESTORED = tuple(name for name in CRITERIA if name.startswith("restore."))
_BACKED_UP = ("backup.created", "backup.verified", *_RESTORED)
_DRY_RUN = (
    "rehearsal.deploy",
    "rehearsal.verify",
    "rehearsal.rollback_catalog",
    "rehearsal.rollback_data",
    "rehearsal.redeploy",
)
_RLS = ("platform.rls.enabled", "platform.rls.tables", "platform.rls.policies", "platform.rls.permissive")
_ENCRYPTION = ("platform.registration.encrypted", "platform.registration.decryption")
_CONNECTED = ("preflight.connection", "preflight.pooler")
_HEALTHY = ("railway.redis.healthy", "railway.mongodb.healthy")
_CHECKS = tuple(name for name in CRITERIA if name.startswith("platform."))
_PRE_DEPLOYMENT = (
    "backup.created",
    "backup.minimum_size",
    "backup.contains_tables",
    "backup.stored_securely",
    "preflight.connection",
    "preflight.server_version",
    "ledger.nothing_half_done",
    "railway.redis.deployed",
    "railway.mongodb.deployed",
    "railway.redis.variable",
    "railway.mongodb.variable",
    "preflight.create_on_schema",
    "preflight.extensions",
    "preflight.table_ownership",
)

_I, _P = "integrity", "platform"

BOXES: tuple[Box, ...] = (
    Box(_I, 206, "Pre-Migration", "AWS backup snapshot exists", GO, ("rds.snapshot_available",)),
    Box(_I, 207, "Pre-Migration", "dry run on a shadow database", GO, _DRY_RUN),
    Box(_I, 208, "Pre-Migration", "no automatic failover in RDS", GO, ("rds.no_failover",)),
    Box(_I, 211, "During Migration", "connection saturation below 90%", SIGN_OFF, ("watch.connections",)),
    Box(_I, 212, "During Migration", "sizes of temporary tables", SIGN_OFF, ("watch.temp_tables", "watch.quarantine")),
    Box(_I, 213, "During Migration", "WAL below 1 GB/min", SIGN_OFF, ("watch.wal_rate",)),
    Box(_I, 216, "Post-Migration", "core RBAC queries explained", SIGN_OFF, ("rbac.plans", "baseline.regression")),
    Box(_I, 217, "Post-Migration", "API p95 below 200 ms", SIGN_OFF, ("http.latency_p95",)),
    Box(
        _I, 218, "Post-Migration", "foreign_key_violation in the logs", SIGN_OFF, ("serverlog.foreign_key_violation",)
    ),
    Box(_P, 89, "Database Backup", "backup created", GO, ("backup.created",)),
    Box(_P, 90, "Database Backup", "larger than 100 KB", GO, ("backup.minimum_size",)),
    Box(_P, 91, "Database Backup", "holds CREATE TABLE statements", GO, ("backup.contains_tables",)),
    Box(_P, 92, "Database Backup", "stored securely", GO, ("backup.stored_securely",)),
    Box(_P, 135, "Railway", "Redis deployed", GO, ("railway.redis.deployed",)),
    Box(_P, 136, "Railway", "MongoDB deployed, if applicable", GO, ("railway.mongodb.deployed",)),
    Box(_P, 137, "Railway", "REDIS_URL set", GO, ("railway.redis.variable",)),
    Box(_P, 138, "Railway", "MONGODB_URL set, if applicable", GO, ("railway.mongodb.variable",)),
    Box(_P, 153, "Database Permissions", "CREATE on schema platform", GO, ("preflight.create_on_schema",)),
    Box(_P, 154, "Database Permissions", "pgcrypto can be used", GO, ("preflight.extensions",)),
    Box(_P, 155, "Database Permissions", "ALTER TABLE allowed", GO, ("preflight.table_ownership",)),
    Box(_P, 212, "Step 1", "table platform.databases exists", SIGN_OFF, ("platform.databases.table",)),
    Box(_P, 213, "Step 1", "8 indexes", SIGN_OFF, ("platform.databases.indexes",)),
    Box(_P, 214, "Step 1", "4 functions", SIGN_OFF, ("platform.databases.functions",)),
    Box(_P, 215, "Step 1", "2 views", SIGN_OFF, ("platform.databases.views",)),
    Box(_P, 216, "Step 1", "no error", SIGN_OFF, ("migration.applied",), DATABASES),
    Box(_P, 270, "Step 2", "RLS on 24 tables or more", SIGN_OFF, ("platform.rls.enabled", "platform.rls.tables")),
    Box(_P, 271, "Step 2", "24 policies or more", SIGN_OFF, ("platform.rls.policies", "platform.rls.permissive")),
    Box(_P, 272, "Step 2", "verify_rls_enabled()", SIGN_OFF, ("platform.rls.verify_rls_enabled",)),
    Box(_P, 273, "Step 2", "test_rls_policies()", SIGN_OFF, ("platform.rls.test_rls_policies",)),
    Box(_P, 274, "Step 2", "no error", SIGN_OFF, ("migration.applied",), RLS),
    Box(_P, 351, "Step 3", "MongoDB registered", SIGN_OFF, ("platform.registration.rows",)),
    Box(_P, 352, "Step 3", "Redis registered", SIGN_OFF, ("platform.registration.rows",)),
    Box(_P, 353, "Step 3", "both are active", SIGN_OFF, ("platform.registration.rows",)),
    Box(_P, 354, "Step 3", "connection strings encrypted", SIGN_OFF, ("platform.registration.encrypted",)),
    Box(_P, 355, "Step 3", "decryption works", SIGN_OFF, ("platform.registration.decryption",)),
    Box(_P, 356, "Step 3", "no error", SIGN_OFF, ("migration.applied",), REGISTRATION),
    Box(_P, 554, "Week 1", "query error rate unchanged", MONITOR, ("serverlog.errors",)),
    Box(_P, 555, "Week 1", "response times unchanged", MONITOR, ("http.latency_p95", "baseline.regression")),
    Box(_P, 556, "Week 1", "CPU and memory similar", MONITOR, ("rds.cpu_memory",)),
    Box(_P, 557, "Week 1", "no user-reported issue", MONITOR, ("attestation.no_user_reports",)),
    Box(_P, 579, "Week 2-4", "RLS policies active", MONITOR, _RLS),
    Box(_P, 580, "Week 2-4", "no permission error", MONITOR, ("serverlog.permission_denied",)),
    Box(_P, 581, "Week 2-4", "connection configurations intact", MONITOR, ("platform.registration.rows",)),
    Box(_P, 582, "Week 2-4", "encryption works", MONITOR, _ENCRYPTION),
    Box(_P, 663, "GO", "full backup, verified", GO, _BACKED_UP),
    Box(_P, 664, "GO", "pre-deployment checklist complete", GO, _PRE_DEPLOYMENT),
    Box(
        _P, 665, "GO", "Railway services running", GO,
        ("railway.redis.deployed", "railway.mongodb.deployed", *_HEALTHY),
    ),
    Box(_P, 666, "GO", "database connection stable", GO, _CONNECTED),
    Box(_P, 667, "GO", "window leaves 1 hour", GO, ("gate.window",)),
    Box(_P, 670, "NO-GO", "backup failed or not verified", GO, _BACKED_UP),
    Box(_P, 671, "NO-GO", "database connection unstable", GO, _CONNECTED),
    Box(_P, 672, "NO-GO", "Railway services down or unhealthy", GO, _HEALTHY),
    Box(_P, 673, "NO-GO", "too little time", GO, ("gate.window",)),
    Box(_P, 674, "NO-GO", "critical incident in progress", GO, ("attestation.no_incident",)),
    Box(_P, 766, "Technical Success", "all three files without errors", SIGN_OFF, ("migration.applied",)),
    Box(
        _P, 767, "Technical Success", "platform.databases with its rows", SIGN_OFF,
        ("platform.databases.table", "platform.registration.rows"),
    ),
    Box(_P, 768, "Technical Success", "RLS on 24 tables or more, permissive", SIGN_OFF, _RLS),
    Box(_P, 769, "Technical Success", "encryption and decryption work", SIGN_OFF, _ENCRYPTION),
    Box(_P, 770, "Technical Success", "all endpoints return 200", SIGN_OFF, ("http.status", "http.no_new_403")),
    Box(_P, 771, "Technical Success", "queries within 10% of the baseline", SIGN_OFF, ("baseline.regression",)),
    Box(_P, 772, "Technical Success", "no permission-denied error", SIGN_OFF, ("serverlog.permission_denied",)),
    Box(_P, 778, "Business Success", "no user-facing error", SIGN_OFF, ("attestation.no_user_facing_errors",)),
    Box(_P, 779, "Business Success", "no downtime", SIGN_OFF, ("watch.endpoints", "http.error_rate")),
    Box(_P, 780, "Business Success", "no support ticket", SIGN_OFF, ("attestation.no_support_tickets",)),
    Box(_P, 781, "Business Success", "foundation for Redis", SIGN_OFF, ("attestation.redis_foundation",)),
    Box(_P, 782, "Business Success", "foundation for MongoDB", SIGN_OFF, ("attestation.mongodb_foundation",)),
    Box(
        _P, 783, "Business Success", "encryption at rest", SIGN_OFF,
        ("platform.registration.encrypted", "platform.registration.redacted"),
    ),
    Box(_P, 904, "Sign-Off", "pre-deployment checks completed", SIGN_OFF, ("gate.decision",)),
    Box(_P, 905, "Sign-Off", "backup created and verified", SIGN_OFF, ("backup.created", "backup.verified")),
    Box(_P, 906, "Sign-Off", "GO confirmed", SIGN_OFF, ("gate.decision",)),
    Box(_P, 907, "Sign-Off", "migration 1 executed", SIGN_OFF, ("migration.applied",), DATABASES),
    Box(_P, 908, "Sign-Off", "migration 2 executed", SIGN_OFF, ("migration.applied",), RLS),
    Box(_P, 909, "Sign-Off", "migration 3 executed", SIGN_OFF, ("migration.applied",), REGISTRATION),
    Box(_P, 910, "Sign-Off", "post-deployment verification passed", SIGN_OFF, (*_CHECKS, "http.status")),
    Box(_P, 911, "Sign-Off", "performance within range", SIGN_OFF, ("baseline.regression",)),
    Box(_P, 912, "Sign-Off", "no critical error in the logs", SIGN_OFF, ("serverlog.fatal", "serverlog.errors")),
    Box(_P, 913, "Sign-Off", "team notified", SIGN_OFF, ("notify.sent",)),
)  # fmt: skip
