# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Declared changes of a plan -> the steps, the way back and the checks they stand for.

An operation becomes SQL text that the runner treats like a file's: ledger, hashes, resume, rehearsal and lock trace
know nothing of operations. The text depends on the plan alone, so that its hash stays the same; what only the catalog
knows is asked in the text itself. A change of the text here makes every applied migration that uses it look changed:
``tests/unit/test_operations.py`` holds the texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import Check, parse_check
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, PlanError, SqlTextError
from ansible_collections.surefoot.dbops.plugins.module_utils._planyaml import PlanYaml
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import statements
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import (
    ONLY,
    SqlStep,
    Step,
    SweepStep,
    split_qualified,
)

# Names longer than this are cut by the server, and then mean something else.
NAME_BYTES = 63
SWEEP_BATCH = 1000
# Around what runs as a block; no expression of a plan may hold it.
BODY = "$surefoot$"

ACTIONS = {
    "no action": "a",
    "restrict": "r",
    "cascade": "c",
    "set null": "n",
    "set default": "d",
}
INDEX_KEYS = ("table", "name", "columns", "expression", "unique", "method", "where", "include")
FOREIGN_KEY_KEYS = (
    "table", "name", "columns", "references", "on_delete", "on_update", "deferrable", "initially", "on_invalid", "key",
)  # fmt: skip
_REFERENCES_KEYS = ("table", "columns")
NOT_NULL_KEYS = ("table", "column")
_METHOD = re.compile(r"[a-z][a-z0-9_]*")
_ORDERED = re.compile(r"(?is)(.*?)((?:\s+(?:asc|desc))?(?:\s+nulls\s+(?:first|last))?)\s*")


@dataclasses.dataclass(frozen=True)
class Retyped:
    """A column that gets another type: ``table`` as the plan writes it, ``column`` its real name."""

    table: str
    column: str
    to: str


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one entry of ``steps`` stands for. ``undo`` is None when nothing says how to go back, empty when there is
    nothing to undo. ``keeps_rows``: each table has the same columns and rows afterwards."""

    steps: tuple[Step, ...]
    undo: tuple[Step, ...] | None = None
    checks: tuple[Check, ...] = ()
    retyped: tuple[Retyped, ...] = ()
    keeps_rows: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """One operation in the plan: where it stands, and what its steps are called."""

    yaml: PlanYaml
    kind: str
    name: str
    location: Location
    place: str  # the plan and the migration

    def sql(self, text: str, *, transaction: bool = True, part: str = "", brief: bool = False) -> SqlStep:
        """A step with this text."""
        name = f"{self.name}: {part}" if part else self.name
        return SqlStep(
            name=name,
            path=f"{self.place} ({name})",
            file=name,
            location=self.location,
            declared_transaction=transaction,
            text=text,
            brief=brief,
        )

    def check(self, what: str, query: str) -> Check:
        """A check whose one value must be true."""
        mapping = {"name": what, "query": query, "expect": {"true": "all"}, "when": "before_commit"}
        return parse_check(mapping, self.location)


# ---------------------------------------------------------------------------------------------------------------------
# Names and expressions


def quoted(name: str) -> str:
    """An identifier, always in quotes: no connection is there to ask, and no word has a meaning inside quotes."""
    return '"' + name.replace('"', '""') + '"'


def quoted_table(table: str) -> str:
    """A schema-qualified name as the plan writes it, in quotes."""
    return ".".join(quoted(part) for part in split_qualified(table))


def literal(value: str) -> str:
    """A text as an SQL literal, whatever standard_conforming_strings is."""
    text = value.replace("'", "''")
    return "E'" + text.replace("\\", "\\\\") + "'" if "\\" in text else f"'{text}'"


def text_array(values: t.Sequence[str | None]) -> str:
    """Texts as an SQL array."""
    return f"ARRAY[{', '.join('NULL' if value is None else literal(value) for value in values)}]::text[]"


def short(prefix: str, name: str) -> str:
    """A name of ours for something that belongs to ``name``, within what the server keeps of it."""
    full = prefix + name
    if len(full.encode("utf-8")) <= NAME_BYTES:
        return full
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:8]
    room = NAME_BYTES - len(prefix.encode("utf-8")) - 9
    return f"{prefix}{name.encode('utf-8')[:room].decode('utf-8', 'ignore')}_{digest}"


def shown(table: str) -> str:
    """A table's name for people."""
    return ".".join(split_qualified(table))


