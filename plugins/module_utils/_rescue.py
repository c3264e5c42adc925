# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The rollback matrix: what went wrong after GO, how bad that is, and what the policy decides about it."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import ROLLBACK_MATRIX

Results = t.Mapping[str, t.Any]

ROLL_BACK, ASK, FIX_FORWARD, MONITOR, GO_ON = "roll_back", "ask", "fix_forward", "monitor", "go_on"
# The phases of a run that compare the time after with the time before.
COMPARED = ("probes_after", "baseline_after", "server_log")
# What wins when several things went wrong.
_WEIGHT = {ROLL_BACK: 4, ASK: 3, FIX_FORWARD: 2, MONITOR: 1, GO_ON: 0}
_SEVERITIES = ("MEDIUM", "HIGH", "CRITICAL")
# An outcome nobody can judge from here: a run that was stopped, a connection that was lost. A person looks first.
UNCLEAR = "interrupted"
# The runner found a reason not to begin: a stale GO, drift, another run. It did nothing.
REFUSED = "refused"

# Error codes of the library (see docs/errors.md) that say what happened to the migration itself.
_CLASS_OF_CODE = {
    "sql": "syntax_error",
    "sql_text": "syntax_error",
    "lock_budget": "lock_budget_exceeded",
    "verification": "verification_failed",
    "watch_limit": "watch_limit",
    **dict.fromkeys(("stale_go", "drift", "busy", "plan", "environment", "ledger"), REFUSED),
}
# Errors of the server that say that a limit was met, not that the text is wrong: lock_not_available, query_canceled,
# deadlock_detected, serialization_failure.
_LIMITS = ("55P03", "57014", "40P01", "40001")
# Class of an evidence record that failed after the migration was applied; the first prefix that fits.
_CLASS_OF_CRITERION = (
    ("http.no_new_403", "queries_denied"),
    ("serverlog.permission_denied", "queries_denied"),
    ("http.latency", "slow_queries"),
    ("http.", "endpoint_broken"),
    ("baseline.", "slow_queries"),
    ("serverlog.", "verification_failed"),
)
SEVERITY = {
    "syntax_error": "CRITICAL",
    "verification_failed": "CRITICAL",
    "queries_denied": "CRITICAL",
    "encryption_not_working": "HIGH",
    "endpoint_broken": "HIGH",
    "lock_budget_exceeded": "HIGH",
    "watch_limit": "HIGH",
    UNCLEAR: "HIGH",
    REFUSED: "MEDIUM",
    "slow_queries": "MEDIUM",
}


