# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

from __future__ import annotations


class ModuleDocFragment:
    # Matches variables_argument_spec() in module_utils/_argspec.py.
    DOCUMENTATION = r"""
options:
  variables:
    description:
      - Values for C(:'name') (a literal), C(:"name") (an identifier) and C(:name) (a number or boolean) in the SQL
        files and checks.
      - Overrides the values the plan gives. A name that has no value is an error.
    type: dict
    default: {}
  secret_variables:
    description:
      - Values for C(:'name') that must never appear in statement text, logs or results.
      - They travel to the server by C(COPY) into a temporary table, and the reference becomes a subquery on it, so
        they can be used in C(SELECT), C(INSERT), C(UPDATE), C(DELETE) and C(MERGE) only. A plan's C(session_settings)
        sends one as a startup setting instead.
    type: dict
    default: {}
"""
