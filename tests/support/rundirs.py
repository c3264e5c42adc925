# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run directories as the phases leave them, for the tests of what reads them: the report, its page, the messages."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import pathlib
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, append_lines, record
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json

T = datetime.datetime(2026, 11, 22, 2, 31, 0, tzinfo=datetime.timezone.utc)
MIGRATIONS = (
    "006_add_platform_databases_table",
    "006_enable_rls_with_permissive_policies",
    "006_register_railway_databases",
)
SECONDS = (0.214, 0.347, 0.061)
TABLES = ("projects", "organizations", "audit_logs", "users", "user_sessions", "organization_members", "api_keys")
ROLLBACK = "ansible-playbook rollback_006.yml -i prod"
NOTICE: dict[str, t.Any] = {
    "when": "2026-11-22 02:30 UTC",
    "until": "04:00 UTC",
    "duration": "15 minutes, then 45 minutes of verification",
    "impact": "None expected: permissive policies keep the present behaviour.",
    "contact": "Rafael Santos, database team",
    "owner": "Rafael",
    "dashboard": "the migration board",
    "actions": ["Scale frontends to 0 by 02:15 UTC.", "Disable cron jobs."],
    "controls": [
        {
            "control": "Connection strings are encrypted",
            "reference": "SOC2 CC6.1",
            "risk": "Credentials readable by every reader of the table",
            "criterion": "platform.registration",
        },
        {
            "control": "Row level security on every table",
            "reference": "GDPR Art. 5(1)(f)",
            "risk": "Cross-tenant leaks",
        },
    ],
    "kpis": ["No permission denied in the server log for a week."],
}


def at(seconds: float) -> str:
    """A moment relative to T, as the phases write it."""
    moment = T + datetime.timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def digest(word: str) -> str:
    """A sha256 for where one is shown."""
    return hashlib.sha256(word.encode()).hexdigest()


class RunDirectory:
    """Writes the files of a run with the library that writes them in a run."""

    def __init__(self, path: pathlib.Path) -> None:
        path.mkdir(mode=0o700, parents=True)
        self.path = str(path)

    def json(self, name: str, value: t.Mapping[str, t.Any]) -> None:
        write_json(self.path, name, value)

    def lines(self, name: str, values: t.Sequence[t.Mapping[str, t.Any]]) -> None:
        append_lines(os.path.join(self.path, name), values)

    def evidence(
        self,
        criterion: str,
        phase: str,
        measured: t.Any,
        required: t.Any,
        *,
        verdict: str = "pass",
        source: str = "measured",
        time: str | None = None,
        **details: t.Any,
    ) -> None:
        item = Evidence(criterion, phase, verdict, measured, required, source, time or at(0), details)
        record(self.path, [item])

    def task(self, module: str, state: str | None, begin: float, seconds: float, *, failed: bool = False) -> None:
        entry = {"module": module, "state": state, "started": at(begin), "finished": at(begin + seconds)}
        self.lines("timeline.jsonl", [{**entry, "failed": failed, "changed": not failed}])

    def note(self, kind: str, text: str, by: str = "Rafael Santos") -> None:
        self.lines("notes.jsonl", [{"time": at(900), "by": by, "kind": kind, "text": text}])

    def run(self, **changes: t.Any) -> None:
        """``run.json`` of a run that applied all three, with these keys otherwise."""
        backup = {"path": f"backups/platform-{at(-300)}", "name": "platform", "manifest_sha256": digest("manifest")}
        summary: dict[str, t.Any] = {
            "run_id": os.path.basename(self.path),
            "host": "platform-prod",
            "action": "migrate",
            "outcome": "succeeded",
            "failed_phase": None,
            "error": None,
            "started": at(-84),
            "finished": at(41),
            "actor": {"os_user": "ops", "host": "bastion", "requested_by": "Rafael Santos", "approved_by": "J. Doe"},
            "policy": {
                "backup": "required",
                "lock_budget": "500ms",
                "baseline_regression": "10%",
                "pool_saturation_max": "90%",
                "wal_rate_max": "1GB/min",
                "replica_lag_max": "30s",
            },
            "applied": list(MIGRATIONS),
            "rolled_back": [],
            "pending": [],
            "manual": [],
            "lost_tables": [],
            "migrations": [
                {"id": id_, "seconds": seconds, "statements": count, "attempts": 1, "lock_held_seconds": held}
                for id_, seconds, count, held in zip(MIGRATIONS, SECONDS, (31, 84, 6), (0.014, 0.118, None))
            ],
            "backup": {**backup, "size": 247_000_000, "seconds": 12.3, "reused": False},
            "checks": {"run": 19, "failed": []},
            "run_dir": self.path,
        }
        self.json("run.json", {**summary, **changes})


