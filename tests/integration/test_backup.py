# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a real server with real pg_dump. Where a program is replaced by a script, the test says FAKE."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _catalog, _pgdump
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, child_environment
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    EnvironmentProblem,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    SNAPSHOT_SETTINGS,
    BackupRequest,
    hash_statement,
    read_manifest,
    take_backup,
    verify_backup,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, temporary_database
from ansible_collections.surefoot.dbops.tests.support.standby import running_standby

RUNNER = """
import json, os, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_backup
os.umask(0)
with patch_module_args(json.loads(sys.stdin.read())):
    postgresql_backup.main()
"""


def start_module(params, *, check_mode=False, file_size_limit=None):
    """The module as a process of its own, with umask 0."""
    tree = pathlib.Path(__file__).resolve().parents[2] / "build" / "tree"
    environment = {**os.environ, "PYTHONPATH": str(tree)}

    def limit():
        if file_size_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))

    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=limit,
    )
    process.stdin.write(json.dumps({**params, "_ansible_check_mode": check_mode}))
    process.stdin.close()
    process.stdin = None
    return process


def run_module(params, **options):
    process = start_module(params, **options)
    output, errors = process.communicate(timeout=60)
    assert errors == ""
    return json.loads(output)


def connection_of(database, **more):
    return ConnectionOptions.from_params({**database.params, **more})


def request_for(dest, **more):
    return BackupRequest(dest=str(dest), **{"min_free": 0, **more})


def verdicts(outcome_or_results):
    records = (
        outcome_or_results["evidence"]
        if isinstance(outcome_or_results, dict)
        else [item.to_dict() for item in outcome_or_results.evidence]
    )
    return {item["criterion"]: item["verdict"] for item in records}


def visible(dest):
    """What a user of the directory sees."""
    return sorted(name for name in os.listdir(dest) if not name.startswith("."))


def everything(dest):
    return sorted(name for name in os.listdir(dest) if name != ".surefoot-backup.lock")


def tree_state(path):
    """Names, times and sizes of all files."""
    return {item: (item.lstat().st_mtime_ns, item.lstat().st_size) for item in pathlib.Path(path).rglob("*")}


def fill(database):
    for statement in (
        "CREATE EXTENSION pgcrypto",
        "CREATE TABLE users (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text)",
        "INSERT INTO users (name) SELECT md5(g::text) FROM generate_series(1, 3000) g",
        'CREATE SCHEMA "We ird"',
        'CREATE TABLE "We ird"."a\nCOPY x FROM stdin;" (z text, "Q ""q" bytea)',
        """INSERT INTO "We ird"."a\nCOPY x FROM stdin;" VALUES (E'\\\\.', '\\x00ff'), (E'a\\nb', NULL)""",
        "CREATE TABLE no_columns ()",
        "INSERT INTO no_columns DEFAULT VALUES",
        "CREATE UNLOGGED TABLE fleeting (i int)",
        "INSERT INTO fleeting VALUES (1)",
        "CREATE TABLE days (i int, t timestamptz, d float8) PARTITION BY RANGE (i)",
        "CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10)",
        "INSERT INTO days VALUES (1, now(), 0.1), (2, 'infinity', 'NaN'), (2, 'infinity', 'NaN')",
        "CREATE TABLE parent (i int)",
        "CREATE TABLE child (k int) INHERITS (parent)",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO child VALUES (1, 2), (3, 4)",
        "CREATE TABLE empty (i int)",
        "CREATE VIEW names AS SELECT name FROM users",
        "CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM users",
        "CREATE MATERIALIZED VIEW unborn AS SELECT 1 WITH NO DATA",
        "CREATE SEQUENCE used START 41",
        "SELECT nextval('used')",
        "CREATE SEQUENCE unused",
        "SELECT lo_from_bytea(0, 'large object')",
    ):
        database.query(statement)


@pytest.fixture(autouse=True)
def _client_of_the_server(pg_server, monkeypatch):
    """The programs that belong to the server under test, whichever version that is."""
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", pg_server.bindir)


@pytest.fixture
def filled(database):
    fill(database)
    return database


@pytest.fixture(scope="module")
def slow_database(pg_server):
    """One that takes seconds to dump with gzip:9."""
    with temporary_database(pg_server) as database:
        database.query(
            "CREATE TABLE big AS SELECT g AS id, md5(g::text) || md5((g * 7)::text) AS t"
            " FROM generate_series(1, 400000) g"
        )
        yield database


