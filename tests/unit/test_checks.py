# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks without a database: what is accepted, how rows are compared, what a result shows."""

from __future__ import annotations

import datetime
import pathlib
import typing as t
import uuid
from decimal import Decimal

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _checks
from ansible_collections.surefoot.dbops.plugins.module_utils._checks import (
    Check,
    CheckResult,
    check_file,
    comparison_key,
    due,
    expand,
    parse_check,
    validate_checks,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, PlanError, SqlTextError

HERE = Location("plan.yml", 7, 5)


def query(sql: str = "SELECT 1", **keys: t.Any) -> Check:
    return parse_check({"name": "a check", "query": sql, "expect": {"rows": 1}, **keys}, HERE)


def evaluate(
    expect: dict[t.Any, t.Any], *rows: tuple[t.Any, ...], columns: tuple[str, ...] = ("v",)
) -> tuple[bool, t.Any]:
    expectation = query(expect=expect).expect
    assert expectation is not None
    outcome = expectation.evaluate(_checks._Rows(columns, list(rows)))
    return outcome.passed, outcome.measured


def test_a_check_has_defaults() -> None:
    check = query()

    assert (check.name, check.kind, check.timeout, check.as_role, check.criterion) == (
        "a check",
        "query",
        30.0,
        None,
        None,
    )
    assert check.location == HERE


def test_every_key_of_a_check_is_read() -> None:
    check = parse_check(
        {
            "name": "no row for a stranger",
            "statement": "INSERT INTO t VALUES (1)",
            "expect_error": ["foreign_key_violation", "42501", 23505],
            "when": "before_commit",
            "timeout": "2m",
            "as_role": "app_user",
            "settings": {"app.current_org_id": 5, "app.debug": True},
            "criterion": "platform.fk",
        },
        HERE,
    )

    assert check.expect_error == ("23503", "42501", "23505")
    assert (check.when, check.timeout, check.as_role, check.criterion) == (
        "before_commit",
        120.0,
        "app_user",
        "platform.fk",
    )
    assert check.settings == {"app.current_org_id": "5", "app.debug": "on"}


STATEMENT = {"name": "a check", "statement": "SELECT 1"}
QUERY = {"name": "a check", "query": "SELECT 1", "expect": {"rows": 1}}
REFUSED: dict[str, tuple[t.Any, str]] = {
    "not a mapping": ("SELECT 1", "a check is not a mapping"),
    "unknown key": ({**QUERY, "expects": 1}, r"unknown key expects .*Did you mean expect\?"),
    "no name": ({"query": "SELECT 1", "expect": {"rows": 1}}, "a check has no name"),
    "empty name": ({**QUERY, "name": " "}, "a check has no name"),
    "neither": ({"name": "a"}, "neither query nor statement"),
    "both": ({**QUERY, "statement": "SELECT 1"}, "both query and statement"),
    "query no text": ({**QUERY, "query": 1}, "query of check 'a check' is not a text"),
    "query without expect": ({"name": "a", "query": "SELECT 1"}, "query without expect.*Give expect"),
    "query with error": (
        {"name": "a", "query": "SELECT 1", "expect_error": "23505"},
        "expect_error goes with statement",
    ),
    "query with both": ({**QUERY, "expect_error": "23505"}, "both expect and expect_error"),
    "statement with expect": ({**STATEMENT, "expect": {"rows": 1}}, "has a statement with expect"),
    "unknown error": ({**STATEMENT, "expect_error": "fk"}, "unknown error condition 'fk'"),
    "error no text": ({**STATEMENT, "expect_error": {"a": 1}}, "unknown error condition"),
    "no error": ({**STATEMENT, "expect_error": []}, "expect_error is empty"),
    "when": ({**QUERY, "when": "later"}, "when of check 'a check' is 'later'.*before_commit or after_commit"),
    "timeout": ({**QUERY, "timeout": "soon"}, "timeout: 'soon' is not a duration"),
    "timeout zero": ({**QUERY, "timeout": 0}, "timeout is 0"),
    "as_role": ({**QUERY, "as_role": 5}, "as_role of check 'a check' is not the name of a role"),
    "settings": ({**QUERY, "settings": ["a"]}, "settings is not a mapping"),
    "setting name": ({**QUERY, "settings": {"work_mem": "1GB"}}, "work_mem is not the name of a custom setting"),
    "setting value": ({**QUERY, "settings": {"a.b": [1]}}, "value of setting a.b is not a text or number"),
    "criterion": ({**QUERY, "criterion": "a b"}, "criterion of check 'a check' is 'a b'"),
    "expect no mapping": ({**QUERY, "expect": 8}, "expect is not a mapping"),
    "expect empty": ({**QUERY, "expect": {}}, "expect is empty"),
    "expect two": ({**QUERY, "expect": {"rows": 1, "set": []}}, "expect has rows and set"),
    "expect unknown": ({**QUERY, "expect": {"count": 1}}, "unknown key count in expect"),
    "operator beside scalar": ({**QUERY, "expect": {"scalar": 1, "min": 2}}, "unknown key min in expect"),
    "rows text": ({**QUERY, "expect": {"rows": "8"}}, "expect.rows is not a number of rows"),
    "rows negative": ({**QUERY, "expect": {"rows": -1}}, "expect.rows is not a number of rows"),
    "rows boolean": ({**QUERY, "expect": {"rows": True}}, "expect.rows is not a number of rows"),
    "rows empty": ({**QUERY, "expect": {"rows": {}}}, "expect.rows is not a number of rows"),
    "rows operator": ({**QUERY, "expect": {"rows": {"mim": 1}}}, r"unknown key mim in expect.rows.*Did you mean min\?"),
    "scalar operator": ({**QUERY, "expect": {"scalar": {"like": 1}}}, "unknown key like in expect.scalar"),
    "scalar empty": ({**QUERY, "expect": {"scalar": {}}}, "expect.scalar says nothing to compare with"),
    "scalar min": ({**QUERY, "expect": {"scalar": {"min": "5"}}}, "min of expect.scalar is not a number"),
    "scalar in": ({**QUERY, "expect": {"scalar": {"in": 5}}}, "in of expect.scalar is not a list"),
    "scalar matches": ({**QUERY, "expect": {"scalar": {"matches": "("}}}, "no regular expression"),
    "set": ({**QUERY, "expect": {"set": "a"}}, "expect.set is not a list"),
    "list": ({**QUERY, "expect": {"list": {"a": 1}}}, "expect.list is not a list"),
    "rows_equal": ({**QUERY, "expect": {"rows_equal": [1]}}, "expect.rows_equal is not a list of mappings"),
    "plan empty": ({**QUERY, "expect": {"plan": {}}}, "expect.plan says nothing to look for"),
    "plan key": (
        {**QUERY, "expect": {"plan": {"use_index": ["a"]}}},
        r"unknown key use_index.*Did you mean uses_index\?",
    ),
    "plan text": (
        {**QUERY, "expect": {"plan": {"uses_index": "a"}}},
        "uses_index of expect.plan is not a list of names",
    ),
    "plan of a plan": (
        {**QUERY, "query": "EXPLAIN SELECT 1", "expect": {"plan": {"uses_index": ["a"]}}},
        "the plan of something that has none",
    ),
    "true": ({**QUERY, "expect": {"true": "some"}}, "expect.true has another value than all"),
    "jmespath alone": ({**QUERY, "expect": {"jmespath": "[0]"}}, "expect.jmespath says nothing to compare with"),
    "jmespath syntax": (
        {**QUERY, "expect": {"jmespath": "[0", "equals": 1}},
        "expect.jmespath is no JMESPath expression",
    ),
    "jmespath text": ({**QUERY, "expect": {"jmespath": 5, "equals": 1}}, "expect.jmespath is not a text"),
    "no sql": ({**QUERY, "query": " -- nothing\n"}, "has no statement"),
    "two statements": ({**QUERY, "query": "SELECT 1; SELECT 2"}, "has 2 statements"),
    "open quote": ({**QUERY, "query": "SELECT 'a"}, "quote"),
    "psql command": ({**QUERY, "query": "\\d t"}, r"\\d is a command of psql"),
    "commit": ({**STATEMENT, "statement": "COMMIT"}, "COMMIT cannot be a check.*rolled back"),
    "savepoint": ({**STATEMENT, "statement": "SAVEPOINT a"}, "SAVEPOINT cannot be a check"),
    "set_": ({**STATEMENT, "statement": "SET ROLE x"}, "cannot be a check.*keys settings and as_role"),
    "concurrently": ({**STATEMENT, "statement": "CREATE INDEX CONCURRENTLY i ON t (a)"}, "cannot run in a transaction"),
    "vacuum": ({**STATEMENT, "statement": "VACUUM t"}, "VACUUM cannot be a check"),
    "copy": (
        {**STATEMENT, "statement": "COPY t FROM STDIN;\n1\n\\.\n"},
        "COPY with data in the text cannot be a check",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_check_is_refused_with_its_place(case: str) -> None:
    mapping, message = REFUSED[case]

    with pytest.raises((PlanError, SqlTextError), match=message) as caught:
        parse_check(mapping, HERE)

    assert "plan.yml:7" in str(caught.value)
    assert "\n" not in str(caught.value)


# Each: expect, rows that pass, rows that do not.
OBJECTS = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
Rows = list[tuple[t.Any, ...]]
COMPARED: dict[str, tuple[dict[t.Any, t.Any], list[Rows], list[Rows]]] = {
    "rows": ({"rows": 2}, [[(1,), (2,)]], [[(1,)], [], [(1,), (2,), (3,)]]),
    "rows min": ({"rows": {"min": 1}}, [[(1,)], [(1,), (2,)]], [[]]),
    "rows max": ({"rows": {"max": 1}}, [[(1,)], []], [[(1,), (2,)]]),
    "rows range": ({"rows": {"min": 1, "max": 2}}, [[(1,)], [(1,), (2,)]], [[], [(1,)] * 3]),
    "scalar number": (
        {"scalar": 8},
        [[(8,)], [(Decimal("8.00"),)], [(8.0,)]],
        [[(9,)], [("8",)], [(None,)], [], [(8,), (8,)]],
    ),
    "scalar decimal": ({"scalar": 0.1}, [[(Decimal("0.10"),)], [(0.1,)]], [[(Decimal("0.1000001"),)]]),
    "scalar text": ({"scalar": "a"}, [[("a",)]], [[("A",)], [("a ",)], [(None,)]]),
    "scalar true": ({"scalar": True}, [[(True,)]], [[(False,)], [(1,)], [("t",)], [("true",)]]),
    "scalar one": ({"scalar": 1}, [[(1,)]], [[(True,)]]),
    "scalar null": ({"scalar": None}, [[(None,)]], [[("",)], [(0,)], [(False,)], []]),
    "scalar range": (
        {"scalar": {"min": 1, "max": 2.5}},
        [[(1,)], [(Decimal("2.5"),)]],
        [[(0,)], [(3,)], [("2",)], [(None,)]],
    ),
    "scalar interval": (
        {"scalar": {"max": 90}},
        [[(datetime.timedelta(minutes=1),)]],
        [[(datetime.timedelta(minutes=2),)]],
    ),
    "scalar not": ({"scalar": {"not": None}}, [[(1,)]], [[(None,)]]),
    "scalar in": ({"scalar": {"in": [1, "a"]}}, [[(1,)], [("a",)]], [[(2,)], [("1",)]]),
    "scalar matches": ({"scalar": {"matches": "^pg_.*s$"}}, [[("pg_class",)]], [[("pg_classe",)], [(5,)], [(None,)]]),
    "scalar equals": ({"scalar": {"equals": {"a": [1, 2]}}}, [[({"a": [1, Decimal(2)]},)]], [[({"a": [2, 1]},)]]),
    "scalar uuid": (
        {"scalar": "6f2c7f4e-3a52-4f8e-9d5e-0a1b2c3d4e5f"},
        [[(uuid.UUID("6f2c7f4e3a524f8e9d5e0a1b2c3d4e5f"),)]],
        [[("6f2c",)]],
    ),
    "scalar time": (
        {"scalar": "2026-03-01T12:00:00+00:00"},
        [[(datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc),)]],
        [[(datetime.datetime(2026, 3, 1, 12),)]],
    ),
    "scalar bytes": ({"scalar": "\\x00ff"}, [[(memoryview(b"\x00\xff"),)]], [[(b"\x00",)]]),
    "scalar not a number": ({"scalar": "NaN"}, [[(float("nan"),)], [(Decimal("NaN"),)]], [[(float("inf"),)]]),
    "set": (
        {"set": ["a", "b"]},
        [[("b",), ("a",)], [("a",), ("a",), ("b",)]],
        [[("a",)], [("a",), ("b",), ("c",)], []],
    ),
    "set of numbers": ({"set": [1, 2]}, [[(Decimal(2),), (1,)]], [[("1",), ("2",)]]),
    "empty set": ({"set": []}, [[]], [[("a",)]]),
    "list": ({"list": ["a", "b"]}, [[("a",), ("b",)]], [[("b",), ("a",)], [("a",)], [("a",), ("b",), ("b",)]]),
    "true": ({"true": "all"}, [[(True,)], [(True,), (True,)]], [[], [(True,), (False,)], [(None,)], [("t",)], [(1,)]]),
    "true as YAML reads it": ({True: "all"}, [[(True,)]], [[(False,)]]),
}


@pytest.mark.parametrize("case", COMPARED)
def test_rows_of_one_column_are_compared(case: str) -> None:
    expect, passing, failing = COMPARED[case]

    for rows in passing:
        assert evaluate(expect, *rows)[0], rows
    for rows in failing:
        assert not evaluate(expect, *rows)[0], rows


def test_a_set_of_rows_with_several_columns_is_compared_as_lists() -> None:
    two = ("a", "b")

    assert evaluate({"set": [[1, "x"], [2, None]]}, (2, None), (1, "x"), columns=two)[0]
    passed, measured = evaluate({"set": [[1, "x"], [3, "z"]]}, (2, None), (1, "x"), columns=two)
    assert not passed
    assert measured == {"missing": [[3, "z"]], "unexpected": [[2, None]]}


def test_a_list_of_rows_with_several_columns_is_compared_in_order() -> None:
    two = ("a", "b")

    assert evaluate({"list": [[1, "x"], [2, None]]}, (1, "x"), (2, None), columns=two)[0]
    assert not evaluate({"list": [[1, "x"], [2, None]]}, (2, None), (1, "x"), columns=two)[0]


def test_rows_equal_compares_every_column_by_name() -> None:
    two = ("a", "b")

    assert evaluate({"rows_equal": OBJECTS}, (1, "x"), (2, None), columns=two)[0]
    assert evaluate({"rows_equal": OBJECTS}, ("x", 1), (None, 2), columns=("b", "a"))[0]
    for rows, columns in (
        ([(1, "x")], two),
        ([(2, None), (1, "x")], two),
        ([(1, "x", 0), (2, None, 0)], ("a", "b", "c")),
        ([(1,), (2,)], ("a",)),
        ([(1, 1), (2, 2)], ("a", "a")),
    ):
        assert not evaluate({"rows_equal": OBJECTS}, *rows, columns=columns)[0]


def test_jmespath_is_evaluated_over_the_rows_as_objects() -> None:
    two = ("name", "size")
    rows = (("a", Decimal("1.5")), ("b", 4))

    assert evaluate({"jmespath": "[?size > `1`].name", "equals": ["a", "b"]}, *rows, columns=two) == (True, ["a", "b"])
    assert evaluate({"jmespath": "sum([].size)", "min": 5, "max": 6}, *rows, columns=two)[0]
    assert evaluate({"jmespath": "[0].missing", "equals": None}, *rows, columns=two)[0]
    assert evaluate({"jmespath": "length(@)", "equals": 3}, *rows, columns=two) == (False, 2)
    passed, measured = evaluate({"jmespath": "sum([].name)", "equals": 1}, *rows, columns=two)
    assert not passed
    assert measured.startswith("the expression cannot be evaluated")


def test_the_shape_is_what_was_measured_when_a_scalar_is_not_there() -> None:
    assert evaluate({"scalar": 1}) == (False, "0 rows of 1 column")
    assert evaluate({"scalar": 1}, (1, 2), columns=("a", "b")) == (False, "1 row of 2 columns")
    assert evaluate({"true": "all"}, (True, True), columns=("a", "b")) == (False, "1 row of 2 columns")


def test_more_rows_than_are_fetched_never_pass_for_fewer() -> None:
    rows = [(number,) for number in range(_checks.MAX_ROWS + 1)]
    for expect in ({"rows": _checks.MAX_ROWS}, {"rows": {"max": 5}}, {"set": [1]}, {"list": [1]}, {"true": "all"}):
        expectation = query(expect=expect).expect
        assert expectation is not None
        assert not expectation.evaluate(_checks._Rows(("v",), rows, complete=False)).passed
    at_least = query(expect={"rows": {"min": 5}}).expect
    assert at_least is not None
    outcome = at_least.evaluate(_checks._Rows(("v",), rows, complete=False))
    assert (outcome.passed, outcome.measured) == (True, "more than 10000")
    named = query(expect={"rows": 50_000}).expect
    assert named is not None and named.fetch == 50_000


def test_text_never_equals_a_number_or_a_boolean() -> None:
    for left, right in (("1", 1), (1, True), ("t", True), ("", None), (0, None), ("null", None)):
        assert comparison_key(left) != comparison_key(right)


CATALOG = {
    "SELECT indexname FROM pg_indexes WHERE schemaname = 'platform'": True,
    "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace": True,
    "SELECT 1 FROM pg_class c, pg_namespace n WHERE n.oid = c.relnamespace": True,
    "SELECT table_name FROM information_schema.tables": True,
    "SELECT to_regclass('platform.databases') IS NOT NULL": True,
    "SELECT has_table_privilege('app', 'platform.databases', 'SELECT')": True,
    "SELECT 1 FROM pg_class WHERE oid = 'platform.databases'::regclass": True,
    "WITH x AS (SELECT oid FROM pg_class) SELECT count(*) FROM x": True,
    "WITH RECURSIVE x (a) AS (SELECT 1), y AS MATERIALIZED (TABLE pg_class) SELECT 1 FROM x, y": True,
    "SELECT unnest(conkey) FROM pg_constraint, unnest(conkey) AS k": True,
    "SELECT 1 FROM (SELECT oid FROM pg_class) AS s, pg_proc": True,
    "SELECT 1 FROM ONLY pg_class": True,
    "SELECT 1 FROM (pg_class JOIN pg_proc ON true)": True,
    "SELECT extract(epoch FROM now()), substring('abc' FROM 2), a IS DISTINCT FROM b FROM pg_class": True,
    "SELECT count(*) FROM pg_class -- FROM platform.projects": True,
    "SELECT 'FROM platform.projects' FROM pg_class": True,
    "TABLE pg_class": True,
    "VALUES (1)": True,
    "(SELECT 1 FROM pg_class) UNION SELECT 1 FROM pg_proc": True,
    "SELECT (SELECT count(*) FROM pg_class), (SELECT 1 FROM pg_proc)": True,
    "SELECT count(*) FROM platform.projects": False,
    "SELECT count(*) FROM projects": False,
    'SELECT count(*) FROM "pg class"': False,
    "TABLE platform.projects": False,
    "SELECT 1 FROM pg_class, platform.projects": False,
    "SELECT 1 FROM pg_class c JOIN pg_proc p ON (c.oid = p.oid), projects": False,
    "SELECT 1 FROM pg_class LEFT JOIN platform.projects ON true": False,
    "SELECT (SELECT count(*) FROM projects) FROM pg_class": False,
    "SELECT 1 FROM pg_class WHERE EXISTS (SELECT FROM projects)": False,
    "WITH x AS (SELECT 1) SELECT a, projects AS x FROM projects": False,
    "SELECT * FROM platform.verify_rls_enabled()": False,
    "SELECT platform.is_free_tier(NULL)": False,
    "SELECT * FROM verify_rls_enabled()": False,
    'SELECT 1 FROM :"table"': False,
    "WITH d AS (DELETE FROM pg_temp.x RETURNING 1) SELECT 1": False,
    "SELECT 1 FROM pg_class UNION SELECT 1 FROM projects": False,
    "SELECT 1 FROM (pg_class JOIN projects ON true)": False,
    "EXPLAIN SELECT 1": False,
}


@pytest.mark.parametrize("sql", CATALOG)
def test_a_query_of_catalogs_only_runs_before_commit_by_default(sql: str) -> None:
    assert query(sql).when == ("before_commit" if CATALOG[sql] else "after_commit")


def test_what_is_declared_wins_and_statements_run_after_commit() -> None:
    assert query("SELECT 1 FROM pg_class", when="after_commit").when == "after_commit"
    assert query("SELECT 1 FROM t", when="before_commit").when == "before_commit"
    assert parse_check(STATEMENT, HERE).when == "after_commit"


def test_due_chooses_by_moment() -> None:
    checks = [query("SELECT 1 FROM pg_class"), query("SELECT 1 FROM t")]

    assert due(checks, "before_commit") == checks[:1]
    assert due(checks, "after_commit") == checks[1:]


def verify_file(tmp_path: pathlib.Path, text: str) -> Check:
    path = tmp_path / "1_a.verify.sql"
    path.write_text(text, encoding="utf-8")
    return check_file(str(path), "1_a.verify.sql", Location("set/1_a.verify.sql"))


def test_every_statement_of_a_file_is_a_check(tmp_path: pathlib.Path) -> None:
    text = "\\echo checking\n-- one\nSELECT count(*) = 1 FROM pg_class;\n\nINSERT INTO t VALUES (:'v');\n"
    checks = expand([verify_file(tmp_path, text)])

    assert [(check.name, check.kind, check.when) for check in checks] == [
        ("1_a.verify.sql line 3", "query", "before_commit"),
        ("1_a.verify.sql line 5", "statement", "after_commit"),
    ]
    assert checks[1].location == Location("set/1_a.verify.sql", 5, 1)


def test_a_file_wrapped_in_one_transaction_is_taken_over(tmp_path: pathlib.Path) -> None:
    assert [check.sql for check in expand([verify_file(tmp_path, "BEGIN;\nSELECT 1;\nCOMMIT;\n")])] == ["SELECT 1"]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("SELECT 1;\nSET search_path = x;\n", "SET cannot be a check", 2),
        ("SELECT 1;\n\nSAVEPOINT a;\n", "SAVEPOINT cannot be a check", 3),
        ("SELECT 1;\nSELECT 'a\n", "quote", 2),
        ("SELECT 1;\n\\i other.sql\n", r"\\i", 2),
    ],
)
def test_a_file_with_something_that_is_no_check_is_refused(
    tmp_path: pathlib.Path, text: str, message: str, line: int
) -> None:
    with pytest.raises(SqlTextError, match=message) as caught:
        expand([verify_file(tmp_path, text)])

    assert caught.value.location is not None
    assert (caught.value.location.line, caught.value.location.file.endswith("1_a.verify.sql")) == (line, True)


