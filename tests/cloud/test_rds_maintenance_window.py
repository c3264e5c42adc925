# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maintenance window and the hold of a run, against moto and the shim in front of it."""

from __future__ import annotations

import datetime
import json
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _aws, _rds
from ansible_collections.surefoot.dbops.plugins.module_utils._rds_window import (
    DAY,
    Window,
    minute_of_week,
    parse_window,
)
from ansible_collections.surefoot.dbops.plugins.modules import rds_maintenance_window
from ansible_collections.surefoot.dbops.tests.support.rds_shim import Shim, client, make_instance
from ansible_collections.surefoot.dbops.tests.support.rds_tasks import perform, verdicts

pytest_plugins = ["ansible_collections.surefoot.dbops.tests.support.rds_fixtures"]

ORIGINAL = "sun:08:00-sun:09:00"
OTHER = "wed:14:00-wed:15:00"
HALF_A_DAY = datetime.timedelta(hours=12)


def window(rds: Shim | None, value: str | None = None, **options: t.Any) -> dict[str, t.Any]:
    return perform(rds_maintenance_window, rds, preferred_maintenance_window=value, **options)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def around(minutes: int, length: int = 60) -> str:
    """A window that begins so many minutes from now, away from the daily backup at 03:00."""
    return str(Window(round(minute_of_week(now()) + minutes) % (7 * DAY), length))


def set_up(rds: Shim, **facts: str) -> None:
    rds.facts["platform-prod"] = {**rds.facts.get("platform-prod", {}), **facts}


BACKUPS = [datetime.time(hour, 30) for hour in (5, 11, 17)]
"""Three times a day that no window named in this file meets."""


@pytest.fixture(autouse=True)
def backup_far_away(rds: Shim) -> None:
    """At the one of the three times that is farthest from now, so that windows around now do not meet it either."""
    today = now()
    starts = [today.replace(hour=each.hour, minute=each.minute) for each in BACKUPS]
    start = max(starts, key=lambda each: abs((each - today + HALF_A_DAY) % (2 * HALF_A_DAY) - HALF_A_DAY))
    set_up(rds, PreferredBackupWindow=f"{start:%H:%M}-{start + datetime.timedelta(minutes=30):%H:%M}")


def shown(rds: Shim) -> dict[str, t.Any]:
    return dict(client(rds.url).describe_db_instances(DBInstanceIdentifier="platform-prod")["DBInstances"][0])


def tags(rds: Shim) -> dict[str, str]:
    return {item["Key"]: item["Value"] for item in shown(rds)["TagList"]}


def state(rds: Shim) -> tuple[str, bool, dict[str, str]]:
    found = shown(rds)
    return found["PreferredMaintenanceWindow"], found["AutoMinorVersionUpgrade"], tags(rds)


def nothing_was_changed(rds: Shim) -> bool:
    return rds.writes() == []


# --- what the option says


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("garbage", "no maintenance window"),
        ("sum:08:00-sun:09:00", "names no day 'sum'"),
        ("sun:08:00-sun:08:29", "lasts 29 minutes"),
        ("sun:25:00-sun:26:00", "no time 25:00"),
    ],
)
def test_what_is_no_window_is_refused_before_any_call(rds: Shim, value: str, says: str, check_mode: bool) -> None:
    results = window(rds, value, check_mode=check_mode)
    assert results["failed"] and results["error"]["code"] == "plan" and says in results["msg"]
    assert rds.calls == []


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(
    ("value", "overlaps"),
    [("tue:03:30-tue:04:30", False), ("tue:02:00-tue:03:00", False), ("tue:03:29-tue:04:30", True)],
)
def test_windows_may_touch_the_backup_and_not_overlap_it(
    rds: Shim, value: str, overlaps: bool, check_mode: bool
) -> None:
    set_up(rds, PreferredBackupWindow="03:00-03:30")
    results = window(rds, value, check_mode=check_mode)
    assert results.get("failed", False) is overlaps
    if overlaps:
        assert "overlaps the backup window 03:00-03:30" in results["msg"] and nothing_was_changed(rds)
    else:
        assert results["changed"]