def _tasks_before(run: RunDirectory) -> None:
    for module, state, begin, seconds in (
        ("postgresql_migration_info", None, -84, 0.4),
        ("postgresql_preflight_info", None, -83, 1.1),
        ("postgresql_backup", "present", -81, 12.3),
        ("postgresql_restore", "present", -68, 21.7),
        ("postgresql_rehearsal", None, -46, 9.4),
        ("postgresql_baseline", None, -36, 22.0),
        ("http_probe", None, -13, 6.5),
        ("postgresql_gate", None, -2, 0.1),
    ):
        run.task(module, state, begin, seconds)


def _evidence_before(run: RunDirectory) -> None:
    measured: t.Any
    required: t.Any
    for name, measured, required in (
        ("server_version", "15.18", "14 or newer"),
        ("schemas_exist", ["platform"], ["platform"]),
        ("extensions", ["pgcrypto"], ["pgcrypto"]),
        ("connection_stable", "20 of 20 in 0.4 s", "every one of 20"),
        ("connection_saturation", 0.12, "at most 90%"),
    ):
        run.evidence(f"preflight.{name}", "preflight", measured, required, source="SQL", time=at(-82))
    for name, measured, required in (
        ("created", "backups/platform", "a complete backup"),
        ("minimum_size", 247_000_000, 102_400),
        ("contains_tables", 26, 26),
        ("verified", {"files": 41, "bytes": 247_000_000, "tables": 26, "rows": 104_532}, "every file as hashed"),
        ("stored_securely", "directories 0700, files 0600", "readable for its owner only"),
    ):
        run.evidence(f"backup.{name}", "backup", measured, required, source="pg_dump", time=at(-69))
    copies = "backup.off_host_copy"
    run.evidence(copies, "backup", None, "a copy on another host", verdict="not_applicable", source="copy_to")
    for name in (
        "completed",
        "row_counts",
        "content",
        "sequences",
        "constraints",
        "extensions",
        "privileges",
        "catalog",
    ):
        measured = {"tables": 26, "rows": 104_532, "differences": 0}
        run.evidence(f"restore.{name}", "restore", measured, "as in the backup's snapshot", time=at(-47))
    for name in ("deploy", "verify", "rollback_catalog", "rollback_data", "redeploy", "rewrites"):
        run.evidence(f"rehearsal.{name}", "rehearsal", "0 differences", "0 differences", source="shadow", time=at(-37))
    run.evidence("rehearsal.lock_budget", "rehearsal", 0.096, "at most 0.5 s", source="pg_locks", time=at(-37))
    run.evidence("rehearsal.hazards", "rehearsal", "squawk is not installed", "no finding", verdict="not_measured")


