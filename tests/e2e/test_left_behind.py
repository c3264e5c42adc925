# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run leaves behind when ansible-playbook is gone before its end."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import _homes

from .conftest import BIN, UNPROVEN, App, wait_for_the_end

_PATIENCE = 120.0


_READY, _BUILDING = ("ready",), ("building",)


def _shadows(app: App, states: tuple[str, ...] = _READY + _BUILDING) -> list[str]:
    """Clusters that hold the data of this project's runs."""
    runs = {path.name for path in app.run_directories()}
    return [home for home, state in _homes() if state.get("run_id") in runs and state.get("state") in states]


def _to_the_group(playbook: subprocess.Popen[bytes], number: signal.Signals) -> None:
    os.killpg(playbook.pid, number)


def _to_all(playbook: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """The workers, which are groups of their own, as well."""
    children = pathlib.Path(f"/proc/{playbook.pid}/task/{playbook.pid}/children").read_text(encoding="ascii").split()
    for pid in (playbook.pid, *map(int, children)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _to_the_playbook(playbook: subprocess.Popen[bytes], number: signal.Signals) -> None:
    os.kill(playbook.pid, number)


@pytest.mark.parametrize(
    ("number", "send", "moment"),
    [
        pytest.param(signal.SIGINT, _to_the_group, _READY, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, _to_the_playbook, _READY, id="SIGTERM"),
        pytest.param(signal.SIGKILL, _to_the_playbook, _READY, id="SIGKILL"),
        pytest.param(signal.SIGKILL, _to_all, _BUILDING, id="SIGKILL of everything while it is built"),
    ],
)
def test_the_shadow_goes_with_a_playbook_that_was_stopped(
    app: App,
    number: signal.Signals,
    send: t.Callable[[subprocess.Popen[bytes], signal.Signals], None],
    moment: tuple[str, ...],
) -> None:
    app.database.query("CREATE TABLE public.customers AS SELECT i AS id FROM generate_series(1, 100) AS i")
    # Long enough to be stopped in the rehearsal, which this waits for.
    app.migration("001_slow", "CREATE TABLE public.t (); SELECT pg_sleep(100);", "DROP TABLE public.t;")
    policy = {**UNPROVEN, "backup": "required", "restore_proof": True, "rehearsal": "required"}
    words = ["migrate.yml", "-i", "staging", "-e", json.dumps({"surefoot_policy": policy})]
    environment = {**app.environment, "PWD": str(app.directory), "DATABASE_URL": app.url}
    with subprocess.Popen(
        [str(BIN / "ansible-playbook"), *words],
        cwd=app.directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as playbook:
        end = time.monotonic() + _PATIENCE
        while not _shadows(app, moment) and playbook.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        assert _shadows(app), "a shadow is there while the run lasts"
        send(playbook, number)
        wait_for_the_end(playbook, lambda: send(playbook, number))
    end = time.monotonic() + _PATIENCE
    while _shadows(app) and time.monotonic() < end:
        time.sleep(0.1)
    assert _shadows(app) == []
    assert app.database.scalar("SELECT to_regnamespace('surefoot')") is None