def test_a_window_over_the_end_of_the_week_is_set_and_stays(rds: Shim) -> None:
    set_up(rds, PreferredBackupWindow="12:00-12:30")
    results = window(rds, "sun:23:45-mon:00:15")
    assert results["changed"] and results["preferred_maintenance_window"] == "sun:23:45-mon:00:15"
    assert window(rds, "sun:23:45-mon:00:15")["changed"] is False


def test_case_is_no_change(rds: Shim) -> None:
    results = window(rds, ORIGINAL.title())
    assert results["changed"] is False and nothing_was_changed(rds)
    assert results["diff"]["before"] == results["diff"]["after"]


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_mistyped_instance_is_an_error_in_check_mode_too(rds: Shim, check_mode: bool) -> None:
    results = window(rds, OTHER, db_instance_identifier="platform-prd", check_mode=check_mode)
    assert results["failed"] and results["error"]["aws_code"] == "DBInstanceNotFound"
    assert "platform-prd" in results["msg"] and "\n" not in results["msg"]
    assert nothing_was_changed(rds)


def test_an_identifier_that_cannot_be_one_is_refused_before_any_call(rds: Shim) -> None:
    results = window(rds, OTHER, db_instance_identifier="a--b")
    assert "cannot be an identifier" in results["msg"] and rds.calls == []


# --- present


def test_the_change_is_predicted_and_then_made(rds: Shim) -> None:
    predicted = window(rds, OTHER, auto_minor_version_upgrade=False, check_mode=True)
    assert predicted["changed"] and nothing_was_changed(rds)
    assert state(rds)[:2] == (ORIGINAL, True)
    made = window(rds, OTHER, auto_minor_version_upgrade=False)
    assert made["diff"] == predicted["diff"]
    assert made["diff"]["before"]["preferred_maintenance_window"] == ORIGINAL
    assert made["diff"]["after"]["preferred_maintenance_window"] == OTHER
    assert state(rds)[:2] == (OTHER, False)
    rds.calls.clear()
    again = window(rds, OTHER, auto_minor_version_upgrade=False)
    assert again["changed"] is False and nothing_was_changed(rds)


def test_one_call_changes_what_was_asked_for_and_nothing_else(rds: Shim) -> None:
    window(rds, OTHER)
    asked = {"DBInstanceIdentifier": "platform-prod", "PreferredMaintenanceWindow": OTHER}
    assert rds.writes() == [("ModifyDBInstance", asked)]


def test_it_waits_until_the_change_shows(rds: Shim) -> None:
    rds.lag = 2
    rds.statuses["platform-prod"] = ["available", "available", "modifying", "available"]
    results = window(rds, OTHER)
    assert results["preferred_maintenance_window"] == OTHER and results["db_instance_status"] == "available"
    assert len(rds.actions("DescribeDBInstances")) >= 4


def test_a_change_that_never_shows_is_an_error(rds: Shim) -> None:
    rds.lag = 1000
    results = window(rds, OTHER, wait_timeout="600ms")
    assert results["failed"] and results["error"]["code"] == "rds" and "does not show" in results["msg"]
    assert results["changed"]  # it was asked for


@pytest.mark.parametrize("what", ["maintenance", "modification", "nothing"])
@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize("begins", [-30, 3])
def test_a_window_that_includes_now_is_refused_while_something_waits(
    rds: Shim, what: str, check_mode: bool, begins: int
) -> None:
    """A pending reboot would happen at once. A window that begins in a moment is no better."""
    if what == "maintenance":
        rds.pending["platform-prod"] = [{"Action": "system-update", "Description": "New Operating System update"}]
    elif what == "modification":
        rds.modified["platform-prod"] = {"DBInstanceClass": "db.m7g.xlarge"}
    value = around(begins)
    results = window(rds, value, check_mode=check_mode)
    if what == "nothing":
        assert results["changed"]
        return
    assert results["failed"] and results["error"]["code"] == "rds" and nothing_was_changed(rds)
    assert ("system-update" if what == "maintenance" else "DBInstanceClass") in results["msg"]
    assert "would begin at once" in results["msg"]
    allowed = window(rds, value, allow_immediate_maintenance=True, check_mode=check_mode)
    assert allowed["changed"]
    assert all("ApplyImmediately" not in arguments for _action, arguments in rds.calls)


