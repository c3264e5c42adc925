# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate at the level of the playbook: NO-GO, waivers and attestations, check mode, and the run in two parts."""

from __future__ import annotations

import datetime
import json
import pathlib
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.tests.support.pgserver import PgServer, temporary_database

from .conftest import App, Outcome

ACCOUNTS = (
    "CREATE TABLE public.accounts (id bigint PRIMARY KEY, name text);"
    "INSERT INTO public.accounts SELECT i, 'account ' || i FROM generate_series(1, 100) AS i;"
)
PROVEN = {"backup": "required", "restore_proof": True, "rehearsal": "required"}
NO_INCIDENT = {
    "criterion": "attestation.no_incident",
    "by": "on-call",
    "at": "2026-01-01T00:00:00Z",
    "until": "2999-01-01T00:00:00Z",
    "statement": "no critical incident is in progress",
}


@pytest.fixture
def pending(app: App) -> App:
    """A database with a table, and a migration of it that is pending."""
    app.database.query(ACCOUNTS)
    app.migration(
        "001_slugs",
        "ALTER TABLE public.accounts ADD COLUMN slug text;\nCREATE INDEX accounts_slug ON public.accounts (slug);",
        "ALTER TABLE public.accounts DROP COLUMN slug;",
    )
    return app


def assert_untouched(app: App, before: str) -> None:
    """No ledger, no table, no row."""
    assert app.database.scalar("SELECT to_regnamespace('surefoot')") is None
    assert app.schema() == before
    assert app.database.scalar("SELECT count(*) FROM public.accounts") == 100


def assert_no_go(app: App, outcome: Outcome, before: str) -> str:
    """NO-GO touched nothing and is said in a few lines; returns them."""
    assert outcome.returncode != 0, outcome.output
    assert_untouched(app, before)
    assert "NO-GO" in outcome.error
    assert len(outcome.error.splitlines()) <= 5, outcome.error
    assert "['" not in outcome.error, outcome.error
    run = app.last_run()
    assert (run["outcome"], run["decision"], run["applied"]) == ("no_go", "NO-GO", [])
    assert "NO-GO; nothing in the database was touched" in outcome.summary()
    assert (app.run_directories()[-1] / "report.html").is_file()
    return outcome.error


# --- NO-GO -----------------------------------------------------------------------------------------------------------


def test_a_no_go_touches_nothing_and_says_what_is_missing(pending: App) -> None:
    before = pending.schema()
    outcome = pending.migrate(policy={"criteria": {}, "approvals": ["reviewed"]})
    said = assert_no_go(pending, outcome, before)
    assert "attestation.no_incident" in said
    assert "gate.approvals" in said
    assert "reviewed" in said


def test_a_forgotten_rollback_is_found_on_the_shadow_and_is_a_no_go(pending: App) -> None:
    pending.migration("002_names", "CREATE INDEX accounts_name ON public.accounts (name);", "SELECT 1;")
    before = pending.schema()
    outcome = pending.migrate(policy=PROVEN, surefoot_backup_minimum_size="1kB")
    said = assert_no_go(pending, outcome, before)
    assert "rehearsal.rollback_catalog" in said
    assert "accounts_name" in said
    assert "restore." not in said
    run = pending.run_directories()[-1]
    assert {"restore.json", "rehearsal.json", "gate.json"} <= {path.name for path in run.iterdir()}


def test_an_honest_migration_is_proven_and_applied(pending: App) -> None:
    outcome = pending.migrate(policy=PROVEN, surefoot_backup_minimum_size="1kB")
    assert outcome.returncode == 0, outcome.output
    assert pending.last_run()["outcome"] == "succeeded"
    assert pending.applied() == ["001_slugs"]
    evidence = pending.evidence()
    for criterion in ("restore.content", "rehearsal.rollback_catalog", "rehearsal.redeploy", "gate.decision"):
        assert evidence[criterion]["verdict"] == "pass", evidence[criterion]


def test_check_mode_lists_what_is_still_to_be_measured_and_writes_nothing(pending: App) -> None:
    before = pending.schema()
    outcome = pending.migrate("--check", policy=PROVEN)
    assert outcome.returncode == 0, outcome.output
    assert_untouched(pending, before)
    assert not (pending.directory / "surefoot-runs").exists()
    for criterion in ("backup.created", "restore.content", "rehearsal.rollback_catalog"):
        assert criterion in outcome.output
    assert "A run would apply: 001_slugs" in outcome.summary()


