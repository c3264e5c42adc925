# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Values for SQL text: plain ones quoted by the driver, secret ones never in statement text at all.

What is in statement text reaches the server log when the statement fails, at default settings; psycopg2 puts even bound
parameters there. A secret therefore travels as COPY data into a temporary table, and its reference becomes a subquery.
"""

from __future__ import annotations

import io
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_identifier, quote_literal
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, SqlTextError
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import render as render_text

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Statements whose expressions are evaluated by the executor, where a subquery can stand.
_TAKES_SUBQUERY = frozenset({"select", "insert", "update", "delete", "merge", "with", "values"})

_CREATE = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS surefoot_secret (name text PRIMARY KEY, value text) ON COMMIT DROP;"
    " GRANT SELECT ON pg_temp.surefoot_secret TO PUBLIC; TRUNCATE pg_temp.surefoot_secret"
)

# Names of its own, so that none in the statement means another thing than it would outside.
_GUARD = """
DECLARE
    surefoot_state text; surefoot_message text; surefoot_schema text; surefoot_table text; surefoot_column text;
    surefoot_constraint text; surefoot_secret text; surefoot_row record;
BEGIN
    EXECUTE %(statement)s%(keep)s;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS surefoot_state = RETURNED_SQLSTATE, surefoot_message = MESSAGE_TEXT,
        surefoot_schema = SCHEMA_NAME, surefoot_table = TABLE_NAME, surefoot_column = COLUMN_NAME,
        surefoot_constraint = CONSTRAINT_NAME;
    FOR surefoot_secret IN %(secrets)s LOOP
        surefoot_message := pg_catalog.replace(surefoot_message, coalesce(surefoot_secret, ''), '***');
    END LOOP;
    RAISE EXCEPTION USING ERRCODE = surefoot_state, MESSAGE = surefoot_message, SCHEMA = surefoot_schema,
        TABLE = surefoot_table, COLUMN = surefoot_column, CONSTRAINT = surefoot_constraint;
END
"""


class _Subquery(str):
    """SQL text that is already an expression."""


def secret_names(statement: Statement, secrets: t.Mapping[str, t.Any]) -> set[str]:
    """Names of the secret variables the statement refers to."""
    return {reference.name for reference in statement.variables if reference.name in secrets}


def render(
    statement: Statement,
    *,
    variables: t.Mapping[str, t.Any],
    secrets: t.Mapping[str, t.Any],
    connection: Connection,
    file: str = "",
) -> str:
    """The statement's text with its variables put in; the names in ``secrets`` become subqueries (see :func:`load`).

    :raises SqlTextError: an undefined name, or a secret where only literal text could stand
    """
    if not statement.variables:
        return statement.text
    values: dict[str, t.Any] = dict(variables)
    for reference in statement.variables:
        if reference.name not in secrets:
            continue
        location = Location(file, *statement.location_of(reference.offset))
        if reference.style != "literal":
            raise SqlTextError(
                f"secret variable {reference.name} is used as :{reference.name} or as an identifier",
                remedy=f"Write :'{reference.name}'.",
                location=location,
            )
        if not statement.head or statement.head[0].value not in _TAKES_SUBQUERY:
            verb = statement.head[0].text.upper() if statement.head else "this statement"
            raise SqlTextError(
                f"secret variable {reference.name} cannot be used in {verb}: its value would become statement text,"
                " which reaches the server log",
                remedy="Use it in SELECT, INSERT, UPDATE, DELETE or MERGE, or send it by session_settings.",
                location=location,
            )
        name = quote_literal(reference.name, connection)
        values[reference.name] = _Subquery(f"(SELECT s.value FROM pg_temp.surefoot_secret AS s WHERE s.name = {name})")

    def literal(value: t.Any) -> str:
        return str(value) if isinstance(value, _Subquery) else quote_literal(value, connection)

    return render_text(statement, values, literal, lambda name: quote_identifier(name, connection))


def load(connection: Connection, names: t.Iterable[str], secrets: t.Mapping[str, t.Any]) -> None:
    """Bring these secrets into the open transaction's temporary table, by COPY. The table ends with the transaction."""
    rows = "".join(f"{_copy_text(name)}\t{_copy_text(secrets[name])}\n" for name in sorted(names))
    with connection.cursor() as cursor:
        cursor.execute(_CREATE)
        cursor.copy_expert("COPY pg_temp.surefoot_secret (name, value) FROM STDIN", io.StringIO(rows))


def guarded(
    statement: Statement,
    text: str,
    *,
    secrets: t.Mapping[str, t.Any],
    settings: t.Collection[str],
    connection: Connection,
) -> str:
    """The text to send so that no error of this statement brings a secret into the server log.

    The server logs, at default settings, the row a constraint refuses and the text a cast refuses. What an exception
    block catches it does not log: the error is raised again with the values masked and without the DETAIL.

    :param settings: names of the session's settings that hold secrets
    """
    verb = statement.head[0].value if statement.head else ""
    uses = bool(secret_names(statement, secrets))
    makes_table = verb == "select" and any(token.value == "into" and token.kind == "word" for token in statement.head)
    if verb not in _TAKES_SUBQUERY or makes_table or not (uses or settings):
        return text
    return _guard(text, uses, settings, connection)


def guarded_constraints(*, uses: bool, settings: t.Collection[str], connection: Connection) -> str:
    """``SET CONSTRAINTS ALL IMMEDIATE``, guarded likewise: a deferred constraint refuses rows only here.

    :param uses: secrets are loaded in this transaction
    """
    text = "SET CONSTRAINTS ALL IMMEDIATE"
    return _guard(text, uses, settings, connection) if uses or settings else text


def guarded_row(text: str, connection: Connection) -> str:
    """A statement that uses loaded secrets and returns one row, guarded likewise; the row comes as one JSON text."""
    row = "pg_catalog.row_to_json(surefoot_row)::text"
    keep = f" INTO surefoot_row; PERFORM pg_catalog.set_config('surefoot.row', {row}, true)"
    return _guard(text, True, (), connection, keep) + "; SELECT pg_catalog.current_setting('surefoot.row')"


def _guard(text: str, uses: bool, settings: t.Collection[str], connection: Connection, keep: str = "") -> str:
    values = [f"pg_catalog.current_setting({quote_literal(name, connection)}, true)" for name in settings]
    sources = [f"SELECT pg_catalog.unnest(ARRAY[{', '.join(values)}])"] if values else []
    if uses:
        sources.append("SELECT s.value FROM pg_temp.surefoot_secret AS s")
    statement = quote_literal(text, connection)
    body = _GUARD % {"statement": statement, "secrets": " UNION ALL ".join(sources), "keep": keep}
    return "DO " + quote_literal(body, connection)


def _copy_text(value: t.Any) -> str:
    if value is None:
        return "\\N"
    return str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
