# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Migration 006 as typed, from the first check to the rollback and back."""

from __future__ import annotations

import json
import pathlib
import stat
import typing as t

import yaml

from .conftest import MIGRATIONS_006, UNPROVEN, Platform, Workplace

# For tests that are not about the proofs.
WITHOUT_PROOFS = ("-e", json.dumps({"surefoot_policy_overrides": UNPROVEN}))


def _searched(project: Workplace, platform: Platform) -> dict[str, str]:
    """Everything a run writes, by where it stands."""
    server = platform.database.server
    server_log = pathlib.Path(server.log_path).read_text(encoding="utf-8", errors="replace")
    files = [path for path in (project.directory / "surefoot-runs").rglob("*") if path.is_file()]
    texts = {str(path): path.read_bytes().decode("utf-8", errors="replace") for path in files}
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        cursor.execute("SELECT coalesce(string_agg(query, E'\n'), '') FROM pg_stat_statements")
        statements: t.Any = cursor.fetchone()
    assert "platform.databases" in statements[0]
    return {**texts, "ledger": platform.ledger_text(), "server log": server_log, "pg_stat_statements": statements[0]}


def assert_source_documents_rollback_verification(platform: Platform) -> None:
    """0 policies, 0 tables with row level security, no table databases."""
    count = "SELECT count(*) FROM pg_policies WHERE schemaname = 'platform'"
    assert platform.database.scalar(count) == 0
    assert platform.database.scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'platform' AND rowsecurity") == 0
    assert platform.database.scalar("SELECT to_regclass('platform.databases')") is None


def test_the_whole_way_there_and_back(project: Workplace, platform: Platform) -> None:
    env = platform.environment
    seen = []

    checked = project.playbook("migrate_006.yml", "-i", "prod", "--check", "--diff", "-vvv", env=env)
    seen.append(checked.output)
    assert checked.returncode == 0, checked.output
    assert "CREATE TABLE platform.databases" in checked.output
    assert all(name in checked.summary() for name in MIGRATIONS_006)
    assert "rehearsal.rollback_catalog" in checked.summary(), "what would still have to be measured"
    assert platform.applied() == []
    assert not (project.directory / "surefoot-runs").exists(), "check mode writes nothing"

    first = project.playbook("migrate_006.yml", "-i", "prod", "-vvv", env=env)
    seen.append(first.output)
    assert first.returncode == 0, first.output
    assert platform.applied() == list(MIGRATIONS_006)
    (run,) = project.run_directories()
    summary = project.last_run()
    assert summary["outcome"] == "succeeded"
    assert summary["applied"] == list(MIGRATIONS_006)
    assert "platform: 3 migrations applied." in first.summary()
    manifest = pathlib.Path(summary["backup"]["path"], "manifest.json")
    assert manifest.is_file()
    for said in (str(run), summary["backup"]["path"], summary["backup"]["manifest_sha256"], str(run / "report.html")):
        assert said in first.summary()
    assert "To roll back: ansible-playbook rollback_006.yml -i prod" in first.summary()
    evidence = project.evidence()
    for criterion in (
        "backup.verified",
        "restore.content",
        "rehearsal.rollback_catalog",
        "rehearsal.rollback_data",
        "rehearsal.lock_budget",
        "gate.decision",
        "migration.applied",
        "platform.rls.policies",
        "platform.registration.encrypted",
        "rescue.decision",
    ):
        assert evidence[criterion]["verdict"] == "pass", evidence[criterion]
    for path in (run, *run.rglob("*"), manifest.parent):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} has mode {mode:o}"
    assert list(pathlib.Path("/var/tmp").glob(f"*{run.name}*")) == [], "the shadow is gone"

    again = project.playbook("migrate_006.yml", "-i", "prod", env=env)
    assert again.returncode == 0, again.output
    assert (again.changed, again.changing) == (0, [])
    assert len(again.module_tasks) <= 6, again.module_tasks
    assert "nothing is pending" in again.summary()
    assert "Verification: 19 checks, all passed." in again.summary()
    backups = project.directory / "surefoot-runs" / "backups"
    assert len(list(backups.glob("platform_*"))) == 1, "nothing to do takes no backup"

    checked = project.playbook("migrate_006.yml", "-i", "prod", "--check", env=env)
    assert (checked.returncode, checked.changed) == (0, 0), checked.output

    back = project.playbook("rollback_006.yml", "-i", "prod", "-vvv", env=env)
    seen.append(back.output)
    assert back.returncode == 0, back.output
    assert platform.applied() == []
    assert len(list(backups.glob("platform_*"))) == 2, "a rollback takes a backup first"
    assert "Tables dropped with their rows: platform.databases; their rows are in the backup." in back.summary()
    assert (project.run_directories()[-1] / "losses" / "platform.databases.dump").is_file()
    assert_source_documents_rollback_verification(platform)

    twice = project.playbook("rollback_006.yml", "-i", "prod", env=env)
    assert (twice.returncode, twice.changed) == (0, 0), twice.output
    assert len(twice.module_tasks) <= 6, twice.module_tasks
    assert "nothing to roll back" in twice.summary()

    forward = project.playbook("migrate_006.yml", "-i", "prod", *WITHOUT_PROOFS, env=env)
    assert forward.returncode == 0, forward.output
    assert platform.applied() == list(MIGRATIONS_006)

    for number, text in enumerate(seen):
        assert platform.secrets.found_in(text) == [], f"a secret in the output of run {number}"
    for place, text in _searched(project, platform).items():
        assert platform.secrets.found_in(text) == [], f"a secret in {place}"


