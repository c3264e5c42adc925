# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What database_registration and database_health cost beside a bare script that does the same.

Prints (playbook with the module's task) / (bare script + playbook with one ping task), whole processes, interleaved in
one run, median of the rounds; the target is at most 1.2. PostgreSQL and Redis are real, MongoDB is a fake of the
protocol. It judges nothing: the numbers depend on the machine, the ratios much less.

    python tests/benchmarks/bench_cloud_stores.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.tests.support import lancio  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.fake_mongodb import fake_mongodb  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.pgserver import (  # noqa: E402
    running_server,
    temporary_database,
)
from ansible_collections.surefoot.dbops.tests.support.stores import redis_server  # noqa: E402

KEY = "benchmark-Encryption-Key-1"

PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
"""
PING = "    - ansible.builtin.ping:\n"
REGISTER = """
    - surefoot.dbops.database_registration:
        login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
        project_id: "{{ lookup('ansible.builtin.env', 'PROJECT') }}"
        name: "{{ name | default('cache') }}"
        url: "{{ lookup('ansible.builtin.env', 'REDIS_URL') }}"
        encryption_key: "{{ lookup('ansible.builtin.env', 'KEY') }}"
"""
HEALTH = """
    - surefoot.dbops.database_health:
        targets:
          - {name: main, url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"}
          - {name: cache, url: "{{ lookup('ansible.builtin.env', 'REDIS_URL') }}"}
          - {name: docs, url: "{{ lookup('ansible.builtin.env', 'MONGO_URL') }}"}
"""
# Finds the row or inserts it, decrypts it and compares; the URL travels by COPY, the key as a startup option.
BARE_REGISTER = """
import hashlib, hmac, io, os, sys
import psycopg2
from redis.connection import parse_url
url, key, project, name = os.environ["REDIS_URL"], os.environ["KEY"], os.environ["PROJECT"], sys.argv[1]
parse_url(url)
master = hashlib.pbkdf2_hmac("sha256", key.encode(), b"salt", 100000)
mark = hmac.new(master, url.encode(), "sha256").hexdigest()
connection = psycopg2.connect(os.environ["DATABASE_URL"], options="-c app.database_encryption_key=" + key)
with connection, connection.cursor() as cursor:
    cursor.execute(
        "SELECT id FROM platform.databases WHERE project_id = %s AND name = %s FOR UPDATE", (project, name)
    )
    row = cursor.fetchone()
    if row is None:
        cursor.execute("CREATE TEMPORARY TABLE s (value text) ON COMMIT DROP")
        cursor.copy_expert("COPY s FROM STDIN", io.StringIO(url + "\\n"))
        cursor.execute(
            "INSERT INTO platform.databases (project_id, name, type, connection_string, metadata)"
            " SELECT %s, %s, 'redis', value, jsonb_build_object('mark', %s) FROM s RETURNING id", (project, name, mark)
        )
        row = cursor.fetchone()
    cursor.execute("SELECT platform.decrypt_database_connection_string(%s)", row)
    assert cursor.fetchone()[0] == url
"""
BARE_HEALTH = """
import os, psycopg2, pymongo, redis
from concurrent.futures import ThreadPoolExecutor
def main():
    connection = psycopg2.connect(os.environ["DATABASE_URL"], connect_timeout=5)
    connection.cursor().execute("SELECT 1")
def cache():
    redis.Redis.from_url(os.environ["REDIS_URL"], socket_connect_timeout=5, socket_timeout=5).ping()
def docs():
    client = pymongo.MongoClient(os.environ["MONGO_URL"], serverSelectionTimeoutMS=5000)
    client.admin.command("ping")
    client.close()
with ThreadPoolExecutor() as pool:
    for future in [pool.submit(ask) for ask in (main, cache, docs)]:
        future.result()
"""


def timed(argv: list[str], environment: dict[str, str]) -> float:
    """Wall seconds of a whole process; it must succeed."""
    started = time.perf_counter()
    done = subprocess.run(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(argv[:3])} failed:\n{done.stdout[-4000:]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ansible = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
    seconds: dict[str, list[float]] = {}
    with (
        running_server(settings={"fsync": True, "full_page_writes": True}) as server,
        temporary_database(server) as database,
        redis_server() as redis,
        fake_mongodb() as mongodb,
        tempfile.TemporaryDirectory() as directory,
    ):
        lancio.apply(database, lancio.DATABASES)
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "tree"),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "DATABASE_URL": f"postgresql://{server.superuser}:{server.password}@127.0.0.1:{server.port}/{database.name}",
            "PROJECT": str(database.scalar("SELECT id FROM platform.projects WHERE name = 'Lancio Studio'")),
            "REDIS_URL": redis.url(),
            "MONGO_URL": f"mongodb://127.0.0.1:{mongodb.port}",
            "KEY": KEY,
        }
        files = {"ping": PING, "register": REGISTER, "health": HEALTH}
        for name, text in files.items():
            (pathlib.Path(directory) / f"{name}.yml").write_text(PLAYBOOK + text, encoding="utf-8")

        def play(name: str, *words: str) -> list[str]:
            return [ansible, "-i", "localhost,", f"{directory}/{name}.yml", *words]

        for number in range(rounds + 1):
            commands = {
                "ping": play("ping"),
                "bare register": [sys.executable, "-c", BARE_REGISTER, f"bare {number}"],
                "register": play("register", "-e", f"name=module{number}"),
                "bare again": [sys.executable, "-c", BARE_REGISTER, f"bare {number}"],
                "again": play("register", "-e", f"name=module{number}"),
                "bare health": [sys.executable, "-c", BARE_HEALTH],
                "health": play("health"),
            }
            for name, argv in commands.items():
                spent = timed(argv, environment)
                if number:  # the first round warms caches
                    seconds.setdefault(name, []).append(spent)
            if number:
                shown = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
                print(f"  round {number}: {shown}", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"median of {rounds}; ratio = playbook / (bare script + playbook with one ping task):")
    print(f"  playbook with one ping task                        {median['ping']:6.2f} s")
    for name, text in (
        ("register", "database_registration, a new row"),
        ("again", "database_registration, nothing to change"),
        ("health", "database_health, PostgreSQL, Redis, fake MongoDB"),
    ):
        bare = median["bare register" if name == "register" else f"bare {name}"]
        ratio = median[name] / (bare + median["ping"])
        print(f"  {text:<49} {median[name]:7.2f} s, bare {bare:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
