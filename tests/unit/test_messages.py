# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages about a run: what they say, and that nothing in them can say something else."""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._messages import (
    NOTICE_KEYS,
    STATUS_WORDS,
    Message,
    alert,
    announce,
    briefing,
    check_notice,
    execution_report,
    markdown,
    notification,
    write_messages,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._report import (
    STATUS_TITLES,
    build_report,
    plan_facts,
    planned_report,
)
from ansible_collections.surefoot.dbops.tests.support import rundirs
from ansible_collections.surefoot.dbops.tests.support.rundirs import MIGRATIONS, RunDirectory

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOSTILE = "# <!channel> [x](http://evil) *b* _i_ `c` | ![i](u)\n\n## Status: SUCCESS\n- \u202e~~s~~"


@pytest.fixture(scope="module")
def plan() -> dict[str, t.Any]:
    return plan_facts(load_plan(str(ROOT / "playbooks" / "migrations" / "lancio_platform")))


def report_of(run: RunDirectory, plan: dict[str, t.Any], **notice: t.Any) -> dict[str, t.Any]:
    return build_report(run.path, plan=plan, notice={**rundirs.NOTICE, **notice}, rollback_command=rundirs.ROLLBACK)


def before(plan: dict[str, t.Any], **notice: t.Any) -> dict[str, t.Any]:
    return planned_report(plan, database="platform-prod", pending=list(MIGRATIONS), notice=notice)


def section(text: str, heading: str) -> str:
    """The Markdown under a heading."""
    found = re.search(rf"^## {heading}\n\n(.*?)(?=\n\n#|\n\nFull details|\Z)", text, re.M | re.S)
    assert found, f"no section {heading} in {text}"
    return found[1].strip()


# --- before


def test_the_notification_says_what_the_runbook_s_says(plan: dict[str, t.Any]) -> None:
    text = notification(before(plan, **rundirs.NOTICE)).markdown()
    assert text.startswith("# Database migration scheduled: lancio_platform on platform-prod\n")
    for line in (
        "- **When:** 2026-11-22 02:30 UTC to 04:00 UTC",
        "- **Duration:** 15 minutes, then 45 minutes of verification",
        "- **Risk:** low",
        "- **Impact:** None expected: permissive policies keep the present behaviour.",
        "- **Rollback:** every migration has rollback files",
        "- **Contact:** Rafael Santos, database team",
    ):
        assert line in text.splitlines()
    assert section(text, "Changes").splitlines() == [f"- {item['summary']}" for item in plan["migrations"][5:8]]


def test_without_a_notice_it_says_what_the_plan_knows_and_what_nobody_said(plan: dict[str, t.Any]) -> None:
    text = notification(before(plan)).markdown()
    assert "- **When:** not scheduled yet" in text
    assert "- **Duration:** about 6 s of work on the database" in text
    assert "- **Contact:** not given" in text


def test_a_migration_without_rollback_files_is_named(plan: dict[str, t.Any]) -> None:
    without = {**plan, "migrations": [{**item, "rollback_files": []} for item in plan["migrations"]]}
    assert f"by restoring the backup for {MIGRATIONS[0]}" in notification(before(without)).text()


def test_the_highest_risk_counts(plan: dict[str, t.Any]) -> None:
    risky = [
        {**item, "risk": {**item["risk"], "level": level}}
        for item, level in zip(plan["migrations"][5:8], ("low", "high", "medium"))
    ]
    assert "- **Risk:** high" in notification(before({**plan, "migrations": risky})).markdown()


