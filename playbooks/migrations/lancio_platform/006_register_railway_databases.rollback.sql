-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Rollback of 006, step 3: removes the rows the migration added; rows that had been there before it stay.

BEGIN;

DELETE FROM platform.databases
WHERE name IN ('Railway MongoDB', 'Railway Redis')
  AND metadata ->> 'registered_by' = '006_register_railway_databases';

COMMIT;
