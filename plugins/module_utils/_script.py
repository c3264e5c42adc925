# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""One SQL file -> what the runner may execute, or the line that says why not and what to do.

``inspect()`` reads the whole file before anything connects; ``executable()`` reads it again and yields what is to run.
What a statement is and may do is decided by its first tokens and one table, never by searching its text: a function
body that mentions CREATE INDEX CONCURRENTLY is a function body. The list of statements that cannot run in a
transaction block is checked against the server by tests/integration/test_sqltext_against_psql.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, SqlTextError
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import (
    Scanner,
    Statement,
    Token,
    mid_statement_remedy,
)

# Limits a runner sets for the session; a file that sets one of them itself has disarmed it.
LIMITS = frozenset(
    {
        "lock_timeout",
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "transaction_timeout",
        "search_path",
    }
)

# Files up to this size are read at once: then a change between the two passes is seen before the first statement.
_SMALL_FILE = 1024 * 1024
# Files up to this size are not lexed again by the second pass.
_PREPARED_FILE = 32 * 1024


@dataclasses.dataclass(frozen=True)
class StatementClass:
    """What a statement is and may do.

    ``in_transaction``: yes | never (the server refuses it in a transaction block) | control (BEGIN, COMMIT and kin).
    ``session``: clean | settings (DISCARD ALL undoes it) | unknown (it does not, or nobody can tell).
    ``may_block``: could take a lock that blocks readers or writers of a relation that existed before.
    ``disarms``: the limits (of ``LIMITS``) that it sets to a value of its own.
    """

    tag: str
    in_transaction: str = "yes"
    session: str = "clean"
    may_block: bool = True
    disarms: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Script:
    """A file that passed.

    ``size`` in bytes; ``begin_modes`` as SET TRANSACTION takes them, None when there are none; ``disarms`` as of its
    statements.
    """

    path: str
    raw_sha256: str
    token_sha256: str
    size: int
    statement_count: int
    begin_modes: str | None
    taken_over: bool
    needs_fresh_connection: bool
    variables: frozenset[str]
    warnings: tuple[str, ...]
    may_block: bool
    transaction: bool = True
    disarms: frozenset[str] = frozenset()
    # Of a small file: what executable() yields, and its bytes. What was inspected is what runs, whatever becomes of
    # the file.
    prepared: tuple[tuple[Statement, StatementClass], ...] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )
    content: bytes | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class ConcurrentTarget:
    """What a CONCURRENTLY statement works on.

    ``kind``: create_index | drop_index | reindex | detach_partition. ``name`` is the index (or what is reindexed, or
    the partition), ``schema`` its schema as written (an index is made in its table's schema), ``table`` and
    ``table_schema`` the table where the statement names one. ``object_type``: index | table | schema | database |
    system. ``guard`` is the span of IF [NOT] EXISTS in the text, None without.
    """

    kind: str
    schema: str | None
    name: str | None
    table_schema: str | None
    table: str | None
    object_type: str
    guard: tuple[int, int] | None = None

    @property
    def if_exists(self) -> bool:
        """The statement says IF EXISTS or IF NOT EXISTS."""
        return self.guard is not None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# -- classification