def test_the_alert_says_what_to_do_and_how_long_a_lock_may_block(
    tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    text = alert(report_of(rundirs.succeeded(tmp_path / "run"), plan)).markdown()
    assert text.startswith("# \\[SCHEDULED\\] Database maintenance: 2026-11-22 02:30 UTC to 04:00 UTC\n")
    assert "in the rehearsal: 96 ms (budget 500 ms)" in section(text, "Impact")
    assert section(text, "Action required") == "1. Scale frontends to 0 by 02:15 UTC.\n2. Disable cron jobs."
    assert section(text, "To roll back") == f"```text\n{rundirs.ROLLBACK}\n```"
    urgent = alert(report_of(rundirs.no_go(tmp_path / "other"), plan, severity="urgent", actions=[])).markdown()
    assert urgent.startswith("# \\[URGENT\\]")
    assert section(urgent, "Action required") == "None."


def test_the_briefing_maps_controls_to_references_risks_and_measurements(
    tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    text = briefing(report_of(rundirs.succeeded(tmp_path / "run"), plan)).markdown()
    rows = section(text, "Controls").splitlines()
    assert rows[0] == "| Control | Compliance reference | Risk mitigated | Measured |"
    assert rows[2].startswith("| Connection strings are encrypted | SOC2 CC6.1 |") and rows[2].endswith(
        "| pass: 2 of 2 |"
    )
    assert rows[3].endswith("| Cross-tenant leaks | not measured |")
    safeguards = section(text, "Safeguards")
    for line in (
        "**Backup:** proven by a restore",
        "**Rehearsal:** passed on a copy",
        "**Gate:** GO",
        "J. Doe (approved)",
    ):
        assert line in safeguards
    failing = briefing(report_of(rundirs.rescued(tmp_path / "other"), plan)).markdown()
    assert section(failing, "Controls").splitlines()[2].endswith("| FAIL: 0 of 1 |")


def test_the_briefing_claims_no_proof_that_was_not_made(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    text = briefing(report_of(rundirs.nothing_pending(tmp_path / "run"), plan, controls=[])).markdown()
    assert "proven by a restore" not in text and "passed on a copy" not in text
    assert "names no control" in section(text, "Controls")


# --- after


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (rundirs.succeeded, "ISSUES"),
        (rundirs.rescued, "ROLLED BACK"),
        (rundirs.failed, "FAILED"),
        (rundirs.no_go, "NO-GO"),
        (rundirs.nothing_pending, "NOTHING TO DO"),
    ],
)
def test_the_execution_report_begins_with_the_status(
    make: t.Callable[[pathlib.Path], RunDirectory], status: str, tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    message = execution_report(report_of(make(tmp_path / "run"), plan))
    assert message.markdown().splitlines()[2] == f"- **Status:** {status}"
    assert message.text().splitlines()[3] == f"Status: {status}"


def test_every_status_has_a_word() -> None:
    assert set(STATUS_WORDS) == set(STATUS_TITLES)


def test_the_execution_report_has_every_part_of_the_template(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    text = execution_report(report_of(rundirs.succeeded(tmp_path / "run"), plan)).markdown()
    assert "- **Execution time:** 2 min 5 s (planned 1 h 30 min)" in text
    assert "- **Objects created:** 26 policies, 8 indexes, 4 functions, 2 triggers, 2 views, 1 table" in text
    results = section(text, "Verification results").splitlines()
    assert "- Restore proof: PASS (8 passed)" in results
    assert "- Rehearsal: PASS (7 passed, 1 waived)" in results
    assert section(text, "Issues encountered") == "- Replica lag rose to 0.3 s for two seconds. (Rafael Santos)"
    assert section(text, "Resolution") == "- None needed, it fell by itself. (Rafael Santos)"
    assert section(text, "Next steps") == "1. Implement Redis integration. (Rafael Santos)"
    assert text.rstrip().endswith("report.html")


def test_without_notes_issues_are_what_failed_and_steps_are_the_usual_ones(
    tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    text = execution_report(report_of(rundirs.no_go(tmp_path / "run"), plan)).markdown()
    issues = section(text, "Issues encountered")
    assert "rehearsal.lock_budget: measured 3.41, required at most 0.5 s" in issues
    assert section(text, "Resolution") == "- Open"
    assert section(text, "Next steps").startswith("1. Meet what the gate lists")
    assert "- **Objects created:** none left" in text
    quiet = execution_report(report_of(rundirs.nothing_pending(tmp_path / "other"), plan)).markdown()
    assert section(quiet, "Issues encountered") == "- None"
    assert section(quiet, "Resolution") == "- Not needed"


def test_a_rescue_is_its_own_resolution(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    text = execution_report(report_of(rundirs.rescued(tmp_path / "run"), plan)).markdown()
    assert section(text, "Resolution").splitlines() == [
        "- The rollback matrix said: roll back.",
        "- What had been applied was rolled back.",
    ]
    assert "- Verification: platform registration: FAIL (1 failed)" in text


# --- files


def test_messages_from_before_stay_as_they_were_sent(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    run = rundirs.succeeded(tmp_path / "run")
    sent = announce(run.path, plan, database="platform-prod", pending=MIGRATIONS, notice={"contact": "first"})
    assert [pathlib.Path(path).name for path in sent] == [
        f"{name}.{suffix}" for name in ("pre-migration", "devops-alert", "ciso-briefing") for suffix in ("md", "txt")
    ]
    written = write_messages(run.path, report_of(run, plan, contact="second"))
    assert [pathlib.Path(path).name for path in written] == ["post-migration.md", "post-migration.txt"]
    assert "first" in pathlib.Path(sent[0]).read_text(encoding="utf-8")
    pathlib.Path(sent[0]).unlink()
    assert pathlib.Path(sent[0]).name in [
        pathlib.Path(path).name for path in write_messages(run.path, report_of(run, plan))
    ]


def test_a_run_with_nothing_to_do_announces_nothing(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    run = rundirs.nothing_pending(tmp_path / "run")
    assert {pathlib.Path(path).stem for path in write_messages(run.path, report_of(run, plan))} == {"post-migration"}


def test_a_directory_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: pathlib.Path, plan: dict[str, t.Any]
) -> None:
    (tmp_path / "messages").write_text("")
    with pytest.raises(EnvironmentProblem) as caught:
        announce(str(tmp_path), plan, database="db", pending=MIGRATIONS)
    assert caught.value.remedy


@pytest.mark.parametrize("notice", [{"contract": "x"}, ["x"], "x"])
def test_a_notice_nobody_reads_is_refused(notice: t.Any) -> None:
    with pytest.raises(PlanError, match=r"surefoot_notice .*"):
        check_notice(notice)


def test_a_notice_of_known_keys_is_accepted_and_documented() -> None:
    check_notice(rundirs.NOTICE)
    check_notice(None)
    document = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8").partition("## The notice")[2]
    assert re.findall(r"^\| `([a-z]+)` \|", document, re.M) == list(NOTICE_KEYS)


# --- what is put into a message


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain_name of_x 2.5", "plain_name of_x 2.5"),
        ("a|b", "a\\|b"),
        ("<!channel>", "\\<!channel\\>"),
        ("# heading", "\\# heading"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("_i_ **b** `c` [l](u)", "\\_i\\_ \\*\\*b\\*\\* \\`c\\` \\[l\\](u)"),
        ("a\n\n# b", "a # b"),
        ("R&amp;D", "R&amp;amp;D"),
        ("\u202e", "\\\\u202e"),
        ("", ""),
    ],
)
def test_markdown_shows_text_as_it_is(given: str, shown: str) -> None:
    assert markdown(given) == shown


def test_hostile_values_change_no_structure(tmp_path: pathlib.Path, plan: dict[str, t.Any]) -> None:
    run = rundirs.no_go(tmp_path / "run")
    calm = report_of(run, plan)
    run.note("issue", HOSTILE, by=HOSTILE)
    run.run(host=HOSTILE, error=HOSTILE, outcome="failed", applied=[], pending=[MIGRATIONS[0]], migrations=[])
    wild = report_of(run, plan, contact=HOSTILE, actions=[HOSTILE], controls=[{"control": HOSTILE, "risk": HOSTILE}])
    for make in (notification, alert, briefing, execution_report):
        quiet, text = make(calm).markdown(), make(wild).markdown()
        kinds = [re.findall(r"^(#+|\||```)", one, re.M) for one in (quiet, text)]
        assert [kind for kind in kinds[1] if kind != "|"] == [kind for kind in kinds[0] if kind != "|"]
        assert not re.search(r"(?<!\\)(?:<!|\[x\]|!\[|\*b\*)", text)
        assert "\u202e" not in text
        assert not re.search(r"^Status: SUCCESS", make(wild).text(), re.M)
        cells = {row.replace("\\|", "").count("|") for row in text.splitlines() if row.startswith("| ")}
        assert cells <= {5, 6}


def test_code_cannot_leave_its_fence() -> None:
    text = Message().code("a\n```\nb\n````").markdown()
    assert text == "`````text\na\n```\nb\n````\n`````\n"


def test_plain_text_keeps_to_its_width_and_long_words_whole() -> None:
    message = Message().heading("Title", 1).paragraph("word " * 60).bullets(["x" * 150, "short " * 40])
    lines = message.text().splitlines()
    assert max(len(line) for line in lines if "xxx" not in line) <= 100
    assert any("x" * 150 in line for line in lines)
