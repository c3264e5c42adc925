# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""plan.yml, or a directory in another layout, to a :class:`Plan`; everything is validated before anything connects.

SQL files are not read here: only their existence is checked, by one directory listing, so that a plan of a thousand
migrations loads in milliseconds. ``docs/plan.md`` is the reference for users.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import os
import re
import stat
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._change_type import change_type, contract_type
from ansible_collections.surefoot.dbops.plugins.module_utils._checks import Check, check_file, nearest, parse_check
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, Location, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._operations import (
    Entry,
    Operation,
    Retyped,
    add_foreign_key,
    create_index,
    set_not_null,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._planyaml import (
    THROTTLE_KEYS,
    YAML_ERROR,
    PlanYaml,
    is_scalar,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import (
    BackfillStep,
    SqlStep,
    Step,
    SweepStep,
    split_qualified,
)

PLAN_FILES = ("plan.yml", "plan.yaml")
RISK_LEVELS = ("low", "medium", "high", "critical")
MANUAL_REASON = "applied only when named"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)+")


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a migration is tried again after a lock timeout, deadlock or serialization failure.

    ``max_delay`` (of one pause) and ``deadline`` (of all attempts together) are in seconds.
    """

    attempts: int = 30
    max_delay: float = 10.0
    deadline: float = 300.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """``lock_timeout`` and ``statement_timeout`` in seconds, and the retries."""

    lock_timeout: float = 0.5
    statement_timeout: float = 30.0
    retry: RetryPolicy = RetryPolicy()


DEFAULT_LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Risk:
    """One line of a risk table. ``level``, ``probability`` and ``impact`` are low, medium, high, critical or None."""

    level: str | None = None
    probability: str | None = None
    impact: str | None = None
    mitigation: str | None = None
    owner: str | None = None


@dataclasses.dataclass(frozen=True)
class Migration:
    """One unit of change. ``index`` is its place in the plan from 0, ``expected`` the planned duration in seconds.

    ``rollback`` is None when there is no way back by SQL. ``manual`` is the reason why it is only applied when named.
    ``session_settings`` maps a server setting to the secret variable whose value it gets. ``retyped`` are the columns
    that get another type.
    """

    id: str
    summary: str
    index: int
    steps: tuple[Step, ...]
    location: Location
    risk: Risk | None = None
    expected: float | None = None
    requires: tuple[str, ...] = ()
    rollback: tuple[Step, ...] | None = None
    rollback_loses: tuple[str, ...] = ()
    verify: tuple[Check, ...] = ()
    manual: str | None = None
    limits: Limits = DEFAULT_LIMITS
    lock_tables: tuple[str, ...] = ()
    session_settings: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    retyped: tuple[Retyped, ...] = ()

    @property
    def held_back(self) -> bool:
        """Whether the plan gives a backfill of it a pause or limits."""
        return any(
            isinstance(step, BackfillStep) and step.throttle.slows for step in (*self.steps, *(self.rollback or ()))
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """A migration set. ``directory`` is absolute; ``file`` is the plan file's path as given, None in the plain layout.

    ``variables`` maps names to defaults; None means that a value must be given.
    """

    name: str
    directory: str
    file: str | None
    out_of_order: str
    transaction: str
    variables: t.Mapping[str, t.Any]
    secret_variables: tuple[str, ...]
    drift_ignore: tuple[str, ...]
    migrations: tuple[Migration, ...]
    warnings: tuple[str, ...] = ()
    sha256: str = ""

    @functools.cached_property
    def _by_id(self) -> dict[str, Migration]:
        return {migration.id: migration for migration in self.migrations}

    def migration(self, id: str) -> Migration:  # noqa: A002
        """The migration of this id.

        :raises PlanError: there is none; names the nearest
        """
        found = self._by_id.get(id)
        if found is None:
            remedy = _nearest_id(id, self._by_id)
            raise PlanError(f"the plan {self.name} has no migration {id!r}", location=self.location, remedy=remedy)
        return found

    @property
    def location(self) -> Location:
        """The plan's file, or its directory."""
        return Location(self.file or self.directory)

    def digest(self) -> str:
        """SHA-256 of the plan's text (of the list of file names in the plain layout); the SQL files have their own."""
        return self.sha256

    def values(
        self, given: t.Mapping[str, t.Any], secrets: t.Mapping[str, t.Any], *, complete: bool = True
    ) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
        """Plain and secret values for SQL: the plan's defaults, overridden by what is given.

        :param complete: every variable of the plan must have a value; else those without one are left out
        :raises PlanError: a variable that must be given is not, or one is given in the wrong place
        """
        for name in given:
            if name in self.secret_variables or name in secrets:
                problem = f"variable {name} is secret, and given as a plain one"
                raise PlanError(problem, location=self.location, remedy="Give it in secret_variables only.")
        for name in secrets:
            if name in self.variables:
                problem = f"variable {name} is given as a secret, and declared as a plain one"
                raise PlanError(problem, location=self.location, remedy="List it under secret_variables of the plan.")
        values = {**self.variables, **given}
        if not complete:
            return {name: value for name, value in values.items() if value is not None}, dict(secrets)
        missing = [name for name in self.variables if values[name] is None]
        if missing:
            problem = f"no value for variable{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
            raise PlanError(problem, location=self.location, remedy="Give it in the option variables.")
        missing = [name for name in self.secret_variables if secrets.get(name) is None]
        if missing:
            problem = f"no value for secret variable{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
            raise PlanError(problem, location=self.location, remedy="Give it in the option secret_variables.")
        return values, dict(secrets)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to lay out a migration set in a directory. ``load`` takes the path as the user gave it."""

    name: str
    detect: t.Callable[[str], bool]
    load: t.Callable[[str], Plan]


def load_plan(path: str) -> Plan:
    """The plan at a path: a plan file, or a directory in one of the known layouts.

    :raises PlanError: with file, line and column
    :raises EnvironmentProblem: a Python package the plan needs is missing
    """
    with _collector_paused():
        return _load(os.fspath(path))


def _load(path: str) -> Plan:
    if os.path.isfile(path):
        if not path.endswith((".yml", ".yaml")):
            raise PlanError(f"{path} is not a plan", remedy="Give a plan.yml or the directory that holds it.")
        return _load_plan_file(path)
    if not os.path.isdir(path):
        raise PlanError(f"{path} does not exist", remedy="Give a plan.yml or the directory of a migration set.")
    for layout in LAYOUTS:
        if layout.detect(path):
            return layout.load(path)
    remedy = "Give a directory with a plan.yml, or with files named NNN_name.sql."
    raise PlanError(f"{path} holds no migration set", remedy=remedy)


@contextlib.contextmanager
def _collector_paused() -> t.Iterator[None]:
    """Nodes and dataclasses of a plan all live; looking for garbage among them takes more time than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _nearest_id(id: str, known: t.Iterable[str]) -> str:  # noqa: A002
    ids = list(known)
    starting = [other for other in ids if id and other.startswith(id)]
    if len(starting) == 1:
        return f"Did you mean {starting[0]}?"
    return nearest(id, ids) if len(ids) <= 20 or "mean" in nearest(id, ids) else f"The plan has {len(ids)} migrations."


# ---------------------------------------------------------------------------------------------------------------------
# Files


class _Files:
    """The files of a migration set. Each directory is listed once."""

    def __init__(self, directory: str, shown: str) -> None:
        self.directory = os.path.abspath(directory)
        self.shown = shown
        self._root = os.path.realpath(directory)
        self._listings: dict[str, dict[str, os.DirEntry[str]] | None] = {}

    def listing(self, folder: str = "") -> dict[str, os.DirEntry[str]] | None:
        """Entries of a folder below the directory by name; None when it is not a folder inside of it."""
        if folder not in self._listings:
            self._listings[folder] = self._list(folder)
        return self._listings[folder]

    def _list(self, folder: str) -> dict[str, os.DirEntry[str]] | None:
        path = os.path.join(self.directory, folder)
        if folder and not self._inside(path):
            return None
        try:
            with os.scandir(path) as entries:
                return {entry.name: entry for entry in entries}
        except OSError as exc:
            if folder:
                return None
            raise PlanError(f"cannot read {self.shown}: {exc.strerror}", location=Location(self.shown)) from None

    def _inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real.startswith(self._root.rstrip(os.sep) + os.sep)

    def path(self, file: str, location: Location) -> str:
        """The absolute path of a file the plan names.

        :raises PlanError: it is missing, not a regular file, or outside the directory
        """
        parts = file.split("/")
        if file.startswith("/") or ".." in parts:
            remedy = "Name files relative to the plan, without `..`."
            raise PlanError(f"{file} is outside the plan's directory", location=location, remedy=remedy)
        folder, _slash, name = "/".join(part for part in parts if part not in ("", ".")).rpartition("/")
        listing = self.listing(folder)
        if listing is None:
            outside = folder and os.path.isdir(os.path.join(self.directory, folder))
            problem = "leads outside the plan's directory by a symbolic link" if outside else "does not exist"
            raise PlanError(f"file {file} {problem}", location=location, remedy=self._near(name, listing))
        entry = listing.get(name)
        if entry is None:
            raise PlanError(f"file {file} does not exist", location=location, remedy=self._near(name, listing))
        self.check(entry, file, location)
        return os.path.join(self.directory, folder, name)

    def check(self, entry: os.DirEntry[str], file: str, location: Location) -> None:
        """:raises PlanError: not a regular file, or a link that leads out of the directory"""
        if entry.is_file(follow_symlinks=False):
            return
        if entry.is_symlink():
            path = os.path.join(self.directory, file)
            if not os.path.exists(path):
                raise PlanError(f"file {file} is a symbolic link to nothing", location=location)
            if not self._inside(path):
                problem = f"file {file} leads outside the plan's directory by a symbolic link"
                raise PlanError(problem, location=location, remedy="Put the file itself there.")
            if stat.S_ISREG(os.stat(path).st_mode):
                return
        raise PlanError(f"{file} is not a regular file", location=location)

    def _near(self, name: str, listing: dict[str, os.DirEntry[str]] | None) -> str | None:
        remedy = nearest(name, [other for other in listing or () if other.endswith(".sql")])
        return remedy if remedy.startswith("Did") else None


# ---------------------------------------------------------------------------------------------------------------------
# plan.yml


_PLAN_KEYS = (
    "name", "out_of_order", "transaction", "defaults", "variables", "secret_variables", "drift_ignore", "migrations",
)  # fmt: skip
_LIMIT_KEYS = ("lock_timeout", "statement_timeout", "retry")
_RETRY_KEYS = ("attempts", "max_delay", "deadline")
_MIGRATION_KEYS = (
    "id", "summary", "risk", "expected", "requires", "deploy", "steps", "transaction", "rollback", "rollback_loses",
    "verify", "manual", *_LIMIT_KEYS, "lock_tables", "session_settings",
)  # fmt: skip
_SQL_STEP_KEYS = ("name", "sql", "transaction")
OPERATIONS: dict[str, t.Callable[[Entry, t.Any], Operation]] = {
    "create_index": create_index,
    "add_foreign_key": add_foreign_key,
    "set_not_null": set_not_null,
    "change_type": change_type,
    "contract_type": contract_type,
}
_STEP_KINDS = ("sql", "backfill", *OPERATIONS)
_BACKFILL_KEYS = ("table", "key", "set", "where", "batch", *THROTTLE_KEYS)
_RISK_KEYS = ("level", "probability", "impact", "mitigation", "owner")


def _plan_file(directory: str) -> str | None:
    found = [name for name in PLAN_FILES if os.path.lexists(os.path.join(directory, name))]
    if len(found) > 1:
        problem = f"{directory} holds both {' and '.join(found)}"
        raise PlanError(problem, location=Location(directory), remedy="Keep one of them.")
    return os.path.join(directory, found[0]) if found else None


def _load_plan_directory(directory: str) -> Plan:
    return _load_plan_file(t.cast(str, _plan_file(directory)))


def _load_plan_file(path: str) -> Plan:
    if YAML_ERROR is not None:
        raise EnvironmentProblem(
            f"{path} cannot be read: the Python package PyYAML is missing",
            remedy="Install it for the Python that runs the module: pip install PyYAML.",
        )
    try:
        with open(path, "rb") as stream:
            raw = stream.read()
    except OSError as exc:
        raise PlanError(f"cannot read {path}: {exc.strerror}", location=Location(path)) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = raw[: exc.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        location = Location(path, before.count(b"\n") + 1, column)
        raise PlanError("the plan is not UTF-8", location=location, remedy="Save it as UTF-8.") from None
    return _PlanReader(path, text, hashlib.sha256(raw).hexdigest()).plan()


class _Deploy:
    """The steps of a migration as they are read, and what belongs to them."""

    def __init__(self) -> None:
        self.steps: tuple[Step, ...] = ()
        self.operations: list[Operation] = []
        self.checks: list[Check] = []
        self.own_rollback: t.Any = None
        self._order: list[tuple[int, int]] = []  # of each step: the operation and its number there

    def add(self, operation: Operation) -> None:
        """Its steps come last; only what looks whether rows are in the way comes before what leaves the rows alone, so
        that a migration that is refused has changed nothing."""
        number = len(self.operations)
        self.operations.append(operation)
        self.checks.extend(operation.checks)
        place = len(self._order)
        while place and self.operations[self._order[place - 1][0]].keeps_rows and not _looks(self.steps[place - 1]):
            place -= 1
        for position, step in enumerate(operation.steps):
            first = position == 0 and _looks(step)
            self._order.insert(place if first else len(self._order), (number, position))
        self.steps = tuple(self.operations[number].steps[position] for number, position in self._order)

    def rollback(self) -> tuple[Step, ...] | None:
        """The way back that the steps bring themselves, the last one's first; None when one of them has none."""
        undo: list[Step] = []
        for number, operation in reversed(list(enumerate(self.operations))):
            if operation.undo is None:
                return None
            for step in operation.undo:
                positions = step.undoes if step.undoes is not None else range(len(operation.steps))
                undoes = tuple(self._order.index((number, position)) for position in positions)
                undo.append(dataclasses.replace(step, undoes=undoes))
        return tuple(_restored_once(undo)) or None


def _looks(step: Step) -> bool:
    return isinstance(step, SweepStep) and step.mode == "count"


def _restored_once(undo: t.Sequence[Step]) -> list[Step]:
    """A restore brings back every row that the migration moved, so the last one does it for all: by then each key that
    would refuse a row is gone."""
    restores = [step for step in undo if isinstance(step, SweepStep)]
    undoes = tuple(sorted({number for step in restores for number in step.undoes or ()}))
    return [
        dataclasses.replace(step, undoes=undoes) if restores and step is restores[-1] else step
        for step in undo
        if not isinstance(step, SweepStep) or step is restores[-1]
    ]


def _files_of(steps: t.Iterable[Step]) -> set[str]:
    return {step.path for step in steps if isinstance(step, SqlStep) and step.text is None}


class _PlanReader:
    """The text of one plan.yml to a Plan."""

    def __init__(self, path: str, text: str, sha256: str) -> None:
        self.file = path
        self.text = text
        self.sha256 = sha256
        self.yaml = PlanYaml(text, path)
        self.files = _Files(os.path.dirname(path) or ".", os.path.dirname(path) or ".")
        self.deployed: dict[str, Location] = {}
        self.used: set[str] = set()
        self.secret_variables: tuple[str, ...] = ()

    def plan(self) -> Plan:
        yml = self.yaml
        root = yml.root(self.text)
        if root is None:
            remedy = "Give at least name and migrations."
            raise PlanError("the plan is empty", location=Location(self.file, 1, 1), remedy=remedy)
        fields = yml.fields(root, "the plan", _PLAN_KEYS)
        if "migrations" not in fields:
            raise PlanError("the plan has no migrations", location=yml.at(root), remedy="Give a list under migrations.")
        name = yml.text(fields["name"], "name") if "name" in fields else os.path.basename(self.files.directory)
        variables = self._variables(fields["variables"]) if "variables" in fields else {}
        if "secret_variables" in fields:
            self.secret_variables = self._secret_variables(fields["secret_variables"], variables)
        limits = DEFAULT_LIMITS
        if "defaults" in fields:
            limits = self._limits(yml.fields(fields["defaults"], "defaults", _LIMIT_KEYS), DEFAULT_LIMITS)
        transaction = "per_migration"
        if "transaction" in fields:
            transaction = yml.choice(fields["transaction"], "transaction", ("per_migration", "together"))
        migrations: dict[str, Migration] = {}
        for index, node in enumerate(yml.items(fields["migrations"], "migrations")):
            migration = self._migration(node, index, limits, migrations)
            migrations[migration.id] = migration
        if transaction == "together":
            _check_together(list(migrations.values()))
        return Plan(
            name=name,
            directory=self.files.directory,
            file=self.file,
            out_of_order=yml.choice(fields["out_of_order"], "out_of_order", ("error", "allow"))
            if "out_of_order" in fields
            else "error",
            transaction=transaction,
            variables=variables,
            secret_variables=self.secret_variables,
            drift_ignore=yml.texts(fields["drift_ignore"], "drift_ignore") if "drift_ignore" in fields else (),
            migrations=tuple(migrations.values()),
            warnings=self._warnings(),
            sha256=self.sha256,
        )

    def _warnings(self) -> tuple[str, ...]:
        listing = self.files.listing() or {}
        unused = sorted(name for name in listing if name.endswith(".sql") and name[0] != "." and name not in self.used)
        if not unused:
            return ()
        shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
        return (f"SQL files beside {self.file} that it does not name: {shown}",)

    def _variables(self, node: t.Any) -> dict[str, t.Any]:
        variables = {}
        for name, (key, value) in self.yaml.entries(node, "variables").items():
            self._variable_name(name, key)
            default = self.yaml.plain(value)
            if isinstance(default, (list, dict)):
                problem = f"the default of variable {name} is not a text, number or boolean"
                raise PlanError(problem, location=self.yaml.at(value))
            variables[name] = default
        return variables

    def _secret_variables(self, node: t.Any, variables: t.Mapping[str, t.Any]) -> tuple[str, ...]:
        names = self.yaml.texts(node, "secret_variables")
        for name, item in zip(names, self.yaml.one_or_more(node, "secret_variables")):
            self._variable_name(name, item)
            if name in variables:
                problem = f"variable {name} is both plain and secret"
                raise PlanError(problem, location=self.yaml.at(item), remedy="Keep it under secret_variables only.")
        return names

    def _variable_name(self, name: str, node: t.Any) -> None:
        if not _VARIABLE.fullmatch(name):
            remedy = "Use letters, digits and underscores, not beginning with a digit."
            raise PlanError(f"{name!r} is not the name of a variable", location=self.yaml.at(node), remedy=remedy)

    def _limits(self, fields: t.Mapping[str, t.Any], base: Limits) -> Limits:
        yml = self.yaml
        retry = base.retry
        if "retry" in fields:
            given = yml.fields(fields["retry"], "retry", _RETRY_KEYS)
            retry = RetryPolicy(
                attempts=yml.integer(given["attempts"], "attempts", 1) if "attempts" in given else retry.attempts,
                max_delay=yml.duration(given["max_delay"], "max_delay") if "max_delay" in given else retry.max_delay,
                deadline=yml.duration(given["deadline"], "deadline") if "deadline" in given else retry.deadline,
            )
        lock, statement = base.lock_timeout, base.statement_timeout
        return Limits(
            lock_timeout=yml.duration(fields["lock_timeout"], "lock_timeout") if "lock_timeout" in fields else lock,
            statement_timeout=yml.duration(fields["statement_timeout"], "statement_timeout")
            if "statement_timeout" in fields
            else statement,
            retry=retry,
        )

    def _migration(self, node: t.Any, index: int, limits: Limits, earlier: t.Mapping[str, Migration]) -> Migration:
        yml = self.yaml
        fields = yml.fields(node, "a migration", _MIGRATION_KEYS)
        location = yml.at(node)
        if "id" not in fields:
            raise PlanError("a migration has no id", location=location)
        id_ = yml.text(fields["id"], "id")
        if not _ID.fullmatch(id_):
            remedy = "Use letters, digits, dots, dashes and underscores, beginning with a letter or digit."
            raise PlanError(f"{id_!r} is not the id of a migration", location=yml.at(fields["id"]), remedy=remedy)
        if id_ in earlier:
            problem = f"two migrations have the id {id_} (also on line {earlier[id_].location.line})"
            raise PlanError(problem, location=yml.at(fields["id"]))
        location = yml.at(fields["id"])
        ways = [key for key in ("deploy", "steps") if key in fields]
        if len(ways) != 1:
            problem = f"migration {id_} has {'both deploy and steps' if ways else 'neither deploy nor steps'}"
            raise PlanError(problem, location=location, remedy="Give exactly one of them.")
        transaction = yml.flag(fields["transaction"], "transaction") if "transaction" in fields else None
        deploy = self._steps(fields[ways[0]], ways[0], id_, transaction)
        steps = deploy.steps
        rollback: tuple[Step, ...] | None = deploy.rollback()
        if "rollback" in fields:
            rollback = self._rollback(fields["rollback"], id_, transaction)
            if deploy.own_rollback is not None:
                problem = f"migration {id_} has a rollback, and so has a step of it"
                raise PlanError(problem, location=yml.at(deploy.own_rollback), remedy="Keep one of them.")
        both = _files_of(steps) & _files_of(rollback or ())
        if both:
            problem = f"migration {id_} names the same file to deploy and to roll back"
            raise PlanError(problem, location=yml.at(fields["rollback"]))
        loses = self._tables(fields, "rollback_loses")
        if loses and rollback is None:
            problem = f"migration {id_} has rollback_loses and no rollback"
            raise PlanError(problem, location=yml.at(fields["rollback_loses"]))
        return Migration(
            id=id_,
            summary=" ".join(yml.text(fields["summary"], "summary").split()) if "summary" in fields else "",
            index=index,
            steps=steps,
            location=location,
            risk=self._risk(fields["risk"]) if "risk" in fields else None,
            expected=yml.duration(fields["expected"], "expected", positive=False) if "expected" in fields else None,
            requires=self._requires(fields["requires"], id_, earlier) if "requires" in fields else (),
            rollback=rollback,
            rollback_loses=loses,
            verify=self._verify(fields.get("verify"), id_, deploy.checks),
            manual=self._manual(fields["manual"]) if "manual" in fields else None,
            limits=self._limits(fields, limits) if any(key in fields for key in _LIMIT_KEYS) else limits,
            lock_tables=self._tables(fields, "lock_tables"),
            session_settings=self._session_settings(fields["session_settings"]) if "session_settings" in fields else {},
            retyped=tuple(item for operation in deploy.operations for item in operation.retyped),
        )

    def _risk(self, node: t.Any) -> Risk:
        yml = self.yaml
        if is_scalar(node):
            return Risk(level=self._level(node, "risk"))
        fields = yml.fields(node, "risk", _RISK_KEYS)
        return Risk(
            **{key: self._level(fields[key], key) for key in _RISK_KEYS[:3] if key in fields},
            **{key: yml.text(fields[key], key) for key in _RISK_KEYS[3:] if key in fields},
        )

    def _level(self, node: t.Any, what: str) -> str:
        text = self.yaml.text(node, what).lower()
        if text not in RISK_LEVELS:
            remedy = f"Write one of {', '.join(RISK_LEVELS)}."
            raise PlanError(f"{what} is {text}", location=self.yaml.at(node), remedy=remedy)
        return text

    def _manual(self, node: t.Any) -> str | None:
        if self.yaml.is_flag(node):
            return MANUAL_REASON if self.yaml.flag(node, "manual") else None
        return " ".join(self.yaml.text(node, "manual").split())

    def _requires(self, node: t.Any, id_: str, earlier: t.Mapping[str, Migration]) -> tuple[str, ...]:
        names = self.yaml.texts(node, "requires")
        for name, item in zip(names, self.yaml.one_or_more(node, "requires")):
            if name in earlier:
                continue
            if name == id_:
                raise PlanError(f"migration {id_} requires itself", location=self.yaml.at(item))
            problem = f"migration {id_} requires {name}, which is not an earlier migration of the plan"
            raise PlanError(problem, location=self.yaml.at(item), remedy=_nearest_id(name, earlier))
        return names

    def _sql_step(
        self, file_node: t.Any, what: str, transaction: bool | None, name: str | None = None, place: t.Any = None
    ) -> SqlStep:
        file = self.yaml.text(file_node, what)
        location = self.yaml.at(file_node)
        path = self.files.path(file, location)
        self.used.add(os.path.relpath(path, self.files.directory) if "/" in file else file)
        where = self.yaml.at(place) if place is not None else location
        return SqlStep(name=name or file, path=path, file=file, location=where, declared_transaction=transaction)

    def _deploy_once(self, step: SqlStep) -> None:
        first = self.deployed.setdefault(step.path, step.location)
        if first is not step.location:
            problem = f"file {step.file} is deployed twice (also on line {first.line})"
            raise PlanError(problem, location=step.location, remedy="A deploy file belongs to one migration.")

    def _steps(self, node: t.Any, key: str, id_: str, transaction: bool | None) -> _Deploy:
        yml = self.yaml
        nodes = yml.one_or_more(node, key) if key == "deploy" else yml.items(node, key)
        if not nodes:
            raise PlanError(f"steps of migration {id_} is empty", location=yml.at(node))
        found = _Deploy()
        for item in nodes:
            operation = self._step(item, key, id_, transaction, found)
            for number, step in enumerate(operation.steps):
                if isinstance(step, SqlStep) and step.text is None:
                    self._deploy_once(step)
                earlier = (*found.steps, *operation.steps[:number])
                same = next((other for other in earlier if other.name == step.name), None)
                if same is not None:
                    problem = f"migration {id_} has two steps named {step.name} (also on line {same.location.line})"
                    raise PlanError(problem, location=step.location, remedy="Give one of them another name.")
            found.add(operation)
        without = next((operation for operation in found.operations if operation.undo is None), None)
        if found.own_rollback is not None and without is not None:
            step = without.steps[0]
            problem = f"step {step.name} of migration {id_} has no rollback, and another one has"
            remedy = "Give each of them one ([] when there is nothing to undo), or one to the migration."
            raise PlanError(problem, location=step.location, remedy=remedy)
        return found

    def _step(self, node: t.Any, key: str, id_: str, transaction: bool | None, found: _Deploy) -> Operation:
        yml = self.yaml
        if is_scalar(node) or key == "deploy":
            what = "a file of deploy" if key == "deploy" else "a step"
            return Operation((self._sql_step(node, what, transaction),))
        fields = yml.fields(node, "a step", (*_SQL_STEP_KEYS, *_STEP_KINDS[1:], "rollback"))
        name = yml.text(fields["name"], "name") if "name" in fields else None
        kinds = [kind for kind in _STEP_KINDS if kind in fields]
        if len(kinds) != 1:
            problem = f"a step has {' and '.join(kinds)}" if kinds else "a step has neither sql nor backfill"
            problem = "a step has both sql and backfill" if kinds == ["sql", "backfill"] else problem
            remedy = "Give exactly one of them." if kinds else f"Give exactly one of {', '.join(_STEP_KINDS)}."
            raise PlanError(problem, location=yml.at(node), remedy=remedy)
        kind = kinds[0]
        if kind != "sql" and "transaction" in fields:
            problem = f"a {kind} step has the key transaction"
            remedy = "Remove it: every batch is a transaction of its own."
            if kind != "backfill":
                remedy = "Remove it: the operation knows what runs in a transaction."
            raise PlanError(problem, location=yml.at(fields["transaction"]), remedy=remedy)
        if kind in OPERATIONS:
            if "rollback" in fields:
                problem = f"a {kind} step has a rollback"
                remedy = "Remove it: the operation has its own; another way back goes to the migration."
                raise PlanError(problem, location=yml.at(fields["rollback"]), remedy=remedy)
            return OPERATIONS[kind](Entry(yml, kind, name or "", yml.at(node), f"{self.file}#{id_}"), fields[kind])
        undo = None
        if "rollback" in fields:
            found.own_rollback = found.own_rollback or fields["rollback"]
            undo = self._own_rollback(fields["rollback"], id_, transaction)
        if kind == "backfill":
            return Operation((self._backfill(fields["backfill"], name, node),), undo)
        if "transaction" in fields:
            transaction = yml.flag(fields["transaction"], "transaction")
        return Operation((self._sql_step(fields["sql"], "sql", transaction, name, node),), undo)

    def _own_rollback(self, node: t.Any, id_: str, transaction: bool | None) -> tuple[Step, ...]:
        if not is_scalar(node) and not self.yaml.items(node, "rollback"):
            return ()
        return self._rollback(node, id_, transaction)

    def _rollback(self, node: t.Any, id_: str, transaction: bool | None) -> tuple[SqlStep, ...]:
        yml = self.yaml
        steps: list[SqlStep] = []
        for item in yml.one_or_more(node, "rollback"):
            if is_scalar(item):
                step = self._sql_step(item, "a file of rollback", transaction)
            else:
                fields = yml.fields(item, "a rollback step", _SQL_STEP_KEYS)
                if "sql" not in fields:
                    raise PlanError("a rollback step has no sql", location=yml.at(item))
                mode = yml.flag(fields["transaction"], "transaction") if "transaction" in fields else transaction
                name = yml.text(fields["name"], "name") if "name" in fields else None
                step = self._sql_step(fields["sql"], "sql", mode, name, item)
            if any(other.path == step.path or other.name == step.name for other in steps):
                raise PlanError(f"rollback of migration {id_} has {step.name} twice", location=step.location)
            steps.append(step)
        return tuple(steps)

    def _backfill(self, node: t.Any, name: str | None, place: t.Any) -> BackfillStep:
        yml = self.yaml
        fields = yml.fields(node, "backfill", _BACKFILL_KEYS)
        for name_ in ("table", "key", "set"):
            if name_ not in fields:
                raise PlanError(f"a backfill has no {name_}", location=yml.at(node))
        table = yml.table(fields["table"], "table")
        assignments: dict[str, str] = {}
        for column, (key_node, value) in yml.entries(fields["set"], "set").items():
            assignments[yml.column(column, key_node)] = yml.text(value, f"the expression of {column}")
        if not assignments:
            raise PlanError("set of a backfill is empty", location=yml.at(fields["set"]))
        keys = yml.one_or_more(fields["key"], "key")
        key = tuple(yml.column(yml.text(item, "key"), item) for item in keys)
        if len(set(key)) != len(key):
            raise PlanError("key of a backfill has a column twice", location=yml.at(fields["key"]))
        return BackfillStep(
            name=name or f"backfill {table}",
            table=table,
            key=key,
            set=assignments,
            where=yml.text(fields["where"], "where") if "where" in fields else None,
            batch=yml.integer(fields["batch"], "batch", 1) if "batch" in fields else 1000,
            throttle=yml.throttle(fields),
            location=yml.at(place),
        )

    def _tables(self, fields: t.Mapping[str, t.Any], key: str) -> tuple[str, ...]:
        if key not in fields:
            return ()
        tables: dict[tuple[str, str], str] = {}
        for item in self.yaml.one_or_more(fields[key], key):
            table = self.yaml.table(item, key)
            if split_qualified(table) in tables:
                raise PlanError(f"{key} has {table} twice", location=self.yaml.at(item))
            tables[split_qualified(table)] = table
        return tuple(tables.values())

    def _session_settings(self, node: t.Any) -> dict[str, str]:
        settings = {}
        for setting, (key, value) in self.yaml.entries(node, "session_settings").items():
            if not _SETTING.fullmatch(setting):
                remedy = "Only custom settings can be given; their names contain a dot, such as app.encryption_key."
                problem = f"{setting} is not the name of a custom setting"
                raise PlanError(problem, location=self.yaml.at(key), remedy=remedy)
            variable = self.yaml.text(value, setting)
            if variable not in self.secret_variables:
                problem = f"{setting} takes its value from {variable}, which is not a secret variable of the plan"
                remedy = "List it under secret_variables."
                if self.secret_variables:
                    remedy = nearest(variable, self.secret_variables)
                raise PlanError(problem, location=self.yaml.at(value), remedy=remedy)
            settings[setting] = variable
        return settings

    def _verify(self, node: t.Any, id_: str, own: t.Sequence[Check]) -> tuple[Check, ...]:
        """The checks of the operations, then the user's."""
        checks: list[Check] = list(own)
        for item in self.yaml.one_or_more(node, "verify") if node is not None else ():
            location = self.yaml.at(item)
            if is_scalar(item):
                file = self.yaml.text(item, "a file of verify")
                if not file.endswith(".sql"):
                    remedy = "Give a list of checks, or the name of an .sql file."
                    raise PlanError(f"verify of migration {id_} is {file}", location=location, remedy=remedy)
                path = self.files.path(file, location)
                self.used.add(file)
                shown = os.path.join(os.path.dirname(self.file), file)
                check = check_file(path, file, Location(shown))
            else:
                check = parse_check(self.yaml.plain(item), location, self.yaml.locator(item))
            same = next((other for other in checks if other.slug == check.slug), None)
            if same is not None:
                problem = f"two checks of migration {id_} are named {check.name}"
                if same.name != check.name:
                    problem = f"checks {same.name!r} and {check.name!r} of migration {id_} differ in punctuation only"
                remedy = "Evidence is kept by name: give one of them another."
                raise PlanError(problem, location=location, remedy=remedy)
            checks.append(check)
        return tuple(checks)


def _check_together(migrations: t.Sequence[Migration]) -> None:
    """:raises PlanError: something cannot be part of one transaction around all migrations"""
    remedy = "Use transaction: per_migration for the plan."
    for migration in migrations:
        for step in migration.steps:
            if not isinstance(step, SqlStep):
                problem = f"transaction: together excludes the backfill of migration {migration.id}"
                raise PlanError(problem, location=step.location, remedy=remedy)
            if not step.transaction:
                problem = f"transaction: together excludes {step.file}, which runs outside a transaction"
                raise PlanError(problem, location=step.location, remedy=remedy)
        if migration.session_settings != migrations[0].session_settings:
            problem = f"transaction: together, and migration {migration.id} needs session_settings of its own"
            raise PlanError(problem, location=migration.location, remedy=remedy)


# ---------------------------------------------------------------------------------------------------------------------
# NNN_name.sql


_PLAIN = re.compile(r"(?P<id>(?P<number>[0-9]+)_(?P<name>.+?))(?:\.(?P<kind>rollback|down|verify))?\.sql", re.ASCII)
_PLAIN_REMEDY = "Name files NNN_name.sql, NNN_name.rollback.sql (or .down.sql) and NNN_name.verify.sql."


def _is_sql(name: str) -> bool:
    return name[-4:].lower() == ".sql" and name[0] != "."


def _detect_plain(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(_is_sql(entry.name) for entry in entries)
    except OSError as exc:
        raise PlanError(f"cannot read {directory}: {exc.strerror}", location=Location(directory)) from None


def _load_plain(directory: str) -> Plan:
    files = _Files(directory, directory)
    found: dict[str, dict[str, SqlStep]] = {}
    numbers: dict[str, tuple[int, str]] = {}
    join = os.path.join
    names = sorted(name for name in files.listing() or () if _is_sql(name))
    listing = files.listing() or {}
    for name in names:
        location = Location(join(directory, name))
        match = _PLAIN.fullmatch(name)
        if match is None:
            raise PlanError(f"{name} is not the name of a migration's file", location=location, remedy=_PLAIN_REMEDY)
        id_ = match["id"]
        if not _ID.fullmatch(id_):
            remedy = "Use letters, digits, dots, dashes and underscores."
            raise PlanError(f"{id_!r} is not the id of a migration", location=location, remedy=remedy)
        files.check(listing[name], name, location)
        step = SqlStep(name=name, path=join(files.directory, name), file=name, location=location)
        parts = found.setdefault(id_, {})
        kind = match["kind"] or "deploy"
        kind = "rollback" if kind == "down" else kind
        if kind in parts:
            problem = f"migration {id_} has both {parts[kind].file} and {name}"
            raise PlanError(problem, location=location, remedy="Keep one of them.")
        parts[kind] = step
        numbers[id_] = (int(match["number"]), match["name"])
    for id_, parts in found.items():
        if "deploy" not in parts:
            stray = next(iter(parts.values()))
            raise PlanError(f"{stray.file} has no {id_}.sql", location=stray.location, remedy=_PLAIN_REMEDY)
    ordered = sorted(found, key=lambda item: (numbers[item], item))
    migrations = []
    warnings = []
    for index, id_ in enumerate(ordered):
        parts = found[id_]
        if index and numbers[ordered[index - 1]][0] == numbers[id_][0]:
            before = ordered[index - 1]
            if numbers[before] == numbers[id_]:
                problem = f"{before}.sql and {id_}.sql have the same number and name"
                raise PlanError(problem, location=parts["deploy"].location, remedy="Rename one of them.")
            warnings.append(f"{before} and {id_} have the same number; they are applied in this order, by name")
        verify = parts.get("verify")
        migrations.append(
            Migration(
                id=id_,
                summary=numbers[id_][1].replace("_", " "),
                index=index,
                steps=(parts["deploy"],),
                location=parts["deploy"].location,
                rollback=(parts["rollback"],) if "rollback" in parts else None,
                verify=(check_file(verify.path, verify.file, verify.location),) if verify is not None else (),
            )
        )
    return Plan(
        name=os.path.basename(files.directory),
        directory=files.directory,
        file=None,
        out_of_order="error",
        transaction="per_migration",
        variables={},
        secret_variables=(),
        drift_ignore=(),
        migrations=tuple(migrations),
        warnings=tuple(warnings),
        sha256=hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest(),
    )


# Asked in this order; the first whose files are there loads the directory. Another layout is one more entry.
LAYOUTS: tuple[Layout, ...] = (
    Layout("plan", lambda directory: _plan_file(directory) is not None, _load_plan_directory),
    Layout("plain", _detect_plain, _load_plain),
)
