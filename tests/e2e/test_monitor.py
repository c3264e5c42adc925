# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The days after a run, as typed: what stayed well passes, what became worse fails the playbook and is named."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import typing as t

import psycopg2
import psycopg2.errors
import pytest

from ansible_collections.surefoot.dbops.tests.support.pgserver import PgServer, running_server, temporary_database

from .conftest import MIGRATIONS_006, UNPROVEN, App, Outcome, Platform, Workplace, _environment

SETTINGS = {"logging_collector": True, "log_destination": "csvlog"}
RLS = {
    "name": "row level security is on",
    "criterion": "app.rls.enabled",
    "query": "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND NOT rowsecurity",
    "expect": {"set": []},
    "when": "after_commit",
}


@pytest.fixture(scope="module")
def logging_server() -> t.Iterator[PgServer]:
    with running_server(settings=SETTINGS) as server:
        with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE ROLE visitor_of_monitor LOGIN")
        yield server


@pytest.fixture
def watched(
    logging_server: PgServer, collections: pathlib.Path, tmp_path: pathlib.Path, _starter: pathlib.Path
) -> t.Iterator[App]:
    """An application whose server logs in a format that can be read, and a migration applied to it."""
    directory = tmp_path / "app"
    shutil.copytree(_starter, directory)
    for path in (directory / "migrations" / "app").iterdir():
        path.unlink()
    with temporary_database(logging_server) as database:
        database.query("CREATE EXTENSION pg_stat_statements")
        app = App(directory, _environment(collections, tmp_path / "home"), database)
        app.migration(
            "001_accounts",
            "CREATE TABLE accounts (id int PRIMARY KEY); ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;"
            " CREATE POLICY everybody ON accounts USING (true);",
            "DROP TABLE accounts;",
            verify=[RLS],
        )
        (app.directory / "migrations" / "app" / "queries.yml").write_text(
            "queries: [{name: accounts, query: SELECT count(*) FROM pg_class}]\n", encoding="utf-8"
        )
        done = app.migrate()
        assert done.returncode == 0, done.output
        yield app


def monitor(app: App, run: pathlib.Path, *words: str, **variables: t.Any) -> Outcome:
    policy = {**UNPROVEN, "criteria": {**UNPROVEN["criteria"], "baseline.regression": "optional"}}
    given = {"surefoot_policy": policy, "surefoot_go": str(run), **variables}
    return app.playbook(
        *("surefoot.dbops.monitor", "-i", "staging", "-e", json.dumps(given), *words),
        env={"DATABASE_URL": app.url},
    )


def deny(app: App) -> None:
    """Somebody is denied something."""
    with (
        contextlib.closing(app.database.connect(user="visitor_of_monitor")) as connection,
        connection.cursor() as cursor,
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
    ):
        cursor.execute("SELECT * FROM accounts")


def looks(run: pathlib.Path) -> list[dict[str, t.Any]]:
    return [json.loads(line) for line in (run / "monitor.jsonl").read_text("utf-8").splitlines()]


def test_a_run_that_stayed_well_passes_day_by_day_and_its_report_grows(watched: App) -> None:
    (run,) = watched.run_directories()
    before = watched.last_run()
    first = monitor(watched, run)
    assert first.returncode == 0, first.output
    assert first.changing == ["postgresql_evidence"], "its end is anchored again"
    assert "in monitoring of 001_accounts" in first.summary()
    # Nobody said that no user reported a problem: that is shown, and stops nothing by itself.
    assert "Not measured or not said: attestation.no_user_reports" in first.summary()
    second = monitor(
        watched,
        run,
        surefoot_attestations=[
            {
                "criterion": "attestation.no_user_reports",
                "by": "support",
                "at": "2026-01-01T00:00:00Z",
                "until": "2999-01-01T00:00:00Z",
                "statement": "no ticket speaks of it",
            }
        ],
    )
    assert second.returncode == 0 and "GO in monitoring" in second.summary(), second.output
    assert [look["decision"] for look in looks(run)] == ["NO-GO", "GO"]
    assert watched.run_directories() == [run]
    # What the run itself was is not rewritten.
    after = watched.last_run()
    assert {key: after.get(key) for key in before} == before
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert [look["decision"] for look in report["monitoring"]] == ["NO-GO", "GO"]
    assert "The days after" in (run / "report.html").read_text("utf-8")
    criteria = {item["criterion"] for item in report["criteria"]}
    assert {"app.rls.enabled", "serverlog.permission_denied", "baseline.regression", "statements.slow"} <= criteria
    verified = watched.playbook(
        "surefoot.dbops.verify_report",
        "-i",
        "staging",
        "-e",
        f"surefoot_report={run}",
        env={"DATABASE_URL": watched.url},
    )
    assert verified.returncode == 0 and "intact" in verified.output, verified.output


