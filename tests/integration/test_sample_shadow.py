# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shadows of the schema and a sample of the rows of a live database, on real servers."""

from __future__ import annotations

import contextlib
import datetime
import glob
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing as t
import uuid

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import default_home
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import BackupError, PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._external import ExternalRequest, take_external_backup
from ansible_collections.surefoot.dbops.plugins.module_utils._sample import SampleRequest
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import (
    ShadowOutcome,
    ShadowRequest,
    make_shadow,
    remove_shadow,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

MINE = uuid.uuid4().hex[:8]  # in the run_id of every run of this file
OWNER, READER = f"owner_{uuid.uuid4().hex[:8]}", f"reader_{uuid.uuid4().hex[:8]}"
SCHEMA = (
    f"CREATE ROLE {OWNER}",
    f"CREATE ROLE {READER}",
    "CREATE EXTENSION pgcrypto",
    "CREATE SCHEMA app",
    f"ALTER SCHEMA app OWNER TO {OWNER}",
    "CREATE TYPE app.colour AS ENUM ('red', 'blue')",
    # A cycle of two tables, a table that refers to itself, a key of two columns, and an identity that always counts.
    "CREATE TABLE app.teams (id int PRIMARY KEY, lead int)",
    "CREATE TABLE app.people (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, team int REFERENCES app.teams,"
    " boss int REFERENCES app.people, name text NOT NULL, upper text GENERATED ALWAYS AS (upper(name)) STORED)",
    "INSERT INTO app.teams SELECT g FROM generate_series(1, 3000) g",
    "INSERT INTO app.people (team, boss, name) SELECT (g * 7) % 3000 + 1, CASE WHEN g % 50 > 0 THEN g - g % 50 END,"
    " 'person ' || g FROM generate_series(1, 10000) g WHERE g >= 50",
    "UPDATE app.people SET boss = NULL WHERE boss NOT IN (SELECT id FROM app.people)",
    "UPDATE app.teams SET lead = (SELECT min(id) FROM app.people WHERE team = teams.id)",
    "ALTER TABLE app.teams ADD CONSTRAINT led FOREIGN KEY (lead) REFERENCES app.people DEFERRABLE INITIALLY DEFERRED",
    'CREATE TABLE app.places (a int, b text COLLATE "C", PRIMARY KEY (b, a))',
    "INSERT INTO app.places SELECT g, 'place ' || g FROM generate_series(1, 5000) g",
    "CREATE TABLE app.visits (who int REFERENCES app.people, a int, b text, at timestamptz, f float8, doc bytea,"
    " FOREIGN KEY (b, a) REFERENCES app.places (b, a))",
    "INSERT INTO app.visits SELECT g % 9000 + 1, g % 5000 + 1, 'place ' || g % 5000 + 1, '2026-01-01'::timestamptz + g"
    " * interval '1 s', random(), sha256(g::text::bytea) FROM generate_series(1, 20000) g",
    # Partitions, of which a hash of an enum spreads rows anew in every database; and a key to a partitioned table.
    "CREATE TABLE app.events (id bigint, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
    "CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM ('2026-01-01') TO ('2026-07-01')",
    "CREATE TABLE app.events_2 PARTITION OF app.events FOR VALUES FROM ('2026-07-01') TO ('2027-01-01')",
    "INSERT INTO app.events SELECT g, date '2026-01-01' + g % 365 FROM generate_series(1, 8000) g",
    "CREATE TABLE app.notes (id int PRIMARY KEY, event bigint, day date,"
    " FOREIGN KEY (event, day) REFERENCES app.events)",
    "INSERT INTO app.notes SELECT id, id, day FROM app.events WHERE id <= 4000",
    "CREATE TABLE app.coloured (c app.colour, n int) PARTITION BY HASH (c)",
    "CREATE TABLE app.coloured_0 PARTITION OF app.coloured FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
    "CREATE TABLE app.coloured_1 PARTITION OF app.coloured FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    "INSERT INTO app.coloured SELECT CASE g % 2 WHEN 0 THEN 'red' ELSE 'blue' END::app.colour, g FROM"
    " generate_series(1, 10) g",
    "CREATE TABLE app.settings (key text PRIMARY KEY, value text)",
    "INSERT INTO app.settings SELECT 'key ' || g, 'tab \t and \\ and' || chr(10) || g FROM generate_series(1, 20) g",
    "CREATE TABLE app.nothing ()",
    "CREATE SEQUENCE app.tickets START 10 INCREMENT -1 MINVALUE -100 MAXVALUE 10",
    "SELECT nextval('app.tickets') FROM generate_series(1, 4)",
    "CREATE SEQUENCE app.unused",
    # Rows that a role does not see are rows all the same, and no trigger fires for them.
    "CREATE TABLE app.secrets (id int PRIMARY KEY, who text)",
    "INSERT INTO app.secrets SELECT g, 'who ' || g FROM generate_series(1, 3000) g",
    f"ALTER TABLE app.secrets OWNER TO {OWNER}",
    "ALTER TABLE app.secrets ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE app.secrets FORCE ROW LEVEL SECURITY",
    f"CREATE POLICY own ON app.secrets TO {READER} USING (who = current_user)",
    f"GRANT SELECT (id) ON app.secrets TO {READER}",
    "CREATE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''never''; END'",
    "CREATE TRIGGER refuse BEFORE INSERT ON app.secrets FOR EACH ROW EXECUTE FUNCTION app.refuse()",
    "CREATE MATERIALIZED VIEW app.counted AS SELECT count(*) AS n FROM app.people",
    "CREATE MATERIALIZED VIEW app.again AS SELECT n + 1 AS n FROM app.counted",
    "CREATE MATERIALIZED VIEW app.empty AS SELECT 1 AS n WITH NO DATA",
    "CREATE UNIQUE INDEX counted_once ON app.counted (n)",
    "ALTER TABLE app.visits ADD CONSTRAINT later CHECK (a > 0) NOT VALID",
    "ANALYZE",
)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_the_server(pg_server: PgServer) -> t.Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUREFOOT_PG_SEARCH", pg_server.bindir)
        yield


@pytest.fixture(scope="module")
def source(pg_server: PgServer) -> t.Iterator[Database]:
    with temporary_database(pg_server) as database:
        for statement in SCHEMA:
            database.query(statement)
        yield database
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP ROLE {OWNER}, {READER}")


def options_of(database: Database) -> ConnectionOptions:
    return ConnectionOptions.from_params(database.params)


def record_of(database: Database, directory: pathlib.Path) -> dict[str, t.Any]:
    """The record of a backup of which nothing exists but the record: a fake, which this file says nothing of."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    reported = {"id": "b1", "created": now, "size": 2**30, "location": "nowhere"}
    request = ExternalRequest(dest=str(directory / "records"), reported=reported)
    backup = take_external_backup(options_of(database), request).backup
    assert backup is not None
    return backup


def sample(
    database: Database, directory: pathlib.Path, *, run_id: str | None = None, check_mode: bool = False, **how: t.Any
) -> ShadowOutcome:
    backup = record_of(database, directory)
    request = ShadowRequest(
        backup=backup["path"],
        manifest_sha256=backup["manifest_sha256"],
        content="sample",
        sample=SampleRequest(**how),
        min_free=0,
        run_id=run_id or f"{MINE}-{uuid.uuid4().hex[:8]}",
    )
    return make_shadow(None, request, source=options_of(database), check_mode=check_mode)


@contextlib.contextmanager
def shadow_of(database: Database, directory: pathlib.Path, **how: t.Any) -> t.Iterator[ShadowOutcome]:
    run_id = f"{MINE}-{uuid.uuid4().hex[:8]}"
    try:
        yield sample(database, directory, run_id=run_id, **how)
    finally:
        remove_shadow(None, ShadowRequest(run_id=run_id), socket=None)


def query(outcome: ShadowOutcome, statement: str) -> list[tuple[t.Any, ...]]:
    login = outcome.connection
    connection = psycopg2.connect(
        host=login["login_unix_socket"], port=login["login_port"], user=login["login_user"], dbname=login["login_db"]
    )
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def rows_of(outcome: ShadowOutcome, table: str) -> int:
    return int(query(outcome, f"SELECT count(*) FROM {table}")[0][0])


def scratch_homes() -> list[str]:
    """Directories of samples on their way to a shadow of this file's."""
    base = os.path.dirname(default_home("/shadow"))
    states = glob.glob(os.path.join(base, f"surefoot-{os.geteuid()}-*", "shadow.json"))
    found = []
    for path in states:
        with contextlib.suppress(OSError, ValueError):  # another one's, gone by now
            state = json.loads(pathlib.Path(path).read_text("utf-8"))
            if state["state"] == "sampling" and str(state["run_id"]).startswith(MINE):
                found.append(path)
    return found


# --- what is in it ---------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_a_sample_has_the_whole_schema_and_rows_that_hold_together(source: Database, tmp_path: pathlib.Path) -> None:
    with shadow_of(source, tmp_path, rows=200) as outcome:
        (evidence,) = outcome.evidence
        assert (evidence.criterion, evidence.verdict) == ("shadow.sample", "pass"), evidence
        assert outcome.warnings == []
        assert outcome.comparison is not None and outcome.comparison.passed
        # Every foreign key was added with the data there, and is valid as in the source.
        invalid = "SELECT conname FROM pg_constraint WHERE NOT convalidated ORDER BY 1"
        assert query(outcome, invalid) == source.query(invalid) == [("later",)]
        keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f'"
        assert query(outcome, keys) == source.query(keys)
        incomplete = outcome.facts["sample"]["incomplete"]
        assert {"app.people", "app.teams", "app.visits", "app.places", "app.secrets"} <= set(incomplete)
        assert incomplete["app.visits"]["rows"] == 20000
        for table in ("app.visits", "app.people", "app.teams", "app.notes", "app.secrets"):
            assert 100 <= rows_of(outcome, table) <= 2200, table
        assert rows_of(outcome, "app.secrets") == 200
        # Small ones come whole, byte for byte.
        assert "app.settings" not in incomplete
        for table in ("app.settings", "app.coloured"):
            text = f"SELECT x::text FROM {table} AS x ORDER BY 1"
            assert query(outcome, text) == source.query(text)
        # Nothing computed or counted differs.
        assert query(outcome, "SELECT count(*) FROM app.people WHERE upper IS DISTINCT FROM upper(name)") == [(0,)]
        people = "SELECT last_value FROM app.people_id_seq"
        tickets = "SELECT last_value, is_called FROM app.tickets"
        unused = "SELECT last_value, is_called FROM app.unused"
        for statement in (people, tickets, unused):
            assert query(outcome, statement) == source.query(statement)
        counted = rows_of(outcome, "app.people")
        assert query(outcome, "SELECT n FROM app.counted UNION ALL SELECT n FROM app.again ORDER BY 1") == [
            (counted,),
            (counted + 1,),
        ]
        assert query(outcome, "SELECT relispopulated FROM pg_class WHERE oid = 'app.empty'::regclass") == [(False,)]
        columns = "relrowsecurity, relforcerowsecurity, relowner::regrole::text"
        security = f"SELECT {columns} FROM pg_class WHERE relname = 'secrets'"
        assert query(outcome, security) == source.query(security) == [(True, True, OWNER)]
        analyzed = query(outcome, "SELECT reltuples FROM pg_class WHERE oid = 'app.visits'::regclass")
        assert analyzed[0][0] == rows_of(outcome, "app.visits")
    assert scratch_homes() == []


def test_the_same_database_gives_the_same_sample(source: Database, tmp_path: pathlib.Path) -> None:
    with shadow_of(source, tmp_path / "1", rows=50) as one, shadow_of(source, tmp_path / "2", rows=50) as two:
        for table in ("app.visits", "app.people", "app.places", "app.events", "app.secrets"):
            text = f"SELECT x::text FROM {table} AS x ORDER BY 1"
            assert query(one, text) == query(two, text)
            assert set(query(one, text)) <= set(source.query(text))


def test_a_table_that_is_too_large_to_read_gives_its_first_and_last_rows(
    source: Database, tmp_path: pathlib.Path
) -> None:
    with shadow_of(source, tmp_path, rows=100, scan_max=1) as outcome:
        methods = outcome.facts["sample"]["methods"]
        assert methods["app.secrets"] == {"method": "ends", "rows": 100, "left_out": 0}
        assert methods["app.visits"]["method"] == "start"
        assert query(outcome, "SELECT min(id), max(id), count(*) FROM app.secrets") == [(1, 3000, 100)]


def test_rows_are_fewer_where_they_are_wide(database: Database, tmp_path: pathlib.Path) -> None:
    database.query("CREATE TABLE public.wide (id int PRIMARY KEY, body text)")
    database.query("ALTER TABLE public.wide ALTER body SET STORAGE EXTERNAL")
    database.query("INSERT INTO public.wide SELECT g, repeat(md5(g::text), 1000) FROM generate_series(1, 100) g")
    with shadow_of(database, tmp_path, rows=1000, size=10 * 32 * 1024) as outcome:
        assert 5 <= rows_of(outcome, "public.wide") <= 10


def test_a_chain_without_end_is_left_out_with_what_hangs_on_it(database: Database, tmp_path: pathlib.Path) -> None:
    database.query("CREATE TABLE public.chain (id int PRIMARY KEY, previous int REFERENCES public.chain)")
    database.query("INSERT INTO public.chain SELECT g, nullif(g - 1, 0) FROM generate_series(1, 5000) g")
    database.query("ANALYZE public.chain")
    with shadow_of(database, tmp_path, rows=20) as outcome:
        left = outcome.facts["sample"]["methods"]["public.chain"]
        assert left["left_out"] > 0
        assert rows_of(outcome, "public.chain") == left["rows"] <= 2000


def test_no_more_of_the_source_is_touched_than_a_reader_touches(source: Database, tmp_path: pathlib.Path) -> None:
    written = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables"
    before, schema = source.scalar(written), "SELECT count(*), max(oid::bigint) FROM pg_class"
    shape = source.query(schema)
    with shadow_of(source, tmp_path, rows=20):
        pass
    assert source.scalar(written) == before
    assert source.query(schema) == shape


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_sample_is_of_the_database_of_the_backup_with_its_catalog(
    database: Database, source: Database, tmp_path: pathlib.Path
) -> None:
    database.query("CREATE TABLE public.t (i int)")
    backup = record_of(database, tmp_path)
    request = ShadowRequest(
        backup=backup["path"],
        manifest_sha256=backup["manifest_sha256"],
        content="sample",
        min_free=0,
        run_id=f"{MINE}-x",
    )
    with pytest.raises(BackupError, match="the backup is of"):
        make_shadow(None, request, source=options_of(source))
    with pytest.raises(BackupError, match="the backup is of"):
        make_shadow(None, request, source=options_of(source), check_mode=True)
    with pytest.raises(PlanError, match="no live database is named"):
        make_shadow(None, request)
    database.query("ALTER TABLE public.t ADD COLUMN j int")
    with pytest.raises(BackupError, match="changed since the backup") as caught:
        make_shadow(None, request, source=options_of(database))
    assert [item["criterion"] for item in caught.value.results["evidence"]] == ["shadow.sample"]
    assert scratch_homes() == []


def test_what_the_role_may_not_read_is_refused(source: Database, tmp_path: pathlib.Path, pg_server: PgServer) -> None:
    name = f"weak_{uuid.uuid4().hex[:8]}"
    source.query(f"CREATE ROLE {name} LOGIN")
    try:
        backup = record_of(source, tmp_path)
        request = ShadowRequest(
            backup=backup["path"],
            manifest_sha256=backup["manifest_sha256"],
            content="sample",
            min_free=0,
            run_id=f"{MINE}-x",
        )
        weak = ConnectionOptions.from_params({**source.params, "login_user": name})
        with pytest.raises(BackupError, match="may not read"):
            make_shadow(None, request, source=weak)
        source.query(f"GRANT pg_read_all_data TO {name}")
        with pytest.raises(BackupError, match="row level security hides rows of app.secrets"):
            make_shadow(None, request, source=weak)
    finally:
        source.query(f"DROP ROLE {name}")


def test_reading_that_takes_too_long_is_stopped(database: Database, tmp_path: pathlib.Path) -> None:
    database.query("CREATE TABLE public.t (i int)")
    backup = record_of(database, tmp_path)
    request = ShadowRequest(
        backup=backup["path"],
        manifest_sha256=backup["manifest_sha256"],
        content="sample",
        sample=SampleRequest(timeout=1.0),
        min_free=0,
        run_id=f"{MINE}-late",
    )
    blocker = database.connect()
    blocker.autocommit = False
    with contextlib.closing(blocker), blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SurefootError, match=r"were not read within 1\.0 s") as caught:
            make_shadow(None, request, source=options_of(database))
        assert "sample_timeout" in (caught.value.remedy or "")
    assert scratch_homes() == []


