# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups that another program takes, of a real database. The programs are scripts of these tests: what pgBackRest,
WAL-G, Barman or a storage system answer stays untested here."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import stat
import sys
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    EnvironmentProblem,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._external import ExternalRequest, take_external_backup
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    BackupOutcome,
    BackupRequest,
    read_manifest,
    take_backup,
    verify_backup,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._restore import open_backup
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer


def utc(moment: datetime.datetime | None = None) -> str:
    return (moment or datetime.datetime.now(datetime.timezone.utc)).isoformat()


def answer(**more: t.Any) -> dict[str, t.Any]:
    return {"id": "20261122-020000F", "created": utc(), "size": 5 * 2**30, "location": "s3://backups/main", **more}


def program(directory: pathlib.Path, body: str, name: str = "backup") -> list[str]:
    """An executable that runs this Python text."""
    path = directory / name
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{body}\n", encoding="utf-8")
    path.chmod(0o700)
    return [str(path)]


def printing(directory: pathlib.Path, value: t.Any, name: str = "backup") -> list[str]:
    """A program that logs and then prints this as JSON."""
    return program(directory, f"print('starting')\nprint({json.dumps(json.dumps(value))})", name)


def take(database: Database, directory: pathlib.Path, *, check_mode: bool = False, **more: t.Any) -> BackupOutcome:
    request = ExternalRequest(dest=str(directory / "records"), **{"run_id": "r1", "timeout": 60.0, **more})
    return take_external_backup(ConnectionOptions.from_params(database.params), request, check_mode=check_mode)


def refused(database: Database, directory: pathlib.Path, **more: t.Any) -> SurefootError:
    """It fails, says so in the evidence and in one line, and nothing is recorded."""
    with pytest.raises(SurefootError) as caught:
        take(database, directory, **more)
    records = directory / "records"
    assert [path for path in records.glob("*") if not path.name.startswith(".")] == []
    assert list(records.glob(".*.partial")) == []
    evidence = caught.value.results["evidence"]
    assert [item["verdict"] for item in evidence if item["criterion"] == "backup.created"] == ["fail"]
    assert "\n" not in str(caught.value)
    return caught.value


def system_identifier(database: Database) -> str:
    return str(database.scalar("SELECT system_identifier FROM pg_control_system()"))


# --- a backup --------------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_a_backup_of_another_program_is_recorded_with_the_identity_of_the_database(
    database: Database, tmp_path: pathlib.Path
) -> None:
    database.query("CREATE TABLE public.users (id int PRIMARY KEY)")
    command = printing(tmp_path, answer(system_identifier=system_identifier(database), details={"type": "full"}))
    outcome = take(database, tmp_path, command=command)
    backup = outcome.backup
    assert backup is not None and outcome.changed
    assert (backup["method"], backup["external_id"]) == ("external", "20261122-020000F")
    assert (backup["size"], backup["location"]) == (5 * 2**30, "s3://backups/main")
    assert backup["system_identifier"] == system_identifier(database)
    manifest = read_manifest(backup["path"], backup["manifest_sha256"])
    assert manifest.data["catalog"]["fingerprint"] == backup["catalog_fingerprint"]
    assert manifest.data["external"]["details"] == {"type": "full"}
    assert stat.S_IMODE(os.stat(backup["path"]).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(backup["manifest"]).st_mode) == 0o600
    verdicts = {item.criterion: item.verdict for item in outcome.evidence}
    assert verdicts == {
        "backup.created": "pass",
        "backup.minimum_size": "pass",
        "backup.confirmed": "not_applicable",
        "backup.verified": "not_measured",
        "backup.contains_tables": "not_measured",
        "backup.stored_securely": "not_measured",
    }
    assert outcome.warnings == []


def test_the_program_gets_what_it_needs_and_no_password(
    database: Database, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "never-for-others")
    monkeypatch.setenv("REPOSITORY", "main")
    said = tmp_path / "said.json"
    body = (
        f"json.dump([sys.argv[1:], dict(os.environ), sys.stdin.read()], open({str(said)!r}, 'w'))\n"
        f"print({json.dumps(json.dumps(answer()))})"
    )
    take(database, tmp_path, command=[*program(tmp_path, body), "--db={database}", "{run_id}", "$HOME; {other}"])
    words, environment, stdin = json.loads(said.read_text("utf-8"))
    assert words == [f"--db={database.name}", "r1", "$HOME; {other}"]
    assert environment["REPOSITORY"] == "main"
    assert "never-for-others" not in json.dumps(environment)
    assert stdin == ""


