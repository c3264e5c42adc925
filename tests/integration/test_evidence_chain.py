# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The head of a run's evidence in the ledger: what the chain alone cannot show, and that verifying writes nothing."""

from __future__ import annotations

import hashlib
import json
import pathlib
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._chain import head
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import NO_PREVIOUS, Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    ROOT,
    MigrationSet,
    ModuleProcess,
    dump,
    environment,
    run,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set").add("001", "CREATE TABLE first (id int);", rollback="DROP TABLE first;")


@pytest.fixture
def run_dir(plan: MigrationSet, database: Database, tmp_path: pathlib.Path) -> pathlib.Path:
    """A run that applied something, with its summary and report, anchored."""
    directory = tmp_path / "runs" / "r1"
    run(plan, database, run_id="r1", run_dir=str(directory))
    write_json(str(directory), "run.json", {"run_id": "r1", "applied": ["001"]})
    write_json(str(directory), "report.json", {"decision": "GO"})
    write_json(str(directory), "rehearsal.json", {"locks": []})
    result = evidence(directory, database, state="anchored")
    assert (result["status"], result["anchors"], result["changed"]) == ("intact", ["ledger"], True), result
    return directory


def evidence(
    run_dir: pathlib.Path, database: Database | None = None, *, check: bool = False, **params: t.Any
) -> dict[str, t.Any]:
    connection = database.params if database is not None else {}
    return (
        ModuleProcess({"run_dir": str(run_dir), **connection, **params}, module="postgresql_evidence", check=check)
        .wait()
        .result
    )


def lines_of(run_dir: pathlib.Path) -> list[bytes]:
    return (run_dir / "evidence.jsonl").read_bytes().splitlines(keepends=True)


def write(run_dir: pathlib.Path, lines: t.Sequence[bytes]) -> None:
    (run_dir / "evidence.jsonl").write_bytes(b"".join(lines))


def rechained(lines: t.Sequence[bytes]) -> list[bytes]:
    """The same records, chained anew."""
    made: list[bytes] = []
    previous = NO_PREVIOUS
    for line in lines:
        made.append((json.dumps({**json.loads(line), "previous": previous}, sort_keys=True) + "\n").encode())
        previous = hashlib.sha256(made[-1]).hexdigest()
    return made


def altered(result: dict[str, t.Any]) -> list[tuple[str, int | None]]:
    """Where; the task must have failed and say so in one line."""
    assert result["failed"] and result["status"] == "altered" and "\n" not in result["msg"], result
    assert result["msg"].startswith("the evidence of run r1 was altered: ")
    assert result["evidence"][0]["verdict"] == "fail"
    return [(item["file"], item["line"]) for item in result["findings"]]


def kept_head(database: Database, run_id: str = "r1") -> str | None:
    return t.cast("str | None", database.scalar("SELECT evidence_head FROM surefoot.runs WHERE run_id = %s", (run_id,)))


# --- anchoring


def test_the_head_lies_in_the_ledger_and_an_untouched_run_is_intact(run_dir: pathlib.Path, database: Database) -> None:
    assert kept_head(database) == head(str(run_dir)) == hashlib.sha256(lines_of(run_dir)[-1]).hexdigest()
    before = dump(database)
    result = evidence(run_dir, database)
    assert (result["status"], result["changed"], result["findings"], result["files"]) == ("intact", False, [], 4)
    assert result["head"] == kept_head(database) and result["unsealed"] == []
    assert dump(database) == before
    assert {path.stat().st_mode & 0o077 for path in run_dir.iterdir()} == {0}


def test_anchoring_again_changes_nothing_until_something_was_recorded(
    run_dir: pathlib.Path, database: Database
) -> None:
    first = kept_head(database)
    again = evidence(run_dir, database, state="anchored")
    assert (again["changed"], again["status"], kept_head(database)) == (False, "intact", first)
    record(str(run_dir), [Evidence("sign_off.posted", "sign_off", "pass", 200, 200, "HTTP status")])
    assert altered(evidence(run_dir, database)) == [("evidence.jsonl", again["records"] + 1)]
    third = evidence(run_dir, database, state="anchored")
    assert (third["changed"], third["status"]) == (True, "intact")
    assert evidence(run_dir, database)["status"] == "intact" and kept_head(database) != first