def _rehearsal(run: RunDirectory) -> None:
    locks = []
    for count, table in enumerate(TABLES):
        place = {"file": "006_enable_rls_with_permissive_policies.sql", "line": 20 + 3 * count, "tag": "ALTER TABLE"}
        held = 0.096 - 0.012 * count
        locks.append(
            {
                **place,
                "phase": "deploy",
                "migration": MIGRATIONS[1],
                "relation": f"platform.{table}",
                "kind": "table",
                "bytes": 8192 << count,
                "rows": 104_532 >> count,
                "mode": "ACCESS EXCLUSIVE",
                "blocks": ["SELECT", "INSERT", "UPDATE", "DELETE"],
                "from_seconds": round(0.012 * count, 4),
                "to_seconds": 0.096,
                "seconds": round(held, 4),
                "source": "pg_locks",
            }
        )
    row = {
        **locks[0],
        "migration": MIGRATIONS[0],
        "mode": "SHARE ROW EXCLUSIVE",
        "tag": "CREATE TABLE",
        "seconds": 0.011,
    }
    locks.append({**row, "file": f"{MIGRATIONS[0]}.sql", "line": 14, "blocks": ["INSERT", "UPDATE", "DELETE"]})
    locks.append({**row, "relation": "platform.users", "mode": "ACCESS SHARE", "blocks": []})
    added = [
        "table platform.databases",
        *(f"index platform.idx_{count}" for count in range(8)),
        *(f"function platform.f{count}(uuid)" for count in range(4)),
        "view platform.databases_safe",
        "view platform.databases_with_connection_strings",
        *(f"trigger t{count} on platform.databases" for count in range(2)),
        *(f"policy permissive_all_{count} on platform.t{count}" for count in range(26)),
        "owner of table platform.databases",
        "column platform.databases.id",
    ]
    run.json(
        "rehearsal.json",
        {
            "statements": [{"tag": "ALTER TABLE", "seconds": 0.002}] * 121,
            "locks": locks,
            "catalog_diff": {"added": added, "removed": [], "changed": [{"object": "table platform.projects"}]},
            "rollback_proof": {"catalog": "identical", "data": "identical"},
            "hazards": [],
            "seconds": 9.4,
            "lock_budget": 0.5,
        },
    )


def _go(run: RunDirectory, **changes: t.Any) -> None:
    waiver = {"criterion": "rehearsal.hazards", "reason": "squawk is not in the image yet", "by": "dba-oncall"}
    waived = {
        "criterion": "rehearsal.hazards", "stage": "go", "demand": "required", "verdict": "not_measured",
        "status": "waived", "how": "squawk", "waiver": {**waiver, "expires": "2026-12-31"},
    }  # fmt: skip
    boxes = [
        ("platform:94", "Database Backup", "Backup file created", ["backup.created"]),
        ("platform:96", "Database Backup", "Backup contains CREATE TABLE statements", ["backup.contains_tables"]),
        ("platform:613", "GO conditions", "Database connection stable", ["preflight.connection_stable"]),
    ]
    gate = {
        "stage": "go",
        "decision": "GO",
        "time": at(-2),
        "criteria": [waived],
        "failed": [],
        "missing": [],
        "waived": [waived["waiver"]],
        "boxes": [
            {"id": id_, "section": section, "text": text, "stage": "go", "criteria": names, "status": "pass"}
            for id_, section, text, names in boxes
        ],
        "notes": [],
    }
    run.json("gate.json", {**gate, **changes})


def _measurements(run: RunDirectory) -> None:
    names = ("session lookup", "audit log page", "organization members")
    times = {"session lookup": (0.081, 0.14), "audit log page": (4.31, 6.02), "organization members": (0.62, 0.9)}
    before: list[dict[str, t.Any]] = [
        {"name": name, "median_ms": times[name][0], "p95_ms": times[name][1]} for name in names
    ]
    after = [{**item, "median_ms": item["median_ms"] * 1.03, "p95_ms": item["p95_ms"] * 1.05} for item in before]
    compared = [
        {"name": new["name"], "verdict": "unchanged", "ratio": 1.03, "median_ms": new["median_ms"],
         "median_ms_before": old["median_ms"], "p95_ms": new["p95_ms"], "p95_ms_before": old["p95_ms"]}
        for old, new in zip(before, after)
    ]  # fmt: skip
    run.json("baseline-before.json", {"label": "before", "queries": before})
    run.json("baseline-after.json", {"label": "after", "queries": after, "comparison": {"queries": compared}})
    for label, factor in (("before", 1.0), ("after", 0.97)):
        endpoints = [
            {"name": name, "p50_ms": base * factor, "p95_ms": base * 2.1 * factor, "error_rate": 0.0}
            for name, base in (
                ("auth/validate", 21.0),
                ("organizations", 34.0),
                ("projects", 38.0),
                ("audit-logs", 61.0),
            )
        ]
        run.json(f"probes-{label}.json", {"label": label, "p95_max_ms": 200.0, "endpoints": endpoints})
    samples = []
    for second in range(42):
        wave = math.sin(second / 5)
        samples.append(
            {
                "time": at(second),
                "seconds": float(second),
                "connections_percent": round(34 + 5 * wave, 3),
                "wal_bytes_per_minute": round(140_000_000 + 90_000_000 * max(wave, 0)),
                "waiters": 1 if second == 1 else 0,
                "longest_wait": 0.07 if second == 1 else 0.0,
                "replica_lag": round(0.2 + 0.1 * abs(wave), 3),
                "temp_bytes": None,
                "disk_free": 81_000_000_000 - 40_000_000 * second,
                "not_measured": {"temp_bytes": "needs pg_monitor"},
                "endpoints": [],
            }
        )
    run.lines("watch.jsonl", samples)


