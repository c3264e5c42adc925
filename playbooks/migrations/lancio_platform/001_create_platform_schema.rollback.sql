-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Rollback of 001. Drops without CASCADE: anything built on these objects stops it.

BEGIN;

DROP VIEW platform.projects_with_credentials;
DROP VIEW platform.organizations_with_stats;
DROP FUNCTION platform.get_credentials_by_project_ref(text);
DROP FUNCTION platform.get_project_by_ref(text);
DROP FUNCTION platform.get_organization_by_slug(text);
DROP TABLE platform.credentials;
DROP TABLE platform.projects;
DROP TABLE platform.organizations;
DROP FUNCTION platform.generate_slug(text);
DROP FUNCTION platform.update_updated_at_column();
DROP SCHEMA platform;

COMMIT;
