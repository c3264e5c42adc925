# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.surefoot.dbops.plugins.modules import railway_variables_info
from ansible_collections.surefoot.dbops.plugins.plugin_utils._in_worker import LibraryAction


class ActionModule(LibraryAction):
    """Runs the module of the same name here when its target is this machine."""

    argument_spec = staticmethod(railway_variables_info.argument_spec)
    perform = staticmethod(railway_variables_info.run)

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """The task's result. Values are not fetched by a task whose result Ansible would print, log and hand to
        callbacks: a module cannot know that, an action can."""
        if boolean(self._task.args.get("values") or False, strict=False) and not self._task.no_log:
            return {
                "failed": True,
                "changed": False,
                "msg": "values: true needs no_log: true on the task, because Ansible prints and logs results. Set it,"
                " or use the lookup surefoot.dbops.railway_variable where the value is needed.",
            }
        return super().run(tmp, task_vars)