@dataclasses.dataclass(frozen=True)
class Failure:
    """One thing that went wrong: its class in the matrix, and what says so in one line."""

    kind: str
    reason: str

    @property
    def severity(self) -> str:
        return SEVERITY[self.kind]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What is to be done. ``applied`` are the migrations of this run, in the order they were applied; ``unfinished``
    the one that failed after a part of it had been committed."""

    decision: str
    failures: tuple[Failure, ...]
    applied: tuple[str, ...]
    unfinished: str | None = None

    @property
    def severity(self) -> str | None:
        """The worst one."""
        return max((failure.severity for failure in self.failures), key=_SEVERITIES.index, default=None)

    @property
    def line(self) -> str:
        """What an operator reads."""
        if not self.failures:
            return "Nothing failed."
        worst = max(self.failures, key=lambda failure: _SEVERITIES.index(failure.severity))
        if all(failure.kind == REFUSED for failure in self.failures):
            return f"Nothing was applied: {worst.reason}"
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        return f"{worst.severity} {worst.kind}: {worst.reason}{more}. {_WHAT_NOW[self.decision]}"

    def evidence(self) -> Evidence:
        """The decision as a record."""
        return Evidence(
            criterion="rescue.decision",
            phase="apply",
            verdict="pass" if self.decision == GO_ON else "fail",
            measured={"decision": self.decision, "severity": self.severity},
            required="nothing failed after GO",
            source="rollback matrix of the policy",
            details={"failures": [dataclasses.asdict(failure) for failure in self.failures]},
        )

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "decision": self.decision,
            "severity": self.severity,
            "failures": [{**dataclasses.asdict(item), "severity": item.severity} for item in self.failures],
            "roll_back": list(reversed([*self.applied, *([self.unfinished] if self.unfinished else [])])),
            "line": self.line,
        }


_WHAT_NOW = {
    ROLL_BACK: "The policy says: roll back now",
    ASK: "The policy says: ask. Nothing more is done; roll back with the rollback playbook, or fix forward",
    FIX_FORWARD: "The policy says: fix forward. What was applied stays",
    MONITOR: "The policy says: monitor. What was applied stays",
    GO_ON: "",
}


def judge(
    *,
    migration: Results,
    verification: Results,
    compared: t.Sequence[Results] = (),
    matrix: t.Mapping[str, str] | None = None,
) -> Judgement:
    """Judge what came after GO, from the registered results of its tasks.

    :param compared: of the tasks whose evidence compares the time after with the time before
    :param matrix: failure class -> decision; the source document's when not given
    """
    decide = {**ROLLBACK_MATRIX, UNCLEAR: ASK, REFUSED: FIX_FORWARD, **(matrix or {})}
    failures = [*_of_migration(migration), *_of_verification(verification)]
    for result in compared:
        failures.extend(_of_comparison(result))
    applied = tuple(migration.get("applied") or ())
    unfinished = str(migration["unfinished"]) if migration.get("unfinished") else None
    decision = max((decide[failure.kind] for failure in failures), key=_WEIGHT.__getitem__, default=GO_ON)
    if decision == ROLL_BACK and not applied and not unfinished:
        decision = FIX_FORWARD  # what failed rolled itself back, and nothing else was done
    return Judgement(decision, tuple(failures), applied, unfinished)


def _of_migration(result: Results) -> t.Iterator[Failure]:
    if not result.get("failed"):
        return
    error = result.get("error") or {}
    failed_checks = [check for check in result.get("checks") or () if not check.get("passed")]
    message = str(error.get("message") or result.get("msg") or "the task failed without a word") + _place(error)
    if error.get("code") == "verification" and failed_checks:
        yield from _of_checks(failed_checks)
    elif error.get("sqlstate") in _LIMITS:
        yield Failure("lock_budget_exceeded", message)
    else:
        kind = _CLASS_OF_CODE.get(str(error.get("code")), UNCLEAR)
        remedy = f". {error['remedy']}" if kind == REFUSED and error.get("remedy") else ""
        yield Failure(kind, message + remedy)


def _place(error: Results) -> str:
    """Where in a file, as the error itself says it."""
    place = [str(error[key]) for key in ("file", "line", "column") if error.get(key)]
    return f" ({':'.join(place)})" if place else ""


def _of_verification(result: Results) -> t.Iterator[Failure]:
    failed = [check for check in result.get("checks") or () if not check.get("passed")]
    if failed:
        yield from _of_checks(failed)
    elif result.get("failed"):
        yield Failure("verification_failed", str(result.get("msg") or "the checks could not be run"))


def _of_checks(failed: t.Sequence[Results]) -> t.Iterator[Failure]:
    for check in failed:
        kind = "encryption_not_working" if "crypt" in str(check.get("criterion") or "") else "verification_failed"
        yield Failure(kind, f"check failed: {check.get('name')}")


def _of_comparison(result: Results) -> t.Iterator[Failure]:
    found = False
    for record in result.get("evidence") or ():
        if record.get("verdict") != "fail":
            continue
        criterion = str(record.get("criterion"))
        kind = next((name for prefix, name in _CLASS_OF_CRITERION if criterion.startswith(prefix)), None)
        if kind is not None:
            found = True
            yield Failure(kind, f"{criterion} is {_brief(record.get('measured'))}, required {record.get('required')}")
    if result.get("failed") and not found:
        yield Failure("verification_failed", str(result.get("msg") or "a comparison could not be made"))


def _brief(value: t.Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
