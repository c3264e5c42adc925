#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_load_info
short_description: Compare slow statements, processors and memory with an earlier look
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Reads calls and times of statements from C(pg_stat_statements), by the columns that the installed version of the
    extension has, and tells which became slow since an earlier call.
  - Reads load and free memory of the host, where the server runs on the host that executes the module.
  - Statements are named by their C(queryid). Their text may hold values and is not read.
  - What cannot be seen is V(not_measured), with the reason. A first look is V(not_applicable); it has nothing to
    compare with.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._attributes.info_module
  - surefoot.dbops._connection
  - surefoot.dbops._run
options:
  label:
    description: Name of this look. Its file is C(load-<label>.json) in O(run_dir).
    type: str
    default: before
  compare_with:
    description: File of an earlier look. One that does not exist is a first look.
    type: path
  slow:
    description: A statement that takes longer than this on average is slow.
    type: str
    default: 100ms
  factor:
    description: How many times its mean before a slow statement must take to fail C(statements.slow).
    type: float
    default: 1.5
  min_calls:
    description: Statements with fewer calls say nothing.
    type: int
    default: 5
seealso:
  - module: surefoot.dbops.postgresql_baseline
"""

EXAMPLES = r"""
- name: Look at statements and host before the migration
  surefoot.dbops.postgresql_load_info:
    login_url: "{{ database_url }}"
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f

- name: Look again the day after
  surefoot.dbops.postgresql_load_info:
    login_url: "{{ database_url }}"
    label: after
    compare_with: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f/load-before.json
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f
"""

RETURN = r"""
statements:
  description: Number of statements that were read; null when they cannot be seen.
  returned: always
  type: int
  sample: 214
reason:
  description: Why statements cannot be seen, or null.
  returned: always
  type: str
  sample: extension pg_stat_statements is not installed in this database
host:
  description: Load and memory of the server's host; null where this is not it.
  returned: always
  type: dict
  sample: {"processors": 8, "load_5min": 1.2, "load_per_processor": 0.15, "memory_available_percent": 61.2}
file:
  description: Where the look is kept, for O(compare_with) of a later one; null without O(run_dir).
  returned: always
  type: str
  sample: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f/load-before.json
evidence:
  description: One record each for C(statements.slow) and C(host.cpu_memory).
  returned: always
  type: list
  elements: dict
"""

import contextlib
import os
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import connect
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import record
from ansible_collections.surefoot.dbops.plugins.module_utils._load import LOAD_FILE, LoadRequest, measure, read_before
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    earlier = params["compare_with"]
    request = LoadRequest(
        slow_ms=parse_duration(params["slow"]) * 1000,
        factor=params["factor"],
        min_calls=max(1, params["min_calls"]),
        before=read_before(earlier) if earlier and os.path.exists(earlier) else None,
    )
    with contextlib.closing(connect(connection_options(module), purpose="load")) as connection:
        found = measure(connection, request)
    evidence = record(params["run_dir"], found.pop("evidence"))
    reason, path = found.pop("reason"), None
    if params["run_dir"]:
        path = write_json(params["run_dir"], LOAD_FILE.format(label=params["label"]), found)
    statements = found["statements"]
    return {
        "changed": False,
        "statements": None if statements is None else len(statements),
        "reason": reason,
        "host": found["host"],
        "file": path,
        "evidence": evidence,
    }


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "label": {"type": "str", "default": "before"},
            "compare_with": {"type": "path"},
            "slow": {"type": "str", "default": "100ms"},
            "factor": {"type": "float", "default": 1.5},
            "min_calls": {"type": "int", "default": 5},
        },
    ).merge(connection_argument_spec(), run_argument_spec())


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
