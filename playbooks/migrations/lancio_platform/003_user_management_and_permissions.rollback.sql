-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Rollback of 003. The rows of these tables are lost. pgcrypto stays: it may have been there before.

BEGIN;

DROP FUNCTION platform.get_active_feature_flags(uuid);
DROP FUNCTION platform.has_project_access(uuid, uuid);
DROP FUNCTION platform.is_organization_owner(uuid, uuid);
DROP TABLE platform.organization_feature_flags;
DROP TABLE platform.feature_flags;
DROP TABLE platform.api_keys;
DROP TABLE platform.project_members;
DROP TABLE platform.organization_invitations;
DROP TABLE platform.organization_members;
DROP TABLE platform.user_sessions;
DROP TABLE platform.users;

COMMIT;