def _evidence_after(run: RunDirectory) -> None:
    measured: t.Any
    done = list(MIGRATIONS)
    run.evidence("migration.applied", "apply", done, done, source="ledger", time=at(1))
    run.evidence("migration.lock_budget", "apply", 0.118, "at most 0.5 s", source="pg_locks", time=at(1))
    for name in ("connections", "wal_rate", "waiters", "replica_lag"):
        run.evidence(f"watch.{name}", "apply", "within the limit", "under the limit", source="1 s samples", time=at(1))
    for criterion, name, measured in (
        ("platform.databases.table", "table platform.databases exists", 1),
        ("platform.databases.indexes", "eight indexes", 8),
        ("platform.rls.policies", "at least 26 policies", 26),
        ("platform.registration.encrypted", "connection strings are encrypted with AES-256", 0),
        ("platform.registration.decryption", "the key decrypts them", 0),
    ):
        required = {"rows": measured}
        run.evidence(criterion, "verify", measured, required, source="SQL query, rolled back", time=at(3), name=name)
    run.evidence("baseline.regression", "compare", {"slowest_ratio": 1.03}, "no regression", time=at(28))
    for name, measured in (("status", "all as expected"), ("latency_p95", {"slowest_ms": 124.3}), ("error_rate", 0.0)):
        run.evidence(f"http.{name}", "compare", measured, "as before", source="400 requests", time=at(38))
    log = "serverlog.permission_denied"
    run.evidence(log, "apply", "the log cannot be read", 0, verdict="not_measured", source="csvlog", time=at(39))


def succeeded(path: pathlib.Path) -> RunDirectory:
    """Three migrations applied on a GO, everything measured, one criterion waived."""
    run = RunDirectory(path)
    _tasks_before(run)
    _evidence_before(run)
    _rehearsal(run)
    _go(run)
    run.task("postgresql_migration", "applied", 0, 1.1)
    run.task("postgresql_verification", None, 2, 1.4)
    run.task("postgresql_baseline", None, 4, 24.0)
    run.task("http_probe", None, 29, 9.0)
    run.task("notify", None, 39, 0.8)
    _evidence_after(run)
    _measurements(run)
    run.lines(
        "statements.jsonl",
        [
            {"number": count, "migration": MIGRATIONS[1], "file": f"{MIGRATIONS[1]}.sql", "line": 20 + count,
             "tag": "ALTER TABLE", "seconds": round(0.02 / (count + 1), 4)}
            for count in range(30)
        ],
    )  # fmt: skip
    run.json(
        "go.json",
        {
            "format": 1,
            "run_id": os.path.basename(run.path),
            "system_identifier": "7312345678901234567",
            "database_oid": 16385,
            "timeline": 1,
            "catalog_sha256": digest("catalog"),
            "plan": {"name": "lancio_platform", "sha256": digest("plan")},
            "migrations": {id_: digest(id_) for id_ in MIGRATIONS},
            "variables_hmac": digest("variables"),
            "policy_sha256": digest("policy"),
            "backup": {"id": "5f0c1f6e", "path": "backups/platform", "manifest_sha256": digest("manifest")},
            "approvals": {"prepared": "Rafael Santos", "reviewed": "A. Chen", "approved": "J. Doe"},
            "created": at(-2),
            "expires": at(3600),
            "hmac": digest("go"),
        },
    )
    run.note("issue", "Replica lag rose to 0.3 s for two seconds.")
    run.note("resolution", "None needed, it fell by itself.")
    run.note("next_step", "Implement Redis integration.")
    run.run()
    return run


