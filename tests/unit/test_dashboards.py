# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboards are those of the script, and what Grafana's published models take them for."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import typing as t

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "playbooks" / "files" / "grafana").glob("*.json"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def script() -> t.Any:
    spec = importlib.util.spec_from_file_location("write_dashboards", ROOT / "scripts" / "write_dashboards.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_writes() -> None:
    module = script()
    written = {f"{board.uid}.json": module.text(board) for board in module.BOARDS}
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == written


def missing(mine: t.Any, theirs: t.Any, where: str) -> list[str]:
    """What of my JSON is not in theirs, or is something else there."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        found = [f"{where}.{key}" for key in mine if key not in theirs]
        return found + [
            line for key in mine if key in theirs for line in missing(mine[key], theirs[key], f"{where}.{key}")
        ]
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        return [line for number, pair in enumerate(zip(mine, theirs)) for line in missing(*pair, f"{where}[{number}]")]
    return [] if mine == theirs else [f"{where}: {mine!r} became {theirs!r}"]


@each_file
def test_grafanas_published_models_know_every_key(path: pathlib.Path) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    mine = json.loads(path.read_text(encoding="utf-8"))
    read = Dashboard.from_json(json.loads(path.read_text(encoding="utf-8")))
    theirs = json.loads(JSONEncoder(sort_keys=True).encode(read))
    assert missing(mine, theirs, path.stem) == []
    # The check itself finds what no model knows.
    wrong = json.loads(path.read_text(encoding="utf-8"))
    wrong["panels"][0]["fieldConfig"]["defaults"]["unti"] = "s"
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(json.loads(json.dumps(wrong)))))
    assert missing(wrong, theirs, "x") == ["x.panels[0].fieldConfig.defaults.unti"]


@each_file
def test_panels_lie_side_by_side_and_ask_the_chosen_data_source(path: pathlib.Path) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells and place["x"] + place["w"] <= 24, panel["title"]
        cells |= mine
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "grafana-postgresql-datasource", "uid": "${datasource}"}
        assert panel["description"]
        # No panel takes a text of queries for a fact, or shows one.
        sql = panel["targets"][0]["rawSql"]
        assert " query " not in sql and ".query" not in sql
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert [variable["name"] for variable in board["templating"]["list"]][0] == "datasource"
