# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The note that writes are paused: who may take it over, and who may not."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, LockBusy, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._process import start_time
from ansible_collections.surefoot.dbops.plugins.module_utils._write_pause import (
    PAUSED,
    RESUMED,
    WritePause,
    begin_pause,
    check_pause_writes,
    claim_pause,
    end_pause,
    find_pause,
    note_path,
    release_pause,
)

ME = (os.getpid(), start_time(os.getpid()))
GONE = (ME[0], 1)  # the pid is there, and is another process by now


def pause(**more: t.Any) -> WritePause:
    given = {
        "host": "db/1",
        "run_id": "r1",
        "since": utc_now(),
        "by": "ops",
        "controller": socket.gethostname(),
        "pause": "/p/down.yml",
        "resume": "/p/up.yml",
        "process": ME,
    }
    return WritePause(**{**given, **more})


@pytest.fixture
def somebody() -> t.Iterator[tuple[int, int | None]]:
    """A process that is neither this one nor one that it descends from."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid, start_time(process.pid)
        process.kill()


def test_the_note_is_there_until_the_end_and_a_second_pause_is_refused(tmp_path: pathlib.Path) -> None:
    base = str(tmp_path / "runs")
    assert find_pause(base, "db/1") is None
    begin_pause(base, pause())
    assert find_pause(base, "db/1") == pause(since=t.cast(WritePause, find_pause(base, "db/1")).since)
    assert find_pause(base, "db") is None
    assert os.stat(note_path(base, "db/1")).st_mode & 0o777 == 0o600
    with pytest.raises(LockBusy, match="paused since .* by run r1"):
        begin_pause(base, pause(run_id="r2"))
    end_pause(base, pause())
    end_pause(base, pause())
    assert find_pause(base, "db/1") is None
    with pytest.raises(PlanError, match="are not paused"):
        claim_pause(base, "db/1", ME)


def test_what_a_dead_process_left_is_taken_over_once(tmp_path: pathlib.Path, somebody: tuple[int, int]) -> None:
    base = str(tmp_path)
    begin_pause(base, pause(process=GONE))
    assert claim_pause(base, "db/1", somebody, guardian=True).guardian
    with pytest.raises(LockBusy, match=f"process {somebody[0]} of"):
        claim_pause(base, "db/1", ME)
    with pytest.raises(LockBusy):
        claim_pause(base, "db/1", ME, force=True)  # it can be seen at work
    release_pause(base, pause())
    mine = claim_pause(base, "db/1", ME)
    assert mine.mine and not mine.guardian and not mine.at_work
    assert (mine.run_id, mine.process) == ("r1", ME)


def test_what_this_process_or_its_parent_answers_for_is_not_taken_from_them(tmp_path: pathlib.Path) -> None:
    parent = (os.getppid(), start_time(os.getppid()))
    begin_pause(str(tmp_path), pause(process=parent, guardian=True))
    found = claim_pause(str(tmp_path), "db/1", ME)
    assert found.process == parent and found.guardian


def test_what_another_machine_paused_takes_a_word(tmp_path: pathlib.Path) -> None:
    begin_pause(str(tmp_path), pause(controller="elsewhere"))
    with pytest.raises(LockBusy, match="on elsewhere"):
        claim_pause(str(tmp_path), "db/1", ME)
    assert claim_pause(str(tmp_path), "db/1", ME, force=True).controller == socket.gethostname()


def test_a_release_leaves_the_note_of_a_later_run_alone(tmp_path: pathlib.Path) -> None:
    begin_pause(str(tmp_path), pause(run_id="r2"))
    release_pause(str(tmp_path), pause(run_id="r1"))
    assert t.cast(WritePause, find_pause(str(tmp_path), "db/1")).process == ME


def test_a_note_that_cannot_be_read_is_not_taken_for_none(tmp_path: pathlib.Path) -> None:
    pathlib.Path(note_path(str(tmp_path), "db/1")).write_text('{"host": "db/1"}', encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        find_pause(str(tmp_path), "db/1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("down.yml", "does not name exactly"),
        ({"pause": "down.yml"}, "does not name exactly"),
        ({"pause": "down.yml", "resume": "up.yml", "when": "always"}, "does not name exactly"),
        ({"pause": "down.yml", "resume": ""}, r"surefoot_pause_writes\.resume"),
        ({"pause": "down.yml", "resume": "up.yml"}, r"resume: there is no file of tasks .*/up\.yml"),
    ],
)
def test_a_mistake_in_the_variable_gets_one_line(tmp_path: pathlib.Path, given: t.Any, message: str) -> None:
    (tmp_path / "down.yml").write_text("- debug:\n", encoding="utf-8")
    with pytest.raises(PlanError, match=message) as caught:
        check_pause_writes(given, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_are_found_from_where_the_command_was_typed(tmp_path: pathlib.Path) -> None:
    for name in ("down.yml", "up.yml"):
        (tmp_path / name).write_text("- debug:\n", encoding="utf-8")
    given = {"pause": "down.yml", "resume": str(tmp_path / "up.yml")}
    assert check_pause_writes(given, str(tmp_path)) == {
        "pause": str(tmp_path / "down.yml"),
        "resume": str(tmp_path / "up.yml"),
    }
    assert check_pause_writes({}, "/") == check_pause_writes(None, "/") == {}


def test_the_evidence_says_since_when_and_for_how_long() -> None:
    note = dataclasses.replace(pause(), since="2026-01-01T00:00:00.000Z")
    paused, resumed = note.evidence(PAUSED, ""), note.evidence(RESUMED, "cron: down")
    assert (paused.verdict, paused.measured) == ("pass", {"since": note.since, "by": "ops"})
    assert resumed.verdict == "fail" and resumed.measured["error"] == "cron: down"
    assert resumed.measured["seconds"] > 0 and resumed.measured["until"] > note.since
