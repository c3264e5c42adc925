# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Who uses a column as text, before it gets another type: the statements that the server counts, and its functions.

:func:`collect` asks the server, :func:`users` judges by words alone: a false alarm costs a waiver, a user that is
overlooked costs an outage. Views, policies, checks and triggers ``OF`` the column are not looked for: ``change_type``
refuses them itself, by the catalog.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_identifier, redact
from ansible_collections.surefoot.dbops.plugins.module_utils._load import NOT_INSTALLED, NOT_LOADED, statements_view
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Token, tokens

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

# How a text can use the column, and how a message says it.
CAST = "cast"
TEXT_VALUE = "text value"
PATTERN = "pattern"
CONCATENATION = "concatenation"
FUNCTION = "text function"
LITERAL = "literal"
EVERY_COLUMN = "every column"
SIGNATURE = "text signature"
UNREAD = "other language"
KINDS = {
    CAST: "casts it to text: the spelling changes, and an index on it no longer serves",
    TEXT_VALUE: "compares or fills it with a value declared as text",
    PATTERN: "LIKE, SIMILAR TO or a regular expression on it",
    CONCATENATION: "puts it together with text",
    FUNCTION: "gives it to a function of text",
    LITERAL: "compares it with a literal that the new type does not take",
    EVERY_COLUMN: "returns every column: prepared, it fails once, and its session must reconnect",
    SIGNATURE: "has a parameter, result or variable of text beside it",
    UNREAD: "is in a language that is not read here",
}

# More are counted, not listed.
LISTED = 20
_SHOWN = 300


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TEXT_TYPES = frozenset({"text", "varchar", "character", "char", "bpchar", "citext", "name"})
_COMPARISONS = frozenset({"=", "<>", "!=", "<", ">", "<=", ">="})
_PATTERNS = frozenset({"~", "~*", "!~", "!~*", "~~", "~~*", "!~~", "!~~*", "^@"})
_JSON_TEXT = frozenset({"->>", "#>>"})
# Of text alone, or with another meaning for other types; min and max of a uuid came with PostgreSQL 18 only.
_TEXT_FUNCTIONS = _words(
    "ascii bit_length btrim char_length character_length concat concat_ws current_setting decode encode format initcap"
    " left length lower lpad ltrim max md5 min octet_length overlay parse_ident position quote_ident quote_literal"
    " regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array"
    " regexp_split_to_table regexp_substr repeat replace reverse right rpad rtrim split_part starts_with string_agg"
    " string_to_array string_to_table strpos substr substring to_char to_tsvector translate trim unaccent"
    " upper"
)
# Text only where another argument is.
_CHOOSING = frozenset({"coalesce", "nullif", "greatest", "least"})
_STATEMENTS_THAT_USE = frozenset(
    {
        "select",
        "with",
        "insert",
        "update",
        "delete",
        "merge",
        "table",
        "values",
        "(",
        "declare",
        "copy",
        "prepare",
        "do",
    }
)
_BEFORE_RELATION = frozenset({"from", "join", "update", "into", "using", "table"})
_NO_ALIAS = _words(
    "set where on using join inner left right full cross natural order group limit offset fetch for union intersect"
    " except values select returning having window default when then as tablesample loop"
)
_ENDS_OPERAND = _words(
    "and or then else end when where order group having limit offset fetch returning union intersect except from"
    " loop using on join select set into is not in like ilike similar between"
)
_PLAIN_BEFORE_PARENTHESIS = _words(
    "where and or not select on then else when by having returning if elsif while return distinct all case"
)
_UUID = re.compile(r"\{?(?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}\}?")
_INTEGER = re.compile(r"\s*[-+]?[0-9]+\s*")
_PLACEHOLDER = re.compile(r"%(?:[0-9]+\$)?-?[0-9]*[IsL]")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column that gets another type. ``text``: whether its present one is of text."""

    schema: str
    table: str
    name: str
    to: str
    text: bool = True

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.table}.{self.name}"

    def takes(self, literal: str) -> bool:
        """Whether the new type takes this literal, as far as can be said without a server."""
        if self.to == "uuid":
            return _UUID.fullmatch(literal.strip()) is not None
        if self.to in ("integer", "int", "int4", "bigint", "int8", "smallint", "int2"):
            return _INTEGER.fullmatch(literal) is not None
        return False


# --- measuring --------------------------------------------------------------------------------------------------------

_COLUMN = """
SELECT n.nspname::text, c.relname::text, c.oid::bigint, a.attnum::int, y.typcategory = 'S'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND a.attname = %(column)s
"""
# Arrays of text count as text.
_FUNCTIONS = """
SELECT p.oid::pg_catalog.regprocedure::text, l.lanname::text,
    coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc),
    EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgfoid = p.oid AND g.tgrelid = %(relation)s)
        OR EXISTS (SELECT FROM pg_catalog.pg_type y WHERE y.oid = ANY (s.types)
                   AND (y.typrelid = %(relation)s OR y.typelem = (SELECT reltype FROM pg_catalog.pg_class
                                                                  WHERE oid = %(relation)s))),
    EXISTS (SELECT FROM pg_catalog.pg_type y LEFT JOIN pg_catalog.pg_type e ON e.oid = y.typelem AND y.typlen = -1
            WHERE y.oid = ANY (s.types) AND 'S' IN (y.typcategory, e.typcategory))
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
CROSS JOIN LATERAL (SELECT coalesce(p.proallargtypes, p.proargtypes::oid[]) || p.prorettype) AS s (types)
WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND l.lanname NOT IN ('internal', 'c')
    AND p.proname !~ '^surefoot_'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                    AND d.objid = p.oid AND d.deptype = 'e')
    AND coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc) ~* %(names)s
