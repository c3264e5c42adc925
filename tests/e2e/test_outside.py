# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run whose inventory names an RDS instance, services at Railway and databases beside this one.

moto with its shim stands for AWS, a stand-in for Railway's API, a fake for MongoDB; Redis is real. The database is a
local server: nothing here shows that it is the instance.
"""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.surefoot.dbops.tests.support import railway_server as railway
from ansible_collections.surefoot.dbops.tests.support.outside import INSTANCE, Outside
from ansible_collections.surefoot.dbops.tests.support.pgbouncer import (
    ADMIN,
    PASSWORDS,
    PROGRAM,
    running_bouncer,
)

from .conftest import UNPROVEN, App, Outcome

pytest_plugins = ["ansible_collections.surefoot.dbops.tests.support.outside"]


@pytest.fixture
def pending(app: App) -> App:
    app.database.query("CREATE TABLE public.accounts (id bigint)")
    app.migration(
        "001_names",
        "ALTER TABLE public.accounts ADD COLUMN name text;",
        "ALTER TABLE public.accounts DROP COLUMN name;",
    )
    return app


def migrate(app: App, outside: Outside, *words: str, **more: t.Any) -> Outcome:
    outcome = app.migrate(*words, **{**outside.variables, **more})
    assert [secret for secret in outside.secrets if secret in outcome.output] == []
    return outcome


def verdicts(app: App) -> dict[str, str]:
    """The last verdict of each criterion of the outside."""
    families = ("rds.", "railway.", "databases.")
    return {name: item["verdict"] for name, item in app.evidence().items() if name.startswith(families)}


def test_what_lies_outside_is_measured_held_and_given_back(pending: App, outside: Outside) -> None:
    before = outside.instance()

    outcome = migrate(pending, outside, "-vvv")

    assert outcome.returncode == 0, outcome.output
    assert pending.applied() == ["001_names"]
    assert verdicts(pending) == {
        "rds.no_failover": "pass",
        "rds.snapshot_available": "pass",
        "rds.maintenance_held": "pass",
        "railway.redis.deployed": "pass",
        "railway.redis.variable": "pass",
        "railway.redis.healthy": "pass",
        "railway.mongodb.deployed": "not_applicable",
        "railway.mongodb.variable": "not_applicable",
        "databases.healthy": "pass",
    }
    assert len(outside.snapshots()) == 1
    # Turned off and moved while the run lasted, and exactly as it was afterwards.
    writes = [arguments for action, arguments in outside.aws.writes() if action == "ModifyDBInstance"]
    assert [item.get("AutoMinorVersionUpgrade") for item in writes if "AutoMinorVersionUpgrade" in item] == [
        "false",
        "true",
    ]
    assert not [item for item in writes if item.get("ApplyImmediately", "false") != "false"]
    assert outside.instance() == before
    for path in pending.run_directories()[-1].rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            assert [secret for secret in outside.secrets if secret in text] == [], path


def test_a_service_that_crashed_is_a_no_go_and_the_window_is_given_back(pending: App, outside: Outside) -> None:
    before = outside.instance()
    crashed = railway.deployment("CRASHED", "CRASHED", created=5)
    place = (outside.project["environments"][0]["id"], outside.redis["id"])
    outside.world.deployments[place] = [{"latest": crashed, "active": [crashed]}]

    outcome = migrate(pending, outside)

    assert outcome.returncode != 0
    assert "railway.redis.deployed" in outcome.summary()
    assert pending.applied() == []
    assert "NO-GO; nothing in the database was touched" in outcome.summary()
    assert outside.instance() == before


def test_a_database_beside_it_that_refuses_the_password_is_a_no_go(pending: App, outside: Outside) -> None:
    (store, _mongo) = outside.variables["surefoot_stores"]
    wrong = {**store, "url": store["url"].replace(outside.secrets[-1], "wrong-" + outside.secrets[-1])}
    outcome = migrate(pending, outside, surefoot_stores=[wrong])
    assert outcome.returncode != 0
    assert "railway.redis.healthy" in outcome.summary()
    assert pending.applied() == []


def test_a_hold_is_given_back_when_the_migration_fails(pending: App, outside: Outside) -> None:
    before = outside.instance()
    pending.migration("002_broken", "SELEC 1;", "SELECT 1;")
    outcome = migrate(pending, outside)
    assert outcome.returncode != 0
    assert "syntax_error" in outcome.summary()
    assert pending.applied() == []  # the rollback matrix
    assert outside.instance() == before


def test_maintenance_that_is_due_stops_the_run_before_anything_else(pending: App, outside: Outside) -> None:
    before = outside.instance()
    outside.aws.pending[INSTANCE] = [{"Action": "system-update", "ForcedApplyDate": "2000-01-01T00:00:00Z"}]
    outcome = migrate(pending, outside)
    assert outcome.returncode != 0
    assert "FAILED in phase hold" in outcome.summary()
    assert "system-update" in outcome.summary()
    assert outside.snapshots() == []
    assert outside.instance() == before


@pytest.mark.parametrize("action", ["DescribeEvents", "DescribeDBLogFiles"])
def test_an_api_that_does_not_answer_after_the_apply_undoes_nothing(
    pending: App, outside: Outside, action: str
) -> None:
    refusal = (403, "AccessDenied", "not allowed")
    if action == "DescribeDBLogFiles":
        outside.aws.refused[action] = refusal
    else:  # the look before GO still gets its answer
        outside.aws.refusals[action] = [None, *[refusal] * 20]
    outcome = migrate(pending, outside)
    assert pending.applied() == ["001_names"]
    assert "1 migration applied" in outcome.summary(), outcome.output
    assert pending.last_run()["outcome"] == "succeeded"
    assert ("rds.no_failover" in outcome.summary()) == (action == "DescribeEvents")
    assert "Not signed off" in outcome.summary()


def test_check_mode_looks_and_writes_nothing(pending: App, outside: Outside) -> None:
    outcome = migrate(pending, outside, "--check")
    assert outcome.returncode == 0, outcome.output
    assert outside.aws.writes() == []
    (line,) = [line for line in outcome.output.splitlines() if "A run would still have to measure" in line]
    assert "rds.snapshot_available" in line
    assert "railway" not in line


def test_a_snapshot_as_the_backup_says_which_proof_is_missing(pending: App, outside: Outside) -> None:
    policy = {"backup": "required", "restore_proof": True}
    given = {**outside.variables, "surefoot_backup_method": "rds_snapshot", "surefoot_rehearsal": False}
    outcome = pending.migrate(policy=policy, **given)
    assert outcome.returncode != 0
    assert "NO-GO" in outcome.summary() and "restore." in outcome.error
    outcome = pending.migrate(policy={**policy, "restore_proof": False, "criteria": accepted()}, **given)
    assert outcome.returncode == 0, outcome.output
    assert pending.applied() == ["001_names"]
    assert len(outside.snapshots()) == 2


def accepted() -> dict[str, str]:
    """What a snapshot cannot show: that nobody read it back, and that the local server is the instance."""
    names = ("verified", "contains_tables", "minimum_size", "stored_securely")
    backup = [f"backup.{name}" for name in names]
    gate = ["gate.backup_identity", "gate.catalog"]
    return {**UNPROVEN["criteria"], **{name: "optional" for name in (*backup, *gate)}}


def test_what_is_not_set_up_is_recorded_as_that(pending: App) -> None:
    outcome = pending.migrate(
        surefoot_rds={"db_instance_identifier": ""}, surefoot_railway={"project": "", "services": []}
    )
    assert outcome.returncode == 0, outcome.output
    gate = json.loads((pending.run_directories()[-1] / "gate.json").read_text(encoding="utf-8"))
    found = {item["criterion"]: item["measured"] for item in gate["criteria"]}
    for name in ("rds.snapshot_available", "rds.no_failover", "railway.redis.deployed", "railway.mongodb.healthy"):
        assert found[name] == "not configured"


@pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")
@pytest.mark.parametrize("broken", [False, True], ids=["applied", "failed"])
def test_the_clients_of_a_pooler_are_held_while_migrations_run(pending: App, broken: bool) -> None:
    if broken:
        pending.migration("002_broken", "SELEC 1;", "SELECT 1;")
    with running_bouncer(pending.database.server, {"app": pending.database.name}, "transaction") as bouncer:
        console = {**bouncer.params(), "database": "app", "timeout": "20s"}
        outcome = pending.migrate("-vvv", surefoot_pgbouncer=console, surefoot_pgbouncer_pause=True)
        assert (outcome.returncode != 0) == broken, outcome.output
        assert not bouncer.paused("app")
    assert PASSWORDS[ADMIN] not in outcome.output
    found = {name: item["verdict"] for name, item in pending.evidence().items() if name.startswith("pgbouncer.")}
    assert found["pgbouncer.paused"] == found["pgbouncer.resumed"] == "pass"
    assert broken or found["pgbouncer.reconnected"] == "pass"


def test_a_pooler_that_refuses_fails_the_run_after_the_checks(pending: App) -> None:
    (entry,) = pending.migrations
    entry["verify"] = [{"name": "there", "query": "SELECT count(name) FROM public.accounts", "expect": {"scalar": 0}}]
    pending.migration("002_more", "SELECT 1;", "SELECT 1;")  # writes the plan anew
    console = {"login_host": "127.0.0.1", "login_port": 1, "login_user": "admin", "database": "app"}
    outcome = pending.migrate(surefoot_pgbouncer=console)
    assert outcome.returncode != 0, outcome.output
    assert pending.applied() == ["001_names", "002_more"]
    run = pending.last_run()
    assert run["checks"]["run"] == 1
    assert "Connection refused" in outcome.errors[-1]
