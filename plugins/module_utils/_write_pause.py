# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The note that writes are paused: since when, by which run, what resumes them, and who answers for it.

One file a database beside the run directories, there from before the pause until after the resume. Whoever finds it
and nobody alive who answers for it, resumes: the process that a killed run left behind, the next run, or a person.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import socket
import typing as t
import urllib.parse

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, LockBusy, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._process import is_ancestor, lives
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json

PAUSED, RESUMED = "run.writes_paused", "run.writes_resumed"
RESUME_COMMAND = "ansible-playbook surefoot.dbops.resume_writes -i INVENTORY"
_FILES = ("pause", "resume")

Process = t.Optional[tuple[int, t.Optional[int]]]


@dataclasses.dataclass(frozen=True)
class WritePause:
    """``process`` (pid and start time, of ``controller``) answers for the resume; ``guardian`` when it is the one that
    a killed run left behind. ``pause`` and ``resume`` are absolute paths of task files."""

    host: str
    run_id: str
    since: str
    by: str
    controller: str
    pause: str
    resume: str
    process: Process = None
    guardian: bool = False

    @property
    def at_work(self) -> bool:
        """Whether somebody else may still resume: what runs on another machine cannot be seen from here."""
        if self.process is None or self.mine:
            return False
        return self.controller != socket.gethostname() or lives(*self.process)

    @property
    def mine(self) -> bool:
        """Whether this process, or the one it works for, is to resume."""
        return self.process is not None and self.controller == socket.gethostname() and is_ancestor(*self.process)

    @property
    def line(self) -> str:
        where = "" if self.controller == socket.gethostname() else f" on {self.controller}"
        return f"writes of {self.host} are paused since {self.since} by run {self.run_id}{where} ({self.pause})"

    def seconds(self) -> float:
        """How long ago it began."""
        began = datetime.datetime.fromisoformat(self.since.replace("Z", "+00:00"))
        return max(0.0, (datetime.datetime.now(datetime.timezone.utc) - began).total_seconds())

    def to_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)

    def evidence(self, criterion: str, error: str) -> Evidence:
        """The record that the task file of :data:`PAUSED` or :data:`RESUMED` ended, well when ``error`` is empty."""
        pausing = criterion == PAUSED
        measured: dict[str, t.Any] = {"since": self.since, "by": self.by}
        if not pausing:
            measured.update(until=utc_now(), seconds=round(self.seconds(), 1))
        return Evidence(
            criterion=criterion,
            phase="apply",
            verdict="fail" if error else "pass",
            measured={**measured, "error": error} if error else measured,
            required=f"{os.path.basename(self.pause if pausing else self.resume)} ends well",
            source=f"task file of surefoot_pause_writes.{_FILES[0] if pausing else _FILES[1]}",
            details={"file": self.pause if pausing else self.resume},
        )


def check_pause_writes(value: t.Any, here: str) -> dict[str, str]:
    """The task files with absolute paths; an empty dictionary where no pause is set up.

    :param here: directory that relative paths begin at
    :raises PlanError: a key is missing or unknown, or a file cannot be read
    """
    if not value:
        return {}
    if not isinstance(value, t.Mapping) or sorted(value) != list(_FILES):
        raise PlanError(
            "surefoot_pause_writes does not name exactly a pause and a resume",
            remedy="Give {pause: FILE, resume: FILE}, two files of tasks.",
        )
    found = {key: os.path.join(here, str(value[key] or "")) for key in _FILES}
    for key, path in found.items():
        if not (os.path.isfile(path) and os.access(path, os.R_OK)):
            raise PlanError(
                f"surefoot_pause_writes.{key}: there is no file of tasks {path}",
                remedy="Give an absolute path, such as {{ inventory_dir }}/scale_down.yml.",
            )
    return found


def find_pause(base: str, host: str) -> WritePause | None:
    """The note below this directory of run directories; None when writes are not paused.

    :raises EnvironmentProblem: it cannot be read
    """
    path = note_path(base, host)
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
        process = found.pop("process")
        return WritePause(**found, process=(int(process[0]), process[1]) if process else None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise EnvironmentProblem(
            f"{path} says that writes are paused, and cannot be read: {exc}",
            remedy="Resume them by hand, then remove the file.",
        ) from None


def begin_pause(base: str, pause: WritePause) -> None:
    """Note that writes are about to be paused.

    :raises LockBusy: they are paused already
    :raises EnvironmentProblem: the note cannot be written
    """
    with _locked(base, pause.host):
        found = find_pause(base, pause.host)
        if found is not None:
            raise LockBusy(found.line, remedy=f"When that run is over: {RESUME_COMMAND}.")
        _write(base, pause)


def claim_pause(base: str, host: str, process: Process, *, guardian: bool = False, force: bool = False) -> WritePause:
    """From now on ``process`` of this machine answers for the resume, unless somebody alive does.

    :param force: also when it was paused from another machine
    :raises PlanError: writes are not paused
    :raises LockBusy: the run that paused them, or another one that resumes them, is still at work
    """
    with _locked(base, host):
        found = find_pause(base, host)
        if found is None:
            raise PlanError(f"writes of {host} are not paused")
        elsewhere = found.controller != socket.gethostname()
        if found.at_work and not (elsewhere and force):
            at_work = f"process {found.process[0] if found.process else '?'} of {found.controller}"
            remedy = f"Wait for it, or end it. When it is over: {RESUME_COMMAND}."
            raise LockBusy(f"{found.line}, which is at work ({at_work})", remedy=remedy)
        if not found.mine:
            found = dataclasses.replace(found, process=process, controller=socket.gethostname(), guardian=guardian)
            _write(base, found)
        return found


def release_pause(base: str, pause: WritePause) -> None:
    """The resume failed: whoever comes next may try."""
    with _locked(base, pause.host):
        found = find_pause(base, pause.host)
        if found is not None and found.run_id == pause.run_id:
            _write(base, dataclasses.replace(found, process=None, guardian=False))


def end_pause(base: str, pause: WritePause) -> None:
    """Writes go on.

    :raises EnvironmentProblem: the note cannot be removed
    """
    with _locked(base, pause.host):
        path = note_path(base, pause.host)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise EnvironmentProblem(f"cannot remove {path}: {exc.strerror}", remedy="Remove it.") from exc


def note_path(base: str, host: str) -> str:
    """Where the note lies while writes are paused."""
    return os.path.join(base, f"writes-paused-{urllib.parse.quote(host, safe='')}.json")


def _write(base: str, pause: WritePause) -> None:
    write_json(base, os.path.basename(note_path(base, pause.host)), pause.to_dict())


@contextlib.contextmanager
def _locked(base: str, host: str) -> t.Iterator[None]:
    """Around reading the note and writing it; not around a resume, which takes its time."""
    path = note_path(base, host)[: -len(".json")] + ".lock"
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot write {path}: {exc.strerror}", remedy="Set surefoot_run_dir to a directory you may write to."
        ) from exc
    with os.fdopen(descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