def dumps_into(dest):
    """Process ids of the pg_dump leader and workers that write into this directory."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = pathlib.Path(path).read_bytes().split(b"\0")
            if words[0].endswith(b"pg_dump") and any(word.startswith(f"--file={dest}/".encode()) for word in words):
                found.append(int(path.split("/")[2]))
    return sorted(found)


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def writing(dest):
    """pg_dump is at work: a data file has begun to grow."""
    return any(os.path.getsize(path) > 100000 for path in glob.glob(f"{dest}/.*.partial/dump/*.dat.gz")) and dumps_into(
        dest
    )


SLOW = {"compression": "gzip:9", "min_free": "0"}


# --- what a backup holds -----------------------------------------------------------------------------------------


@pytest.mark.versions
def test_a_backup_is_complete_private_and_says_what_it_holds(filled, tmp_path):
    outcome = take_backup(connection_of(filled), request_for(tmp_path / "b", minimum_size=1000, run_id="r1"))
    assert outcome.changed and outcome.warnings == []
    assert verdicts(outcome) == {
        "backup.client_version": "pass",
        "backup.created": "pass",
        "backup.minimum_size": "pass",
        "backup.contains_tables": "pass",
        "backup.verified": "pass",
        "backup.stored_securely": "pass",
        "backup.off_host_copy": "not_applicable",
    }
    backup = outcome.backup
    assert everything(tmp_path / "b") == [backup["name"]]
    assert backup["name"].startswith(f"{filled.name}-20") and backup["name"].endswith("Z-r1")
    manifest = read_manifest(backup["path"], backup["manifest_sha256"])
    tables = {(table["schema"], table["name"]): table for table in manifest.tables}
    assert {name[1]: table["rows"] for name, table in tables.items()} == {
        "users": 3000,
        "a\nCOPY x FROM stdin;": 2,
        "no_columns": 1,
        "fleeting": 1,
        "days": None,
        "days_1": 3,
        "parent": 1,
        "child": 2,
        "empty": 0,
        "names": None,
        "totals": 1,
        "unborn": None,
    }
    sequences = {item["name"]: (item["before"], item["after"]) for item in manifest.data["sequences"]}
    assert sequences == {"users_id_seq": (3000, 3000), "used": (41, 41), "unused": (None, None)}
    assert {item["name"] for item in manifest.data["extensions"]} == {"plpgsql", "pgcrypto"}
    assert manifest.data["database"]["oid"] == filled.scalar(
        "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
    )
    assert manifest.data["database"]["system_identifier"] == filled.scalar(
        "SELECT system_identifier::text FROM pg_control_system()"
    )
    assert manifest.data["database"]["owner"] == "postgres" and manifest.data["database"]["encoding"] == "UTF8"
    assert manifest.data["roles"].count("postgres") == 1
    assert backup["rows"] == 3010 and backup["tables"] == 9
    assert set(os.listdir(os.path.join(backup["path"], "dump"))) == set(manifest.data["files"])


@pytest.mark.versions
@pytest.mark.parametrize("level", ["full", "sampled"])
def test_a_restored_backup_has_the_hashes_the_manifest_recorded(pg_server, filled, tmp_path, level):
    backup = take_backup(connection_of(filled), request_for(tmp_path, hashes=level, hash_sample=7)).backup
    manifest = read_manifest(backup["path"], backup["manifest_sha256"])
    with temporary_database(pg_server) as target:
        restore = [f"{pg_server.bindir}/pg_restore", "--jobs=2", "--exit-on-error", f"--dbname={target.dsn}"]
        subprocess.run([*restore, os.path.join(backup["path"], "dump")], check=True)
        with contextlib.closing(target.connect()) as connection, connection.cursor() as cursor:

            def measured(table):
                hashed = table["hash"]
                name = f'"{table["schema"]}"."{table["name"]}"'
                cursor.execute(
                    hash_statement(
                        name,
                        hashed["columns"],
                        hashed.get("key", []),
                        modulus=hashed.get("modulus"),
                        connection=connection,
                    )
                )
                return cursor.fetchone()

            for name, value in SNAPSHOT_SETTINGS.items():
                if name != "default_transaction_read_only":
                    cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
            hashed = [table for table in manifest.tables if table["hash"]]
            assert len(hashed) == 8
            for table in hashed:
                recorded = (table["rows"], table["hash"]["rows"], table["hash"]["high"], table["hash"]["low"])
                assert measured(table) == recorded, table["name"]
            users = next(table for table in hashed if table["name"] == "users")
            assert users["hash"]["method"] == level
            assert (300 < users["hash"]["rows"] < 600) if level == "sampled" else users["hash"]["rows"] == 3000
            # Another order of rows and columns is the same content; a changed, doubled or exchanged value is not.
            days = next(table for table in hashed if table["name"] == "days_1")
            before = measured(days)
            cursor.execute("CREATE TABLE public.other (d float8, i int, t timestamptz)")
            cursor.execute("INSERT INTO public.other SELECT d, i, t FROM public.days_1 ORDER BY i DESC")
            assert measured({**days, "name": "other"}) == before
            cursor.execute("UPDATE public.other SET d = 0.10000000000000002 WHERE i = 1")
            assert measured({**days, "name": "other"}) != before
            cursor.execute("TRUNCATE public.other")
            cursor.execute("INSERT INTO public.other SELECT d, i, t FROM public.days_1 WHERE i = 1")
            cursor.execute("INSERT INTO public.other SELECT d, i, t FROM public.other")
            cursor.execute("INSERT INTO public.other SELECT d, i, t FROM public.other LIMIT 1")
            assert measured({**days, "name": "other"}) != before


@pytest.mark.versions
def test_each_bit_of_a_row_changes_half_of_both_row_hashes_independently(database):
    # Rows that differ in one bit from their twin; the standard deviation of a frequency is 0.007.
    count = 5000
    database.query(
        "CREATE TABLE twins AS SELECT r AS a, overlay(r placing chr(ascii(substr(r, place, 1)) # 1) from place) AS b"
        f" FROM (SELECT md5(g::text) || g AS r, 1 + g % 30 AS place FROM generate_series(1, {count}) g) AS made"
    )
    flipped = ", ".join(f"hashtextextended(a, {seed}) # hashtextextended(b, {seed}) AS f{seed}" for seed in (1, 2))
    bits = database.query(
        f"SELECT avg(f1 >> bit & 1)::float, avg(f2 >> bit & 1)::float, avg((f1 # f2) >> bit & 1)::float"
        f" FROM (SELECT {flipped} FROM twins) AS flips, generate_series(0, 63) AS bit GROUP BY bit"
    )
    assert len(bits) == 64
    assert all(abs(frequency - 0.5) < 0.035 for row in bits for frequency in row)
    assert database.query(
        "SELECT count(DISTINCT hashtextextended(a, 1)), count(DISTINCT hashtextextended(a, 2)) FROM twins"
    ) == [(count, count)]


@pytest.mark.versions
def test_the_manifest_records_what_a_restored_copy_must_be(filled, tmp_path):
    for statement in (
        "ALTER TABLE users ADD CONSTRAINT short CHECK (length(name) < 3) NOT VALID",
        "CREATE TABLE twice AS SELECT 1 AS i FROM generate_series(1, 2)",
        "CREATE SCHEMA surefoot CREATE TABLE ledger (i int)",
        f"ALTER DATABASE {filled.name} SET work_mem = '7MB'",
        "GRANT SELECT ON users TO PUBLIC",
    ):
        filled.query(statement)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        filled.query("CREATE UNIQUE INDEX CONCURRENTLY broken ON twice (i)")
    backup = take_backup(connection_of(filled), request_for(tmp_path, verify="files")).backup
    manifest = read_manifest(backup["path"], backup["manifest_sha256"])
    validity = manifest.data["validity"]
    assert validity["not_valid_constraints"] == [{"schema": "public", "table": "users", "name": "short"}]
    assert validity["invalid_indexes"] == [{"schema": "public", "table": "twice", "name": "broken", "dumped": False}]
    assert (validity["indexes"], validity["constraints"]) == (1, 2)
    assert manifest.data["large_objects"] == 1
    with contextlib.closing(filled.connect()) as connection:
        assert backup["catalog_fingerprint"] == _catalog.fingerprint(connection)
        whole = _catalog.entry_hashes(connection, exclude_schemas=())
    assert manifest.catalog.hashes == whole.filter(_catalog.DATABASE_LEVEL).hashes
    assert {"grants on table public.users", "table surefoot.ledger", "owner of table public.users"} <= set(
        manifest.catalog
    )
    assert "setting work_mem" in whole and "setting work_mem" not in manifest.catalog
    users = next(table for table in manifest.tables if table["name"] == "users")
    assert users["written"] == [3000, 0, 0]
    assert users["filenode"] == filled.scalar("SELECT relfilenode::bigint FROM pg_class WHERE oid = 'users'::regclass")
    assert manifest.data["activity"]["counted"] is True


def test_what_is_recorded_is_what_was_dumped_while_others_write(filled, tmp_path):
    stop = threading.Event()

    def writer():
        with contextlib.closing(filled.connect()) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                cursor.execute("INSERT INTO users (name) SELECT 'new' FROM generate_series(1, 7)")
                cursor.execute("DELETE FROM users WHERE id IN (SELECT id FROM users LIMIT 3)")

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        # Verification compares the number of rows in the dump with those counted in the snapshot.
        for number in range(3):
            outcome = take_backup(connection_of(filled), request_for(tmp_path, run_id=f"w{number}"))
            assert verdicts(outcome)["backup.verified"] == "pass"
    finally:
        stop.set()
        thread.join()


def test_counts_only_and_files_only_cost_less_and_say_so(filled, tmp_path):
    outcome = take_backup(connection_of(filled), request_for(tmp_path, hashes="counts", verify="files"))
    manifest = read_manifest(outcome.backup["path"])
    assert {table["hash"] for table in manifest.tables} == {None}
    users = next(table for table in manifest.tables if table["name"] == "users")
    assert users["rows"] == 3000
    verified = next(item for item in outcome.evidence if item.criterion == "backup.verified")
    assert verified.measured["rows"] is None and "row count" not in verified.required
    size = next(item for item in outcome.evidence if item.criterion == "backup.minimum_size")
    assert (size.measured, size.verdict) == (outcome.backup["size"], "fail")


@pytest.mark.versions
@pytest.mark.parametrize("wanted", ["none", "gzip:6", "lz4", "zstd:3", "auto"])
def test_every_compression_the_client_offers_can_be_read_back(filled, tmp_path, wanted):
    try:
        outcome = take_backup(connection_of(filled), request_for(tmp_path, compression=wanted))
    except EnvironmentProblem as exc:
        assert wanted.startswith(("lz4", "zstd"))
        pytest.skip(str(exc))
    chosen = outcome.backup["compression"]
    assert chosen.startswith(wanted.split(":")[0]) or (wanted == "auto" and chosen.endswith(":1"))
    verified = next(item for item in outcome.evidence if item.criterion == "backup.verified")
    assert verified.measured["rows"] == 3010


def test_a_standby_has_no_rows_of_unlogged_tables_and_the_backup_says_so(pg_server, database, tmp_path):
    database.query("CREATE TABLE kept AS SELECT 1 AS i")
    database.query("CREATE UNLOGGED TABLE cache AS SELECT 1 AS i")
    with running_standby(pg_server) as standby:
        outcome = take_backup(connection_of(Database(database.name, standby)), request_for(tmp_path))
    assert outcome.warnings == ["a standby has no rows of unlogged tables: public.cache will be empty"]
    assert verdicts(outcome)["backup.verified"] == "pass"
    recorded = {table["name"]: (table["data"], table["rows"]) for table in read_manifest(outcome.backup["path"]).tables}
    assert recorded == {"kept": ("all", 1), "cache": ("none", None)}


def test_an_empty_database_has_a_backup_without_tables(database, tmp_path):
    outcome = take_backup(connection_of(database), request_for(tmp_path))
    assert verdicts(outcome)["backup.contains_tables"] == "not_applicable"
    assert verdicts(outcome)["backup.verified"] == "pass"
    assert verdicts(outcome)["backup.minimum_size"] == "fail"


def test_configuration_tables_of_extensions_are_counted_as_they_are_dumped(database, tmp_path):
    # What pg_extension_config_dump() does in an extension's script.
    for statement in (
        "CREATE EXTENSION pgcrypto",
        "CREATE TABLE config_all (i int)",
        "CREATE TABLE config_some (i int)",
        "CREATE TABLE member (i int)",
        "INSERT INTO config_all SELECT generate_series(1, 5)",
        "INSERT INTO config_some SELECT generate_series(1, 9)",
        "INSERT INTO member VALUES (1)",
        *(f"ALTER EXTENSION pgcrypto ADD TABLE {name}" for name in ("config_all", "config_some", "member")),
        "UPDATE pg_extension SET extconfig = ARRAY['config_all'::regclass, 'config_some'::regclass]::oid[],"
        " extcondition = ARRAY['', 'WHERE i > 5'] WHERE extname = 'pgcrypto'",
    ):
        database.query(statement)
    outcome = take_backup(connection_of(database), request_for(tmp_path))
    tables = {table["name"]: (table["data"], table["rows"]) for table in read_manifest(outcome.backup["path"]).tables}
    assert tables == {"config_all": ("all", 5), "config_some": ("filtered", 9), "member": ("none", None)}
    verified = next(item for item in outcome.evidence if item.criterion == "backup.verified")
    assert verified.measured["rows"] == 5 + 4


# --- what community.postgresql gets wrong ------------------------------------------------------------------------


def small_file_system(path):
    path.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "none", str(path)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("cannot mount a small tmpfs: not root, or mounting is not allowed here")


def test_a_full_disk_is_a_clean_failure(filled, tmp_path):
    dest = tmp_path / "small"
    small_file_system(dest)
    try:
        take_backup(connection_of(filled), request_for(dest, run_id="before"))
        kept = tree_state(dest)
        # Random bytes: about 2.3 MB in the table and in the compressed dump, so half of it fits and the whole does not.
        filled.query("CREATE TABLE noise AS SELECT gen_random_bytes(1000) AS b FROM generate_series(1, 2300)")
        with pytest.raises(BackupError) as caught:
            take_backup(connection_of(filled), request_for(dest, run_id="after"))
        assert "No space left on device" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(everything(dest)) == 1
        assert tree_state(dest) == kept
    finally:
        subprocess.run(["umount", str(dest)], check=True)


def test_a_limit_on_file_size_is_a_clean_failure(filled, tmp_path):
    params = {**filled.params, "dest": str(tmp_path), "min_free": "0"}
    first = run_module({**params, "run_id": "before"})
    kept = tree_state(first["backup"]["path"])
    filled.query("CREATE TABLE noise AS SELECT gen_random_bytes(1000) AS b FROM generate_series(1, 1000)")
    result = run_module({**params, "run_id": "after"}, file_size_limit=200_000)
    assert result["failed"] and not result["changed"]
    assert "\n" not in result["msg"]
    assert verdicts(result)["backup.created"] == "fail"
    assert everything(tmp_path) == [first["backup"]["name"]]
    assert tree_state(first["backup"]["path"]) == kept


def test_too_little_room_is_noticed_before(filled, tmp_path):
    with pytest.raises(EnvironmentProblem, match="not enough room") as caught:
        take_backup(connection_of(filled), request_for(tmp_path, min_free=2**60))
    assert "must stay free" in str(caught.value) and "Free room there" in str(caught.value)
    assert everything(tmp_path) == []


def test_a_wrong_database_name_leaves_the_earlier_backup_alone(filled, tmp_path):
    take_backup(connection_of(filled), request_for(tmp_path))
    kept = tree_state(tmp_path)
    with pytest.raises(SurefootError, match="does not exist"):
        take_backup(connection_of(filled).with_database("nosuch"), request_for(tmp_path))
    assert tree_state(tmp_path) == kept


def test_tls_options_are_honoured(pg_server, filled, tmp_path):
    params = {
        "login_host": "127.0.0.1",
        "login_port": pg_server.port,
        "login_user": "postgres",
        "login_password": pg_server.password,
        "login_db": filled.name,
        "dest": str(tmp_path),
        "ssl_mode": "verify-full",
        "ca_cert": "/etc/ssl/certs/ca-certificates.crt",
    }
    result = run_module(params)
    assert result["failed"] and result["error"]["code"] == "connection"
    assert everything(tmp_path) == []
    # And by pg_dump itself, not only by our own connection.
    options = ConnectionOptions.from_params(params)
    with child_environment(options) as environment:
        dumped = subprocess.run(
            [f"{pg_server.bindir}/pg_dump", "--schema-only", "--no-password"],
            env=environment,
            capture_output=True,
            check=False,
        )
    assert dumped.returncode != 0 and dumped.stdout == b""


def test_check_mode_predicts_and_writes_nothing(filled, tmp_path):
    params = {**filled.params, "dest": str(tmp_path / "new" / "dest"), "run_dir": str(tmp_path / "run")}
    result = run_module(params, check_mode=True)
    assert result["changed"] and result["backup"] is None
    assert list(tmp_path.iterdir()) == []


def test_check_mode_refuses_what_a_run_would_refuse(filled, tmp_path):
    filled.query("CREATE ROLE reader LOGIN")
    try:
        for options, more, said in (
            ({}, {"min_free": 2**60}, "not enough room"),
            ({"login_user": "reader"}, {}, "may not read"),
            ({}, {"bindir": str(tmp_path)}, "no usable pg_dump"),
        ):
            with pytest.raises(SurefootError, match=said):
                take_backup(connection_of(filled, **options), request_for(tmp_path / "d", **more), check_mode=True)
        assert list(tmp_path.iterdir()) == []
    finally:
        filled.query("DROP ROLE reader")


def test_modes_do_not_depend_on_the_umask(filled, tmp_path):
    # The process started by run_module has umask 0.
    run_dir = tmp_path / "run"
    params = {**filled.params, "dest": str(tmp_path / "dest"), "run_dir": str(run_dir), "run_id": "r-1"}
    result = run_module(params)
    assert verdicts(result)["backup.stored_securely"] == "pass"
    modes = set()
    for directory, _names, files in os.walk(tmp_path / "dest"):
        modes.add(("directory", stat.S_IMODE(os.stat(directory).st_mode)))
        modes |= {("file", stat.S_IMODE(os.stat(os.path.join(directory, file)).st_mode)) for file in files}
    assert modes == {("directory", 0o700), ("file", 0o600)}
    lines = [json.loads(line) for line in (run_dir / "evidence.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("previous") for line in lines)
    assert lines == result["evidence"]
    anchors = {item["details"].get("manifest_sha256") for item in result["evidence"]} - {None}
    assert anchors == {result["backup"]["manifest_sha256"]}


def test_the_password_is_nowhere_to_be_seen(pg_server, slow_database, tmp_path, monkeypatch):
    password = pg_server.password
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    params = {
        "login_url": f"postgresql://postgres:{password}@127.0.0.1:{pg_server.port}/{slow_database.name}",
        "dest": str(tmp_path / "dest"),
        "run_dir": str(tmp_path / "run"),
        **SLOW,
    }
    process = start_module(params)
    seen = set()
    passfiles = set()
    while process.poll() is None:
        for path in tmp_path.rglob("surefoot-pass-*"):
            with contextlib.suppress(FileNotFoundError):
                passfiles.add(path.stat().st_mode & 0o777)
        family = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(ppid) for pid, ppid in (line.split() for line in family.splitlines())}
        mine = {process.pid}
        for _generation in range(4):
            mine |= {pid for pid, ppid in parents.items() if ppid in mine}
        for pid in mine:
            for kind in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    content = pathlib.Path(f"/proc/{pid}/{kind}").read_bytes()
                    assert password.encode() not in content, (pid, kind)
                    if content.split(b"\0")[0].endswith(b"/pg_dump"):
                        seen.add(pid)
    assert passfiles == {0o600}
    assert len(seen) >= 2  # the leader and its worker were looked at
    output, errors = process.communicate()
    assert not json.loads(output).get("failed")
    assert password not in output + errors
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert password.encode() not in path.read_bytes(), path
    assert [path.name for path in scratch.iterdir() if "surefoot" in path.name] == []


def test_a_wrong_password_is_one_line_without_it(pg_server, filled, tmp_path):
    params = {
        "login_url": f"postgresql://postgres:wrong-Secret-1@127.0.0.1:{pg_server.port}/{filled.name}",
        "dest": str(tmp_path),
    }
    result = run_module(params)
    assert result["failed"] and "password" in result["msg"] and "\n" not in result["msg"]
    assert "wrong-Secret-1" not in json.dumps(result)


# --- being stopped -----------------------------------------------------------------------------------------------


def test_a_killed_pg_dump_leaves_nothing(slow_database, tmp_path):
    process = start_module({**slow_database.params, "dest": str(tmp_path), **SLOW})
    wait_for(lambda: writing(tmp_path))
    os.kill(dumps_into(tmp_path)[0], signal.SIGKILL)
    result = json.loads(process.communicate(timeout=30)[0])
    assert result["failed"] and "killed by SIGKILL" in result["msg"]
    assert everything(tmp_path) == []
    wait_for(lambda: not dumps_into(tmp_path))


def test_a_lost_connection_leaves_nothing(slow_database, tmp_path):
    process = start_module({**slow_database.params, "dest": str(tmp_path), **SLOW})
    wait_for(lambda: writing(tmp_path))
    slow_database.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'surefoot:backup-snapshot'"
    )
    result = json.loads(process.communicate(timeout=60)[0])
    assert result["failed"] and not result["changed"]
    assert everything(tmp_path) == []


def test_an_interrupted_module_stops_pg_dump_and_leaves_nothing(slow_database, tmp_path):
    process = start_module({**slow_database.params, "dest": str(tmp_path), **SLOW})
    wait_for(lambda: writing(tmp_path))
    process.send_signal(signal.SIGTERM)
    result = json.loads(process.communicate(timeout=30)[0])
    assert result["failed"] and result["error"]["code"] == "interrupted" and "SIGTERM" in result["msg"]
    assert everything(tmp_path) == []
    assert dumps_into(tmp_path) == []
    wait_for(
        lambda: (
            slow_database.scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            == 0
        )
    )


def test_what_a_killed_module_leaves_is_removed_by_the_next_run(pg_server, slow_database, tmp_path):
    url = f"postgresql://postgres:{pg_server.password}@127.0.0.1:{pg_server.port}/{slow_database.name}"
    process = start_module({"login_url": url, "dest": str(tmp_path), **SLOW})
    wait_for(lambda: writing(tmp_path))
    assert glob.glob(f"{tmp_path}/.*.partial/surefoot-pass-*")  # not in TMPDIR, where it would stay
    process.kill()
    process.communicate()
    assert visible(tmp_path) == [] and glob.glob(f"{tmp_path}/.*.partial")
    if shutil.which("setpriv"):
        wait_for(lambda: not dumps_into(tmp_path))
    else:  # without it pg_dump runs to its end
        wait_for(lambda: not dumps_into(tmp_path), 60)
    outcome = take_backup(connection_of(slow_database), request_for(tmp_path, hashes="counts", verify="files"))
    assert ["killed run" in text for text in outcome.warnings] == [True]
    assert everything(tmp_path) == [outcome.backup["name"]]


def test_a_running_backup_is_not_swept_by_another(slow_database, filled, tmp_path):
    process = start_module({**slow_database.params, "dest": str(tmp_path), **SLOW})
    wait_for(lambda: writing(tmp_path))
    other = take_backup(connection_of(filled), request_for(tmp_path))
    assert other.warnings == []
    first = json.loads(process.communicate(timeout=60)[0])
    assert not first.get("failed")
    assert everything(tmp_path) == sorted([first["backup"]["name"], other.backup["name"]])


def test_a_table_that_cannot_be_locked_is_reported_after_the_timeout(filled, tmp_path):
    with contextlib.closing(filled.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SurefootError, match="lock timeout") as caught:
            take_backup(connection_of(filled), request_for(tmp_path, lock_timeout=0.2))
    assert "raise lock_timeout" in str(caught.value)
    assert everything(tmp_path) == []


# --- damage ------------------------------------------------------------------------------------------------------


def damage(chance, path, other):
    """One random damage to a backup; returns what it was."""
    dump = os.path.join(path, "dump")
    files = sorted(os.path.join(dump, name) for name in os.listdir(dump))
    file = chance.choice([*files, os.path.join(path, "manifest.json")])
    kind = chance.choice(["flip", "cut", "grow", "delete", "swap", "exchange", "add", "zero"])
    with open(file, "rb") as stream:
        content = bytearray(stream.read())
    if kind == "flip" and content:
        position = chance.randrange(len(content))
        content[position] ^= 1 << chance.randrange(8)
    elif kind == "cut" and content:
        del content[chance.randrange(len(content)) :]
    elif kind == "zero" and any(content):
        position = next(index for index, byte in enumerate(content) if byte)
        content[position : position + 512] = bytes(len(content[position : position + 512]))
    elif kind == "delete":
        os.unlink(file)
        return kind, file
    elif kind == "swap":
        first, second = chance.sample(files, 2)
        with open(first, "rb") as one, open(second, "rb") as two:
            if one.read() == two.read():
                return damage(chance, path, other)
        os.rename(first, first + ".x")
        os.rename(second, first)
        os.rename(first + ".x", second)
        return kind, first
    elif kind == "exchange":
        # A file of another run, under the same name.
        name = os.path.relpath(file, path)
        source = os.path.join(other, name)
        if not os.path.exists(source) or pathlib.Path(source).read_bytes() == bytes(content):
            return damage(chance, path, other)
        shutil.copyfile(source, file)
        return kind, file
    elif kind == "add":
        pathlib.Path(chance.choice([dump, path]), "9999.dat.gz").write_bytes(b"")
        return kind, path
    else:
        content += bytes([chance.randrange(256)])
    with open(file, "wb") as stream:
        stream.write(content)
    return kind, file


def test_two_hundred_random_damages_are_all_noticed(filled, tmp_path):
    first = take_backup(connection_of(filled), request_for(tmp_path / "a")).backup
    filled.query("UPDATE users SET name = name || 'x'")
    second = take_backup(connection_of(filled), request_for(tmp_path / "a")).backup
    chance = random.Random(200)
    kinds = set()
    for number in range(200):
        copy = str(tmp_path / f"copy-{number}")
        shutil.copytree(first["path"], copy)
        kind, file = damage(chance, copy, second["path"])
        kinds.add(kind)
        with pytest.raises(BackupError):
            verify_backup(copy, first["manifest_sha256"], request_for(""))
            pytest.fail(f"damage {number} was accepted: {kind} {file}")
        shutil.rmtree(copy)
    assert kinds == {"flip", "cut", "grow", "delete", "swap", "exchange", "add", "zero"}
    assert not verify_backup(first["path"], first["manifest_sha256"], request_for("")).changed


def reseal(path, change=None):
    """Rewrite the manifest to match what lies in the directory; returns its new hash."""
    manifest = read_manifest(path)
    data = dict(manifest.data)
    dump = os.path.join(path, "dump")
    hashes = {name: _pgdump._hash_file(os.path.join(dump, name)) for name in os.listdir(dump)}
    data["files"] = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in hashes.items()}
    if change:
        change(data)
    data["digest"] = _pgdump._digest(data)
    with open(manifest.path, "wb") as stream:
        stream.write(_pgdump._canonical(data))
    return read_manifest(path).sha256


def test_a_manifest_rewritten_to_match_the_damage_is_refused(filled, tmp_path):
    backup = take_backup(connection_of(filled), request_for(tmp_path)).backup
    largest = max(glob.glob(f"{backup['path']}/dump/[0-9]*.dat*"), key=os.path.getsize)
    os.unlink(largest)
    reseal(backup["path"])
    result = run_module({"state": "verified", "path": backup["path"], "manifest_sha256": backup["manifest_sha256"]})
    assert result["failed"] and "not the manifest that was written" in result["msg"]
    assert verdicts(result) == {"backup.verified": "fail"}


def test_data_that_cannot_be_read_is_noticed_even_if_every_hash_fits(filled, tmp_path):
    backup = take_backup(connection_of(filled), request_for(tmp_path)).backup
    largest = pathlib.Path(max(glob.glob(f"{backup['path']}/dump/[0-9]*.dat*"), key=os.path.getsize))
    content = largest.read_bytes()
    for damaged in (content[: len(content) // 2], content[:2000] + bytes(500) + content[2500:], b""):
        largest.write_bytes(damaged)
        with pytest.raises(BackupError):
            verify_backup(backup["path"], reseal(backup["path"]), request_for(""))
    largest.write_bytes(content)
    verify_backup(backup["path"], reseal(backup["path"]), request_for(""))


def test_a_table_missing_from_the_dump_is_noticed(filled, pg_server, tmp_path):
    backup = take_backup(connection_of(filled), request_for(tmp_path)).backup
    dump = os.path.join(backup["path"], "dump")
    command = [f"{pg_server.bindir}/pg_dump", "--format=directory", f"--file={dump}", f"--dbname={filled.dsn}", "-Z1"]
    for option, said in (
        ("--exclude-table=public.empty", r"lacks public\.empty"),
        ("--exclude-table-data=public.users", r"lacks public\.users"),
        ("--exclude-table=public.used", r"lacks public\.used"),
    ):
        shutil.rmtree(dump)
        subprocess.run([*command, option], check=True)
        with pytest.raises(BackupError, match=said):
            verify_backup(backup["path"], reseal(backup["path"]), request_for("", verify="files"))


def test_a_row_missing_from_the_dump_is_noticed(filled, pg_server, tmp_path):
    backup = take_backup(connection_of(filled), request_for(tmp_path)).backup
    dump = os.path.join(backup["path"], "dump")
    shutil.rmtree(dump)
    filled.query("DELETE FROM users WHERE id = 77")
    command = [f"{pg_server.bindir}/pg_dump", "--format=directory", f"--file={dump}", f"--dbname={filled.dsn}"]
    subprocess.run(command, check=True)
    with pytest.raises(BackupError, match=r"public\.users \(2999 instead of 3000 rows\)"):
        verify_backup(backup["path"], reseal(backup["path"]), request_for(""))


def test_an_intact_backup_verifies_without_a_database(filled, tmp_path):
    backup = take_backup(connection_of(filled), request_for(tmp_path)).backup
    for path in (backup["path"], backup["manifest"]):
        result = run_module({"state": "verified", "path": path, "manifest_sha256": backup["manifest_sha256"]})
        assert not result["changed"] and not result.get("failed")
        assert result["backup"]["id"] == backup["id"]
        assert verdicts(result)["backup.verified"] == "pass"


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_client_older_than_the_server_is_refused(filled, pg_server, tmp_path):
    # FAKE: programs that only print an old version.
    for name in ("pg_dump", "pg_restore"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 13.4'\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    result = run_module({**filled.params, "dest": str(tmp_path / "d"), "bindir": str(tmp_path)})
    major = pg_server.version // 10000
    assert result["failed"]
    assert f"older than the server (PostgreSQL {major}): found 13.4 in {tmp_path}" in result["msg"]
    assert everything(tmp_path / "d") == []


@pytest.fixture
def reader(filled):
    filled.query("CREATE ROLE reader LOGIN")
    yield filled
    filled.query("DROP OWNED BY reader")
    filled.query("DROP ROLE reader")


def test_tables_the_role_may_not_read_are_named_with_the_remedy(reader, tmp_path):
    with pytest.raises(BackupError, match=r"role reader may not read We ird\.a\?COPY x .*public\.") as caught:
        take_backup(connection_of(reader, login_user="reader"), request_for(tmp_path))
    assert "GRANT pg_read_all_data" in str(caught.value)
    reader.query("GRANT pg_read_all_data TO reader")
    reader.query("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")  # pg_read_all_data does not cover them
    assert (
        verdicts(take_backup(connection_of(reader, login_user="reader"), request_for(tmp_path)))["backup.verified"]
        == "pass"
    )


def test_what_only_pg_dump_notices_is_one_line_too(reader, tmp_path):
    reader.query("GRANT pg_read_all_data TO reader")
    if reader.server.version >= 190000:
        pytest.skip("pg_read_all_data covers large objects")
    with pytest.raises(BackupError, match="pg_dump failed: .*permission denied for large object") as caught:
        take_backup(connection_of(reader, login_user="reader"), request_for(tmp_path))
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == []


def test_rows_hidden_by_row_level_security_are_refused_with_the_remedy(reader, tmp_path):
    reader.query("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    reader.query("GRANT pg_read_all_data TO reader")
    reader.query("ALTER TABLE days ENABLE ROW LEVEL SECURITY")  # its partitions are what is dumped
    reader.query("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    options = connection_of(reader, login_user="reader")
    with pytest.raises(BackupError, match=r"hides rows of public\.users from the role reader") as caught:
        take_backup(options, request_for(tmp_path))
    assert "BYPASSRLS" in str(caught.value)
    reader.query("ALTER TABLE users OWNER TO reader")
    assert take_backup(options, request_for(tmp_path, run_id="owner")).changed
    reader.query("ALTER TABLE users FORCE ROW LEVEL SECURITY")
    with pytest.raises(BackupError, match="hides rows"):
        take_backup(options, request_for(tmp_path))
    reader.query("ALTER ROLE reader BYPASSRLS")
    assert take_backup(options, request_for(tmp_path, run_id="bypass")).changed
    reader.query("ALTER TABLE users OWNER TO postgres")


def test_the_session_role_is_what_reads(reader, tmp_path):
    with pytest.raises(BackupError, match="role reader may not read"):
        take_backup(connection_of(reader, session_role="reader"), request_for(tmp_path))
    reader.query("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    reader.query("GRANT pg_read_all_data TO reader")
    outcome = take_backup(connection_of(reader, session_role="reader"), request_for(tmp_path))
    assert read_manifest(outcome.backup["path"]).data["taken_as"] == "reader"


def test_a_name_that_is_taken_is_refused(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(_pgdump, "utc_now", lambda: "2026-11-22T00:00:00.000Z")
    first = take_backup(connection_of(filled), request_for(tmp_path, run_id="same"))
    kept = tree_state(tmp_path)
    with pytest.raises(BackupError, match="exists already"):
        take_backup(connection_of(filled), request_for(tmp_path, run_id="same"))
    assert tree_state(tmp_path) == kept
    assert everything(tmp_path) == [first.backup["name"]]


def test_a_bad_option_is_refused_before_connecting(tmp_path):
    for params in ({"min_free": "lots"}, {"max_age": "soon"}, {"keep": 0}, {"jobs": 0}):
        result = run_module({"login_host": "/nonexistent", "dest": str(tmp_path / "d"), **params})
        assert result["failed"] and result["error"]["code"] == "plan", params
    with pytest.raises(PlanError, match="is not a compression"):
        _pgdump.choose_compression("rar", _pgdump.find_client(14))


# --- reuse, retention, copies ------------------------------------------------------------------------------------


def test_a_young_intact_backup_is_used_again(filled, tmp_path):
    def run(**more):
        return take_backup(connection_of(filled), request_for(tmp_path, **{"max_age": 3600.0, **more}))

    first = run(hashes="counts", run_id="1")
    again = run(hashes="counts", run_id="2")
    assert (first.changed, again.changed) == (True, False)
    assert again.backup == {**first.backup, "reused": True}
    assert verdicts(again)["backup.verified"] == "pass"
    full = run(run_id="3")
    assert full.changed, "an earlier backup without hashes does not do when hashes are wanted"
    assert not run(run_id="4", hashes="counts").changed
    assert run(run_id="5", max_age=0.0).changed


def test_a_damaged_backup_is_not_used_again(filled, tmp_path):
    request = request_for(tmp_path, max_age=3600.0, run_id="1")
    first = take_backup(connection_of(filled), request)
    largest = pathlib.Path(max(glob.glob(f"{first.backup['path']}/dump/[0-9]*.dat*"), key=os.path.getsize))
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    second = take_backup(connection_of(filled), request_for(tmp_path, max_age=3600.0, run_id="2"))
    assert second.changed and second.backup["name"] != first.backup["name"]
    assert ["not reused" in text and "was changed" in text for text in second.warnings] == [True]


def test_a_backup_of_another_database_of_the_same_name_is_not_used(pg_server, filled, tmp_path):
    take_backup(connection_of(filled), request_for(tmp_path, run_id="1"))
    with contextlib.closing(pg_server.connect()) as admin, admin.cursor() as cursor:
        cursor.execute(f'DROP DATABASE "{filled.name}"')
        cursor.execute(f'CREATE DATABASE "{filled.name}"')
    assert take_backup(connection_of(filled), request_for(tmp_path, max_age=3600.0, keep=1, run_id="2")).changed
    assert len(visible(tmp_path)) == 2


def test_retention_keeps_the_newest_of_this_database_only(pg_server, filled, tmp_path):
    with temporary_database(pg_server) as other:
        foreign = take_backup(connection_of(other), request_for(tmp_path, run_id="other")).backup
    names = [take_backup(connection_of(filled), request_for(tmp_path, run_id=f"r{n}")).backup["name"] for n in range(4)]
    toc = tmp_path / names[0] / "dump" / "toc.dat"
    toc.unlink()
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    outcome = take_backup(connection_of(filled), request_for(tmp_path, run_id="new", keep=2))
    assert sorted(outcome.removed) == sorted(str(tmp_path / name) for name in names[1:3])
    # The damaged one is left for somebody to look at, and nothing that is not ours was touched.
    assert everything(tmp_path) == sorted([names[0], names[3], outcome.backup["name"], foreign["name"], "notes.txt"])
    assert any("neither counted nor removed" in text for text in outcome.warnings)
    assert take_backup(connection_of(filled), request_for(tmp_path, run_id="days", keep_days=1.0)).removed == []


def test_a_failed_backup_removes_no_earlier_one(filled, tmp_path):
    take_backup(connection_of(filled), request_for(tmp_path, run_id="1"))
    kept = visible(tmp_path)
    with contextlib.closing(filled.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SurefootError):
            take_backup(connection_of(filled), request_for(tmp_path, keep=1, lock_timeout=0.1))
    assert visible(tmp_path) == kept


def test_the_copy_command_gets_its_words_unchanged_and_no_shell(filled, tmp_path):
    script = tmp_path / "copy"
    script.write_text(f'#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done > {tmp_path}/words\n', encoding="utf-8")
    script.chmod(0o755)
    dest = tmp_path / "d"
    command = [str(script), "$(touch pwned); a b", "{manifest}", "s3://bucket/{name}", "{other}"]
    outcome = take_backup(connection_of(filled), request_for(dest, copy_to=command))
    backup = outcome.backup
    expected = ["$(touch pwned); a b", backup["manifest"], f"s3://bucket/{backup['name']}", "{other}"]
    assert (tmp_path / "words").read_text(encoding="utf-8").splitlines() == expected
    assert verdicts(outcome)["backup.off_host_copy"] == "pass"
    take_backup(connection_of(filled), request_for(dest, copy_to=[str(script)], run_id="last"))
    assert (tmp_path / "words").read_text(encoding="utf-8").strip().endswith("-last")


def test_a_failed_copy_fails_the_task_and_keeps_every_backup(filled, tmp_path):
    take_backup(connection_of(filled), request_for(tmp_path / "d", run_id="1"))
    script = tmp_path / "copy"
    script.write_text("#!/bin/sh\necho 'denied for postgresql://u:hunter22@h/db' >&2\nexit 3\n", encoding="utf-8")
    script.chmod(0o755)
    params = {**filled.params, "dest": str(tmp_path / "d"), "keep": 1, "run_id": "2"}
    for command, said in ((str(script), "exit code 3: denied"), ("/nonexistent/copy", "cannot start")):
        result = run_module({**params, "copy_to": [command], "run_id": said[:9].replace(" ", "")})
        assert result["failed"] and result["changed"] and said in result["msg"]
        assert "hunter22" not in json.dumps(result)
        assert verdicts(result)["backup.off_host_copy"] == "fail" and verdicts(result)["backup.verified"] == "pass"
        assert os.path.isdir(result["backup"]["path"])
    assert len(visible(tmp_path / "d")) == 3


def test_tables_that_come_and_go_do_not_break_a_backup(filled, tmp_path):
    stop = threading.Event()

    def churn():
        with contextlib.closing(filled.connect()) as connection, connection.cursor() as cursor:
            number = 0
            while not stop.wait(0.02):
                number += 1
                cursor.execute(f"CREATE TABLE churn_{number} AS SELECT 1 AS i")
                with contextlib.suppress(psycopg2.errors.LockNotAvailable):
                    cursor.execute("SET lock_timeout = '200ms'")
                    cursor.execute(f"DROP TABLE churn_{number}")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for number in range(3):
            assert take_backup(connection_of(filled), request_for(tmp_path, run_id=f"c{number}")).changed
    finally:
        stop.set()
        thread.join()
