# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Whether a query became slower, or only the measurement differed. No database, no clock, no random numbers.

Runs are measured in blocks: each block is a session of its own, and within a block the queries take turns. What
differs between two sessions on an unchanged database (process, memory, neighbours) thus shows up as the spread
between blocks, and it is blocks, not single runs, that the test compares.

A query has regressed when all of these hold, with the earlier times scaled by what a fixed reference query, which
touches no table and is measured in the same blocks, became slower meanwhile (never below 1 on the same server):

1. the median grew by more than the threshold and by more than the floor;
2. so did the lower quartile: load of other processes lengthens some runs, a worse plan lengthens all;
3. the lower quartiles of the later blocks stand above those of the earlier ones: exact one-sided Mann-Whitney test,
   p <= 0.01.

Where nothing has regressed but the spread is such that twice the earlier time could have been missed, the answer is
not "passed" but "too noisy".
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError

SIGNIFICANCE = 0.01
# Fewer blocks cannot reach the significance whatever they measure: 4 and 4 come to 1/70, 5 and 5 to 1/252.
MIN_BLOCKS = 5
MAX_DRIFT = 2.0

Block = t.Sequence[float]


def percentile(ordered: t.Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values: the smallest that at least ``share`` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def median(values: t.Iterable[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclasses.dataclass(frozen=True)
class Times:
    """Milliseconds of one query's runs, by block."""

    blocks: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, blocks: t.Iterable[Block]) -> Times:
        """From the runs of each block; empty blocks are dropped."""
        return cls(tuple(tuple(float(value) for value in block) for block in blocks if block))

    @property
    def ordered(self) -> list[float]:
        return sorted(value for block in self.blocks for value in block)

    @property
    def quartiles(self) -> list[float]:
        """The lower quartile of each block."""
        return [percentile(sorted(block), 0.25) for block in self.blocks]

    @property
    def median(self) -> float:
        return median(self.ordered)

    def percentile(self, share: float) -> float:
        return percentile(self.ordered, share)

    @property
    def spread(self) -> float:
        """Milliseconds between the lowest and the highest lower quartile of a block."""
        return max(self.quartiles) - min(self.quartiles)

    def scaled(self, factor: float) -> Times:
        """The same runs, each ``factor`` times as long."""
        return Times(tuple(tuple(value * factor for value in block) for block in self.blocks))


@functools.cache
def _rank_counts(first: int, second: int) -> tuple[int, ...]:
    """How many of the orders of two samples of these sizes have each value of Mann and Whitney's U."""
    if not first or not second:
        return (1,)
    # The largest value belongs to the first sample and exceeds all of the second, or to the second.
    with_first, with_second = _rank_counts(first - 1, second), _rank_counts(first, second - 1)
    counts = [0] * (first * second + 1)
    for value, count in enumerate(with_first):
        counts[value + second] += count
    for value, count in enumerate(with_second):
        counts[value] += count
    return tuple(counts)


def mann_whitney(before: t.Sequence[float], after: t.Sequence[float]) -> float:
    """Probability that samples of one and the same source stand as far apart as these, the later ones above.

    Exact for any sizes. A tie counts as the wrong way round, which errs towards no alarm.
    """
    above = sum(1 for new in after for old in before if new > old)
    counts = _rank_counts(len(after), len(before))
    return sum(counts[above:]) / sum(counts)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What counts as slower. ``threshold`` is a share (0.1 is 10%), ``floor`` milliseconds."""

    threshold: float = 0.1
    floor: float = 0.2
    significance: float = SIGNIFICANCE

    def __str__(self) -> str:
        return (
            f"median and lower quartile grew by more than {self.threshold * 100:g}% and {self.floor:g} ms, and those"
            f" of the sessions moved (exact Mann-Whitney test, p <= {self.significance:g})"
        )


@dataclasses.dataclass(frozen=True)
class Finding:
    """The comparison of one query. ``verdict``: ``unchanged``, ``regressed`` or ``noisy``.

    ``ratio`` is later to earlier median; ``scale`` what of it the reference query explains; ``probability`` of such a
    distance between blocks when nothing changed; ``detectable`` the smallest ratio this measurement could have found.
    """

    verdict: str
    ratio: float
    scale: float
    probability: float
    detectable: float

    def to_dict(self) -> dict[str, t.Any]:
        return {key: value if isinstance(value, str) else round(value, 6) for key, value in vars(self).items()}


def compare(before: Times, after: Times, *, rule: Rule | None = None, scale: float = 1.0) -> Finding:
    """Whether the query behind these times became slower.

    :param scale: see :func:`drift`
    """
    rule = rule or Rule()
    old = before.scaled(scale)

    def grew(earlier: float, later: float) -> bool:
        return later - earlier > max(rule.threshold * earlier, rule.floor)

    probability = mann_whitney(old.quartiles, after.quartiles)
    regressed = (
        grew(old.median, after.median)
        and grew(old.percentile(0.25), after.percentile(0.25))
        and probability <= rule.significance
    )
    # To be found, a slow-down must carry the later blocks over the earlier ones.
    room = max(rule.threshold * old.median, rule.floor, old.spread, after.spread)
    detectable = 1 + room / old.median if old.median > 0 else math.inf
    enough = min(len(before.blocks), len(after.blocks)) >= MIN_BLOCKS
    noisy = not enough or scale > MAX_DRIFT or (max(old.spread, after.spread) > max(old.median, rule.floor))
    verdict = "regressed" if regressed else "noisy" if noisy else "unchanged"
    return Finding(verdict, after.median / before.median if before.median > 0 else 1.0, scale, probability, detectable)


def drift(before: Times, after: Times, *, same_server: bool = True) -> float:
    """How much slower the server itself became, by the reference query: the factor to scale earlier times with.

    On the same server never below 1: a machine that has become faster must not make a regression of the rest.
    """
    if not before.blocks or not after.blocks or before.median <= 0:
        return 1.0
    factor = after.median / before.median
    return max(1.0, factor) if same_server else factor


def read_results(path: str, kind: str) -> dict[str, t.Any]:
    """The file of an earlier measurement.

    :param kind: what it must say of itself
    :raises PlanError: it cannot be read, or is something else
    """
    remedy = "Give the file that the earlier measurement wrote, such as the one in its run directory."
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as exc:
        raise PlanError(f"cannot read {path}: {exc.strerror}", remedy=remedy) from None
    except ValueError:
        raise PlanError(f"{path} is not JSON", remedy=remedy) from None
    if not isinstance(content, dict) or content.get("kind") != kind or content.get("format") != 1:
        raise PlanError(f"{path} is no {kind} result of this version", remedy=remedy)
    return content


def parse_share(value: object) -> float:
    """The share of ``10%`` or ``10``: 0.1.

    :raises PlanError: not a percentage, or negative
    """
    text = str(value).strip()
    try:
        number = float(text[:-1] if text.endswith("%") else text)
    except ValueError:
        number = -1.0
    if isinstance(value, bool) or not 0 <= number < math.inf:
        raise PlanError(f"{value!r} is not a percentage", remedy="Write a number and %, such as 10%.")
    return number / 100
