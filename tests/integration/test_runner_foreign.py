# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that were not written for this runner: pg_dump's output, and scripts in the manner of other tools.

They do what psql does with them, or are refused with file, line and remedy.
"""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SqlTextError
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    MigrationSet,
    applied,
    dump,
    exists,
    fails,
    psql,
    run,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

FOREIGN = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "foreign"

YEARS = (FOREIGN / "source" / "years.sql").read_text(encoding="utf-8")

VARIANTS = {
    "plain": (),
    "schema only": ("--schema-only",),
    "inserts": ("--inserts",),
    "column inserts": ("--column-inserts", "--rows-per-insert=7"),
    "no owner": ("--no-owner", "--no-privileges", "--quote-all-identifiers"),
    "one schema": ("--schema=app", "--no-comments"),
}


@pytest.fixture(scope="module")
def source(pg_server: PgServer) -> t.Iterator[Database]:
    with temporary_database(pg_server) as database:
        done = psql(database, YEARS)
        assert done.returncode == 0, done.stderr
        yield database


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


@pytest.mark.parametrize("variant", VARIANTS)
def test_dump_restores_to_what_psql_makes_of_it(
    plan: MigrationSet, database: Database, source: Database, variant: str
) -> None:
    text = dump(source, *VARIANTS[variant])
    before = "".join(f"CREATE EXTENSION {name};" for name in ("citext", "hstore", "pg_trgm", "ltree", "btree_gist"))
    before = before if variant == "one schema" else ""
    with temporary_database(database.server) as reference:
        done = psql(reference, before + text)
        assert done.returncode == 0, done.stderr
        expected = dump(reference)
    if before:
        database.query(before)
    results = run(plan.add("001", text), database)
    assert results["applied"] == ["001"]
    # What belongs to no schema is in the dump even when the ledger's schema is left out.
    assert dump(database, "--exclude-schema=surefoot") == expected


def test_dump_that_cleans_first_runs_over_what_is_there(
    plan: MigrationSet, database: Database, source: Database
) -> None:
    assert psql(database, dump(source)).returncode == 0
    database.query("UPDATE app.people SET amount = -1")
    plan.add("001", dump(source, "--clean", "--if-exists"))
    run(plan, database, lock_budget=30.0)
    assert dump(database, "--exclude-schema=surefoot") == dump(source)


def test_data_only_dump_follows_the_schema(plan: MigrationSet, database: Database, source: Database) -> None:
    plan.add("001", dump(source, "--section=pre-data"))
    plan.add("002", dump(source, "--section=data"))
    plan.add("003", dump(source, "--section=post-data"))
    assert run(plan, database)["applied"] == ["001", "002", "003"]
    assert dump(database, "--exclude-schema=surefoot") == dump(source)


def test_dump_with_restrict_lines_of_newer_releases_runs(
    plan: MigrationSet, database: Database, source: Database
) -> None:
    text = dump(source, "--schema-only")
    plan.add("001", f"--\n-- dump\n--\n\n\\restrict Ab12Cd34\n\n{text}\n\\unrestrict Ab12Cd34\n")
    assert run(plan, database)["applied"] == ["001"]


def test_dump_that_creates_its_database_is_refused_with_line_and_remedy(
    plan: MigrationSet, database: Database, source: Database
) -> None:
    text = dump(source, "--create", "--schema-only")
    line = next(
        number for number, line in enumerate(text.splitlines(), 1) if line.startswith(("CREATE DATABASE", "\\connect"))
    )
    error = fails(SqlTextError, plan.add("001", text), database)
    assert f"001.sql:{line}:1" in str(error) and error.remedy
    assert not exists(database, "surefoot.applied")


@pytest.mark.parametrize("path", sorted(FOREIGN.glob("*.sql")), ids=lambda path: path.stem)
def test_script_of_another_style_does_what_psql_does(
    plan: MigrationSet, database: Database, path: pathlib.Path
) -> None:
    text = path.read_text(encoding="utf-8")
    results = run(plan.add("001", text), database)
    assert results["applied"] == ["001"]
    with temporary_database(database.server) as reference:
        done = psql(reference, text)
        assert done.returncode == 0, done.stderr
        ignored = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+")  # now() of the two runs

        def shown(one: Database, *arguments: str) -> str:
            return ignored.sub("<time>", dump(one, *arguments))

        assert shown(database, "--exclude-schema=surefoot") == shown(reference)
    assert run(plan, database)["changed"] is False


def test_scripts_run_one_after_another_without_touching_each_other(plan: MigrationSet, database: Database) -> None:
    for path in sorted(FOREIGN.glob("*.sql")):
        plan.add(path.stem, path.read_text(encoding="utf-8"))
    plan.add(
        "last", "CREATE TABLE seen AS SELECT current_setting('search_path') AS p, current_setting('lock_timeout') AS l;"
    )
    run(plan, database)
    assert applied(database)[-1] == "last"
    assert database.query("SELECT p, l FROM public.seen") == [('"$user", public', "500ms")]


REFUSED = {
    "include": ("\\i tables.sql\n", "steps"),
    "relative include": ("SELECT 1;\n\\ir ../tables.sql\n", "steps"),
    "client copy": ("CREATE TABLE t(i int);\n\\copy t from 'rows.csv' csv\n", "COPY"),
    "connect": ("\\c other_database\nSELECT 1;\n", "database"),
    "shell": ("\\! date\n", "playbook"),
    "shell in a variable": ("\\set now `date`\n", "playbook"),
    "condition": ("SELECT 1;\n\\if :{?x}\nSELECT 2;\n\\endif\n", "DO block"),
    "generated": ("SELECT 'DROP TABLE x'\n\\gexec\n", ""),
    "kept": ("SELECT 1 AS x \\gset\nSELECT :x;\n", ""),
    "concurrent index": ("BEGIN;\nCREATE INDEX CONCURRENTLY i ON t(i);\nCOMMIT;\n", "transaction: false"),
    "two transactions": ("BEGIN;\nSELECT 1;\nCOMMIT;\nBEGIN;\nSELECT 2;\nCOMMIT;\n", "one"),
    "dry run": ("BEGIN;\nCREATE TABLE t(i int);\nROLLBACK;\n", "check mode"),
    "no end of rows": ("CREATE TABLE t(i int);\nCOPY t FROM stdin;\n1\n2\n", ""),
    "latin": (b"-- caf\xe9\nSELECT 1;\n", "UTF-8"),
    "utf-16": ("SELECT 1;\n".encode("utf-16"), ""),
    "encoding": ("SET client_encoding = 'LATIN1';\nSELECT 1;\n", "UTF-8"),
    "quit": ("SELECT 1;\n\\q\nDROP TABLE everything;\n", "psql runs nothing behind it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_faithfully_is_refused_with_line_and_remedy(
    plan: MigrationSet, database: Database, case: str
) -> None:
    text, words = REFUSED[case]
    error = fails(SqlTextError, plan.add("001", text), database)
    assert re.search(r"001\.sql:\d+:\d+", str(error)), error
    assert error.remedy and words in error.remedy, error.remedy
    assert not exists(database, "surefoot.applied")
