# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import socket
import time
import typing as t

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.parsing.splitter import parse_kv
from ansible.plugins.action import ActionBase

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LockBusy, PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import record, utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Actor
from ansible_collections.surefoot.dbops.plugins.module_utils._process import start_time
from ansible_collections.surefoot.dbops.plugins.module_utils._write_pause import (
    PAUSED,
    RESUMED,
    WritePause,
    begin_pause,
    claim_pause,
    end_pause,
    find_pause,
    release_pause,
)
from ansible_collections.surefoot.dbops.plugins.modules.write_pause import REQUIRED_IF, argument_spec
from ansible_collections.surefoot.dbops.plugins.plugin_utils._guardian import guard_writes

_POLL_SECONDS = 1.0
# What leads ansible-playbook to the same inventory and hosts; a password that was typed is not to be had again.
_OPTIONS = {
    "inventory": "-i",
    "vault_ids": "--vault-id",
    "vault_password_files": "--vault-password-file",
    "remote_user": "-u",
    "private_key_file": "--private-key",
}


class ActionModule(ActionBase):
    """Keeps the note on the controller. Documented in plugins/modules/write_pause.py."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=argument_spec(), required_if=REQUIRED_IF)
        host = str((task_vars or {}).get("inventory_hostname", "database"))
        # Not os.getcwd() first: PWD is the directory as the user typed it, links included.
        args["run_base"] = os.path.join(os.environ.get("PWD") or os.getcwd(), args["run_base"] or "surefoot-runs")
        result.update(changed=False, pause={})
        try:
            if args["state"] == "found":
                result["pause"] = self._find(host, args)
            elif self._task.check_mode:
                result.update(skipped=True, skipped_reason="check mode neither pauses nor resumes writes")
            elif args["state"] == "begun":
                result["pause"] = _begin(host, args)
            else:
                result["pause"] = _ended(host, args)
        except SurefootError as exc:
            raise AnsibleActionFail(str(exc)) from None
        return result

    def _find(self, host: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        base, end = args["run_base"], time.monotonic() + args["timeout"]
        while True:
            found = find_pause(base, host)
            if found is None or self._task.check_mode:
                return {}
            # What a killed run left behind is resuming them, and may come to its end.
            if not (found.guardian and found.at_work) or time.monotonic() > end:
                break
            time.sleep(_POLL_SECONDS)
        was_mine = found.mine
        try:
            found = claim_pause(base, host, _playbook(), force=args["force"])
        except PlanError:  # meanwhile they go on
            return {}
        if not was_mine:
            guard_writes(base, host, found.run_id, *_way_here())
        here = os.environ.get("PWD") or os.getcwd()
        paths = (found.resume, os.path.join(here, args["resume"] or ""))
        path = next((path for path in paths if os.path.isfile(path)), None)
        if path is None:
            raise PlanError(
                f"{found.line}; the file of tasks {found.resume} that resumes them is not there any more",
                remedy="Restore it, or give another one as surefoot_pause_writes.resume.",
            )
        return {**found.to_dict(), "resume": path}


def _begin(host: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
    actor = Actor.current(args["requested_by"], None)
    pause = WritePause(
        host=host,
        run_id=args["run_id"],
        since=utc_now(),
        by=actor.requested_by or f"{actor.os_user}@{actor.host}",
        controller=socket.gethostname(),
        pause=args["pause"],
        resume=args["resume"],
        process=_playbook(),
    )
    begin_pause(args["run_base"], pause)
    guard_writes(args["run_base"], host, pause.run_id, *_way_here())
    return pause.to_dict()


def _ended(host: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
    """A task file ended, well when there is no ``error``."""
    base, error = args["run_base"], " ".join(str(args["error"] or "").split())
    pause = find_pause(base, host)
    if pause is None or not pause.mine:
        raise LockBusy(f"writes of {host} are not paused by this run", remedy="Look which run paused or resumed them.")
    paused = args["state"] == "paused"
    if not paused and not error:
        end_pause(base, pause)
    if args["run_id"] == pause.run_id:  # not into the evidence of a run that has nothing to do with it
        record(args["run_dir"], [pause.evidence(PAUSED if paused else RESUMED, error)])
    if error and not paused:
        release_pause(base, pause)
        raise PlanError(f"{pause.resume} failed: {error}. {pause.line[:1].upper()}{pause.line[1:]}")
    if error:
        raise PlanError(f"{pause.pause} failed: {error}", remedy="Nothing is applied, and writes are resumed.")
    return {**pause.to_dict(), "seconds": round(pause.seconds(), 1)}


def _playbook() -> tuple[int, int | None]:
    """The process that ends with this playbook; this one is its worker."""
    return os.getppid(), start_time(os.getppid())


def _way_here() -> tuple[list[str], list[str]]:
    """Options for an ``ansible-playbook`` that goes to the same hosts, and extra variables: each ``@FILE``, or YAML."""
    words = []
    for name, option in _OPTIONS.items():
        given = context.CLIARGS.get(name) or ()
        for value in [given] if isinstance(given, str) else given:
            words += [option, str(value)]
    extra = [str(text) for text in context.CLIARGS.get("extra_vars") or ()]
    return words, [text if text[:1] in "@[{" else json.dumps(parse_kv(text)) for text in extra]
