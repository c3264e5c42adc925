# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal on a shadow that holds a sample: what it may say, and what it must not."""

from __future__ import annotations

import datetime
import json
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._external import ExternalRequest, take_external_backup
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._rehearsal import RehearsalRequest, rehearse
from ansible_collections.surefoot.dbops.plugins.module_utils._sample import SampleRequest
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import ShadowRequest, make_shadow, remove_shadow
from ansible_collections.surefoot.dbops.tests.support.migrations import MigrationSet
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer

SEED = """
CREATE TABLE public.large (id int PRIMARY KEY, name text, small int);
CREATE TABLE public.small (id int PRIMARY KEY, name text);
ALTER TABLE public.large ADD CONSTRAINT small_fk FOREIGN KEY (small) REFERENCES public.small;
INSERT INTO public.small SELECT g, 'small ' || g FROM generate_series(1, 10) g;
INSERT INTO public.large SELECT g, 'large ' || g, g % 10 + 1 FROM generate_series(1, 3000) g;
"""
UNCOMMENT = "COMMENT ON TABLE public.small IS NULL"
WHOLE = {"public.large": [5_000_000, 900 * 1024 * 1024]}
PROVEN = {
    "deploy": "pass",
    "verify": "not_applicable",
    "rollback_catalog": "pass",
    "rollback_data": "pass",
    "redeploy": "pass",
    "lock_budget": "pass",
    "rewrites": "pass",
    "hazards": "not_applicable",
}


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


