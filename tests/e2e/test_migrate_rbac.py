# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The integrity of the RBAC tables as typed: rehearsed on dirty data, applied, and nothing to do the second time."""

from __future__ import annotations

import dataclasses
import json
import typing as t
import uuid

from ansible_collections.surefoot.dbops.tests.support.migrations import run
from ansible_collections.surefoot.dbops.tests.support.outside import Outside
from ansible_collections.surefoot.dbops.tests.support.rbac import SET, fill

from .conftest import UNPROVEN, App, Outcome
from .test_outside import accepted

pytest_plugins = ["ansible_collections.surefoot.dbops.tests.support.outside"]

MIGRATIONS = ["1_1_profiles_tenant_uuid", "2_1_user_roles_profile", "3_1_sidebar_features_permission"]


WORDS = ("surefoot.dbops.migrate_rbac_integrity", "-i", "staging", "-e")
CRITERION = "preflight.typed_users"


def test_users_of_the_text_are_a_no_go_until_somebody_waives_them(app: App) -> None:
    database = app.database
    database.query("CREATE EXTENSION pg_stat_statements")
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))

    def play(**policy: t.Any) -> t.Any:
        given = {"surefoot_policy": {**UNPROVEN, **policy}, "surefoot_migrations": str(SET)}
        return app.playbook(*WORDS, json.dumps(given), env={"DATABASE_URL": app.url})

    unseen = play()
    assert unseen.returncode != 0 and "NO-GO" in unseen.output, unseen.output
    assert f"missing: {CRITERION}: not measured" in unseen.output
    assert "knows no statement that uses the column of public.profiles" in unseen.output

    fill(database, 100, every=1000)
    database.query("SELECT id FROM profiles WHERE tenant_id LIKE 'geheim%'")
    found = play()
    assert found.returncode != 0 and "typed_users: 1 use the column as text" in found.output, found.output
    assert "(pattern)" in found.output and "geheim" not in found.output
    assert database.scalar("SELECT to_regclass('surefoot.quarantine')") is None

    waiver = {"criterion": CRITERION, "reason": "reports may fail", "by": "head of data", "expires": "2999-12-31"}
    waived = play(waivers=[waiver])
    assert waived.returncode == 0, waived.output
    assert app.last_run()["applied"] == MIGRATIONS
    assert app.evidence()[CRITERION]["verdict"] == "fail"


def test_rbac_integrity_as_typed(app: App) -> None:
    database = app.database
    database.query("CREATE EXTENSION pg_stat_statements")
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
    dirt = fill(database, 3000, every=50)  # fewer would be less than the smallest plausible backup
    policy = {**UNPROVEN, "backup": "required", "restore_proof": True, "rehearsal": "required", "lock_budget": "2s"}
    given = {"surefoot_policy": policy, "surefoot_migrations": str(SET)}
    words = (*WORDS, json.dumps(given))
    env = {"DATABASE_URL": app.url}

    first = app.playbook(*words, env=env)
    assert first.returncode == 0, first.output
    assert app.last_run()["applied"] == MIGRATIONS
    evidence: dict[str, dict[str, t.Any]] = app.evidence()
    for criterion in ("rehearsal.rollback_catalog", "rehearsal.rollback_data", "gate.decision", "migration.applied"):
        assert evidence[criterion]["verdict"] == "pass", evidence[criterion]
    moved = database.scalar("SELECT count(*) FROM surefoot.quarantine")
    assert moved == dirt.profiles + dirt.user_roles + dirt.features

    # The limits that the document has somebody look at.
    required = {
        "watch.connections": "at most 90%",
        "watch.wal_rate": "at most 1.0 GB",
        "watch.quarantine": "at most 1.0 GB",
    }
    for criterion, limit in required.items():
        assert evidence[criterion]["verdict"] == "pass", evidence[criterion]
        assert limit in evidence[criterion]["required"]
    sizes = [json.loads(line) for line in (app.run_directories()[-1] / "watch.jsonl").read_text("utf-8").splitlines()]
    assert sizes[-1]["quarantine_bytes"] > 0, "what went to the quarantine is measured"

    again = app.playbook(*words, env=env)
    assert (again.returncode, again.changed) == (0, 0), again.output


