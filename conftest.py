# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make ``ansible_collections.surefoot.dbops`` importable from a plain checkout, whatever the checkout is called."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent
TREE = ROOT / "build" / "tree"
LINK = TREE / "ansible_collections" / "surefoot" / "dbops"


def _link_tree() -> None:
    LINK.parent.mkdir(parents=True, exist_ok=True)
    if LINK.is_symlink() and LINK.resolve() != ROOT:
        LINK.unlink(missing_ok=True)
    # Several pytest workers do this at the same time.
    with contextlib.suppress(FileExistsError):
        LINK.symlink_to(os.path.relpath(ROOT, LINK.parent), target_is_directory=True)


_link_tree()
if str(TREE) not in sys.path:
    sys.path.insert(0, str(TREE))
os.environ["ANSIBLE_COLLECTIONS_PATH"] = str(TREE)
os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))
