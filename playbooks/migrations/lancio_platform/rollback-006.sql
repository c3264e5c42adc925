-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Rollback of 006, step 1. The registered databases are lost; nothing is dropped that others depend on.

BEGIN;

DROP VIEW platform.databases_with_connection_strings;
DROP VIEW platform.databases_safe;
DROP FUNCTION platform.update_database_health(uuid, text, text);
DROP FUNCTION platform.get_project_databases(uuid, text);
DROP FUNCTION platform.decrypt_database_connection_string(uuid);
DROP TABLE platform.databases;
DROP FUNCTION platform.encrypt_database_connection_string();

COMMIT;