def test_a_window_that_begins_later_may_have_something_waiting(rds: Shim) -> None:
    rds.pending["platform-prod"] = [{"Action": "system-update"}]
    assert window(rds, around(60))["changed"]


def test_an_answer_that_cannot_be_understood_is_not_taken_for_nothing(rds: Shim) -> None:
    """moto answers with HTML and status 500, as a proxy in between would."""
    rds.pending_is_known = False
    results = window(rds, around(-30), aws_config={"retries": {"total_max_attempts": 1}})
    assert results["failed"] and results["error"]["code"] == "aws" and nothing_was_changed(rds)
    assert "rds:DescribePendingMaintenanceActions" in results["msg"]
    held = window(rds, state="held", aws_config={"retries": {"total_max_attempts": 1}})
    assert held["failed"] and nothing_was_changed(rds)


# --- held and released


def test_a_hold_moves_the_window_and_a_release_brings_it_back(rds: Shim, tmp_path: pathlib.Path) -> None:
    current = around(60)
    window(rds, current)
    rds.calls.clear()
    before = state(rds)
    held = window(rds, state="held", run_id="r42", run_dir=str(tmp_path))
    assert held["changed"] and held["held"] and verdicts(held) == {"rds.maintenance_held": "pass"}
    assert held["originals"] == {"preferred_maintenance_window": current, "auto_minor_version_upgrade": True}
    lines = (tmp_path / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["criterion"] for line in lines] == ["rds.maintenance_held"]
    moved, auto_minor, _tags = state(rds)
    assert auto_minor is False and moved != current
    shift = parse_window(moved).start - parse_window(current).start
    assert shift % DAY == 0 and not parse_window(moved).includes(minute_of_week(now()))
    assert tags(rds)["owner"] == "platform"
    # The originals are safe before anything is changed.
    assert rds.actions("AddTagsToResource", "ModifyDBInstance") == ["AddTagsToResource", "ModifyDBInstance"]
    rds.calls.clear()
    assert window(rds, state="held", run_id="r42")["changed"] is False and nothing_was_changed(rds)
    released = window(rds, state="released", run_id="r42")
    assert released["changed"] and not released["held"] and state(rds) == before
    assert rds.writes()[-1][0] == "RemoveTagsFromResource"
    rds.calls.clear()
    assert window(rds, state="released", run_id="r42")["changed"] is False and nothing_was_changed(rds)
    assert all("ApplyImmediately" not in arguments for _action, arguments in rds.calls)


def test_what_is_off_already_is_not_turned_on_by_the_release(rds: Shim) -> None:
    window(rds, around(60), auto_minor_version_upgrade=False)
    before = state(rds)
    window(rds, state="held")
    window(rds, state="released")
    assert state(rds) == before


def test_a_window_that_is_clear_stays_where_it_is(rds: Shim) -> None:
    later = around(24 * 60)
    window(rds, later)
    held = window(rds, state="held", horizon="4h")
    assert held["preferred_maintenance_window"] == later and state(rds)[1] is False


def test_check_mode_says_what_a_hold_and_a_release_would_do(rds: Shim) -> None:
    window(rds, around(60))
    rds.calls.clear()
    before = state(rds)
    predicted = window(rds, state="held", check_mode=True)
    assert predicted["changed"] and nothing_was_changed(rds) and state(rds) == before
    made = window(rds, state="held")
    keys = ("preferred_maintenance_window", "auto_minor_version_upgrade")
    assert [predicted["diff"]["after"][key] for key in keys] == [made["diff"]["after"][key] for key in keys]
    rds.calls.clear()
    held = state(rds)
    predicted = window(rds, state="released", check_mode=True)
    assert predicted["changed"] and nothing_was_changed(rds) and state(rds) == held
    assert window(rds, state="released")["diff"] == predicted["diff"]


