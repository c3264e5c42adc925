# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on times: given numbers, no clock."""

from __future__ import annotations

import itertools
import json
import pathlib
import random

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._noise import (
    Rule,
    Times,
    compare,
    drift,
    mann_whitney,
    median,
    parse_share,
    percentile,
    read_results,
)


def times(*medians: float, width: float = 0.02, runs: int = 6) -> Times:
    """Blocks around these medians; the runs of a block lie evenly within ``width`` of it."""
    steps = [1 + width * (2 * number / (runs - 1) - 1) for number in range(runs)]
    return Times.of([[value * step for step in steps] for value in medians])


QUIET = times(10.0, 10.1, 9.9, 10.05, 9.95)


def test_percentiles_are_by_nearest_rank():
    values = [float(number) for number in range(1, 21)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [10, 19, 20, 20]
    assert percentile([7.0], 0.95) == 7.0
    assert percentile([1.0, 2.0], 0.0) == 1.0


def test_the_median_of_an_even_number_lies_between():
    assert median([4, 1, 3, 2]) == 2.5
    assert median([3, 1, 2]) == 2


def test_the_test_is_exact():
    # Every order of 3 and 3 samples, counted by hand: p is the share that stands at least as far apart.
    ranks = list(range(6))
    above = [
        sum(new > old for new in chosen for old in set(ranks) - set(chosen))
        for chosen in itertools.combinations(ranks, 3)
    ]
    for after in itertools.combinations(ranks, 3):
        before = sorted(set(ranks) - set(after))
        observed = sum(new > old for new in after for old in before)
        expected = sum(value >= observed for value in above) / len(above)
        assert mann_whitney(before, after) == pytest.approx(expected)
    assert mann_whitney([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(1 / 252)


def test_equal_times_are_no_sign_of_anything():
    assert mann_whitney([1.0] * 5, [1.0] * 5) == 1.0
    assert compare(QUIET, QUIET).verdict == "unchanged"


@pytest.mark.parametrize("factor", [1.25, 2, 20])
def test_a_query_that_became_slower_is_found(factor):
    finding = compare(QUIET, QUIET.scaled(factor))
    assert finding.verdict == "regressed"
    assert finding.ratio == pytest.approx(factor)
    assert finding.probability <= 0.01


def test_slower_by_less_than_the_threshold_is_no_regression():
    assert compare(QUIET, QUIET.scaled(1.08)).verdict == "unchanged"
    assert compare(QUIET, QUIET.scaled(1.08), rule=Rule(threshold=0.05)).verdict == "regressed"


def test_slower_by_less_than_the_floor_is_no_regression():
    fast = QUIET.scaled(0.01)  # 0.1 ms
    assert compare(fast, fast.scaled(2.5)).verdict == "unchanged"
    assert compare(fast, fast.scaled(3.5)).verdict == "regressed"
    assert compare(fast, fast.scaled(2.5), rule=Rule(floor=0.05)).verdict == "regressed"


def test_what_lies_within_the_runs_own_spread_is_no_regression():
    # The medians differ by 20%, but so do the sessions of either side.
    before, after = times(8, 9, 10, 11, 12), times(9, 10.5, 12, 13, 14)
    finding = compare(before, after)
    assert finding.ratio > 1.1
    assert finding.probability > 0.01
    assert finding.verdict == "unchanged"
    assert finding.detectable == pytest.approx(1.5, abs=0.01)  # it says what it could have seen


def test_load_that_lengthens_some_runs_only_is_no_regression():
    # Two thirds of the runs wait for a neighbour, the rest are nearly as fast as before.
    before = Times.of([[10, 10, 10, 10, 10, 10]] * 5)
    after = Times.of([[10.1, 10.1, 14, 14, 15, 16]] * 5)
    finding = compare(before, after)
    assert (finding.ratio, finding.probability) == (1.4, pytest.approx(1 / 252))
    assert finding.verdict == "unchanged"


def test_what_the_server_itself_became_slower_is_no_regression_of_a_query():
    factor = drift(times(1, 1, 1, 1, 1), times(1.5, 1.5, 1.5, 1.5, 1.5))
    assert factor == pytest.approx(1.5)
    assert compare(QUIET, QUIET.scaled(1.5), scale=factor).verdict == "unchanged"
    assert compare(QUIET, QUIET.scaled(1.5 * 1.3), scale=factor).verdict == "regressed"


def test_a_server_that_became_faster_makes_no_regression():
    before, after = times(2, 2, 2, 2, 2), times(1, 1, 1, 1, 1)
    assert drift(before, after) == 1.0
    assert drift(before, after, same_server=False) == pytest.approx(0.5)


def test_too_noisy_is_not_passed():
    wild = times(5, 8, 10, 13, 18)
    assert compare(wild, wild).verdict == "noisy"
    assert compare(QUIET, QUIET, scale=2.5).verdict == "noisy"
    assert compare(wild, wild.scaled(20)).verdict == "regressed"


def test_too_few_sessions_are_too_noisy_to_judge():
    few = times(10, 10, 10, 10)
    assert compare(few, few.scaled(20)).verdict == "noisy"


def test_alarms_on_equal_sources_stay_below_the_stated_probability():
    # Wide, skewed noise, and no threshold: only the test itself decides.
    source = random.Random(20261122)
    rule = Rule(threshold=0.0, floor=0.0)

    def draw() -> Times:
        return Times.of([[source.lognormvariate(0, 0.5) for _run in range(6)] for _block in range(5)])

    trials = 3000
    alarms = sum(compare(draw(), draw(), rule=rule).verdict == "regressed" for _trial in range(trials))
    assert 0 < alarms <= 0.01 * trials


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0%", 0.0), (" 12.5 % ".strip(), 0.125), (5, 0.05)])
def test_a_percentage_becomes_a_share(text, share):
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["-1%", "ten", "", True, "nan%", None])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(PlanError, match="is not a percentage"):
        parse_share(text)


def test_a_result_file_of_another_kind_is_refused(tmp_path: pathlib.Path):
    file = tmp_path / "x.json"
    with pytest.raises(PlanError, match="cannot read"):
        read_results(str(file), "baseline")
    for text, match in (("{", "not JSON"), ("[]", "no baseline result"), ('{"kind": "probes"}', "no baseline result")):
        file.write_text(text)
        with pytest.raises(PlanError, match=match):
            read_results(str(file), "baseline")
    file.write_text(json.dumps({"kind": "baseline", "format": 1}))
    assert read_results(str(file), "baseline")["format"] == 1
