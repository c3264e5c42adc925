# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of an instance, a failover that is noticed, CPU and memory; against moto and the shim in front of it."""

from __future__ import annotations

import datetime
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.modules import rds_status_info
from ansible_collections.surefoot.dbops.tests.support.rds_shim import Shim, client, make_instance
from ansible_collections.surefoot.dbops.tests.support.rds_tasks import perform, verdicts

pytest_plugins = ["ansible_collections.surefoot.dbops.tests.support.rds_fixtures"]


def status(rds: Shim, **options: t.Any) -> dict[str, t.Any]:
    return perform(rds_status_info, rds, **options)


def ago(**span: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(**span)


def event(moment: datetime.datetime, *categories: str, message: str = "something") -> dict[str, t.Any]:
    return {"time": moment.isoformat(), "categories": categories, "message": message}


def failover(results: dict[str, t.Any]) -> str:
    return verdicts(results)["rds.no_failover"]


def test_it_says_what_the_instance_is_and_what_waits(rds: Shim, tmp_path: pathlib.Path) -> None:
    rds.pending["platform-prod"] = [
        {"Action": "system-update", "Description": "New update", "ForcedApplyDate": "2027-01-03T08:00:00Z"},
        {"Action": "db-upgrade"},
    ]
    rds.modified["platform-prod"] = {"AllocatedStorage": "200"}
    results = status(rds, run_dir=str(tmp_path))
    found = results["instance"]
    assert (found["db_instance_status"], found["multi_az"], found["held"]) == ("available", True, False)
    assert found["latest_restorable_time"] and found["backup_retention_period"] == 7 and found["storage_encrypted"]
    assert [item["action"] for item in results["pending_maintenance"]] == ["system-update", "db-upgrade"]
    assert results["pending_maintenance"][0]["forced_apply_date"] == "2027-01-03T08:00:00Z"
    assert results["pending_modifications"] == {"AllocatedStorage": 200}
    assert results["blue_green_deployments"] == [] and results["changed"] is False and rds.writes() == []
    assert failover(results) == "pass" and (tmp_path / "evidence.jsonl").exists()


def test_nothing_happened_between_two_looks(rds: Shim) -> None:
    rds.events = []
    before = status(rds)
    after = status(rds, compare_with=before["instance"])
    assert failover(after) == "pass" and after["evidence"][0]["phase"] == "compare"
    assert status(rds, compare_with=before)["evidence"][0]["verdict"] == "pass"  # the whole result does as well


@pytest.mark.parametrize("category", ["failover", "availability", "recovery", "failure"])
def test_an_event_that_ends_connections_is_noticed(rds: Shim, category: str) -> None:
    rds.events = []
    before = status(rds)
    then = ago(seconds=-1)
    rds.events = [event(then, "backup")] * 4 + [event(then, category, message="it happened")]  # on the third page
    after = status(rds, compare_with=before["instance"])
    assert failover(after) == "fail" and "it happened" in after["evidence"][0]["measured"]
    assert len(after["events"]) == 5


def test_events_before_the_time_and_of_other_kinds_do_not_count(rds: Shim) -> None:
    rds.events = [
        event(ago(hours=2), "failover"),
        event(ago(minutes=5), "backup"),
        event(ago(minutes=4), "maintenance"),
    ]
    assert failover(status(rds)) == "pass"
    assert failover(status(rds, since="3h")) == "fail"
    assert failover(status(rds, since=ago(hours=3).isoformat())) == "fail"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AvailabilityZone", "eu-central-1b"),  # the zones changed places, and no event says so yet
        ("SecondaryAvailabilityZone", "eu-central-1c"),
        ("DbiResourceId", "db-ANOTHER"),
        ("MultiAZ", "false"),
    ],
)
def test_a_failover_without_an_event_is_noticed(rds: Shim, name: str, value: str) -> None:
    rds.events = []
    before = status(rds)
    rds.facts["platform-prod"] = {name: value}
    after = status(rds, compare_with=before["instance"])
    assert failover(after) == "fail" and len(after["evidence"][0]["details"]["changed"]) == 1


@pytest.mark.parametrize("state", ["rebooting", "failed", "stopped", "storage-full"])
def test_an_instance_that_is_not_available_does_not_pass(rds: Shim, state: str) -> None:
    rds.statuses["platform-prod"] = [state]
    assert failover(status(rds)) == "fail"


@pytest.mark.parametrize("since", ["15d", "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z", "yesterday", "2026-11-22"])
def test_a_time_that_events_cannot_be_asked_for_is_refused(rds: Shim, since: str) -> None:
    results = status(rds, since=since)
    assert results["failed"] and results["error"]["code"] == "plan" and rds.actions("DescribeEvents") == []


