# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of the modules of RDS, without Ansible around them."""

from __future__ import annotations

import types
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.tests.support.rds_shim import ACCESS_KEY, REGION, SECRET_KEY, Shim


def login(shim: Shim) -> dict[str, t.Any]:
    """The options that lead to the shim."""
    return {"region": REGION, "endpoint_url": shim.url, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY}


def perform(
    module: types.ModuleType, shim: Shim | None, *, check_mode: bool = False, **options: t.Any
) -> dict[str, t.Any]:
    """What a task with these options returns; a failure is in the result, as ``failed`` and ``msg``."""
    spec = module.argument_spec().to_kwargs()
    names = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
    given = {**({} if shim is None else login(shim)), "db_instance_identifier": "platform-prod", **options}
    validation = ArgumentSpecValidator(spec["argument_spec"], **{name: spec[name] for name in names}).validate(
        {name: value for name, value in given.items() if value is not None}
    )
    if validation.error_messages:
        return {"failed": True, "msg": "; ".join(validation.error_messages), "error": {"code": "options"}}
    said: list[str] = []
    invocation = Invocation(validation.validated_parameters, check_mode, True, name=module.__name__, say=said.append)
    results = invocation.perform(module.run)
    results["warnings"], results["said"] = list(invocation.warnings), said
    return results


def verdicts(results: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Criterion -> verdict of the evidence."""
    return {item["criterion"]: item["verdict"] for item in results["evidence"]}
