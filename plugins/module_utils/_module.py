# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The edge: the one place where an exception of the library becomes a failed task."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, redact, register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError


def run_module(spec: ArgumentSpec, run: t.Callable[[AnsibleModule], dict[str, t.Any]]) -> None:
    """Build the module, run it, exit with its results or fail with one line and the error as an object.

    ``run`` returns the task's result; its key ``notes`` becomes the task's warnings.
    """
    module = AnsibleModule(**spec.to_kwargs())
    for value in (module.params.get("secret_variables") or {}).values():
        _never_show(module, value)
    try:
        results = run(module)
    except SurefootError as exc:
        # No exception= and no chained traceback: frames and causes may quote what the message redacted.
        failure = {"changed": False, **exc.results}
        _warn(module, failure)
        module.fail_json(msg=redact(str(exc)), error=exc.to_dict(), **failure)
    _warn(module, results)
    module.exit_json(**results)


def _warn(module: AnsibleModule, results: dict[str, t.Any]) -> None:
    for warning in results.pop("notes", ()):
        module.warn(redact(str(warning)))


def connection_options(module: AnsibleModule) -> ConnectionOptions:
    """The connection the module's options describe; its secrets are scrubbed from whatever the module returns.

    :raises PlanError: see :meth:`ConnectionOptions.from_params`
    """
    options = ConnectionOptions.from_params(module.params)
    for secret in options.secrets:
        _never_show(module, secret)
    return options


def _never_show(module: AnsibleModule, value: t.Any) -> None:
    register_secret(value)
    text = str(value) if value is not None else ""
    if len(text) >= 4:
        module.no_log_values.add(text)
