# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator gets wrong: one line that says what to do, an exit code, no secret."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from .conftest import Outcome, Platform, Workplace


@dataclasses.dataclass
class Mistake:
    """Something to get wrong, and what the error line must say."""

    says: tuple[str, ...]
    env: t.Callable[[Platform], dict[str, str | None]] = lambda platform: {}
    words: tuple[str, ...] = ()
    damage: t.Callable[[Workplace], object] = lambda project: None
    inventory: str = "prod"


def _set_policy(project: Workplace, text: str) -> None:
    path = project.directory / "prod" / "group_vars" / "databases" / "policy.yml"
    path.write_text(f"---\nsurefoot_policy_overrides: {text}\n", encoding="utf-8")


MISTAKES = {
    "misspelt inventory": Mistake(("prdo",), inventory="prdo"),
    "empty group": Mistake(
        ("No host in the group databases", "prod"),
        damage=lambda project: (project.directory / "prod" / "hosts.yml").write_text("---\ndatabases:\n  hosts: {}\n"),
    ),
    "other group": Mistake(
        ("No host in the group databases", "prod"),
        damage=lambda project: (project.directory / "prod" / "hosts.yml").write_text(
            "---\ndbs:\n  hosts:\n    platform:\n"
        ),
    ),
    "a check after a rollback that cannot be read": Mistake(
        ("unknown key value in expect (surefoot_run_rollback_checks[0])", "scalar"),
        words=("-e", '{"surefoot_run_rollback_checks": [{"name": "n", "query": "SELECT 1", "expect": {"value": 1}}]}'),
    ),
    "no URL": Mistake(("surefoot_database_url is empty", "DATABASE_URL"), env=lambda platform: {"DATABASE_URL": None}),
    "malformed URL": Mistake(
        ("URL cannot be parsed", "Percent-encode"),
        env=lambda platform: {"DATABASE_URL": f"postgresql://u:{platform.secrets.login}@[::1:5432/x"},
    ),
    "not a PostgreSQL URL": Mistake(
        ("is not a PostgreSQL URL", "postgresql://"),
        env=lambda platform: {"DATABASE_URL": f"mysql://u:{platform.secrets.login}@127.0.0.1/x"},
    ),
    "server not running": Mistake(
        ("cannot connect to migrator@127.0.0.1:1/", "Connection refused", "Check that the server runs"),
        env=lambda platform: {"DATABASE_URL": platform.url_with(port=1)},
    ),
    "unknown host": Mistake(
        ("cannot connect to migrator@db.invalid", "Check the host name"),
        env=lambda platform: {"DATABASE_URL": platform.url_with(host="db.invalid")},
    ),
    "wrong password": Mistake(
        ("password authentication failed", "Check user and password"),
        env=lambda platform: {"DATABASE_URL": platform.url_with(password="wrong-" + platform.secrets.login)},
    ),
    "no such database": Mistake(
        ('database "plattform" does not exist', "Check the database name"),
        env=lambda platform: {"DATABASE_URL": platform.url_with(name="plattform")},
    ),
    "another database": Mistake(
        ("requires 001_create_platform_schema", "not applied"),
        env=lambda platform: {"DATABASE_URL": platform.url_with(name="postgres")},
    ),
    "missing secret": Mistake(
        ("no value in surefoot_secret_variables", "railway_redis_url"),
        env=lambda platform: {"RAILWAY_REDIS_URL": None},
    ),
    "missing SQL file": Mistake(
        ("006_enable_rls_with_permissive_policies.sql", "plan.yml"),
        damage=lambda project: (
            project.directory / "migrations" / "lancio_platform" / "006_enable_rls_with_permissive_policies.sql"
        ).unlink(),
    ),
    "missing migration set": Mistake(
        ("migrations/lancio_plattform", "plan.yml"),
        words=("-e", "surefoot_migrations=migrations/lancio_plattform"),
    ),
    "broken SQL": Mistake(
        ("006_enable_rls_with_permissive_policies.sql:3:1",),
        damage=lambda project: (
            project.directory / "migrations" / "lancio_platform" / "006_enable_rls_with_permissive_policies.sql"
        ).write_text("BEGIN;\nSELECT 1;\n$$ never closed\n"),
    ),
    "misspelt policy key": Mistake(
        ("unknown key lock_buget", "Did you mean lock_budget?"),
        damage=lambda project: _set_policy(project, "{lock_buget: 1s}"),
    ),
    "policy key of another version": Mistake(
        ("unknown key canary", "does not enforce it"),
        damage=lambda project: _set_policy(project, "{canary: required}"),
    ),
    "impossible policy value": Mistake(
        ("surefoot_policy_overrides.lock_budget", "soon"),
        damage=lambda project: _set_policy(project, "{lock_budget: soon}"),
    ),
    "backup left out against the policy": Mistake(
        ("the policy requires a backup",), words=("-e", "surefoot_backup=false")
    ),
    "rehearsal left out against the policy": Mistake(
        ("the policy requires a rehearsal",), words=("-e", "surefoot_rehearsal=false")
    ),
    "no privilege": Mistake(
        ("permission denied", "GRANT"),
        env=lambda platform: {"DATABASE_URL": platform.url.replace("//migrator:", "//visitor:")},
    ),
}


