# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What squawk gets to read, and what is made of its answer. A program that misbehaves is a shell script here."""

from __future__ import annotations

import pathlib

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _squawk
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.tests.support.migrations import MigrationSet

needs_squawk = pytest.mark.skipif(_squawk.find_program() is None, reason="squawk is not installed: squawk-cli")


def test_variables_become_values_of_the_same_length() -> None:
    text = "INSERT INTO t VALUES (:'name', :number, :\"id\", 'it''s :not');\nSELECT 1;\n"
    plain = _squawk.plain_sql(text.encode(), "f.sql")
    assert plain.startswith("INSERT INTO t VALUES ('xxxxx', 0      , \"xxx\", 'it''s :not');\nSELECT 1;\n")


def test_psql_commands_and_rows_become_blank_and_lines_stay() -> None:
    text = "\\echo hi\nCOPY t FROM stdin;\n1;\tDROP\n\\.\nDROP TABLE t;\n"
    plain = _squawk.plain_sql(text.encode(), "f.sql")
    assert plain.split("\n")[:5] == ["        ", "COPY t FROM stdin;", "       ", "  ", "DROP TABLE t;"]


def test_separators_that_end_no_line_do_not_shift_anything() -> None:
    text = "SELECT 'a\u2028b\x0cc'; SELECT :x;\nSELECT :'y';\n"
    plain = _squawk.plain_sql(text.encode(), "f.sql")
    assert plain.startswith("SELECT 'a\u2028b\x0cc'; SELECT 0 ;\nSELECT 'xx';\n")


def script(directory: pathlib.Path, body: str) -> str:
    path = directory / "squawk"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def lint(directory: pathlib.Path, program: str, sql: str = "SELECT 1;\n", transaction: bool = True) -> _squawk.Hazards:
    plan = MigrationSet(directory / "set").add("001_a", steps=[(sql, transaction)])
    loaded = load_plan(plan.path)
    return _squawk.lint(program, loaded.migrations, loaded.directory, server_version=150004)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("exit 2", "ended with 2"),
        ("echo no json", "no findings that can be read"),
        ("echo '[{\"line\": 1}]'", "no findings that can be read"),
        ("exec no-such-program", "ended with 127"),
    ],
)
def test_a_program_that_does_not_answer_is_an_error_and_not_a_pass(
    tmp_path: pathlib.Path, body: str, text: str
) -> None:
    with pytest.raises(EnvironmentProblem, match=text):
        lint(tmp_path, script(tmp_path, f'[ "$1" = --version ] && {{ echo squawk 9.9; exit 0; }}; {body}'))


def test_a_program_that_hangs_is_ended(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_squawk, "TIMEOUT", 0.5)
    with pytest.raises(EnvironmentProblem, match="ran for more than"):
        lint(tmp_path, script(tmp_path, "exec sleep 60"))


def test_it_gets_no_environment_of_ours(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "not for a linter")
    program = script(tmp_path, f'[ "$1" = --version ] || env > {tmp_path}/seen; echo "[]"')
    lint(tmp_path, program)
    assert "not for a linter" not in (tmp_path / "seen").read_text(encoding="utf-8")


def test_a_path_that_is_no_program_is_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="squawk_path"):
        _squawk.find_program("/nowhere/squawk")


@needs_squawk
def test_findings_have_the_files_own_lines(tmp_path: pathlib.Path) -> None:
    program = _squawk.find_program()
    assert program is not None
    sql = "-- first\nINSERT INTO t VALUES (:'name');\n\n  ALTER TABLE t DROP COLUMN c;\nDROP TABLE old;\n"
    hazards = lint(tmp_path, program, sql)
    found = {(item.rule, item.file, item.line) for item in hazards.findings}
    assert ("ban-drop-column", "001_a.1.sql", 4) in found
    assert ("ban-drop-table", "001_a.1.sql", 5) in found
    assert hazards.unread == ()
    assert hazards.version[0].isdigit()


@needs_squawk
def test_whether_a_transaction_is_around_the_file_is_told(tmp_path: pathlib.Path) -> None:
    program = _squawk.find_program()
    assert program is not None
    rules = {}
    for transaction in (True, False):
        plan = MigrationSet(tmp_path / str(transaction)).add("001_a", steps=[("DROP TABLE t;\n", transaction)])
        loaded = load_plan(plan.path)
        hazards = _squawk.lint(program, loaded.migrations, loaded.directory, server_version=150004, ignore=())
        rules[transaction] = {item.rule for item in hazards.findings}
    # What a transaction undoes need not be robust.
    assert rules[False] - rules[True] == {"prefer-robust-stmts"}


@needs_squawk
def test_a_file_with_its_own_transaction_is_not_nested(tmp_path: pathlib.Path) -> None:
    program = _squawk.find_program()
    assert program is not None
    sql = "BEGIN;\nCREATE TABLE fresh (id bigint);\nCREATE INDEX i ON fresh (id);\nCOMMIT;\n"
    assert lint(tmp_path, program, sql).findings == ()


@needs_squawk
def test_a_comment_can_say_that_a_finding_is_meant(tmp_path: pathlib.Path) -> None:
    program = _squawk.find_program()
    assert program is not None
    sql = "-- squawk-ignore ban-drop-column\nALTER TABLE t DROP COLUMN c;\n"
    assert lint(tmp_path, program, sql).findings == ()


@needs_squawk
def test_what_squawk_cannot_read_is_unread_and_no_finding(tmp_path: pathlib.Path) -> None:
    program = _squawk.find_program()
    assert program is not None
    hazards = lint(tmp_path, program, "SELECT 1;\nGIBBERISH of the future;\n")
    assert hazards.findings == ()
    assert {item.line for item in hazards.unread} == {2}