DATES = ["CurrentApplyDate", "AutoAppliedAfterDate", "ForcedApplyDate"]


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize("name", DATES)
def test_a_hold_is_refused_when_maintenance_is_due_within_it(rds: Shim, name: str, check_mode: bool) -> None:
    due = now() + datetime.timedelta(hours=3)
    rds.pending["platform-prod"] = [{"Action": "system-update", name: due.isoformat()}]
    results = window(rds, state="held", horizon="4h", check_mode=check_mode)
    assert results["failed"] and results["error"]["code"] == "rds" and nothing_was_changed(rds)
    assert f"system-update: {name}" in results["msg"]
    if not check_mode:
        assert verdicts(results) == {"rds.maintenance_held": "fail"}
    assert window(rds, state="held", horizon="2h", check_mode=check_mode)["held"]


@pytest.mark.parametrize(
    ("action", "refused"),
    [
        ({"ForcedApplyDate": -1}, True),  # any moment
        ({"CurrentApplyDate": -1}, True),
        ({"AutoAppliedAfterDate": -1}, False),  # in the window, which is moved
        ({"OptInStatus": "immediate"}, True),
        ({"OptInStatus": "next-maintenance"}, False),
        ({}, False),
    ],
)
def test_what_waits_for_the_window_is_moved_with_it_and_the_rest_is_not(
    rds: Shim, action: dict[str, t.Any], refused: bool
) -> None:
    given = {
        name: (now() + datetime.timedelta(hours=value)).isoformat() if isinstance(value, int) else value
        for name, value in action.items()
    }
    rds.pending["platform-prod"] = [{"Action": "db-upgrade", **given}]
    window(rds, around(60))
    results = window(rds, state="held")
    assert results.get("failed", False) is refused
    assert [item["action"] for item in results["pending_maintenance"]] == ["db-upgrade"]


def test_a_hold_is_refused_inside_the_window_when_something_waits(rds: Shim) -> None:
    window(rds, around(-30))
    rds.pending["platform-prod"] = [{"Action": "system-update"}]
    results = window(rds, state="held")
    assert results["failed"] and "may begin any moment" in results["msg"]
    rds.pending.clear()
    assert window(rds, state="held")["held"]


def test_a_hold_wants_an_instance_that_is_available_and_has_nothing_waiting(rds: Shim) -> None:
    rds.statuses["platform-prod"] = ["storage-optimization"]
    assert "is storage-optimization, not available" in window(rds, state="held")["msg"]
    rds.statuses.clear()
    rds.modified["platform-prod"] = {"DBInstanceClass": "db.m7g.xlarge", "MasterUserPassword": "not-to-be-shown"}
    results = window(rds, state="held")
    assert "DBInstanceClass" in results["msg"] and nothing_was_changed(rds)
    assert "not-to-be-shown" not in json.dumps(results)
    assert window(rds, state="held", allow_pending_modifications=True)["held"]


def test_a_window_of_ones_own_choice_must_be_clear(rds: Shim) -> None:
    assert "lies within the next" in window(rds, around(120), state="held")["msg"]
    choice = around(2 * DAY)
    assert window(rds, choice, state="held")["preferred_maintenance_window"] == choice


@pytest.mark.parametrize("horizon", ["0s", "6d", "soon"])
def test_a_horizon_is_between_now_and_five_days(rds: Shim, horizon: str) -> None:
    assert window(rds, state="held", horizon=horizon)["error"]["code"] == "plan" and rds.calls == []


