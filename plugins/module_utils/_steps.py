# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The steps of a migration: an SQL file, or one change that a plan declares, and the names they speak of."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, PlanError

_IDENTIFIER = r'(?:[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*|"(?:[^"\x00]|"")+")'
NAME = re.compile(_IDENTIFIER)
_QUALIFIED = re.compile(rf"({_IDENTIFIER})\.({_IDENTIFIER})")
_DIRECTIVE = re.compile(r"--[ \t]*surefoot[ \t]*:[ \t]*(.*?)[ \t]*\Z")
# A directive further down is not looked for; nobody writes this much comment before the first statement.
_HEAD_BYTES = 65536


@dataclasses.dataclass(frozen=True)
class SqlStep:
    """One SQL file, or the SQL that a declared operation stands for.

    ``path`` is absolute, ``file`` as the plan writes it; ``declared_transaction`` is None when the plan is silent.
    ``text`` is the SQL of an operation; there is no file then, and ``path`` says where in the plan it is declared.
    ``undoes`` are the numbers of the deploy steps whose effect this rollback step takes back; of a migration that was
    half applied it runs only when one of them was begun. None: it always runs. ``brief``: its locks block everybody, so
    checks and the ledger row do not wait under them but get a transaction of their own.
    """

    name: str
    path: str
    file: str
    location: Location
    declared_transaction: bool | None = None
    text: str | None = None
    undoes: tuple[int, ...] | None = None
    brief: bool = False

    @functools.cached_property
    def transaction(self) -> bool:
        """Whether the file runs in a transaction: what the plan says, else what the file's head says, else yes.

        Reads the head of the file at the first use when the plan says nothing.

        :raises PlanError: the file cannot be read, or its directive is not understood
        """
        if self.declared_transaction is not None:
            return self.declared_transaction
        shown = os.path.join(os.path.dirname(self.location.file), self.file)
        return read_directives(self.path, shown).get("transaction", True)


@dataclasses.dataclass(frozen=True)
class Throttle:
    """What a backfill leaves to others: ``pause`` between batches, and limits above which the next batch waits.

    ``pause`` and ``max_lag`` in seconds, ``max_wal_rate`` in bytes a minute of the whole server, ``max_waiters`` in
    sessions that wait for a lock, ``max_connections_used`` in percent. None: nothing is said; infinity: no limit.
    """

    pause: float = 0.0
    max_lag: float | None = None
    max_wal_rate: float | None = None
    max_waiters: float | None = None
    max_connections_used: float | None = None

    def limits(self) -> tuple[float | None, ...]:
        """All but the pause."""
        return self.max_lag, self.max_wal_rate, self.max_waiters, self.max_connections_used

    @property
    def slows(self) -> bool:
        """Whether it can make a backfill wait."""
        return self.pause > 0 or any(value is not None and math.isfinite(value) for value in self.limits())

    def or_else(self, other: Throttle) -> Throttle:
        """This one, with the other's limits where it says nothing."""
        mine = (value if value is not None else its for value, its in zip(self.limits(), other.limits()))
        return Throttle(self.pause, *mine)


@dataclasses.dataclass(frozen=True)
class BackfillStep:
    """An UPDATE of a whole table in batches along a key.

    ``table`` is "schema.table" as SQL writes it. ``key`` and the names in ``set`` are the columns' real names, to be
    quoted; the values of ``set`` and ``where`` are SQL expressions. ``otherwise`` is the ``set`` for a batch with a
    value that the expressions of ``set`` refuse (SQLSTATE class 22, 23502, 23514 or P0001).
    """

    name: str
    table: str
    key: tuple[str, ...]
    set: t.Mapping[str, str]
    where: str | None
    batch: int
    throttle: Throttle
    location: Location
    otherwise: t.Mapping[str, str] | None = None
    undoes: tuple[int, ...] | None = None
    transaction: t.ClassVar[bool] = False

    @property
    def relation(self) -> tuple[str, str]:
        """Schema and table, unquoted."""
        return split_qualified(self.table)


# Stands in the query of a sweep where a condition on its rows is put.
ONLY = "/* surefoot: only */ true"


@dataclasses.dataclass(frozen=True)
class SweepStep:
    """The rows that a change of a table does not take: counted, moved into the ledger's quarantine, or moved back.

    ``mode`` is count (any is an error, and nothing is changed), quarantine or restore. ``rows`` is a query for
    ``surefoot_key_0`` and so on, ``surefoot_place`` (ctid) and ``surefoot_reason`` of each such row, with ``ONLY`` in
    it. ``prelude`` is SQL that the session runs before. ``dependents`` are (table, its columns, the columns they refer
    to) beside what foreign keys say.
    """

    name: str
    table: str
    key: tuple[str, ...]
    mode: str
    prelude: str
    rows: str
    dependents: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
    batch: int
    location: Location
    undoes: tuple[int, ...] | None = None
    transaction: t.ClassVar[bool] = False


Step = t.Union[SqlStep, BackfillStep, SweepStep]


def split_qualified(name: str) -> tuple[str, str]:
    """Schema and object of ``schema.name``, unquoted, unquoted words in lower case as PostgreSQL folds them.

    :raises PlanError: not a schema-qualified name
    """
    match = _QUALIFIED.fullmatch(name)
    if match is None:
        raise PlanError(f"{name!r} is not a schema-qualified name", remedy="Write schema.table.")
    return identifier(match.group(1)), identifier(match.group(2))


def identifier(text: str) -> str:
    """The name that an identifier, as SQL writes it, means: unquoted, or folded to lower case."""
    if text.startswith('"'):
        return text[1:-1].replace('""', '"')
    # PostgreSQL folds ASCII only in a UTF-8 database.
    return "".join(character.lower() if character.isascii() else character for character in text)


def read_directives(path: str, shown: str) -> dict[str, bool]:
    """The ``-- surefoot: key=value`` lines among the comments a file begins with.

    :param shown: the file's name in errors
    :raises PlanError: the file cannot be read, or a directive is not understood
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as exc:
        raise PlanError(f"cannot read {shown}: {exc.strerror}", location=Location(shown)) from None
    directives: dict[str, bool] = {}
    if b"surefoot" not in head:
        return directives
    depth = 0
    # A byte that is no UTF-8 is the SQL reader's business.
    for number, line in enumerate(head.decode("utf-8-sig", "replace").splitlines(), start=1):
        text = line.strip()
        if depth or text.startswith("/*"):
            depth += text.count("/*") - text.count("*/")
            if not depth and text.rpartition("*/")[2].strip():
                break
            continue
        if text and not text.startswith("--"):
            break
        match = _DIRECTIVE.match(text)
        if match is None:
            continue
        location = Location(shown, number, line.index("--") + 1)
        key, equals, value = (part.strip() for part in match.group(1).partition("="))
        if key != "transaction":
            problem = f"unknown directive {key or 'without a name'}"
            raise PlanError(problem, location=location, remedy="Known: transaction=false.")
        if not equals or value not in ("true", "false"):
            remedy = "Write transaction=false."
            raise PlanError("the directive transaction is not true or false", location=location, remedy=remedy)
        if key in directives:
            raise PlanError(f"the directive {key} is given twice", location=location)
        directives[key] = value == "true"
    return directives