def test_check_mode_makes_nothing(source: Database, tmp_path: pathlib.Path) -> None:
    outcome = sample(source, tmp_path, check_mode=True)
    assert outcome.changed and outcome.database == source.name
    assert outcome.connection == {}
    assert scratch_homes() == []


KILLED = """
import json, os, sys, time
from ansible_collections.surefoot.dbops.plugins.module_utils import _sample, _shadow
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
def stop(*args, **kwargs):
    print("here", flush=True)
    time.sleep(600)
_sample._follow = stop
given = json.load(sys.stdin)
_shadow.make_shadow(None, _shadow.ShadowRequest(content="sample", min_free=0, **given["request"]),
    source=ConnectionOptions.from_params(given["source"]))
"""


def test_what_a_killed_run_had_read_is_removed_by_the_next(source: Database, tmp_path: pathlib.Path) -> None:
    backup = record_of(source, tmp_path)
    request = {"backup": backup["path"], "manifest_sha256": backup["manifest_sha256"], "run_id": f"{MINE}-killed"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).resolve().parents[2] / "build" / "tree",
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"request": request, "source": source.params}))
    process.stdin.close()
    assert process.stdout.readline() == "here\n"
    assert len(scratch_homes()) == 1
    remove_shadow(None, ShadowRequest(run_id="another"), socket=None)
    assert len(scratch_homes()) == 1, "its maker lives"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while scratch_homes() and time.monotonic() < deadline:
        remove_shadow(
            ConnectionOptions.from_params(source.params), ShadowRequest(where="server", run_id=f"{MINE}-x"), socket=None
        )
        time.sleep(0.1)
    assert scratch_homes() == []


def test_a_sample_on_another_database_of_the_server_is_marked_like_any_shadow(
    source: Database, tmp_path: pathlib.Path, pg_server: PgServer
) -> None:
    backup = record_of(source, tmp_path)
    server = ConnectionOptions.from_params(pg_server.params())
    request = ShadowRequest(
        backup=backup["path"],
        manifest_sha256=backup["manifest_sha256"],
        content="sample",
        sample=SampleRequest(rows=20),
        where="server",
        same_server=True,
        database_free_space=2**40,
        min_free=0,
        run_id=f"{MINE}-beside",
    )
    outcome = make_shadow(server, request, source=options_of(source))
    try:
        assert outcome.database == f"{source.name}_shadow_{MINE}_beside"
        comment = source.scalar(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", (outcome.database,)
        )
        assert comment.startswith("surefoot shadow: ")
        assert '"content": "sample"' in comment and backup["id"] in comment
        public = "SELECT has_database_privilege('public', %s, 'CONNECT')"
        assert source.scalar(public, (outcome.database,)) is False
    finally:
        assert remove_shadow(server, ShadowRequest(where="server", run_id=f"{MINE}-beside"), socket=None).removed == [
            outcome.database
        ]
