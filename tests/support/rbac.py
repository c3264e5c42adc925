# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data of the RBAC tables at any scale, with a chosen share of dirt of each kind."""

from __future__ import annotations

import dataclasses
import pathlib

from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

SET = pathlib.Path(__file__).resolve().parents[2] / "playbooks" / "migrations" / "scrapersky_rbac"

_TENANTS = (
    "INSERT INTO tenants (id, name) SELECT md5('tenant ' || n)::uuid, 't' || n FROM generate_series(1, {tenants}) n"
)
# n % every picks one kind of dirt a residue: 0 no uuid, 1 unknown tenant; 2 upper case and 3 braces are no dirt.
_PROFILES = """
INSERT INTO profiles (id, tenant_id, email)
SELECT md5('profile ' || n)::uuid,
       CASE n % {every} WHEN 0 THEN 'tenant-' || n WHEN 1 THEN md5('nobody ' || n)::uuid::text
            WHEN 2 THEN upper(own) WHEN 3 THEN '{{' || own || '}}' ELSE own END,
       n || '@example.com'
FROM generate_series(1, {profiles}) AS n, LATERAL (SELECT md5('tenant ' || 1 + n % {tenants})::uuid::text) AS x(own)
"""
# Of these, residue 5 has no profile; 6 is there twice.
_ROLES = """
INSERT INTO user_roles (user_id, role_id, tenant_id)
SELECT CASE n % {every} WHEN 5 THEN md5('nobody ' || n)::uuid ELSE md5('profile ' || n)::uuid END, 1 + n % 3,
       md5('tenant ' || 1 + n % {tenants})::uuid
FROM generate_series(1, {profiles}) AS n, generate_series(1, 1 + (n % {every} = 6)::integer)
"""
_PERMISSIONS = """
INSERT INTO permissions (tenant_id, name) SELECT id, 'p' || n FROM tenants, generate_series(1, 3) AS n
"""
# Residue 7 requires what only other tenants have, 8 requires nothing.
_FEATURES = """
INSERT INTO sidebar_features (feature_id, tenant_id, name, requires_permission)
SELECT md5('feature ' || n)::uuid, md5('tenant ' || 1 + n % {tenants})::uuid, 'f' || n,
       CASE n % {every} WHEN 7 THEN 'only elsewhere' WHEN 8 THEN NULL ELSE 'p' || 1 + n % 3 END
FROM generate_series(1, {profiles}) AS n
"""
_ELSEWHERE = """
WITH t AS (INSERT INTO tenants (id, name) VALUES (md5('tenant elsewhere')::uuid, 'elsewhere') RETURNING id)
INSERT INTO permissions (tenant_id, name) SELECT id, 'only elsewhere' FROM t
"""


@dataclasses.dataclass(frozen=True)
class Dirt:
    """How many rows cannot stay, by table."""

    profiles: int
    user_roles: int
    features: int


def fill(database: Database, profiles: int = 1000, *, tenants: int = 10, every: int = 100) -> Dirt:
    """Fill the tables of the baseline; one row in ``every`` (10 or more) is dirty, of each kind."""
    numbers = range(1, profiles + 1)
    for text in (
        _TENANTS,
        "INSERT INTO roles VALUES (1, 'reader'), (2, 'writer'), (3, 'owner')",
        _PROFILES,
        _ROLES,
        _PERMISSIONS,
        _FEATURES,
        _ELSEWHERE,
    ):
        database.query(text.format(profiles=profiles, tenants=tenants, every=every))
    return Dirt(
        profiles=sum(1 for number in numbers if number % every in (0, 1)),
        user_roles=sum(1 for number in numbers if number % every == 5),
        features=sum(1 for number in numbers if number % every == 7),
    )
