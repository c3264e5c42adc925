-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- 1000 profiles, their roles and features, of 10 tenants. One of a hundred is dirty, of each kind.
INSERT INTO tenants (id, name) SELECT md5('tenant ' || n)::uuid, 't' || n FROM generate_series(1, 10) AS n;
INSERT INTO roles VALUES (1, 'reader'), (2, 'writer'), (3, 'owner');
INSERT INTO permissions (tenant_id, name) SELECT id, 'read' FROM tenants;
INSERT INTO permissions (tenant_id, name) SELECT id, 'only here' FROM tenants WHERE name = 't1';
INSERT INTO profiles (id, tenant_id, email)
SELECT md5('profile ' || n)::uuid,
       CASE n % 100 WHEN 0 THEN 'tenant-' || n                  -- no uuid
                    WHEN 1 THEN md5('nobody ' || n)::uuid::text -- no such tenant
                    WHEN 2 THEN upper(own)                      -- these two are valid, and must convert
                    WHEN 3 THEN '{' || own || '}' ELSE own END,
       n || '@example.com'
FROM generate_series(1, 1000) AS n, LATERAL (SELECT md5('tenant ' || 1 + n % 10)::uuid::text) AS x(own);
INSERT INTO user_roles (user_id, role_id, tenant_id)
SELECT CASE n % 100 WHEN 5 THEN md5('nobody ' || n)::uuid ELSE md5('profile ' || n)::uuid END, 1 + n % 3,
       md5('tenant ' || 1 + n % 10)::uuid
FROM generate_series(1, 1000) AS n;
INSERT INTO sidebar_features (feature_id, tenant_id, name, requires_permission)
SELECT md5('feature ' || n)::uuid, md5('tenant ' || 1 + n % 10)::uuid, 'f' || n,
       CASE n % 100 WHEN 7 THEN 'only here' WHEN 8 THEN NULL ELSE 'read' END -- residue 7 is t8's
FROM generate_series(1, 1000) AS n;