def test_a_run_that_fails_half_way_is_taken_back_and_the_next_one_succeeds(
    project: Workplace, platform: Platform
) -> None:
    env = platform.environment
    platform.database.query("UPDATE platform.projects SET name = 'Lancio Atelier' WHERE name = 'Lancio Studio'")

    failed = project.playbook("migrate_006.yml", "-i", "prod", *WITHOUT_PROOFS, "-vvv", env=env)

    assert failed.returncode != 0
    assert 'project "Lancio Studio" of the organization "lancio" found 0 times' in failed.errors[0]
    assert "006_register_railway_databases.sql" in failed.errors[0]
    assert platform.applied() == []
    assert_source_documents_rollback_verification(platform)
    (run,) = project.run_directories()
    summary = project.last_run()
    assert (summary["outcome"], summary["failed_phase"]) == ("rescued", "migration")
    assert summary["applied"] == list(MIGRATIONS_006[:2])
    assert summary["rolled_back"] == list(reversed(MIGRATIONS_006[:2]))
    assert "ROLLED BACK" in failed.summary()
    assert project.evidence()["rollback.platform.policies"]["verdict"] == "pass"
    assert str(run) in failed.summary()
    assert platform.secrets.found_in(failed.output) == []

    platform.database.query("UPDATE platform.projects SET name = 'Lancio Studio' WHERE name = 'Lancio Atelier'")
    finished = project.playbook("migrate_006.yml", "-i", "prod", *WITHOUT_PROOFS, env=env)
    assert finished.returncode == 0, finished.output
    assert platform.applied() == list(MIGRATIONS_006)
    for place, text in _searched(project, platform).items():
        assert platform.secrets.found_in(text) == [], f"a secret in {place}"


def test_a_check_that_fails_at_last_takes_all_three_back(project: Workplace, platform: Platform) -> None:
    path = project.directory / "migrations" / "lancio_platform" / "plan.yml"
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    (last,) = [item for item in plan["migrations"] if item["id"] == MIGRATIONS_006[2]]
    last["verify"].append(
        {
            "name": "a third database is registered",
            "query": "SELECT count(*) FROM platform.databases",
            "expect": {"scalar": 3},
            "when": "after_commit",
        }
    )
    path.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")

    # The two rows it registers count: a statement with a secret runs in a subtransaction of its own.
    policy = {**UNPROVEN, "rollback_max_lost_rows": 2}
    failed = project.playbook(
        *("migrate_006.yml", "-i", "prod", "-e", json.dumps({"surefoot_policy_overrides": policy})),
        env=platform.environment,
    )

    assert failed.returncode != 0
    assert platform.applied() == [], failed.output
    assert project.evidence()["rollback.platform.policies"]["verdict"] == "pass"
    assert_source_documents_rollback_verification(platform)
    summary = project.last_run()
    assert summary["outcome"] == "rescued"
    assert summary["rolled_back"] == list(reversed(MIGRATIONS_006))
    assert "a third database is registered" in summary["judgement"]["line"]
    losses = project.run_directories()[-1] / "losses"
    assert (losses / "platform.databases.dump").is_file()
    for place, text in _searched(project, platform).items():
        assert platform.secrets.found_in(text) == [], f"a secret in {place}"


