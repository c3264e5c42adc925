# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.surefoot.dbops.plugins.modules.postgresql_external_backup import argument_spec, run
from ansible_collections.surefoot.dbops.plugins.plugin_utils._in_worker import LibraryAction


class ActionModule(LibraryAction):
    """Runs the module of the same name here when its target is this machine."""

    argument_spec = staticmethod(argument_spec)
    perform = staticmethod(run)