def test_check_mode_runs_nothing(database: Database, tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "ran"
    command = program(tmp_path, f"open({str(mark)!r}, 'w')")
    outcome = take(database, tmp_path, command=command, check_mode=True)
    assert outcome.changed and outcome.backup is None
    assert not mark.exists()
    assert not (tmp_path / "records").exists()
    with pytest.raises(EnvironmentProblem, match="no_such_program"):
        take(database, tmp_path, command=["/no_such_program"], check_mode=True)


def test_a_record_that_is_young_enough_is_used_again_until_the_catalog_changes(
    database: Database, tmp_path: pathlib.Path
) -> None:
    command = printing(tmp_path, answer())
    first = take(database, tmp_path, command=command).backup
    assert first is not None
    again = take(database, tmp_path, command=command, max_age=3600.0, run_id="r2")
    assert again.backup is not None and not again.changed
    assert (again.backup["id"], again.backup["reused"]) == (first["id"], True)
    database.query("CREATE TABLE public.more (id int)")
    third = take(database, tmp_path, command=command, max_age=3600.0, run_id="r3").backup
    assert third is not None and third["id"] != first["id"]
    fourth = take(database, tmp_path, command=command, max_age=0.0, run_id="r4").backup
    assert fourth is not None and fourth["id"] not in (first["id"], third["id"])


def test_a_backup_from_before_the_run_is_recorded_without_a_catalog(database: Database, tmp_path: pathlib.Path) -> None:
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    outcome = take(database, tmp_path, command=printing(tmp_path, answer(created=utc(yesterday))))
    assert outcome.backup is not None
    assert outcome.backup["earlier"] and outcome.backup["catalog_fingerprint"] is None
    assert "before this run" in outcome.warnings[0]
    reported = answer(created=utc(yesterday))
    since = utc(yesterday - datetime.timedelta(minutes=5))
    taken = take(database, tmp_path, reported=reported, since=since, method="rds_snapshot", run_id="r2").backup
    assert taken is not None and not taken["earlier"] and taken["method"] == "rds_snapshot"


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_program_that_fails_is_named_with_its_last_line_and_without_secrets(
    database: Database, tmp_path: pathlib.Path
) -> None:
    register_secret("hunter2-hunter2")
    body = (
        "print('{}')\nsys.stderr.write('first line\\ncannot open s3://key:sesame@host/ with hunter2-hunter2\\n')\n"
        "sys.exit(3)"
    )
    problem = refused(database, tmp_path, command=program(tmp_path, body))
    assert "exit code 3: cannot open" in problem.message
    assert "first line" not in str(problem)
    assert "hunter2" not in json.dumps(problem.to_dict()) + json.dumps(problem.results)
    assert "sesame" not in json.dumps(problem.to_dict()) + json.dumps(problem.results)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "printed nothing"),
        ("print('  ')", "printed nothing"),
        ("print('password=open-sesame')", "is no JSON"),
        ("print('{\"id\": 1'); print('}')", "is no JSON"),
        ("print('[1, 2]')", "is no JSON object"),
        ('print(\'{"id": "a", "id": "b"}\')', "is no JSON"),
        ("print('{\"id\": NaN}')", "is no JSON"),
        ("os.write(1, b'\\xff\\xfe')", "is no JSON"),
        ("print('[' * 60000)", "is no JSON"),
        ("print('x' * 70000)", "longer than 64.0 kB"),
        ("[print('x' * 1000) for n in range(20000)]", "more than 16.0 MB"),
        ("os.kill(os.getpid(), 9)", "killed by signal 9"),
    ],
)
def test_an_answer_that_is_none_is_refused_and_not_quoted(
    database: Database, tmp_path: pathlib.Path, body: str, says: str
) -> None:
    problem = refused(database, tmp_path, command=program(tmp_path, body))
    assert says in problem.message
    assert "open-sesame" not in json.dumps(problem.to_dict()) + json.dumps(problem.results)
    assert "xxx" not in str(problem)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"id": None}, "has no id"),
        ({"id": "--delete"}, "the id in"),
        ({"id": "a b"}, "the id in"),
        ({"created": "2026-11-22T02:00:00"}, "the created in"),
        ({"created": "yesterday"}, "the created in"),
        ({"created": "2999-01-01T00:00:00Z"}, "from the future"),
        ({"size": 0}, "the size in"),
        ({"size": "5GB"}, "the size in"),
        ({"size": True}, "the size in"),
        ({"location": "two\nlines"}, "the location in"),
        ({"location": ""}, "has no location"),
        ({"verified": "yes"}, "the verified in"),
        ({"details": [1]}, "the details in"),
        ({"details": {"log": "x" * 20000}}, "more than 16.0 kB"),
        ({"sise": 5}, "a key that is not known"),
        ({"system_identifier": "7"}, "of the system identifier 7, this database's is"),
        ({"timeline": 4711}, "of the timeline 4711"),
        ({"database": "another"}, "of the database another"),
    ],
)
def test_every_part_of_the_answer_is_checked(
    database: Database, tmp_path: pathlib.Path, changed: dict[str, t.Any], says: str
) -> None:
    assert says in str(refused(database, tmp_path, command=printing(tmp_path, answer(**changed))))


