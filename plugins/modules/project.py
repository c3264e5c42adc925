#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: project
short_description: Lay out a project directory for migrations, on the controller
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Makes playbooks that import the collection's, one inventory an environment (C(local), C(staging), C(prod)), a
    migration set, C(ansible.cfg), C(.gitignore), and a README.
  - A file that exists is never touched, so that it can be run again after an update of the collection.
attributes:
  action:
    description:
      - Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
  diff_mode:
    description:
      - Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: partial
    details:
      - The names of the files that are made.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: full
options:
  dest:
    description:
      - The project directory, made when it does not exist. Relative to the directory C(ansible-playbook) was started
        in.
      - Refused inside the collection.
    type: str
    required: true
  migrations:
    description:
      - The migration set to begin with. V(lancio_platform) and V(scrapersky_rbac) are copies of the sets the
        collection ships, V(starter) a plan with one table.
    type: str
    choices: [lancio_platform, scrapersky_rbac, starter]
    default: lancio_platform
"""

EXAMPLES = r"""
- name: Lay out a project here
  surefoot.dbops.project:
    dest: .
    migrations: starter
"""

RETURN = r"""
dest:
  description: The project directory.
  type: str
  returned: success
  sample: /home/ops/platform
made:
  description: Files that were made, or would be in check mode.
  type: list
  elements: str
  returned: success
  sample: [README.md, ansible.cfg, migrate.yml]
kept:
  description: Files that were there and stay as they are.
  type: list
  elements: str
  returned: success
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

_SETS = ["lancio_platform", "scrapersky_rbac", "starter"]


def argument_spec() -> dict[str, dict[str, t.Any]]:
    """The options, for the action plugin that does the work."""
    return {
        "dest": {"type": "str", "required": True},
        "migrations": {"type": "str", "choices": _SETS, "default": "lancio_platform"},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    module.fail_json(
        msg="surefoot.dbops.project works on the controller, but its action plugin was not found. Install all of it."
    )


if __name__ == "__main__":
    main()
