# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases in which amazon.aws does something else than it seems, and ours beside it, on the same moto server.

It runs where amazon.aws is installed: in the environment of the tests, or in that of the ``ansible-playbook`` that
``SUREFOOT_TEST_AMAZON_AWS`` names (with boto3).
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
import yaml

from ansible_collections.surefoot.dbops.tests.support.rds_shim import ACCESS_KEY, REGION, SECRET_KEY, Shim, client

pytest_plugins = ["ansible_collections.surefoot.dbops.tests.support.rds_fixtures"]

ANSIBLE = pathlib.Path(
    os.environ.get("SUREFOOT_TEST_AMAZON_AWS") or pathlib.Path(sys.executable).with_name("ansible-playbook")
)
INSTALLED = list(ANSIBLE.parents[1].glob("lib/python*/site-packages/ansible_collections/amazon/aws/MANIFEST.json"))

pytestmark = pytest.mark.skipif(not INSTALLED, reason="amazon.aws is not installed; SUREFOOT_TEST_AMAZON_AWS names one")

THEIRS, OURS = "amazon.aws.rds_instance", "surefoot.dbops.rds_maintenance_window"


def both(rds: Shim, directory: pathlib.Path, *tasks: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    """The results of these tasks, failed ones too."""
    named = [{**task, "register": f"result_{number}", "ignore_errors": True} for number, task in enumerate(tasks)]
    results = "{{ [" + ", ".join(f"result_{number}" for number in range(len(tasks))) + "] | to_json }}"
    written = directory / "results.json"
    write = {"ansible.builtin.copy": {"content": results, "dest": str(written), "mode": "0600"}}
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [*named, write]}
    (directory / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_URL": rds.url,
    }
    variables = {"ansible_python_interpreter": str(ANSIBLE.with_name("python")), "ansible_connection": "local"}
    done = subprocess.run(
        [str(ANSIBLE), "-i", "localhost,", "-e", json.dumps(variables), str(directory / "play.yml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return list(json.loads(written.read_text(encoding="utf-8")))


def window(module: str, value: str, instance: str = "platform-prod", **more: t.Any) -> dict[str, t.Any]:
    return {module: {"db_instance_identifier": instance, "preferred_maintenance_window": value}, **more}


def test_a_window_that_is_none_in_check_mode(rds: Shim, tmp_path: pathlib.Path) -> None:
    theirs, ours = both(
        rds,
        tmp_path,
        window(THEIRS, "garbage", check_mode=True),
        window(OURS, "garbage", check_mode=True),
    )
    assert theirs["changed"] and not theirs["failed"]
    assert ours["failed"] and "no maintenance window" in ours["msg"]


def test_a_mistyped_instance_in_check_mode(rds: Shim, tmp_path: pathlib.Path) -> None:
    wanted = {"check_mode": True, "instance": "platform-prd"}
    theirs_task = window(THEIRS, "wed:14:00-wed:15:00", **wanted)
    # What it takes to create one is given by whoever describes the whole instance.
    theirs_task[THEIRS].update(engine="postgres", db_instance_class="db.m7g.large", allocated_storage=100)
    theirs_task[THEIRS].update(master_username="postgres", master_user_password="a-password-of-the-tests")
    theirs, ours = both(rds, tmp_path, theirs_task, window(OURS, "wed:14:00-wed:15:00", **wanted))
    assert theirs["changed"] and not theirs["failed"]
    assert ours["failed"] and ours["error"]["aws_code"] == "DBInstanceNotFound"


def test_a_diff_of_the_window(rds: Shim, tmp_path: pathlib.Path) -> None:
    theirs, ours = both(
        rds,
        tmp_path,
        window(THEIRS, "wed:14:00-wed:15:00", check_mode=True, diff=True),
        window(OURS, "wed:14:00-wed:15:00", check_mode=True, diff=True),
    )
    assert theirs["changed"] and not theirs.get("diff")
    assert ours["changed"] and ours["diff"]["after"]["preferred_maintenance_window"] == "wed:14:00-wed:15:00"


def test_a_snapshot_that_is_old(rds: Shim, tmp_path: pathlib.Path) -> None:
    from ansible_collections.surefoot.dbops.tests.support.rds_shim import Making

    client(rds.url).create_db_snapshot(DBSnapshotIdentifier="before-006", DBInstanceIdentifier="platform-prod")
    rds.snapshots["before-006"] = Making(
        facts={"SnapshotCreateTime": "2025-01-01T00:00:00Z", "DbiResourceId": "db-OFANINSTANCETHATISGONE"}
    )
    names = {"db_instance_identifier": "platform-prod", "db_snapshot_identifier": "before-006"}
    theirs, ours = both(
        rds, tmp_path, {"amazon.aws.rds_instance_snapshot": names}, {"surefoot.dbops.rds_snapshot": names}
    )
    assert not theirs["changed"] and not theirs["failed"]
    assert ours["failed"] and ours["error"]["code"] == "verification"


def test_the_window_of_a_cluster(rds: Shim, tmp_path: pathlib.Path) -> None:
    """Theirs sets the retention of backups to one day, unasked. Ours refuses clusters."""
    rds_client = client(rds.url)
    rds_client.create_db_cluster(
        DBClusterIdentifier="platform-cluster",
        Engine="aurora-postgresql",
        MasterUsername="postgres",
        MasterUserPassword="a-password-of-the-tests",
        BackupRetentionPeriod=14,
    )

    def retention() -> int:
        found = rds_client.describe_db_clusters(DBClusterIdentifier="platform-cluster")["DBClusters"][0]
        return int(found["BackupRetentionPeriod"])

    task = window(OURS, "wed:14:00-wed:15:00", instance="platform-cluster")
    (ours,) = both(rds, tmp_path, task)
    assert ours["failed"] and "is a DB cluster" in ours["msg"] and retention() == 14
    options = {"db_cluster_identifier": "platform-cluster", "preferred_maintenance_window": "wed:14:00-wed:15:00"}
    (theirs,) = both(rds, tmp_path, {"amazon.aws.rds_cluster": {**options, "engine": "aurora-postgresql"}})
    assert theirs["changed"] and retention() == 1
