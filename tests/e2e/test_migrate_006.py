# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Migration 006 as typed, from the first check to the rollback and back."""

from __future__ import annotations

import json
import pathlib
import stat
import typing as t

from .conftest import MIGRATIONS_006, Platform, Workplace


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


def test_the_whole_way_there_and_back(project: Workplace, platform: Platform) -> None:
    env = platform.environment
    seen = []

    checked = project.playbook("migrate_006.yml", "-i", "prod", "--check", "--diff", "-vvv", env=env)
    seen.append(checked.output)
    assert checked.returncode == 0, checked.output
    assert "CREATE TABLE platform.databases" in checked.output
    assert all(name in checked.summary() for name in MIGRATIONS_006)
    assert platform.applied() == []
    assert not (project.directory / "surefoot-runs").exists(), "check mode writes nothing"

    first = project.playbook("migrate_006.yml", "-i", "prod", "-vvv", env=env)
    seen.append(first.output)
    assert first.returncode == 0, first.output
    assert first.changed == 2, "the backup and the migration"
    assert platform.applied() == list(MIGRATIONS_006)
    (run,) = project.run_directories()
    summary = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert summary["outcome"] == "succeeded"
    assert summary["applied"] == list(MIGRATIONS_006)
    manifest = pathlib.Path(summary["backup"]["path"], "manifest.json")
    assert manifest.is_file()
    for said in (str(run), summary["backup"]["path"], summary["backup"]["manifest_sha256"]):
        assert said in first.summary()
    assert "To roll back: ansible-playbook rollback_006.yml -i prod" in first.summary()
    phases = [json.loads(line)["phase"] for line in (run / "evidence.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"plan", "preflight", "backup", "apply", "verify"} <= set(phases)
    for path in (run, *run.iterdir(), manifest.parent):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} has mode {mode:o}"

    again = project.playbook("migrate_006.yml", "-i", "prod", env=env)
    assert again.returncode == 0, again.output
    assert again.changed == 0
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
    assert platform.database.scalar("SELECT count(*) FROM pg_policies WHERE schemaname = 'platform'") == 0
    assert platform.database.scalar("SELECT to_regclass('platform.databases')") is None

    twice = project.playbook("rollback_006.yml", "-i", "prod", env=env)
    assert (twice.returncode, twice.changed) == (0, 0), twice.output
    assert "nothing to roll back" in twice.summary()

    forward = project.playbook("migrate_006.yml", "-i", "prod", env=env)
    assert forward.returncode == 0, forward.output
    assert platform.applied() == list(MIGRATIONS_006)

    for number, text in enumerate(seen):
        assert platform.secrets.found_in(text) == [], f"a secret in the output of run {number}"
    for place, text in _searched(project, platform).items():
        assert platform.secrets.found_in(text) == [], f"a secret in {place}"


def test_a_run_that_fails_half_way_says_so_and_the_next_one_finishes(project: Workplace, platform: Platform) -> None:
    env = platform.environment
    platform.database.query("UPDATE platform.projects SET name = 'Lancio Atelier' WHERE name = 'Lancio Studio'")

    failed = project.playbook("migrate_006.yml", "-i", "prod", "-vvv", env=env)

    assert failed.returncode != 0
    assert len(failed.errors) == 1, failed.errors
    assert 'project "Lancio Studio" of the organization "lancio" found 0 times' in failed.errors[0]
    assert "006_register_railway_databases.sql" in failed.errors[0]
    assert platform.applied() == list(MIGRATIONS_006[:2])
    (run,) = project.run_directories()
    summary = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (summary["outcome"], summary["failed_phase"]) == ("failed", "migration")
    assert summary["applied"] == list(MIGRATIONS_006[:2])
    assert "FAILED in phase migration" in failed.summary()
    assert str(run) in failed.summary()
    assert platform.secrets.found_in(failed.output) == []

    platform.database.query("UPDATE platform.projects SET name = 'Lancio Studio' WHERE name = 'Lancio Atelier'")
    finished = project.playbook("migrate_006.yml", "-i", "prod", env=env)
    assert finished.returncode == 0, finished.output
    assert platform.applied() == list(MIGRATIONS_006)
    assert "1 migrations applied" not in finished.summary()
    for place, text in _searched(project, platform).items():
        assert platform.secrets.found_in(text) == [], f"a secret in {place}"


def test_a_schema_changed_by_hand_stops_the_run_before_the_backup(project: Workplace, platform: Platform) -> None:
    platform.database.query("ALTER TABLE platform.projects ADD COLUMN colour text")

    refused = project.playbook("migrate_006.yml", "-i", "prod", env=platform.environment)
    assert refused.returncode != 0
    assert len(refused.errors) == 1, refused.errors
    assert "surefoot_on_drift=warn" in refused.errors[0]
    assert not (project.directory / "surefoot-runs" / "backups").exists()

    accepted = project.playbook(
        "migrate_006.yml", "-i", "prod", "-e", "surefoot_on_drift=warn", env=platform.environment
    )
    assert accepted.returncode == 0, accepted.output
    assert platform.applied() == list(MIGRATIONS_006)


def test_a_staging_policy_lets_the_backup_be_left_out(project: Workplace, platform: Platform) -> None:
    outcome = project.playbook(
        "migrate_006.yml", "-i", "staging", "-e", "surefoot_backup=false", env=platform.environment
    )
    assert outcome.returncode == 0, outcome.output
    assert outcome.changed == 1
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

    outcome = project.playbook("migrate_006.yml", "-i", "prod", env=platform.environment)
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