def test_check_mode_seals_and_keeps_nothing(plan: MigrationSet, database: Database, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "r2"
    run(plan, database, run_id="r2", run_dir=str(directory))
    before = head(str(directory))
    result = evidence(directory, database, state="anchored", check=True)
    assert (result["status"], result["changed"]) == ("unanchored", False)
    assert head(str(directory)) == before and kept_head(database, "r2") is None


@pytest.mark.parametrize("ledger", [False, True])
def test_a_run_that_wrote_nothing_is_sealed_and_unanchored(
    plan: MigrationSet, database: Database, tmp_path: pathlib.Path, ledger: bool
) -> None:
    if ledger:
        run(plan, database, run_id="another")
    before = dump(database)
    directory = tmp_path / "nogo"
    record(str(directory), [Evidence("gate.decision", "gate", "fail", "NO-GO", "GO", "policy")])
    result = evidence(directory, database, state="anchored")
    assert (result["status"], result["changed"], result["anchors"]) == ("unanchored", False, [])
    verified = evidence(directory, database)
    assert verified["status"] == "unanchored"
    assert "the ledger keeps no head of run nogo" in str(verified["warnings"])
    assert dump(database) == before


def test_a_ledger_made_before_the_column_gets_it(
    plan: MigrationSet, database: Database, tmp_path: pathlib.Path
) -> None:
    directory = tmp_path / "r1"
    run(plan, database, run_id="r1", run_dir=str(directory))
    database.query("ALTER TABLE surefoot.runs DROP COLUMN evidence_head")
    assert evidence(directory, database)["status"] == "unanchored"
    plan.add("002", "CREATE TABLE second (id int);")
    run(plan, database, run_id="r2")
    assert evidence(directory, database, state="anchored")["anchors"] == ["ledger"]
    assert kept_head(database) == head(str(directory))
    plan.add("003", "CREATE TABLE third (id int);")
    assert run(plan, database)["applied"] == ["003"]


def test_a_role_that_may_not_write_is_told_what_to_do(
    run_dir: pathlib.Path, database: Database, pg_server: t.Any
) -> None:
    role = f"reader_{database.name}"
    database.query(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA surefoot TO {role}")
    try:
        denied = evidence(run_dir, database, login_user=role)
        assert denied["failed"] and "GRANT USAGE ON SCHEMA surefoot and SELECT" in denied["msg"]
        database.query(f"GRANT SELECT ON ALL TABLES IN SCHEMA surefoot TO {role}")
        assert evidence(run_dir, database, login_user=role)["status"] == "intact"
        record(str(run_dir), [Evidence("x.y", "x", "pass", 1, 1, "x")])
        denied = evidence(run_dir, database, login_user=role, state="anchored")
        assert denied["failed"] and "cannot be kept in ledger surefoot: permission denied" in denied["msg"]
    finally:
        database.query(f"DROP OWNED BY {role}; DROP ROLE {role}")


# --- what the ledger's head reveals


def test_each_way_to_alter_a_run_is_found_and_located(run_dir: pathlib.Path, database: Database) -> None:
    lines = lines_of(run_dir)
    last = len(lines)
    assert last >= 3

    def found(changed: t.Sequence[bytes]) -> list[tuple[str, int | None]]:
        write(run_dir, changed)
        return altered(evidence(run_dir, database))

    for number in (1, 2, last):
        line = lines[number - 1].replace(b'"pass"', b'"fail"').replace(b'"time": "2', b'"time": "3')
        assert line != lines[number - 1]
        assert found([*lines[: number - 1], line, *lines[number:]]) == [("evidence.jsonl", number)]
    assert found(lines[:-1]) == [("evidence.jsonl", last - 1)]
    assert found([lines[1], lines[0], *lines[2:]])[0][0] == "evidence.jsonl"
    digest = hashlib.sha256(lines[-1]).hexdigest()
    forged = {**json.loads(lines[0]), "criterion": "gate.approvals", "previous": digest}
    assert found([*lines, (json.dumps(forged, sort_keys=True) + "\n").encode()]) == [("evidence.jsonl", last + 1)]
    whole = [line.replace(b'"criterion": "migration.applied"', b'"criterion": "migration.invented"') for line in lines]
    assert whole != lines
    assert found(rechained(whole)) == [("evidence.jsonl", last)]
    write(run_dir, rechained(whole))
    assert evidence(run_dir)["status"] == "unanchored", "without the ledger it cannot be seen"
    (run_dir / "evidence.jsonl").unlink()
    assert ("evidence.jsonl", None) in altered(evidence(run_dir, database))
    write(run_dir, lines)
    assert evidence(run_dir, database)["status"] == "intact"


@pytest.mark.parametrize("name", ["report.json", "rehearsal.json", "run.json"])
def test_an_edited_file_is_found_and_resealing_it_is_too(run_dir: pathlib.Path, database: Database, name: str) -> None:
    path = run_dir / name
    path.write_text(path.read_text(encoding="utf-8").replace("\n", " \n", 1), encoding="utf-8")
    assert altered(evidence(run_dir, database)) == [(name, None)]
    # The edit, and a seal that fits it: only the ledger knows.
    lines = lines_of(run_dir)
    sealed = json.loads(lines[-1])
    content = path.read_bytes()
    sealed["details"]["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    write(run_dir, rechained([*lines[:-1], json.dumps(sealed).encode()]))
    assert altered(evidence(run_dir, database)) == [("evidence.jsonl", len(lines))]
    assert evidence(run_dir)["status"] == "unanchored"


# --- the playbook


ANSIBLE = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))


def verify_report(playbook: str, cwd: pathlib.Path, report: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ANSIBLE, playbook, "-e", f"surefoot_report={report}", *arguments],
        cwd=cwd,
        env=environment(PWD=str(cwd), ANSIBLE_NOCOLOR="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def inventory(directory: pathlib.Path, database: Database) -> str:
    params = {f"surefoot_{name}": value for name, value in database.params.items()}
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **params}
    path = directory / "hosts.json"
    path.write_text(json.dumps({"databases": {"hosts": {"platform": host}}}), encoding="utf-8")
    return str(path)


def test_the_playbook_says_intact_altered_or_unanchored(
    run_dir: pathlib.Path, database: Database, tmp_path: pathlib.Path
) -> None:
    playbook = str(ROOT / "playbooks" / "verify_report.yml")
    hosts = inventory(tmp_path, database)
    alone = verify_report(playbook, tmp_path, "runs/r1")
    assert alone.returncode == 0 and "r1: unanchored" in alone.stdout, alone.stdout + alone.stderr
    intact = verify_report(playbook, tmp_path, "runs/r1", "-i", hosts)
    assert intact.returncode == 0 and "r1: intact (ledger)" in intact.stdout, intact.stdout + intact.stderr
    assert "changed=0" in intact.stdout
    write(run_dir, lines_of(run_dir)[:-1])
    shortened = verify_report("surefoot.dbops.verify_report", tmp_path, str(run_dir), "-i", hosts)
    assert shortened.returncode != 0
    assert "the evidence of run r1 was altered: evidence.jsonl line" in shortened.stdout + shortened.stderr
    nothing = verify_report(playbook, tmp_path, "")
    assert nothing.returncode != 0 and "Give the run directory" in nothing.stdout + nothing.stderr


def test_the_playbook_fails_without_a_database_when_a_file_was_edited(
    run_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (run_dir / "report.json").write_text("{}", encoding="utf-8")
    done = verify_report(str(ROOT / "playbooks" / "verify_report.yml"), tmp_path, str(run_dir))
    assert done.returncode != 0
    assert "the evidence of run r1 was altered: report.json is not what it was when sealed" in done.stdout + done.stderr
