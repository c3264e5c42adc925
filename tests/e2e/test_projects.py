# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Project directories, the embedded server, and the checkout."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest

from .conftest import BIN, MIGRATIONS_006, ROOT, Workplace


@pytest.fixture
def own_server(workplace: Workplace) -> t.Iterator[None]:
    """Removes the embedded server of the directory afterwards."""
    yield
    removed = workplace.run(
        "ansible",
        "localhost",
        "-c",
        "local",
        "-e",
        f"ansible_python_interpreter={BIN / 'python'}",
        "-m",
        "surefoot.dbops.postgresql_embedded",
        "-a",
        f"state=absent project='{workplace.directory}'",
    )
    assert removed.returncode == 0, removed.output


def test_init_lays_out_a_project_and_never_overwrites(workplace: Workplace) -> None:
    checked = workplace.playbook("surefoot.dbops.init", "-e", "dest=new/project", "--check")
    assert (checked.returncode, checked.changed) == (0, 1), checked.output
    assert not (workplace.directory / "new").exists()

    made = workplace.playbook("surefoot.dbops.init", "-e", "dest=new/project")
    assert (made.returncode, made.changed) == (0, 1), made.output
    project = workplace.directory / "new" / "project"
    for name in (
        "migrate_006.yml",
        "ansible.cfg",
        ".gitignore",
        "prod/hosts.yml",
        "migrations/lancio_platform/plan.yml",
    ):
        assert (project / name).is_file(), name

    (project / "ansible.cfg").write_text("mine", encoding="utf-8")
    (project / "README.md").unlink()
    again = workplace.playbook("surefoot.dbops.init", "-e", "dest=new/project")
    assert (again.returncode, again.changed) == (0, 1), again.output
    assert "1 files made" in again.output
    assert (project / "ansible.cfg").read_text(encoding="utf-8") == "mine"

    third = workplace.playbook("surefoot.dbops.init", "-e", "dest=new/project")
    assert (third.returncode, third.changed) == (0, 0), third.output


@pytest.mark.parametrize("dest", ["", "COLLECTION/playbooks/mine", "file"])
def test_init_refuses_what_cannot_be_a_project(workplace: Workplace, collections: pathlib.Path, dest: str) -> None:
    (workplace.directory / "file").write_text("", encoding="utf-8")
    inside = collections / "ansible_collections" / "surefoot" / "dbops"
    outcome = workplace.playbook("surefoot.dbops.init", "-e", f"dest='{dest.replace('COLLECTION', str(inside))}'")
    assert outcome.returncode != 0
    assert len(outcome.errors) == 1
    assert "-e dest=" in outcome.errors[0]
    assert not (inside / "playbooks" / "mine").exists()


def test_a_starter_project_migrates_its_embedded_server_and_back(workplace: Workplace, own_server: None) -> None:
    assert workplace.playbook("surefoot.dbops.init", "-e", "dest=.", "-e", "migrations=starter").returncode == 0
    first = workplace.playbook("migrate.yml")
    assert first.returncode == 0, first.output
    assert "001_create_customers" in first.summary()
    assert "-e surefoot_to=001_create_customers" in first.summary()

    again = workplace.playbook("migrate.yml", "-i", "local")
    assert (again.returncode, again.changed) == (0, 0), again.output

    back = workplace.playbook("rollback.yml", "-i", "local", "-e", "surefoot_to=001_create_customers")
    assert back.returncode == 0, back.output
    assert "1 migration rolled back" in back.summary()

    unknown = workplace.playbook("rollback.yml", "-i", "local", "-e", "surefoot_to=002_nothing")
    assert unknown.returncode != 0
    assert "002_nothing" in unknown.errors[0]


def test_the_demonstration_of_the_checkout_twice(workplace: Workplace, own_server: None) -> None:
    workplace.environment.update(
        ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
        ANSIBLE_COLLECTIONS_PATH=str(ROOT / "build" / "tree"),
        SUREFOOT_PROJECT=str(workplace.directory),
    )
    inventory = ("-i", os.path.join(ROOT, "inventories", "local"))
    for attempt in (1, 2):
        demo = workplace.playbook(str(ROOT / "playbooks" / "demo.yml"), *inventory)
        assert demo.returncode == 0, demo.output
        migrated = workplace.playbook(str(ROOT / "playbooks" / "migrate_006.yml"), *inventory)
        assert migrated.returncode == 0, migrated.output
        if attempt == 1:
            assert all(name in migrated.summary() for name in MIGRATIONS_006)
        else:
            assert demo.changed + migrated.changed == 0, demo.output + migrated.output
            assert "nothing is pending" in migrated.summary()


def test_the_demonstration_refuses_a_real_database(workplace: Workplace) -> None:
    (workplace.directory / "hosts").write_text("[databases]\nplatform ansible_connection=local\n", encoding="utf-8")
    outcome = workplace.playbook("surefoot.dbops.demo", "-i", "hosts")
    assert outcome.returncode != 0
    assert "is not an embedded server" in outcome.errors[0]
