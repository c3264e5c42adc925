# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of each RDS module costs against a bare boto3 script that makes the same calls, plus a playbook with one
ping task.

Whole processes, in turn, against one local moto server. It judges nothing: the numbers depend on the machine, the
ratios much less.

    python tests/benchmarks/bench_cloud_rds.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.tests.support.pgserver import (  # noqa: E402
    running_server,
    temporary_database,
)
from ansible_collections.surefoot.dbops.tests.support.rds_shim import (  # noqa: E402
    ACCESS_KEY,
    REGION,
    SECRET_KEY,
    Shim,
    client,
    make_instance,
    moto_server,
    running_shim,
)

PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
"""
PING = "    - ansible.builtin.ping:\n"
START = """
import boto3, os
rds = boto3.client("rds", endpoint_url=os.environ["AWS_URL"], region_name=os.environ["AWS_REGION"])
name = "platform-prod"
found = rds.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"][0]
"""
# Module: its options, and the script that makes the same calls.
CASES: dict[str, tuple[str, str]] = {
    "rds_maintenance_window": ("preferred_maintenance_window: sun:08:00-sun:09:00", ""),
    "rds_maintenance_window, held": (
        "state: held",
        """
rds.describe_pending_maintenance_actions(ResourceIdentifier=found["DBInstanceArn"])
""",
    ),
    "rds_snapshot": (
        "db_snapshot_identifier: pgmig-bench",
        'rds.describe_db_snapshots(DBSnapshotIdentifier="pgmig-bench")\n',
    ),
    "rds_status_info": (
        "since: 1h",
        """
import datetime
rds.describe_pending_maintenance_actions(ResourceIdentifier=found["DBInstanceArn"])
since = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
rds.describe_events(SourceIdentifier=name, SourceType="db-instance", StartTime=since)
rds.describe_blue_green_deployments()
""",
    ),
    "rds_log_info": (
        """since: "{{ '%Y-%m-%dT%H:%M:%SZ' | strftime(utc=true) }}"
        login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}\"""",
        """
import psycopg2, time
connection = psycopg2.connect(os.environ["DATABASE_URL"])
connection.autocommit = True
since = int(time.time() * 1000)
connection.cursor().execute("DO $$ BEGIN RAISE LOG 'marker of the script'; END $$")
for file in rds.describe_db_log_files(DBInstanceIdentifier=name, FileLastWritten=since - 60000)["DescribeDBLogFiles"]:
    marker = "0"
    while True:
        which = {"DBInstanceIdentifier": name, "LogFileName": file["LogFileName"]}
        part = rds.download_db_log_file_portion(**which, Marker=marker)
        marker = part["Marker"]
        if not part["AdditionalDataPending"]:
            break
""",
    ),
}


def timed(argv: list[str], environment: dict[str, str]) -> float:
    """Wall seconds of a whole process; it must succeed."""
    started = time.perf_counter()
    done = subprocess.run(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout[-4000:]}")
    return seconds


def bench(shim: Shim, directory: pathlib.Path, rounds: int, url: str) -> None:
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "tree"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_URL": shim.url,
        "DATABASE_URL": url,
    }
    ansible = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
    ping = directory / "ping.yml"
    ping.write_text(PLAYBOOK + PING, encoding="utf-8")
    for number, (title, (options, script)) in enumerate(CASES.items()):
        module = title.partition(",")[0]
        task = f"    - surefoot.dbops.{module}:\n        db_instance_identifier: platform-prod\n        {options}\n"
        play, bare = directory / f"{number}.yml", directory / f"{number}.py"
        play.write_text(PLAYBOOK + task, encoding="utf-8")
        bare.write_text(START + script, encoding="utf-8")
        commands = {
            "script": [sys.executable, str(bare)],
            "ping": [ansible, "-i", "localhost,", str(ping)],
            "task": [ansible, "-i", "localhost,", str(play)],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for argv in commands.values():
            timed(argv, environment)  # warm-up; the hold is made here, and there afterwards
        for _round in range(rounds):
            for name, argv in commands.items():
                seconds[name].append(timed(argv, environment))
        median = {name: statistics.median(values) for name, values in seconds.items()}
        ratio = median["task"] / (median["script"] + median["ping"])
        print(
            f"  {title:32} script {median['script']:.2f} s, ping {median['ping']:.2f} s, task {median['task']:.2f} s,"
            f" task / (script + ping) {ratio:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    settings: dict[str, t.Any] = {"logging_collector": True, "log_destination": "csvlog", "log_timezone": "UTC"}
    with contextlib.ExitStack() as stack:
        shim = stack.enter_context(running_shim(stack.enter_context(moto_server())))
        server = stack.enter_context(running_server(settings=settings))
        database = stack.enter_context(temporary_database(server))
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_instance(shim.url)
        client(shim.url).create_db_snapshot(DBSnapshotIdentifier="pgmig-bench", DBInstanceIdentifier="platform-prod")
        logs = pathlib.Path(server.data_dir) / "log"
        shim.log_files = {f"error/{path.name}": path for path in logs.glob("*.csv")}
        url = f"postgresql:///{database.name}?host={server.host}&port={server.port}&user={server.superuser}"
        print(f"RDS modules, median of {arguments.rounds}, {os.cpu_count()} cores:")
        bench(shim, directory, arguments.rounds, url)


if __name__ == "__main__":
    main()
