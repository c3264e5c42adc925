# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Named queries, measured warm and in turn, with their plans; and the comparison with an earlier measurement.

Sessions are read-only by a startup setting, and every run is a transaction that is rolled back. A value that must not
be statement text (secret variables, samples) is a setting of the session, which the query reads by current_setting():
the planner estimates with its value as with a literal, and no log shows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import io
import json
import re
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils import _noise
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    quote_identifier,
    quote_literal,
    redact,
    redact_sql,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    EnvironmentProblem,
    Interrupted,
    Location,
    PlanError,
    SqlTextError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record, utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement, render, statements
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_size, milliseconds

try:
    import psycopg2
except ImportError:  # connect() reports the missing package
    psycopg2 = None  # type: ignore[assignment]

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

FORMAT = 1
BLOCKS = 8
# Touches no table, so that only the server and the way to it can make it slower.
REFERENCE = "SELECT pg_catalog.count(*) FROM pg_catalog.generate_series(1, 5000)"
# libpq keeps a whole result in memory.
MAX_RESULT = 256 * 2**20
_NAMESPACE = "surefoot_baseline"
_HEADS = ("select", "with", "values", "table", "(")
# Before a migration its tables need not be there: undefined table, column, function, schema.
_ABSENT = ("42P01", "42703", "42883", "3F000")
_QUERY_KEYS = ("name", "query", "variables", "sample")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


# ---------------------------------------------------------------------------------------------------------------------
# Queries


@dataclasses.dataclass(frozen=True)
class Query:
    """A query with a name. ``sample`` maps a variable to a query whose one value it takes, asked in each session."""

    name: str
    sql: str
    variables: t.Mapping[str, t.Any]
    sample: t.Mapping[str, str]
    location: Location

    @functools.cached_property
    def statement(self) -> Statement:
        return _one_statement(self.sql, f"query {self.name!r}", self.location)

    @functools.cached_property
    def samples(self) -> dict[str, Statement]:
        return {
            name: _one_statement(sql, f"sample {name} of query {self.name!r}", self.location)
            for name, sql in self.sample.items()
        }

    def parse(self) -> tuple[Statement, t.Mapping[str, Statement]]:
        """The query and its samples, so that a mistake in either is found before anything connects.

        :raises SurefootError: one of them is not one statement
        """
        return self.statement, self.samples

    @property
    def sha256(self) -> str:
        """Of the text as written: what is compared must have been asked before."""
        text = json.dumps([self.statement.text, {name: item.text for name, item in sorted(self.samples.items())}])
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _one_statement(sql: str, what: str, location: Location) -> Statement:
    try:
        found = list(statements(io.BytesIO(sql.encode("utf-8", "surrogatepass")), name=""))
    except SqlTextError as exc:
        raise SqlTextError(f"{what}: {exc.message}", remedy=exc.remedy, location=location) from None
    if len(found) != 1 or found[0].meta is not None:
        raise SqlTextError(f"{what} is not one statement of SQL", remedy="Write one query.", location=location)
    first = next(found[0].tokens(), None)
    if first is None or first.value not in _HEADS:
        raise SqlTextError(
            f"{what} is no query", remedy="Write SELECT, WITH, VALUES or TABLE: it only reads.", location=location
        )
    return found[0]


def parse_queries(given: t.Any, source: str) -> list[Query]:
    """Queries from a list of dictionaries with name, query, variables and sample.

    :param source: file, or name of the option
    :raises PlanError: unknown, missing or wrong keys; two queries of one name
    :raises SqlTextError: text that is not one query
    """
    if not isinstance(given, list):
        raise PlanError("queries is not a list", location=Location(source), remedy="Give name and query of each.")
    queries: list[Query] = []
    for number, item in enumerate(given):
        location = Location(f"{source}: queries[{number}]")
        if not isinstance(item, t.Mapping):
            raise PlanError("a query is not a dictionary", location=location, remedy="Give name and query.")
        item = {key: value for key, value in item.items() if value is not None}
        unknown = sorted(set(map(str, item)) - set(_QUERY_KEYS))
        if unknown:
            raise PlanError(f"unknown key {unknown[0]}", location=location, remedy=f"Known: {', '.join(_QUERY_KEYS)}.")
        if not all(isinstance(item.get(key), str) and item[key].strip() for key in ("name", "query")):
            raise PlanError("a query needs name and query, both texts", location=location)
        variables, sample = item.get("variables", {}), item.get("sample", {})
        if not isinstance(variables, t.Mapping) or not isinstance(sample, t.Mapping):
            raise PlanError("variables and sample are dictionaries", location=location)
        query = Query(
            item["name"],
            item["query"],
            {str(name): value for name, value in variables.items()},
            {str(name): str(sql) for name, sql in sample.items()},
            location,
        )
        for name in (*query.variables, *query.sample):
            if not _VARIABLE.fullmatch(name):
                raise PlanError(f"{name!r} cannot name a variable", location=location, remedy="Use letters and digits.")
        query.parse()
        if any(other.name == query.name for other in queries):
            raise PlanError(f"two queries are called {query.name}", location=location, remedy="Rename one.")
        queries.append(query)
    return queries