def test_a_query_of_a_file_passes_unless_its_only_column_is_a_boolean_that_is_not_true() -> None:
    expectation = _checks.Expectation("file", "")
    for columns, rows, passed in (
        (("a",), [(True,)], True),
        (("a",), [(True,), (False,)], False),
        (("a",), [(True,), (None,)], False),
        (("a",), [(7,)], True),
        (("a",), [], True),
        (("a", "b"), [(False, False)], True),
    ):
        assert expectation.evaluate(_checks._Rows(columns, rows)).passed is passed, rows


def test_validation_names_a_variable_without_a_value_and_where_it_stands(tmp_path: pathlib.Path) -> None:
    checks = [query("SELECT\n  :'region'"), verify_file(tmp_path, "SELECT 1;\nSELECT :'regoin';\n")]

    validate_checks(checks, {"region", "regoin"})
    with pytest.raises(SqlTextError, match=r"variable :region of check 'a check' has no value \(plan.yml:8\)"):
        validate_checks(checks, {"regoin"})
    with pytest.raises(SqlTextError, match=r"1_a\.verify\.sql:2:8\)\. Did you mean region\?"):
        validate_checks(checks, {"region"})


def test_an_error_in_the_sql_is_placed_in_the_file_the_text_stands_in() -> None:
    def line_of(*path: str | int, text: bool = False) -> Location:
        return Location("plan.yml", 20, 9) if text else HERE

    with pytest.raises(SqlTextError) as first:
        parse_check({**QUERY, "query": "SELECT 1; SELECT 2"}, HERE, line_of)
    with pytest.raises(SqlTextError) as second:
        parse_check({**QUERY, "query": "SELECT 1;\n SELECT 2"}, HERE, line_of)

    assert first.value.location == Location("plan.yml", 20, 19)
    assert second.value.location == Location("plan.yml", 21)


