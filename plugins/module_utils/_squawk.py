# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Hazards that no server shows, as the linter ``squawk`` (PyPI ``squawk-cli``) finds them in the files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._script import inspect
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement, statements

TIMEOUT = 60.0  # seconds a file may take

# The ledger makes a migration safe to run again, and the runner sets both timeouts; the rest are matters of taste
# about new columns, not hazards of a change.
DEFAULT_IGNORE = (
    "ban-char-field",
    "prefer-bigint-over-int",
    "prefer-bigint-over-smallint",
    "prefer-identity",
    "prefer-repack",
    "prefer-robust-stmts",
    "prefer-text-field",
    "prefer-timestamp-tz",
    "require-lock-timeout",
    "require-statement-timeout",
    "require-timeout-settings",
    "unused-ignore",
)
_SYNTAX = "syntax-error"
_PLACEHOLDER = {"literal": ("'", "x", "'"), "identifier": ('"', "x", '"'), "raw": ("0", " ", " ")}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding; ``line`` and ``column`` count from 1."""

    migration: str
    file: str
    line: int
    column: int
    rule: str
    level: str
    message: str
    help: str | None

    def to_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Hazards:
    """What squawk said. ``unread`` are the places it could not parse: nothing is known about what follows them."""

    version: str
    findings: tuple[Finding, ...]
    unread: tuple[Finding, ...]
    ignored: tuple[str, ...]

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "version": self.version,
            "findings": [item.to_dict() for item in self.findings],
            "unread": [item.to_dict() for item in self.unread],
            "ignored_rules": list(self.ignored),
        }


def find_program(path: str | None = None) -> str | None:
    """The program: as given, in ``PATH``, or beside this Python; None when it is nowhere.

    :raises EnvironmentProblem: there is none at the path given
    """
    if path:
        found = shutil.which(path)
        if found is None:
            raise EnvironmentProblem(f"there is no program {path}", remedy="Check squawk_path.")
        return found
    return shutil.which("squawk") or shutil.which("squawk", path=os.path.dirname(sys.executable))


def lint(
    program: str,
    migrations: t.Sequence[Migration],
    directory: str,
    *,
    server_version: int,
    ignore: t.Collection[str] = DEFAULT_IGNORE,
) -> Hazards:
    """Findings in the deploy files of the migrations; a rollback is short of choices.

    A ``.squawk.toml`` beside the plan, and ``-- squawk-ignore`` comments, are honoured.

    :param directory: of the plan
    :param server_version: as ``server_version_num`` counts, such as 150018
    :raises EnvironmentProblem: the program cannot be run, or says something else than findings
    """
    version = _run(program, ["--version"], "", directory).split()[-1:]
    findings: list[Finding] = []
    unread: list[Finding] = []
    for migration in migrations:
        for step in migration.steps:
            # The SQL of a declared operation is not the user's to mend.
            if isinstance(step, SqlStep) and step.text is None:
                for found in _lint_file(program, migration, step, directory, server_version):
                    if found.rule == _SYNTAX:
                        unread.append(found)
                    elif found.rule not in ignore:
                        findings.append(found)
    return Hazards(version[0] if version else "unknown", tuple(findings), tuple(unread), tuple(sorted(ignore)))


def _lint_file(
    program: str, migration: Migration, step: SqlStep, directory: str, server_version: int
) -> t.Iterator[Finding]:
    arguments = ["--reporter", "json", "--pg-version", f"{server_version // 10000}.0", "--stdin-filepath", step.file]
    if step.transaction and not inspect(step.path).taken_over:  # a file's own BEGIN ... COMMIT says it already
        arguments.append("--assume-in-transaction")
    try:
        with open(step.path, "rb") as stream:
            text = plain_sql(stream.read(), step.path)
    except OSError as exc:
        raise EnvironmentProblem(f"cannot read {step.path}: {exc.strerror}", remedy="Check its rights.") from exc
    output = _run(program, arguments, text, directory)
    try:
        for item in json.loads(output or "[]"):
            yield Finding(
                migration=migration.id,
                file=step.file,
                line=int(item["line"]) + 1,  # squawk counts from 0
                column=int(item["column"]) + 1,
                rule=str(item["rule_name"]),
                level=str(item["level"]).lower(),
                message=str(item["message"]),
                help=item.get("help"),
            )
    except (ValueError, KeyError, TypeError) as exc:
        raise EnvironmentProblem(
            f"{program} printed no findings that can be read for {step.file}",
            remedy="Install a version of squawk-cli from 2.0 on, or set squawk: never.",
        ) from exc


def plain_sql(raw: bytes, name: str) -> str:
    """The text of a file without what is psql's and not SQL: variables become values of the same length, psql commands
    and the rows of a COPY become blank, so that every line and column stays what it was.

    :raises SqlTextError: the file is not valid
    """
    text = raw.decode("utf-8")
    lines = [line + "\n" for line in text.split("\n")]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    characters = list(text)

    def blank(start: int, end: int) -> None:
        for position in range(start, min(end, len(characters))):
            if characters[position] not in "\r\n":
                characters[position] = " "

    for statement in statements(io.BytesIO(raw), name=name):
        at = _offset(statement, starts)
        if statement.meta is not None:
            blank(at, starts[statement.line])
            continue
        if text[at : at + len(statement.text)] != statement.text:
            continue  # never seen; the file is then linted as it is
        for reference in statement.variables:
            first, fill, last = _PLACEHOLDER[reference.style]
            length = reference.length
            replaced = first + fill * (length - 2) + last if length > 1 else "0"
            characters[at + reference.offset : at + reference.offset + length] = replaced
        if statement.copy_data is not None:
            while statement.copy_data.read(65536):
                pass
            number = statement.line + statement.text.count("\n")
            while number < len(lines):
                blank(starts[number], starts[number + 1])
                number += 1
                if lines[number - 1].rstrip("\r\n") == "\\.":
                    break
    return "".join(characters)


def _offset(statement: Statement, starts: t.Sequence[int]) -> int:
    return starts[statement.line - 1] + statement.column - 1


def _run(program: str, arguments: t.Sequence[str], text: str, directory: str) -> str:
    """Standard output; findings make it end with 1."""
    try:
        # Nothing of the environment but what a program needs to start: squawk would also take options from it.
        done = subprocess.run(
            [program, *arguments],
            input=text.encode("utf-8"),
            capture_output=True,
            check=False,
            timeout=TIMEOUT,
            cwd=directory,
            env={name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ},
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        why = exc.strerror if isinstance(exc, OSError) else f"it ran for more than {TIMEOUT:.0f} s"
        raise EnvironmentProblem(
            f"cannot run {program}: {why}", remedy="Check the program, or set squawk: never."
        ) from exc
    if done.returncode not in (0, 1):
        errors = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise EnvironmentProblem(
            f"{program} ended with {done.returncode}: {errors[0]}", remedy="Check the program, or set squawk: never."
        )
    return done.stdout.decode("utf-8", "replace")
