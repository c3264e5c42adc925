# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Verification checks: what a database must answer, and what it must refuse. Everything a check does is rolled back.

Inside the runner's open transaction a check runs between a savepoint and its rollback, otherwise in a transaction of
its own that is rolled back. So a failing check neither poisons the next one nor leaves anything behind; only sequences
move.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import json
import re
import time
import typing as t
from datetime import timedelta
from decimal import Decimal

from ansible_collections.surefoot.dbops.plugins.module_utils import _secrets
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    quote_identifier,
    quote_literal,
    redact,
    register_secret,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    EnvironmentProblem,
    Interrupted,
    Location,
    PlanError,
    SqlTextError,
    SurefootError,
    VerificationFailed,
    condition_name,
    sqlstate_of,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._script import classify, executable, inspect
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement, Token, statements
from ansible_collections.surefoot.dbops.plugins.module_utils._values import (
    human_duration,
    milliseconds,
    parse_duration,
    to_plain,
)

try:
    import jmespath
    import jmespath.exceptions

    JMESPATH_ERROR: ImportError | None = None
except ImportError as exc:
    JMESPATH_ERROR = exc

try:
    import psycopg2
    import psycopg2.extensions

    PSYCOPG2_ERROR: ImportError | None = None
except ImportError as exc:
    PSYCOPG2_ERROR = exc

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

DEFAULT_TIMEOUT = 30.0
BEFORE_COMMIT = "before_commit"
AFTER_COMMIT = "after_commit"

# More rows than this are not fetched: no expectation can name them, and a forgotten WHERE must not fill the memory.
MAX_ROWS = 10_000
_SHOWN_ITEMS = 20
_SHOWN_CHARACTERS = 500
_SHOWN_DEPTH = 6

_KEYS = ("name", "query", "statement", "expect", "expect_error", "when", "timeout", "as_role", "settings", "criterion")
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)+")
_CRITERION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
# What such a statement is needs no closer look.
_PLAIN_HEADS = frozenset({"select", "with", "values", "table", "(", "insert", "update", "delete", "merge"})
_QUERY_HEADS = frozenset({"select", "with", "values", "table", "(", "show", "explain"})

# What a check finds in its session whatever a migration's text or the client's environment did before: names are looked
# up as in a new session, row security applies, and values print the same way everywhere.
_SESSION = (
    "SET LOCAL search_path TO DEFAULT; SET LOCAL row_security TO DEFAULT; SET LOCAL TimeZone TO 'UTC';"
    " SET LOCAL DateStyle TO 'ISO, YMD'; SET LOCAL extra_float_digits TO 1"
)


class Locator(t.Protocol):
    """Where the entry at a path of keys stands in the user's file; with ``text``, where its text begins."""

    def __call__(self, *path: str | int, text: bool = False) -> Location: ...


