# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report: one object from whatever a run left behind, and one page from that object."""

from __future__ import annotations

import contextlib
import html.parser
import json
import os
import pathlib
import re
import shutil
import stat
import typing as t

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from ansible_collections.surefoot.dbops.plugins.module_utils import _report_html as page
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import append_lines
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._report import (
    SCHEMA,
    STATUSES,
    ReportError,
    build_report,
    plan_facts,
)
from ansible_collections.surefoot.dbops.tests.support import rundirs
from ansible_collections.surefoot.dbops.tests.support.rundirs import MIGRATIONS, RunDirectory, at

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAN = str(ROOT / "playbooks" / "migrations" / "lancio_platform")
HOSTILE = '</td><script>alert("x")</script><img src=x onerror=alert(1)>\x00\u202egnirts\ud800\' " & \U0001f525'
KINDS: dict[str, t.Callable[[pathlib.Path], RunDirectory]] = {
    "succeeded": rundirs.succeeded,
    "no_go": rundirs.no_go,
    "rescued": rundirs.rescued,
    "failed": rundirs.failed,
    "nothing_pending": rundirs.nothing_pending,
}
FILES = (
    *("run.json", "timeline.jsonl", "evidence.jsonl", "statements.jsonl", "rehearsal.json", "baseline-before.json"),
    *(
        "baseline-after.json",
        "probes-before.json",
        "probes-after.json",
        "watch.jsonl",
        "gate.json",
        "go.json",
        "notes.jsonl",
    ),
)


