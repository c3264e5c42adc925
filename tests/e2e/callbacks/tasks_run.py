# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A callback that notes each task that ran, by its action: one JSON line in the file that ``TASKS_RUN`` names."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: tasks_run
type: aggregate
short_description: Notes each task that ran
description: One JSON line a task that was not skipped, with its action and whether it changed something.
requirements:
  - The environment variable E(TASKS_RUN) names the file.
"""


class CallbackModule(CallbackBase):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "tasks_run"
    CALLBACK_NEEDS_ENABLED = True

    def _note(self, result: t.Any) -> None:
        line = {"action": result._task.resolved_action, "changed": bool(result._result.get("changed"))}
        with open(os.environ["TASKS_RUN"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._note(result)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._note(result)