@pytest.fixture
def shadow(database: Database) -> Database:
    """A database marked as postgresql_restore marks a sample: a part of one table, the whole of the other."""
    database.query(SEED)
    oid = database.scalar("SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
    marker = {"run_id": "r1", "oid": oid, "content": "sample", "incomplete": WHOLE}
    database.query(f"COMMENT ON DATABASE {database.name} IS 'surefoot shadow: {json.dumps(marker)}'")
    return database


def perform(plan: MigrationSet, options: ConnectionOptions, **request: t.Any) -> dict[str, t.Any]:
    values = {"ledger_schema": "surefoot", "on_failure": "report", "squawk": "never", "lock_budget": 30.0, **request}
    return rehearse(load_plan(plan.path), options, RehearsalRequest(**values))


def on(plan: MigrationSet, database: Database, **request: t.Any) -> dict[str, t.Any]:
    return perform(plan, ConnectionOptions.from_params(database.params), **request)


def verdicts(results: t.Mapping[str, t.Any]) -> dict[str, str]:
    return {item["criterion"].partition(".")[2]: item["verdict"] for item in results["evidence"]}


def measured(results: t.Mapping[str, t.Any], name: str) -> str:
    return str(next(item["measured"] for item in results["evidence"] if item["criterion"] == f"rehearsal.{name}"))


# Deploy, rollback, and what is not measured because it depends on rows that are not there.
CASES: dict[str, tuple[str, str, set[str]]] = {
    "a column without a default touches no row": (
        "ALTER TABLE public.large ADD COLUMN slug text",
        "ALTER TABLE public.large DROP COLUMN slug",
        set(),
    ),
    "a constraint that is not validated touches no row": (
        "ALTER TABLE public.large ADD CONSTRAINT positive CHECK (id > 0) NOT VALID",
        "ALTER TABLE public.large DROP CONSTRAINT positive",
        set(),
    ),
    "a grant and a comment touch no row": (
        "GRANT SELECT ON public.large TO PUBLIC; COMMENT ON TABLE public.large IS 'large'",
        "REVOKE SELECT ON public.large FROM PUBLIC; COMMENT ON TABLE public.large IS NULL",
        set(),
    ),
    "a table that came whole is as good as the original": (
        "CREATE UNIQUE INDEX small_name ON public.small (name); UPDATE public.small SET name = name || '!'",
        "UPDATE public.small SET name = rtrim(name, '!'); DROP INDEX public.small_name",
        set(),
    ),
    "a constraint that is validated reads every row": (
        "ALTER TABLE public.large ADD CONSTRAINT positive CHECK (id > 0)",
        "ALTER TABLE public.large DROP CONSTRAINT positive",
        {"deploy", "redeploy", "lock_budget"},
    ),
    "NOT NULL reads every row": (
        "ALTER TABLE public.large ALTER name SET NOT NULL",
        "ALTER TABLE public.large ALTER name DROP NOT NULL",
        {"deploy", "redeploy", "lock_budget"},
    ),
    "an index reads every row": (
        "CREATE INDEX large_name ON public.large (name)",
        "DROP INDEX public.large_name",
        {"deploy", "redeploy", "lock_budget"},
    ),
    "a foreign key reads every row": (
        "ALTER TABLE public.large ADD CONSTRAINT again FOREIGN KEY (small) REFERENCES public.small",
        "ALTER TABLE public.large DROP CONSTRAINT again",
        {"deploy", "redeploy", "lock_budget"},
    ),
    "rows that are written are only some of them": (
        "UPDATE public.large SET name = upper(name) WHERE id < 10",
        "UPDATE public.large SET name = lower(name) WHERE id < 10",
        {"deploy", "rollback_catalog", "rollback_data", "redeploy"},
    ),
    "a lock lasts as long as what is done while it is held": (
        "ALTER TABLE public.small ADD COLUMN of_large bigint; UPDATE public.small SET of_large = (SELECT count(*) FROM"
        " public.large)",
        "ALTER TABLE public.small DROP COLUMN of_large",
        {"deploy", "redeploy", "lock_budget"},
    ),
    "a rollback that reads is proven as little": (
        "ALTER TABLE public.large ALTER name SET DEFAULT 'x'",
        "ALTER TABLE public.large ALTER name DROP DEFAULT; DO $$ BEGIN PERFORM FROM public.large WHERE id = 0; END $$",
        {"rollback_catalog", "rollback_data", "lock_budget"},
    ),
}


@pytest.mark.versions
@pytest.mark.parametrize("case", list(CASES))
def test_what_depends_on_rows_that_are_not_there_is_not_measured(
    plan: MigrationSet, shadow: Database, case: str
) -> None:
    deploy, rollback, unsure = CASES[case]
    plan.add("001", deploy, rollback=rollback)
    results = on(plan, shadow)
    assert verdicts(results) == {**PROVEN, **dict.fromkeys(unsure, "not_measured")}, results["evidence"]
    for name in unsure:
        assert "on a sample" in measured(results, name)
        assert "public.large (5000000 rows)" in measured(results, name)
    assert any("a sample" in note for note in results["notes"])


def test_a_rewrite_is_judged_by_the_size_of_the_whole_table(plan: MigrationSet, shadow: Database) -> None:
    plan.add(
        "001", "ALTER TABLE public.large ALTER id TYPE bigint", rollback="ALTER TABLE public.large ALTER id TYPE int"
    )
    found = verdicts(on(plan, shadow))
    assert found["rewrites"] == "fail"
    assert found["lock_budget"] == found["rollback_data"] == "not_measured"


def test_what_fails_on_a_sample_fails(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001", "ALTER TABLE public.large ADD CHECK (id < 5)", rollback="SELECT 1")
    assert verdicts(on(plan, shadow))["deploy"] == "fail"


def test_a_lock_that_is_too_long_on_a_sample_is_too_long(plan: MigrationSet, shadow: Database) -> None:
    plan.add(
        "001",
        "ALTER TABLE public.large ADD COLUMN x int; SELECT pg_sleep(0.3); SELECT count(*) FROM public.large",
        rollback="ALTER TABLE public.large DROP COLUMN x",
    )
    results = on(plan, shadow, lock_budget=0.1)
    assert verdicts(results)["lock_budget"] == "fail"
    assert "900.0 MB, 5000000 rows" in measured(results, "lock_budget")


def test_a_rollback_that_forgets_is_found_on_a_sample_too(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001", "ALTER TABLE public.large ADD COLUMN x int", rollback="SELECT 1")
    plan.add("002", "UPDATE public.large SET name = 'gone'", rollback="SELECT 1")
    found = verdicts(on(plan, shadow))
    assert (found["rollback_catalog"], found["rollback_data"]) == ("fail", "fail")


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        ({"query": "SELECT count(*) FROM public.large", "expect": {"scalar": 3000}}, "not_measured"),
        ({"query": "SELECT count(*) FROM pg_catalog.pg_class WHERE relname = 'x'", "expect": {"scalar": 0}}, "pass"),
        (
            {"statement": "INSERT INTO public.small VALUES (1, 'twice')", "expect_error": "unique_violation"},
            "pass",
        ),
        ({"query": "SELECT count(*) FROM public.large", "expect": {"scalar": 5000000}}, "fail"),
    ],
)
def test_a_check_that_reads_rows_is_not_measured(
    plan: MigrationSet, shadow: Database, check: dict[str, t.Any], verdict: str
) -> None:
    plan.add("001", "COMMENT ON TABLE public.small IS 'x'", rollback=UNCOMMENT, verify=[{"name": "check", **check}])
    assert verdicts(on(plan, shadow))["verify"] == verdict


def test_what_runs_outside_a_transaction_and_in_batches_is_not_measured(plan: MigrationSet, shadow: Database) -> None:
    steps: list[t.Any] = [("CREATE INDEX CONCURRENTLY large_name ON public.large (name)", False)]
    plan.add("001", steps=steps, rollback="DROP INDEX public.large_name")
    found = verdicts(on(plan, shadow))
    assert found["deploy"] == "not_measured"
    assert found["rollback_catalog"] == "pass"
    backfill = {"table": "public.large", "key": "id", "set": {"name": "upper(name)"}}
    plan.add("001", steps=[backfill], rollback="UPDATE public.large SET name = lower(name)")
    shadow.query(
        "DROP SCHEMA surefoot CASCADE; DROP INDEX public.large_name; UPDATE public.large SET name = lower(name)"
    )
    results = on(plan, shadow)
    assert verdicts(results)["deploy"] == verdicts(results)["rollback_data"] == "not_measured"


def test_from_a_live_database_to_the_evidence(
    plan: MigrationSet, database: Database, tmp_path: pathlib.Path, pg_server: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", pg_server.bindir)
    for statement in SEED.split(";\n"):
        if statement.strip():
            database.query(statement)
    database.query("ANALYZE")
    plan.add(
        "001", "ALTER TABLE public.large ADD COLUMN slug text", rollback="ALTER TABLE public.large DROP COLUMN slug"
    )
    source = ConnectionOptions.from_params(database.params)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    reported = {"id": "b1", "created": now, "size": 2**30, "location": "nowhere"}
    backup = take_external_backup(source, ExternalRequest(dest=str(tmp_path / "records"), reported=reported)).backup
    assert backup is not None
    request = ShadowRequest(
        backup=backup["path"],
        manifest_sha256=backup["manifest_sha256"],
        content="sample",
        sample=SampleRequest(rows=50),
        min_free=0,
        run_id=f"live-{database.name}",
    )
    try:
        made = make_shadow(None, request, source=source)
        results = perform(plan, ConnectionOptions.from_params(made.connection))
        assert verdicts(results) == PROVEN, results["evidence"]
        deployed = next(item for item in results["evidence"] if item["criterion"] == "rehearsal.deploy")
        assert deployed["details"]["backup_id"] == backup["id"]
        assert results["shadow"]["marker"]["incomplete"]["public.large"][0] == 3000
        (lock,) = [
            lock for lock in results["locks"] if lock["phase"] == "deploy" and lock["relation"] == "public.large"
        ]
        assert lock["rows"] == 3000, "as large as it is where it will run"
    finally:
        remove_shadow(None, ShadowRequest(run_id=f"live-{database.name}"), socket=None)


def test_where_the_server_counts_nothing_nothing_is_known(plan: MigrationSet, shadow: Database) -> None:
    shadow.query(f"ALTER DATABASE {shadow.name} SET track_counts = off")
    table = "ALTER TABLE public.large"
    plan.add("001", f"{table} ADD COLUMN slug text", rollback=f"{table} DROP COLUMN slug")
    found = verdicts(on(plan, shadow))
    unsure = {"deploy", "redeploy", "rollback_catalog", "rollback_data", "lock_budget"}
    assert {name for name, verdict in found.items() if verdict == "not_measured"} == unsure