def test_a_program_that_hangs_is_stopped_with_all_it_started(database: Database, tmp_path: pathlib.Path) -> None:
    pid = tmp_path / "pid"
    body = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\nprint('begun', flush=True)\ntime.sleep(600)"
    )
    problem = refused(database, tmp_path, command=program(tmp_path, body), timeout=5.0)
    assert "did not end within 5.0 s" in problem.message
    assert _ends(int(pid.read_text("ascii")))


def _ends(pid: int) -> bool:
    """Whether the process ends within ten seconds; a zombie has."""
    path = pathlib.Path(f"/proc/{pid}/stat")
    for _attempt in range(100):
        try:
            state = path.read_text("utf-8").rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_schema_that_changes_meanwhile_is_noticed(database: Database, tmp_path: pathlib.Path) -> None:
    body = (
        f"import psycopg2\nc = psycopg2.connect({database.dsn!r})\n"
        "c.cursor().execute('CREATE TABLE public.t (i int)')\n"
        f"c.commit()\nprint({json.dumps(json.dumps(answer()))})"
    )
    problem = refused(database, tmp_path, command=program(tmp_path, body))
    assert "the schema changed while the backup was taken" in problem.message


# --- the second program ----------------------------------------------------------------------------------------------


def test_a_second_program_confirms_it(database: Database, tmp_path: pathlib.Path) -> None:
    body = "print(json.dumps({'id': sys.argv[1], 'verified': sys.argv[2] == 's3://backups/main'}))"
    verify = [*program(tmp_path, body, "verify"), "{id}", "{location}"]
    command = printing(tmp_path, answer())
    outcome = take(database, tmp_path, command=command, verify_command=verify)
    assert outcome.backup is not None and outcome.backup["confirmed"]
    verdicts = {item.criterion: item.verdict for item in outcome.evidence}
    assert verdicts["backup.confirmed"] == "pass"
    assert verdicts["backup.verified"] == "not_measured"
    # A backup that is gone by now is not used again, and a new one is taken.
    gone = [*program(tmp_path, "sys.exit(1)", "verify")]
    with pytest.raises(BackupError, match="verify_command"):
        take(database, tmp_path, command=command, verify_command=gone, max_age=3600.0, run_id="r2")


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(1)",
        "print('ok')",
        "print(json.dumps({'id': 'another', 'verified': True}))",
        "print(json.dumps({'id': sys.argv[1], 'verified': False}))",
        "print(json.dumps({'id': sys.argv[1], 'verified': 'true'}))",
        "print(json.dumps({'id': sys.argv[1]}))",
    ],
)
def test_what_it_does_not_confirm_is_not_recorded(database: Database, tmp_path: pathlib.Path, body: str) -> None:
    verify = [*program(tmp_path, body, "verify"), "{id}"]
    problem = refused(database, tmp_path, command=printing(tmp_path, answer()), verify_command=verify)
    assert "verify_command" in problem.message


# --- among dumps -----------------------------------------------------------------------------------------------------


def test_a_record_is_no_dump_and_no_dump_a_record(
    database: Database, tmp_path: pathlib.Path, pg_server: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", pg_server.bindir)
    database.query("CREATE TABLE public.users (id int PRIMARY KEY)")
    record = take(database, tmp_path, command=printing(tmp_path, answer())).backup
    assert record is not None
    dumps = BackupRequest(dest=str(tmp_path / "records"), min_free=0, max_age=3600.0, keep=1, run_id="d1")
    dump = take_backup(ConnectionOptions.from_params(database.params), dumps)
    assert dump.changed, "the record is no dump that could be used again"
    assert os.path.isdir(record["path"]), "keep counts dumps"
    again = take(database, tmp_path, command=printing(tmp_path, answer()), max_age=3600.0, run_id="r2").backup
    assert again is not None and again["id"] == record["id"]
    for attempt in (
        lambda: open_backup(record["path"], record["manifest_sha256"], jobs=1),
        lambda: verify_backup(record["path"], record["manifest_sha256"], dumps),
    ):
        with pytest.raises(BackupError, match="holds no dump.*taken by external"):
            attempt()


def test_options_that_make_no_sense(database: Database, tmp_path: pathlib.Path) -> None:
    for more, says in (
        ({}, "nothing takes the backup"),
        ({"command": ["x"], "reported": {}}, "both"),
        ({"command": [" "]}, "names no program"),
        ({"command": ["x"], "timeout": 0.0}, "timeout is 0"),
        ({"command": ["x"], "since": "soon"}, "since"),
    ):
        with pytest.raises(PlanError, match=says):
            take(database, tmp_path, **more)
