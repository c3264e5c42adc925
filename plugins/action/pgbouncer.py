# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible import constants as C

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.modules.pgbouncer import argument_spec, run
from ansible_collections.surefoot.dbops.plugins.plugin_utils._guardian import call_off, call_off_all, guard_pool
from ansible_collections.surefoot.dbops.plugins.plugin_utils._in_worker import LibraryAction


class ActionModule(LibraryAction):
    """Runs the module of the same name here when its target is this machine, and leaves a guardian with a pause."""

    argument_spec = staticmethod(argument_spec)
    perform = staticmethod(run)

    def _perform_here(self) -> dict[str, t.Any]:
        args = self._task.args
        state = args.get("state", "paused")
        if self._task.check_mode or not args.get("database") or state not in ("paused", "resumed"):
            return super()._perform_here()
        # The playbook's own directory: private, and gone with it.
        directory = str(getattr(C, "DEFAULT_LOCAL_TMP"))  # noqa: B009  (set when Ansible starts)
        try:
            token = guard_pool(args, directory) if state == "paused" else None
        except SurefootError:  # the options are wrong; the module says how
            return super()._perform_here()
        result = super()._perform_here()
        if token is None:
            if not result.get("failed"):
                call_off_all(args, directory)
        elif not result.get("changed") and (result.get("error") or {}).get("code") != "pooler_paused":
            call_off(token)  # what was not paused here is not to be resumed from here
        return result
