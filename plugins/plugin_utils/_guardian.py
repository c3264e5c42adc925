# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A process that outlives the playbook to remove its shadow.

Ansible runs no ``always`` after Ctrl-C or a kill, and a shadow holds production data. So whoever makes one for the
length of a playbook leaves this process behind, before the first row is restored: it waits for the end of
ansible-playbook and of the worker that makes the shadow, however they come, removes what is left of the run's shadow,
and ends. After a run that removed its shadow itself it finds nothing to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._process import start_time
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import ShadowRequest, remove_shadow

_POLL_SECONDS = 0.5
_ATTEMPTS, _RETRY_SECONDS = 10, 30
_LOGIN = ("login_url", "login_host", "login_port", "login_user", "login_password", "login_db", "login_unix_socket",
          "ssl_mode", "ca_cert", "ssl_cert", "ssl_key", "session_role", "connect_params")  # fmt: skip


def leave_guardian(params: t.Mapping[str, t.Any], run_id: str) -> None:
    """Called in a worker of ansible-playbook, before the shadow of ``run_id`` is made.

    :param params: the options of the task that makes it
    """
    playbook = os.getppid()
    if playbook <= 1:  # the first process of a container takes everything with it
        return
    request = {
        "makers": [(pid, start_time(pid)) for pid in (playbook, os.getpid())],
        "run_id": run_id,
        "where": params.get("where") or "embedded",
        "connection": {name: params[name] for name in _LOGIN if params.get(name)},
    }
    root = os.path.abspath(__file__).rpartition(f"{os.sep}ansible_collections{os.sep}")[0]
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the terminal's processes
    )
    # Not by argument or environment, which other users may see.
    stdin = t.cast("t.IO[bytes]", child.stdin)
    with contextlib.suppress(BrokenPipeError):
        stdin.write(json.dumps(request).encode())
        stdin.close()


def _lives(pid: int, started: int | None) -> bool:
    if started is not None:
        return start_time(pid) == started
    try:  # a machine without /proc
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def main() -> None:
    """What the process does."""
    request = json.load(sys.stdin)
    while any(_lives(pid, started) for pid, started in request["makers"]):
        time.sleep(_POLL_SECONDS)
    embedded = request["where"] == "embedded"
    for _attempt in range(_ATTEMPTS):
        with contextlib.suppress(SurefootError):
            options = None if embedded else ConnectionOptions.from_params(request["connection"])
            remove_shadow(options, ShadowRequest(where=request["where"], run_id=request["run_id"]), socket=None)
            return
        time.sleep(_RETRY_SECONDS)


if __name__ == "__main__":
    main()