def result(check: Check, **fields: t.Any) -> CheckResult:
    values: dict[str, t.Any] = {"passed": False, "measured": 7, "required": 8, "seconds": 0.25, "migration": "006_a"}
    return CheckResult(check=check, **{**values, **fields})


def test_a_result_says_what_was_measured_against_what_was_required() -> None:
    failed = result(query(name="Eight  Indexes, sorted"))

    assert failed.summary == "Eight  Indexes, sorted: measured 7 rows, required 8 rows"
    shown = failed.to_dict()
    assert (shown["criterion"], shown["passed"], shown["measured"], shown["required"]) == (
        "verify.006_a.eight_indexes_sorted", False, 7, 8
    )  # fmt: skip
    assert (shown["file"], shown["line"], shown["column"], shown["expect"]) == ("plan.yml", 7, 5, "rows")


def test_the_evidence_of_a_result_carries_its_own_criterion() -> None:
    record = result(query(criterion="platform.indexes"), passed=True, measured=8, phase="verify").evidence()

    assert (record.criterion, record.phase, record.verdict) == ("platform.indexes", "verify", "pass")
    assert (record.measured, record.required, record.details["name"]) == (8, 8, "a check")


def test_what_is_shown_is_cut_and_redacted() -> None:
    register_secret("hunter2-hunter2")

    assert _checks._capped("x" * 1000) == "x" * 500 + "... (1000 characters)"
    assert _checks._capped(list(range(30)))[-1] == "... and 10 more"
    assert len(_checks._capped(list(range(30)))) == 21
    assert _checks._capped({"k": ["a hunter2-hunter2 b"]}) == {"k": ["a *** b"]}
    # The secret lies across the place where the text is cut.
    assert "hunter2" not in _checks._capped("x" * 492 + "hunter2-hunter2")
    deep: list[t.Any] = []
    for _level in range(50):
        deep = [deep]
    assert "[...]" in str(_checks._capped(deep))


