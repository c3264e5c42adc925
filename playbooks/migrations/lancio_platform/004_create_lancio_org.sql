-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 004: the Lancio organization and its project "Lancio Studio".
-- The project's own password is not known here; whoever runs the project sets it.

BEGIN;

INSERT INTO platform.organizations (name, slug, billing_email)
VALUES ('Lancio', 'lancio', 'billing@lancio.example')
ON CONFLICT (slug) DO NOTHING;

INSERT INTO platform.projects (
    organization_id, name, slug, ref, database_host, database_port, database_name, database_user, database_password,
    postgres_meta_url, supabase_url, status
)
SELECT
    o.id, 'Lancio Studio', 'lancio-studio', 'lancio-studio', 'localhost', 5432, 'postgres', 'postgres', '',
    'http://localhost:5555', 'http://localhost:8000', 'active'
FROM platform.organizations AS o
WHERE o.slug = 'lancio'
  AND NOT EXISTS (
      SELECT FROM platform.projects AS p WHERE p.organization_id = o.id AND p.name = 'Lancio Studio'
  );

-- The holder of the billing address becomes owner, if there is such a user: a typed-in id could name nobody.
INSERT INTO platform.organization_members (organization_id, user_id, role)
SELECT o.id, u.id, 'owner'
FROM platform.organizations AS o
JOIN platform.users AS u ON u.email = o.billing_email
WHERE o.slug = 'lancio'
ON CONFLICT (organization_id, user_id) DO NOTHING;

COMMIT;
