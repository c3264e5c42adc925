# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real ansible-playbook in a process of its own, and what can happen to it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import typing as t

from ansible_collections.surefoot.dbops.tests.support.migrations import (
    MigrationSet,
    environment,
    module_params,
    sessions,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database


class Playbook:
    """A real ansible-playbook with one task.

    :param way: module, in a process of its own, or worker, inside Ansible's
    :param params: more options of the module
    """

    def __init__(
        self, directory: pathlib.Path, plan: MigrationSet | pathlib.Path, database: Database, way: str, **params: t.Any
    ) -> None:
        params = {"retry": {"deadline": "60s"}, **params}
        task: dict[str, t.Any] = {"surefoot.dbops.postgresql_migration": module_params(plan, database, **params)}
        if way == "module":
            task["environment"] = {"SUREFOOT_TEST": "a module of its own"}
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}
        # A variable, as in the inventories: what the environment says is not known before the module runs.
        play["vars"] = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        path = directory / "play.yml"
        path.write_text(json.dumps([play]), encoding="utf-8")
        self.process = subprocess.Popen(
            [os.path.join(os.path.dirname(sys.executable), "ansible-playbook"), "-i", "localhost,", str(path)],
            cwd=directory,
            env=environment(
                LC_ALL="C.UTF-8",
                ANSIBLE_HOME=str(directory / "home"),
                ANSIBLE_REMOTE_TEMP=str(directory / "remote"),
                ANSIBLE_NOCOLOR="1",
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> str:
        """Its output, once it has ended."""
        output, _nothing = self.process.communicate(timeout=90)
        return output

    def tree(self) -> list[int]:
        """The process and everything below it, also what has made itself a session of its own."""
        children: dict[int, list[int]] = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = pathlib.Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found

    def strike(self, kind: str, database: Database) -> None:
        """A signal to it or to more of it, or the end of one of its sessions."""
        if kind == "kill parent":
            self.process.kill()
        elif kind == "kill group":
            os.killpg(self.process.pid, signal.SIGKILL)
        elif kind == "kill tree":
            for pid in self.tree():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif kind == "SIGTERM parent":
            self.process.send_signal(signal.SIGTERM)
        elif kind == "SIGINT parent":
            self.process.send_signal(signal.SIGINT)
        else:
            for pid in sessions(database, f"surefoot:{kind.split()[1]}%"):
                database.query("SELECT pg_terminate_backend(%s)", (pid,))
