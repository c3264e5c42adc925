# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fcntl
import hashlib
import os
import random
import stat
import subprocess

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _pgdump
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import BackupError, EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    BackupRequest,
    Client,
    CopyRowCounter,
    choose_compression,
    expired,
    find_client,
    list_backups,
    prepare_destination,
    read_manifest,
    storage_problems,
    verify_files,
)


def make_backup(
    dest, name="app-20261122T000000Z-r1", created="2026-11-22T00:00:00.000Z", files=None, system_identifier="7", **more
):
    """A directory with our form; its dump is not one pg_restore could read."""
    directory = dest / name
    (directory / "dump").mkdir(parents=True)
    contents = files if files is not None else {"toc.dat": b"toc", "1.dat.gz": b"rows of table one"}
    for file, content in contents.items():
        if "/" not in file and file != "..":
            (directory / "dump" / file).write_bytes(content)
    data = {
        "format": _pgdump.MANIFEST_FORMAT,
        "name": name,
        "created": created,
        "database": {"system_identifier": system_identifier, "oid": 5, "name": "app"},
        "files": {
            file: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for file, content in contents.items()
        },
        "tables": [],
        **more,
    }
    data["digest"] = _pgdump._digest(data)
    (directory / "manifest.json").write_bytes(_pgdump._canonical(data))
    return read_manifest(str(directory))


