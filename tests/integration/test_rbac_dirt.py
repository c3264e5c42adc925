# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One row in a hundred dirty, of each kind: ``abort`` changes nothing and lists them, ``quarantine`` accounts for each.

``SUREFOOT_DIRT_ROWS`` is the number of rows of each table (20000).
"""

from __future__ import annotations

import os
import pathlib
import shutil
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import VerificationFailed
from ansible_collections.surefoot.dbops.tests.support.migrations import applied, dump, fails, run
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database
from ansible_collections.surefoot.dbops.tests.support.rbac import SET, fill, identifier

pytestmark = pytest.mark.versions

ROWS = int(os.environ.get("SUREFOOT_DIRT_ROWS", "20000"))
EVERY = 100
SHARE = ROWS // EVERY
PROFILES, USER_ROLES, FEATURES = (
    "1_1_profiles_tenant_uuid", "2_1_user_roles_profile", "3_1_sidebar_features_permission",
)  # fmt: skip
KEYS = {"profiles": "id", "user_roles": "id", "permissions": "id", "sidebar_features": "feature_id"}


@pytest.fixture
def dirty(database: Database) -> Database:
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
    fill(database, ROWS, every=EVERY)
    return database


def schema(database: Database) -> str:
    return dump(database, "--schema-only", "--exclude-schema=surefoot")


def digests(database: Database) -> dict[str, str]:
    """Of the rows of each table, as they are spelled."""
    return {
        name: database.scalar(f"SELECT md5(string_agg(md5(t::text), '' ORDER BY t.{key})) FROM {name} AS t")
        for name, key in KEYS.items()
    }


def timed(what: str, call: t.Callable[[], t.Any]) -> t.Any:
    began = time.monotonic()
    found = call()
    print(f"{what}: {time.monotonic() - began:.1f} s")
    return found


def numbers(*residues: int) -> list[int]:
    return [number for number in range(1, ROWS + 1) if number % EVERY in residues]


def test_abort_leaves_the_database_as_it_was_and_lists_the_rows(dirty: Database, tmp_path: pathlib.Path) -> None:
    place = tmp_path / "set"
    shutil.copytree(SET, place)
    text = (SET / "plan.yml").read_text("utf-8")
    dependents = text[text.index("          dependents:\n") : text.index("    verify:")]
    text = text.replace(dependents, "").replace("on_invalid: quarantine", "on_invalid: abort")
    (place / "plan.yml").write_text(text, encoding="utf-8")
    before, rows = schema(dirty), digests(dirty)
    wanted = {
        PROFILES: (
            {"invalid value (22P02)": SHARE, "no parent": SHARE, "null": SHARE},
            sorted(identifier(f"profile {number}") for number in numbers(0, 1, 4)),
        ),
        USER_ROLES: (
            {"no parent": SHARE},
            [row[0] for row in dirty.query("SELECT r.id FROM user_roles r LEFT JOIN profiles p ON p.id = r.user_id"
                                           " WHERE p.id IS NULL ORDER BY 1")],
        ),
        FEATURES: ({"no parent": SHARE}, sorted(identifier(f"feature {number}") for number in numbers(7))),
    }  # fmt: skip
    for migration, (reasons, keys) in wanted.items():
        error = timed(
            f"abort {migration}", lambda name=migration: fails(VerificationFailed, place, dirty, only=(name,))
        )
        assert error.details["reasons"] == reasons
        assert error.details["total"] == sum(reasons.values()) == len(keys)
        assert [row["key"] for row in error.details["rows"]] == [[key] for key in keys[:100]]
        assert f"{len(keys)} rows of public." in str(error)
        assert schema(dirty) == before and digests(dirty) == rows
        assert applied(dirty) == ["000_baseline"] and error.results["unfinished"] is None


def test_quarantine_accounts_for_each_row_by_reason(dirty: Database) -> None:
    before, rows = schema(dirty), digests(dirty)
    counts = {name: dirty.scalar(f"SELECT count(*) FROM {name}") for name in KEYS}
    duplicates = len(numbers(6))
    assert counts["user_roles"] == ROWS + duplicates
    for migration in (PROFILES, USER_ROLES, FEATURES):
        timed(migration, lambda name=migration: run(SET, dirty, only=(name,)))
    kept = dirty.query(
        "SELECT migration_id, reason, count(*), count(DISTINCT key), sum(jsonb_array_length(dependents))::integer"
        " FROM surefoot.quarantine GROUP BY 1, 2 ORDER BY 1, 2"
    )
    print(kept)
    # A profile has one role, which goes with it.
    assert kept == [
        (PROFILES, "invalid value (22P02)", SHARE, SHARE, SHARE),
        (PROFILES, "no parent", SHARE, SHARE, SHARE),
        (PROFILES, "null", SHARE, SHARE, SHARE),
        (USER_ROLES, "no parent", SHARE, SHARE, 0),
        (FEATURES, "no parent", SHARE, SHARE, 0),
    ]
    of_reason = {
        "invalid value (22P02)": numbers(0),
        "no parent": numbers(1),
        "null": numbers(4),
    }
    for reason, found in of_reason.items():
        keys = dirty.query(
            "SELECT key ->> 0 FROM surefoot.quarantine WHERE migration_id = %s AND reason = %s", (PROFILES, reason)
        )
        assert {row[0] for row in keys} == {identifier(f"profile {number}") for number in found}
    here = {name: dirty.scalar(f"SELECT count(*) FROM {name}") for name in KEYS}
    assert here == {
        "profiles": counts["profiles"] - 3 * SHARE,
        "user_roles": counts["user_roles"] - 4 * SHARE,  # also duplicates, which are no dirt to this set, stay
        "permissions": counts["permissions"],
        "sidebar_features": counts["sidebar_features"] - SHARE,
    }
    # Upper case and braces are converted.
    spelled = [identifier(f"profile {number}") for number in numbers(2, 3)]
    assert dirty.scalar("SELECT count(*) FROM profiles WHERE id = ANY (%s::uuid[])", (spelled,)) == 2 * SHARE
    timed("rollback", lambda: run(SET, dirty, state="rolled_back", to=PROFILES))
    assert schema(dirty) == before and digests(dirty) == rows
    assert dirty.scalar("SELECT count(*) FROM surefoot.quarantine") == 0