_CLEAN_DML = {
    tag: StatementClass(tag, may_block=False)
    for tag in ("INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "SHOW", "COMMENT")
}
_UNKNOWN_DML = {tag: dataclasses.replace(entry, session="unknown") for tag, entry in _CLEAN_DML.items()}
_DML_START = re.compile(rb"(?i)(insert|update|delete)(?![A-Za-z0-9_$\x80-\xff])")

# The functions whose call in a SELECT is known to lock nothing.
_HARMLESS_FUNCTIONS = _names("""
    set_config current_setting setval nextval currval lastval count sum min max avg now clock_timestamp coalesce
    nullif greatest least length lower upper concat format version exists any all some array row in values as over
    cast extract string_agg array_agg json_agg jsonb_agg jsonb_build_object json_build_object to_regclass to_char
    pg_size_pretty pg_relation_size pg_total_relation_size pg_table_size pg_database_size pg_get_indexdef
    pg_get_constraintdef pg_get_functiondef pg_get_viewdef has_table_privilege has_schema_privilege md5 round abs
    date_trunc pg_backend_pid pg_notify gen_random_uuid unnest generate_series quote_ident quote_literal bool_and
    bool_or current_schemas row_number rank on where and or not then else when select from union by using filter
    replace
""")

# CREATE: tag by the words after the modifiers; (tag, may_block).
_CREATE = {
    "table": ("CREATE TABLE", False),
    "view": ("CREATE VIEW", False),
    "index": ("CREATE INDEX", True),
    "trigger": ("CREATE TRIGGER", True),
    "policy": ("CREATE POLICY", True),
    "rule": ("CREATE RULE", True),
    "database": ("CREATE DATABASE", False),
    "tablespace": ("CREATE TABLESPACE", False),
    "subscription": ("CREATE SUBSCRIPTION", False),
}
_CREATE_QUIET = _names("""
    function procedure aggregate type domain schema sequence extension role user group cast collation conversion
    operator server publication statistics language transform
""")
_CREATE_MODIFIERS = _names("""
    or replace temp temporary global local unlogged unique constraint recursive trusted procedural default
""")
_TWO_WORDS = {
    ("materialized", "view"), ("event", "trigger"), ("foreign", "table"), ("foreign", "data"), ("access", "method"),
    ("text", "search"), ("user", "mapping"), ("default", "privileges"), ("large", "object"), ("operator", "class"),
    ("operator", "family"),
}  # fmt: skip

# ALTER and DROP: what holds no relation that readers and writers use.
_ALTER_QUIET = frozenset(
    {
        "ROLE", "USER", "GROUP", "DATABASE", "FUNCTION", "PROCEDURE", "ROUTINE", "AGGREGATE", "DEFAULT PRIVILEGES",
        "COLLATION", "CONVERSION", "LANGUAGE", "SERVER", "USER MAPPING", "PUBLICATION", "SUBSCRIPTION", "SYSTEM",
        "TEXT SEARCH", "EVENT TRIGGER", "TABLESPACE", "STATISTICS", "LARGE OBJECT", "OPERATOR", "OPERATOR CLASS",
        "OPERATOR FAMILY", "FOREIGN DATA",
    }
)  # fmt: skip
_DROP_QUIET = frozenset(
    {
        "ROLE", "USER", "GROUP", "DATABASE", "TABLESPACE", "FUNCTION", "PROCEDURE", "ROUTINE", "AGGREGATE", "CAST",
        "COLLATION", "CONVERSION", "LANGUAGE", "SERVER", "USER MAPPING", "PUBLICATION", "SUBSCRIPTION", "TYPE",
        "DOMAIN", "SCHEMA", "TEXT SEARCH", "EVENT TRIGGER", "STATISTICS", "OPERATOR", "OPERATOR CLASS",
        "OPERATOR FAMILY", "TRANSFORM", "ACCESS METHOD", "FOREIGN DATA",
    }
)  # fmt: skip

# Statements whose first word is enough.
_SIMPLE = {
    "show": StatementClass("SHOW", may_block=False),
    "comment": StatementClass("COMMENT", may_block=False),
    "copy": StatementClass("COPY", may_block=False),
    "insert": _CLEAN_DML["INSERT"],
    "update": _CLEAN_DML["UPDATE"],
    "delete": _CLEAN_DML["DELETE"],
    "merge": _CLEAN_DML["MERGE"],
    "grant": StatementClass("GRANT", may_block=False),
    "revoke": StatementClass("REVOKE", may_block=False),
    "analyze": StatementClass("ANALYZE", may_block=False),
    "analyse": StatementClass("ANALYZE", may_block=False),
    "truncate": StatementClass("TRUNCATE"),
    "lock": StatementClass("LOCK"),
    "load": StatementClass("LOAD", session="unknown", may_block=False),
    "do": StatementClass("DO", session="unknown"),
    "call": StatementClass("CALL", session="unknown"),
    "execute": StatementClass("EXECUTE", session="unknown"),
    "deallocate": StatementClass("DEALLOCATE", may_block=False),
    "declare": StatementClass("DECLARE", session="settings", may_block=False),
    "fetch": StatementClass("FETCH", may_block=False),
    "move": StatementClass("MOVE", may_block=False),
    "close": StatementClass("CLOSE", may_block=False),
    "listen": StatementClass("LISTEN", session="settings", may_block=False),
    "unlisten": StatementClass("UNLISTEN", may_block=False),
    "notify": StatementClass("NOTIFY", may_block=False),
    "checkpoint": StatementClass("CHECKPOINT", may_block=False),
    "security": StatementClass("SECURITY LABEL", may_block=False),
    "import": StatementClass("IMPORT FOREIGN SCHEMA", may_block=False),
    "reassign": StatementClass("REASSIGN OWNED"),
    "savepoint": StatementClass("SAVEPOINT", may_block=False),
    "release": StatementClass("RELEASE", may_block=False),
    "begin": StatementClass("BEGIN", "control", may_block=False),
    "abort": StatementClass("ROLLBACK", "control", may_block=False),
}


def classify(statement: Statement) -> StatementClass:
    """What a statement is and may do, from its first tokens.

    A call of ``set_config`` anywhere in it makes its effect on the session unknown.
    """
    if statement.meta is not None:
        return StatementClass("psql", may_block=False)
    raw = statement.raw
    start = _DML_START.match(raw)
    if start is not None:
        tag = start.group().upper().decode("ascii")
        if b"set_config" in raw.lower() and _calls_set_config(statement):
            return _UNKNOWN_DML[tag]
        return _CLEAN_DML[tag]
    entry = _by_head(statement)
    if b"set_config" in raw.lower() and entry.tag not in _DEFINES_CODE and _calls_set_config(statement):
        return dataclasses.replace(entry, session="unknown", disarms=entry.disarms | _set_config_names(statement))
    return entry


_DEFINES_CODE = frozenset({"CREATE FUNCTION", "CREATE PROCEDURE", "COMMENT"})


def _calls_set_config(statement: Statement) -> bool:
    return any(
        token.value == "set_config" and token.kind in ("word", "quoted_identifier") for token in statement.tokens()
    )


def _set_config_names(statement: Statement) -> frozenset[str]:
    found = set()
    before: list[str] = ["", ""]
    for token in statement.tokens():
        if token.kind == "string" and before == ["set_config", "("]:
            found.add(token.value.lower())
        before = [before[1], token.value]
    return frozenset(found) & LIMITS


def _by_head(statement: Statement) -> StatementClass:
    # Most statements say what they are in a few words.
    words = _words(statement.peek(_FEW))
    # A parenthesised query.
    first = next((word for word in words if word != "("), "")
    known = _SIMPLE.get(first)
    if known is not None:
        return known
    handler = _HANDLERS.get(first)
    if handler is not None:
        return handler(words if first in _FEW_ARE_ENOUGH else _words(statement.head), statement)
    return StatementClass(first.upper() if first.isalpha() else "UNKNOWN", session="unknown")


_FEW = 12
_FEW_ARE_ENOUGH = _names("create drop set reset start commit end rollback prepare discard")


def _words(head: t.Sequence[Token]) -> list[str]:
    """Key words in lower case; names in quotes and strings cannot be mistaken for one."""
    return [token.value if token.kind in ("word", "punctuation") else f"<{token.kind}>" for token in head]


def _create(words: list[str], statement: Statement) -> StatementClass:
    position = 1
    modifiers = set()
    while position < len(words) and words[position] in _CREATE_MODIFIERS:
        modifiers.add(words[position])
        position += 1
    session = "settings" if modifiers & {"temp", "temporary"} else "clean"
    what = words[position] if position < len(words) else ""
    following = words[position + 1] if position + 1 < len(words) else ""
    if (what, following) in _TWO_WORDS:
        tag = f"CREATE {what} {following}".upper()
        if tag == "CREATE FOREIGN TABLE":
            return StatementClass(tag, may_block=_follows(words, "partition", "of"))
        return StatementClass(tag, may_block=False, session=session)
    if what == "index":
        if following == "concurrently":
            return StatementClass("CREATE INDEX CONCURRENTLY", "never", may_block=False)
        return StatementClass("CREATE INDEX")
    if what == "table":
        # A reference can be anywhere; PARTITION OF comes right behind the name. Parents of INHERITS go on being used.
        blocks = b"references" in statement.raw.lower() or _follows(words, "partition", "of")
        return StatementClass("CREATE TABLE", session=session, may_block=blocks)
    if what == "view":
        return StatementClass("CREATE VIEW", session=session, may_block="replace" in modifiers)
    if what == "schema":
        return StatementClass("CREATE SCHEMA", may_block=b"create" in statement.raw[6:].lower())
    if what in ("database", "tablespace"):
        return StatementClass(f"CREATE {what.upper()}", "never", may_block=False)
    if what == "subscription":
        words = _words(statement.head)
        makes_slot = not any(_option_is_off(words, statement, name) for name in ("connect", "create_slot"))
        return StatementClass("CREATE SUBSCRIPTION", "never" if makes_slot else "yes", may_block=False)
    if what in _CREATE:
        tag, blocks = _CREATE[what]
        return StatementClass(tag, session=session, may_block=blocks)
    return StatementClass(f"CREATE {what.upper()}", session=session, may_block=what not in _CREATE_QUIET)


def _follows(words: t.Sequence[str], first: str, second: str) -> bool:
    return any(pair == (first, second) for pair in zip(words, words[1:]))


def _option_is_off(words: list[str], statement: Statement, name: str) -> bool:
    """``name = false`` in a list of options; a name without a value is on."""
    for position, word in enumerate(words[:-2]):
        if word == name and statement.head[position + 1].text == "=":
            return statement.head[position + 2].value.lower() in ("false", "off", "0", "no")
    return False


def _object_type(words: list[str]) -> str:
    pair = tuple(words[1:3])
    if pair in _TWO_WORDS:
        return " ".join(pair).upper()
    return words[1].upper() if len(words) > 1 and words[1].isalpha() else "UNKNOWN"


def _alter(words: list[str], statement: Statement) -> StatementClass:
    what = _object_type(words)
    tag = f"ALTER {what}"
    if what == "SYSTEM":
        return StatementClass(tag, "never", may_block=False)
    if what == "DATABASE":
        return StatementClass(tag, "never" if words[3:5] == ["set", "tablespace"] else "yes", may_block=False)
    if what == "SUBSCRIPTION":
        return StatementClass(tag, "never" if _refreshes(words, statement) else "yes", may_block=False)
    if what == "TABLE":
        return _alter_table(words, statement)
    if what == "TYPE":
        # The labels of an enum are catalog rows; attributes are columns of the tables that use the type.
        return StatementClass(tag, may_block=not _follows(words, "add", "value"))
    return StatementClass(tag, may_block=what not in _ALTER_QUIET)


def _refreshes(words: list[str], statement: Statement) -> bool:
    action = words[3:5]
    if action == ["refresh", "publication"]:
        return True
    if action[:1] and action[0] in ("set", "add", "drop") and action[1:] == ["publication"]:
        return not _option_is_off(words, statement, "refresh")
    # Changing these alters the slot on the publisher (PostgreSQL 17 and 18).
    return action == ["set", "("] and bool({"failover", "two_phase"} & set(words))


def _alter_table(words: list[str], statement: Statement) -> StatementClass:
    position = _skip(words, 2, ("if", "exists"))
    position = _skip(words, position, ("only",))
    _schema, _name, position = _qualified(statement.head, position)
    if words[position : position + 2] == ["detach", "partition"]:
        _schema, _name, position = _qualified(statement.head, position + 2)
        if words[position : position + 1] == ["concurrently"]:
            return StatementClass("ALTER TABLE DETACH PARTITION CONCURRENTLY", "never")
        if words[position : position + 1] == ["finalize"]:
            return StatementClass("ALTER TABLE DETACH PARTITION FINALIZE")
        return StatementClass("ALTER TABLE DETACH PARTITION")
    if words[position : position + 2] == ["validate", "constraint"] and len(words) == position + 3:
        # SHARE UPDATE EXCLUSIVE, and ROW SHARE on what a foreign key refers to: neither blocks readers or writers.
        return StatementClass("ALTER TABLE VALIDATE CONSTRAINT", may_block=False)
    return StatementClass("ALTER TABLE")


def _drop(words: list[str], statement: Statement) -> StatementClass:
    what = _object_type(words)
    if what == "INDEX" and words[2:3] == ["concurrently"]:
        return StatementClass("DROP INDEX CONCURRENTLY", "never", may_block=False)
    tag = f"DROP {what}"
    if what in ("DATABASE", "TABLESPACE", "SUBSCRIPTION"):
        # DROP SUBSCRIPTION only when a slot belongs to it, which the text does not say.
        return StatementClass(tag, "never", may_block=False)
    cascades = b"cascade" in statement.raw.lower()
    return StatementClass(tag, may_block=what not in _DROP_QUIET or cascades)


def _reindex(words: list[str], statement: Statement) -> StatementClass:
    options, position = _options(statement.head, 1)
    what = words[position] if position < len(words) else ""
    concurrently = words[position + 1 : position + 2] == ["concurrently"]
    if "concurrently" in options:
        concurrently = concurrently or options["concurrently"] not in ("false", "off", "0", "no")
    if concurrently:
        return StatementClass("REINDEX CONCURRENTLY", "never", may_block=False)
    return StatementClass(f"REINDEX {what.upper()}", "never" if what in ("schema", "database", "system") else "yes")


def _vacuum(words: list[str], statement: Statement) -> StatementClass:
    return StatementClass("VACUUM", "never", may_block="full" in words)


def _cluster(words: list[str], statement: Statement) -> StatementClass:
    _options_found, position = _options(statement.head, 1)
    position = _skip(words, position, ("verbose",))
    return StatementClass("CLUSTER", "never" if position >= len(words) else "yes")


def _discard(words: list[str], statement: Statement) -> StatementClass:
    if words[1:2] == ["all"]:
        return StatementClass("DISCARD ALL", "never", session="settings", may_block=False)
    return StatementClass("DISCARD", may_block=False)


def _refresh(words: list[str], statement: Statement) -> StatementClass:
    return StatementClass("REFRESH MATERIALIZED VIEW")


def may_return_many_rows(statement: Statement, entry: StatementClass) -> bool:
    """A query that reads something and writes nothing, so that its rows can be streamed by COPY (query) TO STDOUT."""
    if entry.tag not in ("SELECT", "WITH", "TABLE") or (entry.tag != "TABLE" and b"from" not in statement.raw.lower()):
        return False
    words = {token.value for token in statement.tokens() if token.kind == "word"}
    return not words & _WRITING_WORDS


_WRITING_WORDS = _names("insert update delete merge into")


def _select(words: list[str], statement: Statement) -> StatementClass:
    first = next((word for word in words if word != "("), "").upper()
    calls = len(statement.head) == 64 or any(
        following == "(" and token.kind in ("word", "quoted_identifier") and token.value not in _HARMLESS_FUNCTIONS
        for token, following in zip(statement.head, words[1:])
    )
    session = "clean"
    if b"advisory" in statement.raw.lower() or _follows(words, "into", "temp") or _follows(words, "into", "temporary"):
        session = "settings"
    if first == "WITH" and {"insert", "update", "delete", "merge"} & set(words):
        first = "WITH DML"
    return StatementClass(first, session=session, may_block=calls)


def _explain(words: list[str], statement: Statement) -> StatementClass:
    runs = "analyze" in words[1:] or "analyse" in words[1:]
    return StatementClass("EXPLAIN", session="unknown" if runs else "clean", may_block=runs)


def _set(words: list[str], statement: Statement) -> StatementClass:
    position = 1
    if words[1:2] in (["local"], ["session"]) and words[1:3] != ["session", "authorization"]:
        position = 2
    name = words[position] if position < len(words) else ""
    following = words[position + 1] if position + 1 < len(words) else ""
    if name == "transaction":
        return StatementClass("SET TRANSACTION", may_block=False)
    if name == "constraints":
        return StatementClass("SET CONSTRAINTS", may_block=False)
    if name == "characteristics":
        return StatementClass("SET SESSION CHARACTERISTICS", session="settings", may_block=False)
    # A quoted name is still the name of a parameter.
    if position < len(statement.head) and statement.head[position].kind == "quoted_identifier":
        name = statement.head[position].value.lower()
    if name in ("role", "session_authorization") or (name, following) == ("session", "authorization"):
        tag = "SET ROLE" if name == "role" else "SET SESSION AUTHORIZATION"
        return StatementClass(tag, session="unknown", may_block=False)
    if name == "schema":
        name = "search_path"
    tag = "SET LOCAL" if words[1:2] == ["local"] else "SET"
    value = words[position + 2] if position + 2 < len(words) else ""
    disarms = frozenset({name}) & LIMITS if value != "default" else frozenset()
    return StatementClass(tag, session="settings", may_block=False, disarms=disarms)


def _reset(words: list[str], statement: Statement) -> StatementClass:
    if words[1:2] == ["role"] or words[1:2] == ["session_authorization"] or words[1:3] == ["session", "authorization"]:
        return StatementClass("RESET ROLE", session="unknown", may_block=False)
    return StatementClass("RESET", session="settings", may_block=False)


def _start(words: list[str], statement: Statement) -> StatementClass:
    return StatementClass("BEGIN", "control", may_block=False)


def _commit(words: list[str], statement: Statement) -> StatementClass:
    tag = "COMMIT PREPARED" if words[1:2] == ["prepared"] else "COMMIT"
    return StatementClass(tag, "control", may_block=False)


def _rollback(words: list[str], statement: Statement) -> StatementClass:
    if words[1:2] == ["prepared"]:
        return StatementClass("ROLLBACK PREPARED", "control", may_block=False)
    rest = words[2:] if words[1:2] in (["work"], ["transaction"]) else words[1:]
    if rest[:1] == ["to"]:
        return StatementClass("ROLLBACK TO", may_block=False)
    return StatementClass("ROLLBACK", "control", may_block=False)


def _prepare(words: list[str], statement: Statement) -> StatementClass:
    if words[1:2] == ["transaction"]:
        return StatementClass("PREPARE TRANSACTION", "control", may_block=False)
    return StatementClass("PREPARE", session="settings", may_block=False)


_HANDLERS: dict[str, t.Callable[[list[str], Statement], StatementClass]] = {
    "create": _create,
    "alter": _alter,
    "drop": _drop,
    "reindex": _reindex,
    "vacuum": _vacuum,
    "cluster": _cluster,
    "discard": _discard,
    "refresh": _refresh,
    "select": _select,
    "with": _select,
    "table": _select,
    "values": _select,
    "explain": _explain,
    "set": _set,
    "reset": _reset,
    "start": _start,
    "commit": _commit,
    "end": _commit,
    "rollback": _rollback,
    "prepare": _prepare,
}


# -- small parsers over tokens


def _skip(words: t.Sequence[str], position: int, sequence: tuple[str, ...]) -> int:
    return position + len(sequence) if tuple(words[position : position + len(sequence)]) == sequence else position


def _options(head: t.Sequence[Token], position: int) -> tuple[dict[str, str], int]:
    """``(name [value], ...)`` at a position, and the position behind it."""
    found: dict[str, str] = {}
    if position >= len(head) or head[position].text != "(":
        return found, position
    position += 1
    name = None
    while position < len(head) and head[position].text != ")":
        token = head[position]
        if token.text == ",":
            name = None
        elif name is None:
            name = token.value
            found[name] = ""
        else:
            found[name] = token.value.lower()
        position += 1
    return found, position + 1


def _qualified(head: t.Sequence[Token], position: int) -> tuple[str | None, str | None, int]:
    """Schema and name at a position (each None when not there), and the position behind them."""
    parts: list[str] = []
    while position < len(head) and head[position].kind in ("word", "quoted_identifier", "variable"):
        parts.append(head[position].value)
        position += 1
        if position >= len(head) or head[position].text != ".":
            break
        position += 1
    # Inheritance may be spelled out: `name *`.
    if position < len(head) and head[position].text == "*" and parts:
        position += 1
    return (parts[-2] if len(parts) > 1 else None), (parts[-1] if parts else None), position


def made_table(statement: Statement, entry: StatementClass) -> tuple[str | None, str] | None:
    """Schema and name, as written, of the ordinary table this statement makes for certain; None for all else."""
    if entry.tag != "CREATE TABLE":
        return None
    words = _words(statement.head)
    position = _skip(words, 1, ("unlogged",)) + 1
    if words[position - 1 : position] != ["table"] or words[position : position + 1] == ["if"]:
        return None
    schema, name, _position = _qualified(statement.head, position)
    return (schema, name) if name else None


def indexed_table(statement: Statement, entry: StatementClass) -> tuple[str | None, str] | None:
    """Schema and name, as written, of the table a plain CREATE INDEX works on; None for all else."""
    words = _words(statement.head) if entry.tag == "CREATE INDEX" else []
    if "on" not in words:
        return None
    schema, name, _position = _qualified(statement.head, _skip(words, words.index("on") + 1, ("only",)))
    return (schema, name) if name else None


def concurrent_target(source: Statement | str) -> ConcurrentTarget | None:
    """What a CREATE INDEX, DROP INDEX, REINDEX or DETACH PARTITION ... CONCURRENTLY works on; None for all else.

    :param source: a statement, or its text after ``render`` when names come from variables
    """
    statement = source if isinstance(source, Statement) else Statement(source.encode("utf-8"))
    kind = _CONCURRENT.get(classify(statement).tag)
    if kind is None:
        return None
    head = statement.head
    words = _words(head)
    if kind == "create_index":
        position = words.index("concurrently") + 1
        guard, position = _guard(head, words, position, ("if", "not", "exists"))
        name = None
        if words[position : position + 1] != ["on"]:
            _schema, name, position = _qualified(head, position)
        position = _skip(words, position + 1, ("only",))
        schema, table, _position = _qualified(head, position)
        return ConcurrentTarget(kind, schema, name, schema, table, "index", guard)
    if kind == "drop_index":
        guard, position = _guard(head, words, 3, ("if", "exists"))
        schema, name, _position = _qualified(head, position)
        return ConcurrentTarget(kind, schema, name, None, None, "index", guard)
    if kind == "reindex":
        _found, position = _options(head, 1)
        object_type = words[position]
        position = _skip(words, position + 1, ("concurrently",))
        schema, name, _position = _qualified(head, position)
        is_table = object_type == "table"
        return ConcurrentTarget(
            kind, schema, name, schema if is_table else None, name if is_table else None, object_type
        )
    guard, position = _guard(head, words, 2, ("if", "exists"))
    position = _skip(words, position, ("only",))
    table_schema, table, position = _qualified(head, position)
    schema, name, _position = _qualified(head, position + 2)
    return ConcurrentTarget(kind, schema, name, table_schema, table, "table", guard)


_CONCURRENT = {
    "CREATE INDEX CONCURRENTLY": "create_index",
    "DROP INDEX CONCURRENTLY": "drop_index",
    "REINDEX CONCURRENTLY": "reindex",
    "ALTER TABLE DETACH PARTITION CONCURRENTLY": "detach_partition",
}


def _guard(
    head: t.Sequence[Token], words: t.Sequence[str], position: int, sequence: tuple[str, ...]
) -> tuple[tuple[int, int] | None, int]:
    after = _skip(words, position, sequence)
    if after == position:
        return None, position
    last = head[after - 1]
    return (head[position].offset, last.offset + len(last.text)), after


# -- psql commands

_NO_OPS = _names(r"\echo \qecho \warn \timing \pset \t \a \x \H \f \C \T")
_QUIET_VARIABLES = _names("""
    ON_ERROR_STOP ON_ERROR_ROLLBACK ECHO ECHO_HIDDEN QUIET VERBOSITY SHOW_CONTEXT AUTOCOMMIT HIDE_TABLEAM
    HIDE_TOAST_COMPRESSION SHOW_ALL_RESULTS FETCH_COUNT COMP_KEYWORD_CASE HISTCONTROL HISTFILE HISTSIZE PROMPT1
    PROMPT2 PROMPT3
""")
_ON = frozenset({"", "on", "true", "yes", "1", "t", "y"})
_UTF8 = frozenset({"utf8", "utf-8", "utf_8", "unicode"})

_VARIABLES_REMEDY = "Define the value under `variables` of the plan."
_STEPS_REMEDY = "List the files as steps of the migration."
_CONDITION_REMEDY = "Decide inside a DO block, or make it two migrations."
_SHOW_REMEDY = "Remove it: it only shows something. What must hold is a check of the plan."
_CONNECT_REMEDY = "One run works on one database; remove it (pg_dump without --create), and plan one run a database."
_META_REMEDIES = {
    "\\i": _STEPS_REMEDY,
    "\\ir": _STEPS_REMEDY,
    "\\include": _STEPS_REMEDY,
    "\\include_relative": _STEPS_REMEDY,
    "\\set": _VARIABLES_REMEDY,
    "\\unset": _VARIABLES_REMEDY,
    "\\prompt": _VARIABLES_REMEDY,
    "\\getenv": _VARIABLES_REMEDY,
    "\\setenv": "Set it in the environment of the playbook's task.",
    "\\copy": "Write COPY ... FROM STDIN; with the rows below it and \\. on a line of its own.",
    "\\connect": _CONNECT_REMEDY,
    "\\c": _CONNECT_REMEDY,
    "\\if": _CONDITION_REMEDY,
    "\\elif": _CONDITION_REMEDY,
    "\\else": _CONDITION_REMEDY,
    "\\endif": _CONDITION_REMEDY,
    "\\!": "Run the program in a task of the playbook.",
    "\\o": "Remove it: a migration's results go to the report.",
    "\\out": "Remove it: a migration's results go to the report.",
    "\\w": "Remove it.",
    "\\cd": "Remove it and write paths in the plan.",
    "\\password": "Set passwords outside migrations: the statement would reach the server log.",
    "\\encoding": "Convert the file to UTF-8 and remove it.",
    "\\q": "Remove it and what follows: psql runs nothing behind it.",
    "\\quit": "Remove it and what follows: psql runs nothing behind it.",
    "\\.": "It ends the rows of COPY ... FROM STDIN, and no such statement is open here.",
    "\\lo_import": "Use lo_from_bytea().",
    "\\l": _SHOW_REMEDY,
    "\\z": _SHOW_REMEDY,
    "\\conninfo": _SHOW_REMEDY,
    "\\sf": _SHOW_REMEDY,
    "\\sv": _SHOW_REMEDY,
    "\\p": _SHOW_REMEDY,
}
_BUFFER_COMMANDS = _names(r"\g \gx \gexec \gset \gdesc \watch \crosstabview \bind")


def _meta_words(meta: str) -> tuple[str, list[str]]:
    words = meta.split()
    return words[0], [word.strip("'\"") for word in words[1:]]


def _meta_remedy(command: str) -> str:
    if command in _BUFFER_COMMANDS:
        return mid_statement_remedy(command)
    if command.startswith("\\d"):
        return _SHOW_REMEDY
    return _META_REMEDIES.get(command, "Remove it, or write it in SQL.")


class _Inspection:
    """The state of one inspection: where in the file's own BEGIN ... COMMIT we are, and what was found."""

    def __init__(self, path: str, transaction: bool) -> None:
        self.path = path
        self.transaction = transaction
        self.begin: Statement | None = None
        self.commit: Statement | None = None
        self.outside: Statement | None = None
        self.modes: dict[str, str] = {}
        self.count = 0
        self.queried = False
        self.variables: set[str] = set()
        self.warnings: list[str] = []
        self.disarms: set[str] = set()
        self.fresh = False
        self.may_block = False
        self.restricted: tuple[str, Statement] | None = None
        self.quit: Statement | None = None
        self.prepared: list[tuple[Statement, StatementClass]] = []
        self.prepared_size = 0
        self.preparing = True

    def refuse(self, what: str, statement: Statement, remedy: str) -> t.NoReturn:
        raise SqlTextError(what, location=statement.location(), remedy=remedy)

    def warn(self, what: str, statement: Statement) -> None:
        self.warnings.append(f"{what} ({self.path}:{statement.line})")

    # -- one statement

    def take(self, statement: Statement) -> None:
        if self.quit is not None:
            self.refuse(f"text after {self.quit.meta}", self.quit, _META_REMEDIES["\\q"])
        if statement.meta is not None:
            self.take_meta(statement)
            return
        entry = classify(statement)
        if statement.variables:
            self.variables.update(reference.name for reference in statement.variables)
        if entry.in_transaction == "control":
            self.take_control(statement, entry)
            return
        if self.transaction:
            self.check_transactional(statement, entry)
        else:
            self.check_autonomous(statement, entry)
        if entry.tag == "COPY":
            self.check_copy(statement)
        elif entry.session == "settings" and entry.tag in ("SET", "SET LOCAL"):
            self.check_encoding(statement)
        if entry.tag == "SET TRANSACTION" and self.take_modes(statement):
            return
        if entry.tag not in _BEFORE_MODES:
            self.queried = True
        self.count += 1
        if self.preparing:
            self.prepared_size += len(statement.raw)
            if statement.copy_data is None and self.prepared_size <= _PREPARED_FILE:
                self.prepared.append((statement, entry))
            else:
                self.preparing = False
                self.prepared.clear()
        if entry.session == "unknown":
            self.fresh = True
        if entry.may_block:
            self.may_block = True
        if entry.disarms:
            self.disarms |= entry.disarms

    def take_control(self, statement: Statement, entry: StatementClass) -> None:
        if not self.transaction:
            self.refuse(
                f"{entry.tag} in a migration without a transaction",
                statement,
                "Remove it, or set `transaction: true` (every statement here is on its own).",
            )
        words = _words(statement.head)
        if entry.tag == "BEGIN":
            if self.begin is not None:
                self.refuse(
                    "a second BEGIN", statement, "A file is one transaction: split it into one file a transaction."
                )
            if self.outside is not None:
                self.refuse(
                    "statement outside the file's own BEGIN ... COMMIT",
                    self.outside,
                    "Move it inside, or remove BEGIN and COMMIT: the runner opens the transaction.",
                )
            self.begin = statement
            position = _skip(words, 1, ("work",))
            if position == 1:
                position = _skip(words, 1, ("transaction",))
            self.queried = False
            self.modes.update(self.parse_modes(statement, position))
        elif entry.tag == "COMMIT":
            if "chain" in words and "no" not in words:
                self.refuse("COMMIT AND CHAIN", statement, "Split the file into one file a transaction.")
            if self.begin is None:
                self.refuse(
                    "COMMIT without BEGIN", statement, "Remove it: the runner opens and commits the transaction."
                )
            if self.commit is not None:
                self.refuse("a second COMMIT", statement, "Split the file into one file a transaction.")
            self.commit = statement
        elif entry.tag == "ROLLBACK":
            self.refuse(
                f"{words[0].upper()} would undo the migration",
                statement,
                "Remove it; to try a migration without keeping it, use a rehearsal or check mode.",
            )
        else:
            self.refuse(
                f"{entry.tag} (two-phase commit)",
                statement,
                "Remove it: the ledger row must commit with the migration.",
            )

    def parse_modes(self, statement: Statement, position: int) -> dict[str, str]:
        """Mode by kind (isolation, read, deferrable): the last one of a kind counts."""
        words = _words(statement.head)[position:]
        modes = {}
        while words:
            if words[0] == ",":
                del words[0]
                continue
            for sequence in _MODES:
                if tuple(words[: len(sequence)]) == sequence:
                    modes[sequence[-1] if sequence[-1] == "deferrable" else sequence[0]] = " ".join(sequence).upper()
                    del words[: len(sequence)]
                    break
            else:
                self.refuse(
                    "transaction mode that is not known", statement, "Use ISOLATION LEVEL, READ WRITE, DEFERRABLE."
                )
        if "READ ONLY" in modes.values():
            self.refuse("READ ONLY transaction", statement, "Remove READ ONLY: the ledger row is written in it.")
        return modes

    def take_modes(self, statement: Statement) -> bool:
        """SET TRANSACTION before the first query belongs to BEGIN: the runner's own queries precede the text."""
        words = _words(statement.head)
        if words[2:3] == ["snapshot"]:
            self.refuse("SET TRANSACTION SNAPSHOT", statement, "Remove it.")
        modes = self.parse_modes(statement, 2)
        if self.queried or not self.transaction:
            if not self.transaction:
                self.warn("SET TRANSACTION has no effect outside a transaction", statement)
            return False
        self.modes.update(modes)
        return True

    def check_transactional(self, statement: Statement, entry: StatementClass) -> None:
        if entry.in_transaction == "never":
            self.refuse(
                f"{entry.tag} cannot run in a transaction",
                statement,
                "Set `transaction: false` on the migration (or make it a step of its own with `transaction: false`),"
                " one statement a step.",
            )
        if entry.tag in _OUTSIDE:
            return
        if self.begin is None:
            if self.outside is None:
                self.outside = statement
        elif self.commit is not None:
            self.refuse(
                "statement after the file's COMMIT",
                statement,
                "Move it before COMMIT, or into a migration of its own; behind COMMIT only SET, SHOW and SELECT may"
                " stand.",
            )

    def check_autonomous(self, statement: Statement, entry: StatementClass) -> None:
        if entry.tag in ("SAVEPOINT", "RELEASE", "ROLLBACK TO"):
            self.refuse(
                f"{entry.tag} in a migration without a transaction", statement, "Remove it, or set `transaction: true`."
            )
        if entry.tag in ("SET ROLE", "SET SESSION AUTHORIZATION"):
            self.refuse(
                f"{entry.tag} in a migration without a transaction",
                statement,
                "Remove it and use session_role: the ledger is written between the statements, by the task's role.",
            )
        if entry.tag in ("SET LOCAL", "SET CONSTRAINTS", "LOCK", "DECLARE"):
            self.warn(f"{entry.tag} has no effect outside a transaction", statement)
        if entry.tag == "CREATE INDEX CONCURRENTLY":
            target = concurrent_target(statement)
            if target is None or target.name is None:
                self.refuse(
                    "CREATE INDEX CONCURRENTLY without a name",
                    statement,
                    "Name the index: after an interruption a retry could not recognise it and would build another.",
                )

    def check_copy(self, statement: Statement) -> None:
        if statement.copy_data is not None:
            if _copy_is_binary(statement):
                self.refuse("COPY ... FROM STDIN in binary format", statement, "Use the text or csv format.")
            return
        last = [token.value for token in statement.tokens() if token.kind in ("word", "punctuation")]
        if _follows(last, "to", "stdout") or _follows(last, "to", "stdin"):
            self.refuse(
                "COPY ... TO STDOUT", statement, "A migration has no place for its rows: use a table or a server file."
            )

    def check_encoding(self, statement: Statement) -> None:
        head = statement.head
        position = 2 if head[1].value in ("local", "session") and len(head) > 2 else 1
        name = head[position].value if len(head) > position else ""
        if name == "names":
            value = head[position + 1].value if len(head) > position + 1 else "default"
        elif name == "client_encoding":
            value = head[position + 2].value if len(head) > position + 2 else ""
        elif name == "transaction_read_only" and len(head) > position + 2 and head[position + 2].value in _ON:
            self.refuse("READ ONLY transaction", statement, "Remove it: the ledger row is written in it.")
        else:
            return
        if value.lower() not in _UTF8 and value.lower() != "default":
            self.refuse(
                f"client_encoding {value}",
                statement,
                "Files are read and sent as UTF-8: convert the file (pg_dump --encoding=UTF8) and remove the line.",
            )

    # -- psql commands

    def take_meta(self, statement: Statement) -> None:
        meta = statement.meta or ""
        command, arguments = _meta_words(meta)
        if "`" in meta:
            self.refuse(f"psql command {command} with a shell command", statement, _META_REMEDIES["\\!"])
        if command in _NO_OPS:
            return
        if command == "\\restrict" and len(arguments) == 1 and self.restricted is None:
            self.restricted = (arguments[0], statement)
            return
        if command == "\\unrestrict" and self.restricted is not None and arguments == [self.restricted[0]]:
            self.restricted = None
            return
        if command in ("\\restrict", "\\unrestrict"):
            self.refuse(
                f"{command} does not match",
                statement,
                "pg_dump writes them in pairs with one key: restore the lost line.",
            )
        if command in ("\\set", "\\unset") and self.is_quiet_setting(command, arguments, statement):
            return
        if command == "\\encoding" and (not arguments or arguments[0].lower() in _UTF8):
            return
        if command in ("\\q", "\\quit"):
            self.quit = statement
            return
        self.refuse(f"psql command {command}", statement, _meta_remedy(command))

    def is_quiet_setting(self, command: str, arguments: list[str], statement: Statement) -> bool:
        if not arguments:
            return True
        name, value = arguments[0], "".join(arguments[1:]).lower()
        if name not in _QUIET_VARIABLES:
            return False
        if name == "AUTOCOMMIT" and command == "\\set" and value not in _ON:
            self.refuse("AUTOCOMMIT off", statement, "Remove it: the runner opens and commits the transaction.")
        if name == "ON_ERROR_STOP" and (command == "\\unset" or value not in _ON):
            self.warn("ON_ERROR_STOP is always on here", statement)
        if name == "ON_ERROR_ROLLBACK" and command == "\\set" and value in _ON:
            self.warn("ON_ERROR_ROLLBACK is always off here: the first error ends the migration", statement)
        return True

    # -- the end

    def finish(self) -> None:
        if self.begin is not None and self.commit is None:
            self.refuse("BEGIN without COMMIT", self.begin, "Add COMMIT at the end, or remove BEGIN.")
        if self.restricted is not None:
            self.refuse("\\restrict without \\unrestrict", self.restricted[1], "The end of the dump is missing.")


_MODES = (
    ("isolation", "level", "serializable"),
    ("isolation", "level", "repeatable", "read"),
    ("isolation", "level", "read", "committed"),
    ("isolation", "level", "read", "uncommitted"),
    ("read", "write"),
    ("read", "only"),
    ("not", "deferrable"),
    ("deferrable",),
)

# What takes no snapshot, so that SET TRANSACTION may still follow it.
_BEFORE_MODES = frozenset({"SET", "SET LOCAL", "SET CONSTRAINTS", "SET SESSION CHARACTERISTICS", "RESET", "SHOW"})

# What may stand outside a file's own BEGIN ... COMMIT.
_OUTSIDE = frozenset(
    {"SET", "SET LOCAL", "SET TRANSACTION", "SET SESSION CHARACTERISTICS", "SET ROLE", "SET SESSION AUTHORIZATION"}
    | {"SET CONSTRAINTS", "RESET", "RESET ROLE", "SHOW", "SELECT", "VALUES", "TABLE", "WITH"}
)


def _copy_is_binary(statement: Statement) -> bool:
    values = [token.value for token in statement.head]
    return values[1:2] == ["binary"] or _follows(values, "format", "binary") or values[-1:] == ["binary"]


def _open(path: str) -> t.BinaryIO:
    try:
        handle = open(path, "rb")  # noqa: SIM115  (closed by the callers)
        size = os.fstat(handle.fileno()).st_size
        if size <= _SMALL_FILE:
            with handle:
                return io.BytesIO(handle.read())
        return handle
    except OSError as exc:
        raise SqlTextError(
            f"cannot read the file: {exc.strerror}",
            location=Location(path),
            remedy="Check the plan and the permissions.",
        ) from exc


def inspect(path: str | os.PathLike[str], *, transaction: bool = True, text: str | None = None) -> Script:
    """Read a file to its end and check that it can be executed.

    :param transaction: its statements run in one transaction of the runner's (else each on its own)
    :param text: read this instead; the path then only names it
    :raises SqlTextError: with file, line, column and remedy
    """
    path = os.fspath(path)
    found = _Inspection(path, transaction)
    content = None
    with _open(path) if text is None else io.BytesIO(text.encode("utf-8")) as stream:
        if isinstance(stream, io.BytesIO):
            content = stream.getvalue()
        scanner = Scanner(stream, path, hash_tokens=True)
        for statement in scanner.statements():
            found.take(statement)
    found.finish()
    prepared = tuple(found.prepared) if found.preparing and scanner.size <= _PREPARED_FILE else None
    if scanner.crlf_count:
        lines = ", ".join(str(line) for line in scanner.crlf_lines)
        found.warnings.append(
            f"CRLF line ends inside strings or function bodies of {scanner.crlf_count} statements"
            f" ({path}, lines {lines}): the stored text differs from the one a checkout with LF makes"
        )
    return Script(
        path=path,
        raw_sha256=scanner.raw_sha256,
        token_sha256=scanner.token_sha256,
        size=scanner.size,
        statement_count=found.count,
        begin_modes=", ".join(found.modes.values()) or None,
        taken_over=found.begin is not None,
        needs_fresh_connection=found.fresh,
        variables=frozenset(found.variables),
        warnings=tuple(found.warnings),
        may_block=found.may_block,
        transaction=transaction,
        disarms=frozenset(found.disarms),
        prepared=prepared,
        content=content if prepared is not None or text is not None else None,
    )


def executable(path: str | os.PathLike[str], script: Script) -> t.Iterator[tuple[Statement, StatementClass]]:
    """The statements to execute, in order: without BEGIN, COMMIT, leading SET TRANSACTION and psql commands.

    Rows of COPY are in ``statement.copy_data``; read them before asking for the next statement.

    :raises SqlTextError: the file is not the inspected one any more; a large file tells only at its end, so commit
        only after the last statement was taken
    """
    if script.prepared is not None:
        yield from script.prepared
        return
    path = os.fspath(path)
    queried = False
    with _open(path) if script.content is None else io.BytesIO(script.content) as stream:
        if isinstance(stream, io.BytesIO):
            content = stream.getvalue()
            _compare(path, script, len(content), hashlib.sha256(content).hexdigest())
        scanner = Scanner(stream, path)
        for statement in scanner.statements():
            if statement.meta is not None:
                continue
            entry = classify(statement)
            if entry.in_transaction == "control":
                queried = queried and entry.tag != "BEGIN"
                continue
            if entry.tag == "SET TRANSACTION" and script.transaction and not queried:
                continue
            queried = queried or entry.tag not in _BEFORE_MODES
            yield statement, entry
    _compare(path, script, scanner.size, scanner.raw_sha256)


def _compare(path: str, script: Script, size: int, raw_sha256: str) -> None:
    if (size, raw_sha256) != (script.size, script.raw_sha256):
        raise SqlTextError(
            "the file changed while it was being applied",
            location=Location(path),
            remedy="Nothing of it may be committed; run again with files that nobody edits.",
        )