def test_a_release_onto_the_present_is_refused_while_something_waits(rds: Shim) -> None:
    """The run took until the original window began: the release would start the maintenance."""
    current = around(60)
    window(rds, current)
    window(rds, state="held")
    rds.pending["platform-prod"] = [{"Action": "system-update"}]
    rds.clock = datetime.timedelta(minutes=75)
    rds.calls.clear()
    results = window(rds, state="released")
    assert results["failed"] and nothing_was_changed(rds) and results["held"]
    rds.clock = datetime.timedelta(minutes=125)
    assert window(rds, state="released")["preferred_maintenance_window"] == current


def test_the_window_cannot_be_set_during_a_hold(rds: Shim) -> None:
    window(rds, state="held", run_id="r42")
    rds.calls.clear()
    results = window(rds, OTHER)
    assert results["failed"] and "is held by the run r42" in results["msg"] and nothing_was_changed(rds)


def test_a_later_run_takes_a_hold_over_and_the_earlier_one_leaves_it(rds: Shim) -> None:
    window(rds, around(60))
    before = state(rds)
    window(rds, state="held", run_id="r1")
    taken = window(rds, state="held", run_id="r2")
    assert "was held by the run r1" in " ".join(taken["warnings"])
    left = window(rds, state="released", run_id="r1")
    assert left["held"] and not left["changed"] and "held by the run r2" in " ".join(left["warnings"])
    assert window(rds, state="released", run_id="r2")["changed"] and state(rds) == before


@pytest.mark.parametrize("broken", ["removed", "changed"])
def test_a_hold_whose_originals_are_gone_is_not_released_by_guess(rds: Shim, broken: str) -> None:
    window(rds, state="held")
    arn = shown(rds)["DBInstanceArn"]
    if broken == "removed":
        client(rds.url).remove_tags_from_resource(ResourceName=arn, TagKeys=[_rds.TAG_WINDOW])
    else:
        client(rds.url).add_tags_to_resource(ResourceName=arn, Tags=[{"Key": _rds.TAG_AUTO_MINOR, "Value": "perhaps"}])
    rds.calls.clear()
    results = window(rds, state="released")
    assert results["failed"] and "do not say what was there before" in results["msg"] and nothing_was_changed(rds)


