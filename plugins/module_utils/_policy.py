# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The policy: what an environment demands of a run. Every key that is accepted here is enforced somewhere."""

from __future__ import annotations

import difflib
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration

BACKUP_CHOICES = ("required", "optional", "never")


def resolve_policy(policy: t.Any, overrides: t.Any = None) -> dict[str, t.Any]:
    """The policy in force: the overrides merged over the policy, the strictest value for every key that neither names.

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
                near = difflib.get_close_matches(str(key), KEYS, n=1)
                hint = f"Did you mean {near[0]}?" if near else "This version does not enforce it: leave it out."
                raise PlanError(f"{name} has the unknown key {key}", remedy=f"{hint} Known: {', '.join(KEYS)}.")
            merged[str(key)] = KEYS[key][1](f"{name}.{key}", value)
    return merged


def _backup(name: str, value: t.Any) -> str:
    if value not in BACKUP_CHOICES:
        raise PlanError(f"{name} is {value!r}", remedy=f"Give one of {', '.join(BACKUP_CHOICES)}.")
    return str(value)


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


def _percentage(name: str, value: t.Any) -> str:
    text = str(value).strip()
    number = text[:-1] if text.endswith("%") else text
    try:
        amount = float(number)
    except ValueError:
        amount = -1.0
    if isinstance(value, bool) or not 0 < amount <= 100:
        raise PlanError(f"{name} is {value!r}", remedy="Give a percentage above 0 and up to 100, such as 90%.")
    return f"{amount:g}%"


# Key -> its strictest value, which holds where the inventory is silent, and the check of a given one.
KEYS: dict[str, tuple[t.Any, t.Callable[[str, t.Any], t.Any]]] = {
    "backup": ("required", _backup),
    "backup_max_age": ("0s", _duration),
    "lock_budget": ("500ms", _positive_duration),
    "pool_saturation_max": ("90%", _percentage),
}