# ---------------------------------------------------------------------------------------------------------------------
# Expectations: parsed once, evaluated over the rows of a query


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a query as the driver returned them; ``complete`` is False when there were more than are fetched."""

    columns: tuple[str, ...]
    values: list[tuple[t.Any, ...]]
    complete: bool = True

    @property
    def shape(self) -> str:
        count = _count(len(self.values), "row") if self.complete else f"more than {MAX_ROWS} rows"
        return f"{count} of {_count(len(self.columns), 'column')}"

    def objects(self) -> list[dict[str, t.Any]]:
        return [dict(zip(self.columns, row)) for row in self.values]

    def single(self) -> list[t.Any]:
        """Values of the one column, or the rows as lists."""
        return [row[0] for row in self.values] if len(self.columns) == 1 else [list(row) for row in self.values]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Outcome(t.NamedTuple):
    passed: bool
    measured: t.Any
    show_rows: bool = False


@dataclasses.dataclass(frozen=True)
class Expectation:
    """One ``expect``: the form, and what it requires, as plain values."""

    form: str
    required: t.Any
    expression: t.Any = None  # a compiled JMESPath expression

    @property
    def fetch(self) -> int:
        """How many rows decide the outcome."""
        bounds: list[int] = []
        if self.form == "rows":
            bounds = list(self.required.values()) if isinstance(self.required, dict) else [self.required]
        elif self.form in ("set", "list", "rows_equal"):
            bounds = [len(self.required)]
        return max([MAX_ROWS, *bounds])

    def evaluate(self, rows: _Rows) -> _Outcome:
        """Whether the rows are what is required, and what was measured."""
        return _EVALUATE[self.form](self, rows)


def comparison_key(value: t.Any) -> t.Hashable:
    """Two values are the same when their keys are equal.

    Numbers of all types compare by value (``1`` is ``1.0`` is ``numeric 1.00``), intervals as their seconds; a boolean
    only equals a boolean, NULL only NULL, text only text (``'t'`` is not true, ``'8'`` is not 8); lists compare item by
    item, JSON objects key by key; every other type by the text of ``to_plain``.
    """
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean", value)
    number = _number(value)
    if number is not None:
        return ("number", number)
    if isinstance(value, t.Mapping):
        return ("object", frozenset((str(key), comparison_key(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return ("array", tuple(comparison_key(item) for item in value))
    if isinstance(value, (float, Decimal)):
        text = str(value).lower()
        return ("text", "NaN" if "nan" in text else "-Infinity" if text.startswith("-") else "Infinity")
    return ("text", str(to_plain(value)))


def _number(value: t.Any) -> Decimal | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, timedelta):
        return Decimal(str(value.total_seconds()))
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, (float, Decimal)):
        # repr: the shortest decimal that means the same double, which is also what the user wrote in YAML
        number = Decimal(repr(value)) if isinstance(value, float) else value
        return number if number.is_finite() else None
    return None


def _same(left: t.Any, right: t.Any) -> bool:
    return comparison_key(left) == comparison_key(right)


def _satisfies(value: t.Any, operators: t.Mapping[str, t.Any]) -> bool:
    for operator, operand in operators.items():
        if operator in ("min", "max"):
            number, bound = _number(value), _number(operand)
            if number is None or bound is None:
                return False
            passed = number >= bound if operator == "min" else number <= bound
        elif operator == "matches":
            passed = isinstance(value, str) and re.search(operand, value) is not None
        elif operator == "in":
            passed = comparison_key(value) in {comparison_key(item) for item in operand}
        else:
            passed = _same(value, operand) == (operator == "equals")
        if not passed:
            return False
    return True


def _evaluate_rows(expectation: Expectation, rows: _Rows) -> _Outcome:
    count, required = len(rows.values), expectation.required
    operators = required if isinstance(required, dict) else {"equals": required}
    return _Outcome(_satisfies(count, operators), count if rows.complete else f"more than {count - 1}", True)


def _evaluate_scalar(expectation: Expectation, rows: _Rows) -> _Outcome:
    if len(rows.values) != 1 or len(rows.columns) != 1:
        return _Outcome(False, rows.shape, True)
    value, required = rows.values[0][0], expectation.required
    return _Outcome(_satisfies(value, required if isinstance(required, dict) else {"equals": required}), value)


def _evaluate_set(expectation: Expectation, rows: _Rows) -> _Outcome:
    if not rows.complete:
        return _Outcome(False, rows.shape)
    measured = {comparison_key(item): item for item in rows.single()}
    required = {comparison_key(item): item for item in expectation.required}
    missing = [item for key, item in required.items() if key not in measured]
    unexpected = [item for key, item in measured.items() if key not in required]
    if missing or unexpected:
        return _Outcome(False, {"missing": missing, "unexpected": unexpected})
    return _Outcome(True, list(measured.values()))


def _evaluate_list(expectation: Expectation, rows: _Rows) -> _Outcome:
    measured = rows.single()
    return _Outcome(rows.complete and _same(measured, expectation.required), measured)


def _evaluate_rows_equal(expectation: Expectation, rows: _Rows) -> _Outcome:
    if len(set(rows.columns)) != len(rows.columns):
        return _Outcome(False, f"columns of the same name: {', '.join(rows.columns)}")
    measured = rows.objects()
    return _Outcome(rows.complete and _same(measured, expectation.required), measured)


def _evaluate_jmespath(expectation: Expectation, rows: _Rows) -> _Outcome:
    if not rows.complete:
        return _Outcome(False, rows.shape)
    if len(set(rows.columns)) != len(rows.columns):
        return _Outcome(False, f"columns of the same name: {', '.join(rows.columns)}")
    try:
        value = expectation.expression.search(_json_numbers(rows.objects()))
    except jmespath.exceptions.JMESPathError as exc:
        return _Outcome(False, f"the expression cannot be evaluated: {' '.join(str(exc).split())}", True)
    operators = {key: operand for key, operand in expectation.required.items() if key != "jmespath"}
    return _Outcome(_satisfies(value, operators), value, True)


def _evaluate_true(_expectation: Expectation, rows: _Rows) -> _Outcome:
    if len(rows.columns) != 1 or not rows.complete:
        return _Outcome(False, rows.shape)
    true = sum(1 for row in rows.values if row[0] is True)
    return _Outcome(bool(rows.values) and true == len(rows.values), f"{true} of {len(rows.values)} true", True)


def _evaluate_file(_expectation: Expectation, rows: _Rows) -> _Outcome:
    values = [row[0] for row in rows.values if len(row) == 1]
    if len(rows.columns) == 1 and values and all(isinstance(value, bool) or value is None for value in values):
        return _evaluate_true(_expectation, rows)
    return _Outcome(True, rows.shape)


def _evaluate_plan(expectation: Expectation, rows: _Rows) -> _Outcome:
    indexes: set[str] = set()
    whole: set[str] = set()
    for node in _plan_nodes(rows.values[0][0]):
        index, table = node.get("Index Name"), node.get("Relation Name")
        if index and any(key in node for key in ("Index Cond", "Order By")):
            indexes.add(index)
        elif table and node["Node Type"] in ("Seq Scan", "Sample Scan", "Index Scan", "Index Only Scan"):
            # A scan of a whole index reads the table as a sequential scan does, in another order.
            whole.add(f"{node['Schema']}.{table}")
    required = expectation.required
    refused = [
        name for name in whole for table in required.get("no_seq_scan", ()) if table in (name, name.split(".")[1])
    ]
    passed = indexes.issuperset(required.get("uses_index", ())) and not refused
    return _Outcome(passed, {"indexes": sorted(indexes), "read_whole": sorted(whole)})


def _plan_nodes(plan: t.Any) -> t.Iterator[t.Mapping[str, t.Any]]:
    """Every node of what EXPLAIN says as JSON."""
    for item in plan:
        todo = [item["Plan"]]
        while todo:
            node = todo.pop()
            todo.extend(node.get("Plans", ()))
            yield node


def _json_numbers(value: t.Any) -> t.Any:
    """Plain values; a numeric is a JSON number here, so that JMESPath can compare and add it."""
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, t.Mapping):
        return {str(key): _json_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_numbers(item) for item in value]
    return to_plain(value)


_EVALUATE: dict[str, t.Callable[[Expectation, _Rows], _Outcome]] = {
    "rows": _evaluate_rows,
    "scalar": _evaluate_scalar,
    "set": _evaluate_set,
    "list": _evaluate_list,
    "rows_equal": _evaluate_rows_equal,
    "jmespath": _evaluate_jmespath,
    "true": _evaluate_true,
    "plan": _evaluate_plan,
    "file": _evaluate_file,
}
_FORMS = tuple(form for form in _EVALUATE if form != "file")
_OPERATORS = ("equals", "not", "in", "min", "max", "matches")
_PLAN_KEYS = ("uses_index", "no_seq_scan")


def nearest(word: str, known: t.Iterable[str]) -> str:
    """A remedy that names the nearest known word, or all of them when none is near."""
    candidates = list(known)
    close = difflib.get_close_matches(str(word), candidates, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Known: {', '.join(candidates)}." if candidates else "There is none."


def _parse_expect(value: t.Any, at: Locator) -> Expectation:
    remedy = f"Give one of {', '.join(_FORMS)}."
    if not isinstance(value, t.Mapping):
        raise PlanError("expect is not a mapping", location=at("expect"), remedy=remedy)
    # YAML reads the key of {true: all} as a boolean.
    entries = {"true" if key is True else str(key): item for key, item in value.items()}
    forms = [key for key in entries if key in _FORMS]
    extra = [key for key in entries if key not in _FORMS and not ("jmespath" in entries and key in _OPERATORS)]
    if extra:
        location = at("expect", extra[0])
        raise PlanError(f"unknown key {extra[0]} in expect", location=location, remedy=nearest(extra[0], _FORMS))
    if len(forms) != 1:
        problem = f"expect has {' and '.join(forms)}" if forms else "expect is empty"
        raise PlanError(problem, location=at("expect"), remedy=remedy)
    form = forms[0]
    location, operand = at("expect", form), entries[form]
    if form == "rows":
        return Expectation(form, _parse_row_count(operand, location))
    if form == "scalar":
        if isinstance(operand, t.Mapping):
            operand = _parse_operators(operand, _OPERATORS, "scalar", location)
        return Expectation(form, operand)
    if form == "true":
        if operand != "all":
            raise PlanError("expect.true has another value than all", location=location, remedy="Write {true: all}.")
        return Expectation(form, "all")
    if form == "jmespath":
        return _parse_jmespath(entries, location)
    if form == "plan":
        return _parse_plan(operand, location)
    if not isinstance(operand, (list, tuple)):
        raise PlanError(f"expect.{form} is not a list", location=location, remedy="Write a list, such as [a, b].")
    if form == "rows_equal" and not all(isinstance(item, t.Mapping) for item in operand):
        remedy = "Write [{column: value}]."
        raise PlanError("expect.rows_equal is not a list of mappings", location=location, remedy=remedy)
    return Expectation(form, list(operand))


def _parse_plan(operand: t.Any, location: Location) -> Expectation:
    remedy = "Write {uses_index: [index], no_seq_scan: [table]}, or one of them."
    if not isinstance(operand, t.Mapping) or not operand:
        raise PlanError("expect.plan says nothing to look for", location=location, remedy=remedy)
    for key, names in operand.items():
        if key not in _PLAN_KEYS:
            raise PlanError(
                f"unknown key {key} in expect.plan", location=location, remedy=nearest(str(key), _PLAN_KEYS)
            )
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
            raise PlanError(f"{key} of expect.plan is not a list of names", location=location, remedy=remedy)
    return Expectation("plan", {str(key): list(names) for key, names in operand.items()})


def _parse_row_count(operand: t.Any, location: Location) -> t.Any:
    operators = operand if isinstance(operand, t.Mapping) else {"equals": operand}
    for key in operators:
        if key not in ("equals", "min", "max"):
            remedy = nearest(str(key), ("equals", "min", "max"))
            raise PlanError(f"unknown key {key} in expect.rows", location=location, remedy=remedy)
    counts = list(operators.values())
    if not counts or not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        raise PlanError("expect.rows is not a number of rows", location=location, remedy="Write 8 or {min: 1, max: 8}.")
    return operand if not isinstance(operand, t.Mapping) else dict(operand)


def _parse_operators(
    operators: t.Mapping[t.Any, t.Any], known: t.Sequence[str], where: str, location: Location
) -> dict[str, t.Any]:
    for key, operand in operators.items():
        if key not in known:
            raise PlanError(f"unknown key {key} in expect.{where}", location=location, remedy=nearest(str(key), known))
        if key in ("min", "max") and _number(operand) is None:
            raise PlanError(f"{key} of expect.{where} is not a number", location=location)
        if key == "in" and not isinstance(operand, (list, tuple)):
            raise PlanError(f"in of expect.{where} is not a list", location=location)
        if key == "matches":
            try:
                re.compile(operand)
            except (re.error, TypeError) as exc:
                problem = f"matches of expect.{where} is no regular expression: {exc}"
                raise PlanError(problem, location=location) from None
    if not operators:
        remedy = f"Give one of {', '.join(known)}."
        raise PlanError(f"expect.{where} says nothing to compare with", location=location, remedy=remedy)
    return {str(key): operand for key, operand in operators.items()}


def _parse_jmespath(entries: t.Mapping[str, t.Any], location: Location) -> Expectation:
    if JMESPATH_ERROR is not None:
        raise EnvironmentProblem(
            "a check uses jmespath, and the Python package jmespath is missing",
            location=location,
            remedy="Install it for the Python that runs the module: pip install jmespath.",
        )
    if not isinstance(entries["jmespath"], str):
        raise PlanError("expect.jmespath is not a text", location=location)
    operators = {key: operand for key, operand in entries.items() if key != "jmespath"}
    operators = _parse_operators(operators, _OPERATORS, "jmespath", location)
    try:
        expression = jmespath.compile(entries["jmespath"])
    except jmespath.exceptions.JMESPathError as exc:
        message = " ".join(str(exc).split())
        raise PlanError(f"expect.jmespath is no JMESPath expression: {message}", location=location) from None
    return Expectation("jmespath", {"jmespath": entries["jmespath"], **operators}, expression)


# ---------------------------------------------------------------------------------------------------------------------
# Checks


@dataclasses.dataclass(frozen=True)
class Check:
    """One verification check.

    ``kind``: ``query`` (its rows are compared), ``statement`` (it must succeed, or be refused with one of
    ``expect_error``) or ``file`` (``path`` is a SQL file of which every statement is a check; see :func:`expand`).
    ``timeout`` is in seconds, ``expect_error`` holds SQLSTATEs, ``declared_when`` what the user wrote.
    """

    name: str
    sql: str
    kind: str
    location: Location
    expect: Expectation | None = None
    expect_error: tuple[str, ...] = ()
    declared_when: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    as_role: str | None = None
    settings: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    criterion: str | None = None
    path: str | None = None
    sql_location: Location | None = None

    @functools.cached_property
    def when(self) -> str:
        """``before_commit`` or ``after_commit``: as declared; else before commit if it is a query of catalogs only."""
        if self.declared_when is not None:
            return self.declared_when
        return BEFORE_COMMIT if self.kind == "query" and is_catalog_query(self.parsed) else AFTER_COMMIT

    @functools.cached_property
    def parsed(self) -> Statement:
        """The one statement of the check, see :meth:`parse`."""
        return self.parse()

    def parse(self) -> Statement:
        """The one statement of the check's text.

        :raises SqlTextError: not exactly one statement, or one that cannot be rolled back; located in the user's file
        """
        with self._sql_located():
            found = list(statements(io.BytesIO(self.sql.encode("utf-8", "surrogatepass")), name=""))
            if len(found) != 1:
                count = f"{len(found)} statements" if found else "no statement"
                location = Location("", found[1].line, found[1].column) if found else Location("", 1, 1)
                remedy = "Write one statement a check."
                raise SqlTextError(f"check {self.name!r} has {count}", location=location, remedy=remedy)
            _refuse_unfit(found[0])
            return found[0]

    @property
    def explained(self) -> bool:
        """Whether the query is not run, but its plan looked at."""
        return self.expect is not None and self.expect.form == "plan"

    @property
    def slug(self) -> str:
        """The name as a part of a criterion: lower-case letters, digits and underscores."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")[:80] or "check"

    @contextlib.contextmanager
    def _sql_located(self) -> t.Iterator[None]:
        """Turns a position in the check's text into one in the file the text stands in."""
        try:
            yield
        except SqlTextError as exc:
            start, found = self.sql_location or self.location, exc.location
            line, column = start.line, start.column
            if found is not None and found.line is not None and line is not None:
                first_line = found.line == 1
                line += found.line - 1
                # The indentation of the following lines is YAML's and not part of the text.
                column = column + (found.column or 1) - 1 if first_line and column is not None else None
            location = Location(start.file, line, column)
            raise SqlTextError(exc.message, remedy=exc.remedy, location=location, details=exc.details) from None


