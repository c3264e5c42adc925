# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each Railway module, and the lookup, against a bare script that sends the same requests, plus one ping task.

Both against the tests' stand-in on this machine, so no network is in either time. A round runs both, one after the
other and in turn first; the median of the rounds counts.

It judges nothing; the numbers depend on the machine.

    python tests/benchmarks/bench_cloud_railway.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.plugins.module_utils._railway import QUERIES  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.railway_server import (  # noqa: E402
    ACCOUNT_TOKEN,
    RailwayServer,
    lancio_world,
    railway_server,
)

ANSIBLE = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
# What somebody would write by hand: no retries, no checks of what comes back.
SCRIPT = """
import json, sys, urllib.request
url, token, requests = json.load(sys.stdin)
for request in requests:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + token}
    call = urllib.request.Request(url, json.dumps(request).encode(), headers)
    answer = json.load(urllib.request.urlopen(call, timeout=30))
    assert answer["data"], answer
"""
SERVICES = [{"name": "Redis", "kind": "redis"}, {"name": "MongoDB", "kind": "mongodb"}]
WHERE = {"project": "lancio", "environment": "production"}
LOOKUP = (
    "{{ lookup('surefoot.dbops.railway_variable', service='Redis', kind='redis', project='lancio',"
    " environment='production', api_url=api_url) | length }}"
)
TASKS: dict[str, dict[str, t.Any]] = {
    "railway_service_info": {"surefoot.dbops.railway_service_info": {"services": SERVICES, **WHERE}},
    "the same, as a module": {
        "surefoot.dbops.railway_service_info": {"services": SERVICES, **WHERE},
        "environment": {"ELSEWHERE": "1"},  # keeps it out of the worker
    },
    "railway_variables_info": {
        "surefoot.dbops.railway_variables_info": {"services": SERVICES, "endpoint": "private", **WHERE}
    },
    "railway_variable (lookup)": {"ansible.builtin.debug": {"msg": LOOKUP}},
}
PING = {"ansible.builtin.ping": {}}


def play(directory: pathlib.Path, url: str, task: dict[str, t.Any]) -> float:
    """Seconds of a playbook with this one task."""
    content = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}", "api_url": url},
        "module_defaults": {"group/surefoot.dbops.railway": {"api_url": "{{ api_url }}"}},
        "tasks": [task],
    }
    playbook = directory / "play.yml"
    playbook.write_text(yaml.safe_dump([content]), encoding="utf-8")
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "tree"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "RAILWAY_API_TOKEN": ACCOUNT_TOKEN,
    }
    started = time.perf_counter()
    done = subprocess.run(
        [ANSIBLE, "-i", "localhost,", str(playbook)], env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stdout + done.stderr
    return seconds


def by_hand(directory: pathlib.Path, url: str, requests: list[dict[str, t.Any]]) -> float:
    """Seconds of the bare script and of a playbook with one ping."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps([url, ACCOUNT_TOKEN, requests]), text=True, check=True
    )
    return time.perf_counter() - started + play(directory, url, PING)


def requests_of(server: RailwayServer, directory: pathlib.Path, task: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    """What the task asks, to be asked again."""
    server.seen.clear()
    play(directory, server.url, task)
    return [
        {"query": QUERIES[item["operation"]], "variables": item["variables"], "operationName": item["operation"]}
        for item in server.seen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    world, _project, _redis, _mongo = lancio_world()
    # Private alone, so that no name is looked up.
    with railway_server(world) as server, tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        for label, task in TASKS.items():
            requests = requests_of(server, directory, task)
            ours: list[float] = []
            theirs: list[float] = []
            for number in range(arguments.rounds):
                for mine in (True, False) if number % 2 == 0 else (False, True):
                    if mine:
                        ours.append(play(directory, server.url, task))
                    else:
                        theirs.append(by_hand(directory, server.url, requests))
            ratio = statistics.median(ours) / statistics.median(theirs)
            print(
                f"{label:26s} {len(requests)} requests: {statistics.median(ours):.2f} s,"
                f" script and ping {statistics.median(theirs):.2f} s, ratio {ratio:.2f}"
                f" ({min(ours):.2f}-{max(ours):.2f} s, {min(theirs):.2f}-{max(theirs):.2f} s)"
            )


if __name__ == "__main__":
    main()