class Killed(BaseException):
    """No exception that anything catches, as SIGKILL is none."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> None:
    """The process dies before or after a call to AWS, counted from 0."""
    seen = {"calls": 0}
    original = _aws.Api.call

    def call(self: _aws.Api, operation: str, /, **arguments: t.Any) -> dict[str, t.Any]:
        mine = seen["calls"]
        seen["calls"] += 1
        if mine == number and not after:
            raise Killed
        answer = original(self, operation, **arguments)
        if mine == number:
            raise Killed
        return answer

    monkeypatch.setattr(_aws.Api, "call", call)


def kill(rds: Shim, monkeypatch: pytest.MonkeyPatch, number: int, after: bool, **options: t.Any) -> bool:
    """Whether the run was killed; false when it has fewer calls than that."""
    with monkeypatch.context() as patch:
        killed_at(patch, number, after=after)
        try:
            results = window(rds, **options)
        except Killed:
            return True
    assert not results.get("failed"), results
    return False


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("then", ["held", "released"])
def test_a_run_that_is_killed_at_any_call_of_the_hold_leaves_nothing_behind(
    rds: Shim, monkeypatch: pytest.MonkeyPatch, number: int, after: bool, then: str
) -> None:
    """The instance is read, what waits is asked for, tags are written, the window is moved, the change is looked at."""
    window(rds, around(60))
    before = state(rds)
    assert kill(rds, monkeypatch, number, after, state="held", run_id="r1")
    # Whatever the state is, the originals can be told.
    found = state(rds)
    assert found == before or found[2][_rds.TAG_WINDOW] == before[0]
    if then == "held":
        held = window(rds, state="held", run_id="r1")
        assert held["held"] and held["originals"]["preferred_maintenance_window"] == before[0]
        assert state(rds)[0] != before[0] and state(rds)[1] is False
    released = window(rds, state="released", run_id="r1")
    assert not released.get("failed") and state(rds) == before


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(4))
def test_a_run_that_is_killed_at_any_call_of_the_release_is_completed_by_the_next(
    rds: Shim, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    """The instance is read, the window is moved back, the change is looked at, the tags are removed."""
    window(rds, around(60))
    before = state(rds)
    window(rds, state="held", run_id="r1")
    assert kill(rds, monkeypatch, number, after, state="released", run_id="r1")
    assert window(rds, state="released", run_id="r1").get("failed") is None
    assert state(rds) == before
    assert window(rds, state="released", run_id="r1")["changed"] is False


def test_the_numbers_of_calls_above_are_all_there_are(rds: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    window(rds, around(60))
    assert not kill(rds, monkeypatch, 5, False, state="held")
    assert not kill(rds, monkeypatch, 4, False, state="released")


def test_a_change_that_a_killed_run_began_is_waited_for(rds: Shim) -> None:
    window(rds, around(60))
    window(rds, state="held")
    rds.statuses["platform-prod"] = ["modifying", "modifying", "available"]
    assert window(rds, state="held").get("failed") is None


# --- clusters, throttling, rights


def test_a_member_of_a_cluster_and_a_cluster_are_refused(rds: Shim) -> None:
    rds_client = client(rds.url)
    rds_client.create_db_cluster(
        DBClusterIdentifier="platform-cluster",
        Engine="aurora-postgresql",
        MasterUsername="postgres",
        MasterUserPassword="a-password-of-the-tests",
    )
    rds_client.create_db_instance(
        DBInstanceIdentifier="member-1",
        DBClusterIdentifier="platform-cluster",
        Engine="aurora-postgresql",
        DBInstanceClass="db.r6g.large",
    )
    rds.calls.clear()
    for name, says in [("member-1", "is a member of the DB cluster platform-cluster"), ("platform-cluster", "not an")]:
        results = window(rds, OTHER, db_instance_identifier=name)
        assert results["failed"] and says in results["msg"] and results["error"]["code"] == "rds"
    assert nothing_was_changed(rds)


def test_a_second_instance_is_left_alone(rds: Shim) -> None:
    make_instance(rds.url, "platform-other")
    window(rds, state="held")
    found = client(rds.url).describe_db_instances(DBInstanceIdentifier="platform-other")["DBInstances"][0]
    assert found["PreferredMaintenanceWindow"] == ORIGINAL and found["AutoMinorVersionUpgrade"] is True


def test_throttled_calls_are_made_again(rds: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    """More often than botocore tries by itself."""
    monkeypatch.setattr(_aws, "_FIRST_PAUSE", 0.01)
    rds.throttled.update({"DescribeDBInstances": 2, "ModifyDBInstance": 3})
    results = window(rds, OTHER, aws_config={"retries": {"total_max_attempts": 2}})
    assert results["changed"] and len(rds.actions("ModifyDBInstance")) == 4


def test_throttling_without_end_is_an_error(rds: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aws, "THROTTLE_SECONDS", 0.5)
    monkeypatch.setattr(_aws, "_FIRST_PAUSE", 0.05)
    rds.throttled["DescribeDBInstances"] = 10**6
    results = window(rds, OTHER, aws_config={"retries": {"total_max_attempts": 1}})
    assert results["failed"] and results["error"]["aws_code"] == "Throttling" and "throttles" in results["msg"]
    assert "rds:DescribeDBInstances" in results["msg"]


def test_a_right_that_is_missing_is_named(rds: Shim) -> None:
    arn = "arn:aws:iam::123456789012:user/runner"
    text = f"User: {arn} is not authorized to perform: rds:ModifyDBInstance on resource: x"
    rds.refused["ModifyDBInstance"] = (403, "AccessDenied", text)
    results = window(rds, OTHER)
    assert results["failed"] and "rds:ModifyDBInstance" in results["msg"] and "docs/rds.md" in results["msg"]
