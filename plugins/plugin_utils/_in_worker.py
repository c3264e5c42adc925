# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Runs a module inside Ansible's worker process when its target is this very machine and Python.

Packing the library, starting a Python and importing it again costs most of a second a task; the database work of a
run with nothing to do takes a tenth of that. Where a task goes anywhere else (another host, another user, another
Python, in the background) it runs as the ordinary module it is.
"""

from __future__ import annotations

import json
import os
import sys
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, Run

_CONSTRAINTS = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")

display = Display()


class LibraryAction(ActionBase):
    """Base of the action plugins; each has the name of its module."""

    _supports_check_mode = True
    _supports_async = True

    argument_spec: t.Callable[[], ArgumentSpec]
    perform: Run

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """The task's result."""
        task_vars = task_vars or {}
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        if not self._is_here(task_vars):
            result.update(self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val))
            return result
        result.update(self._perform_here())
        return result

    def _is_here(self, task_vars: t.Mapping[str, t.Any]) -> bool:
        # Variables arrive as they were written.
        interpreter = str(self._templar.template(task_vars.get("ansible_python_interpreter") or ""))
        return (
            self._connection.transport == "local"
            and not self._play_context.become
            and not self._task.async_val
            and not any(self._task.environment or ())
            and bool(interpreter)
            and os.path.realpath(interpreter) == os.path.realpath(sys.executable)
            and os.path.dirname(interpreter) == os.path.dirname(sys.executable)
        )

    def _perform_here(self) -> dict[str, t.Any]:
        spec = type(self).argument_spec().to_kwargs()
        # The way to a module leads through JSON; taking it here too keeps values alike (plain types, text keys).
        arguments = json.loads(json.dumps(self._task.args, default=str))
        constraints = {name: spec[name] for name in _CONSTRAINTS}
        validation = ArgumentSpecValidator(spec["argument_spec"], **constraints).validate(arguments)
        secrets = set(validation._no_log_values)
        if validation.error_messages:
            message = "; ".join(validation.error_messages)
            return t.cast("dict[str, t.Any]", remove_values({"failed": True, "msg": message}, secrets))
        invocation = Invocation(
            validation.validated_parameters,
            bool(self._task.check_mode),
            bool(self._task.diff),
            secrets,
            name=self._task.action,
            say=lambda text: display.display(remove_values(text, secrets)),
        )
        results = invocation.perform(type(self).perform)
        for warning in invocation.warnings:
            display.warning(remove_values(warning, secrets))
        return t.cast("dict[str, t.Any]", remove_values(results, secrets))
