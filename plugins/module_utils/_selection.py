# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Plan and ledger compared: what is to be done, and what must not be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    EnvironmentProblem,
    LedgerError,
    PlanError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import State
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, Plan
from ansible_collections.surefoot.dbops.plugins.module_utils._script import Script, inspect
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import SqlStep, Step


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a run would do, in order, and what it leaves alone on purpose."""

    todo: tuple[Migration, ...]
    manual: tuple[Migration, ...]
    done: tuple[str, ...]


def _definition(step: Step) -> bytes:
    body = dataclasses.asdict(step)
    # Nor does its pace change what a step does: whoever must slow a backfill down in the middle can.
    for name in ("location", "undoes", "batch", "throttle"):
        body.pop(name, None)
    return json.dumps(body, sort_keys=True, default=str).encode()


def inspect_step(step: SqlStep) -> Script:
    """Read a step's SQL to its end and check that it can be executed.

    :raises SqlTextError: with file, line, column and remedy
    """
    return inspect(step.path, transaction=step.transaction, text=step.text)


def _combine(parts: t.Sequence[str]) -> str:
    # A migration of one file has the hash of that file, so that sha256sum shows the same.
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def raw_digest(steps: t.Sequence[Step]) -> str:
    """SHA-256 of the bytes of the steps' files.

    :raises EnvironmentProblem: a file cannot be read
    """
    return _combine([step_digest(step) for step in steps])


def step_digest(step: Step) -> str:
    """SHA-256 of a step's bytes, read in pieces: files can be large.

    :raises EnvironmentProblem: the file cannot be read
    """
    if not isinstance(step, SqlStep):
        return hashlib.sha256(read_step(step)).hexdigest()
    if step.text is not None:
        return hashlib.sha256(step.text.encode("utf-8")).hexdigest()
    digest = hashlib.sha256()
    try:
        with open(step.path, "rb") as stream:
            while piece := stream.read(1024 * 1024):
                digest.update(piece)
    except OSError as exc:
        remedy = "Check the path and its rights."
        raise EnvironmentProblem(f"cannot read {step.path}: {exc.strerror}", remedy=remedy) from exc
    return digest.hexdigest()


def token_digest(steps: t.Sequence[Step]) -> str:
    """SHA-256 over the significant tokens: white space and comments do not count.

    :raises SqlTextError: a file is not valid
    """
    return _combine(
        [
            inspect_step(step).token_sha256
            if isinstance(step, SqlStep)
            else hashlib.sha256(_definition(step)).hexdigest()
            for step in steps
        ]
    )


def read_step(step: Step) -> bytes:
    """The bytes of a step's file; of another kind of step, its definition.

    :raises EnvironmentProblem: the file cannot be read
    """
    if not isinstance(step, SqlStep):
        return _definition(step)
    if step.text is not None:
        return step.text.encode("utf-8")
    try:
        with open(step.path, "rb") as stream:
            return stream.read()
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot read {step.path}: {exc.strerror}", remedy="Check the path and its rights."
        ) from exc


def select_deploy(
    plan: Plan,
    state: State,
    *,
    to: str | None = None,
    only: t.Collection[str] = (),
    include_manual: t.Collection[str] = (),
) -> Selection:
    """What is pending, in plan order, up to and including ``to``, or only what is named.

    :raises PlanError: an unknown id, or a requirement that is neither applied nor about to be
    :raises LedgerError: a pending migration comes before an applied one and the plan does not allow that
    """
    for name in (*only, *include_manual, *([to] if to else [])):
        plan.migration(name)
    last = plan.migration(to).index if to else len(plan.migrations)
    wanted = [
        migration
        for migration in plan.migrations
        if migration.id not in state.applied and migration.index <= last and (not only or migration.id in only)
    ]
    manual = tuple(migration for migration in wanted if migration.manual and migration.id not in include_manual)
    todo = tuple(migration for migration in wanted if migration not in manual)
    _check_requirements(todo, state)
    if plan.out_of_order == "error":
        _check_order(plan, todo, state)
    done = tuple(migration.id for migration in plan.migrations if migration.id in state.applied)
    return Selection(todo, manual, done)


def refuse_half_rolled_back(plan: Plan, state: State) -> None:
    """Nothing is deployed, nor recorded as deployed, on top of half a rollback.

    :raises LedgerError: the rollback of a migration was begun and is not finished
    """
    for migration in plan.migrations:
        if migration.id in state.undoing:
            raise LedgerError(
                f"the rollback of {migration.id} was begun and is not finished",
                remedy=f"Finish it first: state: rolled_back, only: [{migration.id}].",
                location=migration.location,
            )


def _check_requirements(todo: t.Sequence[Migration], state: State) -> None:
    available = set(state.applied)
    for migration in todo:
        missing = [name for name in migration.requires if name not in available]
        if missing:
            raise PlanError(
                f"{migration.id} requires {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                "applied",
                remedy="Apply it first: leave out only/to, or name it in include_manual if it is a manual one.",
                location=migration.location,
            )
        available.add(migration.id)


def _check_order(plan: Plan, todo: t.Sequence[Migration], state: State) -> None:
    newest = max(
        (m for m in plan.migrations if m.id in state.applied and not m.manual), key=lambda m: m.index, default=None
    )
    late = [m for m in todo if newest and m.index < newest.index and not m.manual and m.id not in state.partial]
    if newest and late:
        raise LedgerError(
            f"{late[0].id} is pending but comes before {newest.id}, which is applied",
            remedy="Move it to the end of the plan, or set out_of_order: allow.",
            location=late[0].location,
        )


def select_rollback(plan: Plan, state: State, *, to: str | None = None, only: t.Collection[str] = ()) -> Selection:
    """What is to be rolled back, newest first: down to and including ``to``, or only what is named. Half-applied ones
    count.

    :raises PlanError: an unknown id, no rollback file, or something applied that stays requires one of them
    """
    if not to and not only:
        raise PlanError("nothing says what to roll back", remedy="Name the oldest migration in to, or some in only.")
    for name in (*only, *([to] if to else [])):
        plan.migration(name)
    first = plan.migration(to).index if to else 0
    there = [m for m in plan.migrations if m.id in state.applied or m.id in state.partial]
    todo = [m for m in reversed(there) if (m.id in only if only else m.index >= first)]
    ids = {migration.id for migration in todo}
    for migration in todo:
        if migration.rollback is None:
            raise PlanError(
                f"{migration.id} has no rollback",
                remedy="Write one (rollback: in the plan), or restore from the backup.",
                location=migration.location,
            )
    for migration in there:
        needed = ids.intersection(migration.requires)
        if migration.id not in ids and needed:
            raise PlanError(
                f"{migration.id} is applied and requires {', '.join(sorted(needed))}",
                remedy=f"Roll back {migration.id} as well.",
                location=migration.location,
            )
    done = tuple(m.id for m in there if m.id not in ids)
    return Selection(tuple(todo), (), done)
