# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The policy: what an environment demands of a run. Every key that is accepted here is enforced somewhere."""

from __future__ import annotations

import copy
import datetime
import difflib
import hashlib
import json
import math
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._values import (
    human_duration,
    parse_duration,
    parse_rate,
    parse_size,
)

DEMANDS = ("required", "optional", "never")
CRITERION_CHOICES = ("required", "optional")
APPROVALS = ("prepared", "reviewed", "approved")
ROLLBACK_DECISIONS = ("roll_back", "ask", "fix_forward", "monitor")
# Failure class -> decision: the source document's rollback matrix; what it does not name is rolled back.
ROLLBACK_MATRIX = {
    "syntax_error": "roll_back",
    "verification_failed": "roll_back",
    "queries_denied": "roll_back",
    "endpoint_broken": "fix_forward",
    "slow_queries": "monitor",
    "encryption_not_working": "roll_back",
    "lock_budget_exceeded": "roll_back",
    "watch_limit": "roll_back",
}
ANY_TIME = "any"  # a policy that says so may apply at every hour; one that is silent may not

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = 7 * 24 * 3600
_CRITERION = re.compile(r"[a-z][a-z0-9_]*(?:\.[A-Za-z0-9][A-Za-z0-9_\-]*)+")


def resolve_policy(policy: t.Any, overrides: t.Any = None) -> dict[str, t.Any]:
    """The policy in force: the overrides merged over the policy, the strictest value for every key that neither names.

    Plain JSON values; resolving a resolved policy again changes nothing.

    :raises PlanError: an unknown key, or a value that cannot be
    """
    merged: dict[str, t.Any] = {key: strictest for key, (strictest, _check) in KEYS.items()}
    for name, given in (("surefoot_policy", policy), ("surefoot_policy_overrides", overrides)):
        if given is None:
            continue
        if not isinstance(given, t.Mapping):
            raise PlanError(f"{name} is not a dictionary", remedy=f"Its keys are {', '.join(KEYS)}.")
        for key, value in given.items():
            if key not in KEYS:
                raise PlanError(
                    f"{name} has the unknown key {key}",
                    remedy=f"{_nearest(key, KEYS) or 'This version does not enforce it: leave it out.'}"
                    f" Known: {', '.join(KEYS)}.",
                )
            merged[str(key)] = KEYS[key][1](f"{name}.{key}", value)
    return copy.deepcopy(merged)  # nobody changes the defaults by accident


