-- Copyright (c) 2026, Surefoot contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- 006, step 3: registers Railway's MongoDB and Redis for the project "Lancio Studio".
--
-- Secrets: railway_mongodb_url, railway_redis_url, and the key in the setting app.database_encryption_key.
-- Variables: register_mongodb, register_redis (true or false; a service that is switched off needs no URL).
-- Applied again (after a rollback, or by hand with new URLs) it updates the rows instead of adding more.

BEGIN;

-- A function, because plain SQL cannot refuse a value with a reason; temporary, because nothing else needs it.
-- It never shows the value.
CREATE FUNCTION pg_temp.checked_url(variable text, url text) RETURNS text
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF coalesce(btrim(url), '') = '' THEN
        RAISE EXCEPTION '% is empty', variable
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Give the URL, or switch this registration off with register_mongodb or register_redis.';
    END IF;
    IF url ~* 'placeholder|change[_-]?me|your[_-]|[<>{}]|://\*\*\*@' THEN
        RAISE EXCEPTION '% is a placeholder or redacted text, not a URL', variable
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Give the value Railway shows for the deployed service, with references resolved.';
    END IF;
    RETURN btrim(url);
END;
$$;

DO $$
DECLARE
    found bigint;
BEGIN
    SELECT count(*) INTO found
    FROM platform.projects AS p
    JOIN platform.organizations AS o ON o.id = p.organization_id
    WHERE o.slug = 'lancio' AND p.name = 'Lancio Studio';
    IF found <> 1 THEN
        RAISE EXCEPTION 'project "Lancio Studio" of the organization "lancio" found % times, needed once', found
            USING ERRCODE = 'no_data_found',
                  HINT = 'Apply migration 004 first, then check: '
                         'SELECT * FROM platform.projects WHERE name = ''Lancio Studio'';';
    END IF;
END;
$$;

-- Two registrations at once would each find no row and insert one.
SELECT p.id AS lancio_project
FROM platform.projects AS p
JOIN platform.organizations AS o ON o.id = p.organization_id
WHERE o.slug = 'lancio' AND p.name = 'Lancio Studio'
FOR NO KEY UPDATE OF p;

UPDATE platform.databases AS d
SET type = 'mongodb',
    connection_string = pg_temp.checked_url('railway_mongodb_url', :'railway_mongodb_url'),
    status = 'active', health_check_status = 'unknown', health_check_error = NULL, last_health_check_at = NULL
FROM platform.projects AS p
JOIN platform.organizations AS o ON o.id = p.organization_id
WHERE :register_mongodb
  AND d.project_id = p.id AND d.name = 'Railway MongoDB'
  AND o.slug = 'lancio' AND p.name = 'Lancio Studio';

INSERT INTO platform.databases (project_id, name, type, connection_string, status, health_check_status, metadata)
SELECT
    p.id, 'Railway MongoDB', 'mongodb', pg_temp.checked_url('railway_mongodb_url', :'railway_mongodb_url'),
    'active', 'unknown', '{"provider": "railway", "registered_by": "006_register_railway_databases"}'
FROM platform.projects AS p
JOIN platform.organizations AS o ON o.id = p.organization_id
WHERE :register_mongodb
  AND o.slug = 'lancio' AND p.name = 'Lancio Studio'
  AND NOT EXISTS (SELECT FROM platform.databases AS d WHERE d.project_id = p.id AND d.name = 'Railway MongoDB');

UPDATE platform.databases AS d
SET type = 'redis',
    connection_string = pg_temp.checked_url('railway_redis_url', :'railway_redis_url'),
    status = 'active', health_check_status = 'unknown', health_check_error = NULL, last_health_check_at = NULL
FROM platform.projects AS p
JOIN platform.organizations AS o ON o.id = p.organization_id
WHERE :register_redis
  AND d.project_id = p.id AND d.name = 'Railway Redis'
  AND o.slug = 'lancio' AND p.name = 'Lancio Studio';

INSERT INTO platform.databases (project_id, name, type, connection_string, status, health_check_status, metadata)
SELECT
    p.id, 'Railway Redis', 'redis', pg_temp.checked_url('railway_redis_url', :'railway_redis_url'),
    'active', 'unknown', '{"provider": "railway", "registered_by": "006_register_railway_databases"}'
FROM platform.projects AS p
JOIN platform.organizations AS o ON o.id = p.organization_id
WHERE :register_redis
  AND o.slug = 'lancio' AND p.name = 'Lancio Studio'
  AND NOT EXISTS (SELECT FROM platform.databases AS d WHERE d.project_id = p.id AND d.name = 'Railway Redis');

DROP FUNCTION pg_temp.checked_url(text, text);

COMMIT;
