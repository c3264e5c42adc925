# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The RBAC set on dirty data: each row is accounted for, refused rows are refused, and the way back leads back."""

from __future__ import annotations

import contextlib
import itertools
import typing as t

import psycopg2
import psycopg2.extensions
import pytest

from ansible_collections.surefoot.dbops.tests.support.migrations import dump, run
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database
from ansible_collections.surefoot.dbops.tests.support.rbac import SET, fill

pytestmark = pytest.mark.versions

TABLES = ("profiles", "user_roles", "permissions", "sidebar_features")


@pytest.fixture
def rbac(database: Database) -> Database:
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
    return database


def contents(database: Database) -> dict[str, list[tuple[t.Any, ...]]]:
    return {name: database.query(f"SELECT * FROM {name} ORDER BY 1, 2, 3") for name in TABLES}


def schema(database: Database) -> str:
    return dump(database, "--schema-only", "--exclude-schema=surefoot")


def test_every_dirty_row_is_accounted_for_and_comes_back(rbac: Database) -> None:
    dirt = fill(rbac, 1000, every=20)
    before, rows = schema(rbac), contents(rbac)
    results = run(SET, rbac)
    assert results["applied"] == [
        "1_1_profiles_tenant_uuid", "2_1_user_roles_profile", "3_1_sidebar_features_permission",
    ]  # fmt: skip
    assert all(check["passed"] for check in results["checks"]) and len(results["checks"]) > 10
    kept = dict(rbac.query("SELECT migration_id, count(*) FROM surefoot.quarantine GROUP BY 1"))
    assert kept == {
        "1_1_profiles_tenant_uuid": dirt.profiles,
        "2_1_user_roles_profile": dirt.user_roles,
        "3_1_sidebar_features_permission": dirt.features,
    }
    moved = rbac.scalar("SELECT coalesce(sum(jsonb_array_length(dependents)), 0) FROM surefoot.quarantine")
    for name, lost in (
        ("profiles", dirt.profiles), ("user_roles", dirt.user_roles + moved), ("sidebar_features", dirt.features),
    ):  # fmt: skip
        assert rbac.scalar(f"SELECT count(*) FROM {name}") == len(rows[name]) - lost
    assert rbac.scalar("SELECT count(*) FROM profiles WHERE tenant_id IS NULL") == 0
    run(SET, rbac, state="rolled_back", to="1_1_profiles_tenant_uuid")
    assert schema(rbac) == before and contents(rbac) == rows
    assert rbac.scalar("SELECT count(*) FROM surefoot.quarantine") == 0


def test_tenants_own_message_comes_first_and_deleting_cascades(rbac: Database) -> None:
    fill(rbac, 100, every=1000)
    run(SET, rbac)
    with pytest.raises(psycopg2.errors.CheckViolation, match="Permission only elsewhere not found in tenant"):
        rbac.query(
            "INSERT INTO sidebar_features (tenant_id, requires_permission)"
            " SELECT id, 'only elsewhere' FROM tenants LIMIT 1"
        )
    tenant = rbac.scalar("SELECT min(tenant_id::text) FROM profiles")
    rbac.query("DELETE FROM user_roles WHERE user_id IN (SELECT id FROM profiles WHERE tenant_id = %s)", (tenant,))
    rbac.query("DELETE FROM tenants WHERE id = %s", (tenant,))
    assert rbac.scalar("SELECT count(*) FROM profiles WHERE tenant_id = %s", (tenant,)) == 0


LEVELS = (
    psycopg2.extensions.ISOLATION_LEVEL_READ_COMMITTED,
    psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ,
    psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE,
)
PARENT = {
    "delete": "DELETE FROM permissions WHERE tenant_id = %(tenant)s AND name = 'p1'",
    "move": "UPDATE permissions SET tenant_id = %(other)s, name = 'moved' WHERE tenant_id = %(tenant)s AND name = 'p1'",
}
CHILD = {
    "insert": "INSERT INTO sidebar_features (tenant_id, requires_permission) VALUES (%(tenant)s, 'p1')",
    "update": "UPDATE sidebar_features SET requires_permission = 'p1' WHERE tenant_id = %(tenant)s",
}


@pytest.mark.parametrize("level", LEVELS)
def test_no_interleaving_leaves_a_dangling_feature(level: int, rbac: Database) -> None:
    """Each session has its statement and its commit; a statement that would wait gives up."""
    fill(rbac, 20, tenants=2, every=1000)
    run(SET, rbac)
    tenant, other = (row[0] for row in rbac.query("SELECT id FROM tenants ORDER BY name"))
    values = {"tenant": tenant, "other": other}
    orders = sorted(set(itertools.permutations(["parent", "parent", "child", "child"])))
    for (_a, parent), (_b, child), order in itertools.product(PARENT.items(), CHILD.items(), orders):
        rbac.query("DELETE FROM sidebar_features")
        rbac.query("DELETE FROM permissions")
        rbac.query("INSERT INTO permissions (tenant_id, name) VALUES (%s, 'p1'), (%s, 'p2')", (tenant, tenant))
        rbac.query("INSERT INTO sidebar_features (tenant_id, requires_permission) VALUES (%s, 'p2')", (tenant,))
        todo = {"parent": [parent, "COMMIT"], "child": [child, "COMMIT"]}
        with contextlib.closing(rbac.connect()) as one, contextlib.closing(rbac.connect()) as two:
            sessions = {"parent": one, "child": two}
            for session in sessions.values():
                session.set_session(isolation_level=level, autocommit=False)
                session.cursor().execute("SET lock_timeout = '150ms'")
                session.commit()
                session.cursor().execute("SELECT count(*) FROM permissions")
            for who in order:
                text = todo[who].pop(0)
                with contextlib.suppress(psycopg2.Error):
                    if text == "COMMIT":
                        sessions[who].commit()
                    else:
                        sessions[who].cursor().execute(text, values)
        dangling = rbac.scalar(
            "SELECT count(*) FROM sidebar_features f WHERE NOT EXISTS (SELECT FROM permissions p"
            " WHERE p.tenant_id = f.tenant_id AND p.name = f.requires_permission)"
        )
        assert dangling == 0, (parent, child, order)