def parse_check(mapping: t.Any, location: Location, line_of: Locator | None = None) -> Check:
    """A check as the user wrote it.

    :param mapping: keys and plain values; see ``docs/plan.md``
    :param location: of the check itself
    :param line_of: where its parts stand; without it every error names ``location``
    :raises PlanError: unknown, missing or malformed entries
    :raises SqlTextError: the SQL is not one statement that can be rolled back
    :raises EnvironmentProblem: it uses ``jmespath`` and the package is missing
    """
    at = line_of or (lambda *_path, text=False: location)
    if not isinstance(mapping, t.Mapping):
        raise PlanError("a check is not a mapping", location=location, remedy="Give name, query and expect.")
    for key in mapping:
        if key not in _KEYS:
            raise PlanError(f"unknown key {key} in a check", location=at(str(key)), remedy=nearest(str(key), _KEYS))
    name = mapping.get("name")
    if not isinstance(name, str) or not name.strip():
        location = at("name") if "name" in mapping else location
        raise PlanError("a check has no name", location=location, remedy="Give name, a text.")
    kinds = [key for key in ("query", "statement") if key in mapping]
    if len(kinds) != 1:
        problem = "both query and statement" if kinds else "neither query nor statement"
        raise PlanError(f"check {name!r} has {problem}", location=location, remedy="Give exactly one of them.")
    kind = kinds[0]
    if not isinstance(mapping[kind], str):
        raise PlanError(f"{kind} of check {name!r} is not a text", location=at(kind))
    if kind == "query" and "expect" not in mapping:
        remedy = f"Give expect with {', '.join(_FORMS)}."
        if "expect_error" in mapping:
            remedy = "expect_error goes with statement."
        raise PlanError(f"check {name!r} has a query without expect", location=at(kind), remedy=remedy)
    if kind == "query" and "expect_error" in mapping:
        raise PlanError(f"check {name!r} has both expect and expect_error", location=at("expect_error"))
    if kind == "statement" and "expect" in mapping:
        remedy = "expect goes with query; a statement must succeed, or fail with expect_error."
        raise PlanError(f"check {name!r} has a statement with expect", location=at("expect"), remedy=remedy)
    when = mapping.get("when")
    if "when" in mapping and when not in (BEFORE_COMMIT, AFTER_COMMIT):
        remedy = f"Write {BEFORE_COMMIT} or {AFTER_COMMIT}."
        raise PlanError(f"when of check {name!r} is {when!r}", location=at("when"), remedy=remedy)
    criterion = mapping.get("criterion")
    if "criterion" in mapping and not (isinstance(criterion, str) and _CRITERION.fullmatch(criterion)):
        remedy = "Write a dotted identifier, such as platform.rls.complete."
        raise PlanError(f"criterion of check {name!r} is {criterion!r}", location=at("criterion"), remedy=remedy)
    as_role = mapping.get("as_role")
    if "as_role" in mapping and not (isinstance(as_role, str) and as_role):
        raise PlanError(f"as_role of check {name!r} is not the name of a role", location=at("as_role"))
    check = Check(
        name=name.strip(),
        sql=mapping[kind],
        kind=kind,
        location=location,
        expect=_parse_expect(mapping["expect"], at) if kind == "query" else None,
        expect_error=_parse_errors(mapping["expect_error"], at) if "expect_error" in mapping else (),
        declared_when=when,
        timeout=_parse_timeout(mapping["timeout"], at) if "timeout" in mapping else DEFAULT_TIMEOUT,
        as_role=as_role,
        settings=_parse_settings(mapping["settings"], at) if "settings" in mapping else {},
        criterion=criterion,
        sql_location=at(kind, text=True),
    )
    check.__dict__["parsed"] = check.parse()
    if check.explained and check.parsed.head[0].value not in _PLAIN_HEADS:
        raise PlanError(
            f"check {name!r} asks for the plan of something that has none",
            location=at(kind),
            remedy="Give the query itself; the check explains it.",
        )
    return check