def test_a_check_that_uses_jmespath_says_so_when_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checks, "JMESPATH_ERROR", ImportError("jmespath"))

    assert query(expect={"rows": 1}).kind == "query"
    with pytest.raises(_checks.EnvironmentProblem, match=r"package jmespath is missing \(plan.yml:7:5\)"):
        query(expect={"jmespath": "[0]", "equals": 1})


def test_an_index_serves_when_a_condition_leads_into_it_and_nothing_is_read_whole() -> None:
    def node(kind: str, **more: t.Any) -> dict[str, t.Any]:
        return {"Node Type": kind, **more}

    table = {"Schema": "app", "Relation Name": "t"}
    led = node("Index Scan", **{"Index Name": "t_a", "Index Cond": "(a = 1)", **table})
    bitmap = node(
        "Bitmap Heap Scan", **table, Plans=[node("Bitmap Index Scan", **{"Index Name": "t_a", "Index Cond": "(a = 1)"})]
    )
    through = node("Index Scan", **{"Index Name": "t_pkey", "Filter": "(a = 1)", **table})
    sequential = node("Seq Scan", **table)

    def holds(expect: dict[str, t.Any], *nodes: dict[str, t.Any]) -> bool:
        return evaluate({"plan": expect}, ([{"Plan": node("Limit", Plans=list(nodes))}],))[0]

    for good in (led, bitmap):
        assert holds({"uses_index": ["t_a"], "no_seq_scan": ["app.t"]}, good)
        assert not holds({"uses_index": ["t_a", "t_b"]}, good)
        assert not holds({"no_seq_scan": ["t"]}, good, sequential)
    # All of an index, one row after the other, is the table in another order.
    for bad in (through, sequential):
        assert not holds({"uses_index": ["t_pkey"]}, bad)
        assert not holds({"no_seq_scan": ["app.t"]}, bad)
        assert not holds({"no_seq_scan": ["t"]}, bad)
        assert holds({"no_seq_scan": ["other.t", "u"]}, bad)
    assert evaluate({"plan": {"uses_index": ["t_a"]}}, ([{"Plan": sequential}],))[1] == {
        "indexes": [],
        "read_whole": ["app.t"],
    }