# --- waivers and attestations ----------------------------------------------------------------------------------------


def _waiver(expires: str) -> dict[str, t.Any]:
    waiver = {"criterion": "attestation.no_incident", "reason": "INC-4711", "by": "head of platform"}
    return {"criteria": {}, "waivers": [{**waiver, "expires": expires}]}


def test_a_waiver_lets_it_pass_until_it_expires(pending: App) -> None:
    before = pending.schema()
    expired = pending.migrate(policy=_waiver("2026-01-01"))
    assert expired.returncode != 0
    assert "waiver" in expired.error
    assert "2026-01-01" in expired.error
    assert_untouched(pending, before)

    passed = pending.migrate(policy=_waiver("2999-12-31"))
    assert passed.returncode == 0, passed.output
    report = (pending.run_directories()[-1] / "report.html").read_text(encoding="utf-8")
    assert "INC-4711" in report
    assert "head of platform" in report


def test_an_attestation_lets_it_pass_until_it_ends(pending: App) -> None:
    before = pending.schema()
    over = pending.migrate(
        policy={"criteria": {}}, surefoot_attestations=[{**NO_INCIDENT, "until": "2026-01-02T00:00:00Z"}]
    )
    assert "attestation.no_incident" in assert_no_go(pending, over, before)

    passed = pending.migrate(policy={"criteria": {}}, surefoot_attestations=[NO_INCIDENT])
    assert passed.returncode == 0, passed.output
    gate = json.loads((pending.run_directories()[-1] / "gate.json").read_text(encoding="utf-8"))
    (attested,) = [item for item in gate["criteria"] if item["criterion"] == "attestation.no_incident"]
    assert attested["status"] == "pass"
    assert "on-call" in json.dumps(attested)


def test_a_name_for_each_approval_lets_it_pass(pending: App) -> None:
    policy = {"approvals": ["reviewed", "approved"]}
    before = pending.schema()
    names = {"reviewed": "Mo", "approved": ""}
    refused = pending.migrate(policy=policy, surefoot_approvals=names)
    assert "approved" in assert_no_go(pending, refused, before)

    passed = pending.migrate(policy=policy, surefoot_approvals={**names, "approved": "Ines"})
    assert passed.returncode == 0, passed.output


# --- a run in two parts ----------------------------------------------------------------------------------------------


def _decide(app: App, **more: t.Any) -> str:
    """The first part; returns the run directory."""
    before = app.schema()
    decided = app.migrate(surefoot_stop_after="gate", **more)
    assert decided.returncode == 0, decided.output
    assert_untouched(app, before)
    run = app.run_directories()[-1]
    assert app.last_run()["outcome"] == "stopped"
    assert f"-e surefoot_go={run}" in decided.summary()
    return str(run)


def test_decided_now_and_applied_later(pending: App) -> None:
    go = _decide(pending, policy=PROVEN, surefoot_backup_minimum_size="1kB")
    applied = pending.migrate(policy=PROVEN, surefoot_backup_minimum_size="1kB", surefoot_go=go)
    assert applied.returncode == 0, applied.output
    assert pending.applied() == ["001_slugs"]
    (run,) = pending.run_directories()
    assert str(run) == go, "both parts are one run"
    assert pending.last_run()["outcome"] == "succeeded"
    modules = [json.loads(line)["module"] for line in (run / "timeline.jsonl").read_text("utf-8").splitlines()]
    assert modules.count("postgresql_backup") == 1
    assert modules.count("postgresql_rehearsal") == 1
    # Only from here on can errors in the server log be those of the apply.
    assert modules[modules.index("postgresql_migration") - 1] == "postgresql_log_info"


