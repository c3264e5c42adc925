# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The edge: the one place where an exception of the library becomes a failed task."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    redact,
    register_secret,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import TIMELINE_FILE, append_lines, utc_now


@dataclasses.dataclass
class Invocation:
    """What a task asks for, validated: all a module's ``run`` may know of Ansible."""

    params: dict[str, t.Any]
    check_mode: bool
    diff: bool
    no_log_values: set[str] = dataclasses.field(default_factory=set)
    warnings: list[str] = dataclasses.field(default_factory=list)
    name: str = ""
    # Shows a line while the task runs; None where nobody can see one before its end.
    say: t.Callable[[str], None] | None = None

    def warn(self, text: str) -> None:
        """Say something that does not fail the task."""
        self.warnings.append(redact(text))

    def never_show(self, value: t.Any) -> None:
        """Scrub this value from whatever the task returns."""
        register_secret(value)
        text = str(value) if value is not None else ""
        if len(text) >= 4:
            self.no_log_values.add(text)

    def perform(self, run: Run) -> dict[str, t.Any]:
        """The task's result: what ``run`` returns, or a failure with one line and the error as an object."""
        for value in (self.params.get("secret_variables") or {}).values():
            self.never_show(value)
        started = utc_now()
        try:
            results = run(self)
        except SurefootError as exc:
            # No traceback and no chained cause: frames may quote what the message redacted.
            results = {"changed": False, **exc.results, "failed": True, "msg": redact(str(exc)), "error": exc.to_dict()}
            if self.params.get("run_dir") and not self.check_mode and results.get("evidence"):
                # Ansible prints a failed task's whole result; what passed lies in the run directory.
                results["evidence"] = [item for item in results["evidence"] if item["verdict"] != "pass"]
        self._note_time(started, results)
        for note in results.pop("notes", ()):
            self.warn(str(note))
        return results

    def _note_time(self, started: str, results: t.Mapping[str, t.Any]) -> None:
        """One line for the timeline of the run's report."""
        run_dir = self.params.get("run_dir")
        if not run_dir or self.check_mode:
            return
        entry = {
            "module": self.name.rpartition(".")[2],
            "state": self.params.get("state"),
            "started": started,
            "finished": utc_now(),
            "failed": bool(results.get("failed")),
            "changed": bool(results.get("changed")),
        }
        try:
            append_lines(os.path.join(str(run_dir), TIMELINE_FILE), [entry])
        except SurefootError as exc:  # the work is done; its result must not be lost
            self.warn(str(exc))


Run = t.Callable[[Invocation], "dict[str, t.Any]"]


def run_module(spec: ArgumentSpec, run: Run) -> None:
    """Run as an Ansible module in a process of its own.

    ``run`` returns the task's result; its key ``notes`` becomes the task's warnings.
    """
    module = AnsibleModule(**spec.to_kwargs())
    invocation = Invocation(
        module.params, module.check_mode, module._diff, module.no_log_values, name=str(module._name)
    )
    results = invocation.perform(run)
    for warning in invocation.warnings:
        module.warn(warning)
    if results.pop("failed", False):
        module.fail_json(**results)
    module.exit_json(**results)


def connection_options(invocation: Invocation) -> ConnectionOptions:
    """The connection the task's options describe; its secrets are scrubbed from whatever the task returns.

    :raises PlanError: see :meth:`ConnectionOptions.from_params`
    """
    options = ConnectionOptions.from_params(invocation.params)
    for secret in options.secrets:
        invocation.never_show(secret)
    return options
