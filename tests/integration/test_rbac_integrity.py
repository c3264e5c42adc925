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

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import CheckResult, run_checks
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
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
    (evidence,) = [item for item in results["evidence"] if item["criterion"] == "migration.quarantine"]
    assert evidence["verdict"] == "pass" and evidence["measured"]["bytes"] > 0
    assert evidence["measured"]["rows"] == dirt.profiles + dirt.user_roles + dirt.features
    reasons = {(item["migration"][:3], item["reason"]): item["rows"] for item in evidence["measured"]["by"]}
    assert reasons == {
        ("1_1", "invalid value (22P02)"): dirt.profiles // 3,
        ("1_1", "no parent"): dirt.profiles // 3,
        ("1_1", "null"): dirt.profiles // 3,
        ("2_1", "no parent"): dirt.user_roles,
        ("3_1", "no parent"): dirt.features,
    }
    moved = rbac.scalar("SELECT coalesce(sum(jsonb_array_length(dependents)), 0) FROM surefoot.quarantine")
    for name, lost in (
        ("profiles", dirt.profiles), ("user_roles", dirt.user_roles + moved), ("sidebar_features", dirt.features),
    ):  # fmt: skip
        assert rbac.scalar(f"SELECT count(*) FROM {name}") == len(rows[name]) - lost
    assert rbac.scalar("SELECT count(*) FROM profiles WHERE tenant_id IS NULL") == 0
    back = run(SET, rbac, state="rolled_back", to="1_1_profiles_tenant_uuid")
    assert schema(rbac) == before and contents(rbac) == rows and back["notes"] == []
    (evidence,) = [item for item in back["evidence"] if item["criterion"] == "migration.quarantine"]
    assert (evidence["verdict"], evidence["measured"]["rows"]) == ("pass", 0)
    assert rbac.scalar("SELECT count(*) FROM surefoot.quarantine") == 0


def test_tenants_own_message_comes_first_and_deleting_cascades(rbac: Database) -> None:
    fill(rbac, 100, every=1000)
    run(SET, rbac)
    with pytest.raises(psycopg2.errors.CheckViolation, match="Permission only elsewhere not found in tenant"):
        rbac.query(
            "INSERT INTO sidebar_features (tenant_id, requires_permission)"
            " SELECT id, 'only elsewhere' FROM tenants WHERE name = 't1'"
        )
    tenant = rbac.scalar("SELECT min(tenant_id::text) FROM profiles")
    rbac.query("DELETE FROM user_roles WHERE user_id IN (SELECT id FROM profiles WHERE tenant_id = %s)", (tenant,))
    rbac.query("DELETE FROM tenants WHERE id = %s", (tenant,))
    assert rbac.scalar("SELECT count(*) FROM profiles WHERE tenant_id = %s", (tenant,)) == 0


def verify(database: Database) -> list[CheckResult]:
    """Every check of what is applied."""
    results: list[CheckResult] = []
    with contextlib.closing(database.connect()) as connection:
        for migration in load_plan(str(SET)).migrations:
            if not migration.manual:
                values: dict[str, t.Any] = {"variables": {}, "secret_variables": {}, "phase": "verify"}
                results += run_checks(
                    connection, migration.verify, inside_transaction=False, migration=migration.id, **values
                )
    return results


def failing(database: Database) -> dict[str, str]:
    """Name and criterion of each check of ours that does not hold; those of the operations are tested with them."""
    return {
        result.check.name: result.criterion
        for result in verify(database)
        if not result.passed and result.criterion.startswith("rbac.")
    }


