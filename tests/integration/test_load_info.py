# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slow statements by the columns that the view has, and the host, against an earlier look."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_load_info
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

pytestmark = pytest.mark.versions


def look(database: Database, directory: pathlib.Path, **options: t.Any) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """The results, and the evidence by criterion."""
    given = {
        **{"label": "before", "compare_with": None, "slow": "20ms", "factor": 1.5, "min_calls": 3},
        **{"run_dir": str(directory), **database.params, **options},
    }
    done = postgresql_load_info.run(Invocation(given, False, False, name="postgresql_load_info"))
    return done, {item["criterion"]: item for item in done["evidence"]}


@pytest.fixture
def counted(database: Database) -> Database:
    database.query("CREATE SCHEMA statistics; CREATE EXTENSION pg_stat_statements SCHEMA statistics")
    database.query("CREATE TABLE pause (seconds float8); INSERT INTO pause VALUES (0)")
    return database


def ask(database: Database) -> None:
    for _call in range(3):
        database.query("SELECT pg_sleep(seconds) FROM pause WHERE seconds <> 4711")


def test_a_statement_that_became_slow_fails_and_its_text_is_not_kept(counted: Database, tmp_path: pathlib.Path) -> None:
    ask(counted)
    first, evidence = look(counted, tmp_path)
    assert first["statements"] and first["reason"] is None
    assert evidence["statements.slow"]["verdict"] == "not_applicable"
    before = str(tmp_path / "load-before.json")
    assert first["file"] == before
    _second, evidence = look(counted, tmp_path, label="after", compare_with=before)
    assert evidence["statements.slow"]["verdict"] == "pass"
    counted.query("UPDATE pause SET seconds = 0.05")
    ask(counted)
    _third, evidence = look(counted, tmp_path, label="after", compare_with=before)
    record = evidence["statements.slow"]
    assert record["verdict"] == "fail"
    (worse,) = record["measured"]["slower"]
    assert worse["calls"] == 3 and worse["mean_ms"] > 50 > 20 > worse["mean_ms_before"]
    assert "pg_sleep" not in "".join(path.read_text("utf-8") for path in tmp_path.iterdir())


def test_a_reset_of_the_view_is_no_regression_by_itself(counted: Database, tmp_path: pathlib.Path) -> None:
    ask(counted)
    ask(counted)
    look(counted, tmp_path)
    counted.query("SELECT statistics.pg_stat_statements_reset()")
    ask(counted)
    _done, evidence = look(counted, tmp_path, label="after", compare_with=str(tmp_path / "load-before.json"))
    assert evidence["statements.slow"]["verdict"] == "pass"


def test_what_cannot_be_seen_is_not_measured(database: Database, tmp_path: pathlib.Path) -> None:
    done, evidence = look(database, tmp_path)
    assert evidence["statements.slow"]["verdict"] == "not_measured"
    assert done["statements"] is None and "not installed" in done["reason"]
    database.query("CREATE EXTENSION pg_stat_statements")
    role = f"blind_{database.name}"
    database.query(f"CREATE ROLE {role} LOGIN")
    try:
        done, evidence = look(database, tmp_path, session_role=role)
        assert evidence["statements.slow"]["verdict"] == "not_measured" and "GRANT pg_monitor" in done["reason"]
    finally:
        database.query(f"DROP ROLE {role}")


def test_the_host_of_a_local_server_is_measured_and_compared(database: Database, tmp_path: pathlib.Path) -> None:
    done, evidence = look(database, tmp_path)
    assert done["host"]["processors"] >= 1 and 0 < done["host"]["memory_available_percent"] <= 100
    assert evidence["host.cpu_memory"]["verdict"] == "not_applicable"
    before = tmp_path / "quiet.json"
    # More free than there is: whatever is free now is less than half of it.
    host = {
        **done["host"],
        "load_per_processor": 1e9,
        "memory_available_percent": done["host"]["memory_available_percent"],
    }
    before.write_text(json.dumps({"time": "then", "host": host, "statements": None}), encoding="utf-8")
    _done, evidence = look(database, tmp_path, label="after", compare_with=str(before))
    assert evidence["host.cpu_memory"]["verdict"] == "pass"


def test_a_file_that_is_none_of_ours_is_refused(database: Database, tmp_path: pathlib.Path) -> None:
    (tmp_path / "other.json").write_text("[]", encoding="utf-8")
    with pytest.raises(PlanError, match=r"other\.json"):
        look(database, tmp_path, compare_with=str(tmp_path / "other.json"))