@pytest.mark.parametrize("given", [{}, {"instance": 1}, {"time": "now", "dbi_resource_id": "x"}])
def test_something_else_than_an_earlier_result_is_refused(rds: Shim, given: dict[str, t.Any]) -> None:
    assert status(rds, compare_with=given)["error"]["code"] == "plan"


def test_pending_maintenance_that_cannot_be_read_is_an_error(rds: Shim) -> None:
    rds.pending_is_known = False
    results = status(rds, aws_config={"retries": {"total_max_attempts": 1}})
    assert results["failed"] and results["error"]["code"] == "aws"


def test_a_blue_green_deployment_is_named(rds: Shim) -> None:
    api = client(rds.url)
    source = api.describe_db_instances(DBInstanceIdentifier="platform-prod")["DBInstances"][0]["DBInstanceArn"]
    api.create_blue_green_deployment(BlueGreenDeploymentName="upgrade", Source=source)
    results = status(rds)
    assert [(item["name"], item["is_source"]) for item in results["blue_green_deployments"]] == [("upgrade", True)]
    assert "upgrade" in " ".join(results["warnings"])


def test_without_the_right_to_ask_for_blue_green_the_rest_is_said(rds: Shim) -> None:
    text = "User: x is not authorized to perform: rds:DescribeBlueGreenDeployments"
    rds.refused["DescribeBlueGreenDeployments"] = (403, "AccessDenied", text)
    results = status(rds)
    assert results["blue_green_deployments"] is None and failover(results) == "pass"
    assert "is not known" in " ".join(results["warnings"])


# --- CPU and memory


def put(rds: Shim, cpu: t.Callable[[int], float], memory: t.Callable[[int], float], days: int = 4) -> None:
    """A value every five minutes of the last hour, of today and of days before."""
    now = datetime.datetime.now(datetime.timezone.utc)
    dimensions = [{"Name": "DBInstanceIdentifier", "Value": "platform-prod"}]
    data = [
        {"MetricName": name, "Dimensions": dimensions, "Timestamp": moment, "Value": value(day)}
        for day in range(days)
        for step in range(12)
        for moment in [now - datetime.timedelta(days=day, minutes=5 * step + 2)]
        for name, value in (("CPUUtilization", cpu), ("FreeableMemory", memory))
    ]
    cloudwatch = client(rds.url, "cloudwatch")
    for start in range(0, len(data), 20):
        cloudwatch.put_metric_data(Namespace="AWS/RDS", MetricData=data[start : start + 20])


GIB = 2.0**30


@pytest.mark.parametrize(
    ("cpu", "memory", "verdict"),
    [
        (35.0, 2 * GIB, "pass"),
        (49.0, 1.7 * GIB, "pass"),
        (51.0, 2 * GIB, "fail"),
        (30.0, 1.5 * GIB, "fail"),
        (5.0, 3 * GIB, "pass"),
    ],
)
def test_cpu_and_memory_are_held_against_the_days_before(rds: Shim, cpu: float, memory: float, verdict: str) -> None:
    put(rds, lambda day: 30.0 if day else cpu, lambda day: 2 * GIB if day else memory)
    results = status(rds, metrics={"period": "1h", "days": 3})
    assert verdicts(results)["rds.cpu_memory"] == verdict
    assert results["metrics"]["cpu"] == {"now": pytest.approx(cpu), "before": pytest.approx(30.0), "days_measured": 3}


def test_one_bad_day_is_not_what_is_compared_with(rds: Shim) -> None:
    put(rds, lambda day: {0: 30.0, 2: 100.0}.get(day, 28.0), lambda _day: GIB)
    assert status(rds, metrics={"period": "1h", "days": 3})["metrics"]["cpu"]["before"] == pytest.approx(28.0)


@pytest.mark.parametrize("days", [0, 1])
def test_what_was_not_measured_does_not_pass(rds: Shim, days: int) -> None:
    """No value at all, and none of the days before."""
    put(rds, lambda _day: 30.0, lambda _day: GIB, days)
    results = status(rds, metrics={"period": "1h", "days": 3})
    assert verdicts(results)["rds.cpu_memory"] == "not_measured"
    assert "too few values" in results["evidence"][1]["details"]["reason"]


@pytest.mark.parametrize("metrics", [{"period": "1m"}, {"period": "25h"}, {"days": 0}, {"memory_max_decrease": "x"}])
def test_limits_that_are_none_are_refused(rds: Shim, metrics: dict[str, t.Any]) -> None:
    assert status(rds, metrics=metrics)["error"]["code"] == "plan" and rds.calls == []


def test_another_instance_is_not_mixed_in(rds: Shim) -> None:
    make_instance(rds.url, "platform-other")
    put(rds, lambda _day: 30.0, lambda _day: GIB)
    results = status(rds, db_instance_identifier="platform-other", metrics={"period": "1h", "days": 3})
    assert verdicts(results)["rds.cpu_memory"] == "not_measured"