def name_of(yml: PlanYaml, fields: t.Mapping[str, t.Any], node: t.Any, what: str) -> str:
    """The name of a thing to be made; it must fit."""
    if "name" not in fields:
        problem = f"{what} has no name"
        raise PlanError(
            problem, location=yml.at(node), remedy="Name it: only then can an interrupted run recognise it."
        )
    found = yml.name(yml.text(fields["name"], "name"), fields["name"], what)
    if len(found.encode("utf-8")) > NAME_BYTES:
        problem = f"the name {found} is longer than {NAME_BYTES} bytes"
        raise PlanError(problem, location=yml.at(fields["name"]), remedy="Shorten it: the server would cut it.")
    return found


def columns_of(yml: PlanYaml, node: t.Any, what: str) -> tuple[str, ...]:
    """One or more different columns."""
    found: list[str] = []
    for item in yml.one_or_more(node, what):
        column = yml.column(yml.text(item, what), item)
        if column in found:
            raise PlanError(f"{what} has {column} twice", location=yml.at(item))
        found.append(column)
    return tuple(found)


def expression_of(yml: PlanYaml, node: t.Any, what: str) -> str:
    """An SQL expression that stays inside the parentheses it is put into.

    :raises PlanError: it does not, or it uses a variable, which an operation cannot
    """
    text = yml.text(node, what)
    location = yml.text_at(node)
    try:
        found = list(statements(io.BytesIO(f"({text}\n)".encode("utf-8", "surrogatepass")), name=""))
    except SqlTextError as exc:
        raise PlanError(f"{what}: {exc.message}", location=location, remedy=exc.remedy) from None
    depth, closed = 0, False
    for token in found[0].tokens() if found else ():
        closed = closed or token.text == ";"
        if token.text in ("(", ")") and token.kind == "punctuation":
            closed = closed or depth == 0 and token.offset > 0
            depth += 1 if token.text == "(" else -1
    if len(found) != 1 or found[0].meta is not None or closed or depth:
        remedy = "Write one SQL expression, without a semicolon and with its parentheses closed."
        raise PlanError(f"{what} is not one expression", location=location, remedy=remedy)
    if found[0].variables:
        remedy = "Write the value itself, or the change as SQL files."
        raise PlanError(f"{what} uses the variable {found[0].variables[0].name}", location=location, remedy=remedy)
    if "$surefoot" in text:
        raise PlanError(f"{what} contains $surefoot", location=location, remedy="Use another tag for dollar quotes.")
    return text


def required(yml: PlanYaml, fields: t.Mapping[str, t.Any], node: t.Any, kind: str, names: t.Iterable[str]) -> None:
    """:raises PlanError: one of the keys is missing"""
    for name in names:
        if name not in fields:
            raise PlanError(f"{kind} has no {name}", location=yml.at(node))


# ---------------------------------------------------------------------------------------------------------------------
# create_index


@dataclasses.dataclass(frozen=True)
class Index:
    """An index to be made. ``keys`` as SQL writes them, ``columns`` what the catalog then says: None is an
    expression."""

    name: str
    keys: tuple[str, ...]
    columns: tuple[str | None, ...]
    unique: bool = False
    method: str = "btree"
    where: str | None = None
    include: tuple[str, ...] = ()

    def sql(self, table: str, name: str | None = None) -> str:
        """The statement that makes it."""
        include = f" INCLUDE ({', '.join(map(quoted, self.include))})" if self.include else ""
        where = f" WHERE ({self.where})" if self.where else ""
        return (
            f"CREATE {'UNIQUE ' if self.unique else ''}INDEX CONCURRENTLY {quoted(name or self.name)}"
            f" ON {quoted_table(table)} USING {self.method} ({', '.join(self.keys)}){include}{where};\n"
        )

    def check(self, table: str, name: str | None = None) -> str:
        """Whether it is there, whole and as declared."""
        schema, _table = split_qualified(table)
        index = f"{quoted(schema)}.{quoted(name or self.name)}"
        return (
            "SELECT i.indisvalid AND i.indisready AND i.indislive"
            f" AND i.indisunique = {str(self.unique).lower()} AND m.amname = {literal(self.method)}"
            f" AND (i.indpred IS NOT NULL) = {str(self.where is not None).lower()}"
            " AND ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(number,"
            " place) LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number"
            f" ORDER BY k.place) = {text_array((*self.columns, *self.include))}"
            " FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_catalog.pg_am m ON m.oid = c.relam"
            f" WHERE i.indexrelid = pg_catalog.to_regclass({literal(index)})"
            f" AND i.indrelid = pg_catalog.to_regclass({literal(quoted_table(table))})"
        )


