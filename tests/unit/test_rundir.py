# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The run directory and what a run says of itself."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import stat
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import append_lines
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import (
    Phases,
    add_notes,
    begun_run,
    check_monitored,
    check_notes,
    cut_off_run,
    describe,
    last_look,
    look_of,
    make_run_directory,
    summarize,
    write_json,
)


def _summary(results: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
    given = {"name": "db", "action": "migrate", "finished": True, "check_mode": False, "run_dir": "/runs/1", **options}
    return summarize(Phases.of(results), **given)


def test_a_run_directory_is_private_and_new(tmp_path: pathlib.Path) -> None:
    path = pathlib.Path(make_run_directory(str(tmp_path / "runs"), "20261122T030000Z-5f2c1a"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(PlanError, match="exists already"):
        make_run_directory(str(tmp_path / "runs"), path.name)


@pytest.mark.parametrize("run_id", ["", "..", "../x", "a/b", ".hidden", "a\n", "x" * 101])
def test_a_run_id_that_is_no_file_name_is_refused(tmp_path: pathlib.Path, run_id: str) -> None:
    with pytest.raises(PlanError, match="cannot name a directory"):
        make_run_directory(str(tmp_path), run_id)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_a_file_is_an_error_with_a_remedy(tmp_path: pathlib.Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises((EnvironmentProblem, PlanError)) as caught:
        make_run_directory(str(tmp_path / "runs"), "r1")
    assert caught.value.remedy


def test_the_summary_is_written_wholly_and_privately(tmp_path: pathlib.Path) -> None:
    write_json(str(tmp_path), "run.json", {"outcome": "failed"})
    write_json(str(tmp_path), "run.json", {"outcome": "succeeded"})
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == {"outcome": "succeeded"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_pending() -> None:
    summary = _summary({"plan": {"pending": []}, "backup": {"skipped": True}, "migration": {"skipped": True}})
    assert summary["outcome"] == "nothing_to_do"
    assert describe(summary, rollback_hint="undo")[0] == "db: nothing is pending."
    assert "To roll back: undo" not in describe(summary, rollback_hint="undo")


def test_a_failure_names_its_phase_and_how_far_it_came() -> None:
    results = {
        "plan": {"pending": ["a", "b"]},
        "migration": {"failed": True, "applied": ["a"], "pending": ["b"], "msg": "no"},
    }
    summary = _summary(results, finished=False)
    assert (summary["outcome"], summary["failed_phase"], summary["error"]) == ("failed", "migration", "no")
    assert "applied before that, and recorded: a; still pending: b." in describe(summary, rollback_hint="")[0]


def test_results_left_over_from_an_earlier_run_are_not_claimed() -> None:
    results = {"plan": {"failed": True, "msg": "no"}, "migration": {"applied": ["a"]}, "verification": {"checks": [{}]}}
    summary = _summary(results, finished=False)
    assert summary["failed_phase"] == "plan"
    assert summary["applied"] == []
    assert "no migration was applied by this run" in describe(summary, rollback_hint="")[0]


def test_check_mode_tells_what_a_run_would_do() -> None:
    summary = _summary({"plan": {"pending": ["a"]}, "migration": {"pending": ["a"]}}, check_mode=True)
    assert "A run would apply: a." in describe(summary, rollback_hint="")[0]


def test_a_rollback_names_the_tables_that_went_and_where_their_rows_are() -> None:
    plan = {"migrations": [{"id": "a", "loses": ["s.t"]}, {"id": "b", "loses": ["s.u"]}, {"id": "c", "loses": ["s.t"]}]}
    results = {
        "plan": plan,
        "backup": {"backup": {"path": "/b/1", "manifest_sha256": "00ff"}},
        "migration": {"rolled_back": ["c", "a"]},
    }
    text = "\n".join(describe(_summary(results, action="rollback"), rollback_hint="undo"))
    assert "Tables dropped with their rows: s.t; their rows are in the backup." in text
    assert "To roll back" not in text


def test_success_names_backup_and_way_back() -> None:
    results = {
        "plan": {"pending": ["a"]},
        "backup": {"backup": {"path": "/b/1", "manifest_sha256": "00ff", "reused": True}},
        "migration": {"applied": ["a"], "migrations": [{"id": "a", "statements": 3, "seconds": 0.5, "attempts": 2}]},
        "verification": {"checks": [{"name": "c", "passed": True}]},
    }
    text = "\n".join(describe(_summary(results), rollback_hint="ansible-playbook rollback.yml"))
    for part in ("1 migration applied", "3 statements, 500 ms, 2 attempts", "1 check, all passed", "/b/1", "00ff"):
        assert part in text
    assert "taken before this run" in text
    assert text.endswith("To roll back: ansible-playbook rollback.yml")


def test_no_go_stopped_and_announced_are_told_apart() -> None:
    plan = {"pending": ["a"]}
    gate = {"decision": "NO-GO", "msg": ["NO-GO: 1 failed"]}
    summary = _summary({"plan": plan, "gate": gate}, finished=False)
    assert (summary["outcome"], summary["failed_phase"], summary["error"]) == ("no_go", "gate", "NO-GO: 1 failed")
    assert "nothing in the database was touched" in describe(summary, rollback_hint="")[0]
    said = ["NO-GO: 3 hold, 7 failed", *(f"  failed: x.{n}: measured {n}" for n in range(7))]
    lines = describe(_summary({"plan": plan, "gate": {**gate, "msg": said}}, finished=False), rollback_hint="")
    assert lines[1:7] == [*(f"  failed: x.{n}: measured {n}" for n in range(5)), "  and 2 more, in the report."]
    go = {"decision": "GO", "go": "/runs/1/go.json"}
    text = "\n".join(describe(_summary({"plan": plan, "gate": go}, stop_after="gate"), rollback_hint=""))
    assert "GO; nothing was applied yet" in text
    assert "without surefoot_stop_after, but with -e surefoot_go=/runs/1" in text
    assert _summary({"plan": plan}, action="announce")["outcome"] == "announced"
    assert _summary({"plan": {"pending": []}}, action="announce")["outcome"] == "nothing_to_do"


def test_success_criteria_that_could_not_be_judged_are_not_signed_off() -> None:
    results = {
        "plan": {"pending": ["a"]},
        "migration": {"applied": ["a"]},
        "sign_off": {"failed": True, "msg": "cannot write gate.json: No space left on device"},
    }
    text = "\n".join(describe(_summary(results), rollback_hint="undo"))
    assert "1 migration applied" in text and text.endswith("To roll back: undo")
    assert "Not signed off" in text and "No space left on device" in text


def test_a_full_disk_is_named_with_its_own_remedy(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_names: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentProblem, match="No space left on device. Make room"):
        write_json(str(tmp_path), "run.json", {})


def test_a_rescue_is_told_from_a_rescue_that_failed() -> None:
    results = {"plan": {"pending": ["a", "b"]}, "migration": {"failed": True, "applied": ["a"], "msg": "no"}}
    judgement = {"decision": "roll_back", "line": "CRITICAL syntax_error: no.", "failures": [{}]}
    done = _summary(results, finished=False, judgement=judgement, rescue={"rolled_back": ["a"]})
    assert (done["outcome"], done["rolled_back"]) == ("rescued", ["a"])
    assert "ROLLED BACK" in describe(done, rollback_hint="undo")[0]
    assert "To roll back" not in "\n".join(describe(done, rollback_hint="undo"))
    rescue = {"failed": True, "msg": "cannot drop", "rolled_back": []}
    failed = _summary(results, finished=False, judgement=judgement, rescue=rescue)
    assert failed["outcome"] == "failed"
    assert "NOT ROLLED BACK: cannot drop." in "\n".join(describe(failed, rollback_hint="undo"))


def test_a_rollback_whose_checks_fail_is_no_rescue() -> None:
    results = {"plan": {"pending": ["a"]}, "migration": {"failed": True, "applied": ["a"], "msg": "no"}}
    judgement = {"decision": "roll_back", "line": "CRITICAL syntax_error: no.", "failures": [{}]}
    rescue = {"rolled_back": ["a"], "unproven": "check failed: no policy is left"}
    summary = _summary(results, finished=False, judgement=judgement, rescue=rescue)
    assert (summary["outcome"], summary["rolled_back"]) == ("failed", ["a"])
    lines = describe(summary, rollback_hint="undo")
    assert "FAILED" in lines[0] and "rolled back" in lines[0]
    assert "  BUT THAT IS NOT PROVEN: check failed: no policy is left" in lines
    assert "To roll back" not in "\n".join(lines)


def test_drift_that_stops_a_run_is_its_reason() -> None:
    drift = [{"kind": "catalog", "message": "the catalog changed"}, {"kind": "spacing", "message": "spaces"}]
    summary = _summary({"plan": {"pending": ["a"], "drift": drift}}, finished=False)
    assert summary["error"] == "the catalog changed"
    assert "  the catalog changed" in describe(summary, rollback_hint="")


def test_what_keeps_a_run_from_its_sign_off_is_named() -> None:
    results = {
        "migration": {"applied": ["a"]},
        "sign_off": {"decision": "NO-GO", "failures": [], "missing": ["x.y: not measured"]},
    }
    assert "Not signed off; open: x.y." in describe(_summary(results), rollback_hint="")
    results["sign_off"] = {"decision": "GO", "failures": [], "missing": []}
    assert "Signed off." in describe(_summary(results), rollback_hint="")


def test_a_stopped_run_goes_on_from_its_directory(tmp_path: pathlib.Path) -> None:
    run_dir = str(tmp_path / "r1")
    write_json(run_dir, "run.json", {"backup": {"path": "/b/1", "manifest_sha256": "00ff"}})
    found = begun_run(run_dir, "db")
    assert (found.run_id, found.decided, found.backup["path"]) == ("r1", False, "/b/1")
    path = write_json(run_dir, "go.json", {})
    assert begun_run(path, "db").decided
    with pytest.raises(PlanError, match="no run lies in"):
        begun_run(str(tmp_path), "db")


@pytest.mark.parametrize(
    ("summary", "used_up"),
    [
        ({"outcome": "stopped", "applied": [], "rolled_back": []}, False),
        ({"outcome": "failed", "applied": [], "rolled_back": []}, False),
        ({"outcome": "failed", "applied": ["a"], "rolled_back": []}, True),
        ({"outcome": "succeeded", "applied": ["a"], "rolled_back": []}, True),
        ({"outcome": "rescued", "applied": ["a"], "rolled_back": ["a"]}, True),
    ],
)
def test_a_run_that_changed_its_database_is_not_continued(
    tmp_path: pathlib.Path, summary: dict[str, t.Any], used_up: bool
) -> None:
    write_json(str(tmp_path), "run.json", summary)
    assert begun_run(str(tmp_path), "db").used_up is used_up


@pytest.mark.parametrize("other", [{"host": "staging"}, {"run_id": "run-1"}])
def test_the_run_of_another_database_and_a_copy_are_not_continued(
    tmp_path: pathlib.Path, other: dict[str, t.Any]
) -> None:
    run_dir = str(tmp_path / "run-2")
    summary = {"host": "db", "run_id": "run-2", "outcome": "stopped"}
    write_json(run_dir, "run.json", summary)
    assert begun_run(run_dir, "db").run_id == "run-2"
    write_json(run_dir, "run.json", {**summary, **other})
    with pytest.raises(PlanError, match=next(iter(other.values()))):
        begun_run(run_dir, "db")


def test_a_no_go_that_people_can_mend_says_how_to_decide_again() -> None:
    gate = {"decision": "NO-GO", "msg": ["NO-GO"], "failures": [], "missing": ["gate.approvals: nobody"]}
    again = "  To decide again on the same backup and rehearsal: the same command with -e surefoot_go=/runs/1"
    assert again in describe(_summary({"plan": {}, "gate": gate}, finished=False), rollback_hint="")
    gate["failures"] = ["rehearsal.deploy: measured 1, required 2"]
    assert again not in describe(_summary({"plan": {}, "gate": gate}, finished=False), rollback_hint="")


def test_a_run_that_was_cut_off_is_noticed_by_the_next(tmp_path: pathlib.Path) -> None:
    assert cut_off_run(str(tmp_path / "none")) is None
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "timeline.jsonl").touch()
        os.utime(tmp_path / name / "timeline.jsonl", (number, number))
    assert cut_off_run(str(tmp_path)) == str(tmp_path / "second")
    write_json(str(tmp_path / "second"), "run.json", {})
    assert cut_off_run(str(tmp_path)) is None


def test_a_failed_run_gives_its_reason_in_one_line() -> None:
    results = {"plan": {"pending": ["a"]}, "preflight": {"failed": True, "msg": "no room\nand more"}}
    assert "  no room" in describe(_summary(results, finished=False), rollback_hint="")


def test_notes_of_operators_are_kept_once_and_checked(tmp_path: pathlib.Path) -> None:
    notes = [{"text": "took the replica out", "kind": "issue", "by": "dba on call"}, {"text": "all quiet"}]
    check_notes(notes)
    for _again in range(2):
        add_notes(str(tmp_path), notes, by="ops", time="2026-11-22T03:00:00Z")
    kept = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert [(note["kind"], note["by"]) for note in kept] == [("issue", "dba on call"), ("note", "ops")]
    for wrong in ({"kind": "issue"}, {"text": "x", "kind": "rumour"}, "x"):
        with pytest.raises(PlanError, match=r"surefoot_notes\[1\]"):
            check_notes([wrong])


def test_the_next_look_begins_where_the_last_that_could_read_the_log_left_off(tmp_path: pathlib.Path) -> None:
    write_json(str(tmp_path), "run.json", {"finished": "f", "log_position": {"file": "a"}, "applied": ["001"]})
    assert last_look(str(tmp_path)) == {"time": "f", "position": {"file": "a"}}
    for time, position in (("1", {"file": "b"}), ("2", None)):
        look = look_of({"decision": "GO"}, {"position": position}, time)
        append_lines(str(tmp_path / "monitor.jsonl"), [look])
    assert last_look(str(tmp_path)) == {"time": "1", "position": {"file": "b"}}
    (tmp_path / "monitor.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(PlanError, match=r"monitor\.jsonl"):
        last_look(str(tmp_path))


@pytest.mark.parametrize(
    ("applied", "rolled_back", "fits"), [(["001"], [], True), (["001"], ["001"], False), ([], [], False)]
)
def test_only_a_run_whose_migrations_are_there_is_monitored(
    tmp_path: pathlib.Path, applied: list[str], rolled_back: list[str], fits: bool
) -> None:
    write_json(str(tmp_path), "run.json", {"applied": applied, "rolled_back": rolled_back, "run_id": tmp_path.name})
    begun = begun_run(str(tmp_path), "app")
    if fits:
        check_monitored(begun)
        return
    with pytest.raises(PlanError, match="applied nothing that is still there"):
        check_monitored(begun)


def test_a_backup_by_another_program_is_said_to_be_one():
    backup = {
        "path": "/b/1",
        "manifest_sha256": "00ff",
        "method": "external",
        "external_id": "b1",
        "location": "s3://backups/main",
    }
    summary = _summary({"plan": {"pending": []}, "backup": {"backup": backup}})
    lines = describe(summary, rollback_hint="")
    assert "Backup, by external: b1 in s3://backups/main" in lines
    assert "  its record: /b/1" in lines