def test_the_way_back_keeps_what_was_written_and_leaves_nothing(app: App) -> None:
    """In a directory as init lays it out for this set."""
    database = app.database
    database.query("CREATE EXTENSION pg_stat_statements")
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
    dirt = fill(database, 500, every=50)
    assert app.playbook("surefoot.dbops.init", "-e", "dest=rbac", "-e", "migrations=scrapersky_rbac").returncode == 0
    project = dataclasses.replace(app, directory=app.directory / "rbac")
    env = {"DATABASE_URL": app.url}
    words = ("-i", "staging", "-e", json.dumps({"surefoot_policy": {**UNPROVEN, "lock_budget": "2s"}}))
    before = project.schema()
    tables = ("profiles", "user_roles", "permissions", "sidebar_features")
    rows = {name: database.scalar(f"SELECT count(*) FROM {name}") for name in tables}

    migrated = project.playbook("migrate_rbac_integrity.yml", *words, env=env)
    assert migrated.returncode == 0, migrated.output
    assert project.last_run()["applied"] == MIGRATIONS
    assert "rollback_rbac_integrity" in migrated.summary()
    evidence = project.evidence()
    assert evidence["migration.quarantine"]["measured"]["rows"] == dirt.profiles + dirt.user_roles + dirt.features
    assert {evidence[f"rbac.{name}"]["verdict"] for name in ("orphans", "isolation", "plans", "refused")} == {"pass"}
    assert evidence["rbac.tenant_bound"]["measured"] in (100, "100.0")

    # Clients of the new column, as they are of the old one.
    tenant = database.scalar("SELECT id FROM tenants WHERE name = 't1'")
    other = database.scalar("SELECT id FROM tenants WHERE name = 't2'")
    new = str(uuid.uuid4())
    database.query("INSERT INTO profiles (id, tenant_id, email) VALUES (%s, %s, 'new@example.com')", (new, tenant))
    database.query("INSERT INTO user_roles (user_id, role_id, tenant_id) VALUES (%s, 1, %s)", (new, tenant))
    database.query("INSERT INTO permissions (tenant_id, name) VALUES (%s, 'new')", (tenant,))
    database.query("INSERT INTO sidebar_features (tenant_id, requires_permission) VALUES (%s, 'new')", (tenant,))
    moved = database.scalar("SELECT max(id::text) FROM profiles WHERE tenant_id = %s AND id <> %s", (tenant, new))
    database.query("UPDATE user_roles SET tenant_id = %s WHERE user_id = %s", (other, moved))
    database.query("UPDATE profiles SET tenant_id = %s WHERE id = %s", (other, moved))

    back = project.playbook("rollback_rbac_integrity.yml", *words, env=env)
    assert back.returncode == 0, back.output
    assert "3 migrations rolled back" in back.summary()
    assert project.schema() == before
    evidence = project.evidence()
    for name in ("type", "foreign_keys", "nothing_left", "quarantine"):
        assert evidence[f"rollback.rbac.{name}"]["verdict"] == "pass", evidence[f"rollback.rbac.{name}"]
    assert evidence["migration.quarantine"]["verdict"] == "pass"
    assert database.scalar("SELECT tenant_id FROM profiles WHERE id = %s", (new,)) == tenant
    assert database.scalar("SELECT tenant_id FROM profiles WHERE id = %s", (moved,)) == other
    # Every row of before is there, those of the quarantine too, and one more of each.
    assert {name: database.scalar(f"SELECT count(*) FROM {name}") for name in tables} == {
        name: count + 1 for name, count in rows.items()
    }
    assert (
        database.scalar("SELECT count(*) FROM profiles WHERE tenant_id ~ '^tenant-'") == dirt.profiles // 3
    )  # the others are orphans and nulls

    again = project.playbook("rollback_rbac_integrity.yml", *words, env=env)
    assert (again.returncode, again.changed) == (0, 0), again.output

    # Each of the checks can fail.
    database.query("ALTER TABLE user_roles ADD CONSTRAINT fk_user_roles_tenant FOREIGN KEY (role_id) REFERENCES roles")
    database.query("CREATE INDEX user_roles_user_id ON user_roles (user_id)")
    database.query("ALTER TABLE profiles ALTER tenant_id TYPE varchar(100)")
    database.query(
        "INSERT INTO surefoot.quarantine (run_id, set_name, migration_id, table_name, key, reason, row, dependents)"
        " VALUES ('r', 'scrapersky_rbac', '1_1_profiles_tenant_uuid', 'x', '[]', 'x', '{}', '[]')"
    )
    left = project.playbook("rollback_rbac_integrity.yml", *words, env=env)
    assert left.returncode != 0, left.output
    assert "4 of 4 checks failed" in left.output and "rows left in the quarantine: 1" in left.output


