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


def test_rbac_integrity_as_typed(app: App) -> None:
    database = app.database
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
    dirt = fill(database, 3000, every=50)  # fewer would be less than the smallest plausible backup
    policy = {**UNPROVEN, "backup": "required", "restore_proof": True, "rehearsal": "required", "lock_budget": "2s"}
    given = {"surefoot_policy": policy, "surefoot_migrations": str(SET)}
    words = ("surefoot.dbops.migrate_rbac_integrity", "-i", "staging", "-e", json.dumps(given))
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
