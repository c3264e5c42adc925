# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A DB snapshot of Amazon RDS: made, waited for, and confirmed to be what a run relies on.

A name proves nothing: a snapshot of that name may be last year's, or of an instance that was deleted and made anew.
The waiters of botocore are not used: one of them takes a snapshot that does not exist for a finished one.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._aws import Api, AwsError
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence
from ansible_collections.surefoot.dbops.plugins.module_utils._rds import (
    Instance,
    RdsRefused,
    check_identifier,
    find_instance,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, parse_duration

CRITERION = "rds.snapshot_available"
_READY = ("available", "storage-optimization")
_MAX_PROGRESS = 100


@dataclasses.dataclass(frozen=True)
class SnapshotRequest:
    """What the module was asked; durations in seconds."""

    identifier: str
    max_age: float
    require_encrypted: bool = True
    tags: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    timeout: float = 7200.0
    interval: float = 15.0
    check_mode: bool = False


def snapshot_request(params: t.Mapping[str, t.Any], *, check_mode: bool) -> SnapshotRequest:
    """The request of module options.

    :raises PlanError: a name or a duration that is none
    """
    interval = parse_duration(params["interval"])
    if interval <= 0:
        raise PlanError("interval: 0 would ask AWS without a pause", remedy="Give a time such as 15s.")
    return SnapshotRequest(
        identifier=check_identifier(params["db_snapshot_identifier"], "db_snapshot_identifier", 255),
        max_age=parse_duration(params["max_age"]),
        require_encrypted=params["require_encrypted"],
        tags={str(name): str(value) for name, value in params["tags"].items()},
        timeout=parse_duration(params["timeout"]),
        interval=interval,
        check_mode=check_mode,
    )


class Snapshot:
    """One snapshot of one instance."""

    def __init__(
        self, api: Api, instance: str, request: SnapshotRequest, say: t.Callable[[str], None] | None = None
    ) -> None:
        self._api = api
        self._name = instance
        self._request = request
        self._say = say
        self._progress: list[dict[str, t.Any]] = []

    def run(self) -> dict[str, t.Any]:
        """The task's results, ``evidence`` as :class:`Evidence`.

        :raises RdsRefused: it cannot be made now, or did not finish in time
        :raises VerificationFailed: the snapshot of this name is not what is required
        """
        instance = find_instance(self._api, self._name)
        found = self._describe()
        created = found is None
        if found is None:
            self._refuse(instance)
            if self._request.check_mode:
                return {"changed": True, **self._results(instance, None), "evidence": []}
            found = self._create(instance)
        try:
            self._refuse_others(instance, found)
            if found.get("Status") == "creating" and not self._request.check_mode:
                found = self._wait(found)
        except (RdsRefused, VerificationFailed) as exc:
            exc.results.update({"changed": created, **self._results(instance, found)})
            if not self._request.check_mode:
                exc.results["evidence"] = [self._record(instance, found, [exc.message])]
            raise
        problems = self._problems(instance, found)
        results = {
            "changed": created,
            **self._results(instance, found),
            "evidence": [] if self._request.check_mode else [self._record(instance, found, problems)],
        }
        if problems:
            failed = VerificationFailed(
                f"the snapshot {self._request.identifier} is not what is required: {'; '.join(problems)}",
                remedy="Give a db_snapshot_identifier that is not in use, and a new snapshot is made.",
            )
            failed.results.update(results)
            raise failed
        return results

    # --- parts

    def _refuse(self, instance: Instance) -> None:
        if instance.status not in _READY:
            raise RdsRefused(
                f"{instance.identifier} is {instance.status}: no snapshot can be made of it now",
                remedy="Wait until it is available, then run again.",
            )
        if self._request.require_encrypted and not instance.facts.get("StorageEncrypted"):
            raise RdsRefused(
                f"the storage of {instance.identifier} is not encrypted, and so its snapshots are not",
                remedy="Set require_encrypted: false if that is accepted; encryption takes a copy and a new instance.",
            )

    def _refuse_others(self, instance: Instance, found: t.Mapping[str, t.Any]) -> None:
        """Before any waiting: a snapshot of something else will never fit."""
        if found.get("DbiResourceId") != instance.resource_id:
            raise VerificationFailed(
                f"the snapshot {self._request.identifier} is of another instance (resource id"
                f" {found.get('DbiResourceId')}, {instance.identifier} is {instance.resource_id})",
                remedy="Give a db_snapshot_identifier that is not in use.",
            )

    def _describe(self) -> dict[str, t.Any] | None:
        try:
            answer = self._api.call("describe_db_snapshots", DBSnapshotIdentifier=self._request.identifier)
        except AwsError as exc:
            if exc.aws_code == "DBSnapshotNotFound":
                return None
            raise
        return next(iter(answer.get("DBSnapshots") or ()), None)

    def _create(self, instance: Instance) -> dict[str, t.Any]:
        try:
            answer = self._api.call(
                "create_db_snapshot",
                DBSnapshotIdentifier=self._request.identifier,
                DBInstanceIdentifier=instance.identifier,
                Tags=[{"Key": name, "Value": value} for name, value in self._request.tags.items()],
            )
        except AwsError as exc:
            # A repeated call whose first answer was lost finds its own snapshot.
            existing = self._describe() if exc.aws_code == "DBSnapshotAlreadyExists" else None
            if existing is None:
                raise
            return existing
        return dict(answer["DBSnapshot"])

    def _wait(self, found: dict[str, t.Any]) -> dict[str, t.Any]:
        begun = time.monotonic()
        while found.get("Status") == "creating":
            seconds = time.monotonic() - begun
            self._note(seconds, found)
            if seconds + self._request.interval > self._request.timeout:
                raise RdsRefused(
                    f"the snapshot {self._request.identifier} is not finished after"
                    f" {human_duration(self._request.timeout)} ({found.get('PercentProgress', 0)}%)",
                    remedy="It goes on in AWS: run again with the same name to wait on, or raise timeout.",
                )
            self._api.pause(self._request.interval)
            later = self._describe()
            if later is None:
                raise RdsRefused(
                    f"the snapshot {self._request.identifier} vanished while it was made",
                    remedy="Look who deleted it, then run again.",
                )
            found = later
        self._note(time.monotonic() - begun, found)
        return found

    def _note(self, seconds: float, found: t.Mapping[str, t.Any]) -> None:
        entry = {
            "seconds": round(seconds, 1),
            "status": found.get("Status"),
            "percent": found.get("PercentProgress"),
        }
        last = self._progress[-1] if self._progress else None
        # Only what is new: hours of waiting do not make a long list.
        if last is None or (last["status"], last["percent"]) != (entry["status"], entry["percent"]):
            self._progress.append(entry)
            if self._say is not None:
                percent = "" if entry["percent"] is None else f", {entry['percent']}%"
                self._say(
                    f"{self._request.identifier}: {entry['status']}{percent}, after {human_duration(round(seconds, 1))}"
                )
            del self._progress[1 : max(1, len(self._progress) - _MAX_PROGRESS)]

    def _age(self, found: t.Mapping[str, t.Any]) -> float | None:
        """Seconds since the data was as it is in it. A copy has the time of the copying, and that of the original."""
        moments = [found.get(name) for name in ("SnapshotCreateTime", "OriginalSnapshotCreateTime")]
        known = [moment for moment in moments if isinstance(moment, datetime.datetime)]
        return (self._api.now() - min(known)).total_seconds() if known else None

    def _problems(self, instance: Instance, found: t.Mapping[str, t.Any]) -> list[str]:
        problems = []
        if found.get("Status") != "available" and not (self._request.check_mode and found.get("Status") == "creating"):
            problems.append(f"its status is {found.get('Status')}")
        age = self._age(found)
        if age is None:
            if found.get("Status") == "available":
                problems.append("AWS does not say how old it is")
        elif age > self._request.max_age:
            problems.append(f"it is {human_duration(age)} old, at most {human_duration(self._request.max_age)}")
        if self._request.require_encrypted and not found.get("Encrypted"):
            problems.append("it is not encrypted")
        return problems

    def _results(self, instance: Instance, found: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
        shown = None
        if found is not None:
            age = self._age(found)
            shown = {
                "db_snapshot_identifier": found.get("DBSnapshotIdentifier"),
                "db_snapshot_arn": found.get("DBSnapshotArn"),
                "status": found.get("Status"),
                "percent_progress": found.get("PercentProgress"),
                "snapshot_type": found.get("SnapshotType"),
                "snapshot_create_time": found.get("SnapshotCreateTime"),
                "original_snapshot_create_time": found.get("OriginalSnapshotCreateTime"),
                "age_seconds": None if age is None else round(age),
                "encrypted": found.get("Encrypted"),
                "kms_key_id": found.get("KmsKeyId"),
                "dbi_resource_id": found.get("DbiResourceId"),
                "engine_version": found.get("EngineVersion"),
                "allocated_storage": found.get("AllocatedStorage"),
            }
        return {
            "db_instance_identifier": instance.identifier,
            "dbi_resource_id": instance.resource_id,
            "snapshot": shown,
            "progress": self._progress,
        }

    def _record(self, instance: Instance, found: t.Mapping[str, t.Any], problems: t.Sequence[str]) -> Evidence:
        snapshot = self._results(instance, found)["snapshot"]
        details = {name: snapshot[name] for name in ("db_snapshot_arn", "dbi_resource_id", "kms_key_id")}
        names = ("db_snapshot_identifier", "status", "snapshot_create_time", "age_seconds", "encrypted")
        encrypted = ", encrypted" if self._request.require_encrypted else ""
        return Evidence(
            CRITERION,
            "backup",
            "fail" if problems else "pass",
            {**{name: snapshot[name] for name in names}, **({"problems": list(problems)} if problems else {})},
            f"available, of {instance.resource_id}, at most {human_duration(self._request.max_age)} old{encrypted}",
            "rds:DescribeDBSnapshots",
            details=details,
        )
