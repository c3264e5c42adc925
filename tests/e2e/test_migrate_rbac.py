# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The integrity of the RBAC tables as typed: rehearsed on dirty data, applied, and nothing to do the second time."""

from __future__ import annotations

import json
import typing as t

from ansible_collections.surefoot.dbops.tests.support.migrations import run
from ansible_collections.surefoot.dbops.tests.support.rbac import SET, fill

from .conftest import UNPROVEN, App

MIGRATIONS = ["1_1_profiles_tenant_uuid", "2_1_user_roles_profile", "3_1_sidebar_features_permission"]


WORDS = ("surefoot.dbops.migrate_rbac_integrity", "-i", "staging", "-e")
CRITERION = "preflight.typed_users"


def test_users_of_the_text_are_a_no_go_until_somebody_waives_them(app: App) -> None:
    database = app.database
    database.query("CREATE EXTENSION pg_stat_statements")
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))

    def play(**policy: t.Any) -> t.Any:
        given = {"surefoot_policy": {**UNPROVEN, **policy}, "surefoot_migrations": str(SET)}
        return app.playbook(*WORDS, json.dumps(given), env={"DATABASE_URL": app.url})

    unseen = play()
    assert unseen.returncode != 0 and "NO-GO" in unseen.output, unseen.output
    assert f"missing: {CRITERION}: not measured" in unseen.output
    assert "knows no statement of public.profiles" in unseen.output

    fill(database, 100, every=1000)
    database.query("SELECT id FROM profiles WHERE tenant_id LIKE 'geheim%'")
    found = play()
    assert found.returncode != 0 and "typed_users: 1 use the column as text" in found.output, found.output
    assert "(pattern)" in found.output and "geheim" not in found.output
    assert database.scalar("SELECT to_regclass('surefoot.quarantine')") is None

    waiver = {"criterion": CRITERION, "reason": "reports may fail", "by": "head of data", "expires": "2999-12-31"}
    waived = play(waivers=[waiver])
    assert waived.returncode == 0, waived.output
    assert app.last_run()["applied"] == MIGRATIONS
    assert app.evidence()[CRITERION]["verdict"] == "fail"


def test_rbac_integrity_as_typed(app: App) -> None:
    database = app.database
    database.query("CREATE EXTENSION pg_stat_statements")
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
    dirt = fill(database, 3000, every=50)  # fewer would be less than the smallest plausible backup
    policy = {**UNPROVEN, "backup": "required", "restore_proof": True, "rehearsal": "required", "lock_budget": "2s"}
    given = {"surefoot_policy": policy, "surefoot_migrations": str(SET)}
    words = (*WORDS, json.dumps(given))
    env = {"DATABASE_URL": app.url}

    first = app.playbook(*words, env=env)
    assert first.returncode == 0, first.output
    assert app.last_run()["applied"] == MIGRATIONS
    evidence: dict[str, dict[str, t.Any]] = app.evidence()
    for criterion in ("rehearsal.rollback_catalog", "rehearsal.rollback_data", "gate.decision", "migration.applied"):
        assert evidence[criterion]["verdict"] == "pass", evidence[criterion]
    moved = database.scalar("SELECT count(*) FROM surefoot.quarantine")
    assert moved == dirt.profiles + dirt.user_roles + dirt.features

    again = app.playbook(*words, env=env)
    assert (again.returncode, again.changed) == (0, 0), again.output
