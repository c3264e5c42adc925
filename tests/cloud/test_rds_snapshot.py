# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots that are made, waited for and confirmed, against moto and the shim in front of it."""

from __future__ import annotations

import datetime
import json
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.modules import rds_snapshot
from ansible_collections.surefoot.dbops.tests.support.rds_shim import Making, Shim, client, make_instance
from ansible_collections.surefoot.dbops.tests.support.rds_tasks import perform, verdicts

pytest_plugins = ["ansible_collections.surefoot.dbops.tests.support.rds_fixtures"]

NAME = "pgmig-r42"
PASSED, FAILED = {"rds.snapshot_available": "pass"}, {"rds.snapshot_available": "fail"}


def snapshot(rds: Shim, **options: t.Any) -> dict[str, t.Any]:
    return perform(rds_snapshot, rds, **{"db_snapshot_identifier": NAME, "interval": "10ms", **options})


def ago(**span: float) -> str:
    return (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(**span)).isoformat()


def exists(rds: Shim) -> bool:
    found = client(rds.url).describe_db_snapshots()["DBSnapshots"]
    return any(item["DBSnapshotIdentifier"] == NAME for item in found)


def test_a_snapshot_is_made_waited_for_and_confirmed(rds: Shim, tmp_path: pathlib.Path) -> None:
    rds.snapshots[NAME] = Making([0, 0, 40, 40, 90, 100])
    results = snapshot(rds, run_dir=str(tmp_path), tags={"purpose": "migration 006"})
    assert results["changed"] and results["snapshot"]["status"] == "available" and verdicts(results) == PASSED
    assert [item["percent"] for item in results["progress"]] == [0, 40, 90, 100]
    # Shown while it waits, one line each.
    shown = [line.partition(", after ")[0] for line in results["said"]]
    assert shown == [f"{NAME}: creating, {n}%" for n in (0, 40, 90)] + [f"{NAME}: available, 100%"]
    assert results["snapshot"]["dbi_resource_id"] == results["dbi_resource_id"]
    assert results["snapshot"]["encrypted"] is True and results["snapshot"]["age_seconds"] < 600
    lines = (tmp_path / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["criterion"] for line in lines] == ["rds.snapshot_available"]
    found = client(rds.url).describe_db_snapshots(DBSnapshotIdentifier=NAME)["DBSnapshots"][0]
    assert {"Key": "purpose", "Value": "migration 006"} in found["TagList"]


def test_the_same_again_changes_nothing(rds: Shim) -> None:
    snapshot(rds)
    rds.calls.clear()
    results = snapshot(rds)
    assert results["changed"] is False and verdicts(results) == PASSED and rds.writes() == []


@pytest.mark.parametrize("name", ["Pgmig-R42", "pgmig-r42"])
def test_case_of_the_name_is_no_difference(rds: Shim, name: str) -> None:
    snapshot(rds)
    assert snapshot(rds, db_snapshot_identifier=name)["changed"] is False


def test_check_mode_predicts_and_makes_nothing(rds: Shim) -> None:
    results = snapshot(rds, check_mode=True)
    assert results["changed"] and results["snapshot"] is None and not exists(rds) and rds.writes() == []
    snapshot(rds)
    rds.snapshots[NAME] = Making([10])
    results = snapshot(rds, check_mode=True)  # it is not waited for
    assert results["changed"] is False and results["snapshot"]["status"] == "creating"


def test_an_old_snapshot_of_that_name_is_not_accepted(rds: Shim) -> None:
    snapshot(rds)
    rds.snapshots[NAME] = Making(facts={"SnapshotCreateTime": ago(hours=3)})
    for check_mode in (True, False):
        results = snapshot(rds, max_age="2h", check_mode=check_mode)
        assert results["failed"] and results["error"]["code"] == "verification" and "old, at most 2 h" in results["msg"]
    assert verdicts(results) == FAILED
    assert verdicts(snapshot(rds, max_age="4h")) == PASSED


def test_a_copy_is_as_old_as_what_it_is_a_copy_of(rds: Shim) -> None:
    snapshot(rds)
    rds.snapshots[NAME] = Making(facts={"OriginalSnapshotCreateTime": ago(days=30)})
    assert "old, at most 2 h" in snapshot(rds)["msg"]


