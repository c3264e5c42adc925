# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate on a real database: what it measures, and that a GO is for nothing but what was decided on."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import stat
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._criteria import CRITERIA, GO
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import BackupError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._external import ExternalRequest, take_external_backup
from ansible_collections.surefoot.dbops.plugins.module_utils._gate import GateRequest, Outcome, hold_gate
from ansible_collections.surefoot.dbops.plugins.module_utils._gate import no_go as error_of
from ansible_collections.surefoot.dbops.plugins.module_utils._go import (
    StaleGo,
    before_apply,
    check_go,
    make_key,
    read_go,
    read_key,
    rehearsed_details,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import DEFAULT_SCHEMA
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import BackupRequest, take_backup
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import resolve_policy
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    MigrationSet,
    ModuleProcess,
    applied,
    exists,
    fails,
    run,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database
from ansible_collections.surefoot.dbops.tests.support.standby import running_standby

RUN = "run-1"
NAMES = {"prepared": "Ada Lovelace", "reviewed": "Grace Hopper", "approved": "Katherine Johnson"}
SECRETS = {"token": "swordfish-4711"}
NOW = datetime.datetime.now(datetime.timezone.utc)
NO_INCIDENT = {
    "criterion": "attestation.no_incident",
    "by": "on-call",
    "at": NOW.isoformat(),
    "statement": "none is open",
    "until": (NOW + datetime.timedelta(days=1)).isoformat(),
}
# Measured by pieces that have tests of their own.
GIVEN = ("plan.", "ledger.", "preflight.", "restore.", "rehearsal.")


class Site:
    """A database with a table, a set with one pending migration, a backup, and a run directory with evidence."""

    def __init__(self, database: Database, directory: pathlib.Path) -> None:
        self.database = database
        self.run_dir = str(directory / "run")
        self.set = MigrationSet(directory / "set", variables={"limit": 10})
        self.set.add("001", "CREATE TABLE t1 (i int DEFAULT :limit);", rollback="DROP TABLE t1;")
        database.query("CREATE TABLE IF NOT EXISTS kept (i int); INSERT INTO kept SELECT generate_series(1, 100)")
        self.options = ConnectionOptions.from_params(database.params)
        request = BackupRequest(
            dest=str(directory / "backups"), bindir=database.server.bindir, run_id=RUN, minimum_size=1
        )
        outcome = take_backup(self.options, request)
        self.backup = outcome.backup
        assert self.backup is not None
        record(self.run_dir, outcome.evidence)
        self.given = [name for name in CRITERIA if name.startswith(GIVEN) and GO in CRITERIA[name].stages]
        record(self.run_dir, [self.proof(name) for name in self.given])
        self.policy: dict[str, t.Any] = {"window": "any"}

    def proof(self, name: str, verdict: str = "pass") -> Evidence:
        details: dict[str, t.Any] = {}
        if name == "rehearsal.deploy":
            details = self.rehearsed(self.plan.migrations)
        return Evidence(name, name.partition(".")[0], verdict, verdict, "pass", "test", details=details)

    def rehearsed(self, todo: t.Sequence[t.Any], **more: t.Any) -> dict[str, t.Any]:
        """What a rehearsal of these migrations records."""
        values = {"backup_id": self.backup["id"], "variables": {}, "secrets": SECRETS, **more}
        return rehearsed_details(self.plan, todo, key=make_key(self.run_dir, None), **values)

    @property
    def plan(self) -> t.Any:
        return load_plan(self.set.path)

    def request(self, **more: t.Any) -> GateRequest:
        policy = resolve_policy({**self.policy, **more.pop("policy", {})})
        values: dict[str, t.Any] = {
            "stage": GO,
            "run_id": RUN,
            "run_dir": self.run_dir,
            "ledger_schema": DEFAULT_SCHEMA,
            "secrets": SECRETS,
            "attestations": [NO_INCIDENT],
            "approvals": NAMES,
            "backup": {"path": self.backup["path"], "manifest_sha256": self.backup["manifest_sha256"]},
            **more,
        }
        return GateRequest(policy=policy, **values)

    def decide(self, **more: t.Any) -> Outcome:
        return hold_gate(self.plan, self.options, self.request(**more))

    def go(self, **more: t.Any) -> str:
        outcome = self.decide(**more)
        assert outcome.decision.go, outcome.decision.lines()
        assert outcome.go_path is not None
        return outcome.go_path

    def check(self, path: str, **more: t.Any) -> t.Callable[..., None]:
        values: dict[str, t.Any] = {
            "variables": {},
            "secrets": SECRETS,
            "ledger_schema": DEFAULT_SCHEMA,
            "go_key": None,
        }
        policy = resolve_policy({**self.policy, **more.pop("policy", {})})
        return before_apply(path, self.plan, policy=policy, **{**values, **more})

    def apply(self, path: str, database: Database | None = None, **more: t.Any) -> dict[str, t.Any]:
        """The run under the GO, as the module starts it."""
        options: dict[str, t.Any] = {"variables": more.get("variables", {}), "secrets": more.get("secrets", SECRETS)}
        return run(self.set, database or self.database, before_apply=self.check(path, **more), **options)

    def refused(self, path: str, changed: str, database: Database | None = None, **more: t.Any) -> StaleGo:
        """The run must refuse the GO, naming this, and leave nothing in the database."""
        target = database or self.database
        with pytest.raises(StaleGo) as caught:
            self.apply(path, target, **more)
        assert caught.value.changed == changed, str(caught.value)
        assert caught.value.to_dict()["code"] == "stale_go"
        assert not exists(target, "t1")
        assert not exists(target, "surefoot.applied")
        assert "swordfish" not in str(caught.value)
        return caught.value


@pytest.fixture
def site(database: Database, tmp_path: pathlib.Path) -> Site:
    return Site(database, tmp_path)


# --- the gate


def test_a_go_is_bound_written_and_applied_under(site: Site) -> None:
    path = site.go()
    assert path == os.path.join(site.run_dir, "go.json")
    for name in ("go.json", "go.key", "gate.json"):
        assert stat.S_IMODE(os.stat(os.path.join(site.run_dir, name)).st_mode) == 0o600
    text = pathlib.Path(path).read_text(encoding="utf-8")
    assert "swordfish" not in text
    go = json.loads(text)
    assert go["approvals"] == NAMES
    assert go["backup"]["manifest_sha256"] == site.backup["manifest_sha256"]
    assert (go["database"], go["run_id"], list(go["migrations"])) == (site.database.name, RUN, ["001"])
    # Deciding again, on the same facts, gives a GO as good as the first.
    assert site.go() == path
    assert site.apply(path)["applied"] == ["001"]
    assert applied(site.database) == ["001"]


def test_its_own_measurements_are_evidence(site: Site) -> None:
    outcome = site.decide()
    measured = {item["criterion"]: item["verdict"] for item in outcome.evidence}
    assert measured == {
        "gate.window": "pass",
        "gate.approvals": "pass",
        "gate.backup_age": "pass",
        "gate.backup_identity": "pass",
        "gate.catalog": "pass",
        "gate.rehearsed_files": "pass",
        "gate.decision": "pass",
    }
    with open(os.path.join(site.run_dir, "evidence.jsonl"), encoding="utf-8") as stream:
        assert [json.loads(line)["criterion"] for line in stream][-len(measured) :] == list(measured)


def no_go(site: Site, name: str, **more: t.Any) -> Outcome:
    """The gate must say NO-GO for this reason alone, give no GO, and leave the database as it is."""
    before = site.database.scalar("SELECT count(*) FROM pg_class")
    outcome = site.decide(**more)
    stopping = [item.criterion for status in ("fail", "missing") for item in outcome.decision.having(status)]
    assert (outcome.decision.decision, stopping) == ("NO-GO", [name]), outcome.decision.lines()
    assert outcome.go_path is None
    assert not os.path.exists(os.path.join(site.run_dir, "go.json"))
    assert not exists(site.database, "surefoot.applied")
    assert site.database.scalar("SELECT count(*) FROM pg_class") == before
    return outcome


def test_a_no_go_takes_an_earlier_go_back(site: Site) -> None:
    site.go()
    record(site.run_dir, [site.proof("preflight.primary", "fail")])
    outcome = no_go(site, "preflight.primary")
    assert outcome.decision.summary() == "NO-GO: preflight.primary: measured fail, required pass"


def test_a_decision_that_could_not_be_made_leaves_no_earlier_go_in_force(site: Site) -> None:
    path = site.go()
    evidence = pathlib.Path(site.run_dir, "evidence.jsonl")
    evidence.write_bytes(evidence.read_bytes().replace(b'"verdict": "pass"', b'"verdict": "fail"', 1))
    with pytest.raises(SurefootError, match="was altered"):
        site.decide()
    with pytest.raises(StaleGo) as caught:
        site.apply(path)
    assert caught.value.changed == "go"


def test_a_backup_that_lost_a_file_after_the_decision_stops_the_apply(site: Site) -> None:
    path = site.go()
    file = max(pathlib.Path(site.backup["path"], "dump").iterdir(), key=lambda item: item.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    site.refused(path, "backup")
    file.unlink()
    site.refused(path, "backup")
    file.write_bytes(content)
    assert site.apply(path)["applied"] == ["001"]


def test_a_backup_of_another_run_is_too_old_where_every_run_must_take_one(site: Site) -> None:
    no_go(site, "gate.backup_age", run_id="run-2")
    site.go(run_id="run-2", policy={"backup_max_age": "1h"})


def test_a_backup_must_be_of_this_database(site: Site, pg_server: PgServer) -> None:
    with temporary_database(pg_server) as other:
        other.query("CREATE TABLE kept (i int)")
        site.options = ConnectionOptions.from_params(other.params)
        site.database = other
        no_go(site, "gate.backup_identity")


def test_a_backup_must_be_the_one_that_was_verified(site: Site) -> None:
    verified = Evidence(
        "backup.verified", "backup", "pass", 1, 1, "test", details={"manifest_sha256": "0" * 64}
    )  # fmt: skip
    record(site.run_dir, [verified])
    no_go(site, "gate.backup_identity")


def test_without_the_backups_facts_there_is_no_go(site: Site) -> None:
    outcome = site.decide(backup=None)
    missing = [item.criterion for item in outcome.decision.having("missing")]
    assert missing == ["gate.backup_age", "gate.backup_identity", "gate.catalog"]


def test_a_damaged_manifest_is_refused_before_anything_is_decided(site: Site) -> None:
    path = pathlib.Path(site.backup["manifest"])
    path.write_bytes(path.read_bytes().replace(b"kept", b"lost"))
    with pytest.raises(BackupError):
        site.decide()


def test_the_catalog_must_be_as_in_the_backup(site: Site) -> None:
    site.database.query("CREATE TABLE later (i int)")
    site.go(policy={"criteria": {"gate.catalog": "optional"}})
    outcome = site.decide()
    judged = outcome.decision.having("fail")
    assert [item.criterion for item in judged] == ["gate.catalog"]
    assert "+table public.later" in judged[0].line()


def test_what_the_plan_ignores_is_no_change_of_the_catalog(site: Site) -> None:
    site.database.query("CREATE TABLE events_20261123 (i int)")
    assert not site.decide().decision.go
    site.set.fields["drift_ignore"] = ["public.events_*"]
    site.set.write()
    record(site.run_dir, [site.proof("rehearsal.deploy")])
    path = site.go()
    site.database.query("CREATE TABLE events_20261124 (i int)")
    assert site.apply(path)["applied"] == ["001"]


def test_the_ledger_of_an_earlier_run_is_no_change_of_the_catalog(database: Database, tmp_path: pathlib.Path) -> None:
    first = MigrationSet(tmp_path / "set").add("000", "CREATE TABLE kept (i int);")
    run(first, database)
    site = Site(database, tmp_path)
    site.set.migrations.insert(0, first.migrations[0])
    site.set.write()
    details = site.rehearsed(site.plan.migrations[1:])
    record(site.run_dir, [Evidence("rehearsal.deploy", "rehearsal", "pass", 1, 1, "test", details=details)])
    assert site.apply(site.go())["applied"] == ["001"]


@pytest.mark.parametrize("file", ["001.sql", "001.rollback.sql"])
def test_a_file_that_was_not_rehearsed_as_it_is_is_a_no_go(site: Site, file: str) -> None:
    site.set.file(file, "SELECT 1;")
    no_go(site, "gate.rehearsed_files")


OTHER_REHEARSALS: dict[str, t.Callable[[Site], dict[str, t.Any]]] = {
    # As on a shadow that had been migrated by an earlier rehearsal.
    "of nothing": lambda site: {},
    "of a part": lambda site: site.rehearsed(site.plan.migrations[:1]),
    "of more than is applied": lambda site: site.rehearsed([*site.plan.migrations, *_another(site)]),
    "with other variables": lambda site: site.rehearsed(site.plan.migrations, variables={"limit": 20}),
    "with other secrets": lambda site: site.rehearsed(site.plan.migrations, secrets={"token": "another"}),
    "of another backup": lambda site: site.rehearsed(site.plan.migrations, backup_id="another"),
    "of another plan": lambda site: {**site.rehearsed(site.plan.migrations), "plan_sha256": "0" * 64},
}


def _another(site: Site) -> t.Sequence[t.Any]:
    other = MigrationSet(pathlib.Path(site.run_dir).with_name("other")).add("009", "SELECT 1;")
    migrations: t.Sequence[t.Any] = load_plan(other.path).migrations
    return migrations


@pytest.mark.parametrize("rehearsal", OTHER_REHEARSALS)
def test_a_rehearsal_of_anything_else_proves_nothing(site: Site, rehearsal: str) -> None:
    site.set.add("002", "CREATE TABLE t2 (i int);")
    record(site.run_dir, [site.proof("rehearsal.deploy")])
    site.go()
    nothing = rehearsal == "of nothing"
    details = OTHER_REHEARSALS[rehearsal](site)
    for name in [item for item in site.given if item.startswith("rehearsal.")]:
        verdict = "not_applicable" if nothing else "pass"
        record(site.run_dir, [Evidence(name, "rehearsal", verdict, 1, 1, "test", details=details)])
    no_go(site, "gate.rehearsed_files")


def test_check_mode_writes_nothing_and_lists_what_is_still_to_be_measured(site: Site, tmp_path: pathlib.Path) -> None:
    seen = sorted(os.listdir(site.run_dir))
    given = tuple(site.proof(name).to_dict() for name in ("plan.valid", "ledger.no_drift"))
    outcome = site.decide(check_mode=True, run_dir=None, records=given, backup=None)
    assert outcome.decision.decision == "UNDECIDED"
    missing = {item.criterion for item in outcome.decision.having("missing")}
    assert {"backup.created", "restore.content", "rehearsal.deploy"} <= missing
    assert not {"plan.valid", "gate.window", "gate.approvals"} & missing
    assert any(
        "rehearsal.deploy: not measured; measured by: postgresql_rehearsal" in line for line in outcome.decision.lines()
    )
    assert (outcome.go_path, sorted(os.listdir(site.run_dir))) == (None, seen)


# --- the GO that does not fit any more, each on its own


def test_another_database(site: Site, pg_server: PgServer) -> None:
    path = site.go()
    with temporary_database(pg_server) as other:
        other.query("CREATE TABLE kept (i int)")
        site.refused(path, "database", other)


def test_a_database_made_anew_under_the_same_name(site: Site) -> None:
    path = site.go()
    name = site.database.name
    with contextlib.closing(site.database.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name}")
        cursor.execute(f"CREATE DATABASE {name}")
    site.database.query("CREATE TABLE kept (i int)")
    site.refused(path, "database")


def test_a_changed_deploy_file(site: Site) -> None:
    path = site.go()
    site.set.file("001.sql", "CREATE TABLE t1 (i int DEFAULT :limit); DROP TABLE kept;")
    assert "001" in str(site.refused(path, "files"))
    assert exists(site.database, "kept")


def test_a_changed_rollback_file(site: Site) -> None:
    path = site.go()
    site.set.file("001.rollback.sql", "DROP TABLE t1, kept;")
    site.refused(path, "files")


def test_a_changed_plan(site: Site) -> None:
    path = site.go()
    site.set.add(
        "001", "CREATE TABLE t1 (i int DEFAULT :limit);", rollback="DROP TABLE t1;", lock_tables=["public.kept"]
    )
    site.refused(path, "files")


def test_one_more_migration(site: Site) -> None:
    path = site.go()
    site.set.add("002", "CREATE TABLE t2 (i int);")
    assert "002 would be applied too" in str(site.refused(path, "files"))


@pytest.mark.parametrize(
    "values",
    [
        {"variables": {"limit": 11}},
        {"variables": {"limit": "10"}},
        {"secrets": {"token": "swordfish-4712"}},
        {"secrets": {}},
        {"secrets": {**SECRETS, "more": "swordfish-9999"}},
    ],
)
def test_other_variables(site: Site, values: dict[str, t.Any]) -> None:
    site.refused(site.go(), "variables", **values)


def test_another_policy(site: Site) -> None:
    site.refused(site.go(), "policy", policy={"lock_budget": "2s"})


def check_at(site: Site, path: str, policy: dict[str, t.Any], **ahead: float) -> None:
    """What the run checks, at another time."""
    key = read_key(site.run_dir, None)
    plan = site.plan
    with contextlib.closing(site.database.connect()) as connection:
        check_go(
            read_go(path, key),
            connection,
            plan,
            plan.migrations,
            key=key,
            variables={},
            secrets=SECRETS,
            policy=resolve_policy({**site.policy, **policy}),
            ledger_schema=DEFAULT_SCHEMA,
            now=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(**ahead),
        )


def test_it_expires(site: Site) -> None:
    policy = {"go_max_age": "30m"}
    path = site.go(policy=policy)
    check_at(site, path, policy, minutes=29)
    for ahead in (31, -10):
        with pytest.raises(StaleGo) as caught:
            check_at(site, path, policy, minutes=ahead)
        assert caught.value.changed == "age"


def test_the_age_of_the_backup_is_looked_at_again(site: Site) -> None:
    policy = {"go_max_age": "12h", "backup_max_age": "2h"}
    path = site.go(policy=policy)
    check_at(site, path, policy, hours=1)
    with pytest.raises(StaleGo) as caught:
        check_at(site, path, policy, hours=3)
    assert caught.value.changed == "backup"


def test_the_backup_must_still_be_there(site: Site) -> None:
    path = site.go()
    shutil.rmtree(site.backup["path"])
    site.refused(path, "backup")


def test_decided_by_day_it_waits_for_the_window(site: Site) -> None:
    start = NOW + datetime.timedelta(hours=3)
    window = {"start": f"{start:%H:%M}", "end": f"{start + datetime.timedelta(hours=2):%H:%M}", "reserve": "1h"}
    policy = {"window": window, "go_max_age": "12h"}
    path = site.go(policy=policy)
    site.refused(path, "window", policy=policy)
    check_at(site, path, policy, hours=3.5)
    with pytest.raises(StaleGo) as caught:
        check_at(site, path, policy, hours=4.5)
    assert caught.value.changed == "window"


def test_a_changed_catalog(site: Site) -> None:
    path = site.go()
    site.database.query("ALTER TABLE kept ADD COLUMN j int")
    site.refused(path, "catalog")


def test_rows_are_no_change_of_the_catalog(site: Site) -> None:
    path = site.go()
    site.database.query("INSERT INTO kept VALUES (1); CREATE TEMPORARY TABLE gone (i int)")
    assert site.apply(path)["applied"] == ["001"]


def test_another_approver(site: Site) -> None:
    path = site.go()
    site.refused(path, "approval", approved_by="Mallory")
    assert site.apply(path, approved_by="Katherine Johnson")["applied"] == ["001"]


@pytest.mark.parametrize("field", ["expires", "approvals", "migrations", "catalog", "timeline", "run_id"])
def test_a_go_edited_by_hand(site: Site, field: str) -> None:
    path = site.go()
    go = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    go[field] = {} if isinstance(go[field], dict) else "2099-01-01T00:00:00Z"
    pathlib.Path(path).write_text(json.dumps(go), encoding="utf-8")
    site.refused(path, "go")


def test_the_key_of_another_run(site: Site) -> None:
    path = site.go(go_key="k" * 40)
    site.refused(path, "go", go_key="l" * 40)
    site.refused(path, "go")  # and none lies beside it
    assert site.apply(path, go_key="k" * 40)["applied"] == ["001"]


def test_after_a_failover(site: Site, pg_server: PgServer) -> None:
    path = site.go()
    with running_standby(pg_server) as copy:
        with contextlib.closing(copy.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_promote(true)")
        assert "timeline 00000002" in str(site.refused(path, "timeline", Database(site.database.name, copy)))


def test_with_nothing_pending_no_go_is_asked_for(site: Site) -> None:
    path = site.go()
    site.apply(path)
    site.set.add("001", "CREATE TABLE t1 (i int DEFAULT :limit);", rollback="DROP TABLE t1;")
    assert site.apply(path, policy={"lock_budget": "2s"})["applied"] == []


def test_a_go_does_not_outlive_what_it_rests_on(site: Site) -> None:
    soon = (NOW + datetime.timedelta(minutes=10)).isoformat()
    later = (NOW + datetime.timedelta(minutes=20)).isoformat()
    assert site.decide(attestations=[{**NO_INCIDENT, "until": soon}]).expires == _iso(soon)
    record(site.run_dir, [site.proof("preflight.primary", "fail")])
    waiver = {"criterion": "preflight.primary", "reason": "test", "by": "me"}
    for expires in (soon, later):
        policy = {"waivers": [{**waiver, "expires": expires}]}
        assert site.decide(policy=policy, attestations=[{**NO_INCIDENT, "until": later}]).expires == _iso(expires)
    unneeded = {**waiver, "criterion": "preflight.tls", "expires": soon}
    policy = {"waivers": [{**waiver, "expires": later}, unneeded]}
    assert site.decide(policy=policy, attestations=[{**NO_INCIDENT, "until": later}]).expires == _iso(later)


def _iso(text: str) -> str:
    moment = datetime.datetime.fromisoformat(text)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_key_of_another_user_is_none(site: Site) -> None:
    path = site.go()
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(os.path.join(site.run_dir, "go.key"), 12345, -1)
    assert "belongs to another user" in str(site.refused(path, "go"))


def test_a_go_is_for_one_apply(site: Site, tmp_path: pathlib.Path) -> None:
    path = site.go()
    copied = shutil.copytree(site.run_dir, tmp_path / "copy")
    site.apply(path)
    run(site.set, site.database, state="rolled_back", to="001", secrets=SECRETS)
    for used in (path, str(copied)):
        with pytest.raises(StaleGo) as caught:
            site.apply(used)
        assert caught.value.changed == "ledger"
    assert not exists(site.database, "t1")


def test_an_attempt_that_failed_does_not_use_the_go_up(site: Site) -> None:
    path = site.go()
    with contextlib.closing(site.database.connect()) as other, other.cursor() as cursor:
        other.autocommit = False
        cursor.execute("CREATE TABLE t1 (i int)")  # the apply waits for the name
        fails(
            SurefootError,
            site.set,
            site.database,
            before_apply=site.check(path),
            secrets=SECRETS,
            lock_timeout=0.1,
            retry={"attempts": 1},
        )
        other.rollback()
    assert site.apply(path)["applied"] == ["001"]


def test_a_half_failed_run_needs_a_new_decision(site: Site) -> None:
    site.set.add("002", "CREATE TABLE t1 (i int);")
    record(site.run_dir, [site.proof("rehearsal.deploy")])
    path = site.go()
    fails(
        SurefootError, site.set, site.database, before_apply=site.check(path), secrets=SECRETS
    )  # 002 fails, 001 stays applied
    site.set.add("002", "CREATE TABLE t2 (i int);")
    with pytest.raises(StaleGo) as caught:
        site.apply(path)
    assert caught.value.changed == "files"


# --- the module


def module(site: Site, *, check: bool = False, **more: t.Any) -> t.Any:
    params = {
        **site.database.params,
        "path": site.set.path,
        "run_dir": site.run_dir,
        "run_id": RUN,
        "policy": site.policy,
        "secret_variables": SECRETS,
        "approvals": NAMES,
        "attestations": [NO_INCIDENT],
        "backup": {"path": site.backup["path"], "manifest_sha256": site.backup["manifest_sha256"]},
        **more,
    }
    return ModuleProcess(params, check=check, module="postgresql_gate").wait()


def test_the_module_gives_a_go(site: Site) -> None:
    done = module(site)
    assert done.returncode == 0, done.stdout
    assert (done.result["decision"], done.result["changed"]) == ("GO", False)
    assert done.result["msg"][0].startswith("GO: ")
    assert site.apply(done.result["go"])["applied"] == ["001"]


def test_the_module_applies_under_a_go_or_says_what_changed(site: Site) -> None:
    done = module(site)
    params = {
        **site.database.params,
        "path": site.set.path,
        "go": done.result["go"],
        "policy": site.policy,
        "secret_variables": SECRETS,
    }
    site.database.query("CREATE TABLE meanwhile (i int)")
    stale = ModuleProcess(params).wait()
    assert (stale.returncode, stale.result["error"]["code"]) == (1, "stale_go")
    assert stale.result["error"]["changed"] == "catalog"
    assert not exists(site.database, "t1")
    site.database.query("DROP TABLE meanwhile")
    other = ModuleProcess({**params, "policy": {**site.policy, "backup_max_age": "9h"}}).wait()
    assert other.result["error"]["changed"] == "policy"
    wrong = ModuleProcess({**params, "state": "rolled_back", "to": "001"}).wait()
    assert wrong.result["error"]["code"] == "plan"
    applied_now = ModuleProcess(params).wait()
    assert applied_now.result["applied"] == ["001"], applied_now.result


def test_the_module_fails_with_one_line_for_a_no_go(site: Site) -> None:
    record(site.run_dir, [site.proof("preflight.primary", "fail"), site.proof("restore.content", "not_measured")])
    done = module(site)
    assert done.returncode == 1
    assert done.result["msg"].startswith(
        "NO-GO: preflight.primary: measured fail, required pass | not measured: restore.content. "
    )
    assert done.result["msg"].endswith("nothing in the database was touched.")
    assert "\n" not in done.result["msg"]
    assert done.result["error"]["code"] == "no_go"
    assert done.result["failed"] is True
    assert len(done.result["criteria"]) > 50
    lenient = module(site, fail_on_no_go=False)
    assert (lenient.returncode, lenient.result["decision"]) == (0, "NO-GO")
    assert lenient.result["failures"] == ["preflight.primary: measured fail, required pass"]


def test_the_module_signs_off_what_was_measured_after_the_apply(site: Site) -> None:
    site.set.add(
        "001",
        "CREATE TABLE t1 (i int DEFAULT :limit);",
        rollback="DROP TABLE t1;",
        verify=[{"name": "there", "query": "SELECT count(*) FROM t1", "expect": {"scalar": 0}}],
    )
    record(site.run_dir, [site.proof("rehearsal.deploy")])
    path = site.go()
    said = [
        {**NO_INCIDENT, "criterion": f"attestation.no_{what}"} for what in ("user_facing_errors", "support_tickets")
    ]
    early = module(site, state="sign_off", attestations=said)
    assert "migration.applied" in early.result["msg"].partition("not measured: ")[2]
    run(site.set, site.database, before_apply=site.check(path), secrets=SECRETS, run_dir=site.run_dir)
    record(site.run_dir, [site.proof(name) for name in ("watch.connections", "watch.wal_rate")])
    done = module(site, state="sign_off", attestations=said)
    assert done.returncode == 0, done.result["msg"]
    assert (done.result["decision"], done.result["go"]) == ("GO", None)
    judged = {item["criterion"]: item["status"] for item in done.result["criteria"]}
    assert {judged[name] for name in ("migration.applied", "gate.decision", "verify.001.there")} == {"pass"}
    without = module(site, state="sign_off", attestations=said[:1])
    assert "not measured: attestation.no_support_tickets." in without.result["msg"]
    assert os.path.exists(path)


# --- a backup that another program took ------------------------------------------------------------------------------


class External(Site):
    """The same, with the record of a backup that another program took, of which nothing else exists: a fake."""

    def __init__(self, database: Database, directory: pathlib.Path, **said: t.Any) -> None:
        super().__init__(database, directory)
        shutil.rmtree(self.run_dir)
        reported = {
            "id": "b1",
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "size": 2**30,
            "location": "s3://backups/main",
            "system_identifier": database.scalar("SELECT system_identifier::text FROM pg_control_system()"),
            **said,
        }
        reported = {key: value for key, value in reported.items() if value is not None}
        since = (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)).isoformat()
        taken = take_external_backup(
            self.options, ExternalRequest(dest=str(directory / "records"), reported=reported, since=since, run_id=RUN)
        )
        assert taken.backup is not None
        self.backup = taken.backup
        record(self.run_dir, taken.evidence)
        self.given = [name for name in self.given if not name.startswith("restore.")]
        record(self.run_dir, [self.proof(name) for name in self.given])
        self.unproven = [name for name in CRITERIA if name.startswith("restore.")]
        self.unproven += ["backup.verified", "backup.contains_tables", "backup.stored_securely"]

    def waivers(self, *more: str) -> dict[str, t.Any]:
        why = {"reason": "2 TB", "by": "Ada Lovelace", "expires": "2999-12-31"}
        return {"waivers": [{"criterion": name, **why} for name in (*self.unproven, *more)]}


@pytest.fixture
def external(database: Database, tmp_path: pathlib.Path) -> External:
    return External(database, tmp_path)


def missing_of(outcome: Outcome) -> set[str]:
    return {item.criterion for item in outcome.decision.having("missing")}


def test_the_proof_that_a_backup_by_another_program_lacks_is_named(external: External) -> None:
    outcome = external.decide()
    assert outcome.decision.decision == "NO-GO"
    assert missing_of(outcome) == set(external.unproven)
    assert outcome.decision.having("fail") == []
    (note,) = [line for line in outcome.decision.lines() if line.strip().startswith("note:")]
    assert "taken by external" in note
    assert "s3://backups/main" in note
    for name in external.unproven:
        assert name in note
    assert "restore_proof: false" in note
    error = str(error_of(outcome))
    assert "A policy accepts that by a waiver of each" in error
    assert "\n" not in error


@pytest.mark.versions
def test_a_policy_that_accepts_it_says_so_by_waiver_by_criteria_or_by_restore_proof(external: External) -> None:
    for policy in (
        external.waivers(),
        {"criteria": dict.fromkeys(external.unproven, "optional")},
        {
            "restore_proof": False,
            "criteria": {name: "optional" for name in external.unproven if name.startswith("backup.")},
        },
    ):
        outcome = external.decide(policy=policy)
        assert outcome.decision.go, outcome.decision.lines()
        assert any("neither read back nor restored" in note for note in outcome.decision.notes)
        assert all("A policy accepts" not in note for note in outcome.decision.notes)
    partly = external.decide(policy={"restore_proof": False})
    assert missing_of(partly) == {"backup.verified", "backup.contains_tables", "backup.stored_securely"}


def test_a_go_is_bound_to_the_record_of_such_a_backup(external: External, database: Database) -> None:
    policy = external.waivers()
    external.go(policy=policy)
    resolved = resolve_policy({**external.policy, **policy})
    key = read_key(external.run_dir, None)
    go = read_go(os.path.join(external.run_dir, "go.json"), key)
    assert go["backup"]["id"] == external.backup["id"]

    def check() -> None:
        with contextlib.closing(database.connect()) as connection:
            check_go(
                go, connection, external.plan, external.plan.migrations, key=key, variables={}, secrets=SECRETS,
                policy=resolved, ledger_schema=DEFAULT_SCHEMA, now=datetime.datetime.now(datetime.timezone.utc),
            )  # fmt: skip

    check()
    database.query("CREATE INDEX kept_i ON kept (i)")
    with pytest.raises(StaleGo, match="catalog"):
        check()
    database.query("DROP INDEX kept_i")
    check()
    shutil.rmtree(external.backup["path"])
    with pytest.raises(StaleGo, match="backup is gone"):
        check()


def test_the_catalog_of_the_record_is_compared(external: External, database: Database) -> None:
    database.query("ALTER TABLE kept ADD COLUMN j int")
    outcome = external.decide(policy=external.waivers())
    assert [item.criterion for item in outcome.decision.having("fail")] == ["gate.catalog"]


def test_a_backup_that_does_not_say_of_which_server_it_is_has_no_identity(
    database: Database, tmp_path: pathlib.Path
) -> None:
    site = External(database, tmp_path, system_identifier=None)
    assert missing_of(site.decide(policy=site.waivers())) == {"gate.backup_identity"}
    assert site.decide(policy=site.waivers("gate.backup_identity")).decision.go
    # By its address it says so too.
    address = External(database, tmp_path / "2", system_identifier=None, address="db.example.com")
    assert missing_of(address.decide(policy=address.waivers())) == {"gate.backup_identity"}


def test_a_record_of_another_database_fails(external: External, pg_server: PgServer) -> None:
    with temporary_database(pg_server) as other:
        outcome = hold_gate(
            external.plan,
            ConnectionOptions.from_params(other.params),
            external.request(policy=external.waivers()),
        )
    assert "gate.backup_identity" in {item.criterion for item in outcome.decision.having("fail")}


def test_an_old_backup_is_too_old_and_has_no_catalog(database: Database, tmp_path: pathlib.Path) -> None:
    day = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    site = External(database, tmp_path, created=day.isoformat())
    outcome = site.decide(policy=site.waivers())
    assert [item.criterion for item in outcome.decision.having("fail")] == ["gate.backup_age"]
    assert missing_of(outcome) == {"gate.catalog"}
    lenient = site.decide(policy={**site.waivers("gate.catalog"), "backup_max_age": "2d"})
    assert lenient.decision.go, lenient.decision.lines()
    strict = site.decide(policy={**site.waivers("gate.catalog"), "backup_max_age": "2h"})
    assert [item.criterion for item in strict.decision.having("fail")] == ["gate.backup_age"]
