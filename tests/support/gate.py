# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine in a thread that a test lets go from one place to the next; what runs between is the engine's own code."""

from __future__ import annotations

import contextlib
import threading
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._autonomous import Autonomous
from ansible_collections.surefoot.dbops.plugins.module_utils._backfill import Backfills
from ansible_collections.surefoot.dbops.plugins.module_utils._context import Context
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Interrupted, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._sweep import Sweeps
from ansible_collections.surefoot.dbops.plugins.module_utils._transaction import Transactions
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import Worker
from ansible_collections.surefoot.dbops.tests.support.migrations import Background, MigrationSet, run
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

# Places to stop at, from the rarest to the most frequent: before a step (also the ledger row at the end), before each
# transaction or lone statement of it, before each text that is sent.
PART, TRANSACTION, CALL = 0, 1, 2
_PLACES: tuple[tuple[type, str, int], ...] = (
    (Transactions, "run", PART),
    (Autonomous, "run", PART),
    (Backfills, "run", PART),
    (Sweeps, "run", PART),
    (Context, "with_retries", TRANSACTION),
    (Worker, "execute", CALL),
    (Worker, "fetch", CALL),
)


class Gate:
    """Stands in the way of every worker thread of the engine in this process; open at first."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._turn = threading.Condition()
        self._open = True
        self._until: int | None = None  # None: it stops at the next place
        self._left = 0
        self._waiting = False
        self._stopping = False
        for owner, name, place in _PLACES:
            patch.setattr(owner, name, self._guarded(getattr(owner, name), place))

    def _guarded(self, original: t.Callable[..., t.Any], place: int) -> t.Callable[..., t.Any]:
        def guarded(*positional: t.Any, **named: t.Any) -> t.Any:
            self._pass(place)
            return original(*positional, **named)

        return guarded

    def _pass(self, place: int) -> None:
        with self._turn:
            if self._open:
                return
            if self._stopping:
                raise Interrupted("stopped by the test")
            if self._until is not None and place <= self._until:
                self._left -= 1
                if self._left <= 0:
                    self._until = None
            while not self._open and self._until is None:
                self._waiting = True
                self._turn.notify_all()
                self._turn.wait()
            self._waiting = False
            if self._stopping:
                raise Interrupted("stopped by the test")

    @property
    def standing(self) -> bool:
        """Whether the engine stands at a place."""
        with self._turn:
            return self._waiting

    def close(self) -> None:
        """Stop the engine at the next place of any kind."""
        with self._turn:
            self._open, self._until, self._stopping = False, None, False

    def open(self) -> None:
        """Let the engine run."""
        with self._turn:
            self._open, self._stopping = True, False
            self._turn.notify_all()

    def stop(self, engine: Background[t.Any]) -> None:
        """End the engine where it stands, as when the run is told to stop."""
        with self._turn:
            self._stopping, self._until, self._left = True, CALL, 1
            self._turn.notify_all()
        with contextlib.suppress(SurefootError):
            engine.result()
        self.open()

    def advance(self, engine: Background[t.Any], until: int, number: int = 1, patience: float = 0.15) -> bool:
        """Let the engine run to the ``number``-th next place of this kind.

        :returns: whether it stands there (or has ended); if not, it goes on to there by itself once it can, as it
            waits for a lock or longer than ``patience``, in seconds
        """
        with self._turn:
            if self._waiting:
                self._until, self._left = until, number
                self._waiting = False
                self._turn.notify_all()
        deadline = time.monotonic() + patience
        while engine.running and time.monotonic() < deadline:
            with self._turn:
                if self._waiting:
                    return True
                self._turn.wait(0.005)
        return not engine.running


def gated_run(
    gate: Gate, plan: MigrationSet | str, database: Database, **options: t.Any
) -> Background[dict[str, t.Any]]:
    """The engine in a thread, standing at its first place."""
    gate.close()
    engine = Background(lambda: run(plan, database, **options))
    deadline = time.monotonic() + 30
    while not gate.standing and engine.running and time.monotonic() < deadline:
        time.sleep(0.002)
    return engine
