# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

from __future__ import annotations


class ModuleDocFragment:
    # Matches run_argument_spec() in module_utils/_argspec.py.
    DOCUMENTATION = r"""
options:
  run_id:
    description:
      - Identifier of the run this task belongs to; it is recorded with everything the task writes.
      - Made up from time and a random part when not given.
    type: str
  run_dir:
    description:
      - Run directory on the host that executes the module. Evidence is appended to C(evidence.jsonl) in it, with mode
        0600.
      - Without it, evidence is only returned. With it, a task that fails returns only the records that did not pass.
    type: path
"""