def read_index(yml: PlanYaml, node: t.Any, what: str, known: t.Sequence[str] = INDEX_KEYS) -> Index:
    """The definition of an index.

    :raises PlanError: a mistake, with its place
    """
    fields = yml.fields(node, what, known)
    name = name_of(yml, fields, node, "an index" if what == "create_index" else what)
    ways = [key for key in ("columns", "expression") if key in fields]
    if len(ways) != 1:
        problem = f"{what} has {'both columns and expression' if ways else 'neither columns nor expression'}"
        raise PlanError(problem, location=yml.at(node), remedy="Give exactly one of them.")
    keys: list[str] = []
    columns: list[str | None] = []
    if ways[0] == "expression":
        keys.append(f"({expression_of(yml, fields['expression'], 'expression')})")
        columns.append(None)
    else:
        for item in yml.one_or_more(fields["columns"], "columns"):
            text = yml.text(item, "columns")
            match = _ORDERED.fullmatch(text)
            column = yml.column(match.group(1) if match is not None else text, item)
            if column in columns:
                raise PlanError(f"columns has {column} twice", location=yml.at(item))
            order = " ".join(match.group(2).upper().split()) if match is not None else ""
            keys.append(f"{quoted(column)} {order}".rstrip())
            columns.append(column)
    method = yml.text(fields["method"], "method") if "method" in fields else "btree"
    if not _METHOD.fullmatch(method):
        problem = f"{method!r} is not an index method"
        raise PlanError(problem, location=yml.at(fields["method"]), remedy="Such as btree, hash, gin, gist, brin.")
    return Index(
        name,
        tuple(keys),
        tuple(columns),
        unique=yml.flag(fields["unique"], "unique") if "unique" in fields else False,
        method=method,
        where=expression_of(yml, fields["where"], "where") if "where" in fields else None,
        include=columns_of(yml, fields["include"], "include") if "include" in fields else (),
    )


def create_index(entry: Entry, node: t.Any) -> Operation:
    yml = entry.yaml
    index = read_index(yml, node, "create_index")
    fields = yml.fields(node, "create_index", INDEX_KEYS)
    required(yml, fields, node, "create_index", ("table",))
    table = yml.table(fields["table"], "table")
    entry = dataclasses.replace(entry, name=entry.name or f"create_index {shown(table)}.{index.name}")
    schema, _table = split_qualified(table)
    drop = f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(schema)}.{quoted(index.name)};\n"
    return Operation(
        (entry.sql(index.sql(table), transaction=False),),
        (entry.sql(drop, transaction=False, part="undo"),),
        (entry.check(f"index {index.name} is valid and as declared", index.check(table)),),
        keeps_rows=True,
    )


# ---------------------------------------------------------------------------------------------------------------------
# add_foreign_key


@dataclasses.dataclass(frozen=True)
class ForeignKey:
    """A foreign key to be made."""

    name: str
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str = "no action"
    on_update: str = "no action"
    deferrable: bool = False
    deferred: bool = False

    def sql(self, table: str, columns: t.Sequence[str], name: str | None = None) -> str:
        """The statement that adds it for new rows, so that it holds its locks for a moment only."""
        actions = "".join(
            f" ON {verb} {action.upper()}"
            for verb, action in (("DELETE", self.on_delete), ("UPDATE", self.on_update))
            if action != "no action"
        )
        deferrable = ""
        if self.deferrable:
            deferrable = f" DEFERRABLE INITIALLY {'DEFERRED' if self.deferred else 'IMMEDIATE'}"
        return (
            f"ALTER TABLE {quoted_table(table)} ADD CONSTRAINT {quoted(name or self.name)}"
            f" FOREIGN KEY ({', '.join(map(quoted, columns))}) REFERENCES {quoted_table(self.parent)}"
            f" ({', '.join(map(quoted, self.parent_columns))}){actions}{deferrable} NOT VALID;\n"
        )

    def check(self, table: str, columns: t.Sequence[str]) -> str:
        """Whether it is there, validated and as declared."""
        return (
            f"SELECT c.convalidated AND c.condeferrable = {str(self.deferrable).lower()}"
            f" AND c.condeferred = {str(self.deferred).lower()}"
            f" AND c.confdeltype = {literal(ACTIONS[self.on_delete])}"
            f" AND c.confupdtype = {literal(ACTIONS[self.on_update])}"
            f" AND c.confrelid = pg_catalog.to_regclass({literal(quoted_table(self.parent))})"
            f" AND {_key_columns('c.conrelid', 'c.conkey')} = {text_array(list(columns))}"
            f" AND {_key_columns('c.confrelid', 'c.confkey')} = {text_array(list(self.parent_columns))}"
            " FROM pg_catalog.pg_constraint c WHERE c.contype = 'f'"
            f" AND c.conrelid = pg_catalog.to_regclass({literal(quoted_table(table))})"
            f" AND c.conname = {literal(self.name)}"
        )

    def orphans(self, table: str, columns: t.Sequence[str], key: t.Sequence[str]) -> str:
        """A query for the key of each row without a parent."""
        keys = ", ".join(f"t.{quoted(name)} AS surefoot_key_{number}" for number, name in enumerate(key))
        pairs = list(zip(columns, self.parent_columns))
        join = " AND ".join(f"p.{quoted(parent)} = t.{quoted(column)}" for column, parent in pairs)
        given = " AND ".join(f"t.{quoted(column)} IS NOT NULL" for column in columns)
        return (
            f"SELECT {keys}, t.ctid AS surefoot_place, 'no parent' AS surefoot_reason FROM {quoted_table(table)} AS t"
            f" LEFT JOIN {quoted_table(self.parent)} AS p ON {join}"
            f" WHERE {given} AND p.{quoted(self.parent_columns[0])} IS NULL AND {ONLY}"
        )


