# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A process that outlives the playbook to remove its shadow, or to resume what it paused.

Ansible runs no ``always`` after Ctrl-C or a kill, and a shadow holds production data, as a paused pool holds up its
clients. So whoever makes one for the length of a playbook leaves this process behind, before the first row is restored
and before the pause: it waits for the end of ansible-playbook and of the worker, however they come, removes what is
left of the run's shadow or resumes the pool, and ends. After a run that did so itself it finds nothing to do.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import subprocess
import sys
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._pgbouncer import console_options, resume_if_paused
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
    _leave({"task": "shadow", "run_id": run_id, "where": params.get("where") or "embedded"}, params)


def guard_pool(params: t.Mapping[str, t.Any], directory: str) -> str:
    """Called in a worker of ansible-playbook, before it pauses a database of PgBouncer; what to give to
    :func:`call_off`.

    :param params: the options of the task that pauses it
    :param directory: one that lives as long as the playbook and is nobody else's
    """
    token = f"{_pool_prefix(params, directory)}{os.getpid()}"
    descriptor = os.open(token, os.O_RDONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        # Kept open by the guardian: the file is gone with the playbook, perhaps before the guardian looks again.
        _leave({"task": "pool", "database": str(params["database"]), "called_off": descriptor}, params, descriptor)
    finally:
        os.close(descriptor)
    return token


def call_off(token: str) -> None:
    """Its guardian has nothing to do: nothing was paused here, or it is resumed."""
    with open(token, "w", encoding="ascii") as stream:
        stream.write("off")


def call_off_all(params: t.Mapping[str, t.Any], directory: str) -> None:
    """The guardians that tasks of this playbook left for the database that was resumed."""
    for token in glob.glob(f"{glob.escape(_pool_prefix(params, directory))}*"):
        call_off(token)


def _pool_prefix(params: t.Mapping[str, t.Any], directory: str) -> str:
    keywords = console_options(params).keywords
    subject = json.dumps([keywords.get("host"), keywords.get("port"), str(params["database"])])
    return os.path.join(directory, f"surefoot-pool-{hashlib.sha256(subject.encode()).hexdigest()[:16]}-")


def _leave(request: dict[str, t.Any], params: t.Mapping[str, t.Any], *descriptors: int) -> None:
    playbook = os.getppid()
    if playbook <= 1:  # the first process of a container takes everything with it
        return
    request["makers"] = [(pid, start_time(pid)) for pid in (playbook, os.getpid())]
    request["connection"] = {name: params[name] for name in _LOGIN if params.get(name)}
    root = os.path.abspath(__file__).rpartition(f"{os.sep}ansible_collections{os.sep}")[0]
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=descriptors,
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
        if _called_off(request):
            return
        time.sleep(_POLL_SECONDS)
    if _called_off(request):
        return
    undo = {"shadow": _remove_shadow, "pool": _resume_pool}[request["task"]]
    for _attempt in range(_ATTEMPTS):
        with contextlib.suppress(SurefootError):
            undo(request)
            return
        time.sleep(_RETRY_SECONDS)


def _called_off(request: t.Mapping[str, t.Any]) -> bool:
    return "called_off" in request and os.fstat(request["called_off"]).st_size > 0


def _remove_shadow(request: t.Mapping[str, t.Any]) -> None:
    embedded = request["where"] == "embedded"
    options = None if embedded else ConnectionOptions.from_params(request["connection"])
    remove_shadow(options, ShadowRequest(where=request["where"], run_id=request["run_id"]), socket=None)


def _resume_pool(request: t.Mapping[str, t.Any]) -> None:
    resume_if_paused(console_options(request["connection"]), request["database"])


if __name__ == "__main__":
    main()
