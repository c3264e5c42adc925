# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A process that outlives the playbook to remove its shadow, or to resume what it paused.

Ansible runs no ``always`` after Ctrl-C or a kill, and a shadow holds production data, as a paused pool or application
holds up its clients. So whoever makes one for the length of a playbook leaves this process behind, before the first row
is restored and before the pause: it waits for the end of ansible-playbook and of the worker, however they come, removes
what is left of the run's shadow, resumes the pool, or runs the playbook resume_writes, and ends. After a run that did
so itself it finds nothing to do.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._pgbouncer import console_options, resume_if_paused
from ansible_collections.surefoot.dbops.plugins.module_utils._process import lives, start_time
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import ShadowRequest, remove_shadow
from ansible_collections.surefoot.dbops.plugins.module_utils._write_pause import (
    claim_pause,
    find_pause,
    note_path,
    release_pause,
)

_POLL_SECONDS = 0.5
_ATTEMPTS, _RETRY_SECONDS = 10, 30
_WORKERS_SECONDS = 60
_RESUME_PLAYBOOK = "surefoot.dbops.resume_writes"
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


def guard_writes(base: str, host: str, run_id: str, words: t.Sequence[str], extra_vars: t.Sequence[str]) -> None:
    """Called in a worker of ansible-playbook, before writes of ``host`` are paused.

    :param base: directory of the run directories, where the note lies
    :param words: options of ``ansible-playbook`` that lead to the same inventory
    :param extra_vars: each ``@FILE``, or YAML that may hold secrets
    """
    subject = {"base": base, "host": host, "run_id": run_id, "words": [*words], "extra_vars": [*extra_vars]}
    _leave({"task": "writes", **subject}, {})


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


def main() -> None:
    """What the process does."""
    request = json.load(sys.stdin)
    workers: list[tuple[int, int | None]] = []
    while any(lives(pid, started) for pid, started in request["makers"]):
        if _called_off(request):
            return
        workers = _children(request["makers"][0][0]) or workers
        time.sleep(_POLL_SECONDS)
    # A worker that still does what is to be undone, or applies, comes to its end first.
    end = time.monotonic() + _WORKERS_SECONDS
    while request["task"] == "writes" and any(lives(*worker) for worker in workers) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    if _called_off(request):
        return
    undo = {"shadow": _remove_shadow, "pool": _resume_pool, "writes": _resume_writes}[request["task"]]
    for _attempt in range(_ATTEMPTS):
        with contextlib.suppress(SurefootError):
            undo(request)
            return
        time.sleep(_RETRY_SECONDS)


def _children(pid: int) -> list[tuple[int, int | None]]:
    """Processes it started, with their start times; none on a machine that does not say."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
            found = [(child, start_time(child)) for child in map(int, stream.read().split())]
    except OSError:
        return []
    return [(child, started) for child, started in found if started is not None and child != os.getpid()]


def _called_off(request: t.Mapping[str, t.Any]) -> bool:
    if request["task"] == "writes":
        with contextlib.suppress(SurefootError):
            found = find_pause(request["base"], request["host"])
            return found is None or found.run_id != request["run_id"]
        return False
    return "called_off" in request and os.fstat(request["called_off"]).st_size > 0


def _remove_shadow(request: t.Mapping[str, t.Any]) -> None:
    embedded = request["where"] == "embedded"
    options = None if embedded else ConnectionOptions.from_params(request["connection"])
    remove_shadow(options, ShadowRequest(where=request["where"], run_id=request["run_id"]), socket=None)


def _resume_pool(request: t.Mapping[str, t.Any]) -> None:
    resume_if_paused(console_options(request["connection"]), request["database"])


def _resume_writes(request: t.Mapping[str, t.Any]) -> None:
    """With Ansible, and the inventory of the run that was killed: what resumes is a file of tasks.

    :raises EnvironmentProblem: writes are still paused
    """
    base, host = request["base"], request["host"]
    if _called_off(request):
        return
    note = claim_pause(base, host, (os.getpid(), start_time(os.getpid())), guardian=True)
    words = [*request["words"], "--limit", host]
    log = note_path(base, host)[: -len(".json")] + ".log"
    with tempfile.TemporaryDirectory(prefix="surefoot-") as directory:
        given = [*request["extra_vars"], json.dumps({"surefoot_resume_hosts": host, "surefoot_pause_base": base})]
        for number, text in enumerate(given):
            if text.startswith("@"):
                words += ["-e", text]
                continue
            path = os.path.join(directory, f"{number}.yml")
            with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
                stream.write(text)
            words += ["-e", f"@{path}"]
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            subprocess.run(
                [sys.executable, "-m", "ansible", "playbook", _RESUME_PLAYBOOK, *words],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                check=False,
            )
        finally:
            os.close(descriptor)
    if not _called_off(request):
        release_pause(base, note)
        raise EnvironmentProblem(f"{note.line}: {log} says why they could not be resumed")


if __name__ == "__main__":
    main()