def test_a_schema_changed_by_hand_stops_the_run_before_the_backup(project: Workplace, platform: Platform) -> None:
    platform.database.query("ALTER TABLE platform.projects ADD COLUMN colour text")

    refused = project.playbook("migrate_006.yml", "-i", "prod", env=platform.environment)
    assert refused.returncode != 0
    assert len(refused.errors) == 1, refused.errors
    assert "-e surefoot_on_drift=warn and a waiver of ledger.no_drift" in refused.errors[0]
    assert not (project.directory / "surefoot-runs" / "backups").exists()

    waiver = {"criterion": "ledger.no_drift", "reason": "INC-4711", "by": "head of platform", "expires": "2999-12-31"}
    accepted = project.playbook(
        *("migrate_006.yml", "-i", "prod", "-e", "surefoot_on_drift=warn"),
        *("-e", json.dumps({"surefoot_policy_overrides": {**UNPROVEN, "waivers": [waiver]}})),
        env=platform.environment,
    )
    assert accepted.returncode == 0, accepted.output
    assert platform.applied() == list(MIGRATIONS_006)


def test_a_staging_policy_lets_the_proofs_be_left_out(project: Workplace, platform: Platform) -> None:
    outcome = project.playbook(
        *("migrate_006.yml", "-i", "staging", "-e", "surefoot_backup=false", "-e", "surefoot_rehearsal=false"),
        env=platform.environment,
    )
    assert outcome.returncode == 0, outcome.output
    assert set(outcome.changing) == {"postgresql_migration", "postgresql_baseline", "postgresql_evidence"}
    assert "Backup" not in outcome.summary()
    assert platform.applied() == list(MIGRATIONS_006)


def test_a_database_migrated_by_hand_is_taken_over(project: Workplace, platform: Platform) -> None:
    platform.database.query("DROP SCHEMA surefoot CASCADE")

    refused = project.playbook("migrate_006.yml", "-i", "prod", env=platform.environment)
    assert refused.returncode != 0
    assert "001_create_platform_schema" in refused.errors[0]

    taken = project.playbook(
        "baseline.yml", "-i", "prod", "-e", "surefoot_to=005_create_audit_logs", env=platform.environment
    )
    assert taken.returncode == 0, taken.output
    assert "5 migrations recorded as applied, not run" in taken.summary()

    outcome = project.playbook("migrate_006.yml", "-i", "prod", *WITHOUT_PROOFS, env=platform.environment)
    assert outcome.returncode == 0, outcome.output
    assert platform.applied() == list(MIGRATIONS_006)


def test_a_baseline_that_does_not_fit_the_database_records_nothing(project: Workplace, platform: Platform) -> None:
    platform.database.query("DROP SCHEMA surefoot CASCADE")
    platform.database.query("DROP TABLE platform.audit_logs CASCADE")
    refused = project.playbook(
        "baseline.yml", "-i", "prod", "-e", "surefoot_to=005_create_audit_logs", env=platform.environment
    )
    assert refused.returncode != 0
    assert len(refused.errors) == 1
    assert "thirteen columns" in refused.errors[0]
    assert platform.database.scalar("SELECT to_regnamespace('surefoot')") is None


def test_a_shadow_on_the_target_itself_is_reached_with_its_password_and_gone_afterwards(
    project: Workplace, platform: Platform
) -> None:
    platform.database.query(f"ALTER ROLE {platform.user} CREATEDB CREATEROLE")
    outcome = project.playbook(
        *("migrate_006.yml", "-i", "staging", "-vvv", "-e", "surefoot_shadow=same_server"),
        *("-e", "surefoot_database_free_space=100GB"),
        env=platform.environment,
    )
    assert outcome.returncode == 0, outcome.output
    assert project.evidence()["rehearsal.deploy"]["verdict"] == "pass"
    shadows = "SELECT datname FROM pg_database WHERE shobj_description(oid, 'pg_database') LIKE 'surefoot shadow:%'"
    assert platform.database.query(shadows) == []
    assert platform.secrets.found_in(outcome.output) == []