ORDER BY 1
"""
# Columns of text elsewhere: joined with one of them, the column fits no longer.
_TEXT_COLUMNS = """
SELECT c.relname::text, a.attname::text FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped AND y.typcategory = 'S'
    AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
"""
_STATEMENTS = """
SELECT s.{id}, s.query, s.calls::bigint FROM {schema}.pg_stat_statements s
WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    AND (s.query IS NULL OR s.query = '<insufficient privilege>'
         OR pg_catalog.strpos(pg_catalog.lower(s.query), pg_catalog.lower(%(table)s)) > 0)
"""
_INFO = "SELECT pg_catalog.to_regclass(pg_catalog.format('%%I.pg_stat_statements_info', %s::text)) IS NOT NULL"
_ROLE = """
SELECT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
    pg_catalog.current_setting('pg_stat_statements.track', true)
"""


def collect(cursor: t.Any, changes: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    """What :func:`users` judges: for each column its table's functions and statements.

    :param cursor: in a transaction, which stays usable whatever cannot be read
    :param changes: ``schema``, ``table``, ``column`` and ``to`` of each
    :raises psycopg2.Error: the server refused a query that every role may ask
    """
    found: dict[str, t.Any] = {"columns": [], "text_columns": [], "reason": None, "since": None, "evicted": None}
    if not changes:
        return found
    cursor.execute(_TEXT_COLUMNS)
    found["text_columns"] = cursor.fetchall()
    for change in changes:
        cursor.execute(_COLUMN, change)
        row = cursor.fetchone()
        if row is None:  # made by a migration before it: nobody can use it yet
            continue
        schema, table, relation, _number, is_text = row
        # Either name, as a rough sieve.
        names = "|".join(re.sub(r"(\W)", r"\\\1", name) for name in (change["column"], table))
        cursor.execute(_FUNCTIONS, {"relation": relation, "names": names})
        found["columns"].append(
            {
                "column": Column(schema, table, change["column"], change["to"], is_text),
                "functions": cursor.fetchall(),
                "statements": [],
            }
        )
    if found["columns"]:
        cursor.execute("SAVEPOINT surefoot_statements")
        try:
            found["reason"] = _read_statements(cursor, found)
        except psycopg2.Error as exc:
            # object_not_in_prerequisite_state
            found["reason"] = NOT_LOADED if exc.pgcode == "55000" else redact(" ".join(str(exc).split()))
            cursor.execute("ROLLBACK TO SAVEPOINT surefoot_statements")
    return found


def _read_statements(cursor: t.Any, found: dict[str, t.Any]) -> str | None:
    """Fill in the statements; why they cannot be read, if so."""
    view = statements_view(cursor)
    if view is None:
        return NOT_INSTALLED
    schema, columns = view
    if not {"dbid", "query", "calls"} <= columns:
        return "this pg_stat_statements has no column of the statements' texts"
    cursor.execute(_ROLE)
    allowed, track = cursor.fetchone()
    if not allowed:
        return "the role sees its own statements only: GRANT pg_monitor to it"
    if track == "none":
        return "pg_stat_statements.track is none: nothing is counted"
    quoted = quote_identifier(schema, cursor.connection)
    text = _STATEMENTS.format(schema=quoted, id="queryid::text" if "queryid" in columns else "userid::text")
    for entry in found["columns"]:
        cursor.execute(text, {"table": entry["column"].table})
        entry["statements"] = cursor.fetchall()
    cursor.execute(_INFO, (schema,))
    if cursor.fetchone()[0]:
        cursor.execute(f"SELECT stats_reset, dealloc FROM {quoted}.pg_stat_statements_info")
        since, found["evicted"] = cursor.fetchone()
        found["since"] = since.isoformat() if since is not None else None
    return None


# --- judging ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class User:
    """One text that uses the column. ``name`` is a function's, or the number of a statement."""

    column: str
    name: str
    kinds: tuple[str, ...]
    statement: str | None = None
    calls: int | None = None

    def to_dict(self) -> dict[str, t.Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def __str__(self) -> str:
        what = f"{self.calls} calls of {self.statement}" if self.statement is not None else self.name
        return f"{what} ({', '.join(self.kinds)})"


@dataclasses.dataclass(frozen=True)
class Users:
    """What was found. ``seen`` are the statements that use the columns in whatever way, ``unread`` those without a
    text, ``silent`` the tables of which no statement does."""

    found: tuple[User, ...]
    functions: int
    seen: int
    unread: int
    silent: tuple[str, ...]


def users(facts: t.Mapping[str, t.Any]) -> Users:
    """Who uses the columns of :func:`collect` as text."""
    found: list[User] = []
    functions = seen = unread = 0
    silent: list[str] = []
    elsewhere = _by_name(facts["text_columns"])
    for entry in facts["columns"]:
        column: Column = entry["column"]
        for name, language, source, of_table, has_text in entry["functions"]:
            kinds = function_kinds(source, column, language, of_table=of_table, has_text=has_text, elsewhere=elsewhere)
            functions += 1
            if kinds:
                found.append(User(column.label, name, kinds))
        spoken = 0
        for number, query, calls in entry["statements"]:
            if query is None or query == "<insufficient privilege>":
                unread += 1
                continue
            words = list(tokens(query))
            text = _Text(words, column, elsewhere)
            if not _by_clients(words) or not text.speaks_of_it:
                continue
            # A dump copies every table: that tells nothing of clients.
            spoken += words[0].value != "copy" and (text.names_it or text.returns_all)
            kinds = statement_kinds(query, column, elsewhere)
            if kinds:
                found.append(User(column.label, number, kinds, without_literals(query), calls))
        seen += spoken
        if not spoken:
            silent.append(f"{column.schema}.{column.table}")
    found.sort(key=lambda user: (user.calls is not None, -(user.calls or 0), user.name))
    return Users(tuple(found), functions, seen, unread, tuple(silent))


def _by_name(text_columns: t.Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """The tables that have a column of text of this name."""
    found: dict[str, set[str]] = {}
    for table, name in text_columns:
        found.setdefault(name, set()).add(table)
    return {name: frozenset(tables) for name, tables in found.items()}


def _by_clients(words: t.Sequence[Token]) -> bool:
    """Whether a statement reads or writes rows, and is none of ours: every text of ours has a name of ours in it."""
    if not words or words[0].value not in _STATEMENTS_THAT_USE:
        return False
    return not any(
        word.value.startswith("surefoot")
        if word.kind in ("word", "quoted_identifier")
        else word.kind == "dollar_string" and "surefoot_" in word.text
        for word in words
    )


def without_literals(query: str) -> str:
    """A statement's text on one line, without comments and without what may be somebody's data."""
    text, end = "", 0
    for word in tokens(query):
        shown = {"string": "'...'", "dollar_string": "'...'", "number": "?"}.get(word.kind, word.text)
        if word.kind == "dollar_string" and text.lower() == "do":
            shown = f"$${without_literals(word.value)}$$"  # the block itself
        text += (" " if text and word.offset > end else "") + " ".join(shown.split())
        end = word.offset + len(word.text)
    text = redact(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def statement_kinds(
    query: str, column: Column, elsewhere: t.Mapping[str, frozenset[str]] | None = None
) -> tuple[str, ...]:
    """How a statement of a client uses the column as text; nothing when it is none of a client, or does not."""
    words = list(tokens(query))
    if not _by_clients(words):
        return ()
    text = _Text(words, column, elsewhere or {})
    return text.kinds() if text.speaks_of_it else ()


def function_kinds(
    source: str,
    column: Column,
    language: str = "plpgsql",
    *,
    of_table: bool = False,
    has_text: bool = False,
    elsewhere: t.Mapping[str, frozenset[str]] | None = None,
) -> tuple[str, ...]:
    """How the source of a function uses the column as text.

    :param of_table: a trigger of the table runs it, or a row of the table is among its parameters or its result
    :param has_text: text is among its parameters or its result
    """
    text = _Text(list(tokens(source)), column, elsewhere or {})
    if not (of_table or text.speaks_of_it) or not (text.names_it or text.returns_all):
        return ()
    if language not in ("sql", "plpgsql"):
        return (UNREAD,)
    kinds = text.kinds()
    if column.text and (has_text or text.declares_text):
        kinds += (SIGNATURE,)
    # A function's own plans are made anew by the server.
    return tuple(kind for kind in kinds if kind != EVERY_COLUMN)


class _Text:
    """One text, taken apart into words."""

    def __init__(self, words: t.Sequence[Token], column: Column, elsewhere: t.Mapping[str, frozenset[str]]) -> None:
        self.words = words
        self.column = column
        self.elsewhere = elsewhere
        # What a qualifier stands for: another table's name by its alias, None for this table.
        self.relations: dict[str, str | None] = {}
        self._read_relations()
        self.inner = [
            _Text(list(tokens(_PLACEHOLDER.sub("$1", word.value))), column, elsewhere)
            for word in words
            if word.kind in ("string", "dollar_string") and column.name.lower() in word.value.lower()
        ]

    def _word(self, place: int) -> str:
        """The word, operator or sign at this place; nothing beyond the ends. A string is none."""
        if not 0 <= place < len(self.words) or self.words[place].kind in ("string", "dollar_string"):
            return ""
        return self.words[place].value

    def _is_name(self, place: int) -> bool:
        return 0 <= place < len(self.words) and self.words[place].kind in ("word", "quoted_identifier")

    @property
    def speaks_of_it(self) -> bool:
        """Whether the table stands in the text."""
        for place in range(len(self.words)):
            if self._is_name(place) and self._word(place) == self.column.table:
                qualified = self._word(place - 1) == "." and self._is_name(place - 2)
                if not qualified or self._word(place - 2) == self.column.schema:
                    return True
        return any(inner.speaks_of_it for inner in self.inner)

    @property
    def names_it(self) -> bool:
        """Whether the column stands in the text."""
        return any(self._is_name(n) and self._word(n) == self.column.name for n in range(len(self.words))) or any(
            inner.names_it for inner in self.inner
        )

    @property
    def declares_text(self) -> bool:
        """Whether a variable of text is declared."""
        return any(
            self._is_name(place - 1)
            and self._word(place) in _TEXT_TYPES
            and self._word(place + 1) in (";", ":=", "=", "default", "not", "(")
            for place in range(1, len(self.words))
        )

    def _read_relations(self) -> None:
        local = {
            self._word(place)
            for place in range(len(self.words))
            if self._is_name(place) and self._word(place + 1) == "as" and self._word(place + 2) in ("(", "materialized")
        }
        ours: set[str] = {self.column.table}
        for place in range(len(self.words)):
            if self.words[place].kind != "word" or self._word(place) not in _BEFORE_RELATION:
                continue
            after = place + 1
            while after:
                after = self._read_relation(after, local, ours)
        for name in ours:
            self.relations[name] = None

    def _read_relation(self, place: int, local: t.Collection[str], ours: set[str]) -> int:
        """One item of a FROM list; the place of the next one, 0 after the last."""
        while self._word(place) in ("only", "lateral"):
            place += 1
        if not self._is_name(place):
            return 0
        path = [self._word(place)]
        place += 1
        while self._word(place) == "." and self._is_name(place + 1):
            path.append(self._word(place + 1))
            place += 2
        if self._word(place) == "*":
            place += 1
        alias = path[-1]
        if self._word(place) == "as":
            place += 1
        if self._is_name(place) and self._word(place) not in _NO_ALIAS:
            alias = self._word(place)
            place += 1
        if path[-1] == self.column.table and (len(path) == 1 or path[-2] == self.column.schema):
            ours.add(alias)
        elif path[-1] not in local:
            self.relations[alias] = path[-1]
        return place + 1 if self._word(place) == "," else 0

    def kinds(self) -> tuple[str, ...]:
        """How the text uses the column, in the order of :data:`KINDS`."""
        found: set[str] = set()
        if self.column.text:
            for start, end in self._uses():
                found |= self._kinds_at(start, end)
        if self.returns_all:
            found.add(EVERY_COLUMN)
        for inner in self.inner:
            found |= set(inner.kinds())
        return tuple(kind for kind in KINDS if kind in found)

    def _uses(self) -> t.Iterator[tuple[int, int]]:
        """Where the column stands: its first word, and the first one after it. Parentheses around it alone belong to
        it; that of another table is left out."""
        for place in range(len(self.words)):
            if not self._is_name(place) or self._word(place) != self.column.name:
                continue
            start, end = place, place + 1
            if self._word(place - 1) == "." and self._is_name(place - 2):
                if self.relations.get(self._word(place - 2)) is not None:
                    continue
                start = place - 2
                while self._word(start - 1) == "." and self._is_name(start - 2):
                    start -= 2
            while self._word(start - 1) == "(" and self._word(end) == ")" and self._is_plain(start - 1):
                start, end = start - 1, end + 1
            yield start, end

    def _is_plain(self, place: int) -> bool:
        """Whether this parenthesis belongs to no call."""
        return not self._is_name(place - 1) or self._word(place - 1) in _PLAIN_BEFORE_PARENTHESIS

    def _kinds_at(self, start: int, end: int) -> set[str]:
        before, after = self._word(start - 1), self._word(end)
        if after == "::" or (after == "as" and before == "(" and self._word(start - 2) == "cast"):
            # What another type was made of is no text.
            return {CAST} if self._type_at(end + 1) in _TEXT_TYPES else set()
        found: set[str] = set()
        words = (after, self._word(end + 1)) if after == "not" else (after, "")
        if {"like", "ilike", "similar"} & set(words) or before in ("like", "ilike") or {before, after} & _PATTERNS:
            found.add(PATTERN)
        if before == "to" and self._word(start - 2) == "similar":
            found.add(PATTERN)
        if "||" in (before, after):
            found.add(CONCATENATION)
        called, arguments = self._call_around(start - 1)
        if called in _TEXT_FUNCTIONS or (called in _CHOOSING and self._is_text(arguments, value=True)):
            found.add(FUNCTION)
        for operand in self._compared_with(start, end):
            if self._is_text(operand):
                found.add(TEXT_VALUE)
            elif self._strange_literal(operand):
                found.add(LITERAL)
        return found

    def _type_at(self, place: int) -> str:
        return self._word(place + 2) if self._word(place + 1) == "." else self._word(place)

    def _call_around(self, place: int) -> tuple[str, list[int]]:
        """The function in whose parentheses this place is, and the places of its arguments."""
        depth = 0
        while place >= 0:
            word = self._word(place)
            if word == ")":
                depth += 1
            elif word == "(" and depth:
                depth -= 1
            elif word == "(" and not self._is_plain(place):
                return self._word(place - 1), list(range(place + 1, self._close(place)))
            elif word == ";":
                break
            place -= 1
        return "", []

    def _close(self, place: int) -> int:
        """The place of the parenthesis that closes this one."""
        depth = 0
        for other in range(place, len(self.words)):
            depth += {"(": 1, ")": -1}.get(self._word(other), 0)
            if not depth:
                return other
        return len(self.words)

    def _compared_with(self, start: int, end: int) -> t.Iterator[list[int]]:
        """The places of each operand that the column is compared with, or filled from."""
        after, operator = end, ""
        if self._word(after) == "not":
            after += 1
        if self._word(after) == "is":
            after += 1 + (self._word(after + 1) == "not")
            operator = "=" if (self._word(after), self._word(after + 1)) == ("distinct", "from") else ""
            after += 1
        elif self._word(after) in _COMPARISONS or self._word(after) in (":=", "in", "between"):
            operator = self._word(after)
        if operator:
            yield self._operand(range(after + 1, len(self.words)), "(", ")")
        before = self._word(start - 1)
        if before in _COMPARISONS or (before == "from" and self._word(start - 2) == "distinct"):
            places = self._operand(range(start - (2 if before in _COMPARISONS else 4), -1, -1), ")", "(")
            yield places[::-1]

    def _operand(self, places: t.Iterable[int], opening: str, closing: str) -> list[int]:
        found: list[int] = []
        depth = 0
        for place in places:
            word = self._word(place)
            if word == closing:
                depth -= 1
                if depth < 0:
                    break
            elif word == opening:
                depth += 1
            elif not depth and (
                word in (",", ";", *_COMPARISONS) or (self.words[place].kind == "word" and word in _ENDS_OPERAND)
            ):
                break
            found.append(place)
        return found

    def _is_text(self, operand: t.Sequence[int], *, value: bool = False) -> bool:
        """Whether the server takes this expression for text.

        :param value: a parameter or literal without a type, which could be anything, counts
        """
        words = [self._word(place) for place in operand]
        if "select" in words:
            return False
        for word, place in zip(words, operand):
            if word in ("::", "as") and self._type_at(place + 1) in _TEXT_TYPES:
                return True
            if word in _TEXT_TYPES and (place + 1 < len(self.words) and self.words[place + 1].kind == "string"):
                return True
        if self._ends_in_cast(operand):
            return False  # not to text: that was asked for above
        for word, place in zip(words, operand):
            called = self._is_name(place) and self._word(place + 1) == "("
            if word in _JSON_TEXT or word == "||" or (called and word in _TEXT_FUNCTIONS - {"min", "max"}):
                return True
            if value and self.words[place].kind in ("parameter", "string") and not self._fits(place):
                return True
            if not called and self._is_text_column(place):
                return True
        return False

    def _ends_in_cast(self, operand: t.Sequence[int]) -> bool:
        """Whether the last that is done to a value is a cast."""
        for place in reversed(operand):
            if self._word(place) in ("::", "as"):
                return True
            if not self._is_name(place) and self._word(place) not in (".", "[", "]", "(", ")"):
                return False
        return False

    def _fits(self, place: int) -> bool:
        return self.words[place].kind == "string" and self.column.takes(self.words[place].value)

    def _is_text_column(self, place: int) -> bool:
        """Whether a column of another table stands here that is text there."""
        if not self._is_name(place) or self._word(place + 1) == "." or self._word(place) not in self.elsewhere:
            return False
        tables = self.elsewhere[self._word(place)]
        if self._word(place - 1) == "." and self._is_name(place - 2):
            relation = self.relations.get(self._word(place - 2), "")
            return relation in tables
        return self._word(place) != self.column.name and bool(
            tables & {relation for relation in self.relations.values() if relation is not None}
        )

    def _strange_literal(self, operand: t.Sequence[int]) -> bool:
        if any(self._word(place) == "select" for place in operand) or self._ends_in_cast(operand):
            return False
        return any(self.words[place].kind == "string" and not self._fits(place) for place in operand)

    @property
    def returns_all(self) -> bool:
        """Whether the text asks for every column of the table, under whatever names it has them."""
        for place in range(len(self.words)):
            if self._word(place) == "table" and place in (0, 1) and self._word(place + 1) != "(":
                return True
            if self._word(place) != "*":
                continue
            before, after = self._word(place - 1), self._word(place + 1)
            if before == ".":
                if self.relations.get(self._word(place - 2)) is None and after != "(":
                    return True
                continue
            head = before in ("select", "distinct", "all", "returning", ",")
            if (head or (before == ")" and after == "from")) and not self._only_exists(place - 1):
                return True
        return False

    def _only_exists(self, place: int) -> bool:
        return self._word(place) == "select" and self._word(place - 1) == "(" and self._word(place - 2) == "exists"
