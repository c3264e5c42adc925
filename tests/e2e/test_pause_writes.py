# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes of an application that are paused around the apply, by its operators' own tasks, and always resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
import typing as t

import psycopg2
import pytest
import yaml

from ansible_collections.surefoot.dbops.plugins.module_utils._write_pause import find_pause

from .conftest import BIN, UNPROVEN, App, Outcome, wait_for_the_end

_PATIENCE = 120.0


class Writer:
    """An application: writes as long as the file that stands for its pause is not there."""

    def __init__(self, dsn: str, marker: pathlib.Path) -> None:
        self._dsn, self._marker = dsn, marker
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.written = 0

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self._stopped.set()
        self._thread.join(10)

    def _write(self) -> None:
        with contextlib.closing(psycopg2.connect(self._dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                while not self._stopped.wait(0.01):
                    if not self._marker.exists():
                        cursor.execute("INSERT INTO public.orders DEFAULT VALUES")
                        self.written += 1

    def goes_on(self) -> bool:
        before, end = self.written, time.monotonic() + _PATIENCE
        while self.written == before and time.monotonic() < end:
            time.sleep(0.01)
        return self.written > before


@dataclasses.dataclass
class Shop:
    """An application with a migration that is pending, and the files that pause and resume its writes."""

    app: App
    marker: pathlib.Path
    tasks: pathlib.Path

    @property
    def files(self) -> dict[str, str]:
        return {key: str(self.tasks / f"{key}.yml") for key in ("pause", "resume")}

    @property
    def base(self) -> str:
        return str(self.app.directory / "surefoot-runs")

    def write(self, key: str, *tasks: dict[str, t.Any]) -> None:
        (self.tasks / f"{key}.yml").write_text(yaml.safe_dump([*tasks], sort_keys=False), encoding="utf-8")

    def mark(self, state: str) -> dict[str, t.Any]:
        """The task that pauses the writer (touch), or resumes it (absent); it is noted in a log."""
        done, program = ("paused", "touch") if state == "touch" else ("resumed", "rm -f")
        return {"name": f"Be {done}", "ansible.builtin.shell": f"echo {done} >> {self.log}; {program} {self.marker}"}

    @property
    def log(self) -> pathlib.Path:
        return self.tasks / "log"

    def happened(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").split() if self.log.exists() else []

    def migrate(self, *words: str, **variables: t.Any) -> Outcome:
        return self.app.migrate(*words, **{"surefoot_pause_writes": self.files, **variables})

    def verdicts(self) -> dict[str, str]:
        return {name: item["verdict"] for name, item in self.app.evidence().items() if name.startswith("run.")}


@pytest.fixture
def shop(app: App, tmp_path: pathlib.Path) -> t.Iterator[Shop]:
    app.database.query("CREATE TABLE public.orders (id bigint GENERATED ALWAYS AS IDENTITY)")
    marker, tasks = tmp_path / "marker", tmp_path / "tasks"
    tasks.mkdir()
    found = Shop(app, marker, tasks)
    found.write("pause", found.mark("touch"))
    found.write("resume", found.mark("absent"))
    app.migration(
        "001_paused",
        # The migration itself sees whether somebody writes meanwhile.
        "CREATE TABLE public.seen AS SELECT count(*) AS n FROM public.orders; SELECT pg_sleep(0.5);\n"
        "INSERT INTO public.seen SELECT count(*) FROM public.orders;",
        "DROP TABLE public.seen;",
    )
    yield found
    assert find_pause(found.base, "platform") is None, "nothing is left paused"


# As in the guide: who was writing when the pause began comes to an end first.
_QUIET = {
    "name": "Wait until nobody writes",
    "surefoot.dbops.postgresql_verification": {
        "login_url": "{{ surefoot_database_url }}",
        "checks": [
            {
                "name": "no transaction of a client has written",
                "query": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND backend_xid IS NOT NULL",
                "expect": {"scalar": 0},
            }
        ],
    },
    "register": "quiet",
    "until": "quiet is succeeded",
    "retries": 30,
    "delay": 1,
}


def test_nobody_writes_during_the_apply_and_everybody_afterwards(shop: Shop) -> None:
    shop.write("pause", shop.mark("touch"), _QUIET)
    with Writer(shop.app.database.dsn, shop.marker) as writer:
        assert writer.goes_on()
        outcome = shop.migrate(surefoot_requested_by="A. Weber")
        assert outcome.returncode == 0, outcome.output
        assert not shop.marker.exists() and writer.goes_on()
    seen = [row[0] for row in shop.app.database.query("SELECT n FROM public.seen")]
    assert len(seen) == 2 and len(set(seen)) == 1
    assert "Writes were paused for" in outcome.summary()
    paused, resumed = (shop.app.evidence()[f"run.writes_{word}"] for word in ("paused", "resumed"))
    assert (paused["verdict"], resumed["verdict"]) == ("pass", "pass")
    assert paused["measured"]["by"] == "A. Weber"
    assert resumed["measured"]["since"] == paused["measured"]["since"] and resumed["measured"]["seconds"] >= 0.5
    assert shop.happened() == ["paused", "resumed"]

    again = shop.migrate()  # nothing is pending
    assert (again.returncode, again.changed) == (0, 0), again.output
    assert shop.happened() == ["paused", "resumed"] and "Writes were paused" not in again.summary()


def test_a_migration_that_fails_resumes(shop: Shop) -> None:
    shop.app.migration("002_broken", "SELEC 1;", "SELECT 1;")
    with Writer(shop.app.database.dsn, shop.marker) as writer:
        outcome = shop.migrate()
        assert outcome.returncode != 0 and "syntax_error" in outcome.summary()
        assert not shop.marker.exists() and writer.goes_on()
    # The first one was rolled back while nobody wrote.
    assert shop.app.applied() == []
    assert shop.happened() == ["paused", "resumed"]
    assert shop.verdicts() == {"run.writes_paused": "pass", "run.writes_resumed": "pass"}


def test_a_pause_that_fails_half_way_is_undone_and_nothing_is_applied(shop: Shop) -> None:
    shop.write("pause", shop.mark("touch"), {"name": "Disable cron", "ansible.builtin.command": "/bin/false"})
    outcome = shop.migrate()
    assert outcome.returncode != 0
    assert shop.app.applied() == [] and shop.app.database.scalar("SELECT to_regclass('public.seen')") is None
    assert not shop.marker.exists() and shop.happened() == ["paused", "resumed"]
    assert "FAILED in phase pause; no migration was applied" in outcome.summary()
    assert "Disable cron" in outcome.summary() and "pause.yml failed" in outcome.summary()
    assert shop.verdicts() == {"run.writes_paused": "fail", "run.writes_resumed": "pass"}


def test_a_resume_that_fails_says_so_last_and_the_next_run_does_it_first(shop: Shop) -> None:
    switch = shop.tasks / "works"
    shop.write(
        "resume",
        {"name": "Enable cron", "ansible.builtin.command": f"test -e {switch}"},
        shop.mark("absent"),
    )
    outcome = shop.migrate()
    assert outcome.returncode != 0
    assert shop.app.applied() == ["001_paused"] and shop.marker.exists()
    assert "FAILED in phase resume; applied before that, and recorded: 001_paused" in outcome.summary()
    assert "STILL ARE" in outcome.summary() and "surefoot.dbops.resume_writes" in outcome.summary()
    assert shop.verdicts() == {"run.writes_paused": "pass", "run.writes_resumed": "fail"}

    look = shop.app.playbook(
        *("monitor.yml", "-i", "staging", "-e", json.dumps({"surefoot_policy": UNPROVEN})),
        *("-e", f"surefoot_go={shop.app.run_directories()[-1]}"),
        env={"DATABASE_URL": shop.app.url},
    )
    assert "are paused since" in look.output and shop.marker.exists()

    switch.touch()
    again = shop.app.migrate()  # also a command that knows nothing of the pause
    assert again.returncode == 0, again.output
    assert "They are resumed before anything else" in again.output
    assert not shop.marker.exists()


def test_a_file_that_is_not_there_or_cannot_be_run_is_refused_before_anything(shop: Shop) -> None:
    (shop.tasks / "resume.yml").unlink()
    missing = shop.migrate()
    assert missing.returncode != 0
    assert "surefoot_pause_writes.resume: there is no file of tasks" in missing.error
    shop.write("resume", {"name": "A typo", "ansible.builtin.comand": "true"})
    typo = shop.migrate()
    assert "surefoot_pause_writes.resume" in typo.error and "ansible.builtin.comand" in typo.error
    half = shop.migrate(surefoot_pause_writes={"pause": shop.files["pause"]})
    assert "exactly a pause and a resume" in half.error
    assert shop.happened() == [] and shop.app.run_directories() == []


def test_check_mode_runs_neither_and_says_so(shop: Shop) -> None:
    outcome = shop.migrate("--check")
    assert outcome.returncode == 0, outcome.output
    assert shop.happened() == []
    assert "Writes would be paused by" in outcome.summary() and "neither was run" in outcome.summary()


def test_a_run_that_stops_at_the_gate_pauses_in_the_part_that_applies(shop: Shop) -> None:
    policy = {"criteria": {**UNPROVEN["criteria"], "attestation.frontends_scaled": "required"}}
    first = shop.migrate(policy=policy, surefoot_stop_after="gate")
    assert first.returncode == 0, first.output
    assert shop.happened() == []
    go = str(shop.app.run_directories()[-1])
    without = shop.app.migrate(policy=policy, surefoot_go=go)
    assert "was begun with surefoot_pause_writes" in without.error
    second = shop.migrate(policy=policy, surefoot_go=go)
    assert second.returncode == 0, second.output
    assert shop.happened() == ["paused", "resumed"] and shop.app.applied() == ["001_paused"]

    shop.app.migration("002_more", "SELECT 1;", "SELECT 1;")
    nobody = shop.app.migrate(policy=policy)
    assert nobody.returncode != 0 and "attestation.frontends_scaled" in nobody.summary()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGKILL, id="SIGKILL")]
)
def test_a_run_that_is_killed_while_nobody_writes_resumes(shop: Shop, number: signal.Signals) -> None:
    shop.app.migration("002_slow", "SELECT pg_sleep(100);", "SELECT 1;")
    (shop.app.directory / "secret.yml").write_text("surefoot_login: {}\n", encoding="utf-8")
    given = json.dumps({"surefoot_policy": UNPROVEN, "surefoot_pause_writes": shop.files})
    words = ["migrate.yml", "-i", "staging", "-e", given, "-e", "@secret.yml", "-e", "team=dba"]
    environment = {**shop.app.environment, "PWD": str(shop.app.directory), "DATABASE_URL": shop.app.url}
    with Writer(shop.app.database.dsn, shop.marker) as writer:
        with subprocess.Popen(
            [str(BIN / "ansible-playbook"), *words],
            cwd=shop.app.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as playbook:
            _wait(lambda: shop.app.applied() == ["001_paused"] or playbook.poll() is not None)
            assert shop.marker.exists() and playbook.poll() is None, "it is paused while the run lasts"
            send = os.killpg if number == signal.SIGINT else os.kill
            send(playbook.pid, number)
            wait_for_the_end(playbook, lambda: send(playbook.pid, number))
        _wait(lambda: find_pause(shop.base, "platform") is None)
        assert not shop.marker.exists() and writer.goes_on()
    assert shop.happened() == ["paused", "resumed"]


def test_what_a_killed_run_left_is_resumed_by_hand(shop: Shop) -> None:
    """Where nothing of the killed run is left, such as a container, only the note tells."""
    switch = shop.tasks / "works"
    shop.write("resume", {"name": "Wait", "ansible.builtin.command": f"test -e {switch}"}, shop.mark("absent"))
    assert shop.migrate().returncode != 0
    switch.touch()
    words = ("surefoot.dbops.resume_writes", "-i", "staging")
    outcome = shop.app.playbook(*words)
    assert outcome.returncode == 0, outcome.output
    assert not shop.marker.exists()
    again = shop.app.playbook(*words)
    assert (again.returncode, again.changed) == (0, 0), again.output


def _wait(condition: t.Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()
