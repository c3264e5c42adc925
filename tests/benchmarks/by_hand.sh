#!/usr/bin/env bash
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Migration 006 as the migration plan's commands do it, typed by somebody who mistypes nothing and does not stop to
# read what they print: each command a process of its own. The plan's "Test restore capability", a comment there, is
# done. Left out: what needs Railway, a running application, or a week. What the files of this collection take from
# psql variables (the plan edits placeholders afterwards) is given to psql.
#
# Needs: DATABASE_URL, TEST_DATABASE (made, dropped), TEST_DATABASE_URL, MIGRATIONS, RAILWAY_MONGODB_URL,
# RAILWAY_REDIS_URL, DATABASE_ENCRYPTION_KEY; FORMAT: plain (what the plan types) or directory (pg_dump -Fd -j2).
# Prints on descriptor 3: name and time of each part that begins.
set -euo pipefail

part() { echo "$1 $EPOCHREALTIME" >&3; }

timed_queries() {
    psql "$DATABASE_URL" -v ON_ERROR_STOP=1 <<'EOF'
SELECT (SELECT token FROM platform.user_sessions WHERE expires_at > now() ORDER BY id LIMIT 1) AS token,
       (SELECT id FROM platform.organizations ORDER BY created_at, id LIMIT 1) AS organization \gset
\timing on
SELECT s.*, u.* FROM platform.user_sessions s JOIN platform.users u ON s.user_id = u.id
WHERE s.token = :'token' AND s.expires_at > NOW();
SELECT * FROM platform.audit_logs WHERE organization_id = :'organization' ORDER BY created_at DESC LIMIT 50;
SELECT * FROM platform.organization_members WHERE organization_id = :'organization';
EOF
}

part "timings before"
timed_queries

part backup
BACKUP_FILE="backup-pre-migration-006-$(date +%Y%m%d-%H%M%S).sql"
if [ "$FORMAT" = plain ]; then
    pg_dump "$DATABASE_URL" > "$BACKUP_FILE"
    ls -lh "$BACKUP_FILE"
    head -n 50 "$BACKUP_FILE"
    [ "$(stat -c %s "$BACKUP_FILE")" -gt 102400 ]
    grep -c '^CREATE TABLE' "$BACKUP_FILE"
else
    pg_dump -Fd -j2 -f "$BACKUP_FILE" "$DATABASE_URL"
    ls -lh "$BACKUP_FILE"
    [ "$(du -sb "$BACKUP_FILE" | cut -f1)" -gt 102400 ]
    pg_restore --list "$BACKUP_FILE" | grep -c ' TABLE platform '
fi

part restore
psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -c "CREATE DATABASE $TEST_DATABASE TEMPLATE template0"
if [ "$FORMAT" = plain ]; then
    psql -q -v ON_ERROR_STOP=1 "$TEST_DATABASE_URL" < "$BACKUP_FILE"
else
    pg_restore -j2 --exit-on-error -d "$TEST_DATABASE_URL" "$BACKUP_FILE"
fi
psql "$TEST_DATABASE_URL" -c "SELECT COUNT(*) FROM platform.projects;"
psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -c "DROP DATABASE $TEST_DATABASE"

part "pre-deployment checks"
psql "$DATABASE_URL" -c "SELECT version();"
psql "$DATABASE_URL" -c "SELECT tablename FROM pg_tables WHERE schemaname = 'platform' ORDER BY tablename;"
psql "$DATABASE_URL" -c "SELECT EXISTS(SELECT 1 FROM platform.projects) as projects_exists,
                                EXISTS(SELECT 1 FROM platform.audit_logs) as audit_logs_exists;"
psql "$DATABASE_URL" -c "SELECT current_user, session_user;"
psql "$DATABASE_URL" -c "SELECT has_schema_privilege('platform', 'CREATE') as can_create;"

part "migration, step 1"
psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f "$MIGRATIONS/006_add_platform_databases_table.sql"
psql "$DATABASE_URL" -c "SELECT COUNT(*) FROM information_schema.tables
                         WHERE table_schema = 'platform' AND table_name = 'databases';"
psql "$DATABASE_URL" -c "SELECT indexname FROM pg_indexes WHERE schemaname = 'platform' AND tablename = 'databases';"
psql "$DATABASE_URL" -c "SELECT proname FROM pg_proc p JOIN pg_namespace n ON p.pronamespace = n.oid
                         WHERE n.nspname = 'platform' AND proname LIKE '%database%';"

part "migration, step 2"
psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f "$MIGRATIONS/006_enable_rls_with_permissive_policies.sql"
psql "$DATABASE_URL" -c "SELECT tablename, rowsecurity FROM pg_tables WHERE schemaname = 'platform' ORDER BY tablename;"
psql "$DATABASE_URL" -c "SELECT COUNT(*) as policy_count FROM pg_policies WHERE schemaname = 'platform';"
psql "$DATABASE_URL" -c "SELECT * FROM platform.verify_rls_enabled();"
psql "$DATABASE_URL" -c "SELECT * FROM platform.test_rls_policies();"

part "migration, step 3"
export PGOPTIONS="-c app.database_encryption_key=$DATABASE_ENCRYPTION_KEY"
psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v register_mongodb=true -v register_redis=true \
    -v railway_mongodb_url="$RAILWAY_MONGODB_URL" -v railway_redis_url="$RAILWAY_REDIS_URL" \
    -f "$MIGRATIONS/006_register_railway_databases.sql"
psql "$DATABASE_URL" -c "SELECT id, name, type, host, port, status, health_check_status FROM platform.databases
                         ORDER BY type, name;"
psql "$DATABASE_URL" -c "SELECT id, name, type, connection_string_encrypted IS NOT NULL as is_encrypted
                         FROM platform.databases;"
psql "$DATABASE_URL" -c "SELECT id, name, type,
                                LENGTH(platform.decrypt_database_connection_string(id)) > 0 as can_decrypt
                         FROM platform.databases;"

part "post-deployment verification"
psql "$DATABASE_URL" -v ON_ERROR_STOP=1 <<'EOF'
SELECT COUNT(*) as database_count FROM platform.databases;
SELECT COUNT(*) as tables_with_rls FROM pg_tables WHERE schemaname = 'platform' AND rowsecurity = true;
SELECT COUNT(*) as policy_count FROM pg_policies WHERE schemaname = 'platform';
SELECT name, type, connection_string_encrypted IS NOT NULL as encrypted,
       LENGTH(platform.decrypt_database_connection_string(id)) > 0 as can_decrypt
FROM platform.databases;
EOF

part "timings after"
timed_queries

part "health check"
psql "$DATABASE_URL" -c "SELECT id, name, type, status, health_check_status, last_health_check_at
                         FROM platform.databases;"
psql "$DATABASE_URL" -c "SELECT platform.update_database_health(id, 'unknown', NULL) FROM platform.databases;"
part end