def test_a_snapshot_of_another_resource_id_is_not_accepted(rds: Shim) -> None:
    """The instance was deleted and made anew under its name; or the name is in use for another instance."""
    snapshot(rds)
    rds.snapshots[NAME] = Making(facts={"DbiResourceId": "db-GONE"})  # moto gives every instance the same
    results = snapshot(rds)
    assert results["failed"] and "is of another instance" in results["msg"] and verdicts(results) == FAILED
    assert results["snapshot"]["dbi_resource_id"] != results["dbi_resource_id"]
    # It is not waited for either.
    rds.snapshots[NAME] = Making([5], facts={"DbiResourceId": "db-GONE"})
    assert "is of another instance" in snapshot(rds)["msg"]


def test_a_snapshot_that_never_finishes_ends_at_the_timeout(rds: Shim) -> None:
    rds.snapshots[NAME] = Making([0, 7])
    results = snapshot(rds, timeout="300ms")
    assert (
        results["failed"] and results["error"]["code"] == "rds" and "not finished after 300 ms (7%)" in results["msg"]
    )
    assert results["changed"] and verdicts(results) == FAILED and results["progress"][-1]["percent"] == 7
    # The next call waits on and makes no second one.
    rds.snapshots[NAME] = Making([7, 60, 100])
    results = snapshot(rds)
    assert results["changed"] is False and verdicts(results) == PASSED
    assert len(rds.actions("CreateDBSnapshot")) == 1


def test_a_snapshot_that_fails_is_not_accepted(rds: Shim) -> None:
    rds.snapshots[NAME] = Making([0, 50, 100], final="failed")
    results = snapshot(rds)
    assert results["failed"] and "its status is failed" in results["msg"] and verdicts(results) == FAILED


def test_a_snapshot_that_is_deleted_meanwhile_is_no_success(rds: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiter db_snapshot_completed of botocore would say it is done."""
    rds.snapshots[NAME] = Making([0, 10])
    from ansible_collections.surefoot.dbops.plugins.module_utils import _aws

    def pause(_self: _aws.Api, _seconds: float) -> None:
        client(rds.url).delete_db_snapshot(DBSnapshotIdentifier=NAME)

    monkeypatch.setattr(_aws.Api, "pause", pause)
    results = snapshot(rds)
    assert results["failed"] and "vanished" in results["msg"] and verdicts(results) == FAILED


def test_an_unencrypted_instance_is_refused_before_anything_is_made(rds: Shim) -> None:
    make_instance(rds.url, "plain", StorageEncrypted=False)
    rds.calls.clear()
    results = snapshot(rds, db_instance_identifier="plain")
    assert results["failed"] and "is not encrypted" in results["msg"] and rds.writes() == []
    accepted = snapshot(rds, db_instance_identifier="plain", require_encrypted=False)
    assert accepted["changed"] and verdicts(accepted) == PASSED
    results = snapshot(rds, db_instance_identifier="plain")
    assert results["failed"] and "it is not encrypted" in results["msg"] and verdicts(results) == FAILED


@pytest.mark.parametrize("status", ["stopped", "modifying", "backing-up"])
def test_a_snapshot_is_made_of_an_available_instance(rds: Shim, status: str) -> None:
    rds.statuses["platform-prod"] = [status]
    results = snapshot(rds)
    assert results["failed"] and f"is {status}" in results["msg"] and rds.writes() == []


@pytest.mark.parametrize("name", ["rds:automated", "1st", "a--b", "a-", "a" * 256, "a_b", ""])
def test_a_name_that_cannot_be_one_is_refused_before_any_call(rds: Shim, name: str) -> None:
    results = snapshot(rds, db_snapshot_identifier=name)
    assert results["failed"] and results["error"]["code"] == "plan" and rds.calls == []


def test_a_mistyped_instance_is_an_error_in_check_mode_too(rds: Shim) -> None:
    for check_mode in (True, False):
        results = snapshot(rds, db_instance_identifier="platform-prd", check_mode=check_mode)
        assert results["failed"] and results["error"]["aws_code"] == "DBInstanceNotFound" and rds.writes() == []


def test_a_create_whose_answer_was_lost_finds_its_own_snapshot(rds: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.surefoot.dbops.plugins.module_utils import _aws

    original = _aws.Api.call

    def call(self: _aws.Api, operation: str, /, **arguments: t.Any) -> dict[str, t.Any]:
        if operation == "create_db_snapshot":
            original(self, operation, **arguments)
        return original(self, operation, **arguments)

    monkeypatch.setattr(_aws.Api, "call", call)
    results = snapshot(rds)
    assert results["changed"] and verdicts(results) == PASSED and len(rds.actions("CreateDBSnapshot")) == 2