def test_row_level_security_that_was_switched_off_fails_and_is_named(watched: App) -> None:
    (run,) = watched.run_directories()
    watched.database.query("ALTER TABLE accounts DISABLE ROW LEVEL SECURITY")
    failed = monitor(watched, run)
    assert failed.returncode != 0
    said = " ".join(failed.output.split())
    assert "row level security is on" in said and "accounts" in said
    assert "app.rls.enabled" in looks(run)[-1]["failed"]
    watched.database.query("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY")
    healed = monitor(watched, run)
    assert healed.returncode == 0, healed.output


def test_a_denial_in_the_server_log_fails_once(watched: App) -> None:
    (run,) = watched.run_directories()
    deny(watched)
    failed = monitor(watched, run)
    assert failed.returncode != 0
    assert "serverlog.permission_denied" in " ".join(failed.output.split())
    assert looks(run)[-1]["counts"]["permission_denied"] == 1
    assert "1 denials" in failed.summary()
    # The next look counts from there on.
    again = monitor(watched, run)
    assert again.returncode == 0, again.output
    assert looks(run)[-1]["counts"]["permission_denied"] == 0


def test_the_policy_can_require_what_people_say(watched: App) -> None:
    (run,) = watched.run_directories()
    policy = {**UNPROVEN, "criteria": {**UNPROVEN["criteria"], "attestation.no_user_reports": "required"}}
    failed = monitor(watched, run, surefoot_policy=policy)
    assert failed.returncode != 0 and "attestation.no_user_reports" in failed.output, failed.output


def test_what_cannot_be_monitored_is_refused_in_one_line(watched: App) -> None:
    (run,) = watched.run_directories()
    for words, said in (
        (("-e", "surefoot_go="), "which run is to be monitored"),
        (("-e", "surefoot_go=nowhere"), "no run lies in"),
        (("--check",), "monitoring has no check mode"),
    ):
        failed = monitor(watched, run, *words)
        assert failed.returncode != 0 and said in " ".join(failed.output.split()), failed.output


def test_migration_006_is_monitored(project: Workplace, platform: Platform) -> None:
    env = platform.environment
    overrides = ("-e", json.dumps({"surefoot_policy_overrides": UNPROVEN}))
    done = project.playbook("migrate_006.yml", "-i", "prod", *overrides, env=env)
    assert done.returncode == 0, done.output
    (run,) = project.run_directories()
    # This server's log cannot be read, which is no zero: the policy says that it may be so.
    blind = {name: "optional" for name in ("permission_denied", "foreign_key_violation", "fatal", "errors")}
    criteria = {**UNPROVEN["criteria"], **{f"serverlog.{name}": word for name, word in blind.items()}}
    criteria["baseline.regression"] = "optional"
    given = {"surefoot_policy_overrides": {**UNPROVEN, "criteria": criteria}, "surefoot_go": str(run)}
    words = ("surefoot.dbops.monitor", "-i", "prod", "-vvv", "-e", json.dumps(given))
    good = project.playbook(*words, env=env)
    assert good.returncode == 0, good.output
    assert project.last_run()["applied"] == list(MIGRATIONS_006)
    # Registrations, their encryption, and row level security.
    platform.database.query("ALTER TABLE platform.projects DISABLE ROW LEVEL SECURITY")
    platform.database.query("DELETE FROM platform.databases WHERE type = 'redis'")
    bad = project.playbook(*words, env=env)
    assert bad.returncode != 0
    assert {"platform.rls.enabled", "platform.registration.rows"} <= set(looks(run)[-1]["failed"])
    assert "projects" in bad.output and platform.secrets.found_in(good.output + bad.output) == []
