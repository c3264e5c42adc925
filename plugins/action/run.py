# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import datetime
import os
import re
import shlex
import typing as t

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import read_checks
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import append_lines, record, utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._gate import check_statements
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Actor, new_run_id
from ansible_collections.surefoot.dbops.plugins.module_utils._messages import announce, check_notice
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import resolve_policy
from ansible_collections.surefoot.dbops.plugins.module_utils._report import plan_facts
from ansible_collections.surefoot.dbops.plugins.module_utils._report_html import write_report
from ansible_collections.surefoot.dbops.plugins.module_utils._rescue import COMPARED, judge
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import (
    MONITOR_FILE,
    SUMMARY_FILE,
    Phases,
    add_notes,
    begun_run,
    check_monitored,
    check_notes,
    cut_off_run,
    describe,
    last_look,
    look_of,
    make_run_directory,
    read_summary,
    sign_off_of,
    summarize,
    write_json,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._write_pause import (
    RESUME_COMMAND,
    WritePause,
    check_pause_writes,
    find_pause,
)
from ansible_collections.surefoot.dbops.plugins.modules.run import REQUIRED_IF, argument_spec

# What is done to a run that has changed its database already.
_LATER = {"sign_off": "signed off", "monitor": "monitored"}
# What may change the database, and so resumes first the writes that a killed run left paused.
_RESUMING = ("migrate", "rollback")
_BLOCK = ("block", "rescue", "always")
_DATABASE_REMEDY = "Set surefoot_database_url, for example from the environment variable DATABASE_URL."


class ActionModule(ActionBase):
    """The two ends of a run on the controller. Documented in plugins/modules/run.py."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=argument_spec(), required_if=REQUIRED_IF)
        task_vars = task_vars or {}
        name = str(task_vars.get("inventory_hostname", "database"))
        args["phases"] = {phase: _registered(value, task_vars) for phase, value in args["phases"].items()}
        self._alone = len((task_vars.get("groups") or {}).get("databases") or ()) < 2
        try:
            work = {"started": self._start, "judged": self._judge, "reported": self._report, "finished": self._finish}[
                args["state"]
            ]
            result.update(work(name, args))
        except SurefootError as exc:
            raise AnsibleActionFail(str(exc)) from None
        return result

    def _start(self, name: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        policy = resolve_policy(args["policy"], args["policy_overrides"])
        check_notice(args["notice"])
        check_notes(args["notes"])
        read_checks(args["rollback_checks"], "surefoot_run_rollback_checks")
        # They need no measurement: better now than behind a backup and a rehearsal.
        check_statements(policy, args["attestations"], datetime.datetime.now(datetime.timezone.utc))
        if args["action"] in _LATER and not args["go"]:
            raise PlanError(
                f"nothing says which run is to be {_LATER[args['action']]}",
                remedy="Give its run directory: -e surefoot_go=DIRECTORY.",
            )
        if policy["backup"] == "required" and not args["backup"]:
            raise PlanError(
                "surefoot_backup is false, but the policy requires a backup",
                remedy="Leave surefoot_backup out, or set surefoot_policy.backup: optional for this environment.",
            )
        if policy["rehearsal"] == "required" and not args["rehearsal"]:
            raise PlanError(
                "surefoot_rehearsal is false, but the policy requires a rehearsal",
                remedy="Leave surefoot_rehearsal out, or set surefoot_policy.rehearsal: optional for this environment.",
            )
        rehearse = policy["rehearsal"] != "never" and args["rehearsal"]
        if not args["path"]:
            raise PlanError(
                f"no migration set is given for {name}",
                remedy="Set surefoot_migrations to the directory that holds your plan.yml or your files NNN_name.sql.",
            )
        _check_connection(name, args["connection"] or {})
        if args["action"] == "migrate":
            _check_secrets(name, args["path"], args["secret_variables"] or {})
        # Not os.getcwd() first: PWD is the directory as the user typed it, links included.
        here = os.environ.get("PWD") or os.getcwd()
        base = os.path.join(here, args["run_base"] or "surefoot-runs")
        pause_writes = check_pause_writes(args["pause_writes"], here)
        for key, path in pause_writes.items():
            self._check_tasks(key, path)
        run_dir: str | None = None
        run_id = args["run_id"] or new_run_id()
        begun = begun_run(os.path.join(here, args["go"]), name) if args["go"] else None
        if begun is not None and args["action"] == "monitor":
            if self._task.check_mode:
                raise PlanError("monitoring has no check mode", remedy="Run it without --check: it only measures.")
            check_monitored(begun)
        if begun is not None and begun.used_up and args["action"] not in _LATER:
            begun = None  # typed again after the apply, or a job launched again: a run of its own
        if begun is not None:
            run_dir, run_id = begun.directory, begun.run_id
        if begun is not None and begun.pauses_writes and not pause_writes and args["action"] not in _LATER:
            raise PlanError(
                f"the run in {begun.directory} was begun with surefoot_pause_writes, and this command does not set it",
                remedy="Give it again, or begin a run without it.",
            )
        cut_off = cut_off_run(base) if begun is None else None
        if self._task.check_mode:
            run_dir = None
        elif run_dir is None:
            run_dir = make_run_directory(base, run_id)
        left = find_pause(base, name)
        actor = Actor.current(args["requested_by"], args["approved_by"])
        run = {
            "run_id": run_id,
            "run_dir": run_dir,
            "run_base": base,
            "policy": policy,
            "backup": policy["backup"] != "never" and args["backup"],
            "rehearse": rehearse,
            # One restore serves twice.
            "restore": rehearse or policy["restore_proof"],
            # Of a run that goes on: whether it has its GO, and the backup it took.
            "decided": begun is not None and begun.decided,
            "backup_taken": dict(begun.backup) if begun is not None else {},
            # Of a run that is monitored: what it applied, and where the look before this one left off.
            "applied": list(begun.applied) if begun is not None else [],
            "last_look": last_look(begun.directory) if begun is not None and args["action"] == "monitor" else {},
            "pause_writes": pause_writes,
            # By a run that was killed: before anything else they are resumed.
            "writes_paused": left.to_dict() if left is not None and args["action"] in _RESUMING else {},
            "started": utc_now(),
            "actor": {
                "os_user": actor.os_user,
                "host": actor.host,
                "requested_by": actor.requested_by,
                "approved_by": actor.approved_by,
            },
        }
        warnings = []
        if cut_off is not None:
            warnings.append(
                f"the run in {cut_off} has no end: it was killed, or is still at work. The ledger says what it applied;"
                " nobody verified, compared and signed that off."
            )
        if left is not None:
            warnings.append(_paused_since(left, resumed=bool(run["writes_paused"]) and not self._task.check_mode))
        return {"changed": False, **run, "warnings": warnings}

    def _check_tasks(self, key: str, path: str) -> None:
        """Before anything is paused, since a file that cannot be read could not resume it either.

        :raises PlanError: it is no list of tasks, or one of them names an action that does not exist
        """
        where, remedy = f"surefoot_pause_writes.{key}: {path}", "Write tasks, as in tasks/main.yml of a role."
        try:
            tasks = self._loader.load_from_file(path)
            if not isinstance(tasks, list) or not tasks:
                raise PlanError(f"{where} is not a list of tasks", remedy=remedy)
            while tasks:
                task = tasks.pop(0)
                if isinstance(task, dict) and any(part in task for part in _BLOCK):
                    tasks += [item for part in _BLOCK for item in task.get(part) or ()]
                else:
                    Task.load(task, loader=self._loader)
        except (AnsibleError, AssertionError) as exc:
            found = " ".join(str(getattr(exc, "message", exc)).split())
            raise PlanError(f"{where} cannot be run: {found}", remedy=remedy) from None

    def _judge(self, _name: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        phases = args["phases"]
        found = judge(
            migration=phases.get("migration") or {},
            verification=phases.get("verification") or {},
            compared=[phases.get(key) or {} for key in COMPARED],
            matrix=(args["run"].get("policy") or {}).get("rollback"),
        )
        record(args["run"].get("run_dir"), [found.evidence()])
        return {"changed": False, **found.to_dict()}

    def _summary(self, name: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        if args["action"] == "sign_off":
            result = args["phases"].get("sign_off") or {}
            return {**read_summary(args["run"]["run_dir"]), "sign_off": sign_off_of(result)}
        if args["action"] == "monitor":
            look = look_of(args["phases"].get("monitor") or {}, args["phases"].get("server_log") or {}, utc_now())
            return {**read_summary(args["run"]["run_dir"]), "monitoring": look}
        phases = dict(args["phases"])
        if args["run"].get("backup_taken"):  # by the part of the run before it was stopped
            phases["backup"] = {"backup": args["run"]["backup_taken"]}
        return summarize(
            Phases.of(phases),
            name=name,
            action=args["action"],
            finished=args["complete"],
            check_mode=self._task.check_mode,
            run_dir=args["run"].get("run_dir"),
            stop_after=args["stop_after"],
            judgement=args["judgement"],
            rescue=args["rescue"],
            pause_writes=args["run"].get("pause_writes"),
        )

    def _report(self, name: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        """``run.json``, the report and its messages; not when nothing was to be done."""
        run = args["run"]
        if not run.get("run_id"):
            return _never_started()
        summary = self._summary(name, args)
        applied = summary["outcome"] == "succeeded" and bool(summary["applied"])
        result: dict[str, t.Any] = {"changed": False, "applied": applied, "wrote": False, "report": None}
        if not run.get("run_dir"):
            return result
        kept = {**{key: run.get(key) for key in ("run_id", "policy", "started", "actor")}, "finished": utc_now()}
        if args["action"] == "monitor":  # who ran the migration, and when, stays as it was
            kept = {key: summary[key] for key in kept if key in summary}
            if args["state"] == "finished":
                append_lines(os.path.join(run["run_dir"], MONITOR_FILE), [summary.pop("monitoring")])
            else:
                summary.pop("monitoring")
        try:
            write_json(run["run_dir"], SUMMARY_FILE, {**kept, **summary})
            author = str((run.get("actor") or {}).get("os_user") or "unknown")
            add_notes(run["run_dir"], args["notes"], by=author, time=utc_now())
        except SurefootError as exc:  # what the run did stands, and is said before this fails the run
            return {**result, "report": f"none: {exc}", "unwritten": True}
        if summary["outcome"] == "nothing_to_do":
            return result
        way_back = self._way_back(name, args, summary)
        if summary["outcome"] == "announced":
            announce(
                run["run_dir"],
                plan_facts(load_plan(args["path"])),
                database=name,
                pending=summary["pending"],
                notice=args["notice"],
                rollback_command=way_back,
            )
            return {**result, "wrote": True}
        try:
            found = write_report(
                run["run_dir"], plan_path=args["path"], notice=args["notice"], rollback_command=way_back
            )
        except SurefootError as exc:  # what the run did stands
            return {**result, "report": f"none: {exc}"}
        return {**result, "wrote": True, "report": found["html"]}

    def _finish(self, name: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        written = self._report(name, args)
        if "wrote" not in written:
            return written
        failed = bool(written.pop("unwritten", False))
        summary = self._summary(name, args)
        lines = describe(
            summary,
            report=written["report"],
            rollback_hint=self._way_back(name, args, summary),
        )
        left = find_pause(str(args["run"].get("run_base") or ""), name)
        if left is not None:
            lines.append(_paused_since(left, resumed=False))
        shown = {"msg": lines if _shows_json() else "\n".join(lines), "_ansible_verbose_always": True}
        return {**written, **shown, **({"failed": True} if failed else {})}

    def _way_back(self, name: str, args: dict[str, t.Any], summary: dict[str, t.Any]) -> str:
        """The command that takes back what was applied, on this database only."""
        return _rollback_command(summary["applied"], None if self._alone else name) or str(args["rollback_hint"] or "")


def _paused_since(left: WritePause, *, resumed: bool) -> str:
    if left.at_work and not left.guardian:
        return f"{left.line}, which is at work."
    if resumed:
        return f"{left.line}, which was killed. They are resumed before anything else."
    return f"{left.line}. They STILL ARE; resume them: {RESUME_COMMAND}"


def _never_started() -> dict[str, t.Any]:
    """The start itself failed, and said why."""
    return {"changed": False, "skipped": True, "skipped_reason": "the run did not start"}


def _registered(value: t.Any, task_vars: t.Mapping[str, t.Any]) -> t.Any:
    """A result, or the one registered under this name: in a template, all of it is rendered each time."""
    return (task_vars.get(value) or {}) if isinstance(value, str) else value


def _shows_json() -> bool:
    """Whether results are shown as JSON, where a text of several lines could not be read; YAML would fold a list's."""
    try:
        shown = C.config.get_config_value("result_format", plugin_type="callback", plugin_name="default")
    except AnsibleError:
        return True
    return str(shown) != "yaml"


def _rollback_command(applied: t.Sequence[str], host: str | None) -> str | None:
    """The command as typed, with the rollback playbook beside the one that runs; None when that is not one of ours.

    :param host: the database this run changed, when the inventory has others, which are none of its business
    """
    playbooks = [str(word) for word in context.CLIARGS.get("args") or ()]
    head, _separator, name = (playbooks[0] if len(playbooks) == 1 else "").rpartition("/")
    if not applied or not re.fullmatch(r"(surefoot\.dbops\.)?migrate(_006)?(\.yml)?", name):
        return None
    words = ["ansible-playbook", os.path.join(head, name.replace("migrate", "rollback"))]
    for inventory in context.CLIARGS.get("inventory") or ():
        # Ansible made it absolute; as short as it was typed it can be read.
        words += ["-i", os.path.relpath(inventory) if os.path.exists(inventory) else str(inventory)]
    if host is not None:
        words += ["--limit", host]
    for given in context.CLIARGS.get("extra_vars") or ():
        # Files only: a value may be a secret, and the line is kept in the report.
        if str(given).startswith("@"):
            words += ["-e", str(given)]
    if "_006" not in name:
        words += ["-e", f"surefoot_to={applied[0]}"]
    return " ".join(shlex.quote(word) for word in words)


def _check_connection(name: str, connection: dict[str, t.Any]) -> None:
    """Without any address libpq would go to whatever server this machine runs.

    :raises PlanError: no database is named
    """
    if "login_url" in connection and not str(connection["login_url"] or "").strip():
        raise PlanError(f"surefoot_database_url is empty for {name}", remedy=_DATABASE_REMEDY)
    addresses = ("login_url", "login_host", "login_unix_socket", "login_db", "connect_params")
    if not any(connection.get(key) for key in addresses):
        raise PlanError(f"no database is given for {name}", remedy=_DATABASE_REMEDY)


def _check_secrets(name: str, path: str | None, secrets: dict[str, t.Any]) -> None:
    """Before the backup, not after it: every secret the plan declares has a value.

    :raises PlanError: with the names of those that have none
    """
    declared = load_plan(path).secret_variables if path and os.path.exists(path) else ()
    missing = [key for key in dict.fromkeys([*declared, *secrets]) if secrets.get(key) in (None, "")]
    if missing:
        raise PlanError(
            f"no value in surefoot_secret_variables of {name} for {', '.join(missing)}",
            remedy="Set them in the inventory, from a lookup such as environment, ansible-vault or Vault.",
        )
