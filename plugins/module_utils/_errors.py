# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The typed exceptions of the library, and what an operator reads of them."""

from __future__ import annotations

import dataclasses
import typing as t

try:
    import psycopg2.errorcodes as _errorcodes
except ImportError:  # the edge reports the missing package
    _errorcodes = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Location:
    """A place in a file the user wrote; line and column count from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)

    def to_dict(self) -> dict[str, t.Any]:
        return {"file": self.file, "line": self.line, "column": self.column}


class SurefootError(Exception):
    """Base of everything the library raises on purpose.

    ``str()`` is one line: what happened, where, what to do. ``results`` travels into the module's return values, so
    that a failed task still says what it did before it failed.
    """

    code = "error"

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        location: Location | None = None,
        code: str | None = None,
        details: t.Mapping[str, t.Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.location = location
        if code is not None:
            self.code = code
        self.details: dict[str, t.Any] = dict(details or {})
        self.results: dict[str, t.Any] = {}

    def __str__(self) -> str:
        text = self.message.rstrip(".")
        if self.location is not None:
            text += f" ({self.location})"
        return f"{text}. {self.remedy}" if self.remedy else f"{text}."

    def to_dict(self) -> dict[str, t.Any]:
        """JSON object: code, message, remedy, file, line, column, and the details of the kind of error."""
        location = self.location.to_dict() if self.location else {"file": None, "line": None, "column": None}
        return {"code": self.code, "message": self.message, "remedy": self.remedy, **location, **self.details}


class PlanError(SurefootError):
    """The plan, an option or a layout of files is wrong; nothing was connected to."""

    code = "plan"


class SqlTextError(SurefootError):
    """A SQL file cannot be run as it is; found before connecting."""

    code = "sql_text"


class EnvironmentProblem(SurefootError):
    """Something the controller or host must have is missing: a program, a package, a directory, room on the disk."""

    code = "environment"


class ConnectionFailed(SurefootError):
    """The server could not be reached, refused the login, or dropped the connection."""

    code = "connection"


class SqlError(SurefootError):
    """The server refused a statement. Carries SQLSTATE, condition name and the statement's first line."""

    code = "sql"

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None,
        statement: str | None = None,
        **kwargs: t.Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.sqlstate = sqlstate
        self.condition = condition_name(sqlstate) if sqlstate else None
        self.statement = statement
        self.details.update({"sqlstate": sqlstate, "condition": self.condition, "statement": statement})

    def __str__(self) -> str:
        text = self.message.rstrip(".")
        if self.location is not None:
            text += f" ({self.location})"
        if self.sqlstate:
            text += f" [{self.sqlstate} {self.condition}]" if self.condition else f" [{self.sqlstate}]"
        if self.statement:
            text += f" in: {self.statement}"
        return f"{text}. {self.remedy}" if self.remedy else f"{text}."


class LockBusy(SurefootError):
    """Another runner, or the orphan of a killed one, holds the lock of this ledger."""

    code = "busy"


class LedgerError(SurefootError):
    """The ledger and the plan do not fit, or the ledger cannot be read or written."""

    code = "ledger"


class DriftError(SurefootError):
    """A file or the catalog is not what the ledger recorded."""

    code = "drift"


class VerificationFailed(SurefootError):
    """A check measured something else than required."""

    code = "verification"


class BackupError(SurefootError):
    """A backup could not be made, or is not what its manifest says."""

    code = "backup"


class Interrupted(SurefootError):
    """A signal, or the death of the controlling process, stopped the work; what was open is rolled back."""

    code = "interrupted"


class OutcomeUnknown(SurefootError):
    """The connection died at COMMIT and the server cannot say what became of it. Never retried."""

    code = "unknown"


def condition_name(sqlstate: str | None) -> str | None:
    """PostgreSQL's condition name of an SQLSTATE (Appendix A of its manual), lower-case; None when it has none."""
    if not sqlstate or _errorcodes is None:
        return None
    try:
        return str(_errorcodes.lookup(sqlstate)).lower()
    except KeyError:
        return None


def sqlstate_of(name: str) -> str:
    """SQLSTATE of a five-character code or of a condition name.

    :raises PlanError: PostgreSQL has no such condition
    """
    text = str(name).strip()
    if len(text) == 5 and text.upper() == text and text.isalnum():
        return text
    if _errorcodes is None:
        raise EnvironmentProblem(
            f"the condition name {text} cannot be looked up without psycopg2",
            remedy="Install it: pip install psycopg2-binary; or write the SQLSTATE.",
        )
    code = getattr(_errorcodes, text.upper(), None)
    if isinstance(code, str) and len(code) == 5:
        return code
    raise PlanError(
        f"unknown error condition {text!r}",
        remedy="Use an SQLSTATE such as 23503 or a condition name of PostgreSQL's Appendix A such as"
        " foreign_key_violation.",
    )