@pytest.fixture(scope="module")
def plan() -> dict[str, t.Any]:
    return plan_facts(load_plan(PLAN))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that has every file, to be copied."""
    return pathlib.Path(rundirs.succeeded(tmp_path_factory.mktemp("whole") / "run").path)


def report_of(run: RunDirectory, plan: t.Mapping[str, t.Any] | None = None, **options: t.Any) -> dict[str, t.Any]:
    report = build_report(run.path, plan=plan, **options)
    json.dumps(report, allow_nan=False)  # what programs read is JSON, and nothing that only Python reads
    return report


def named(rows: t.Iterable[dict[str, t.Any]], key: str, value: t.Any) -> dict[str, t.Any]:
    return next(row for row in rows if row[key] == value)


# --- how the run ended


@pytest.mark.parametrize(
    ("kind", "word", "why"),
    [
        ("succeeded", "issues", "3 migrations were applied. 1 issue was noted."),
        ("no_go", "no_go", "rehearsal.lock_budget: measured 3.41, required at most 0.5 s."),
        ("rescued", "rolled_back", "What had been applied was taken back. The key decrypts them: measured 2 rows"),
        ("failed", "failed", 'Relation "platform.audit_log" does not exist'),
        ("nothing_pending", "nothing_to_do", "Everything the plan names is applied already."),
    ],
)
def test_one_word_says_how_the_run_ended_and_one_sentence_why(
    kind: str, word: str, why: str, tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    status = report_of(KINDS[kind](tmp_path / "run"), plan)["status"]
    assert status["word"] == word
    assert status["why"].startswith(why)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "succeeded"),
        ({"outcome": "checked", "applied": [], "pending": list(MIGRATIONS)}, "checked"),
        ({"outcome": "stopped", "applied": [], "pending": list(MIGRATIONS)}, "prepared"),
        ({"action": "rollback", "applied": [], "rolled_back": list(MIGRATIONS)}, "rolled_back"),
        ({"action": "baseline"}, "succeeded"),
    ],
)
def test_the_outcome_of_the_summary_decides(changes: dict[str, t.Any], word: str, tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.run(**changes)
    assert report_of(run)["status"]["word"] == word


def test_a_criterion_that_failed_after_success_makes_it_a_success_with_issues(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.evidence("http.latency_p95", "compare", 231.0, "at most 200 ms", verdict="fail")
    run.run()
    status = report_of(run)["status"]
    assert status["word"] == "issues"
    assert "1 criterion failed: http.latency_p95." in status["why"]


def test_a_run_that_left_nothing_is_incomplete_and_the_report_says_what_it_does_not_know(
    tmp_path: pathlib.Path,
) -> None:
    report = report_of(RunDirectory(tmp_path / "r42"))
    assert report["status"]["word"] == "incomplete"
    assert report["run"]["run_id"] == "r42"
    assert report["gaps"] == ["run.json is missing: who ran it and how it ended is not known"]


# --- whatever is missing, damaged or unknown


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [None, b"", b"\x00\xff\xfe", b'{"cut', b"[1, 2]", b'"text"\n', b"null\n", b"[" * 5000]
)
def test_a_report_is_made_without_a_file_and_with_a_damaged_one(
    name: str, content: bytes | None, whole_run: pathlib.Path, tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    path = tmp_path / "run" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    report = build_report(str(tmp_path / "run"), plan=plan)
    assert page.render(report).endswith("</html>\n")
    named_in_gaps = any(name in gap for gap in report["gaps"])
    if content:
        assert named_in_gaps
    elif content is None:
        assert named_in_gaps == (name == "run.json")  # a phase that did not run is no gap


def test_lines_before_and_after_a_torn_one_count(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.note("issue", "first")
    with open(os.path.join(run.path, "notes.jsonl"), "a", encoding="utf-8") as stream:
        stream.write('{"kind": "issue", "te\n')
    run.note("issue", "second")
    report = report_of(run)
    assert [item["text"] for item in report["notes"]["issues"]] == ["first", "second"]
    assert "line 2 of notes.jsonl is not a JSON object" in report["gaps"]


_scalars = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8)
_values = some.recursive(
    _scalars,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_KEYS = (
    *(
        "outcome",
        "action",
        "applied",
        "migrations",
        "pending",
        "actor",
        "policy",
        "error",
        "backup",
        "started",
        "checks",
    ),
    *("criteria", "decision", "failed", "waived", "boxes", "locks", "catalog_diff", "seconds", "queries", "endpoints"),
    *(
        "comparison",
        "approvals",
        "criterion",
        "phase",
        "verdict",
        "details",
        "time",
        "module",
        "finished",
        "text",
        "kind",
    ),
)
_objects = some.dictionaries(some.sampled_from(_KEYS), _values, max_size=6)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=some.dictionaries(some.sampled_from(FILES), _objects, min_size=1, max_size=4))
def test_content_nobody_foresaw_ends_in_a_page_or_in_the_one_typed_error(
    contents: dict[str, dict[str, t.Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("any") / "run")
    for name, value in contents.items():
        append_lines(os.path.join(run.path, name), [value])
    with contextlib.suppress(ReportError):
        written = page.write_report(run.path)
        assert pathlib.Path(written["html"]).read_text(encoding="utf-8").endswith("</html>\n")


def test_a_plan_that_cannot_be_read_costs_only_what_came_from_it(tmp_path: pathlib.Path) -> None:
    run = rundirs.succeeded(tmp_path / "run")
    report = page.write_report(run.path, plan_path=str(tmp_path / "missing"))["report"]
    assert report["risks"] == []
    assert "the plan could not be read: risks, owners and expected durations are not known" in report["gaps"]


def test_no_run_directory_and_one_that_cannot_be_written_are_the_typed_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ReportError, match="there is no run directory"):
        page.write_report(str(tmp_path / "missing"))
    run = rundirs.succeeded(tmp_path / "run")
    os.mkdir(os.path.join(run.path, "report.html"))
    with pytest.raises(ReportError, match=r"cannot write .*report\.html") as caught:
        page.write_report(run.path)
    assert caught.value.remedy


def test_files_are_private(tmp_path: pathlib.Path) -> None:
    written = page.write_report(rundirs.succeeded(tmp_path / "run").path, notice=rundirs.NOTICE)
    paths = [written["json"], written["html"], *written["messages"]]
    assert len(paths) == 10
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in paths} == {0o600}
    assert stat.S_IMODE(os.stat(os.path.dirname(written["messages"][0])).st_mode) == 0o700


def test_secrets_are_masked_on_the_last_way_out(tmp_path: pathlib.Path) -> None:
    register_secret("s3cret-in-evidence")
    run = rundirs.succeeded(tmp_path / "run")
    measured = {"s3cret-in-evidence": "postgresql://app:hunter22@db/x", "text": "password=hunter22"}
    run.evidence("preflight.server_version", "preflight", measured, "anything", verdict="fail")
    run.note("issue", "the key was s3cret-in-evidence")
    written = page.write_report(run.path, plan_path=PLAN, rollback_command="x --token=s3cret-in-evidence")
    for path in (written["json"], written["html"], *written["messages"]):
        content = pathlib.Path(path).read_text(encoding="utf-8")
        assert "s3cret-in-evidence" not in content and "hunter22" not in content


# --- criteria


def test_what_failed_comes_first_and_counts_once_with_its_history(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.evidence("http.status", "probe", "all", "all")
    run.evidence("backup.verified", "backup", "flipped byte", "as hashed", verdict="fail")
    run.evidence("serverlog.fatal", "apply", None, 0, verdict="not_measured")
    run.evidence("preflight.connection_stable", "preflight", "19 of 20", "20 of 20", verdict="fail")
    run.evidence("preflight.connection_stable", "preflight", "20 of 20", "20 of 20")
    report = report_of(run)
    assert [item["status"] for item in report["criteria"]] == ["fail", "missing", "pass", "pass"]
    again = named(report["criteria"], "criterion", "preflight.connection_stable")
    assert (again["measured"], again["times_measured"], again["failed_before"]) == ("20 of 20", 2, 1)
    assert report["counts"] == {**dict.fromkeys(STATUSES, 0), "fail": 1, "missing": 1, "pass": 2}


def test_the_gate_s_word_holds_for_what_it_judged_and_a_later_measurement_for_itself(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    waiver = {"reason": "not used here", "by": "dba", "expires": "2026-12-31"}
    judged = {"demand": "required", "stage": "go"}
    run.json(
        "gate.json",
        {
            "decision": "GO",
            "time": at(0),
            "criteria": [
                {**judged, "criterion": "railway.deployed", "verdict": "fail", "status": "waived", "waiver": waiver},
                {
                    **judged,
                    "criterion": "rds.backup",
                    "verdict": "not_measured",
                    "status": "not_required",
                    "how": "boto3",
                },
                {**judged, "criterion": "http.status", "verdict": "pass", "status": "pass"},
                {**judged, "criterion": "gate.window", "verdict": "not_measured", "status": "missing", "how": "policy"},
            ],
        },
    )
    run.evidence("railway.deployed", "preflight", "down", "up", verdict="fail")
    run.evidence("http.status", "compare", "403", "200", verdict="fail")
    found = {item["criterion"]: item for item in report_of(run)["criteria"]}
    assert found["railway.deployed"]["waiver"] == waiver
    assert {name: item["status"] for name, item in found.items()} == {
        "railway.deployed": "waived",
        "rds.backup": "not_required",
        "http.status": "fail",
        "gate.window": "missing",
    }
    assert found["gate.window"]["source"] == "policy"


def test_a_decision_about_the_others_is_no_failure_of_its_own(tmp_path: pathlib.Path) -> None:
    run = rundirs.succeeded(tmp_path / "run")
    run.evidence("sign_off.decision", "gate", "NO-GO", "GO", verdict="fail")
    gate = json.loads(pathlib.Path(run.path, "gate.json").read_text(encoding="utf-8"))
    stages = {
        "go": {"decision": "GO", "time": at(-2), "failed": [], "missing": []},
        "sign_off": {"decision": "NO-GO", "time": at(40), "failed": [], "missing": ["serverlog.fatal: not measured"]},
    }
    run.json("gate.json", {**gate, "stages": stages})
    report = report_of(run)
    assert report["counts"]["fail"] == 0
    assert "It is not signed off: 1 criterion is not measured." in report["status"]["why"]
    text = Page(page.render(report)).text
    assert "the sign-off" in text and "serverlog.fatal" in text


def test_why_something_was_not_measured_stands_beside_it(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.evidence(
        "serverlog.fatal", "apply", None, "at most 0", verdict="not_measured", reason="log_destination = stderr"
    )
    report = report_of(run)
    assert report["criteria"][0]["reason"] == "log_destination = stderr"
    assert "log_destination = stderr" in Page(page.render(report)).text


def test_what_was_applied_and_taken_back_counts_as_taken_back(tmp_path: pathlib.Path) -> None:
    report = report_of(rundirs.rescued(tmp_path / "run"))
    assert {item["state"] for item in report["migrations"]} == {"rolled back"}
    assert not report["rollback"]["needed"]


def test_groups_carry_the_worst_of_their_criteria(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.evidence("platform.rls.policies", "verify", 3, 26, verdict="fail")
    run.evidence("platform.rls.tables", "verify", 26, 26)
    run.evidence("platform.registration.rows", "verify", True, True)
    groups = report_of(run)["groups"]
    assert {group["title"]: group["status"] for group in groups} == {
        "Verification: platform rls": "fail",
        "Verification: platform registration": "pass",
    }


def test_a_broken_chain_is_named_with_its_line(tmp_path: pathlib.Path) -> None:
    run = rundirs.succeeded(tmp_path / "run")
    whole = report_of(run)["chain"]
    assert whole["breaks"] == [] and re.fullmatch("[0-9a-f]{64}", whole["head"])
    path = pathlib.Path(run.path, "evidence.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], lines[4].replace(b'"pass"', b'"fail"'), *lines[5:]]))
    report = report_of(run)
    assert report["chain"]["breaks"]
    assert any("chain" in gap and "5" in gap for gap in report["gaps"])


def test_decision_approvals_and_what_the_go_is_bound_to(tmp_path: pathlib.Path) -> None:
    decision = report_of(rundirs.succeeded(tmp_path / "run"))["decision"]
    assert decision["word"] == "GO"
    assert [(item["role"], item["name"]) for item in decision["approvals"]] == [
        ("approved", "J. Doe"),
        ("prepared", "Rafael Santos"),
        ("reviewed", "A. Chen"),
    ]
    assert decision["policy_sha256"] == rundirs.digest("policy")
    assert not {"hmac", "variables_hmac"} & set(decision["bound"])


@pytest.mark.parametrize("word", ["NO-GO", "UNDECIDED"])
def test_only_go_is_a_go(word: str, tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.json("gate.json", {"decision": word, "failed": [], "missing": ["gate.window: not measured"]})
    decision = report_of(run)["decision"]
    assert (decision["word"], decision["reasons"]) == (word, ["gate.window: not measured"])


def test_the_rollback_matrix_is_quoted(tmp_path: pathlib.Path) -> None:
    rescue = report_of(rundirs.rescued(tmp_path / "run"))["rescue"]
    assert (rescue["decision"], rescue["severity"]) == ("roll_back", "HIGH")
    assert rescue["failures"][0]["kind"] == "encryption_not_working"


# --- timeline


def test_t_is_the_beginning_of_the_first_migration(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    line = report_of(rundirs.succeeded(tmp_path / "run"), plan)["timeline"]
    assert (line["zero"], line["begun"]) == (at(0), True)
    backup = named(line["phases"], "id", "backup")
    assert backup["planned"] == {"at": -1800.0, "seconds": 600.0}
    assert backup["actual"] == [{"at": -81.0, "seconds": 12.3, "failed": False}]
    assert line["planned_seconds"] == 5400.0
    assert line["actual_seconds"] == pytest.approx(84 + 39.8)


def test_measurements_before_and_after_the_migration_are_phases_of_their_own(tmp_path: pathlib.Path) -> None:
    phases = report_of(rundirs.succeeded(tmp_path / "run"))["timeline"]["phases"]
    assert [span["at"] for span in named(phases, "id", "checks")["actual"]] == [-84.0, -83.0, -46.0, -36.0, -13.0]
    assert [span["at"] for span in named(phases, "id", "baseline")["actual"]] == [4.0]
    assert [span["at"] for span in named(phases, "id", "application")["actual"]] == [29.0]


def test_migrations_follow_one_another_and_the_one_that_failed_has_the_rest(
    tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    phases = report_of(rundirs.failed(tmp_path / "run"), plan)["timeline"]["phases"]
    spans = [named(phases, "id", f"apply:{id_}")["actual"] for id_ in MIGRATIONS]
    assert spans == [
        [{"at": 0.0, "seconds": 0.2, "failed": False}],
        [{"at": 0.2, "seconds": 0.5, "failed": True}],
        [],
    ]


def test_a_rescue_is_a_phase_although_nobody_planned_it(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    phases = report_of(rundirs.rescued(tmp_path / "run"), plan)["timeline"]["phases"]
    rollback = named(phases, "id", "rollback")
    assert rollback["planned"] is None and rollback["actual"][0]["seconds"] == 0.6


def test_a_rollback_run_has_its_own_zero(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.task("postgresql_backup", "present", -9, 8)
    run.task("postgresql_migration", "rolled_back", 0, 1)
    run.run(action="rollback", applied=[], rolled_back=list(MIGRATIONS))
    line = report_of(run)["timeline"]
    assert line["zero"] == at(0)
    assert named(line["phases"], "id", f"apply:{MIGRATIONS[0]}")["actual"]


def test_the_plan_s_expectations_and_owners_are_beside_the_facts(
    tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    report = report_of(rundirs.succeeded(tmp_path / "run"), plan, notice={"owner": "Rafael"})
    first = named(report["timeline"]["phases"], "id", f"apply:{MIGRATIONS[0]}")
    assert (first["owner"], first["planned"]["seconds"], first["actual_seconds"]) == ("database team", 2.0, 0.214)
    assert named(report["timeline"]["phases"], "id", "backup")["owner"] == "Rafael"
    migration = report["migrations"][0]
    assert (migration["expected_seconds"], migration["seconds"], migration["state"]) == (2.0, 0.214, "applied")
    assert migration["files"][0]["file"] == "006_add_platform_databases_table.sql"
    assert re.fullmatch("[0-9a-f]{64}", migration["files"][0]["sha256"])
    assert [risk["number"] for risk in report["risks"]] == [1, 2, 3]


RUNBOOK = [
    {"title": "Create backup", "phase": "backup", "at": "T-30m", "duration": "10m", "owner": "Rafael"},
    {"title": "Final GO/NO-GO decision", "phase": "gate", "at": "-5m", "duration": "5m", "owner": "Team"},
    {"title": "Execute migration 1", "phase": f"apply:{MIGRATIONS[0]}", "at": 0, "duration": "2s", "owner": "Rafael"},
    {"title": "Verify migration 1", "phase": f"verify:{MIGRATIONS[0]}", "at": "T+1m", "duration": "3m"},
    {"title": "Migration complete", "phase": "complete", "at": "+60m"},
]


def test_a_runbook_s_own_timeline_replaces_the_usual_one(tmp_path: pathlib.Path) -> None:
    run = rundirs.succeeded(tmp_path / "run")
    run.evidence("x.y", "verify", 1, 1, time=at(2), migration=MIGRATIONS[0])
    run.evidence("x.z", "verify", 1, 1, time=at(2.5), migration=MIGRATIONS[0])
    phases = report_of(run, notice={"phases": RUNBOOK})["timeline"]["phases"]
    assert [(phase["title"], phase["planned"]["at"], phase["planned"]["seconds"]) for phase in phases] == [
        ("Create backup", -1800.0, 600.0),
        ("Final GO/NO-GO decision", -300.0, 300.0),
        ("Execute migration 1", 0.0, 2.0),
        ("Verify migration 1", 60.0, 180.0),
        ("Migration complete", 3600.0, 0.0),
    ]
    assert phases[1]["owner"] == "Team"
    assert phases[3]["actual"] == [{"at": 2.0, "seconds": 0.5, "failed": False}]


# --- measurements


def test_locks_longest_first_without_those_of_the_rollback_and_beside_what_production_held(
    tmp_path: pathlib.Path,
) -> None:
    run = rundirs.succeeded(tmp_path / "run")
    held = report_of(run)["locks"]
    assert held["budget_seconds"] == 0.5
    assert [row["held_seconds"] for row in held["rehearsal"][:2]] == [0.096, 0.084]
    assert held["harmless"] == 1
    assert [(row["held_seconds"], row["rehearsed_seconds"]) for row in held["target"]] == [
        (0.014, 0.011),
        (0.118, 0.096),
        (None, None),
    ]
    content = json.loads(pathlib.Path(run.path, "rehearsal.json").read_text(encoding="utf-8"))
    for row in content["locks"]:
        row["phase"] = "rollback"
    run.json("rehearsal.json", {**content, "shadow_factor": 2.0})
    assert report_of(run)["locks"]["rehearsal"] == []


def test_times_of_a_faster_shadow_are_scaled(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    row = {"relation": "app.t", "mode": "SHARE", "seconds": 0.2, "blocks": ["INSERT"], "phase": "deploy"}
    run.json("rehearsal.json", {"locks": [row], "shadow_factor": 1.5})
    assert report_of(run)["locks"]["rehearsal"][0]["held_seconds"] == pytest.approx(0.3)


def test_objects_are_counted_by_kind_and_attributes_are_none(tmp_path: pathlib.Path) -> None:
    created = report_of(rundirs.succeeded(tmp_path / "run"))["objects"]["created"]
    assert created == {"policy": 26, "index": 8, "function": 4, "trigger": 2, "view": 2, "table": 1}


def test_regressions_come_first_and_noise_is_not_one(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    names = {"same": "unchanged", "slow": "regressed", "wild": "noisy", "gone": "no_rows"}
    rows = [{"name": name, "median_ms": 2.0, "p95_ms": 3.0} for name in names]
    judged = [{"name": name, "verdict": verdict, "ratio": 1.5} for name, verdict in names.items()]
    run.json("baseline-before.json", {"queries": rows})
    run.json("baseline-after.json", {"queries": rows, "comparison": {"queries": judged}})
    run.run(policy={"baseline_regression": "10%"})
    found = {row["name"]: row for row in report_of(run)["latency"]}
    assert {name: row["judgement"] for name, row in found.items()} == {
        "slow": "regression",
        "gone": "no rows any more",
        "same": "not slower",
        "wild": "too noisy to tell",
    }
    assert [row["regression"] for row in found.values()] == [True, True, False, False]
    assert (found["slow"]["change"], found["slow"]["limit_ms"]) == (0.5, 2.2)


def test_an_endpoint_over_its_limit_is_one_whatever_it_was_before(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for label, p95 in (("before", 190.0), ("after", 210.0)):
        run.json(
            f"probes-{label}.json", {"p95_max_ms": 200.0, "endpoints": [{"name": "e", "p50_ms": 50.0, "p95_ms": p95}]}
        )
    (row,) = report_of(run)["latency"]
    assert (row["judgement"], row["regression"], row["limit_ms"]) == ("over the limit", True, 200.0)


def test_a_long_watch_is_thinned_and_keeps_its_peak(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    samples = [{"time": at(second), "replica_lag": 0.1, "disk_free": 9e9} for second in range(5000)]
    samples[3333] = {"time": at(3333), "replica_lag": 29.5, "disk_free": 1e9}
    run.lines("watch.jsonl", samples)
    run.run(policy={"replica_lag_max": "30s"})
    watch = report_of(run)["watch"]
    lag, disk = watch["series"]
    assert watch["samples"] == 5000 and len(lag["points"]) <= 300
    assert (lag["worst"], lag["limit"]) == (29.5, 30.0)
    assert max(value for _time, value in lag["points"]) == 29.5
    assert min(value for _time, value in disk["points"]) == 1e9
    assert disk["shown_worst"].startswith("lowest")


@pytest.mark.parametrize(
    ("given_limit", "number"), [("90%", 90.0), ("1GB/min", 2.0**30), ("30s", 30.0), ("soon", None)]
)
def test_limits_are_read_from_the_policy(given_limit: str, number: float | None, tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.lines("watch.jsonl", [{"time": at(0), "replica_lag": 1.0}])
    run.run(policy={"replica_lag_max": given_limit})
    assert report_of(run)["watch"]["series"][0]["limit"] == number


def test_the_way_back_names_command_losses_and_backup(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    way = report_of(rundirs.succeeded(tmp_path / "run"), plan, rollback_command=rundirs.ROLLBACK)["rollback"]
    assert way["needed"] and way["command"] == rundirs.ROLLBACK
    assert way["loses"] == ["platform.databases"]
    assert way["without_way_back"] == []
    assert way["backup"].startswith("backups/platform")


def test_the_documented_schema_is_the_one_that_is_written(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    document = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    report = report_of(rundirs.succeeded(tmp_path / "run"), plan)
    assert report["schema"] == SCHEMA
    assert f"`{SCHEMA}`" in document
    table = re.findall(r"^\| `([a-z_]+)` \|", document.partition("## The object")[2].partition("\n### ")[0], re.M)
    assert sorted(table) == sorted(report)
    for section in re.findall(r"^### `([a-z_]+)`\n(.*?)(?=^###? )", document + "\n## ", re.M | re.S):
        value = report[section[0]]
        row = value[0] if isinstance(value, list) else value
        assert sorted(re.findall(r"^\| `([a-z_0-9]+)` \|", section[1], re.M)) == sorted(row), section[0]


# --- the page


class Page(html.parser.HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "col", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def pages(tmp_path: pathlib.Path) -> t.Iterator[str]:
    facts = plan_facts(load_plan(PLAN))
    for kind, make in KINDS.items():
        yield page.render(
            report_of(make(tmp_path / kind), facts, notice=rundirs.NOTICE, rollback_command=rundirs.ROLLBACK)
        )
    yield page.render(report_of(RunDirectory(tmp_path / "empty")))


def test_pages_ask_for_nothing_and_run_nothing(tmp_path: pathlib.Path) -> None:
    for content in pages(tmp_path):
        found = Page(content)
        assert not {name for name, _attributes in found.elements} & {
            "script",
            "img",
            "iframe",
            "link",
            "object",
            "form",
        }
        for _name, attributes in found.elements:
            assert not [key for key in attributes if key.startswith("on") or key in ("src", "srcset", "action")]
            assert (attributes.get("href") or "#").startswith("#")
        assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", content.replace("<!DOCTYPE html>", ""))
        assert "default-src 'none'" in content


def test_pages_can_be_read_without_eyes(tmp_path: pathlib.Path) -> None:
    for content in pages(tmp_path):
        found = Page(content)
        levels = [int(name[1]) for name, _attributes in found.elements if re.fullmatch("h[1-6]", name)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
        ids = [attributes["id"] for _name, attributes in found.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _name, attributes in found.elements:
            for key in ("href", "aria-labelledby"):
                for target in (attributes.get(key) or "").replace("#", "").split():
                    assert target in ids
        assert all(attributes.get("scope") in ("row", "col") for attributes in found.of("th"))
        assert all(
            attributes.get("role") == "img" and attributes.get("aria-labelledby") for attributes in found.of("svg")
        )
        assert found.of("html")[0]["lang"] == "en"


def test_decision_reason_and_way_back_stand_before_everything_else(
    tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    report = report_of(rundirs.succeeded(tmp_path / "run"), plan, rollback_command=rundirs.ROLLBACK)
    content = page.render(report)
    order = [report["status"]["title"], report["status"]["why"], rundirs.ROLLBACK, 'id="timeline"', 'id="criteria"']
    places = [content.index(part, content.index("<body>")) for part in order]
    assert places == sorted(places)


def test_failed_criteria_are_at_the_top_with_measured_and_required(tmp_path: pathlib.Path) -> None:
    content = page.render(report_of(rundirs.no_go(tmp_path / "run")))
    top = Page(content).text
    failed = top.index("What failed or is missing")
    assert (
        failed
        < top.index("rehearsal.lock_budget", failed)
        < top.index("3.41", failed)
        < top.index("How to roll back", failed + 60)
    )
    assert "NO-GO: nothing was touched" in top


def test_hostile_text_stays_text(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    run = rundirs.succeeded(tmp_path / "run")
    quiet = Page(page.render(report_of(run, plan))).elements
    for count, text in enumerate(
        (HOSTILE, "x" * 20_000, "\u05e9\u05dc\u05d5\u05dd" * 50, "\U0001f468\u200d\U0001f469" * 100, "")
    ):
        run.evidence(f"hostile.n{count}", "verify", {text: [text]}, text, verdict="fail", source=text, name=text)
        run.note("issue", text, by=text)
    run.run(host=HOSTILE, error=HOSTILE, actor={"os_user": HOSTILE}, applied=[HOSTILE], migrations=[{"id": HOSTILE}])
    locks = [{"relation": HOSTILE, "mode": HOSTILE, "tag": HOSTILE, "seconds": 1.0, "blocks": [HOSTILE]}]
    run.json("rehearsal.json", {"locks": locks, "catalog_diff": {"added": [HOSTILE]}})
    run.json("baseline-after.json", {"queries": [{"name": HOSTILE, "median_ms": 1.0}]})
    content = page.write_report(run.path, notice={"owner": HOSTILE}, rollback_command=HOSTILE)["html"]
    found = Page(pathlib.Path(content).read_text(encoding="utf-8"))
    assert {name for name, _attributes in found.elements} <= {name for name, _attributes in quiet} | {
        "em",
        "pre",
        "div",
        "dl",
    }
    assert 'alert("x")' in found.text  # shown, as text
    assert not {"\u202e", "\x00"} & set(found.text)
    assert "\\u202e" in found.text
    assert "more characters in report.json" in found.text
    assert os.path.getsize(content) < 400_000


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_formula_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("side", [0, 1], ids=["light", "dark"])
def test_text_contrasts_with_its_ground_in_both_themes(side: int) -> None:
    colours = {name: pair[side] for name, pair in page.PALETTE.items()}
    for ground in ("ground", "panel"):
        for name in ("ink", "muted", "good", "bad", "warn", "accent"):
            assert contrast(colours[name], colours[ground]) >= 4.5, f"{name} on {ground}"
    for cell in ("heat0", "heat1", "heat2", "heat3"):
        assert contrast(colours["ink"], colours[cell]) >= 4.5, cell