def fake_client(directory, version, program=None):
    """FAKE: scripts that only print a version."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("pg_dump", "pg_restore"):
        path = directory / name
        path.write_text(program or f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n", encoding="utf-8")
        path.chmod(0o755)
    return str(directory)


# --- counting rows -----------------------------------------------------------------------------------------------

STREAM = (
    b"--\n-- Data for Name: x FROM stdin;\n--\nSET a = 1;\n\n"
    b"COPY public.users (id, name) FROM stdin;\n1\tAnna\n2\t\\\\.\n3\tline\\nbreak\n\\.\n\n"
    b"COPY public.empty (id) FROM stdin;\n\\.\n\n"
    b'COPY public."two\nlines" (a) FROM stdin;\n' + b"x" * 5000 + b"\n\\N\n\\.\n\n"
    b"COPY public.nothing  FROM stdin;\n\n\n\\.\n\nSELECT pg_catalog.setval('s', 3, true);\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 100000])
def test_rows_are_counted_whatever_the_size_of_the_pieces(size):
    counter = CopyRowCounter()
    for start in range(0, len(STREAM), size):
        counter.feed(STREAM[start : start + size])
    assert counter.counts == [3, 0, 2, 2]
    assert counter.complete
    assert counter.bytes == len(STREAM)


def test_rows_are_counted_in_pieces_of_random_sizes():
    chance = random.Random(6)
    for _round in range(300):
        counter = CopyRowCounter()
        position = 0
        while position < len(STREAM):
            size = chance.choice([1, 2, 3, 10, 100, 3000])
            counter.feed(STREAM[position : position + size])
            position += size
        assert counter.counts == [3, 0, 2, 2]


def test_a_cut_stream_is_not_complete():
    counter = CopyRowCounter()
    counter.feed(STREAM[: STREAM.index(b"3\tline")])
    assert not counter.complete


def test_a_long_row_is_not_kept_in_memory():
    counter = CopyRowCounter()
    counter.feed(b"COPY t (a) FROM stdin;\n")
    for _piece in range(50):
        counter.feed(b"x" * 1000)
        assert len(counter._rest) < 10
    counter.feed(b"\n\\.\n")
    assert counter.counts == [1]
    assert counter.complete


# --- client programs ---------------------------------------------------------------------------------------------


def test_the_nearest_version_that_is_new_enough_is_chosen_and_its_newest_minor(tmp_path, monkeypatch):
    for name, version in (("a", "14.9"), ("b", "16.2"), ("c", "16.4"), ("d", "18.1"), ("e", "17beta2")):
        fake_client(tmp_path / name, version)
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", str(tmp_path / "*"))
    assert find_client(15).version_text == "16.4"
    assert find_client(14).version_text == "14.9"
    assert find_client(17).version_text == "17beta2"


def test_a_client_older_than_the_server_is_refused_and_named(tmp_path):
    bindir = fake_client(tmp_path / "old", "13.5")
    with pytest.raises(EnvironmentProblem) as caught:
        find_client(15, bindir)
    assert f"found 13.5 in {bindir}" in str(caught.value)
    assert "postgresql-client-15" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_debians_wrapper_is_not_taken_for_a_client(tmp_path, monkeypatch):
    real = fake_client(tmp_path / "lib" / "15", "15.3")
    wrapper = tmp_path / "share" / "pg_wrapper"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 18.0'\n", encoding="utf-8")
    wrapper.chmod(0o755)
    (tmp_path / "bin").mkdir()
    for name in ("pg_dump", "pg_restore"):
        (tmp_path / "bin" / name).symlink_to(wrapper)
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", f"{tmp_path / 'bin'}:{tmp_path / 'lib' / '*'}")
    assert find_client(14).bindir == real


def test_the_wrapper_named_as_bindir_leads_to_the_versions_behind_it(tmp_path, monkeypatch):
    real = fake_client(tmp_path / "lib" / "15" / "bin", "15.3")
    (tmp_path / "bin").mkdir()
    (tmp_path / "pg_wrapper").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "pg_wrapper").chmod(0o755)
    (tmp_path / "bin" / "pg_dump").symlink_to(tmp_path / "pg_wrapper")
    monkeypatch.setattr(_pgdump, "_CLIENT_DIRECTORIES", (str(tmp_path / "lib" / "*" / "bin"),))
    assert find_client(14, str(tmp_path / "bin")).bindir == real


def test_a_link_to_a_client_leads_to_its_siblings(tmp_path, monkeypatch):
    real = fake_client(tmp_path / "pgsql", "15.3")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pg_dump").symlink_to(tmp_path / "pgsql" / "pg_dump")
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", str(tmp_path / "bin"))
    assert find_client(15).bindir == real


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("#!/bin/sh\necho no shared library >&2; exit 127\n", "no shared library"),
        ("#!/nonexistent/sh\n", "cannot be run"),
    ],
)
def test_a_client_that_does_not_run_is_named_with_its_reason(tmp_path, program, said):
    bindir = fake_client(tmp_path / "broken", "15", program)
    with pytest.raises(EnvironmentProblem, match=said):
        find_client(15, bindir)


def test_a_bindir_without_programs_is_an_error(tmp_path):
    with pytest.raises(EnvironmentProblem, match="no pg_dump in"):
        find_client(15, str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="no usable pg_dump"):
        find_client(15, str(tmp_path / "missing"))


def test_pg_dump_and_pg_restore_of_different_versions_are_no_client(tmp_path):
    bindir = fake_client(tmp_path, "15.3")
    (tmp_path / "pg_restore").write_text("#!/bin/sh\necho 'pg_restore (PostgreSQL) 14.1'\n", encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match="different versions"):
        find_client(15, bindir)


OLD = Client("/nowhere", 150003, "15.3")


@pytest.mark.parametrize(
    ("wanted", "chosen", "argument"),
    [
        ("auto", "gzip:1", "--compress=1"),
        ("none", "none", "--compress=0"),
        ("gzip", "gzip:1", "--compress=1"),
        ("gzip:9", "gzip:9", "--compress=9"),
    ],
)
def test_compression_before_version_16_is_a_bare_gzip_level(wanted, chosen, argument):
    assert choose_compression(wanted, OLD) == chosen
    assert _pgdump._compression_argument(chosen, OLD) == argument


@pytest.mark.parametrize("chosen", ["none", "gzip:1", "lz4:1", "zstd:3"])
def test_compression_since_version_16_is_named(chosen):
    assert _pgdump._compression_argument(chosen, Client("/nowhere", 160000, "16.0")) == f"--compress={chosen}"


@pytest.mark.parametrize("wanted", ["gzip:0", "gzip:10", "bzip2", "zstd:23", "lz4:13", "gzip:", "", "gzip:1; rm -rf /"])
def test_nonsense_compressions_are_refused(wanted):
    with pytest.raises(PlanError, match="is not a compression"):
        choose_compression(wanted, OLD)


@pytest.mark.parametrize("wanted", ["lz4", "zstd:1"])
def test_a_client_too_old_for_a_compression_is_refused(wanted):
    with pytest.raises(EnvironmentProblem, match="cannot compress with"):
        choose_compression(wanted, OLD)


def test_auto_takes_what_the_client_was_built_with(tmp_path):
    # FAKE: refuses zstd in the words of pg_dump 16, and fails to connect otherwise.
    program = (
        '#!/bin/sh\ncase "$*" in\n'
        '*zstd*) echo "pg_dump: error: this build does not support compression with Zstandard" >&2;;\n'
        '*) echo "pg_dump: error: connection to server on socket failed" >&2;; esac\nexit 1\n'
    )
    client = Client(fake_client(tmp_path, "16.0", program), 160000, "16.0")
    assert choose_compression("auto", client) == "lz4:1"
    assert choose_compression("lz4:3", client) == "lz4:3"
    with pytest.raises(EnvironmentProblem, match="built without zstd"):
        choose_compression("zstd", client)


# --- manifest and files ------------------------------------------------------------------------------------------


def test_every_changed_byte_of_a_manifest_is_noticed(tmp_path):
    manifest = make_backup(tmp_path)
    with open(manifest.path, "rb") as stream:
        raw = stream.read()
    for position in range(len(raw)):
        for change in (0x01, 0x20, 0x80):
            damaged = bytearray(raw)
            damaged[position] ^= change
            with open(manifest.path, "wb") as stream:
                stream.write(damaged)
            with pytest.raises(BackupError, match=r"damaged|format"):
                read_manifest(manifest.path)


@pytest.mark.parametrize("addition", [b" ", b"\n", b"\0", b"{}"])
def test_bytes_added_to_a_manifest_are_noticed(tmp_path, addition):
    manifest = make_backup(tmp_path)
    with open(manifest.path, "ab") as stream:
        stream.write(addition)
    with pytest.raises(BackupError, match="damaged"):
        read_manifest(manifest.path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100000, b"\xff\xfe", b"{}\n"])
def test_a_manifest_that_is_none_is_noticed(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BackupError, match="damaged"):
        read_manifest(str(tmp_path))


def test_a_rewritten_manifest_is_noticed_by_the_hash_kept_elsewhere(tmp_path):
    before = make_backup(tmp_path / "a")
    after = make_backup(tmp_path / "b", files={"toc.dat": b"other"})
    os.replace(after.path, before.path)
    assert read_manifest(before.path).sha256 == after.sha256
    with pytest.raises(BackupError, match="not the manifest that was written"):
        read_manifest(before.path, before.sha256)


def test_the_expected_hash_may_be_written_in_capitals(tmp_path):
    manifest = make_backup(tmp_path)
    assert read_manifest(manifest.path, f" {manifest.sha256.upper()}\n").sha256 == manifest.sha256


def test_a_manifest_of_another_format_is_refused(tmp_path):
    with pytest.raises(BackupError, match="has format 1"):
        make_backup(tmp_path, format=1)


@pytest.mark.parametrize("name", ["../manifest.json", "/etc/passwd", "..", "a/b", "a\nb"])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path, name):
    with pytest.raises(BackupError, match="does not write"):
        make_backup(tmp_path, files={name: b"x"})


def test_a_missing_manifest_or_a_link_is_one_line(tmp_path):
    with pytest.raises(BackupError, match="No such file") as caught:
        read_manifest(str(tmp_path / "none"))
    assert "\n" not in str(caught.value)
    manifest = make_backup(tmp_path)
    (tmp_path / "link").symlink_to(manifest.path)
    with pytest.raises(BackupError, match="cannot read"):
        read_manifest(str(tmp_path / "link"))


def test_an_intact_backup_verifies(tmp_path):
    manifest = make_backup(tmp_path)
    assert verify_files(manifest.directory, manifest) == manifest.size == 20


def _unlink(path):
    path.unlink()


def _extra(path):
    path.with_name("2.dat").write_bytes(b"")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    path.write_bytes(b"R" + path.read_bytes()[1:])


def _link(path):
    content = path.read_bytes()
    path.unlink()
    (path.parent.parent / "elsewhere").write_bytes(content)
    path.symlink_to(path.parent.parent / "elsewhere")


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


def _directory(path):
    path.unlink()
    path.mkdir()


def _linked_dump(path):
    os.rename(path.parent, path.parent.with_name("moved"))
    path.parent.symlink_to("moved")


@pytest.mark.parametrize("damage", [_unlink, _extra, _cut, _flip, _link, _fifo, _directory, _linked_dump])
def test_damaged_files_are_noticed(tmp_path, damage):
    manifest = make_backup(tmp_path)
    damage(tmp_path / manifest.data["name"] / "dump" / "1.dat.gz")
    with pytest.raises(BackupError) as caught:
        verify_files(manifest.directory, manifest)
    assert "Do not restore from it" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the directory of backups ------------------------------------------------------------------------------------


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_new_destination_is_private_whatever_the_umask(tmp_path, open_umask):
    dest = prepare_destination(str(tmp_path / "a" / "b"))
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (dest, os.path.dirname(dest))] == [0o700, 0o700]


def test_check_mode_makes_no_destination(tmp_path):
    prepare_destination(str(tmp_path / "a" / "b"), create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_everybody_can_write_to_is_refused_unless_sticky(tmp_path):
    dest = tmp_path / "open"
    dest.mkdir()
    dest.chmod(0o777)
    with pytest.raises(EnvironmentProblem, match="writable for everyone"):
        prepare_destination(str(dest))
    dest.chmod(0o1777)
    assert prepare_destination(str(dest)) == str(dest)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to someone else")
@pytest.mark.parametrize("create", [True, False])
def test_a_destination_of_another_user_is_refused(tmp_path, create):
    dest = tmp_path / "theirs"
    dest.mkdir()
    os.chown(dest, 65534, 65534)
    with pytest.raises(EnvironmentProblem, match="belongs to another user"):
        prepare_destination(str(dest), create=create)


def test_a_destination_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match="is not a directory"):
        prepare_destination(str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match="Not a directory"):
        prepare_destination(str(tmp_path / "file" / "below"))


def test_loose_modes_and_open_parents_are_storage_problems(tmp_path):
    manifest = make_backup(tmp_path / "dest")
    for directory, _names, files in os.walk(tmp_path / "dest"):
        os.chmod(directory, 0o700)
        for file in files:
            os.chmod(os.path.join(directory, file), 0o600)
    assert storage_problems(manifest.directory) == []
    os.chmod(manifest.path, 0o640)
    assert [text.split(" has ")[1][:9] for text in storage_problems(manifest.directory)] == ["mode 0640"]
    os.chmod(manifest.path, 0o600)
    os.chmod(tmp_path / "dest", 0o770)
    assert storage_problems(manifest.directory) == [f"others may write to {tmp_path / 'dest'}"]


@pytest.mark.parametrize(
    ("database", "run_id", "name"),
    [
        ("app", "r1", "app-20261122T010203Z-r1"),
        ("../../etc", "a/b", "_.._etc-20261122T010203Z-a_b"),
        (".hidden", "-x", "hidden-20261122T010203Z-x"),
        ("...", "r", "_-20261122T010203Z-r"),
        ("sch\u00f6n\n", "r", "sch_n_-20261122T010203Z-r"),
        ("d" * 63, "r" * 500, f"{'d' * 63}-20261122T010203Z-{'r' * 100}"),
    ],
)
def test_a_backups_name_is_a_safe_file_name(database, run_id, name):
    assert _pgdump.backup_name(database, "2026-11-22T01:02:03.456Z", run_id) == name


def test_retention_by_count_by_age_and_by_both(tmp_path, monkeypatch):
    backups = [make_backup(tmp_path, f"app-{day}-r", f"2026-11-{day}T00:00:00.000Z") for day in (20, 18, 16, 14)]
    monkeypatch.setattr(
        _pgdump, "backup_age", lambda manifest: (21 - int(manifest.data["name"].split("-")[1])) * 86400.0
    )

    def gone(keep, days):
        return [manifest.data["name"].split("-")[1] for manifest in expired(backups, keep, days)]

    assert gone(None, None) == []
    assert gone(3, None) == ["14"]
    assert gone(None, 4) == ["16", "14"]
    assert gone(3, 4) == ["14"]
    assert gone(1, 6) == ["14"]
    assert gone(9, 1) == []


def test_only_complete_backups_are_listed_newest_first(tmp_path):
    make_backup(tmp_path, "app-1-r", "2026-11-01T00:00:00.000Z")
    make_backup(tmp_path, "app-2-r", "2026-11-02T00:00:00.000Z")
    make_backup(tmp_path, "app-3-r", "2026-11-03T00:00:00.000Z")
    make_backup(tmp_path, ".app-4-r.partial", "2026-11-04T00:00:00.000Z")
    (tmp_path / "app-2-r" / "dump" / "toc.dat").unlink()
    (tmp_path / "notes").mkdir()
    os.rename(tmp_path / "app-3-r", tmp_path / "renamed")
    complete, problems = list_backups(str(tmp_path))
    assert [manifest.data["name"] for manifest in complete] == ["app-1-r"]
    assert [text.split(" is not ")[0] for text in problems] == [str(tmp_path / "app-2-r"), str(tmp_path / "renamed")]


def test_databases_of_a_server_that_hides_its_identity_are_never_the_same(tmp_path):
    database = {"system_identifier": None, "oid": 5, "name": "app"}
    manifest = make_backup(tmp_path, system_identifier=None)
    assert not _pgdump.same_database(manifest, database)
    assert _pgdump.same_database(make_backup(tmp_path, "other"), {**database, "system_identifier": "7"})


def test_leftovers_are_swept_only_when_owner_and_children_are_dead(tmp_path):
    for name in (".dead.partial", ".held.partial", ".old.removed", ".bare.partial", "complete"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x", encoding="utf-8")
    for name in (".dead.lock", ".held.lock", ".lonely.lock"):
        (tmp_path / name).touch()
    with open(tmp_path / ".held.lock", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        child = subprocess.Popen(["sleep", "60"], pass_fds=[held.fileno()])
    try:
        # The owner has let go; its child still holds the lock it inherited.
        assert _pgdump._sweep(str(tmp_path)) == ["bare", "dead", "old"]
        assert sorted(os.listdir(tmp_path)) == [".held.lock", ".held.partial", "complete"]
    finally:
        child.kill()
        child.wait()
    assert _pgdump._sweep(str(tmp_path)) == ["held"]
    assert sorted(os.listdir(tmp_path)) == ["complete"]


@pytest.mark.parametrize(
    "options", [{"jobs": 0}, {"keep": 0}, {"keep_days": 0.0}, {"hash_sample": 0}, {"copy_to": [" "]}]
)
def test_options_without_sense_are_refused(options):
    with pytest.raises(PlanError):
        BackupRequest(dest="x", **options).validate()


@pytest.mark.parametrize(
    ("code", "errors", "said"),
    [
        (1, "pg_dump: error: query failed: ERROR:  permission denied for table t\n", "GRANT pg_read_all_data"),
        (1, "pg_dump: error: could not write to file: No space left on device\n", "Free room"),
        (-9, "", "killed by SIGKILL"),
        (1, "", "exit code 1"),
    ],
)
def test_a_failed_program_is_one_line_with_a_remedy(code, errors, said):
    text = str(_pgdump._program_failed("pg_dump", code, errors))
    assert said in text
    assert "\n" not in text
