# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy: the strictest where the inventory is silent, an error where nothing would enforce it."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import resolve_policy

STRICTEST = {"backup": "required", "backup_max_age": "0s", "lock_budget": "500ms", "pool_saturation_max": "90%"}


@pytest.mark.parametrize("silent", [None, {}])
def test_silence_is_the_strictest(silent: t.Any) -> None:
    assert resolve_policy(silent, silent) == STRICTEST


def test_overrides_win_key_by_key() -> None:
    policy = resolve_policy({"backup": "optional", "lock_budget": "1s"}, {"lock_budget": "200ms"})
    assert policy == {**STRICTEST, "backup": "optional", "lock_budget": "200ms"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lock_buget": "1s"}, "Did you mean lock_budget?"),
        ({"approvals": ["a"]}, "does not enforce it"),
        ({"backup": "yes"}, "required, optional, never"),
        ({"backup": True}, "required, optional, never"),
        ({"lock_budget": "soon"}, "surefoot_policy.lock_budget"),
        ({"lock_budget": 0}, "above 0"),
        ({"lock_budget": True}, "surefoot_policy.lock_budget"),
        ({"backup_max_age": None}, "surefoot_policy.backup_max_age"),
        ({"pool_saturation_max": "110%"}, "percentage"),
        ({"pool_saturation_max": "nan"}, "percentage"),
        ({"pool_saturation_max": True}, "percentage"),
        (["backup"], "not a dictionary"),
    ],
)
def test_what_cannot_be_enforced_is_refused(given: t.Any, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        resolve_policy(given)
    assert says in str(caught.value)


@pytest.mark.parametrize(("given", "resolved"), [("85", "85%"), (85, "85%"), ("99.5 %", "99.5%"), (100.0, "100%")])
def test_a_percentage_may_be_written_in_several_ways(given: t.Any, resolved: str) -> None:
    assert resolve_policy({"pool_saturation_max": given})["pool_saturation_max"] == resolved