def _refused(outcome: Outcome, says: t.Sequence[str], platform: Platform) -> None:
    assert outcome.returncode != 0, outcome.output
    assert len(outcome.errors) == 1, outcome.output
    for part in says:
        assert part in outcome.errors[0], outcome.errors[0]
    assert "Traceback" not in outcome.output
    assert platform.secrets.found_in(outcome.output) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(project: Workplace, platform: Platform, name: str) -> None:
    mistake = MISTAKES[name]
    mistake.damage(project)
    env = {**platform.environment, **mistake.env(platform)}
    outcome = project.playbook("migrate_006.yml", "-i", mistake.inventory, "-vvv", *mistake.words, env=env)
    _refused(outcome, mistake.says, platform)
    assert platform.applied() == []


def test_a_misspelt_inventory_is_an_error_without_a_project_as_well(workplace: Workplace, platform: Platform) -> None:
    outcome = workplace.playbook("surefoot.dbops.migrate_006", "-i", "prdo", env=platform.environment)
    _refused(outcome, ("No host in the group databases", "prdo", "Check the path given with -i"), platform)


def test_a_rollback_of_a_database_without_a_ledger_is_an_error(project: Workplace, platform: Platform) -> None:
    platform.database.query("DROP SCHEMA surefoot CASCADE")
    outcome = project.playbook(
        "rollback.yml", "-i", "prod", "-e", "surefoot_to=005_create_audit_logs", env=platform.environment
    )
    _refused(outcome, ("has no ledger", "Check surefoot_database_url"), platform)


def test_a_run_without_a_migration_set_is_an_error(workplace: Workplace, platform: Platform) -> None:
    (workplace.directory / "hosts").write_text("[databases]\nplatform ansible_connection=local\n", encoding="utf-8")
    outcome = workplace.playbook("surefoot.dbops.migrate", "-i", "hosts", "-vvv", env=platform.environment)
    _refused(outcome, ("no migration set is given", "Set surefoot_migrations"), platform)


def test_a_run_without_an_address_goes_nowhere(workplace: Workplace, platform: Platform) -> None:
    (workplace.directory / "hosts").write_text("[databases]\nplatform ansible_connection=local\n", encoding="utf-8")
    env = {
        **platform.environment,
        "PGHOST": platform.database.server.host,
        "PGPORT": str(platform.database.server.port),
    }
    outcome = workplace.playbook("surefoot.dbops.migrate_006", "-i", "hosts", "-vvv", env=env)
    _refused(outcome, ("no database is given", "Set surefoot_database_url"), platform)


def test_a_misspelt_choice_is_refused_before_anything_connects(project: Workplace, platform: Platform) -> None:
    outcome = project.playbook(
        "migrate_006.yml", "-i", "prod", "-e", "surefoot_on_drift=ignore", env=platform.environment
    )
    _refused(outcome, (), platform)
    assert "value of surefoot_on_drift must be one of: fail, warn, got: ignore" in outcome.output
    assert not (project.directory / "surefoot-runs").exists()