def no_go(path: pathlib.Path) -> RunDirectory:
    """The rehearsal found a lock over the budget: nothing was touched."""
    run = RunDirectory(path)
    _tasks_before(run)
    _evidence_before(run)
    _rehearsal(run)
    run.evidence(
        "rehearsal.lock_budget", "rehearsal", 3.41, "at most 0.5 s", verdict="fail", source="pg_locks", time=at(-37)
    )
    line = "rehearsal.lock_budget: measured 3.41, required at most 0.5 s"
    judged = {"criterion": "rehearsal.lock_budget", "verdict": "fail", "status": "fail", "demand": "required"}
    _go(run, decision="NO-GO", failed=[line], criteria=[judged], waived=[])
    run.run(
        outcome="no_go", failed_phase="gate", error=f"NO-GO: {line}.", applied=[], pending=list(MIGRATIONS),
        migrations=[], checks={"run": 0, "failed": []},
    )  # fmt: skip
    return run


def rescued(path: pathlib.Path) -> RunDirectory:
    """A check failed after the commit and the matrix decided for the rollback."""
    run = RunDirectory(path)
    _tasks_before(run)
    _evidence_before(run)
    _rehearsal(run)
    _go(run)
    run.task("postgresql_migration", "applied", 0, 1.1)
    run.task("postgresql_verification", None, 2, 1.4, failed=True)
    run.task("postgresql_migration", "rolled_back", 4, 0.6)
    done = list(MIGRATIONS)
    run.evidence("migration.applied", "apply", done, done, source="ledger", time=at(1))
    run.evidence(
        "platform.registration.decryption",
        "verify",
        2,
        {"rows": 0},
        verdict="fail",
        time=at(3),
        name="the key decrypts them",
    )
    run.evidence(
        "rescue.decision",
        "apply",
        {"decision": "roll_back", "severity": "HIGH"},
        "nothing failed after GO",
        verdict="fail",
        source="rollback matrix of the policy",
        time=at(3.5),
        failures=[{"kind": "encryption_not_working", "reason": "the key decrypts them: measured 2 rows, required 0"}],
    )
    run.evidence("migration.rolled_back", "rollback", done[::-1], done[::-1], source="ledger", time=at(4.6))
    error = "the key decrypts them: measured 2 rows, required 0 rows."
    run.run(outcome="rescued", failed_phase="verification", error=error, rolled_back=done[::-1])
    return run


def failed(path: pathlib.Path) -> RunDirectory:
    """The second migration was refused by the server; the first is applied and recorded."""
    run = RunDirectory(path)
    _tasks_before(run)
    _evidence_before(run)
    _go(run)
    run.task("postgresql_migration", "applied", 0, 0.7, failed=True)
    run.evidence(
        "migration.applied", "apply", [MIGRATIONS[0]], list(MIGRATIONS), verdict="fail", source="ledger", time=at(1)
    )
    run.run(
        outcome="failed", failed_phase="migration", applied=[MIGRATIONS[0]], pending=list(MIGRATIONS[1:]),
        error='relation "platform.audit_log" does not exist (006_enable_rls_with_permissive_policies.sql:41:13).',
        migrations=[{"id": MIGRATIONS[0], "seconds": 0.2, "statements": 31, "attempts": 1, "lock_held_seconds": 0.01}],
    )  # fmt: skip
    return run


def nothing_pending(path: pathlib.Path) -> RunDirectory:
    """A second run: verified only."""
    run = RunDirectory(path)
    run.task("postgresql_migration_info", None, -2, 0.4)
    run.task("postgresql_verification", None, -1, 1.0)
    run.evidence("platform.databases.table", "verify", 1, 1, name="table platform.databases exists")
    run.run(outcome="nothing_to_do", applied=[], migrations=[], backup=None)
    return run
