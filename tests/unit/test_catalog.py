# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Catalogs as values: digest, filter, difference, and the form the ledger keeps."""

from __future__ import annotations

import hashlib

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import (
    DATABASE_LEVEL,
    KINDS,
    Catalog,
    diff,
    entry_hash,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LedgerError

ENTRIES = {
    "table app.users": "table",
    "column app.users.id": "integer",
    "owner of table app.users": "postgres",
    "comment on column app.users.id": "key",
    "table app.events_2024": "table, partition of app.events",
    "column order app.events_2024": "id, at",
    "grants on table app.events_2024": "r: SELECT",
    "security label selinux on table app.events_2024": "x",
    'table app."a b"': "table",
    "owner of this database": "postgres",
    "setting work_mem": "5MB",
}


def remaining(*patterns: str) -> set[str]:
    return set(Catalog.of(ENTRIES).filter(patterns))


def test_digest_is_the_documented_one() -> None:
    lines = sorted(
        f"{identity}\t{hashlib.sha256(text.encode()).hexdigest()[:16]}" for identity, text in ENTRIES.items()
    )
    assert Catalog.of(ENTRIES).digest == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_digest_does_not_depend_on_the_order_of_entries() -> None:
    assert Catalog.of(dict(reversed(ENTRIES.items()))).digest == Catalog.of(ENTRIES).digest


def test_digest_sorts_by_bytes_beyond_ascii() -> None:
    # By UTF-16 units the second would come first.
    catalog = Catalog.of({"table \uffee": "table", "table \U00010000": "table"})
    lines = [f"{name}\t{entry_hash('table')}".encode() for name in ("table \uffee", "table \U00010000")]
    assert catalog.digest == hashlib.sha256(b"\n".join(lines)).hexdigest()


def test_empty_catalog_has_the_digest_of_nothing() -> None:
    assert Catalog.of({}).digest == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("table app.users", {"table app.users"}),
        ("app.users", {"table app.users", "owner of table app.users"}),
        (
            "app.users*",
            {"table app.users", "column app.users.id", "owner of table app.users", "comment on column app.users.id"},
        ),
        (
            "app.events_20??",
            {
                "table app.events_2024",
                "column order app.events_2024",
                "grants on table app.events_2024",
                "security label selinux on table app.events_2024",
            },
        ),
        ("comment on *", {"comment on column app.users.id"}),
        ("appXusers", set()),
        ("app.user", set()),
        ('app."a b"', {'table app."a b"'}),
        ("app.[eu]*", set()),
        ("setting *", {"setting work_mem"}),
    ],
)
def test_pattern_matches_the_identity_or_the_name(pattern: str, gone: set[str]) -> None:
    assert set(ENTRIES) - remaining(pattern) == gone


def test_several_patterns_add_up_and_none_leaves_all() -> None:
    assert remaining() == set(ENTRIES)
    assert set(ENTRIES) - remaining(*DATABASE_LEVEL) == {"owner of this database", "setting work_mem"}


def test_every_kind_is_told_from_the_name() -> None:
    for kind in KINDS:
        for prefix in ("", "owner of ", "grants on ", "comment on ", "security label x on "):
            assert not Catalog.of({f"{prefix}{kind} app.thing": "x"}).filter(["app.thing"]), f"{prefix}{kind}"


def test_difference_shows_what_was_and_what_is() -> None:
    before = Catalog.of({"table a": "table", "table b": "table", "view v": "one"})
    after = Catalog.of({"table b": "table", "table c": "table", "view v": "two"})
    found = diff(before, after)
    assert found.to_dict() == {
        "added": ["table c"],
        "removed": ["table a"],
        "changed": [{"object": "view v", "before": "one", "after": "two"}],
    }
    assert found.identities() == ["table a", "table c", "view v"]
    assert (bool(found), len(found), found.summary()) == (True, 3, "+table c, -table a, ~view v")


def test_no_difference_is_false() -> None:
    found = diff(Catalog.of(ENTRIES), Catalog.of(ENTRIES))
    assert (bool(found), found.summary(), found.to_dict()) == (False, "", {"added": [], "removed": [], "changed": []})


def test_summary_is_cut_and_says_how_much_is_left_out() -> None:
    found = diff(Catalog.of({}), Catalog.of({f"table t{number}": "table" for number in range(8)}))
    assert found.summary() == "+table t0, +table t1, +table t2, +table t3, +table t4 and 3 more"


def test_packed_catalog_keeps_hashes_only() -> None:
    catalog = Catalog.of(ENTRIES)
    unpacked = Catalog.unpack(memoryview(catalog.pack()))
    assert (unpacked.digest, len(unpacked)) == (catalog.digest, len(ENTRIES))
    assert unpacked["table app.users"] == ""
    assert not diff(unpacked, catalog)
    changed = diff(unpacked, Catalog.of({**ENTRIES, "table app.users": "table, unlogged"})).to_dict()["changed"]
    assert changed == [{"object": "table app.users", "after": "table, unlogged"}]
    with pytest.raises(KeyError):
        unpacked["table app.absent"]


@pytest.mark.parametrize("data", [b"", b"nonsense", Catalog.of({}).pack()[:-3], __import__("zlib").compress(b"[1]")])
def test_damaged_packed_catalog_is_refused(data: bytes) -> None:
    with pytest.raises(LedgerError, match="damaged"):
        Catalog.unpack(data)
