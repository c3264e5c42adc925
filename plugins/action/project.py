# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.surefoot.dbops.plugins.modules.project import argument_spec

_COLLECTION = pathlib.Path(__file__).resolve().parents[2]
_TEMPLATES = _COLLECTION / "playbooks" / "files" / "project"
# Packaging and version control treat the names themselves as theirs.
_RENAMED = {"gitignore": ".gitignore"}


class ActionModule(ActionBase):
    """Lays out a project directory on the controller. Documented in plugins/modules/project.py."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=argument_spec())
        dest = _destination(args["dest"])
        made, kept = [], []
        for relative, source in sorted(_files(args["migrations"]).items()):
            target = dest / relative
            if os.path.lexists(target):
                kept.append(relative)
                continue
            made.append(relative)
            if not self._task.check_mode:
                _write(target, source)
        result.update(
            {
                "changed": bool(made),
                "dest": str(dest),
                "made": made,
                "kept": kept,
                "diff": {"before": "", "after": "".join(f"{name}\n" for name in made), "after_header": str(dest)},
            }
        )
        return result


def _destination(given: str) -> pathlib.Path:
    if not given.strip():
        raise AnsibleActionFail("dest is empty. Name the project directory: -e dest=.")
    # Relative to where the user stands; the playbook's own directory is inside the installed collection.
    base = os.environ.get("PWD") or os.getcwd()
    dest = pathlib.Path(base, os.path.expanduser(given)).resolve()
    if dest == _COLLECTION or _COLLECTION in dest.parents:
        raise AnsibleActionFail(
            f"{dest} lies inside the collection, where the next update would remove it. "
            "Name another directory: -e dest=PATH"
        )
    if dest.exists() and not dest.is_dir():
        raise AnsibleActionFail(f"{dest} is not a directory. Name the project directory: -e dest=PATH")
    return dest


def _files(migrations: str) -> dict[str, pathlib.Path]:
    """Path in the project -> file it is made from."""
    found: dict[str, pathlib.Path] = {}
    for root in (_TEMPLATES / "common", _TEMPLATES / migrations):
        for source in root.rglob("*"):
            if source.is_file():
                relative = source.relative_to(root)
                found[str(relative.with_name(_RENAMED.get(relative.name, relative.name)))] = source
    shipped = _COLLECTION / "playbooks" / "migrations" / migrations
    if shipped.is_dir():
        for source in shipped.iterdir():
            if source.is_file():
                found[f"migrations/{migrations}/{source.name}"] = source
    return found


def _write(target: pathlib.Path, source: pathlib.Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as stream:
            stream.write(source.read_bytes())
    except OSError as exc:
        raise AnsibleActionFail(
            f"cannot write {target}: {exc.strerror}. Name a directory you may write to: -e dest=PATH"
        ) from exc
