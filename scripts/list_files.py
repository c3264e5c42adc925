# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the files of the working tree that belong to the project: those git knows, and those it would not ignore.

Usage: scripts/list_files.py [-0]    -0: separated by NUL
Without git (a downloaded archive) everything counts that .gitignore's top-level directories do not name.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def files() -> list[str]:
    try:
        argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        known = subprocess.run(argv, cwd=ROOT, capture_output=True, check=True).stdout
        names = [os.fsdecode(name) for name in known.split(b"\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = []
    if not names:
        with open(ROOT / ".gitignore", encoding="utf-8") as stream:
            ignored = {line.strip().strip("/") for line in stream if line.strip().endswith("/")}
        for directory, below, here in os.walk(ROOT):
            below[:] = [name for name in below if name not in ignored and name != ".git"]
            names += [
                os.path.relpath(os.path.join(directory, name), ROOT) for name in here if not name.endswith(".pyc")
            ]
    return sorted(name for name in set(names) if (ROOT / name).is_file())


if __name__ == "__main__":
    end = "\0" if sys.argv[1:] == ["-0"] else "\n"
    sys.stdout.write("".join(name + end for name in files()))
