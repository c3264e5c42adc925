# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The server log of an RDS instance, through the log files its API hands out: the counts of ``_serverlog.py``.

As there, a zero is only believed after a marker that we let the server log came out of the files: it shows that they
are those of the server we are connected to, and complete up to now, because the API hands out lines some time after
they were written.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import secrets
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._aws import Api
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact
from ansible_collections.surefoot.dbops.plugins.module_utils._rds import find_instance
from ansible_collections.surefoot.dbops.plugins.module_utils._serverlog import (
    Counts,
    Entry,
    NotReadable,
    judge_counts,
    parse_csv,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_MAX_RECORD = 16 * 2**20
# What RDS puts in the place of the rest of a line that is too long for an answer.
_CUT = "[Your log message was truncated]"
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) (\S+)")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0

_LEVEL = """
SELECT pg_catalog.current_setting('log_min_messages'),
       (SELECT pg_catalog.min(c) FROM pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) AS c
        WHERE c ~ '^log_min_messages=(log|fatal|panic)$')
"""


class LogFile:
    """One file of csvlog, read on from where the last answer ended."""

    def __init__(self, api: Api, instance: str, name: str) -> None:
        self._api = api
        self._instance = instance
        self.name = name
        self._marker = "0"
        self._line = ""
        self._record: list[str] = []
        self._size = 0
        self._open_quote = False

    def entries(self) -> t.Iterator[Entry | None]:
        """Records that came since the last call; None for one that cannot be taken apart."""
        while True:
            answer = self._api.call(
                "download_db_log_file_portion",
                DBInstanceIdentifier=self._instance,
                LogFileName=self.name,
                Marker=self._marker,
            )
            text = str(answer.get("LogFileData") or "")
            following = str(answer.get("Marker") or self._marker)
            yield from self._feed(text)
            moved, self._marker = following != self._marker, following
            if not (answer.get("AdditionalDataPending") and moved):
                return

    def _feed(self, text: str) -> t.Iterator[Entry | None]:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            # A record goes on over line ends inside quotes.
            self._open_quote ^= line.count('"') % 2 == 1
            self._size += len(line) + 1
            if self._size <= _MAX_RECORD:
                self._record.append(line)
            if not self._open_quote:
                record = "\n".join(self._record).rstrip("\r")
                kept = self._size <= _MAX_RECORD and _CUT not in record
                self._record, self._size = [], 0
                yield parse_csv(record) if kept else None


class RdsLog:
    """The csvlog files of one instance, from a moment on."""

    def __init__(self, api: Api, instance: str, since: datetime.datetime) -> None:
        self._api = api
        self._instance = instance
        self._since = since
        self._files: dict[str, LogFile] = {}

    def read(self, counts: Counts, word: str) -> bool:
        """Count what came since the last call; whether the marker was among it.

        :raises NotReadable: there is no csvlog, or its times are not in UTC
        """
        names = [
            str(item.get("LogFileName"))
            for item in self._api.pages(
                "describe_db_log_files",
                "DescribeDBLogFiles",
                DBInstanceIdentifier=self._instance,
                FileLastWritten=int(self._since.timestamp() * 1000),
            )
        ]
        found = False
        for name in sorted(name for name in names if name.endswith(".csv")):
            file = self._files.setdefault(name, LogFile(self._api, self._instance, name))
            for entry in file.entries():
                if entry is not None and entry.message == word:
                    found = True
                elif entry is None or self._moment(entry) >= self._since:
                    counts.add(entry)
        if not self._files:
            kinds = "only files of the stderr format, whose fields cannot be told apart" if names else "no log file"
            raise NotReadable(
                f"{self._instance} has {kinds}",
                "Set log_destination = csvlog in the parameter group of the instance; it takes no restart.",
            )
        return found

    def _moment(self, entry: Entry) -> datetime.datetime:
        found = _TIME.match(entry.time)
        if found is None or found[2] not in ("UTC", "GMT"):
            raise NotReadable("the times of the log are not in UTC", "Set log_timezone = UTC in the parameter group.")
        return datetime.datetime.fromisoformat(found[1]).replace(tzinfo=datetime.timezone.utc)


def examine_rds(
    api: Api,
    connection: Connection,
    identifier: str,
    *,
    since: datetime.datetime,
    limits: t.Mapping[str, int | None],
    timeout: float,
) -> dict[str, t.Any]:
    """What was logged since a moment: keys readable, reason, remedy, counts, entries, files, evidence.

    :param limits: most of each of the counts; None records it without a limit
    :param timeout: seconds to wait for the marker to appear in the files
    """
    counts = Counts(str(connection.info.dbname))
    log = RdsLog(api, identifier, since)
    problem: NotReadable | None = None
    try:
        find_instance(api, identifier)
        word = _mark(connection)
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not log.read(counts, word):
            if time.monotonic() + pause > deadline:
                raise NotReadable(
                    f"a line that the server was made to log did not appear in the log files of {identifier} within"
                    f" {human_duration(timeout)}",
                    "Look whether the connection leads to this very instance, or raise timeout.",
                )
            api.pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
    except NotReadable as exc:
        problem = exc
    except psycopg2.Error as exc:
        problem = NotReadable(
            f"the server could not be asked about its log: {redact(' '.join(str(exc).split()))}",
            "Look whether the role may run a DO block in plpgsql.",
        )
    return {
        "readable": problem is None,
        "reason": problem.reason if problem else None,
        "remedy": problem.remedy if problem else None,
        "files": sorted(log._files),
        "counts": None if problem else counts.to_dict(),
        "entries": [] if problem else counts.entries,
        "evidence": judge_counts(counts, problem, limits, "server log, from the log files of RDS"),
    }


def _mark(connection: Connection) -> str:
    """Let the server log a line of ours.

    :raises NotReadable: errors do not all reach the log
    """
    word = f"surefoot marker {secrets.token_hex(8)}"
    with connection.cursor() as cursor:
        cursor.execute(_LEVEL)
        level, override = t.cast("tuple[t.Any, ...]", cursor.fetchone())
        if level in ("log", "fatal", "panic") or override:
            raise NotReadable(
                "errors do not all reach the server log: " + str(override or f"log_min_messages={level}"),
                "Set log_min_messages = warning for the server and every role and database.",
            )
        cursor.execute(f"DO $surefoot$ BEGIN RAISE LOG '{word}'; END $surefoot$")
    return word
