# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The drawings of a report: well-formed, described in words, to scale, and deaf to what strings hold."""

from __future__ import annotations

import re
import typing as t
from xml.etree import ElementTree

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _drawings as drawings

HOSTILE = '</text><script>alert("1")</script>\x00\x1b[31m\u202egnirts\ud800 &amp; \' " > \U0001f525'


def phase(
    title: str, planned: tuple[float, float] | None, *actual: tuple[float, float], **more: t.Any
) -> dict[str, t.Any]:
    spans = [{"at": at, "seconds": seconds, "failed": more.get("failed", False)} for at, seconds in actual]
    return {
        "title": title,
        "owner": more.get("owner"),
        "planned": {"at": planned[0], "seconds": planned[1]} if planned else None,
        "actual": spans,
    }


def lock(relation: str = "app.users", held: float | None = 0.1, **more: t.Any) -> dict[str, t.Any]:
    row = {
        "relation": relation,
        "held_seconds": held,
        "mode": "ACCESS EXCLUSIVE",
        "tag": "ALTER TABLE",
        "file": "1.sql",
    }
    return {**row, "line": 3, "migration": "001", "blocks": ["SELECT", "INSERT"], **more}


def times(name: str, before: float | None, after: float | None, **more: t.Any) -> dict[str, t.Any]:
    sides = [{"median_ms": value, "p95_ms": value * 2 if value is not None else None} for value in (before, after)]
    row = {"name": name, "kind": "query", "where": "production", "before": sides[0], "after": sides[1]}
    return {**row, "change": None, "limit_ms": None, "judgement": "not slower", "regression": False, **more}


def series(*values: float, **more: t.Any) -> dict[str, t.Any]:
    points = [(float(second), value) for second, value in enumerate(values)]
    row = {"title": "Connections", "points": points, "limit": None, "shown_worst": "highest 9", "shown_limit": None}
    return {**row, **more}


def risk(number: int, probability: str | None, impact: str | None) -> dict[str, t.Any]:
    return {"number": number, "probability": probability, "impact": impact}


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(markup.encode("utf-8"))


def words(picture: ElementTree.Element) -> list[str]:
    return ["".join(item.itertext()) for item in picture.iter("text")]