def read_checks(given: t.Sequence[t.Any], name: str) -> list[Check]:
    """Checks that are given as a list under this name.

    :raises PlanError: one of them is wrong; its place is its index
    """
    return [parse_check(check, Location(f"{name}[{number}]")) for number, check in enumerate(given)]


def _parse_errors(value: t.Any, at: Locator) -> tuple[str, ...]:
    names = value if isinstance(value, (list, tuple)) else [value]
    if not names:
        remedy = "Name an error, or leave the key out."
        raise PlanError("expect_error is empty", location=at("expect_error"), remedy=remedy)
    codes = []
    for name in names:
        try:
            # YAML reads 23503 as a number.
            codes.append(sqlstate_of(str(name) if isinstance(name, (str, int)) and not isinstance(name, bool) else ""))
        except PlanError as exc:
            raise PlanError(exc.message, remedy=exc.remedy, location=at("expect_error")) from None
    return tuple(codes)


def _parse_timeout(value: t.Any, at: Locator) -> float:
    try:
        seconds = parse_duration(value)
    except PlanError as exc:
        raise PlanError(f"timeout: {exc.message}", remedy=exc.remedy, location=at("timeout")) from None
    if seconds <= 0:
        raise PlanError("timeout is 0", location=at("timeout"), remedy="A check always has a timeout, such as 30s.")
    return seconds