def policy_hash(policy: t.Mapping[str, t.Any]) -> str:
    """SHA-256 of a resolved policy."""
    return hashlib.sha256(json.dumps(policy, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def percent(text: t.Any) -> float:
    """The number of a resolved percentage such as ``90%``."""
    return float(str(text).rstrip("%"))


# --- the window ------------------------------------------------------------------------------------------------------


class Window(t.NamedTuple):
    """Where a moment stands: whether a run may begin now, seconds until the next moment when it may (0 when it may
    now), and seconds until the last one (None when it may not now, or always)."""

    open: bool
    opens_in: float
    closes_in: float | None
    text: str


def window_at(window: t.Any, now: datetime.datetime) -> Window:
    """Judge a moment against a resolved ``window``: ``any``, None (never named), or start, end and reserve in UTC.

    A run may begin from ``start`` on and until ``reserve`` before ``end``. With names of days the window comes once a
    week, else every day; it may lie across midnight and across the end of the week.
    """
    if window == ANY_TIME:
        return Window(True, 0.0, None, "at any time")
    if window is None:
        return Window(False, math.inf, None, "the policy names no window")
    moment = now.astimezone(datetime.timezone.utc)
    since_monday = moment.weekday() * 86400 + moment.hour * 3600 + moment.minute * 60 + moment.second
    period = _WEEK if " " in window["start"] else 86400
    start, end = (_moment(window[key]) % period for key in ("start", "end"))
    length = (end - start) % period - parse_duration(window["reserve"])
    into = (since_monday - start) % period
    text = f"{window['start']} to {window['end']} UTC, begun at least {window['reserve']} before its end"
    if into <= length:
        return Window(True, 0.0, length - into, text)
    return Window(False, period - into, None, text)


def _moment(text: str) -> int:
    """Seconds since Monday 00:00 of ``Sun 02:00``, or since 00:00 of ``02:00``."""
    day, _space, clock = text.rpartition(" ")
    hours, minutes = clock.split(":")
    return (_DAYS.index(day.lower()) * 86400 if day else 0) + int(hours) * 3600 + int(minutes) * 60


def _window(name: str, value: t.Any) -> t.Any:
    if value == ANY_TIME:
        return value
    if value is None:
        return None  # a resolved policy that names none
    example = f'Give {{start: "Sun 02:00", end: "Sun 04:00", reserve: 1h}} in UTC, or {ANY_TIME}.'
    if not isinstance(value, t.Mapping):
        raise PlanError(f"{name} is {value!r}", remedy=example)
    _known_keys(name, value, ("start", "end", "reserve"), required=("start", "end"))
    points: dict[str, str] = {}
    for key in ("start", "end"):
        match = re.fullmatch(r"(?:([A-Za-z]{3,9}) +)?([01]?\d|2[0-3]):([0-5]\d)", str(value[key]).strip())
        day = (match.group(1) or "") if match else "?"
        full = [d for d in _DAYS if day.lower()[:3] == d and _DAY_NAMES[d].startswith(day.lower())] if day else [""]
        if not match or not full:
            raise PlanError(f"{name}.{key} is {value[key]!r}", remedy=example)
        points[key] = f"{full[0].capitalize()} {int(match.group(2)):02}:{match.group(3)}".strip()
    if (" " in points["start"]) != (" " in points["end"]):
        raise PlanError(f"{name} names a day in only one of start and end", remedy=example)
    reserve = _duration(f"{name}.reserve", value.get("reserve", "1h"))
    period = _WEEK if " " in points["start"] else 86400
    length = (_moment(points["end"]) - _moment(points["start"])) % period
    if length <= parse_duration(reserve):
        raise PlanError(
            f"{name} is {human_duration(length)} long and its reserve {reserve}, so that nothing could ever begin",
            remedy="Make it longer, or the reserve shorter.",
        )
    return {**points, "reserve": reserve}


_DAY_NAMES = dict(zip(_DAYS, ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")))


# --- waivers ---------------------------------------------------------------------------------------------------------


def _waivers(name: str, value: t.Any) -> list[dict[str, str]]:
    if not isinstance(value, (list, tuple)):
        raise PlanError(f"{name} is not a list", remedy="Give a list of {criterion, reason, by, expires}.")
    found: list[dict[str, str]] = []
    for number, item in enumerate(value, start=1):
        where = f"{name}[{number}]"
        if not isinstance(item, t.Mapping):
            raise PlanError(f"{where} is not a dictionary", remedy="Give criterion, reason, by and expires.")
        keys = ("criterion", "reason", "by", "expires")
        _known_keys(where, item, keys, required=keys)
        for key in ("reason", "by"):
            if not isinstance(item[key], str) or not item[key].strip():
                raise PlanError(f"{where} of {item['criterion']} has no {key}", remedy=f"Say {_SAYS[key]}.")
        parse_time(item["expires"], f"{where}.expires", end_of_day=True)
        found.append(
            {
                "criterion": _criterion(where, item["criterion"]),
                "reason": item["reason"].strip(),
                "by": item["by"].strip(),
                "expires": str(item["expires"]),
            }
        )
    twice = [item["criterion"] for item in found if [o["criterion"] for o in found].count(item["criterion"]) > 1]
    if twice:
        raise PlanError(f"{name} waives {twice[0]} twice", remedy="Leave one of them.")
    return found


_SAYS = {"reason": "why it may be missing", "by": "who takes the responsibility"}


def parse_time(value: t.Any, name: str, *, end_of_day: bool = False) -> datetime.datetime:
    """A date or an ISO 8601 time, in UTC where it names no zone.

    :param end_of_day: whether a date alone means its end instead of its beginning
    :raises PlanError: neither
    """
    text = str(value).strip()
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            day = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)
            # "Never" is often written 9999-12-31, and no day comes after it.
            return day + datetime.timedelta(days=1) if end_of_day and day.year < 9999 else day
        # Python before 3.11 reads neither a Z nor a fraction of a length other than 3 or 6.
        moment = datetime.datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
    except ValueError:
        raise PlanError(
            f"{name} is {value!r}", remedy="Give a date such as 2026-12-31 or a time such as 2026-12-31T04:00:00Z."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


# --- the other keys --------------------------------------------------------------------------------------------------


def _nearest(word: t.Any, known: t.Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"Did you mean {near[0]}?" if near else ""


def _known_keys(name: str, value: t.Mapping[t.Any, t.Any], known: t.Sequence[str], required: t.Sequence[str]) -> None:
    for key in value:
        if key not in known:
            hint = _nearest(key, known) or f"Known: {', '.join(known)}."
            raise PlanError(f"{name} has the unknown key {key}", remedy=hint)
    for key in required:
        if value.get(key) in (None, ""):
            raise PlanError(f"{name} has no {key}", remedy=f"Give {', '.join(required)}.")


def _choice(choices: t.Sequence[str]) -> t.Callable[[str, t.Any], str]:
    def check(name: str, value: t.Any) -> str:
        if value not in choices:
            hint = _nearest(value, choices)
            raise PlanError(f"{name} is {value!r}", remedy=f"{hint} Give one of {', '.join(choices)}.".strip())
        return str(value)

    return check


def _flag(name: str, value: t.Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "yes", "no"):
        return value.strip().lower() in ("true", "yes")
    if not isinstance(value, bool):
        raise PlanError(f"{name} is {value!r}", remedy="Give true or false.")
    return value


def _count(minimum: int) -> t.Callable[[str, t.Any], int]:
    def check(name: str, value: t.Any) -> int:
        text = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < minimum:
            raise PlanError(f"{name} is {value!r}", remedy=f"Give a whole number from {minimum} on.")
        return int(text)

    return check


def _duration(name: str, value: t.Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise PlanError(f"{name} is {value!r}", remedy="Give a duration such as 500ms, 30s or 2h.")
    try:
        parse_duration(value)
    except PlanError as exc:
        raise PlanError(f"{name}: {exc.message}", remedy=exc.remedy) from None
    return str(value)


def _positive_duration(name: str, value: t.Any) -> str:
    text = _duration(name, value)
    if parse_duration(value) <= 0:
        raise PlanError(f"{name} is {text}", remedy="Give a duration above 0, such as 500ms.")
    return text


def _percentage(most: float) -> t.Callable[[str, t.Any], str]:
    def check(name: str, value: t.Any) -> str:
        text = str(value).strip()
        try:
            amount = float(text[:-1] if text.endswith("%") else text)
        except ValueError:
            amount = -1.0
        if isinstance(value, bool) or not 0 < amount <= most:
            raise PlanError(
                f"{name} is {value!r}", remedy=f"Give a percentage above 0 and up to {most:g}, such as 90%."
            )
        return f"{amount:g}%"

    return check


def _rate(name: str, value: t.Any) -> str:
    try:
        if parse_rate(value) > 0:
            return "".join(str(value).split())
    except PlanError:
        pass
    raise PlanError(f"{name} is {value!r}", remedy="Give a size per min above 0, such as 1GB/min.")


def _size(name: str, value: t.Any) -> str:
    try:
        if not isinstance(value, bool) and parse_size(value) > 0:
            return "".join(str(value).split())
    except PlanError:
        pass
    raise PlanError(f"{name} is {value!r}", remedy="Give a size above 0, such as 1GB.")


def _names(name: str, value: t.Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item.strip() for item in value):
        raise PlanError(f"{name} is not a list of words", remedy=f"Give a list such as [{', '.join(APPROVALS)}].")
    return list(dict.fromkeys(item.strip() for item in value))


def _criterion(name: str, value: t.Any) -> str:
    if not isinstance(value, str) or not _CRITERION.fullmatch(value):
        raise PlanError(f"{name} names the criterion {value!r}", remedy="Write a dotted name, such as backup.verified.")
    return value


def _criteria(name: str, value: t.Any) -> dict[str, str]:
    if not isinstance(value, t.Mapping):
        raise PlanError(f"{name} is not a dictionary", remedy="Give criterion: required or criterion: optional.")
    check = _choice(CRITERION_CHOICES)
    return {_criterion(name, key): check(f"{name}.{key}", item) for key, item in value.items()}


def _rollback(name: str, value: t.Any) -> dict[str, str]:
    if not isinstance(value, t.Mapping):
        raise PlanError(f"{name} is not a dictionary", remedy=f"Its keys are {', '.join(ROLLBACK_MATRIX)}.")
    _known_keys(name, value, list(ROLLBACK_MATRIX), required=())
    check = _choice(ROLLBACK_DECISIONS)
    return {**ROLLBACK_MATRIX, **{str(key): check(f"{name}.{key}", item) for key, item in value.items()}}


# Key -> its strictest value, which holds where the inventory is silent, and the check of a given one. Where no value
# is strictest, the source documents' own holds.
KEYS: dict[str, tuple[t.Any, t.Callable[[str, t.Any], t.Any]]] = {
    "backup": ("required", _choice(DEMANDS)),
    "backup_max_age": ("0s", _duration),
    "restore_proof": (True, _flag),
    "rehearsal": ("required", _choice(DEMANDS)),
    "lock_budget": ("500ms", _positive_duration),
    "baseline_regression": ("10%", _percentage(1000)),
    "pool_saturation_max": ("90%", _percentage(100)),
    "wal_rate_max": ("1GB/min", _rate),
    "replica_lag_max": ("30s", _positive_duration),
    "quarantine_max": ("1GB", _size),
    "api_p95_max": ("200ms", _positive_duration),
    "watch_samples": (3, _count(1)),
    "window": (None, _window),
    "approvals": (list(APPROVALS), _names),
    "waivers": ([], _waivers),
    "go_max_age": ("1h", _positive_duration),
    "rollback": (ROLLBACK_MATRIX, _rollback),
    "rollback_max_lost_rows": (0, _count(0)),
    "criteria": ({}, _criteria),
}