def test_a_go_is_for_nothing_else_than_it_was_decided_on(pending: App, pg_server: PgServer) -> None:
    """Each change is refused; all of them undone, the same GO holds."""
    given: dict[str, t.Any] = {"surefoot_variables": {"region": "eu"}}
    go = _decide(pending, **given)
    before = pending.schema()
    files = pending.directory / "migrations" / "app"

    def refused(says: str, policy: dict[str, t.Any] | None = None, **changed: t.Any) -> None:
        outcome = pending.migrate(policy=policy, surefoot_go=go, **{**given, **changed})
        assert outcome.returncode != 0, outcome.output
        assert "GO" in outcome.errors[0], outcome.output
        assert says in outcome.errors[0]
        assert pending.applied() == []
        assert pending.schema() == before, says
        assert pending.last_run()["outcome"] == "failed"

    for name in ("001_slugs.sql", "001_slugs.rollback.sql"):
        text = (files / name).read_text(encoding="utf-8")
        (files / name).write_text(text + "SELECT 1;\n", encoding="utf-8")
        refused("001_slugs")
        (files / name).write_text(text, encoding="utf-8")

    refused("variables", surefoot_variables={"region": "us"})
    refused("policy", policy={"lock_budget": "10s"})

    pending.database.query("CREATE INDEX accounts_name ON public.accounts (name)")
    before = pending.schema()
    refused("catalog")
    pending.database.query("DROP INDEX public.accounts_name")
    before = pending.schema()

    with temporary_database(pg_server) as other:
        other.query(ACCOUNTS)
        refused("database", database=other.name)
        assert other.scalar("SELECT to_regnamespace('surefoot')") is None

    applied = pending.migrate(surefoot_go=go, **given)
    assert applied.returncode == 0, applied.output
    assert pending.applied() == ["001_slugs"]


def test_a_go_does_not_last(pending: App) -> None:
    policy = {"go_max_age": "1s"}
    go = _decide(pending, policy=policy)
    before = pending.schema()
    expires = pending.last_run()["finished"]
    while datetime.datetime.now(datetime.timezone.utc) < _time(expires) + datetime.timedelta(seconds=1):
        time.sleep(0.1)
    outcome = pending.migrate(policy=policy, surefoot_go=go)
    assert outcome.returncode != 0
    assert "expired" in outcome.errors[0]
    assert_untouched(pending, before)


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_a_run_directory_without_a_go_is_refused(pending: App) -> None:
    before = pending.schema()
    outcome = pending.migrate(surefoot_go="surefoot-runs/yesterday")
    assert outcome.returncode != 0
    assert "no run lies in" in outcome.error
    assert "surefoot-runs/yesterday" in outcome.error
    assert_untouched(pending, before)


def test_the_policys_limits_hold_for_the_watch(pending: App) -> None:
    loose = {"max_connections_used": "none", "wal_rate_max": "none", "replica_lag_max": "none", "max_waiters": "7"}
    outcome = pending.migrate(policy={"pool_saturation_max": "88%"}, surefoot_watch=loose)
    assert outcome.returncode == 0, outcome.output
    watched = pending.evidence()
    assert "88" in str(watched["watch.connections"]["required"])
    assert watched["watch.wal_rate"]["verdict"] == "pass"
    assert "at most 7" in str(watched["watch.waiters"]["required"])


def test_what_the_policy_excuses_of_the_preflight_is_left_to_the_gate(pending: App) -> None:
    wanted = {"surefoot_preflight_extensions": ["no_such_extension"]}
    refused = pending.migrate(**wanted)
    assert refused.returncode != 0
    assert "no_such_extension" in refused.errors[0]

    waiver = {
        "criterion": "preflight.extensions",
        "reason": "comes with the service",
        "by": "dba on call",
        "expires": "2999-01-01",
    }
    waived = pending.migrate(policy={"waivers": [waiver]}, **wanted)
    assert waived.returncode == 0, waived.output
    assert pending.evidence()["gate.decision"]["details"]["waived"] == ["preflight.extensions"]


def test_the_policys_threshold_holds_on_the_shadow_and_on_the_target(pending: App) -> None:
    counted = [{"name": "accounts", "query": "SELECT count(*) FROM public.accounts"}]
    policy = {**PROVEN, "baseline_regression": "77%"}
    outcome = pending.migrate(policy=policy, surefoot_queries=counted, surefoot_backup_minimum_size="1kB")
    assert outcome.returncode == 0, outcome.output
    for criterion in ("baseline.shadow_regression", "baseline.regression"):
        assert "77%" in pending.evidence()[criterion]["required"]


def test_nothing_is_applied_without_the_gates_own_go(pending: App) -> None:
    """Whatever makes the play go on: a task left out with --step, or a result put in its place."""
    before = pending.schema()
    outcome = pending.migrate(policy={"approvals": ["approved"]}, surefoot_gate_result={"decision": "GO"})
    assert outcome.returncode != 0, outcome.output
    assert "Let the gate decide first" in outcome.output
    assert_untouched(pending, before)


# --- a database too large to dump ------------------------------------------------------------------------------------