def _parse_settings(value: t.Any, at: Locator) -> dict[str, str]:
    if not isinstance(value, t.Mapping):
        remedy = "Write {app.current_org_id: value}."
        raise PlanError("settings is not a mapping", location=at("settings"), remedy=remedy)
    settings = {}
    for name, setting in value.items():
        location = at("settings", str(name))
        if not _SETTING_NAME.fullmatch(str(name)):
            remedy = "Only custom settings can be given; their names contain a dot, such as app.current_org_id."
            raise PlanError(f"{name} is not the name of a custom setting", location=location, remedy=remedy)
        if isinstance(setting, bool):
            setting = "on" if setting else "off"
        if not isinstance(setting, (str, int, float, Decimal)):
            raise PlanError(f"the value of setting {name} is not a text or number", location=location)
        settings[str(name)] = str(setting)
    return settings


def check_file(path: str, name: str, location: Location, when: str | None = None) -> Check:
    """The check for a SQL file whose statements are checks; nothing is read before :func:`expand`."""
    return Check(name=name, sql="", kind="file", location=location, path=path, declared_when=when)


def expand(checks: t.Sequence[Check]) -> list[Check]:
    """The checks with every file replaced by one check a statement.

    A statement of a file must run without an error; when it is a query whose one column is boolean, every value must be
    true. The file may be wrapped in one BEGIN ... COMMIT and hold psql commands that only print.

    :raises SqlTextError: a file cannot be read or cut into statements, or holds one that cannot be a check
    """
    expanded: list[Check] = []
    for check in checks:
        if check.kind == "file":
            expanded.extend(_file_checks(check))
        else:
            expanded.append(check)
    return expanded


def _file_checks(check: Check) -> t.Iterator[Check]:
    path = t.cast(str, check.path)
    for statement, _class in executable(path, inspect(path)):
        _refuse_unfit(statement)
        is_query = statement.head[0].value in _QUERY_HEADS
        found = dataclasses.replace(
            check,
            name=f"{check.name} line {statement.line}",
            sql=statement.text,
            kind="query" if is_query else "statement",
            expect=Expectation("file", "no error; true, where it is one boolean column") if is_query else None,
            location=Location(check.location.file, statement.line, statement.column),
            path=None,
        )
        # The statement is parsed already; it also knows where in the file it stands.
        found.__dict__["parsed"] = statement
        yield found


def _refuse_unfit(statement: Statement) -> None:
    location = Location(statement.name, statement.line, statement.column)
    if statement.meta is not None:
        command = statement.meta.split()[0] if statement.meta.split() else "\\"
        raise SqlTextError(f"{command} is a command of psql, not SQL", location=location, remedy="Remove it.")
    first = next(statement.tokens(), None)
    if first is None:
        raise SqlTextError("a check has no SQL", location=location)
    if statement.copy_data is not None:
        raise SqlTextError("COPY with data in the text cannot be a check", location=location, remedy="Use INSERT.")
    if first.value in _PLAIN_HEADS:
        return
    entry = classify(statement)
    if first.value in ("set", "reset"):
        remedy = "Remove it: every check begins with the session's own settings; use the keys settings and as_role."
    elif entry.in_transaction == "control" or first.value in ("savepoint", "release", "rollback"):
        remedy = "Remove it: every check runs in a transaction of its own that is rolled back."
    elif entry.in_transaction == "never":
        remedy = "It cannot run in a transaction, so it could not be rolled back."
    else:
        return
    raise SqlTextError(f"{entry.tag} cannot be a check", location=location, remedy=remedy)


def due(checks: t.Sequence[Check], when: str) -> list[Check]:
    """The checks for one moment, ``before_commit`` or ``after_commit``, files expanded."""
    return [check for check in expand(checks) if check.when == when]


def validate_checks(checks: t.Sequence[Check], names: t.Collection[str]) -> None:
    """Everything that can be said without a connection.

    :param names: of all variables that have a value, secret ones included
    :raises SqlTextError: a file is not valid, or a variable has no value
    """
    for check in expand(checks):
        for reference in check.parsed.variables:
            if reference.name not in names:
                with check._sql_located() if check.sql_location else contextlib.nullcontext():
                    raise SqlTextError(
                        f"variable :{reference.name} of check {check.name!r} has no value",
                        location=check.parsed.location(reference.offset),
                        remedy=nearest(reference.name, names) if names else "Define it under `variables`.",
                    )


# Functions in FROM that read nothing but their arguments.
_PURE_FUNCTIONS = re.compile(
    r"unnest|generate_(?:series|subscripts)|jsonb?_.*|string_to_table|regexp_.*|aclexplode|xmltable"
)
_FROM_ENDS = frozenset(
    {"where", "group", "having", "window", "union", "intersect", "except", "order", "limit", "offset", "fetch", "for"}
)
_BEFORE_RELATION = frozenset({"only", "lateral", "rows"})
_WRITES = frozenset({"insert", "update", "delete", "merge", "into", "truncate", "call", "do"})


def is_catalog_query(statement: Statement) -> bool:
    """Whether a query reads nothing but the system catalogs, judged by its words alone.

    True when every name after FROM, JOIN, TABLE or a comma of a FROM list is in ``pg_catalog`` or
    ``information_schema``, begins with ``pg_``, is a WITH query of the same statement or one of the built-in functions
    that unpack their arguments; when no function of another schema is called by a qualified name; and when no word of
    the text writes.
    """
    tokens = list(statement.tokens())
    if not tokens or tokens[0].value not in ("select", "with", "values", "table", "("):
        return False
    if any(token.kind == "word" and token.value in _WRITES for token in tokens):
        return False
    local = _with_names(tokens)
    # One entry a parenthesis level: [a SELECT stands in it, its FROM list is open]
    levels: list[list[bool]] = [[False, False]]
    expecting = tokens[0].value == "table"
    position = 1 if expecting else 0
    while position < len(tokens):
        token = tokens[position]
        if expecting:
            if token.value == "(" and token.kind == "punctuation":
                levels.append([False, True])
                following = tokens[position + 1].value if position + 1 < len(tokens) else ""
                expecting = following not in ("select", "with", "values")
                position += 1
                continue
            if token.kind == "word" and token.value in _BEFORE_RELATION:
                position += 1
                continue
            end = _qualified_end(tokens, position)
            if end is None or not _is_catalog_name(tokens, position, end, local):
                return False
            expecting, position = False, end
            continue
        if token.kind == "punctuation" and token.value == "(":
            levels.append([False, False])
        elif token.kind == "punctuation" and token.value == ")":
            if len(levels) > 1:
                levels.pop()
        elif token.kind == "punctuation" and token.value == ",":
            expecting = levels[-1][1]
        elif token.kind in ("word", "quoted_identifier"):
            word = token.value if token.kind == "word" else ""
            if word == "select":
                levels[-1] = [True, False]
            elif word == "join" or (
                # FROM without a SELECT on its level is that of extract() and its kin; the other is IS DISTINCT FROM.
                word == "from" and levels[-1][0] and tokens[position - 1].value != "distinct"
            ):
                levels[-1][1] = expecting = True
            elif word in _FROM_ENDS:
                levels[-1][1] = False
            elif _calls_foreign_function(tokens, position):
                return False
        position += 1
    return True


