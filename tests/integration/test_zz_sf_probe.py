import pathlib, pytest
from ansible_collections.surefoot.dbops.tests.support.migrations import *
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import *
K="zz-unique-secret-8842"
def test_backfill(tmp_path, database):
    database.query("CREATE TABLE b(id int PRIMARY KEY, v text CHECK (v='x')); INSERT INTO b VALUES (1,'x')")
    s=MigrationSet(tmp_path, secret_variables=["key"]).add("001", steps=[{"table":"public.b","key":"id","set":{"v":":'key'"}}])
    print(fails(SqlError, s, database, secrets={"key":K}))
    assert K not in database.server.log_text()
def test_check(tmp_path, database):
    s=MigrationSet(tmp_path, secret_variables=["key"]).add("001", "CREATE TABLE b(v text CHECK (v='x'))", verify=[{"name":"refused","statement":"INSERT INTO b VALUES (:'key')","expect_error":"23514"}])
    run(s, database, secrets={"key":K+"c"})
    assert K+"c" not in database.server.log_text()
def test_deferred(tmp_path, database):
    s=MigrationSet(tmp_path, secret_variables=["key"]).add("001", "CREATE TABLE p(v text primary key); CREATE TABLE b(v text references p deferrable initially deferred); INSERT INTO b VALUES (:'key');")
    fails(SqlError, s, database, secrets={"key":K+"d"})
    assert K+"d" not in database.server.log_text()
def test_unknown_variable(tmp_path, database):
    s=MigrationSet(tmp_path, variables={"a": 1}).add("001", "SELECT :a;")
    print(fails(PlanError, s, database, variables={"aa":2}))