def _key_columns(relation: str, numbers: str) -> str:
    return (
        f"ARRAY(SELECT a.attname::text FROM pg_catalog.unnest({numbers}) WITH ORDINALITY AS k(number, place)"
        f" JOIN pg_catalog.pg_attribute a ON a.attrelid = {relation} AND a.attnum = k.number ORDER BY k.place)"
    )


def read_references(
    yml: PlanYaml, node: t.Any, fields: t.Mapping[str, t.Any], name: str, more: t.Sequence[str] = ()
) -> ForeignKey:
    """The parent and the options of a foreign key.

    :param node: the ``references`` mapping
    :param fields: the options' nodes
    :param more: keys that the mapping may have beside table and columns

    :raises PlanError: a mistake, with its place
    """
    parent = yml.fields(node, "references", (*_REFERENCES_KEYS, *more))
    required(yml, parent, node, "references", _REFERENCES_KEYS)
    actions = {}
    for key in ("on_delete", "on_update"):
        actions[key] = yml.choice(fields[key], key, tuple(ACTIONS)) if key in fields else "no action"
    deferrable = yml.flag(fields["deferrable"], "deferrable") if "deferrable" in fields else False
    initially = "immediate"
    if "initially" in fields:
        initially = yml.choice(fields["initially"], "initially", ("immediate", "deferred"))
        if initially == "deferred" and not deferrable:
            problem = "initially is deferred, and the constraint is not deferrable"
            raise PlanError(problem, location=yml.at(fields["initially"]), remedy="Add deferrable: true.")
    return ForeignKey(
        name=name,
        parent=yml.table(parent["table"], "table"),
        parent_columns=columns_of(yml, parent["columns"], "columns of references"),
        deferrable=deferrable,
        deferred=initially == "deferred",
        **actions,
    )