def _program(app: App) -> list[str]:
    """What takes the backup: a fake, which copies nothing and says that it did. What pgBackRest and its kin do stays
    untested."""
    said = {
        "id": "20261122-020000F",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "size": 2**31,
        "location": "s3://backups/main",
        "system_identifier": app.database.scalar("SELECT system_identifier::text FROM pg_control_system()"),
    }
    path = app.directory / "take-backup"
    path.write_text(f"#!/bin/sh\necho backing up $1\ncat <<'END'\n{json.dumps(said)}\nEND\n", encoding="utf-8")
    path.chmod(0o700)
    return [str(path), "{database}"]


def test_a_backup_by_another_program_is_a_no_go_that_names_the_missing_proof_and_a_go_when_it_is_waived(
    pending: App,
) -> None:
    pending.database.query(
        "INSERT INTO public.accounts SELECT i, 'account ' || i FROM generate_series(101, 3000) AS i; ANALYZE"
    )
    # Without its index, which would read every row.
    pending.migrations.clear()
    table = "ALTER TABLE public.accounts"
    pending.migration("001_slugs", f"{table} ADD COLUMN slug text;", f"{table} DROP COLUMN slug;")
    before = pending.schema()
    given: dict[str, t.Any] = {
        "surefoot_backup_method": "external",
        "surefoot_backup_command": _program(pending),
        "surefoot_rehearse_sample_rows": 50,
    }
    refused = pending.migrate(policy=PROVEN, **given)
    assert refused.returncode != 0, refused.output
    assert pending.applied() == []
    assert pending.schema() == before
    said = " ".join(refused.error.split())
    assert "NO-GO" in said
    unproven = ["backup.verified", "backup.contains_tables", "backup.stored_securely"]
    unproven += [
        f"restore.{name}"
        for name in ("completed", "row_counts", "content", "sequences", "constraints")
        + ("extensions", "privileges", "catalog")
    ]
    for criterion in unproven:
        assert f"missing: {criterion}: not measured" in said, criterion
    assert "taken by external" in said
    assert "restore_proof: false" in said
    assert "criteria: {name: optional}" in said
    # Only the proof is missing: the rehearsal on a sample has shown what it can.
    gate = json.loads((pending.run_directories()[-1] / "gate.json").read_text("utf-8"))
    assert sorted(line.partition(":")[0] for line in gate["missing"]) == sorted(unproven)
    assert gate["failed"] == []
    evidence = pending.evidence()
    for criterion in ("shadow.sample", "rehearsal.deploy", "rehearsal.lock_budget", "gate.backup_identity"):
        assert evidence[criterion]["verdict"] == "pass", evidence[criterion]
    assert not any(criterion.startswith("restore.") for criterion in evidence)

    why = {"reason": "2 TB, restored every Sunday by another team", "by": "head of platform", "expires": "2999-12-31"}
    waived = {**PROVEN, "waivers": [{"criterion": name, **why} for name in unproven]}
    given["surefoot_backup_command"] = _program(pending)
    decided = pending.migrate(policy=waived, surefoot_stop_after="gate", **given)
    assert decided.returncode == 0, decided.output
    go = pending.run_directories()[-1]
    record = pending.evidence()["backup.created"]["details"]
    assert json.loads((go / "go.json").read_text("utf-8"))["backup"]["id"] == record["backup_id"]

    # The GO is for this backup's record and the catalog that it was taken of.
    manifest = pathlib.Path(record["path"]) / "manifest.json"
    kept = manifest.read_bytes()
    manifest.write_bytes(kept.replace(b"s3://backups/main", b"s3://backups/othr"))
    altered = pending.migrate(policy=waived, surefoot_go=str(go), **given)
    assert altered.returncode != 0
    assert "backup" in altered.errors[0]
    manifest.write_bytes(kept)
    assert pending.applied() == []

    applied = pending.migrate(policy=waived, surefoot_go=str(go), **given)
    assert applied.returncode == 0, applied.output
    assert pending.applied() == ["001_slugs"]
    assert "Backup, by external: 20261122-020000F in s3://backups/main" in applied.summary()
    report = (go / "report.html").read_text("utf-8")
    assert "restored every Sunday" in report


def test_a_program_that_takes_no_backup_stops_the_run(pending: App) -> None:
    before = pending.schema()
    failing = {"surefoot_backup_method": "external", "surefoot_backup_command": ["/bin/sh", "-c", "exit 3"]}
    outcome = pending.migrate(policy=PROVEN, **failing)
    assert outcome.returncode != 0
    assert "exit code 3" in outcome.errors[0]
    assert_untouched(pending, before)
    unknown = pending.migrate(policy=PROVEN, surefoot_backup_method="tape")
    assert "surefoot_backup_method is tape" in unknown.errors[0]