def bars(picture: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [item for item in picture.iter("rect") if kind in (item.get("class") or "").split()]


def width(item: ElementTree.Element) -> float:
    return float(item.get("width", "0"))


EVERY = {
    "timeline": lambda word: drawings.timeline([phase(word, (-60, 30), (-5, 2), owner=word)]),
    "locks": lambda word: drawings.locks([lock(word, mode=word, tag=word)], [], 0.5),
    "production": lambda word: drawings.locks(
        [], [{"migration": word, "held_seconds": 1.0, "rehearsed_seconds": None}], 0.5
    ),
    "latency": lambda word: drawings.latency([times(word, 1.0, 1.1, judgement=word)]),
    "sparkline": lambda word: drawings.sparkline(series(1, 2, title=word), name="watch-0"),
    "risk": lambda word: drawings.risk_matrix([{**risk(1, "low", "high"), "owner": word}]),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("word", ["plain", HOSTILE, "x" * 5000, "\u05e9\u05dc\u05d5\u05dd", ""])
def test_every_drawing_is_well_formed_and_says_in_words_what_it_shows(name: str, word: str) -> None:
    picture = parsed(EVERY[name](word))
    assert picture.get("role") == "img"
    ids = {item.get("id"): item for item in picture.iter() if item.get("id")}
    for label in str(picture.get("aria-labelledby")).split():
        assert label in ids
    assert picture.find("title") is not None and picture.find("desc") is not None
    assert {item.tag for item in picture.iter()} <= {
        "svg",
        "title",
        "desc",
        "defs",
        "pattern",
        "path",
        "line",
        "rect",
        "text",
    }


@pytest.mark.parametrize("name", EVERY)
def test_no_coordinate_leaves_the_drawing(name: str) -> None:
    picture = parsed(EVERY[name]("word"))
    _x, _y, wide, high = map(float, str(picture.get("viewBox")).split())
    for item in picture.iter("rect"):
        assert 0 <= float(item.get("x", "0")) <= wide and float(item.get("x", "0")) + width(item) <= wide
        assert 0 <= float(item.get("y", "0")) <= high
    for item in picture.iter("line"):
        assert all(0 <= float(item.get(key, "0")) <= wide for key in ("x1", "x2"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: drawings.timeline([]),
        lambda: drawings.timeline([phase("nothing known", None)]),
        lambda: drawings.locks([], [], None),
        lambda: drawings.locks([lock(held=None)], [], None),
        lambda: drawings.latency([]),
        lambda: drawings.latency([times("never measured", None, None)]),
        lambda: drawings.sparkline(series(), name="s"),
        lambda: drawings.sparkline(series(0), name="s"),
        lambda: drawings.risk_matrix([]),
        lambda: drawings.risk_matrix([risk(1, None, None)]),
    ],
)
def test_a_drawing_of_nothing_is_still_a_drawing(make: t.Callable[[], str]) -> None:
    assert parsed(make()).tag == "svg"


def test_characters_that_cannot_be_seen_are_shown_as_their_code() -> None:
    assert drawings.clean("a\u202eb\x07\ud800c\r\nd\te") == "a\\u202eb\\u0007\\ud800c\nd\te"
    assert drawings.escape("<a href='x'>&") == "&lt;a href=&#x27;x&#x27;&gt;&amp;"


def test_markup_is_escaped_once_and_text_always() -> None:
    inner = drawings.element("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>"
    assert (
        drawings.element("p", inner, "<i>", class_='"quoted"')
        == '<p class="&quot;quoted&quot;"><b>1 &lt; 2</b>&lt;i&gt;</p>'
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", "short"),
        ("a  b\nc", "a b c"),
        ("abcdefghij", "abcdefg\u2026"),
        ("\u65e5\u672c\u8a9e\u6587\u5b57\u5217", "\u65e5\u672c\u8a9e\u2026"),
    ],
)
def test_labels_are_cut_by_the_room_they_take(text: str, shown: str) -> None:
    assert drawings.shorten(text, 8) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0"),
        (0.0025, "2.5 ms"),
        (0.25, "250 ms"),
        (2, "2 s"),
        (2.5, "2.5 s"),
        (600, "10 min"),
        (605, "10 min 5 s"),
        (5400, "1 h 30 min"),
        (3600, "1 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, shown: str) -> None:
    assert drawings.duration(seconds) == shown


# --- what is drawn is what is true


def test_bars_of_the_timeline_are_as_long_as_what_they_stand_for() -> None:
    picture = parsed(drawings.timeline([phase("one", (-600, 300), (-20, 10)), phase("two", (0, 600), (0, 20))]))
    one, two = bars(picture, "planned")
    assert width(two) == pytest.approx(2 * width(one), abs=0.2)
    one, two = bars(picture, "actual")
    assert width(two) == pytest.approx(2 * width(one), abs=0.2)
    assert {"5 min", "10 min", "10 s", "20 s"} <= set(words(picture))
    assert (
        picture.find("desc").text
        == "one: planned T\N{MINUS SIGN}10m for 5 min, took 10 s. two: planned T for 10 min, took 20 s."
    )


def test_a_phase_that_failed_says_so_in_words_too() -> None:
    picture = parsed(drawings.timeline([phase("apply", (0, 2), (0, 1), failed=True)]))
    assert [item.get("class") for item in bars(picture, "failed")] == ["bar actual failed"]
    assert "1 s failed" in words(picture)


def test_a_moment_is_a_mark_and_not_a_bar() -> None:
    picture = parsed(drawings.timeline([phase("complete", (3600, 0))]))
    assert bars(picture, "planned") == []
    assert [item.get("class") for item in picture.iter("path") if "mark" in str(item.get("class"))] == ["mark planned"]


def test_a_lock_over_the_budget_is_marked_and_named() -> None:
    picture = parsed(drawings.locks([lock(held=0.6), lock("app.b", 0.4)], [], 0.5))
    assert [item.get("class") for item in bars(picture, "planned")] == ["bar planned failed", "bar planned"]
    assert "600 ms, over budget" in words(picture)
    assert "400 ms" in words(picture)
    limit = next(item for item in picture.iter("line") if item.get("class") == "limit")
    first, second = (float(item.get("x", "0")) + width(item) for item in bars(picture, "planned"))
    assert second < float(limit.get("x1", "0")) < first


def test_a_lock_that_blocks_only_writers_does_not_claim_to_block_readers() -> None:
    picture = parsed(drawings.locks([lock(blocks=["INSERT", "UPDATE"]), lock()], [], 0.5))
    assert [word for word in words(picture) if word.startswith("blocks")] == [
        "blocks writes",
        "blocks reads and writes",
    ]


def test_only_the_longest_locks_are_drawn_and_the_rest_is_counted() -> None:
    picture = parsed(drawings.locks([lock(f"app.t{count}") for count in range(20)], [], 0.5))
    assert len(bars(picture, "planned")) == 12
    assert "8 shorter ones are in report.json." in words(picture)


def test_before_and_after_share_the_scale_of_their_line() -> None:
    picture = parsed(
        drawings.latency([times("q", 10.0, 15.0, change=0.5, regression=True, judgement="regression", limit_ms=11.0)])
    )
    before = bars(picture, "planned")[1]  # the first is the legend's
    after = bars(picture, "actual")[1]
    assert width(after) == pytest.approx(1.5 * width(before), abs=0.2)
    assert after.get("class") == "bar actual failed"
    assert {"10.0 \N{RIGHTWARDS ARROW} 15.0 ms (+50%)", "regression"} <= set(words(picture))


def test_a_curve_goes_up_where_the_value_does_and_the_limit_lies_above() -> None:
    picture = parsed(drawings.sparkline(series(1, 5, 2, limit=9.0, shown_limit="9"), name="s"))
    curve = next(item for item in picture.iter("path") if item.get("class") == "curve")
    heights = [float(y) for _x, y in re.findall(r"([\d.]+) ([\d.]+)", str(curve.get("d")))]
    limit = next(item for item in picture.iter("line") if item.get("class") == "limit")
    assert heights[1] < heights[2] < heights[0]
    assert float(limit.get("y1", "0")) < min(heights)
    assert picture.find("desc").text == "3 samples, highest 9, limit 9"


def test_a_risk_stands_in_the_cell_of_its_probability_and_impact() -> None:
    picture = parsed(
        drawings.risk_matrix([risk(1, "low", "critical"), risk(2, "critical", "low"), risk(3, "low", "critical")])
    )
    places = {
        "".join(item.itertext()): (float(item.get("x", "0")), float(item.get("y", "0")))
        for item in picture.iter("text")
    }
    assert "1, 3" in places
    assert places["1, 3"][0] > places["2"][0]  # more impact, further right
    assert places["1, 3"][1] > places["2"][1]  # less probable, further down