def load_queries(path: str) -> tuple[list[Query], dict[str, t.Any]]:
    """The queries of a YAML file, and the variables it gives all of them.

    :raises PlanError, SqlTextError: see :func:`parse_queries`; or it cannot be read
    :raises EnvironmentProblem: PyYAML is missing
    """
    if yaml is None:
        raise EnvironmentProblem(
            "a file of queries needs the Python package PyYAML", remedy="Install it: pip install PyYAML."
        )
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except OSError as exc:
        raise PlanError(f"cannot read {path}: {exc.strerror}", remedy="Give a file that is there in path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        mark = getattr(exc, "problem_mark", None)
        place = Location(path, mark.line + 1, mark.column + 1) if mark else Location(path)
        raise PlanError("this is not valid YAML", location=place, remedy="Correct it.") from None
    keys = set(content) if isinstance(content, dict) else {"?"}
    if keys - {"queries", "variables"} or "queries" not in keys:
        raise PlanError("a file of queries has the keys queries and variables", location=Location(path))
    variables = content.get("variables") or {}
    if not isinstance(variables, dict):
        raise PlanError("variables is not a dictionary", location=Location(path))
    return parse_queries(content["queries"], path), {str(name): value for name, value in variables.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Plans

_NODE_KEYS = ("Node Type", "Strategy", "Join Type", "Operation", "Command", "Schema", "Relation Name", "Index Name")
_ROLE_KEYS = ("Parent Relationship", "Subplan Name", "CTE Name", "Function Name", "Parallel Aware")


def plan_shape(node: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """A plan of EXPLAIN (FORMAT JSON, VERBOSE) without costs, estimates, conditions and aliases."""
    shape: dict[str, t.Any] = {
        key: node[key] for key in (*_NODE_KEYS, *_ROLE_KEYS) if node.get(key) not in (None, False)
    }
    if node.get("Plans"):
        shape["Plans"] = [plan_shape(child) for child in node["Plans"]]
    return shape


def shape_hash(shape: t.Mapping[str, t.Any]) -> str:
    """sha256 of a shape."""
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode("utf-8")).hexdigest()


def shape_lines(shape: t.Mapping[str, t.Any], depth: int = 0) -> list[str]:
    """The shape as an indented text, one line a node."""
    lines = ["  " * depth + _node_text(shape)]
    for child in shape.get("Plans", ()):
        lines += shape_lines(child, depth + 1)
    return lines


def _relation(shape: t.Mapping[str, t.Any]) -> str | None:
    name = shape.get("Relation Name")
    return f"{shape['Schema']}.{name}" if name and shape.get("Schema") else name


def _node_text(shape: t.Mapping[str, t.Any]) -> str:
    text = str(shape["Node Type"])
    if shape.get("Join Type"):
        text += f" ({shape['Join Type']})"
    if shape.get("Index Name"):
        text += f" using {shape['Index Name']}"
    relation = _relation(shape)
    return f"{text} on {relation}" if relation else text


def _nodes(shape: t.Mapping[str, t.Any]) -> t.Iterator[t.Mapping[str, t.Any]]:
    yield shape
    for child in shape.get("Plans", ()):
        yield from _nodes(child)


def _accesses(shape: t.Mapping[str, t.Any]) -> dict[str, list[str]]:
    """How each relation is read. A bitmap's indexes stand in nodes of their own below the one with the relation."""
    found: dict[str, list[str]] = {}
    for node in _nodes(shape):
        relation = _relation(node)
        if relation is None:
            continue
        text = _node_text({key: node[key] for key in ("Node Type", "Index Name") if key in node})
        if node["Node Type"] == "Bitmap Heap Scan":
            indexes = sorted({str(below["Index Name"]) for below in _nodes(node) if below.get("Index Name")})
            text += f" using {', '.join(indexes)}"
        found.setdefault(relation, []).append(text)
    return {relation: sorted(texts) for relation, texts in found.items()}


def plan_changes(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> list[str]:
    """What is different in two shapes, in words: how each relation is read first, then joins, then the rest."""
    if before == after:
        return []
    old, new = _accesses(before), _accesses(after)
    changes = []
    for relation in sorted({*old, *new}):
        was, now = old.get(relation, []), new.get(relation, [])
        if was == now:
            continue
        if not was or not now:
            changes.append(f"{relation}: {'now' if now else 'no longer'} read, by {', '.join(now or was)}")
            continue
        gone, come = _without(was, now), _without(now, was)
        changes.append(f"{relation}: {', '.join(come) or 'nothing'} where {', '.join(gone) or 'nothing'} was")
    kinds = [
        ("joins", lambda node: bool(node.get("Join Type"))),
        ("other nodes", lambda node: not node.get("Join Type") and _relation(node) is None),
    ]
    for kind, belongs in kinds:
        was = [_node_text(node) for node in _nodes(before) if belongs(node)]
        now = [_node_text(node) for node in _nodes(after) if belongs(node)]
        gone, come = _without(was, now), _without(now, was)
        if (gone or come) and (kind == "joins" or not changes):
            changes.append(f"{kind}: {', '.join(come) or 'none'} where {', '.join(gone) or 'none'} was")
    return changes or ["the same nodes in another order"]


def _without(items: t.Sequence[str], others: t.Sequence[str]) -> list[str]:
    rest = list(others)
    left = []
    for item in items:
        if item in rest:
            rest.remove(item)
        else:
            left.append(item)
    return left


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@dataclasses.dataclass
class _Measured:
    """What is known of one query: ``problem`` is None, ``absent``, ``no_sample`` or ``error``."""

    name: str
    query: Query | None = None
    text: str = REFERENCE
    runs: int = 0
    blocks: list[list[float]] = dataclasses.field(default_factory=list)
    rows: int | None = None
    shape: dict[str, t.Any] | None = None
    cost: float | None = None
    buffers: dict[str, int] | None = None
    problem: str | None = None
    message: str | None = None

    @property
    def times(self) -> _noise.Times:
        return _noise.Times.of(self.blocks)

    def to_dict(self) -> dict[str, t.Any]:
        """Object for the result file; milliseconds."""
        facts: dict[str, t.Any] = {"name": self.name, "problem": self.problem, "message": self.message}
        if self.query is not None:
            facts.update(query=redact_sql(self.query.statement.text), sha256=self.query.sha256)
        times = self.times
        measured = self.problem is None and bool(times.blocks)
        facts.update(
            runs=sum(map(len, self.blocks)),
            rows=self.rows,
            median_ms=round(times.median, 4) if measured else None,
            p95_ms=round(times.percentile(0.95), 4) if measured else None,
            spread_ms=round(times.spread, 4) if measured else None,
            blocks_ms=[[round(value, 4) for value in block] for block in self.blocks] if measured else [],
            plan=shape_lines(self.shape) if self.shape else None,
            plan_hash=shape_hash(self.shape) if self.shape else None,
            shape=self.shape,
            cost=self.cost,
            buffers=self.buffers,
        )
        return facts


class _Failure(Exception):
    """A query that cannot be measured: the kind of problem, and the message."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to measure and how. Durations in seconds; ``budget`` is the time all timed runs together may take."""

    queries: t.Sequence[Query]
    label: str = "before"
    variables: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    secret_variables: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict, repr=False)
    settings: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    runs: int = 40
    warmup: int = 2
    budget: float = 20.0
    statement_timeout: float = 10.0
    rule: _noise.Rule = dataclasses.field(default_factory=_noise.Rule)
    before: t.Mapping[str, t.Any] | None = None
    analyze: bool = False

    def validate(self) -> None:
        """:raises PlanError: a value out of bounds, or a variable without a value"""
        if not _LABEL.fullmatch(self.label):
            raise PlanError(f"label is {self.label!r}", remedy="Give before, after, shadow, or another such word.")
        if not self.queries and not self.analyze:
            raise PlanError("there are no queries", remedy="Give queries or path.")
        if not BLOCKS <= self.runs <= 1000 or not 0 <= self.warmup <= 100:
            raise PlanError(
                f"runs is not from {BLOCKS} to 1000, or warmup not from 0 to 100", remedy="Give such numbers."
            )
        if self.statement_timeout <= 0 or self.budget <= 0:
            raise PlanError("statement_timeout and budget must be above 0", remedy="Give durations such as 10s.")
        for name in self.settings:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)+", name):
                raise PlanError(f"{name} is no custom setting", remedy="Their names have a dot, as app.org_id.")
        names = [query.name for query in self.queries]
        for query in self.queries:
            if names.count(query.name) > 1:
                raise PlanError(f"two queries are called {query.name}", location=query.location, remedy="Rename one.")
            known = {*self.variables, *self.secret_variables, *query.variables}
            for name, statement in [*query.samples.items(), ("", query.statement)]:
                for reference in statement.variables:
                    if reference.name not in known:
                        raise PlanError(
                            f"query {query.name!r} uses variable {reference.name}, which has no value",
                            location=query.location,
                            remedy="Give it in variables, secret_variables or the query's sample.",
                        )
                known.add(name)


class _Expression(str):
    """SQL that is already an expression, not a value to quote."""


class Baseline:
    """One measurement on one database."""

    def __init__(self, options: ConnectionOptions, request: Request, *, check_mode: bool = False) -> None:
        """:raises PlanError: see :meth:`Request.validate`"""
        request.validate()
        self._options = options
        self._request = request
        self._check_mode = check_mode
        self._stopped = False
        self._current: Connection | None = None
        self._identity: dict[str, t.Any] = {}
        self._reference = _Measured("reference")
        self._measured: list[_Measured] = []
        self._comparison: dict[str, t.Any] | None = None
        self._started = utc_now()
        self.without_statistics: list[dict[str, t.Any]] = []
        self.analyzed: list[str] = []
        self.notes: list[str] = []

    def stop(self, _reason: str = "") -> None:
        """Cancel what runs and start nothing more; may be called from another thread, and more than once."""
        self._stopped = True
        current = self._current
        if current is not None:
            with contextlib.suppress(psycopg2.Error):
                current.cancel()

    def run(self) -> None:
        """Measure, and compare when there is something to compare with.

        :raises ConnectionFailed: no connection, or it was lost
        :raises Interrupted: after :meth:`stop`
        """
        self._statistics()
        if not self._request.queries:
            return
        self._reference, self._measured = self._measure(self._request.queries)
        if self._request.before is None:
            return
        before = self._request.before
        first = compare(before, self._content(), self._request.rule)
        doubtful = {item["name"] for item in first["queries"] if item["verdict"] in ("regressed", "noisy")}
        self._comparison = first
        if doubtful:
            self._comparison = self._confirm(before, first, doubtful)

    def _confirm(
        self, before: t.Mapping[str, t.Any], first: t.Mapping[str, t.Any], names: t.Collection[str]
    ) -> dict[str, t.Any]:
        """Measure these again: a neighbour's moment of load is over by then. Slower is what is so both times."""
        self._reference, again = self._measure([item for item in self._request.queries if item.name in names])
        replacements = {item.name: item for item in again}
        self._measured = [replacements.get(item.name, item) for item in self._measured]
        second = compare(before, self._content(), self._request.rule)
        earlier = {item["name"]: item for item in first["queries"]}
        rows = [item if item["name"] in names else earlier[item["name"]] for item in second["queries"]]
        for row in rows:
            if row["verdict"] == "regressed" and earlier[row["name"]]["verdict"] == "noisy":
                row["verdict"] = "noisy"
        return {**second, "queries": rows, **_summary(rows), "measured_again": sorted(names)}

    # -- sessions

    @contextlib.contextmanager
    def _session(self, settings: t.Mapping[str, str]) -> t.Iterator[Connection]:
        if self._stopped:
            raise Interrupted("the measurement was stopped")
        connection = connect(self._options, purpose="baseline", settings=settings)
        self._current = connection
        try:
            yield connection
        except psycopg2.Error as exc:
            if self._stopped:
                raise Interrupted("the measurement was stopped") from None
            if connection.closed or exc.pgcode is None:
                raise ConnectionFailed(
                    f"the connection to {self._options.label} was lost while measuring",
                    remedy="Look at the server's log, then run it again.",
                ) from None
            raise sql_error(exc) from None
        finally:
            self._current = None
            connection.close()

    def _reading(self) -> contextlib.AbstractContextManager[Connection]:
        secrets = self._request.secret_variables
        return self._session(
            {
                "default_transaction_read_only": "on",
                "statement_timeout": str(milliseconds(self._request.statement_timeout)),
                **self._request.settings,
                **{_setting("s", number): str(secrets[name]) for number, name in enumerate(secrets)},
            }
        )

    def _measure(self, queries: t.Sequence[Query]) -> tuple[_Measured, list[_Measured]]:
        reference = _Measured("reference")
        measured = [_Measured(query.name, query) for query in queries]
        for number in range(BLOCKS):
            with self._reading() as connection:
                if not self._identity:
                    self._identity = _identify(connection)
                self._block(connection, number, [reference, *measured])
        return reference, measured

    def _block(self, connection: Connection, number: int, items: list[_Measured]) -> None:
        items = [item for item in items if item.problem is None]
        for item in items:
            if item.query is not None:
                with self._noting(connection, item):
                    item.text = self._prepare(connection, item.query)
                    if number == 0:
                        self._explain(connection, item)
        self._warm(connection, number, items)
        for item in items:
            item.blocks.append([])
        gc.disable()  # a collection in the middle of a run would be counted as the query's
        try:
            for turn in range(max((item.runs for item in items), default=0)):
                first = (number + turn) % len(items)
                for item in items[first:] + items[:first]:
                    if item.problem is None and turn < item.runs:
                        with self._noting(connection, item):
                            item.blocks[-1].append(_timed(connection, item))
        finally:
            gc.enable()
        if number == BLOCKS - 1:
            for item in items:
                if item.query is not None and item.problem is None:
                    with self._noting(connection, item):
                        self._buffers(connection, item)

    def _warm(self, connection: Connection, number: int, items: list[_Measured]) -> None:
        seconds: dict[str, float] = {}
        for _turn in range(max(1, self._request.warmup)):
            for item in items:
                if item.problem is None:
                    with self._noting(connection, item):
                        seconds[item.name] = _timed(connection, item) / 1000
        if number == 0:
            share = self._request.budget / BLOCKS / len(items)
            for item in items:
                fitting = int(share / max(seconds.get(item.name, 0.0), 1e-6))
                item.runs = max(1, min(-(-self._request.runs // BLOCKS), fitting))

    @contextlib.contextmanager
    def _noting(self, connection: Connection, item: _Measured) -> t.Iterator[None]:
        """A query's own failure ends its measurement, not that of the others."""
        try:
            yield
        except _Failure as exc:
            item.problem, item.message = exc.args
        except psycopg2.Error as exc:
            if self._stopped or connection.closed or exc.pgcode is None:
                raise
            item.message = str(sql_error(exc))
            item.problem = "absent" if exc.pgcode in _ABSENT else "error"
        if item.problem is not None:
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")

    def _prepare(self, connection: Connection, query: Query) -> str:
        """The query's text for this session; its samples are taken now."""
        secrets = self._request.secret_variables
        values: dict[str, t.Any] = {
            **self._request.variables,
            **query.variables,
            **{name: _current(_setting("s", number), connection) for number, name in enumerate(secrets)},
        }
        order = [item.name for item in self._request.queries].index(query.name)
        for number, (name, statement) in enumerate(query.samples.items()):
            setting = _setting(f"q{order}_", number)
            text = _text(statement, values, connection)
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT pg_catalog.length(pg_catalog.set_config('{setting}', coalesce(s.v, ''), false)),"
                    f" s.v IS NOT NULL FROM (SELECT (\n{text}\n)::text AS v) AS s"
                )
                _length, found = cursor.fetchone() or (0, False)
            if not found:
                raise _Failure("no_sample", f"the sample {name} finds no row")
            values[name] = _current(setting, connection)
        return _text(query.statement, values, connection)

    def _explain(self, connection: Connection, item: _Measured) -> None:
        plan = _plan(connection, item.text, "VERBOSE")
        size = float(plan.get("Plan Rows", 0)) * float(plan.get("Plan Width", 0))
        if size > MAX_RESULT:
            raise _Failure("error", f"its result is estimated at {human_size(size)}. Add a LIMIT, or aggregate.")
        item.shape, item.cost = plan_shape(plan), plan.get("Total Cost")

    def _buffers(self, connection: Connection, item: _Measured) -> None:
        plan = _plan(connection, item.text, "ANALYZE, BUFFERS, TIMING OFF")
        item.buffers = {"hit": plan.get("Shared Hit Blocks", 0), "read": plan.get("Shared Read Blocks", 0)}

    # -- statistics of the tables

    def _statistics(self) -> None:
        with self._session({"lock_timeout": "5s"}) as connection, connection.cursor() as cursor:
            cursor.execute(_missing_statistics(connection.server_version))
            rows = cursor.fetchall()
            oids = {oid for oid, *_rest in rows}
            found = [row for row in rows if row[1] == row[0] or row[1] not in oids]  # with its root, a partition is too
            self.without_statistics = [
                {"table": f"{schema}.{table}", "reason": reason, "may_analyze": may}
                for _oid, _root, schema, table, reason, may in found
            ]
            if not self._request.analyze:
                return
            for _oid, _root, schema, table, _reason, may in found:
                if not may:
                    self.notes.append(f"{schema}.{table} has no statistics, and only its owner may analyze it")
                    continue
                if not self._check_mode:
                    names = ".".join(quote_identifier(name, connection) for name in (schema, table))
                    try:
                        cursor.execute(f"ANALYZE {names}")
                    except psycopg2.errors.LockNotAvailable:
                        self.notes.append(f"{schema}.{table} is locked and was not analyzed")
                        continue
                    except psycopg2.errors.UndefinedTable:
                        continue  # dropped meanwhile
                self.analyzed.append(f"{schema}.{table}")

    # -- results

    def _content(self) -> dict[str, t.Any]:
        return {
            "format": FORMAT,
            "kind": "baseline",
            "label": self._request.label,
            "time": self._started,
            "server": self._identity,
            "rule": str(self._request.rule),
            "reference": self._reference.to_dict(),
            "queries": [item.to_dict() for item in self._measured],
        }

    def results(self, run_dir: str | None) -> dict[str, t.Any]:
        """Measurements, comparison and evidence, also written to the run directory when there is one.

        :raises EnvironmentProblem: it cannot be written
        """
        content = self._content()
        path = None
        if run_dir and self._request.queries:
            file = {**content, "comparison": self._comparison, "analyzed": self.analyzed}
            path = write_json(run_dir, f"baseline-{self._request.label}.json", file)
        hidden = ("blocks_ms", "shape")  # for the next comparison; too long to read
        return {
            "changed": bool(self.analyzed),
            "queries": [{key: item[key] for key in item if key not in hidden} for item in content["queries"]],
            "comparison": self._comparison,
            "regressions": self._comparison["regressions"] if self._comparison else [],
            "plan_changes": self._comparison["plan_changes"] if self._comparison else [],
            "without_statistics": self.without_statistics,
            "analyzed": self.analyzed,
            "path": path,
            "evidence": record(run_dir, self._evidence()),
            "notes": list(self.notes),
        }

    def _evidence(self) -> list[Evidence]:
        if not self._request.queries:
            return []
        label = self._request.label
        source = f"{len(self._measured)} queries on {self._options.label}, {BLOCKS} sessions, label {label}"
        tolerated = ("no_sample",) if self._request.before is not None else ("no_sample", "absent")
        failed = {item.name: item.message for item in self._measured if item.problem not in (None, *tolerated)}
        medians = {item.name: round(item.times.median, 3) for item in self._measured if item.problem is None}
        left_out = {item.name: item.message for item in self._measured if item.problem in tolerated}
        verdict = "fail" if failed else "pass" if medians else "not_applicable"
        required = "every query whose tables and rows are there was measured"
        evidence = [
            Evidence(
                "baseline.recorded", "baseline", verdict, failed or medians, required, source,
                details={"unit": "ms, median", "left_out": left_out, "label": label},
            )
        ]  # fmt: skip
        if self._comparison is None:
            return evidence
        shadow = label.startswith("shadow")
        measured = self._comparison["regressions"] or {"slowest_ratio": self._comparison["slowest_ratio"]}
        details = {key: self._comparison[key] for key in ("drift", "same_server", "unjudged")}
        name = "baseline.shadow_regression" if shadow else "baseline.regression"
        rule = f"no query slower: {self._request.rule}"
        evidence.append(Evidence(name, "compare", self._comparison["verdict"], measured, rule, source, details=details))
        changes = self._comparison["plan_changes"]
        evidence.append(
            Evidence("baseline.plan_changes", "compare", "pass", changes, "named; none is forbidden", source)
        )
        return evidence

    def failure(self) -> VerificationFailed | None:
        """The regressions in one line; None when there is none."""
        if self._comparison is None or not self._comparison["regressions"]:
            return None
        lines = [item["message"] for item in self._comparison["regressions"]]
        return VerificationFailed(
            redact(f"{len(lines)} of {len(self._measured)} queries became worse: {'; '.join(lines[:3])}"),
            remedy="Compare the plans in the result files before and after.",
        )


def _setting(kind: str, number: int) -> str:
    return f"{_NAMESPACE}.{kind}{number}"


def _current(setting: str, connection: Connection) -> _Expression:
    return _Expression(f"pg_catalog.current_setting({quote_literal(setting, connection)})")


def _text(statement: Statement, values: t.Mapping[str, t.Any], connection: Connection) -> str:
    def literal(value: t.Any) -> str:
        return str(value) if isinstance(value, _Expression) else quote_literal(value, connection)

    return render(statement, values, literal, lambda name: quote_identifier(name, connection))


def _timed(connection: Connection, item: _Measured) -> float:
    """Milliseconds from sending the query to having its whole answer."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN READ ONLY")
        started = time.perf_counter()
        cursor.execute(item.text)
        ended = time.perf_counter()
        item.rows = cursor.rowcount
        cursor.execute("ROLLBACK")
    return (ended - started) * 1000


def _plan(connection: Connection, text: str, how: str) -> dict[str, t.Any]:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN READ ONLY")
        cursor.execute(f"EXPLAIN (FORMAT JSON, {how}) {text}")
        ((answer,),) = cursor.fetchall()
        cursor.execute("ROLLBACK")
    plans = json.loads(answer) if isinstance(answer, str) else answer
    return t.cast("dict[str, t.Any]", plans[0]["Plan"])


def _identify(connection: Connection) -> dict[str, t.Any]:
    """Which server and database this is; the system identifier is None where the service hides it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT d.oid::bigint, d.datname, pg_catalog.current_setting('server_version'),"
            " pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
            " FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()"
        )
        oid, name, version, may = cursor.fetchone() or (None, None, None, False)
        identifier = None
        if may:
            with contextlib.suppress(psycopg2.Error):
                cursor.execute("SELECT system_identifier::text FROM pg_catalog.pg_control_system()")
                (identifier,) = cursor.fetchone() or (None,)
        address = connection.info.host, connection.info.port
    return {
        "system_identifier": identifier,
        "address": f"{address[0]}:{address[1]}",
        "database": name,
        "database_oid": oid,
        "version": version,
    }


def _missing_statistics(server_version: int) -> str:
    """Tables with rows that were never analyzed, or that have a column or an index expression without statistics.

    pg_stats hides what the role may not read: only where it may analyze is an absence there a fact.
    """
    maintain = "OR pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')" if server_version >= 170000 else ""
    return f"""
WITH candidate AS (
    SELECT c.oid, n.nspname, c.relname, c.reltuples, coalesce(pg_catalog.pg_partition_root(c.oid), c.oid) AS root,
        (pg_catalog.pg_has_role(c.relowner, 'USAGE') OR pg_catalog.pg_has_role(d.datdba, 'USAGE') {maintain}) AS may,
        pg_catalog.pg_has_role(c.relowner, 'USAGE')
            AND NOT (c.relrowsecurity AND pg_catalog.row_security_active(c.oid)) AS sees
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_database AS d ON d.datname = pg_catalog.current_database()
    WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't'
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND CASE c.relkind
          WHEN 'p' THEN EXISTS (
              SELECT FROM pg_catalog.pg_partition_tree(c.oid) AS p
              WHERE p.isleaf AND pg_catalog.pg_relation_size(p.relid) > 0
          )
          ELSE pg_catalog.pg_relation_size(c.oid) > 0
      END
),
judged AS (
    SELECT c.*, CASE
        WHEN c.reltuples < 0 THEN 'never analyzed'
        WHEN c.reltuples > 0 AND c.sees AND EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              AND coalesce(a.attstattarget, -1) <> 0 AND a.attgenerated <> 'v'
              AND NOT EXISTS (
                  SELECT FROM pg_catalog.pg_stats AS s
                  WHERE s.schemaname = c.nspname AND s.tablename = c.relname AND s.attname = a.attname
              )
        ) THEN 'a column without statistics'
        WHEN c.reltuples > 0 AND c.sees AND EXISTS (
            SELECT FROM pg_catalog.pg_index AS i
            JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
            JOIN pg_catalog.pg_namespace AS xn ON xn.oid = x.relnamespace
            WHERE i.indrelid = c.oid AND i.indexprs IS NOT NULL AND i.indisvalid AND x.relkind = 'i'
              AND NOT EXISTS (
                  SELECT FROM pg_catalog.pg_stats AS s
                  WHERE s.schemaname = xn.nspname AND s.tablename = x.relname
              )
        ) THEN 'an index expression without statistics'
    END AS reason
    FROM candidate AS c
)
SELECT oid::bigint, root::bigint, nspname, relname, reason, may FROM judged WHERE reason IS NOT NULL
ORDER BY nspname, relname
"""


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def compare(
    before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any], rule: _noise.Rule | None = None
) -> dict[str, t.Any]:
    """Two results, the earlier first.

    A query's ``verdict``: ``unchanged``; ``regressed``; ``failed`` (it was measured before and fails now);
    ``no_rows`` (it returned rows before and returns none now, or its sample finds none: nothing is as fast as a policy
    that hides everything); ``noisy``; ``different`` (its text is another); ``new`` (not measured before); ``missing``
    (not measured now).
    """
    rule = rule or _noise.Rule()
    same_server = _same_server(before["server"], after["server"])
    drift = _noise.drift(_times(before["reference"]), _times(after["reference"]), same_server=same_server)
    earlier = {item["name"]: item for item in before["queries"]}
    now = {item["name"]: item for item in after["queries"]}
    rows = [_compare_query(earlier.get(name), item, rule, drift) for name, item in now.items()]
    for name in sorted(set(earlier) - set(now)):
        if earlier[name]["problem"] is None:
            rows.append(
                {"name": name, "verdict": "missing", "plan_changes": [], "message": f"{name}: not measured now"}
            )
    return {
        "label": before["label"],
        "same_server": same_server,
        "drift": round(drift, 4),
        "rule": str(rule),
        "queries": rows,
        "measured_again": [],
        **_summary(rows),
    }


_BAD = ("regressed", "failed", "no_rows")
_UNJUDGED = ("noisy", "different", "missing")


def _summary(rows: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    regressions = [
        {"name": row["name"], "kind": row["verdict"], "message": row["message"]}
        for row in rows
        if row["verdict"] in _BAD
    ]
    unjudged = {row["name"]: row["verdict"] for row in rows if row["verdict"] in _UNJUDGED}
    judged = any(row["verdict"] == "unchanged" for row in rows)
    return {
        "verdict": "fail" if regressions else "pass" if judged and not unjudged else "not_measured",
        "regressions": regressions,
        "unjudged": unjudged,
        "slowest_ratio": max((row["ratio"] for row in rows if row.get("ratio") is not None), default=None),
        "plan_changes": [f"{row['name']}: {change}" for row in rows for change in row["plan_changes"]],
    }


def _same_server(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> bool:
    identifiers = before.get("system_identifier"), after.get("system_identifier")
    if None not in identifiers:
        return identifiers[0] == identifiers[1]
    return bool(before.get("address")) and before.get("address") == after.get("address")


def _times(item: t.Mapping[str, t.Any]) -> _noise.Times:
    return _noise.Times.of(item["blocks_ms"])


def _compare_query(
    before: t.Mapping[str, t.Any] | None, after: t.Mapping[str, t.Any], rule: _noise.Rule, drift: float
) -> dict[str, t.Any]:
    name = after["name"]
    row: dict[str, t.Any] = {"name": name, "verdict": "new", "ratio": None, "plan_changes": [], "message": None}
    if before is None or before["problem"] is not None:
        return row
    for key in ("median_ms", "p95_ms", "cost", "rows", "buffers"):
        row[f"{key}_before"], row[key] = before[key], after[key]
    if before["sha256"] != after["sha256"]:
        return {**row, "verdict": "different", "message": f"{name}: its text is not the one measured before"}
    if after["problem"] == "no_sample" or (after["problem"] is None and before["rows"] and not after["rows"]):
        count = before["rows"]
        return {**row, "verdict": "no_rows", "message": f"{name}: {count} rows before, none now"}
    if after["problem"] is not None:
        return {**row, "verdict": "failed", "message": f"{name}: {after['message']}"}
    if before["shape"] and after["shape"]:
        row["plan_changes"] = plan_changes(before["shape"], after["shape"])
    finding = _noise.compare(_times(before), _times(after), rule=rule, scale=drift)
    row.update(finding.to_dict())
    if finding.verdict == "regressed":
        because = f" ({row['plan_changes'][0]})" if row["plan_changes"] else ""
        row["message"] = (
            f"{name}: median {after['median_ms']:.3g} ms, {finding.ratio:.3g} times the {before['median_ms']:.3g} ms"
            f" before{because}"
        )
    return row


def load_earlier(path: str | None) -> dict[str, t.Any] | None:
    """An earlier result file.

    :raises PlanError: it is not there, or is no baseline
    """
    return None if path is None else _noise.read_results(path, "baseline")