def _integrity(app: App, policy: dict[str, t.Any], **given: t.Any) -> Outcome:
    variables = {"surefoot_policy": {**UNPROVEN, **policy}, "surefoot_migrations": str(SET), **given}
    words = ("surefoot.dbops.migrate_rbac_integrity", "-i", "staging", "-e", json.dumps(variables))
    return app.playbook(*words, env={"DATABASE_URL": app.url})


def test_the_limits_of_the_document_stop_the_run(app: App) -> None:
    app.database.query("CREATE EXTENSION pg_stat_statements")
    run(SET, app.database, only=("000_baseline",), include_manual=("000_baseline",))
    fill(app.database, 1000)
    # Every server is above one percent; one sample is enough here.
    criteria = {**UNPROVEN["criteria"], "preflight.connections": "optional"}
    policy = {"pool_saturation_max": "1%", "watch_samples": 1, "criteria": criteria}
    outcome = _integrity(app, policy)
    assert outcome.returncode != 0
    assert "connections used" in outcome.summary() and "required at most 1%" in outcome.summary()
    tenant = (
        "SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = 'profiles'::regclass AND attname = 'tenant_id'"
    )
    assert app.database.scalar(tenant) == "text"


def test_the_snapshot_is_confirmed_at_the_gate(app: App, outside: Outside) -> None:
    """The boxes before the migration and during it. moto stands for AWS."""
    app.database.query("CREATE EXTENSION pg_stat_statements")
    run(SET, app.database, only=("000_baseline",), include_manual=("000_baseline",))
    fill(app.database, 3000)
    policy = {"backup": "required", "rehearsal": "required", "lock_budget": "2s"}
    rds = {"surefoot_rds": outside.variables["surefoot_rds"]}

    outside.aws.refused["CreateDBSnapshot"] = (400, "SnapshotQuotaExceeded", "no more snapshots")
    refused = _integrity(app, policy, **rds)
    assert refused.returncode != 0
    assert "FAILED in phase snapshot; no migration was applied" in refused.summary()
    outside.aws.refused.clear()

    # Beside the dump, which is restored for the dry run.
    outcome = _integrity(app, policy, **rds)
    assert outcome.returncode == 0, outcome.output
    assert app.last_run()["applied"] == MIGRATIONS and len(outside.snapshots()) == 1
    assert _boxes(app) == dict.fromkeys((206, 207, 208, 211, 212, 213), "pass")


def test_a_snapshot_instead_of_a_dump_leaves_the_dry_run_open(app: App, outside: Outside) -> None:
    """A sample is rehearsed, and migrations that sweep all rows are not proven by it: the gate says so."""
    app.database.query("CREATE EXTENSION pg_stat_statements")
    run(SET, app.database, only=("000_baseline",), include_manual=("000_baseline",))
    fill(app.database, 1000)
    policy = {"backup": "required", "rehearsal": "required", "lock_budget": "2s", "criteria": accepted()}
    rds = {"surefoot_rds": outside.variables["surefoot_rds"], "surefoot_backup_method": "rds_snapshot"}
    outcome = _integrity(app, policy, **rds)
    assert outcome.returncode != 0
    missing = app.last_run()["not_measured"]
    assert missing and all(name.startswith("rehearsal.") for name in missing), missing
    assert _boxes(app) == {206: "pass", 207: "missing", 208: "pass"}
    assert len(outside.snapshots()) == 1


def _boxes(app: App) -> dict[int, str]:
    """Those of the document before the migration and during it, by their line."""
    gate = json.loads((app.run_directories()[-1] / "gate.json").read_text(encoding="utf-8"))
    found = {
        int(line): box["status"]
        for box in gate["boxes"]
        for name, line in [box["id"].split(":")]
        if name == "integrity"
    }
    return {line: status for line, status in found.items() if line < 216}