def _with_names(tokens: list[Token]) -> frozenset[str]:
    names: set[str] = set()
    for position in range(1, len(tokens) - 2):
        following = tokens[position + 1].value
        # WITH name AS ( or name AS MATERIALIZED (, or name (columns) AS (
        opens = following == "as" and tokens[position + 2].value in ("(", "materialized", "not")
        if (opens or following == "(") and tokens[position].kind in ("word", "quoted_identifier"):
            before = tokens[position - 1].value
            if before in ("with", "recursive") or (before == "," and (names or following == "as")):
                names.add(tokens[position].value)
    return frozenset(names) if any(token.value == "with" for token in tokens) else frozenset()


def _qualified_end(tokens: list[Token], position: int) -> int | None:
    """Position after ``name`` or ``name.name``; None when no name stands there."""
    if tokens[position].kind not in ("word", "quoted_identifier"):
        return None
    position += 1
    while position + 1 < len(tokens) and tokens[position].value == "." and tokens[position].kind == "punctuation":
        position += 2
    return position


def _is_catalog_name(tokens: list[Token], start: int, end: int, local: frozenset[str]) -> bool:
    first = tokens[start].value
    if end - start > 1:
        return first in ("pg_catalog", "information_schema")
    if end < len(tokens) and tokens[end].value == "(" and tokens[end].kind == "punctuation":
        return first.startswith("pg_") or _PURE_FUNCTIONS.fullmatch(first) is not None
    return first.startswith("pg_") or first in local


def _calls_foreign_function(tokens: list[Token], position: int) -> bool:
    if position and tokens[position - 1].value == ".":
        return False
    end = _qualified_end(tokens, position)
    if end is None or end - position < 3 or end >= len(tokens) or tokens[end].value != "(":
        return False
    return tokens[position].value not in ("pg_catalog", "information_schema")


# ---------------------------------------------------------------------------------------------------------------------
# Running


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What a check measured.

    ``measured``, ``required`` and ``rows`` (of a failed check) are plain, capped and redacted; ``seconds`` is the time
    the check took; ``error`` is the server's answer when it was not the one required.
    """

    check: Check
    passed: bool
    measured: t.Any
    required: t.Any
    seconds: float
    error: t.Mapping[str, t.Any] | None = None
    migration: str | None = None
    phase: str = "verify"
    rows: tuple[t.Any, ...] | None = None

    @property
    def criterion(self) -> str:
        """The check's own criterion, else ``verify.<migration>.<name>``."""
        return self.check.criterion or ".".join(part for part in ("verify", self.migration, self.check.slug) if part)

    @property
    def summary(self) -> str:
        """One line: the name, what was measured, what was required."""
        unit = " rows" if self.check.expect is not None and self.check.expect.form == "rows" else ""
        measured = _show(self.measured) + (unit if isinstance(self.measured, int) else "")
        required = _show(self.required) + (unit if isinstance(self.required, int) else "")
        return f"{self.check.name}: measured {measured}, required {required}"

    @property
    def _form(self) -> str:
        if self.check.expect is not None:
            return self.check.expect.form
        return "error" if self.check.expect_error else "success"

    def to_dict(self) -> dict[str, t.Any]:
        """For a task result. The check's SQL is as written, before its variables were put in."""
        return {
            "name": self.check.name,
            "criterion": self.criterion,
            "migration": self.migration,
            "passed": self.passed,
            "measured": self.measured,
            "required": self.required,
            "seconds": round(self.seconds, 6),
            "when": self.check.when,
            "kind": self.check.kind,
            "expect": self._form,
            "sql": _capped(self.check.sql),
            "rows": list(self.rows) if self.rows is not None else None,
            "error": dict(self.error) if self.error else None,
            **self.check.location.to_dict(),
        }

    def evidence(self) -> Evidence:
        """The record for the gate and the report."""
        details = self.to_dict()
        for key in ("criterion", "measured", "required"):
            details.pop(key)
        return Evidence(
            criterion=self.criterion,
            phase=self.phase,
            verdict=verdict(self.passed),
            measured=self.measured,
            required=self.required,
            source=f"SQL {self.check.kind}, rolled back",
            details=details,
        )


def _show(value: t.Any) -> str:
    text = value if isinstance(value, str) else str(to_json(value))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def to_json(value: t.Any) -> str:
    """A plain value on one line."""
    return json.dumps(value, ensure_ascii=False, sort_keys=False)


def _capped(value: t.Any, depth: int = 0) -> t.Any:
    """A value for showing: plain, redacted, at most 20 items a list or object and 500 characters a text."""
    if isinstance(value, t.Mapping):
        if depth >= _SHOWN_DEPTH:
            return "{...}"
        shown = {redact(str(key)): _capped(item, depth + 1) for key, item in list(value.items())[:_SHOWN_ITEMS]}
        if len(value) > _SHOWN_ITEMS:
            shown["..."] = f"and {len(value) - _SHOWN_ITEMS} more"
        return shown
    if isinstance(value, (list, tuple)):
        if depth >= _SHOWN_DEPTH:
            return "[...]"
        items = [_capped(item, depth + 1) for item in value[:_SHOWN_ITEMS]]
        return [*items, f"... and {len(value) - _SHOWN_ITEMS} more"] if len(value) > _SHOWN_ITEMS else items
    plain = to_plain(value)
    if not isinstance(plain, str):
        return plain
    # Redaction comes first: a cut secret would not be recognised any more.
    text = redact(plain)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + f"... ({len(text)} characters)"


