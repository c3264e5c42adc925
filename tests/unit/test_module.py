# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The edge between the library and a task's result."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation

VERDICTS = ["pass", "fail", "pass", "not_measured"]


def perform(run_dir: pathlib.Path | None, *, fails: bool = True, check_mode: bool = False) -> dict[str, t.Any]:
    directory = str(run_dir) if run_dir else None
    items = [Evidence(f"test.fact_{n}", "test", verdict, n, n, "a test") for n, verdict in enumerate(VERDICTS)]

    def run(invocation: Invocation) -> dict[str, t.Any]:
        results = {"evidence": record(None if check_mode else directory, items)}
        if fails:
            error = VerificationFailed("one of four is wrong")
            error.results = results
            raise error
        return results

    return Invocation({"run_dir": directory}, check_mode=check_mode, diff=False, name="x.y.z").perform(run)


def shown(results: dict[str, t.Any]) -> list[str]:
    return [item["verdict"] for item in results["evidence"]]


def test_a_failed_task_shows_what_did_not_pass_and_the_run_directory_has_all(tmp_path: pathlib.Path) -> None:
    results = perform(tmp_path)
    assert results["failed"] and shown(results) == ["fail", "not_measured"]
    lines = (tmp_path / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == VERDICTS


@pytest.mark.parametrize(("fails", "check_mode"), [(False, False), (True, True)], ids=["success", "check mode"])
def test_all_is_returned_where_it_does_not_drown_the_failure_or_lies_nowhere_else(
    tmp_path: pathlib.Path, fails: bool, check_mode: bool
) -> None:
    assert shown(perform(tmp_path, fails=fails, check_mode=check_mode)) == VERDICTS


def test_without_a_run_directory_all_is_returned() -> None:
    assert shown(perform(None)) == VERDICTS