def add_foreign_key(entry: Entry, node: t.Any) -> Operation:
    yml = entry.yaml
    fields = yml.fields(node, "add_foreign_key", FOREIGN_KEY_KEYS)
    required(yml, fields, node, "add_foreign_key", ("table", "columns", "references"))
    name = name_of(yml, fields, node, "a foreign key")
    table = yml.table(fields["table"], "table")
    columns = columns_of(yml, fields["columns"], "columns")
    options: dict[str, t.Any] = {
        key: fields[key] for key in ("on_delete", "on_update", "deferrable", "initially") if key in fields
    }
    foreign = read_references(yml, fields["references"], options, name)
    if len(foreign.parent_columns) != len(columns):
        problem = f"{name} has {len(columns)} columns and refers to {len(foreign.parent_columns)}"
        raise PlanError(problem, location=yml.at(fields["references"]))
    entry = dataclasses.replace(entry, name=entry.name or f"add_foreign_key {shown(table)}.{name}")
    target = quoted_table(table)
    validate = f"ALTER TABLE {target} VALIDATE CONSTRAINT {quoted(name)};\n"
    drop = f"ALTER TABLE IF EXISTS {target} DROP CONSTRAINT IF EXISTS {quoted(name)};\n"
    steps: list[Step] = [entry.sql(foreign.sql(table, columns))]
    undo: list[Step] = [entry.sql(drop, part="undo")]
    if "on_invalid" in fields:
        required(yml, fields, node, "add_foreign_key with on_invalid", ("key",))
        key = columns_of(yml, fields["key"], "key")
        moves = yml.choice(fields["on_invalid"], "on_invalid", ("abort", "quarantine")) == "quarantine"
        sweep = SweepStep(
            name=f"{entry.name}: {'sweep' if moves else 'look'}",
            table=table,
            key=key,
            mode="quarantine" if moves else "count",
            prelude="",
            rows=foreign.orphans(table, columns, key),
            dependents=(),
            batch=SWEEP_BATCH,
            location=entry.location,
        )
        if moves:
            # Behind the constraint, which keeps new ones out.
            steps.append(sweep)
            restore = dataclasses.replace(sweep, name=f"{entry.name}: restore", mode="restore", rows="", undoes=(1,))
            undo = [dataclasses.replace(entry.sql(drop, part="undo"), undoes=(0,)), restore]
        else:
            steps.insert(0, sweep)
            undo = [dataclasses.replace(entry.sql(drop, part="undo"), undoes=(1,))]
    elif "key" in fields:
        remedy = "Add on_invalid, or take key out."
        raise PlanError("key, and nothing needs it", location=yml.at(fields["key"]), remedy=remedy)
    steps.append(entry.sql(validate, transaction=False, part="validate"))
    return Operation(
        tuple(steps),
        tuple(undo),
        (entry.check(f"foreign key {name} is validated and as declared", foreign.check(table, columns)),),
        keeps_rows=all(not isinstance(step, SweepStep) or step.mode == "count" for step in steps),
    )


# ---------------------------------------------------------------------------------------------------------------------
# set_not_null


def block(text: str) -> str:
    """PL/pgSQL as a statement of its own."""
    return f"DO {BODY}\n{text}{BODY};\n"


def refuse(condition: str, message: str, hint: str) -> str:
    """PL/pgSQL that refuses a state of the catalog, before anything is changed."""
    return (
        f"  IF {condition} THEN\n"
        f"    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',\n"
        f"      MESSAGE = {literal(message)},\n"
        f"      HINT = {literal(hint)};\n"
        "  END IF;\n"
    )


def not_null_query(table: str, column: str) -> str:
    """Whether a column is NOT NULL; no row without the column."""
    return (
        "SELECT a.attnotnull FROM pg_catalog.pg_attribute a"
        f" WHERE a.attrelid = pg_catalog.to_regclass({literal(quoted_table(table))})"
        f" AND a.attname = {literal(column)} AND a.attnum > 0 AND NOT a.attisdropped"
    )


def set_not_null(entry: Entry, node: t.Any) -> Operation:
    yml = entry.yaml
    fields = yml.fields(node, "set_not_null", NOT_NULL_KEYS)
    required(yml, fields, node, "set_not_null", NOT_NULL_KEYS)
    table = yml.table(fields["table"], "table")
    column = yml.column(yml.text(fields["column"], "column"), fields["column"])
    where = f"{shown(table)}.{column}"
    entry = dataclasses.replace(entry, name=entry.name or f"set_not_null {where}")
    target, check = quoted_table(table), quoted(short("surefoot_not_null_", column))
    # Else a rollback would take away what this step has not given.
    already = block(
        "BEGIN\n"
        + refuse(f"({not_null_query(table, column)})", f"{where} is NOT NULL already", "Take the step out of the plan.")
        + "END\n"
    )
    return Operation(
        (
            entry.sql(
                f"{already}ALTER TABLE {target} ADD CONSTRAINT {check} CHECK ({quoted(column)} IS NOT NULL)"
                " NOT VALID;\n"
            ),
            entry.sql(f"ALTER TABLE {target} VALIDATE CONSTRAINT {check};\n", transaction=False, part="validate"),
            entry.sql(
                # The validated check spares the scan; dropped in the same statement, it would be gone before it is
                # asked.
                f"ALTER TABLE {target} ALTER COLUMN {quoted(column)} SET NOT NULL;\n"
                f"ALTER TABLE {target} DROP CONSTRAINT {check};\n",
                part="not null",
                brief=True,
            ),
        ),
        (
            entry.sql(
                f"ALTER TABLE IF EXISTS {target} DROP CONSTRAINT IF EXISTS {check},"
                f" ALTER COLUMN {quoted(column)} DROP NOT NULL;\n",
                part="undo",
            ),
        ),
        (entry.check(f"{where} is NOT NULL", not_null_query(table, column)),),
        keeps_rows=True,
    )