def run_checks(
    connection: Connection,
    checks: t.Sequence[Check],
    *,
    variables: t.Mapping[str, t.Any],
    secret_variables: t.Mapping[str, t.Any],
    phase: str,
    inside_transaction: bool,
    migration: str | None = None,
    cancelled: t.Callable[[], bool] | None = None,
    time_left: t.Callable[[], float] | None = None,
) -> list[CheckResult]:
    """Run the checks one after the other, each rolled back. All of them run, whatever fails.

    Every check given is run; :func:`due` chooses by ``when``.

    :param connection: in autocommit mode; idle, or inside the open transaction when ``inside_transaction``
    :param phase: of the run, for the evidence
    :param cancelled: asked before each check and when the server cancels one
    :param time_left: seconds that a check may still take at most, whatever its own timeout is
    :raises ConnectionFailed: the connection was lost
    :raises Interrupted: ``cancelled`` said so
    :raises SqlTextError: an undefined variable, or a secret where none can stand
    """
    for value in secret_variables.values():
        register_secret(value)
    results = []
    for check in expand(checks):
        if cancelled is not None and cancelled():
            raise Interrupted(f"stopped before check {check.name!r}")
        limit = check.timeout if time_left is None else max(0.001, min(check.timeout, time_left()))
        runner = _CheckRun(connection, check, limit, inside_transaction, variables, secret_variables)
        results.append(runner.run(phase, migration, cancelled))
    return results


@dataclasses.dataclass(frozen=True)
class CheckGroup:
    """Checks that share a connection: those of one migration, with its settings and the secret variables for them."""

    checks: t.Sequence[Check]
    migration: str | None = None
    session_settings: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


class Verification:
    """Groups of checks on one database, after the fact: each check in a transaction of its own."""

    def __init__(
        self,
        options: ConnectionOptions,
        groups: t.Sequence[CheckGroup],
        *,
        variables: t.Mapping[str, t.Any],
        secret_variables: t.Mapping[str, t.Any],
        phase: str = "verify",
    ) -> None:
        """Validates everything that can be without a connection.

        :raises SqlTextError: a verification file is not valid, or a variable has no value
        :raises PlanError: a session setting's secret variable has no value
        """
        names = {*variables, *secret_variables}
        self._groups = []
        for group in groups:
            missing = [name for name in group.session_settings.values() if secret_variables.get(name) is None]
            if missing:
                remedy = "Give it in the option secret_variables."
                raise PlanError(f"no value for secret variable {missing[0]}, a session setting", remedy=remedy)
            checks = expand(group.checks)
            validate_checks(checks, names)
            self._groups.append(dataclasses.replace(group, checks=checks))
        self._options = options
        self._variables = variables
        self._secrets = secret_variables
        self._phase = phase
        self._connections: dict[frozenset[tuple[str, str]], Connection] = {}
        self._current: Connection | None = None
        self._stop = False
        self.results: list[CheckResult] = []

    def stop(self, _reason: str = "") -> None:
        """Cancel the check that runs and start no other; may be called from another thread, and more than once."""
        self._stop = True
        current = self._current
        if current is not None:
            with contextlib.suppress(psycopg2.Error):
                current.cancel()

    def run(self) -> list[CheckResult]:
        """Run all checks; ``results`` has those that ran, also when this raises.

        :raises ConnectionFailed: no connection, or it was lost
        :raises Interrupted: after :meth:`stop`
        """
        try:
            for group in self._groups:
                for check in group.checks:
                    self._current = self._connection(group)
                    self.results += run_checks(
                        self._current,
                        [check],
                        variables=self._variables,
                        secret_variables=self._secrets,
                        phase=self._phase,
                        inside_transaction=False,
                        migration=group.migration,
                        cancelled=lambda: self._stop,
                    )
        finally:
            self._current = None
            for connection in self._connections.values():
                connection.close()
        return self.results

    def _connection(self, group: CheckGroup) -> Connection:
        key = frozenset(group.session_settings.items())
        if key not in self._connections:
            settings = {name: str(self._secrets[variable]) for name, variable in group.session_settings.items()}
            self._connections[key] = connect(self._options, purpose="verify", settings=settings)
        return self._connections[key]

    def failure(self) -> VerificationFailed | None:
        """The failed checks in one line; None when none failed."""
        failed = [result for result in self.results if not result.passed]
        if not failed:
            return None
        lines = [result.summary for result in failed[:3]] + ([f"and {len(failed) - 3} more"] if len(failed) > 3 else [])
        return VerificationFailed(
            f"{len(failed)} of {_count(len(self.results), 'check')} failed: {'; '.join(lines)}",
            details={"failed_checks": [result.check.name for result in failed]},
        )


