# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What is not as the ledger recorded it: applied files, and the catalog after the last run."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import diff, entry_hashes, fingerprint
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Ledger, State
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Plan
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import raw_digest, token_digest

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


@dataclasses.dataclass(frozen=True)
class Drift:
    """One difference. ``kind``: changed | spacing (white space or comments only) | missing (from the plan) |
    catalog."""

    migration_id: str
    kind: str
    message: str

    @property
    def matters(self) -> bool:
        return self.kind != "spacing"

    def to_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)


def file_drift(plan: Plan, state: State) -> list[Drift]:
    """Applied migrations whose files changed, or that the plan no longer has. Tokens are compared only where bytes
    differ.

    :raises SqlTextError: a changed file is not valid SQL any more
    """
    found: list[Drift] = []
    by_id = {migration.id: migration for migration in plan.migrations}
    for migration_id, applied in state.applied.items():
        migration = by_id.get(migration_id)
        if migration is None:
            found.append(Drift(migration_id, "missing", f"{migration_id} is applied but not in the plan"))
        elif raw_digest(migration.steps) != applied.raw_sha256:
            if token_digest(migration.steps) == applied.token_sha256:
                found.append(
                    Drift(migration_id, "spacing", f"{migration_id}: only white space or comments changed since")
                )
            else:
                found.append(Drift(migration_id, "changed", f"{migration_id} was changed after it was applied"))
    return found


def catalog_drift(connection: Connection, state: State, ledger_schema: str, ignore: t.Sequence[str]) -> Drift | None:
    """What others did to the catalog since the last run, the names in ``ignore`` left out."""
    if state.mark is None or state.mark.fingerprint == fingerprint(connection, exclude_schemas=(ledger_schema,)):
        return None
    now = entry_hashes(connection, exclude_schemas=(ledger_schema,))
    difference = diff(state.mark.catalog().filter(ignore), now.filter(ignore))
    if not difference:
        return None
    return Drift("", "catalog", f"the catalog changed since run {state.mark.run_id}: {difference.summary()}")


@contextlib.contextmanager
def no_other_run(connection: Connection, ledger: Ledger) -> t.Iterator[bool]:
    """Whether no run is in progress, held so for the block: in the middle of one, every change looks like drift."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (ledger.runner_key,))
        free = bool((cursor.fetchone() or (False,))[0])
        try:
            yield free
        finally:
            if free:
                cursor.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (ledger.runner_key,))


def drift_evidence(found: t.Sequence[Drift]) -> Evidence:
    """The record of what was found."""
    matters = [item.message for item in found if item.matters]
    return Evidence(
        criterion="ledger.no_drift",
        phase="plan",
        verdict=verdict(not matters),
        measured=matters or "files and catalog as recorded",
        required="files and catalog as recorded",
        source="ledger, files, catalog fingerprint",
    )
