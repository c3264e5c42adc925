# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.surefoot.dbops.plugins.modules.postgresql_restore import argument_spec, run
from ansible_collections.surefoot.dbops.plugins.plugin_utils._guardian import leave_guardian
from ansible_collections.surefoot.dbops.plugins.plugin_utils._in_worker import LibraryAction


class ActionModule(LibraryAction):
    """Runs the module of the same name here when its target is this machine."""

    argument_spec = staticmethod(argument_spec)
    perform = staticmethod(run)

    def _perform_here(self) -> dict[str, t.Any]:
        args = self._task.args
        guarded = boolean(args.get("guard") or False, strict=False) and args.get("run_id")
        if guarded and args.get("state", "present") == "present" and not self._task.check_mode:
            leave_guardian(args, str(args["run_id"]))
        return super()._perform_here()
