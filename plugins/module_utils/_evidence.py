# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The evidence record: one criterion, what was measured, what was required, and the verdict.

``evidence.jsonl`` is a chain: each line carries, as ``previous``, the sha256 of the line before it, line end included,
and the first line 64 zeros. ``_chain.py`` seals and examines it.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._values import to_plain

VERDICTS = ("pass", "fail", "not_measured", "not_applicable")
EVIDENCE_FILE = "evidence.jsonl"
TIMELINE_FILE = "timeline.jsonl"
NO_PREVIOUS = "0" * 64
_TAIL_CHUNK = 64 * 1024


def utc_now() -> str:
    """The current time in UTC, ISO 8601 with milliseconds and a Z."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One measured fact.

    ``criterion`` is a dotted identifier (``preflight.server_version``), ``phase`` the phase of the run it belongs to,
    ``source`` how it was measured. "Not measured" is a verdict of its own and never passes a gate.
    """

    criterion: str
    phase: str
    verdict: str
    measured: t.Any
    required: t.Any
    source: str
    time: str = dataclasses.field(default_factory=utc_now)
    details: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise PlanError(f"{self.verdict!r} is not a verdict", remedy=f"Use one of {', '.join(VERDICTS)}.")

    def to_dict(self) -> dict[str, t.Any]:
        record = dataclasses.asdict(self)
        return {key: to_plain(value) for key, value in record.items()}


def verdict(passed: bool | None) -> str:
    """``pass`` or ``fail``; ``not_measured`` for None."""
    return "not_measured" if passed is None else "pass" if passed else "fail"


def record(run_dir: str | None, evidence: t.Sequence[Evidence]) -> list[dict[str, t.Any]]:
    """The records as plain objects; also chained to ``evidence.jsonl`` of the run directory when there is one.

    Written by the library and not from a task result, because Ansible blanks out every result that happens to contain
    a secret.

    :raises EnvironmentProblem: the run directory cannot be written
    """
    plain = [item.to_dict() for item in evidence]
    if run_dir and plain:
        _append_chained(os.path.join(run_dir, EVIDENCE_FILE), plain)
    return plain


def line_digest(line: bytes) -> str:
    """What the next line of the chain carries as ``previous``: sha256 of this one, line end included."""
    return hashlib.sha256(line).hexdigest()


def append_lines(path: str, objects: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    """Append objects to a JSON Lines file of mode 0600, in one write, making its 0700 directory when it is missing.

    :raises EnvironmentProblem: the file cannot be written
    """
    _append(path, lambda _descriptor: b"".join(_line(item) for item in objects))


def _append_chained(path: str, objects: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    def chained(descriptor: int) -> bytes:
        last = _last_line(descriptor)
        # A line that a full disk or a power cut left without its end stays, and is told apart from ours.
        lines = [b"\n"] if last and not last.endswith(b"\n") else []
        previous = line_digest(last + b"".join(lines)) if last else NO_PREVIOUS
        for item in objects:
            lines.append(_line({**item, "previous": previous}))
            previous = line_digest(lines[-1])
        return b"".join(lines)

    _append(path, chained)


def _line(item: t.Mapping[str, t.Any]) -> bytes:
    return (json.dumps(item, sort_keys=True) + "\n").encode("utf-8")


def _last_line(descriptor: int) -> bytes:
    """The last line, with its end when it has one; empty for an empty file."""
    end, size, tail = os.lseek(descriptor, 0, os.SEEK_END), _TAIL_CHUNK, b""
    while len(tail) < end and b"\n" not in tail[:-1]:
        tail = os.pread(descriptor, min(size, end), max(0, end - size))
        size *= 2
    return tail[tail.rfind(b"\n", 0, -1) + 1 :]


def _append(path: str, content: t.Callable[[int], bytes]) -> None:
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as stream:
            # The watch and modules on other forks write to the same file: whoever holds the lock sees the last line.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            data = content(descriptor)
            before = os.fstat(descriptor).st_size
            try:
                while data:
                    data = data[stream.write(data) :]
            except OSError:
                os.ftruncate(descriptor, before)  # all of it or nothing
                raise
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot write {path}: {exc.strerror}",
            remedy="Make the run directory writable for the user who runs Ansible.",
        ) from exc
