# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What Amazon RDS says of an instance: its state, what waits, what happened since, and how hard it works.

RDS has no switch that forbids a failover. What can be done is to notice one: by the events of the instance, and by its
availability zones, which a failover changes places, compared with an earlier look.
"""

from __future__ import annotations

import dataclasses
import datetime
import statistics
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._aws import Api
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._noise import parse_share
from ansible_collections.surefoot.dbops.plugins.module_utils._rds import Instance, find_instance, pending_actions
from ansible_collections.surefoot.dbops.plugins.module_utils._serverlog import parse_moment
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, parse_duration

KEPT = datetime.timedelta(days=14)
# Categories of events that end connections. Events have no number in the API, and texts are no contract.
_DISTURBING = frozenset({"availability", "failover", "failure", "recovery"})
_COMPARED = ("dbi_resource_id", "availability_zone", "secondary_availability_zone", "multi_az", "endpoint_address")
_STEP = 300
_DAY = 86400
_ENOUGH = 0.5


@dataclasses.dataclass(frozen=True)
class MetricsRequest:
    """CPU and memory of the last ``period`` seconds against the same time of each of the ``days`` before."""

    period: float
    days: int
    cpu_max_increase: float  # percentage points
    memory_max_decrease: float  # a share, 0.2 for 20%


@dataclasses.dataclass(frozen=True)
class StatusRequest:
    """What the module was asked. ``earlier``: the ``instance`` of an earlier result."""

    since: str | None
    earlier: t.Mapping[str, t.Any] | None
    metrics: MetricsRequest | None = None


def status_request(params: t.Mapping[str, t.Any]) -> StatusRequest:
    """The request of module options.

    :raises PlanError: a number or a duration that is none
    """
    given = params["metrics"]
    metrics = None
    if given is not None:
        period = parse_duration(given["period"])
        if not 3600 <= period <= _DAY:
            raise PlanError(f"metrics.period: {given['period']} is not between 1h and 24h", remedy="Give such as 24h.")
        if not 1 <= given["days"] <= 14:
            raise PlanError(f"metrics.days: {given['days']} is not between 1 and 14", remedy="Give such as 7.")
        share = parse_share(given["memory_max_decrease"])
        metrics = MetricsRequest(period, given["days"], float(given["cpu_max_increase"]), share)
    return StatusRequest(since=params["since"], earlier=params["compare_with"], metrics=metrics)


def parse_since(text: str, now: datetime.datetime) -> datetime.datetime:
    """A time, or how long ago.

    :raises PlanError: neither, in the future, or longer ago than events are kept
    """
    try:
        seconds: float | None = parse_duration(text)
    except PlanError:
        seconds = None
    moment = now - datetime.timedelta(seconds=seconds) if seconds is not None else parse_moment(text)
    if now - moment > KEPT:
        raise PlanError(
            f"since: {text} is more than 14 days ago", remedy="RDS keeps events for 14 days; give a later time."
        )
    if moment - now > datetime.timedelta(minutes=5):
        raise PlanError(f"since: {text} is in the future", remedy="Give a time that has passed.")
    return min(moment, now)


def status_info(
    api: Api, metrics_api: t.Callable[[], Api] | None, identifier: str, request: StatusRequest
) -> dict[str, t.Any]:
    """The task's results, ``evidence`` as :class:`Evidence`.

    :param metrics_api: makes the client of CloudWatch
    :raises PlanError: ``since`` or the earlier result is none
    """
    earlier = _earlier(request.earlier)
    instance = find_instance(api, identifier)
    now = api.now()
    since = parse_since(request.since or (earlier["time"] if earlier else "1h"), now)
    notes: list[str] = []
    pending = pending_actions(api, instance)
    events = list(_events(api, instance, since))
    blue_green = _blue_green(api, instance, notes)
    shown = _instance(instance, now)
    evidence = [_no_failover(shown, earlier, since, events, blue_green)]
    results: dict[str, t.Any] = {
        "changed": False,
        "instance": shown,
        "pending_maintenance": [item.to_dict() for item in pending],
        "pending_modifications": dict(instance.pending_modifications),
        "since": _iso(since),
        "events": events,
        "blue_green_deployments": blue_green,
        "metrics": None,
        "notes": notes,
    }
    if request.metrics is not None and metrics_api is not None:
        measured, item = _cpu_memory(metrics_api, identifier, request.metrics, now)
        results["metrics"] = measured
        evidence.append(item)
    return {**results, "evidence": evidence}


def _earlier(given: t.Mapping[str, t.Any] | None) -> dict[str, t.Any] | None:
    if given is None:
        return None
    found = given.get("instance", given)  # the whole result will do as well
    if not isinstance(found, t.Mapping) or "time" not in found or "dbi_resource_id" not in found:
        raise PlanError(
            "compare_with is not the instance of an earlier result", remedy="Give <registered variable>.instance."
        )
    parse_moment(str(found["time"]))
    return {str(name): value for name, value in found.items()}


def _instance(instance: Instance, now: datetime.datetime) -> dict[str, t.Any]:
    facts = instance.facts
    restorable = facts.get("LatestRestorableTime")
    return {
        "time": now.astimezone(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "db_instance_identifier": instance.identifier,
        "db_instance_arn": instance.arn,
        "dbi_resource_id": instance.resource_id,
        "db_instance_status": instance.status,
        "engine": facts.get("Engine"),
        "engine_version": facts.get("EngineVersion"),
        "db_instance_class": facts.get("DBInstanceClass"),
        "multi_az": bool(facts.get("MultiAZ")),
        "availability_zone": facts.get("AvailabilityZone"),
        "secondary_availability_zone": facts.get("SecondaryAvailabilityZone"),
        "endpoint_address": (facts.get("Endpoint") or {}).get("Address"),
        "preferred_maintenance_window": instance.window,
        "preferred_backup_window": instance.backup_window,
        "auto_minor_version_upgrade": instance.auto_minor,
        "held": instance.is_held,
        "backup_retention_period": facts.get("BackupRetentionPeriod"),
        "latest_restorable_time": _iso(restorable) if isinstance(restorable, datetime.datetime) else None,
        "storage_encrypted": facts.get("StorageEncrypted"),
    }


def _events(api: Api, instance: Instance, since: datetime.datetime) -> t.Iterator[dict[str, t.Any]]:
    for item in api.pages(
        "describe_events",
        "Events",
        SourceIdentifier=instance.identifier,
        SourceType="db-instance",
        StartTime=since,
        MaxRecords=100,
    ):
        moment = item.get("Date")
        if isinstance(moment, datetime.datetime) and moment >= since:
            categories = sorted(str(name).lower() for name in item.get("EventCategories") or ())
            yield {"time": _iso(moment), "categories": categories, "message": str(item.get("Message") or "")}


def _blue_green(api: Api, instance: Instance, notes: list[str]) -> list[dict[str, t.Any]] | None:
    """The deployments this instance is blue or green of; None when they could not be asked for."""
    found = []
    try:
        for item in api.pages("describe_blue_green_deployments", "BlueGreenDeployments"):
            if instance.arn in (item.get("Source"), item.get("Target")):
                name, status = item.get("BlueGreenDeploymentName"), str(item.get("Status"))
                found.append({"name": name, "status": status, "is_source": item.get("Source") == instance.arn})
    except SurefootError as exc:
        notes.append(f"whether there is a Blue/Green deployment is not known: {exc.message}")
        return None
    for item in found:
        notes.append(
            f"the Blue/Green deployment {item['name']} is {item['status']}:"
            " most changes of the schema break its replication"
        )
    return found


def _no_failover(
    shown: t.Mapping[str, t.Any],
    earlier: t.Mapping[str, t.Any] | None,
    since: datetime.datetime,
    events: t.Sequence[t.Mapping[str, t.Any]],
    blue_green: t.Sequence[t.Mapping[str, t.Any]] | None,
) -> Evidence:
    disturbing = [item for item in events if _DISTURBING.intersection(item["categories"])]
    problems = [f"{item['time']} {'/'.join(item['categories'])}: {item['message']}" for item in disturbing]
    if shown["db_instance_status"] not in ("available", "storage-optimization"):
        problems.append(f"the instance is {shown['db_instance_status']}")
    changed = {}
    if earlier is not None:
        changed = {
            name: [earlier[name], shown[name]] for name in _COMPARED if name in earlier and earlier[name] != shown[name]
        }
        problems += [f"{name} was {before}, is {after}" for name, (before, after) in changed.items()]
    problems += [
        f"the Blue/Green deployment {item['name']} switches over"
        for item in blue_green or ()
        if item["status"] == "SWITCHOVER_IN_PROGRESS"
    ]
    return Evidence(
        "rds.no_failover",
        "preflight" if earlier is None else "compare",
        verdict(not problems),
        "; ".join(problems) or "none",
        f"no failover, restart or recovery since {_iso(since)}, and the instance available",
        "rds:DescribeEvents" + ("" if earlier is None else ", zones and resource id against before"),
        details={
            "db_instance_identifier": shown["db_instance_identifier"],
            "multi_az": shown["multi_az"],
            "changed": changed,
            "events": len(events),
        },
    )


# --- CloudWatch -------------------------------------------------------------------------------------------------------

_METRICS = {"cpu": "CPUUtilization", "memory": "FreeableMemory"}


def _cpu_memory(
    metrics_api: t.Callable[[], Api], identifier: str, request: MetricsRequest, now: datetime.datetime
) -> tuple[dict[str, t.Any], Evidence]:
    days = request.days
    required = (
        f"CPU at most {request.cpu_max_increase:g} percentage points above, freeable memory at most"
        f" {request.memory_max_decrease:.0%} below the median of the {days} days before"
    )
    measured: dict[str, t.Any] = {"period_seconds": request.period, "days": days}
    reason: str | None = None
    try:
        samples = _samples(metrics_api(), identifier, request, now)
        for name in _METRICS:
            measured[name] = _compare(samples[name], request, now)
        missing = [_METRICS[name] for name in _METRICS if measured[name]["now"] is None]
        short = [_METRICS[name] for name in _METRICS if measured[name]["before"] is None]
        if missing:
            reason = f"too few values of {', '.join(missing)} in the last {human_duration(request.period)}"
        elif short:
            reason = f"too few values of {', '.join(short)} in the {days} days before"
    except SurefootError as exc:
        reason = exc.message
    passed: bool | None = None
    if reason is None:
        cpu, memory = measured["cpu"], measured["memory"]
        passed = cpu["now"] <= cpu["before"] + request.cpu_max_increase and memory["now"] >= memory["before"] * (
            1 - request.memory_max_decrease
        )
    details = {"reason": reason} if reason else {}
    source = f"CloudWatch, averages of {human_duration(request.period)}"
    return measured, Evidence(
        "rds.cpu_memory",
        "monitor",
        verdict(passed),
        None if reason else measured,
        required,
        source,
        details={"db_instance_identifier": identifier, **details},
    )


def _samples(
    api: Api, identifier: str, request: MetricsRequest, now: datetime.datetime
) -> dict[str, list[tuple[datetime.datetime, float]]]:
    start = now - datetime.timedelta(seconds=request.days * _DAY + request.period)
    # CloudWatch keeps averages of five minutes for 63 days; a start on such a boundary gives every day the same steps.
    start -= datetime.timedelta(seconds=start.timestamp() % _STEP)
    queries = [
        {
            "Id": name,
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/RDS",
                    "MetricName": metric,
                    "Dimensions": [{"Name": "DBInstanceIdentifier", "Value": identifier}],
                },
                "Period": _STEP,
                "Stat": "Average",
            },
        }
        for name, metric in _METRICS.items()
    ]
    found: dict[str, list[tuple[datetime.datetime, float]]] = {name: [] for name in _METRICS}
    token: str | None = None
    while True:
        more = {"NextToken": token} if token else {}
        answer = api.call("get_metric_data", MetricDataQueries=queries, StartTime=start, EndTime=now, **more)
        for result in answer.get("MetricDataResults") or ():
            if result.get("Id") in found:
                found[result["Id"]] += zip(result.get("Timestamps") or (), result.get("Values") or ())
        following = answer.get("NextToken")
        if not following or following == token:
            return found
        token = str(following)


def _compare(
    samples: t.Sequence[tuple[datetime.datetime, float]], request: MetricsRequest, now: datetime.datetime
) -> dict[str, t.Any]:
    """The average of the period now, and the median of the averages of the same time on the days before."""

    def average(ago: int) -> float | None:
        end = now - datetime.timedelta(days=ago)
        begin = end - datetime.timedelta(seconds=request.period)
        values = [value for moment, value in samples if begin <= moment < end]
        return statistics.fmean(values) if len(values) >= _ENOUGH * request.period / _STEP and values else None

    days = [value for value in (average(ago) for ago in range(1, request.days + 1)) if value is not None]
    enough = bool(days) and len(days) >= _ENOUGH * request.days
    return {"now": average(0), "before": statistics.median(days) if enough else None, "days_measured": len(days)}


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
