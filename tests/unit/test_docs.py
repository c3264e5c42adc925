# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide against the code: links, names, options, plans, and the tables that repeat what the code says."""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import typing as t

import pytest
import yaml

from ansible_collections.surefoot.dbops.plugins.module_utils import (
    _change_type,
    _checks,
    _errors,
    _plan,
    _policy,
    _remedies,
    _script,
    _sqltext,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
PACKAGE = "ansible_collections.surefoot.dbops.plugins"
each_page = pytest.mark.parametrize("page", PAGES, ids=IDS)

# Keywords of a task beside its module.
_TASK = frozenset(
    {"name", "register", "when", "tags", "loop", "vars", "environment", "delegate_to", "run_once", "become", "no_log"}
    | {"check_mode", "diff", "until", "retries", "delay", "changed_when", "failed_when", "ignore_errors", "notify"}
)


def body(page: pathlib.Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def slugs(page: pathlib.Path) -> set[str]:
    """The anchors GitHub gives to a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", without_code(body(page)), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 1
        while slug in found:
            slug = f"{slug.rstrip('0123456789-')}-{number}"
            number += 1
        found.add(slug)
    return found


@each_page
def test_relative_links_and_their_anchors_resolve(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", without_code(body(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _hash, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in slugs(file), f"{target}: no such heading"


def test_the_index_lists_every_page() -> None:
    index = body(ROOT / "docs" / "README.md")
    missing = [
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and f"({page.name})" not in index
    ]
    assert missing == []


# --- names


def names_of(folder: str, suffix: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob(f"*{suffix}")}


MODULES = names_of("plugins/modules", ".py")
LOOKUPS = names_of("plugins/lookup", ".py")
ROLES = {path.name for path in (ROOT / "roles").iterdir() if path.is_dir()}
PLAYBOOKS = names_of("playbooks", ".yml")
FRAGMENTS = names_of("plugins/doc_fragments", ".py")
GROUPS = set(yaml.safe_load(body(ROOT / "meta" / "runtime.yml"))["action_groups"])


@each_page
def test_every_module_role_and_playbook_that_is_named_exists(page: pathlib.Path) -> None:
    named = set(re.findall(r"\bsurefoot\.dbops\.([a-z_0-9]+)", body(page)))
    assert named - MODULES - LOOKUPS - ROLES - PLAYBOOKS - FRAGMENTS - GROUPS == set()
    modules = set(re.findall(r"`(postgresql_[a-z_]+)`", body(page)))
    assert modules - MODULES == set()
    files = re.findall(r"\bplaybooks/([a-z_0-9]+)\.yml", body(page))
    assert set(files) - PLAYBOOKS == set()
    paths = re.findall(r"`((?:plugins|tests|roles|scripts|changelogs|meta)/[\w./-]+)`", body(page))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def variables() -> set[str]:
    """The variables that roles, playbooks and inventories know."""
    found: set[str] = set()
    for folder in ("roles", "playbooks", "inventories"):
        for path in (ROOT / folder).rglob("*.yml"):
            found.update(re.findall(r"\bsurefoot_\w+", body(path)))
    return found


@each_page
def test_every_variable_that_is_named_exists(page: pathlib.Path) -> None:
    named = set(re.findall(r"\bsurefoot_\w+(?!\w)", body(page))) - ROLES
    known = variables()
    families = {name for name in named if name.endswith("_") and any(other.startswith(name) for other in known)}
    assert named - known - families == set()


def documentation(module: str) -> dict[str, t.Any]:
    """A module's options, those of its fragments included."""
    document = yaml.safe_load(importlib.import_module(f"{PACKAGE}.modules.{module}").DOCUMENTATION)
    options = dict(document.get("options") or {})
    for name in document.get("extends_documentation_fragment") or []:
        fragment, _dot, part = name.removeprefix("surefoot.dbops.").partition(".")
        holder = importlib.import_module(f"{PACKAGE}.doc_fragments.{fragment}").ModuleDocFragment
        options.update(yaml.safe_load(getattr(holder, part.upper() or "DOCUMENTATION")).get("options") or {})
    return options


OPTIONS = {module: documentation(module) for module in MODULES}


def known_keys() -> set[str]:
    """What may be written as ``key: value`` in running text."""
    keys = {*_plan._PLAN_KEYS, *_plan._MIGRATION_KEYS, *_plan._SQL_STEP_KEYS, *_plan._BACKFILL_KEYS, *_plan._RISK_KEYS}
    for path in (ROOT / "playbooks" / "migrations").glob("*/plan.yml"):
        keys |= set(yaml.safe_load(body(path)).get("variables") or {})
    keys |= {
        *_plan._RETRY_KEYS,
        *_checks._KEYS,
        *_policy.KEYS,
        *_TASK,
        "backfill",
        *_plan.OPERATIONS,
        *_change_type.CHANGE_KEYS,
    }
    for options in OPTIONS.values():
        for name, option in options.items():
            keys |= {name, *(option.get("aliases") or ()), *(option.get("suboptions") or ())}
    return keys


@each_page
def test_every_option_in_running_text_exists(page: pathlib.Path) -> None:
    spans = re.findall(r"`([a-z][a-z_]+): [^`]+`", " ".join(without_code(body(page)).split()))
    assert sorted(set(spans) - known_keys() - variables()) == []


# --- examples


def examples() -> t.Iterator[t.Any]:
    for page, name in zip(PAGES, IDS):
        for found in re.finditer(r"^( *)```ya?ml\n(.*?)^ *```", body(page), re.M | re.S):
            line = body(page).count("\n", 0, found.start()) + 2
            text = "\n".join(row.removeprefix(found.group(1)) for row in found.group(2).splitlines())
            yield pytest.param(text, id=f"{name}:{line}")


def tasks_of(items: t.Any) -> t.Iterator[dict[str, t.Any]]:
    for item in items if isinstance(items, list) else []:
        if not isinstance(item, dict):
            continue
        yield item
        for key in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks"):
            yield from tasks_of(item.get(key))


def check_option(where: str, value: t.Any, option: dict[str, t.Any]) -> None:
    choices = option.get("choices")
    if choices and not (isinstance(value, str) and "{{" in value):
        assert value in choices, f"{where}: {value!r} is none of {choices}"
    suboptions = option.get("suboptions")
    for entry in value if isinstance(value, list) else [value]:
        if suboptions and isinstance(entry, dict):
            check_options(where, entry, suboptions)


def check_options(where: str, values: dict[str, t.Any], options: dict[str, t.Any]) -> None:
    names = {alias: option for name, option in options.items() for alias in (name, *(option.get("aliases") or ()))}
    for name, value in values.items():
        assert name in names, f"{where} has no option {name}"
        check_option(f"{where}: {name}", value, names[name])
    given = {name for name, option in options.items() if {name, *(option.get("aliases") or ())} & set(values)}
    missing = [name for name, option in options.items() if option.get("required") and name not in given]
    assert missing == [], f"{where} needs {missing}"


def write_files_of(plan: dict[str, t.Any], directory: pathlib.Path) -> None:
    """The files the plan names, each with a statement of its own."""

    def files(value: t.Any) -> t.Iterator[str]:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                yield item
            elif isinstance(item, dict) and "sql" in item:
                yield item["sql"]

    for migration in plan["migrations"]:
        for key in ("deploy", "steps", "rollback", "verify"):
            for name in files(migration.get(key, [])):
                (directory / name).write_text(f"SELECT '{name}';\n", encoding="utf-8")


def check_plan(plan: dict[str, t.Any], directory: pathlib.Path) -> None:
    """The plan loads; what an excerpt refers to and does not show is put before it."""
    shown = [migration["id"] for migration in plan["migrations"]]
    needed = {name for migration in plan["migrations"] for name in migration.get("requires", [])} - set(shown)
    before = [{"id": name, "deploy": f"{name}.sql"} for name in sorted(needed)]
    plan["migrations"] = before + plan["migrations"]
    write_files_of(plan, directory)
    (directory / "plan.yml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    loaded = _plan.load_plan(str(directory))
    assert [migration.id for migration in loaded.migrations][len(before) :] == shown


@pytest.mark.parametrize("text", list(examples()))
def test_every_example_is_valid(text: str, tmp_path: pathlib.Path) -> None:
    data = yaml.safe_load(text)
    if isinstance(data, dict):
        if "migrations" in data:
            check_plan(data, tmp_path)
        elif "surefoot_policy" in data:
            _policy.resolve_policy(data["surefoot_policy"])
        else:
            assert set(data) <= known_keys() | variables()
        return
    assert isinstance(data, list) and data and all(isinstance(item, dict) for item in data)
    if all("id" in item for item in data):
        check_plan({"name": "example", "migrations": data}, tmp_path)
        return
    if all({"query", "statement"} & set(item) for item in data):
        verified = {"id": "001", "deploy": "001.sql", "verify": data}
        names = sorted(set(re.findall(r":'(\w+)'", text)))
        check_plan({"name": "example", "variables": dict.fromkeys(names, "x"), "migrations": [verified]}, tmp_path)
        return
    ours = 0
    for task in tasks_of(data):
        for key, value in task.items():
            if key.startswith("surefoot.dbops."):
                ours += 1
                check_options(key, value, OPTIONS[key.removeprefix("surefoot.dbops.")])
    roles = [role for play in data for role in play.get("roles", [])]
    imports = [play for play in data if "ansible.builtin.import_playbook" in play]
    lookups = [name for name in LOOKUPS if f"lookup('surefoot.dbops.{name}'" in text]
    assert ours or roles or imports or lookups, "an example that shows nothing of this collection"


# --- tables that repeat what the code says


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    text = body(ROOT / "docs" / page).split(f"# {heading}\n", 1)[1]
    found = re.search(r"^\|.*?\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.group(1).splitlines()]


def markdown(text: str) -> str:
    return text.replace("<", "&lt;").replace("\\.", "`\\.`")


def test_the_remedies_by_sqlstate_are_those_of_the_code() -> None:
    expected = [
        [f"`{sqlstate}`", _errors.condition_name(sqlstate) or "", word, markdown(remedy)]
        for sqlstate, word, remedy in _remedies._REMEDIES
    ]
    assert rows("errors.md", "Remedies by SQLSTATE") == expected


def test_every_error_code_is_described_and_no_other() -> None:
    codes = set()
    for path in (ROOT / "plugins").rglob("*.py"):
        codes.update(re.findall(r"""\bcode(?:: str)? ?= ?"([a-z_]+)\"""", body(path)))
    described = {row[0].strip("`") for row in rows("errors.md", "Codes")}
    assert described == codes - {"error"}  # the base class, which nothing raises


def details_of_errors() -> set[str]:
    """The keys that the code adds to an error object, beside those of every one."""
    kinds = {name for name, value in vars(_errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    found = set(re.findall(r'\.details\["(\w+)"\]', "".join(map(body, (ROOT / "plugins").rglob("*.py")))))
    for path in (ROOT / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(body(path))):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", None) not in kinds:
                continue
            for keyword in node.keywords:
                if keyword.arg == "details" and isinstance(keyword.value, ast.Dict):
                    found.update(str(key.value) for key in keyword.value.keys if isinstance(key, ast.Constant))
    return found


def test_every_key_of_an_error_object_is_described() -> None:
    error = _errors.SqlError("x", sqlstate="42P01", statement="SELECT 1").to_dict()
    described = {name for row in rows("errors.md", "Errors") for name in re.findall(r"`(\w+)`", row[0])}
    assert described == set(error) | details_of_errors()


def test_the_psql_commands_are_those_of_the_code() -> None:
    text = body(ROOT / "docs" / "sql-files.md")
    quotes = [" ".join(part.split()) for part in re.findall(r"^> (.*?)\n\n", text, re.M | re.S)]
    assert set(re.findall(r"`(\\\w+)`", quotes[0].split(";")[0])) == set(_script._NO_OPS)
    assert set(re.findall(r"`(\w+)`", quotes[1])) == set(_script._QUIET_VARIABLES)
    refused = {command: markdown(remedy) for command, remedy in _script._META_REMEDIES.items()}
    for command in {*_script._BUFFER_COMMANDS, *_sqltext._MID_STATEMENT}:
        refused[command] = markdown(_sqltext.mid_statement_remedy(command))
    table = {
        command: row[1] for row in rows("sql-files.md", "psql commands") for command in re.findall(r"`(\\\S+)`", row[0])
    }
    assert table.pop("\\d") == _script._meta_remedy("\\dt")
    assert table == refused


def test_the_limits_of_a_file_are_those_of_the_code() -> None:
    text = body(ROOT / "docs" / "sql-files.md")
    assert f"up to {_sqltext.MAX_STATEMENT_SIZE // 1024**2} MiB" in text


def test_no_page_names_a_place_of_a_developers_machine() -> None:
    home = os.path.expanduser("~")
    for page in PAGES:
        assert str(ROOT) not in body(page) and (home in ("/", "/root") or home not in body(page)), page
