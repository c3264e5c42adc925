# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The RDS modules as tasks: the examples of the guide, the role, both ways to run, and what -vvv shows."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import pytest
import yaml

from ansible_collections.surefoot.dbops.tests.support.pgserver import running_server, temporary_database
from ansible_collections.surefoot.dbops.tests.support.rds_shim import ACCESS_KEY, REGION, SECRET_KEY, Shim, client

pytest_plugins = ["ansible_collections.surefoot.dbops.tests.support.rds_fixtures"]

ROOT = pathlib.Path(__file__).resolve().parents[2]
ANSIBLE = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
TOKEN = "FwoGZXIvYXdzEBYaDHsession/token+of-the-tests"


def playbook(
    plays: list[dict[str, t.Any]], directory: pathlib.Path, shim: Shim | None, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run plays as they are; how to reach the shim comes from the environment, as for any user."""
    path = directory / "play.yml"
    path.write_text(yaml.safe_dump(plays, sort_keys=False), encoding="utf-8")
    login = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        **({"AWS_URL": shim.url} if shim is not None else {}),
    }
    variables = {"ansible_python_interpreter": sys.executable, "ansible_connection": "local"}
    argv = [ANSIBLE, "-i", "localhost,", "-e", json.dumps(variables), str(path), *arguments]
    return subprocess.run(
        argv,
        env={**os.environ, **login, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        timeout=240,
    )


def play(*tasks: t.Any, **more: t.Any) -> list[dict[str, t.Any]]:
    return [{"hosts": "localhost", "gather_facts": False, "tasks": list(tasks), **more}]


def on_localhost(data: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """An example of the guide as plays of this host. Its profile does not exist here."""
    plays = data if "hosts" in data[0] else play(*data)
    for item in plays:
        item.update(hosts="localhost", gather_facts=False)
        for defaults in item.get("module_defaults", {}).values():
            defaults.pop("profile", None)
    return plays


def examples() -> list[str]:
    text = (ROOT / "docs" / "rds.md").read_text(encoding="utf-8")
    return re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)


def named(module: str) -> list[str]:
    return [text for text in examples() if module in text]


@pytest.mark.parametrize("module", ["rds_maintenance_window", "rds_snapshot", "rds_status_info"])
def test_the_examples_of_the_guide_run(rds: Shim, tmp_path: pathlib.Path, module: str) -> None:
    assert named(module)
    # A backup window that is not at the time of any window of the guide, nor of a hold.
    rds.facts["platform-prod"] = {"PreferredBackupWindow": "13:00-13:30"}
    for text in named(module):
        done = playbook(on_localhost(yaml.safe_load(text)), tmp_path, rds)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "ApplyImmediately" not in str(rds.calls)


def test_the_example_of_the_log_runs(rds: Shim, tmp_path: pathlib.Path) -> None:
    settings = {"logging_collector": True, "log_destination": "csvlog", "log_timezone": "UTC"}
    (text,) = named("rds_log_info")
    with running_server(settings=settings) as server, temporary_database(server) as database:
        directory = pathlib.Path(server.data_dir) / "log"
        rds.log_files = {f"error/{path.name}": path for path in directory.glob("*.csv")}
        url = f"postgresql:///{database.name}?host={server.host}&port={server.port}&user={server.superuser}"
        done = playbook(on_localhost(yaml.safe_load(text)), tmp_path, rds, "-v", DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"readable": true' in done.stdout


WINDOW = "surefoot.dbops.rds_maintenance_window"


@pytest.mark.parametrize("as_module", [False, True])
def test_the_same_in_the_worker_and_as_a_module(rds: Shim, tmp_path: pathlib.Path, as_module: bool) -> None:
    task = {
        WINDOW: {"id": "platform-prod", "maintenance_window": "Wed:14:00-Wed:15:00"},
        # Anything in it makes the task an ordinary module.
        "environment": {"ELSEWHERE": "1"} if as_module else {},
    }
    check = playbook(play(task), tmp_path, rds, "--check", "--diff", "-vvv")
    assert check.returncode == 0, check.stdout + check.stderr
    assert "AnsiballZ" in check.stdout if as_module else "AnsiballZ" not in check.stdout
    assert re.search(r"^-.*sun:08:00-sun:09:00", check.stdout, re.M) and re.search(
        r"^\+.*wed:14:00", check.stdout, re.M
    )
    assert rds.writes() == []
    first, second = (playbook(play(task), tmp_path, rds) for _number in range(2))
    assert "changed=1" in first.stdout and "changed=0" in second.stdout, first.stdout + second.stdout
    wrong = {WINDOW: {"id": "platform-prd", "maintenance_window": "sun:08:00-sun:09:00"}}
    failed = playbook(play({**wrong, "environment": task["environment"]}), tmp_path, rds, "--check")
    assert failed.returncode == 2 and "DBInstanceNotFound" in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr


def include(name: str) -> dict[str, t.Any]:
    return {"ansible.builtin.include_role": {"name": "surefoot.dbops.surefoot_rds", "tasks_from": f"{name}.yml"}}


def test_the_role_holds_and_releases_and_notices_a_failover(rds: Shim, tmp_path: pathlib.Path) -> None:
    start = {"surefoot_run_started": {"run_id": "20261122T211518Z-7c3b28", "run_dir": str(tmp_path / "run")}}
    instance = {"db_instance_identifier": "platform-prod", "region": REGION, "horizon": "30m"}
    block = [include(name) for name in ("status", "hold", "snapshot", "status")]
    done = playbook(
        play({"block": block, "always": [include("release")]}),
        tmp_path,
        rds,
        "-e",
        json.dumps({"surefoot_rds": instance, **start}),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "run" / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [(item["criterion"], item["phase"], item["verdict"]) for item in records] == [
        ("rds.no_failover", "preflight", "pass"),
        ("rds.maintenance_held", "apply", "pass"),
        ("rds.snapshot_available", "backup", "pass"),
        ("rds.no_failover", "compare", "pass"),
    ]
    found = client(rds.url).describe_db_instances(DBInstanceIdentifier="platform-prod")["DBInstances"][0]
    assert found["AutoMinorVersionUpgrade"] is True and [item["Key"] for item in found["TagList"]] == ["owner"]
    snapshots = client(rds.url).describe_db_snapshots(SnapshotType="manual")["DBSnapshots"]
    assert [item["DBSnapshotIdentifier"] for item in snapshots] == ["pgmig-platform-prod-20261122t211518z-7c3b28"]


def test_the_role_releases_after_a_failure(rds: Shim, tmp_path: pathlib.Path) -> None:
    failing = {"ansible.builtin.fail": {"msg": "the migration"}}
    block = {"block": [include("hold"), failing], "always": [include("release")]}
    variables = {"surefoot_rds": {"db_instance_identifier": "platform-prod"}}
    done = playbook(play(block), tmp_path, rds, "-e", json.dumps(variables))
    assert done.returncode == 2 and "the migration" in done.stdout + done.stderr
    assert rds.actions("AddTagsToResource", "RemoveTagsFromResource") == ["AddTagsToResource", "RemoveTagsFromResource"]


# --- secrets

QUOTING = f"The canonical request was x-amz-security-token:{TOKEN} and the key {SECRET_KEY}"
REFUSALS = [
    (403, "SignatureDoesNotMatch", QUOTING),
    (403, "InvalidClientTokenId", QUOTING),
    (403, "ExpiredToken", QUOTING),
    (403, "AccessDenied", QUOTING),
    (400, "SomethingNew", QUOTING),
    (400, "InvalidParameterValue", QUOTING),  # whose text is shown, without the secrets
]


@pytest.mark.parametrize("as_module", [False, True])
def test_no_secret_is_in_any_output(rds: Shim, tmp_path: pathlib.Path, as_module: bool) -> None:
    """Options from variables, -vvv, and errors whose text quotes what was sent."""
    environment = {"ELSEWHERE": "1"} if as_module else {}
    given = {
        "id": "platform-prod",
        "access_key": ACCESS_KEY,
        "secret_key": "{{ lookup('ansible.builtin.env', 'THE_KEY') }}",
        "session_token": "{{ lookup('ansible.builtin.env', 'THE_TOKEN') }}",
    }
    wrong = [
        {"endpoint_url": "http://127.0.0.1:9"},  # nobody listens
        {"endpoint_url": f"http://user:{SECRET_KEY}@127.0.0.1:9"},
        {"endpoint_url": "no url"},
        {"region": "no region!"},
        {"aws_config": {"no_such_key": "{{ lookup('ansible.builtin.env', 'THE_KEY') }}"}},
        {"profile": "x"},
        {"aws_ca_bundle": "/no/such/file"},
    ]
    tasks = [
        {
            "surefoot.dbops.rds_status_info": {**given, "aws_config": {"retries": {"total_max_attempts": 1}}, **more},
            "environment": environment,
            "ignore_errors": True,
        }
        for more in wrong
    ]
    done = playbook(play(*tasks), tmp_path, rds, "-vvv", THE_KEY=SECRET_KEY, THE_TOKEN=TOKEN)
    output = done.stdout + done.stderr
    assert f"ignored={len(wrong)}" in output, output
    rds.refusals["DescribeDBInstances"] = list(REFUSALS)
    task = {**tasks[0], "surefoot.dbops.rds_status_info": given}
    refused = playbook(play(*[task] * len(REFUSALS)), tmp_path, rds, "-vvv", THE_KEY=SECRET_KEY, THE_TOKEN=TOKEN)
    assert [code for _status, code, _text in REFUSALS if code not in refused.stdout + refused.stderr] == []
    for text in (output, refused.stdout + refused.stderr):
        assert SECRET_KEY not in text and TOKEN not in text
        assert "Traceback" not in text


def test_without_boto3_there_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    """A Python in which it cannot be imported."""
    blocked = tmp_path / "blocked"
    (blocked / "boto3").mkdir(parents=True)
    (blocked / "boto3" / "__init__.py").write_text("raise ImportError('blocked')\n", encoding="utf-8")
    task = {WINDOW: {"id": "platform-prod", "state": "released"}}
    done = playbook(play(task), tmp_path, None, PYTHONPATH=str(blocked))
    assert done.returncode == 2 and "boto3 is not installed" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_credentials_that_are_nowhere_are_named(rds: Shim, tmp_path: pathlib.Path) -> None:
    nothing = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    done = playbook(play({WINDOW: {"id": "platform-prod", "state": "released"}}), tmp_path, rds, **nothing)
    assert done.returncode == 2 and "no usable credentials" in done.stdout + done.stderr