class _CheckRun:
    """One check on one connection."""

    def __init__(
        self,
        connection: Connection,
        check: Check,
        limit: float,
        inside_transaction: bool,
        variables: t.Mapping[str, t.Any],
        secrets: t.Mapping[str, t.Any],
    ) -> None:
        self.connection = connection
        self.check = check
        self.limit = limit
        self.inside = inside_transaction
        self.secret_names = _secrets.secret_names(check.parsed, secrets)
        self.secrets = secrets
        with check._sql_located() if check.sql_location else contextlib.nullcontext():
            self.sql = _secrets.render(
                check.parsed, variables=variables, secrets=secrets, connection=connection, file=check.parsed.name
            )

    def run(self, phase: str, migration: str | None, cancelled: t.Callable[[], bool] | None) -> CheckResult:
        self._require_status("before")
        started = time.monotonic()
        rows: _Rows | None = None
        tag = ""
        failure: Exception | None = None
        try:
            self._prepare()
            started = time.monotonic()
            rows, tag = self._execute()
        except psycopg2.Error as exc:
            failure = exc
        except (ValueError, OverflowError) as exc:
            # The driver has no Python value for it: a date before the year 1, a text with a NUL.
            failure = exc
        seconds = time.monotonic() - started
        self._undo(failure)
        if getattr(failure, "pgcode", None) == "57014" and cancelled is not None and cancelled():
            raise Interrupted(f"stopped during check {self.check.name!r}")
        outcome = self._judge(rows, tag, failure, seconds)
        error = None
        if failure is not None and not outcome.passed:
            error = sql_error(failure, statement=self.check.sql, location=self.check.location).to_dict()
        shown = None
        if outcome.show_rows and not outcome.passed and rows is not None:
            unique = len(set(rows.columns)) == len(rows.columns)
            shown = tuple(_capped(rows.objects() if unique else [list(row) for row in rows.values]))
        return CheckResult(
            check=self.check,
            passed=outcome.passed,
            measured=_capped(outcome.measured),
            required=_capped(self._required()),
            seconds=seconds,
            error=error,
            migration=migration,
            phase=phase,
            rows=shown,
        )

    def _required(self) -> t.Any:
        if self.check.expect_error:
            return "error " + " or ".join(_error_label(code) for code in self.check.expect_error)
        if self.check.expect is None:
            return "success"
        return "every value true" if self.check.expect.form == "true" else self.check.expect.required

    def _judge(self, rows: _Rows | None, tag: str, failure: Exception | None, seconds: float) -> _Outcome:
        if failure is None:
            if self.check.expect_error:
                return _Outcome(False, f"success ({tag})" if tag else "success")
            if self.check.expect is None or rows is None:
                return _Outcome(self.check.expect is None, f"success ({tag})" if tag else "success")
            return self.check.expect.evaluate(rows)
        code = getattr(failure, "pgcode", None)
        # Both limits are ours, so the clock tells them from a cancel or a NOWAIT; the message may be in any language.
        if code == "57014" and seconds >= self.limit * 0.98:
            return _Outcome(False, f"timed out after {human_duration(self.limit)}")
        if code == "55P03" and seconds >= self._lock_limit * 0.98:
            return _Outcome(False, f"waited {human_duration(self._lock_limit)} for a lock")
        if not isinstance(failure, psycopg2.Error):
            return _Outcome(False, f"a value that cannot be read: {failure}")
        if code is not None and code in self.check.expect_error:
            return _Outcome(True, f"error {_error_label(code)}")
        return _Outcome(False, f"error {_error_label(code)}: {sql_error(failure).message}")

    @property
    def _lock_limit(self) -> float:
        # Shorter than the statement's, so that a blocked check is told from a slow one.
        return self.limit * 0.9

    def _prepare(self) -> None:
        connection, check = self.connection, self.check
        opening = "SAVEPOINT surefoot_check" if self.inside else "BEGIN"
        settings = {
            "statement_timeout": str(milliseconds(self.limit)),
            "lock_timeout": str(milliseconds(self._lock_limit)),
            # The planner rightly reads a small table as a whole; asked is whether an index can serve the query.
            **({"enable_seqscan": "off"} if check.explained else {}),
            **check.settings,
        }
        calls = ", ".join(
            f"pg_catalog.set_config({quote_literal(name, connection)}, {quote_literal(value, connection)}, true)"
            for name, value in settings.items()
        )
        commands = [_SESSION, f"SELECT {calls}"]
        if check.as_role is not None:
            commands.append(f"SET LOCAL ROLE {quote_identifier(check.as_role, connection)}")
        if check.kind == "statement":
            # A deferred constraint would otherwise raise nothing before the rollback.
            commands.append("SET CONSTRAINTS ALL IMMEDIATE")
        with connection.cursor() as cursor:
            if self.secret_names:
                cursor.execute(opening)
                _secrets.load(connection, self.secret_names, self.secrets)
                cursor.execute("; ".join(commands))
            else:
                cursor.execute("; ".join([opening, *commands]))

    def _execute(self) -> tuple[_Rows | None, str]:
        expect = self.check.expect
        with self.connection.cursor() as cursor:
            if expect is None:
                # The row a constraint refuses, as it should, must not reach the server log with a secret in it.
                sql = _secrets.guarded(
                    self.check.parsed, self.sql, secrets=self.secrets, settings=(), connection=self.connection
                )
                cursor.execute(sql)
                return None, cursor.statusmessage or ""
            limit = expect.fetch + 1
            cursor.execute(self._limited(limit))
            if cursor.description is None:
                return _Rows((), []), cursor.statusmessage or ""
            columns = tuple(column.name for column in cursor.description)
            values = cursor.fetchmany(limit)
            return _Rows(columns, values, complete=len(values) < limit), cursor.statusmessage or ""

    def _limited(self, limit: int) -> str:
        """The query with a limit around it, where it can stand in a subquery."""
        if self.check.explained:
            return f"EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF) {self.sql}"
        tokens = list(self.check.parsed.tokens())
        if tokens[0].value not in _PLAIN_HEADS:
            return self.sql
        if any(token.kind == "word" and token.value in _WRITES for token in tokens):
            return self.sql
        return f"SELECT * FROM (\n{self.sql}\n) AS surefoot_check LIMIT {limit}"

    def _undo(self, failure: Exception | None) -> None:
        connection = self.connection
        if not connection.closed:
            closing = "ROLLBACK"
            if self.inside:
                closing = "ROLLBACK TO SAVEPOINT surefoot_check; RELEASE SAVEPOINT surefoot_check"
            try:
                self._require_status("in")
                with connection.cursor() as cursor:
                    cursor.execute(closing)
                return
            except psycopg2.Error as exc:
                failure = exc
        error = sql_error(failure) if failure is not None else None
        raise ConnectionFailed(
            f"the connection was lost during check {self.check.name!r}" + (f": {error.message}" if error else ""),
            location=self.check.location,
            remedy="Check the server's log, then run again; nothing of a check is kept.",
        ) from None

    def _require_status(self, moment: str) -> None:
        """The transaction is what it must be; otherwise a rollback would undo too little or too much."""
        if self.connection.closed:
            return
        status = self.connection.info.transaction_status
        idle = status == psycopg2.extensions.TRANSACTION_STATUS_IDLE
        failed = status == psycopg2.extensions.TRANSACTION_STATUS_INERROR
        if idle == (self.inside if moment == "before" else True) or (failed and moment == "before"):
            raise SurefootError(
                f"check {self.check.name!r} found its transaction {'ended' if idle else 'open or failed'}",
                location=self.check.location,
                code="verification",
            )


def _error_label(code: str | None) -> str:
    return " ".join(part for part in (code, condition_name(code)) if part) or "of the driver"
