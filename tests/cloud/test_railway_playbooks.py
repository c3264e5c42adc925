# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules, lookup and role as a playbook uses them, at -vvv: what they give, what they ask, and that no value shows.
The guide's examples are run as they stand."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import pytest
import yaml

from ansible_collections.surefoot.dbops.tests.support.railway_server import (
    ACCOUNT_TOKEN,
    MALFORMED_SECRET,
    MONGO_SECRET,
    PROJECT_TOKEN,
    REDIS_SECRET,
    SECRETS,
    RailwayServer,
    lancio_world,
    malformed_urls,
    railway_server,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(sys.executable).parent
PAGE = ROOT / "docs" / "railway.md"
REDIS_URL = f"redis://default:{REDIS_SECRET}@monorail.proxy.rlwy.net:26137"
MONGO_URL = f"mongodb://mongo:{MONGO_SECRET}@mongodb.railway.internal:27017"

Tasks = list[dict[str, t.Any]]


class Play:
    """A play against the stand-in, and what came of it."""

    def __init__(self, server: RailwayServer, redis: dict[str, t.Any], directory: pathlib.Path) -> None:
        self.server, self.redis, self.directory = server, redis, directory
        self.environ = {"RAILWAY_API_TOKEN": ACCOUNT_TOKEN}

    def run(
        self, tasks: Tasks, *, as_module: bool = False, variables: dict[str, t.Any] | None = None, **play: t.Any
    ) -> subprocess.CompletedProcess[str]:
        """The process; its output, at -vvv, has no secret in it."""
        given = {
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "api_url": self.server.url,
            "directory": str(self.directory),
            "fingerprint_key": "a-key-of-sixteen-characters",
            **(variables or {}),
        }
        content = {
            "name": "Test",
            "hosts": "databases",
            "gather_facts": False,
            "module_defaults": {"group/surefoot.dbops.railway": {"api_url": "{{ api_url }}"}},
            "vars": given,
            "tasks": tasks,
            **play,
        }
        if as_module:  # a task with an environment of its own does not run in the worker
            content["environment"] = {"ELSEWHERE": "1"}
        playbook = self.directory / "play.yml"
        playbook.write_text(yaml.safe_dump([content], sort_keys=False), encoding="utf-8")
        inventory = self.directory / "hosts.yml"
        host = {"localhost": {"ansible_connection": "local"}}
        inventory.write_text(yaml.safe_dump({"databases": {"hosts": host}}), encoding="utf-8")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAILWAY_")}
        done = subprocess.run(
            [str(BIN / "ansible-playbook"), "-i", str(inventory), "-vvv", str(playbook)],
            env={
                **clean,
                "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                "ANSIBLE_NOCOLOR": "1",
                **self.environ,
            },
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            timeout=180,
        )
        output = done.stdout + done.stderr
        assert not [secret for secret in SECRETS if secret in output], output
        assert "Traceback" not in output, output
        return done


@pytest.fixture
def play(tmp_path: pathlib.Path) -> t.Iterator[Play]:
    world, _project, redis, _mongo = lancio_world()
    with railway_server(world) as server:
        yield Play(server, redis, tmp_path)


def task(module: str, /, **options: t.Any) -> dict[str, t.Any]:
    keywords = {key: options.pop(key) for key in ("register", "no_log", "ignore_errors", "loop") if key in options}
    return {"name": "Ask", f"surefoot.dbops.{module}": options, **keywords}


def lookup(*terms: str, **options: str) -> str:
    words = [*(repr(term) for term in terms), *(f"{key}={value!r}" for key, value in options.items())]
    return f"lookup('surefoot.dbops.railway_variable', {', '.join(words)}, api_url=api_url)"


WHERE = {"project": "lancio", "environment": "production"}
BOTH = [{"name": "Redis", "kind": "redis"}, {"name": "MongoDB", "kind": "mongodb"}]


# --- modules


@pytest.mark.parametrize("as_module", [False, True], ids=["in the worker", "as a module"])
def test_both_modules_say_what_they_found_and_show_no_value(play: Play, as_module: bool) -> None:
    tasks = [
        task("railway_service_info", services=BOTH, register="deployed", **WHERE),
        task(
            "railway_variables_info",
            services=BOTH,
            endpoint="public",  # no name is looked up
            fail_on_error=False,
            register="variables",
            **WHERE,
        ),
        {
            "name": "Check",
            "ansible.builtin.assert": {
                "that": [
                    "deployed.services | map(attribute='state') | unique == ['running']",
                    "variables.services[0].selected == 'REDIS_PUBLIC_URL'",
                    "variables.services[1].selected is none",
                    "variables.failed_criteria == ['railway.mongodb.variable']",
                ]
            },
        },
    ]
    done = play.run(tasks, as_module=as_module)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("AnsiballZ_railway_service_info" in done.stdout) is as_module


@pytest.mark.parametrize("as_module", [False, True], ids=["in the worker", "as a module"])
def test_a_failed_task_is_one_line_without_a_value(play: Play, as_module: bool) -> None:
    play.server.refuse("surefootVariables", f"cannot render {REDIS_URL}: {REDIS_SECRET}, sent {ACCOUNT_TOKEN}")
    done = play.run([task("railway_variables_info", services=BOTH, **WHERE)], as_module=as_module)
    assert done.returncode == 2
    assert "Railway refused the query variables (trace id 7300112233445566778)" in done.stdout + done.stderr


def test_a_missing_candidate_fails_the_play_and_says_why(play: Play) -> None:
    done = play.run([task("railway_variables_info", services=[{**BOTH[1]}], endpoint="public", **WHERE)])
    assert done.returncode == 2
    assert "MongoDB has no variable that can be used: MONGO_PUBLIC_URL has no host or no port" in done.stdout


@pytest.mark.parametrize("as_module", [False, True], ids=["in the worker", "as a module"])
def test_values_need_no_log_and_reach_only_whom_they_are_for(play: Play, as_module: bool) -> None:
    file = play.directory / "url"
    ask = {"services": [BOTH[0]], "values": True, **WHERE}
    tasks = [
        task("railway_variables_info", ignore_errors=True, register="refused", **ask),
        task("railway_variables_info", no_log=True, register="secret", **ask),
        {
            "name": "Write it",
            "ansible.builtin.copy": {
                "content": "{{ secret.variable_values.Redis[secret.services[0].selected] }}",
                "dest": str(file),
                "mode": "0600",
            },
            "no_log": True,
        },
        {"name": "Check", "ansible.builtin.assert": {"that": ["refused is failed", "'needs no_log' in refused.msg"]}},
    ]
    done = play.run(tasks, as_module=as_module)
    assert done.returncode == 0, done.stdout + done.stderr
    assert file.read_text(encoding="utf-8") == REDIS_URL
    # The refused task asked nothing.
    assert play.server.operations.count("surefootVariables") == 1


@pytest.mark.parametrize("as_module", [False, True], ids=["in the worker", "as a module"])
def test_no_part_of_a_malformed_url_shows(play: Play, as_module: bool) -> None:
    """Neither by the module nor by the lookup, in whatever way each of them is wrong."""
    urls = malformed_urls()
    assert len(urls) >= 50
    place = next(key for key, value in play.server.world.variables.items() if "REDIS_URL" in value)
    play.server.world.variables[place] = {f"V{number}": url for number, url in enumerate(urls)}
    names = list(play.server.world.variables[place])
    service = {"name": "Redis", "kind": "redis", "variables": names}
    content = f"{{{{ {lookup(*names, service='Redis', kind='redis', **WHERE)} }}}}"
    tasks = [
        task(
            "railway_variables_info",
            services=[service],
            fingerprint_key="x" * 16,
            run_dir="{{ run_directory }}",
            register="found",
            ignore_errors=True,
            **WHERE,
        ),
        {"name": "Ask", "ansible.builtin.debug": {"msg": content}, "ignore_errors": True, "register": "looked"},
        {"name": "Show", "ansible.builtin.debug": {"msg": "{{ [found, looked] }}"}},
    ]
    done = play.run(tasks, as_module=as_module, variables={"run_directory": str(play.directory / "run")})
    written = (play.directory / "run" / "evidence.jsonl").read_text(encoding="utf-8")
    assert '"verdict": "fail"' in written and "V0" in written
    output = done.stdout + done.stderr + written
    assert output.count("has no variable that can be used") >= 2
    assert MALFORMED_SECRET not in output and MALFORMED_SECRET[3:-3] not in output


def test_both_tokens_in_the_environment_stop_the_play(play: Play) -> None:
    play.environ["RAILWAY_TOKEN"] = PROJECT_TOKEN
    done = play.run([task("railway_service_info", services=BOTH, **WHERE)])
    assert done.returncode == 2
    assert "the environment has RAILWAY_TOKEN (a project token) and RAILWAY_API_TOKEN" in done.stdout
    done = play.run(
        [task("railway_service_info", services=BOTH, api_token="{{ lookup('env', 'RAILWAY_API_TOKEN') }}", **WHERE)]
    )
    assert done.returncode == 0, done.stdout


# --- the lookup


def test_the_lookup_gives_the_value_and_shows_it_nowhere(play: Play) -> None:
    first, second = play.directory / "first", play.directory / "second"
    mongo = lookup("MONGO_PUBLIC_URL", "MONGO_URL", service="MongoDB", kind="mongodb", endpoint="private", **WHERE)
    tasks = [
        {
            "name": "Write it",
            "ansible.builtin.copy": {"content": f"{{{{ {expression} }}}}", "dest": str(file), "mode": "0600"},
            "no_log": True,
        }
        for expression, file in ((lookup(service="Redis", kind="redis", **WHERE), first), (mongo, second))
    ]
    # A secret option of a module of this collection needs no no_log. Nothing listens there.
    tasks.append(
        {
            **task(
                "http_probe",
                endpoints=[
                    {
                        "url": "http://127.0.0.1:9/",
                        "token": f"{{{{ {lookup('REDIS_PASSWORD', service='Redis', **WHERE)} }}}}",
                    }
                ],
            ),
            "ignore_errors": True,
        }
    )
    done = play.run(tasks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert first.read_text(encoding="utf-8") == REDIS_URL
    assert second.read_text(encoding="utf-8") == MONGO_URL
    assert "the connection was refused" in done.stdout


def test_one_process_asks_once_however_often_a_template_is_evaluated(play: Play) -> None:
    value = lookup("REDIS_PASSWORD", service="Redis", **WHERE)
    other = lookup("REDIS_URL", service="Redis", endpoint="private", **WHERE)
    tasks = [
        {
            "name": "Evaluate it again and again",
            "ansible.builtin.assert": {
                "that": [f"{value} | length > 5", f"{value} == {value}", f"{other} is search('internal')"]
            },
            "no_log": True,
        }
    ]
    done = play.run(tasks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert play.server.operations.count("surefootVariables") == 1
    assert play.server.operations.count("surefootProject") == 1


NO_VALUE = [
    (
        lookup("NOPE", service="Redis", **WHERE),
        "Redis in environment production of project lancio has no variable that can be used: NOPE is not set",
    ),
    (
        lookup("MONGO_URL", service="MongoDB", endpoint="public", **WHERE),
        "MONGO_URL leads into Railway's private network",
    ),
    (lookup("X", service="Cache", **WHERE), "the project lancio has no service Cache. It has: MongoDB, Redis."),
    (lookup(service="Redis", **WHERE), "railway_variable names no variable"),
    (lookup("REDIS_URL", service="Redis"), "project is not given"),
    (lookup("REDIS_URL", **WHERE), "service"),
    (lookup("REDIS_URL", service="Redis", project_token="a-wrong-token"), "does not know the project token"),
    (
        lookup("REDIS_URL", service="Redis", project_token="a", api_token="b"),
        "project_token and api_token are both given",
    ),
]


@pytest.mark.parametrize(("expression", "said"), NO_VALUE)
def test_a_lookup_that_gives_nothing_says_why(play: Play, expression: str, said: str) -> None:
    done = play.run([{"name": "Ask", "ansible.builtin.debug": {"msg": f"{{{{ {expression} | length }}}}"}}])
    assert done.returncode != 0
    assert said in " ".join((done.stdout + done.stderr).split()), done.stdout


def test_the_lookup_is_documented() -> None:
    done = subprocess.run(
        [str(BIN / "ansible-doc"), "-t", "lookup", "surefoot.dbops.railway_variable"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "PAGER": "cat"},
    )
    assert done.returncode == 0, done.stderr
    for option in ("_terms", "service", "kind", "endpoint", "project_token", "api_token", "project", "environment"):
        assert re.search(rf"^\W*{option}\b", done.stdout, re.M), option


# --- the role


def evidence(directory: pathlib.Path) -> dict[str, tuple[str, t.Any]]:
    lines = (directory / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    return {item["criterion"]: (item["verdict"], item["measured"]) for item in map(json.loads, lines)}


def test_the_role_puts_what_it_finds_into_the_runs_evidence_and_leaves_the_decision_to_the_gate(play: Play) -> None:
    run_dir = play.directory / "run"
    services = [
        {"name": "Redis", "kind": "redis"},
        {"name": "MongoDB", "kind": "mongodb", "variables": ["MONGODB_URL"]},
    ]
    play.environ = {"TOKEN_OF_THE_PROJECT": PROJECT_TOKEN}
    done = play.run(
        [],
        roles=["surefoot.dbops.surefoot_railway"],
        variables={
            "surefoot_railway": {**WHERE, "services": services},
            "surefoot_railway_project_token": "{{ lookup('ansible.builtin.env', 'TOKEN_OF_THE_PROJECT') }}",
            "surefoot_railway_api_url": play.server.url,
            "surefoot_run_started": {"run_id": "r1", "run_dir": str(run_dir)},
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = evidence(run_dir)
    assert {name: verdict for name, (verdict, _measured) in found.items()} == {
        "railway.redis.deployed": "pass",
        "railway.mongodb.deployed": "pass",
        "railway.redis.variable": "pass",
        "railway.mongodb.variable": "fail",
    }
    assert not [secret for secret in SECRETS if secret in (run_dir / "evidence.jsonl").read_text(encoding="utf-8")]


def test_the_role_fails_without_a_run_whose_gate_could_decide(play: Play) -> None:
    services = [{"name": "MongoDB", "kind": "mongodb", "variables": ["MONGODB_URL"]}]
    done = play.run(
        [],
        roles=["surefoot.dbops.surefoot_railway"],
        variables={"surefoot_railway": {**WHERE, "services": services}, "surefoot_railway_api_url": play.server.url},
    )
    assert done.returncode == 2
    assert "MongoDB has no variable that can be used: MONGODB_URL is not set" in done.stdout


def test_the_role_without_configuration_says_so_and_asks_nothing(play: Play) -> None:
    run_dir = play.directory / "run"
    play.environ = {}
    done = play.run(
        [],
        roles=["surefoot.dbops.surefoot_railway"],
        variables={"surefoot_run_started": {"run_id": "r1", "run_dir": str(run_dir)}},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert play.server.seen == []
    assert set(evidence(run_dir).values()) == {("not_applicable", "not configured")}
    assert len(evidence(run_dir)) == 4


# --- the guide


def blocks() -> list[t.Any]:
    """The YAML of the page, in its order."""
    found = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [yaml.safe_load(text) for text in found]


def test_the_guides_tasks_run_as_they_stand(play: Play) -> None:
    """The lookup's are told where the stand-in is; modules get it by module_defaults."""
    # The public URL of MongoDB, so that the guide's environment is one in order.
    place = next(key for key, value in play.server.world.variables.items() if "MONGO_URL" in value)
    play.server.world.variables[place]["MONGO_PUBLIC_URL"] = f"mongodb://mongo:{MONGO_SECRET}@a.proxy.rlwy.net:33333"
    tasks = [item for block in blocks() if isinstance(block, list) for item in block if "hosts" not in item]
    text = json.dumps(tasks)
    assert text.count("service='") == 2
    tasks = json.loads(text.replace("service='", "api_url=api_url, service='"))
    names = {key for item in tasks for key in item if key.startswith("surefoot.dbops.")}
    assert names == {"surefoot.dbops.railway_service_info", "surefoot.dbops.railway_variables_info"}
    file = play.directory / "application.env"
    check = [
        "variables.services | map(attribute='selected') | list == ['REDIS_PUBLIC_URL', 'MONGO_PUBLIC_URL']",
        "variables.services[0].candidates[0].fingerprint is match('hmac-sha256:')",
        "mongodb_url is search('railway.internal')",
        "secret.variable_values.Redis.REDIS_PUBLIC_URL is search('rlwy.net')",
    ]
    tasks.append({"name": "Check", "ansible.builtin.assert": {"that": check}, "no_log": True})
    done = play.run(tasks, variables={"application_env_file": str(file)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert file.read_text(encoding="utf-8") == f"REDIS_URL={REDIS_URL}\n"
    assert "Redis: REDIS_PUBLIC_URL" in done.stdout


def test_the_guides_role_runs_as_it_stands(play: Play) -> None:
    configured = next(block for block in blocks() if isinstance(block, dict) and "surefoot_railway" in block)
    content = next(item for block in blocks() if isinstance(block, list) for item in block if "roles" in item)
    place = next(key for key, value in play.server.world.variables.items() if "MONGO_URL" in value)
    play.server.world.variables[place]["MONGO_PUBLIC_URL"] = f"mongodb://mongo:{MONGO_SECRET}@a.proxy.rlwy.net:33333"
    done = play.run([], variables={**configured, "surefoot_railway_api_url": play.server.url}, **content)
    assert done.returncode == 0, done.stdout + done.stderr
    assert play.server.operations.count("surefootVariables") == 2
