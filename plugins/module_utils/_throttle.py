# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Between two batches of a backfill: waits while others would suffer from the next one.

The watch (``_vitals.py``) stops a run that is over a limit; this keeps a backfill below it. What the role may not see
holds nothing back: the watch says "not measured" of it, and the preflight asks for the right.
"""

from __future__ import annotations

import math
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, LockBusy
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import Throttle
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, human_size
from ansible_collections.surefoot.dbops.plugins.module_utils._vitals import ReplicaAges
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import Worker

_LOOK_EVERY = 0.25  # seconds
_LONGEST_NAP = 0.5  # seconds
_SAY_AFTER = 5.0  # seconds
# What was written too much is paid for with a wait of at most this; else one large transaction of somebody else's,
# written before, would hold the backfill back for an hour.
_LONGEST_DEBT = 60.0  # seconds

_WRITTEN = "(pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint"
# Between batches no session waits for this one, so all that wait for a lock are counted, whoever holds it.
_SAMPLE = f"""
SELECT {_WRITTEN},
    (SELECT pg_catalog.min(replay_lsn - '0/0'::pg_lsn) FROM pg_catalog.pg_stat_replication
     WHERE state <> 'backup')::bigint,
    (SELECT pg_catalog.max(extract(epoch FROM replay_lag)) FROM pg_catalog.pg_stat_replication)::float8,
    (SELECT pg_catalog.count(DISTINCT pid) FROM pg_catalog.pg_locks WHERE NOT granted)::int,
    (SELECT 100.0 * pg_catalog.sum(numbackends) FROM pg_catalog.pg_stat_database)::float8
    / (pg_catalog.current_setting('max_connections')::int
       - pg_catalog.current_setting('superuser_reserved_connections')::int
       - coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int)
"""


def _of(limit: float | None) -> float:
    return math.inf if limit is None else limit


class Brake:
    """Holds one backfill back. ``waited``: seconds it did so, without its ``pause``."""

    def __init__(
        self, name: str, location: Location, limits: Throttle, worker: Worker, say: t.Callable[[str], None] | None
    ) -> None:
        self._name = name
        self._location = location
        self._limits = limits
        self._worker = worker
        self._say = say
        self._ages = ReplicaAges()
        self._looked = -math.inf
        self._wal: tuple[float, int] | None = None
        self._debt = 0.0  # bytes written beyond what the rate allows
        self.waited = 0.0

    def hold(self, patience: float) -> None:
        """Return when the next batch may begin.

        :param patience: seconds after which waiting is given up
        :raises LockBusy: a limit was exceeded all that time
        """
        began = time.monotonic()
        said = False
        while (found := self._too_much()) is not None:
            reason, nap = found
            waited = time.monotonic() - began
            if waited > patience:
                raise LockBusy(
                    f"{self._name}: {reason}; it waited {human_duration(waited)}",
                    remedy="Run again when there is less to do: the batches that are done stay done.",
                    location=self._location,
                )
            if waited > _SAY_AFTER and not said and self._say is not None:
                said = True
                self._say(f"{self._name}: waits, {reason}")
            self._worker.sleep(nap)
        self.waited += time.monotonic() - began

    def _too_much(self) -> tuple[str, float] | None:
        """What is over its limit, and how long to sleep before the next look."""
        limits = self._limits
        now = time.monotonic()
        rate = _of(limits.max_wal_rate) / 60
        if now - self._looked < _LOOK_EVERY:
            # The rate is kept batch by batch, or it would be kept in jumps; the rest changes more slowly.
            if not math.isfinite(rate):
                return None
            return self._over_rate(now, int(self._worker.fetch(f"SELECT {_WRITTEN}")[0][0]), rate)
        if not any(math.isfinite(_of(value)) for value in limits.limits()):
            return None
        written, replayed, reported, waiters, connections = self._worker.fetch(_SAMPLE)[0]
        lag = self._ages.lag(now, written, replayed, reported) if replayed is not None else 0.0
        found = None
        if lag > _of(limits.max_lag):
            found = f"a replica lags by {human_duration(lag)}, more than {human_duration(_of(limits.max_lag))}"
        elif waiters > _of(limits.max_waiters):
            found = f"{waiters} sessions wait for locks, more than {limits.max_waiters:.0f}"
        elif (connections or 0) > _of(limits.max_connections_used):
            found = f"{connections:.0f}% of the connections are used, more than {limits.max_connections_used:.0f}%"
        over = self._over_rate(now, written, rate) if math.isfinite(rate) else None
        if found is not None:
            return found, _LOOK_EVERY
        self._looked = now
        return over

    def _over_rate(self, now: float, written: int, rate: float) -> tuple[str, float] | None:
        if self._wal is not None:
            since, before = self._wal
            self._debt = min(max(0.0, self._debt + written - before - rate * (now - since)), rate * _LONGEST_DEBT)
        self._wal = (now, written)
        if self._debt <= 0:
            return None
        return f"more write-ahead log than {human_size(rate * 60)} a minute", min(self._debt / rate, _LONGEST_NAP)