# What breaks it, and the checks that notice.
BROKEN = {
    "an orphan profile": (
        "ALTER TABLE profiles DROP CONSTRAINT fk_profiles_tenant;"
        " INSERT INTO profiles (tenant_id, email) VALUES (gen_random_uuid(), 'x')",
        {
            "no profile without a tenant", "each profile is found by one tenant",
            "a profile of an unknown tenant is refused", "every tenant_id is bound to a tenant",
        },
    ),
    "a column of text": (
        "ALTER TABLE profiles DROP CONSTRAINT fk_profiles_tenant;"
        " DROP TRIGGER zz_surefoot_insert_tenant_id ON profiles; DROP TRIGGER zz_surefoot_update_tenant_id ON profiles;"
        " ALTER TABLE profiles ALTER tenant_id TYPE text, ALTER surefoot_old_tenant_id DROP NOT NULL",
        {
            "no profile without a tenant", "each profile is found by one tenant",
            "no role in another tenant than its user's", "a profile of an unknown tenant is refused",
            "a profile of something that is no uuid is refused", "every tenant_id is bound to a tenant",
        },
    ),
    "no index of tenants": ("DROP INDEX profiles_tenant_id", {"an index serves the profiles of a tenant"}),
    "no index of users": ("DROP INDEX user_roles_user_id", {"an index serves the roles of a user"}),
    "no index of the roles' tenants": ("DROP INDEX user_roles_tenant_id", {"an index serves the roles of a tenant"}),
    "no index of features": (
        "DROP INDEX sidebar_features_permission", {"indexes serve the features of a tenant and their permissions"}
    ),
    "an orphan role": (
        "ALTER TABLE user_roles DROP CONSTRAINT fk_user_roles_profile;"
        " INSERT INTO user_roles (user_id, role_id, tenant_id) SELECT gen_random_uuid(), 1, id FROM tenants LIMIT 1",
        {"no role without a profile", "a role of an unknown user is refused"},
    ),
    "a role in another tenant": (
        "UPDATE user_roles SET tenant_id = md5('tenant elsewhere')::uuid WHERE id = (SELECT min(id) FROM user_roles)",
        {"no role in another tenant than its user's"},
    ),
    "roles of no tenant": (
        "ALTER TABLE user_roles DROP CONSTRAINT fk_user_roles_tenant",
        {"a role in an unknown tenant is refused", "every tenant_id is bound to a tenant"},
    ),
    "a feature with another tenant's permission": (
        'ALTER TABLE sidebar_features DROP CONSTRAINT fk_sidebar_features_permission; DROP TRIGGER'
        ' "A_trg_validate_sidebar_perms" ON sidebar_features;'
        " INSERT INTO sidebar_features (tenant_id, requires_permission)"
        " SELECT id, 'only elsewhere' FROM tenants WHERE name = 't1'",
        {
            "no feature without a permission of its own tenant", "each feature finds one permission",
            "a permission of another tenant is refused", "a permission that a feature requires cannot be deleted",
        },
    ),
    "permissions of no tenant": (
        "ALTER TABLE permissions DROP CONSTRAINT fk_permissions_tenant",
        {"a permission of an unknown tenant is refused", "every tenant_id is bound to a tenant"},
    ),
    "features of no tenant": (
        "ALTER TABLE sidebar_features DROP CONSTRAINT fk_sidebar_features_tenant",
        {"a feature of an unknown tenant is refused", "every tenant_id is bound to a tenant"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_each_check_notices_what_it_is_for(case: str, rbac: Database) -> None:
    broken, noticed = BROKEN[case]
    fill(rbac, 60, every=1000)
    run(SET, rbac)
    assert failing(rbac) == {}
    rbac.query(broken)
    found = failing(rbac)
    assert set(found) == noticed


def test_every_check_of_ours_is_noticed_by_some_case() -> None:
    ours = {
        check.name
        for migration in load_plan(str(SET)).migrations
        for check in migration.verify
        if (check.criterion or "").startswith("rbac.")
    }
    assert set().union(*(noticed for _broken, noticed in BROKEN.values())) == ours


def test_a_tenant_is_bound_directly_or_by_a_key_without_holes(rbac: Database) -> None:
    fill(rbac, 60, every=1000)
    run(SET, rbac)

    def bound() -> float:
        (result,) = [item for item in verify(rbac) if item.criterion == "rbac.tenant_bound"]
        return float(result.measured)

    assert bound() == 100
    rbac.query("ALTER TABLE sidebar_features DROP CONSTRAINT fk_sidebar_features_tenant")
    # The composite key does not bind a feature without a permission.
    assert bound() == 75
    rbac.query("DELETE FROM sidebar_features WHERE requires_permission IS NULL")
    rbac.query("ALTER TABLE sidebar_features ALTER requires_permission SET NOT NULL")
    assert bound() == 100
    # Which leads to tenants no further than the permissions do.
    rbac.query("ALTER TABLE permissions DROP CONSTRAINT fk_permissions_tenant")
    assert bound() == 50
    rbac.query("ALTER TABLE permissions ADD CONSTRAINT again FOREIGN KEY (tenant_id) REFERENCES tenants (id) NOT VALID")
    assert bound() == 50
    rbac.query("ALTER TABLE permissions VALIDATE CONSTRAINT again")
    assert bound() == 100


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
    tenant, other = (row[0] for row in rbac.query("SELECT id FROM tenants WHERE name <> 'elsewhere' ORDER BY name"))
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
