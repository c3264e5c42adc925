# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes of a real HTTP server: every answer and every way of not answering."""

from __future__ import annotations

import contextlib
import http.server
import json
import pathlib
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Interrupted
from ansible_collections.surefoot.dbops.plugins.module_utils._http import (
    GIVE_UP_AFTER,
    Probing,
    parse_endpoint,
    probe,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.modules import http_probe

TOKEN = "t0ken-Value-77ab1c"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_args: t.Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        behaviour = getattr(self, "on_" + self.path.strip("/").partition("?")[0].partition("/")[0], None)
        if behaviour is None:
            self.answer(404)
        else:
            behaviour()

    do_HEAD = do_POST = do_GET

    def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def on_ok(self) -> None:
        self.answer(200, b'{"status": "ok", "items": [1, 2]}')

    def on_guarded(self) -> None:
        self.answer(200 if self.headers.get("Authorization") == f"Bearer {TOKEN}" and not self.server.denying else 403)

    def on_broken(self) -> None:
        self.answer(500)

    def on_echo(self) -> None:
        self.answer(200, self.rfile.read(int(self.headers["Content-Length"])))

    def on_flaky(self) -> None:
        count = sum(1 for _method, path, _headers in self.server.seen if path == self.path)
        self.answer(200 if count % 2 else 503)

    def on_slow(self) -> None:
        time.sleep(0.3)
        self.answer(200)

    def on_drip(self) -> None:
        # Never silent for as long as a socket's timeout, never done.
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _byte in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)

    def on_dripheaders(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            for _byte in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)

    def on_cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"{")

    def on_garbage(self) -> None:
        self.wfile.write(b"\x00\x01 not HTTP\r\n\r\n")

    def on_login(self) -> None:
        self.answer(302, Location=f"/ok?ticket={TOKEN}")

    def on_away(self) -> None:
        self.answer(302, Location=f"http://localhost:{self.server.server_port}/guarded")

    def on_loop(self) -> None:
        self.answer(302, Location="/loop")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.denying = False
        self.scheme = "http"

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_args: t.Any) -> None:
        pass  # a client that goes away is what these tests are about


@contextlib.contextmanager
def serving(server: Server) -> t.Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> t.Iterator[Server]:
    with serving(Server()) as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A certificate for 127.0.0.1 that signs itself, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    argv = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    argv += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file) + ".key"]
    subprocess.run([*argv, "-out", str(file)], check=True, capture_output=True)
    return file


@pytest.fixture
def tls_server(certificate: pathlib.Path) -> t.Iterator[Server]:
    plain = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, str(certificate) + ".key")
    plain.socket = context.wrap_socket(plain.socket, server_side=True)
    plain.scheme = "https"
    with serving(plain) as running:
        yield running


def run(run_dir: pathlib.Path | None, endpoints: list[dict[str, t.Any]], **options: t.Any) -> dict[str, t.Any]:
    """The module's run with defaults; a failure is in the result."""
    spec = http_probe.argument_spec().argument_spec
    params = {name: entry.get("default") for name, entry in spec.items()}
    params.update({"requests": 4, "run_dir": None if run_dir is None else str(run_dir), **options})
    check_mode = params.pop("check_mode", False)
    invocation = Invocation({**params, "endpoints": endpoints}, check_mode, False, name="http_probe")
    return invocation.perform(http_probe.run)


def verdicts(results: dict[str, t.Any]) -> dict[str, str]:
    return {item["criterion"]: item["verdict"] for item in results["evidence"]}


# --- one request


def test_one_request_returns_status_and_seconds(server):
    result = probe(server.url("/ok"))
    assert (result.status, result.error, result.passed) == (200, None, True)
    assert result.seconds > 0
    assert probe({"url": server.url("/ok"), "method": "HEAD"}).passed


def test_the_token_is_sent_and_an_unexpected_status_says_so(server):
    assert probe({"url": server.url("/guarded"), "token": TOKEN}).passed
    refused = probe(server.url("/guarded"))
    assert (refused.status, refused.reason) == (403, "status 403, not 200")
    assert probe({"url": server.url("/guarded"), "expect_status": 403}).passed


def test_a_body_is_sent_and_the_answer_judged(server):
    given = {"url": server.url("/echo"), "method": "POST", "body": {"a": "ü"}}
    assert probe({**given, "expect_body": "a == 'ü'"}).passed
    assert probe({**given, "expect_body": "b"}).reason == "the answer does not satisfy b"


def test_no_redirect_is_followed_unless_asked_for(server):
    stays = probe({"url": server.url("/login")})
    assert stays.status == 302
    assert stays.reason == f"status 302 to {server.url('/ok')}, not 200"
    assert [path for _method, path, _headers in server.seen] == ["/login"]
    assert probe({"url": server.url("/login"), "follow_redirects": True, "expect_body": "status == 'ok'"}).passed
    assert probe({"url": server.url("/loop"), "follow_redirects": True}).error == "protocol"


def test_a_token_is_not_carried_to_another_server(server):
    followed = probe({"url": server.url("/away"), "token": TOKEN, "follow_redirects": True})
    assert followed.status == 403  # it would be 200 with the token
    assert [TOKEN in str(headers) for _method, _path, headers in server.seen] == [True, False]


@pytest.mark.parametrize("path", ["/drip", "/dripheaders", "/slow"])
def test_a_request_ends_with_its_time_whatever_the_server_sends(server, path):
    result = probe(server.url(path), timeout=0.15)
    assert (result.status, result.error) == (None, "timeout")
    assert result.seconds < 3  # dripping goes on for 5 seconds


@pytest.mark.parametrize(("path", "error"), [("/cut", "closed"), ("/garbage", "protocol")])
def test_what_is_no_whole_answer_is_classified(server, path, error):
    result = probe(server.url(path))
    assert (result.status, result.error) == (None, error)


def test_a_refused_connection_and_an_unknown_name_are_told_apart():
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else takes it
        assert probe(f"http://127.0.0.1:{unused.getsockname()[1]}/").error == "refused"
    assert probe("http://surefoot-test.invalid/", timeout=20).error == "dns"


def test_a_server_that_does_not_answer_at_all_is_a_timeout():
    with contextlib.closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert probe(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.1).error == "timeout"


# --- TLS


def test_a_certificate_is_verified_by_the_given_ca(tls_server, certificate):
    assert probe({"url": tls_server.url("/ok"), "ca_path": str(certificate)}).passed
    unknown = probe(tls_server.url("/ok"))
    assert unknown.error == "tls"
    assert unknown.reason and unknown.reason.startswith("the certificate is not trusted: self")
    assert probe({"url": tls_server.url("/ok"), "validate_certs": False}).passed


def test_a_certificate_for_another_name_is_refused(tls_server, certificate):
    elsewhere = f"https://localhost:{tls_server.server_port}/ok"
    assert probe({"url": elsewhere, "ca_path": str(certificate)}).error == "tls"


def test_tls_to_a_plain_server_is_a_tls_error(server):
    assert probe(f"https://127.0.0.1:{server.server_port}/ok").error == "tls"


# --- many


def test_all_is_well(server, tmp_path):
    results = run(
        tmp_path,
        [
            {"name": "a", "url": server.url("/ok"), "expect_body": "length(items) == `2`"},
            {"name": "b", "url": server.url("/guarded"), "token": TOKEN},
        ],
        p95_max="5s",
    )
    assert not results.get("failed") and results["changed"] is False
    assert set(verdicts(results).values()) == {"pass"}
    for item in results["endpoints"]:
        assert (item["requests"], item["statuses"], item["error_rate"]) == (5, {"200": 5}, 0)
        assert 0 < item["p50_ms"] <= item["p95_ms"] <= item["p99_ms"]
    file = tmp_path / "probes-after.json"
    assert results["path"] == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["endpoints"] == results["endpoints"]


def test_endpoints_take_turns_and_the_server_sees_every_request(server):
    run(None, [{"name": name, "url": server.url("/ok?" + name)} for name in "ab"], requests=3, p95_max="5s")
    assert [path for _method, path, _headers in server.seen] == ["/ok?a", "/ok?b"] * 4


def test_a_slow_endpoint_is_over_the_limit(server):
    results = run(None, [{"name": "slow", "url": server.url("/slow")}], requests=2, warmup=0, concurrency=2)
    assert results["failed"]
    assert verdicts(results)["http.latency_p95"] == "fail"
    assert results["endpoints"][0]["p95_ms"] > 200


def test_server_errors_count_as_errors(server):
    results = run(None, [{"name": "flaky", "url": server.url("/flaky")}], requests=3, p95_max="5s")
    assert results["endpoints"][0]["error_rate"] == 0.5
    assert verdicts(results) == {"http.status": "fail", "http.latency_p95": "pass", "http.error_rate": "fail"}
    tolerant = run(None, [{"name": "x", "url": server.url("/flaky?x")}], requests=3, p95_max="5s", error_rate_max="50%")
    assert verdicts(tolerant)["http.error_rate"] == "pass"


def test_a_new_403_is_found_and_an_old_one_is_not_new(server, tmp_path):
    endpoints = [
        {"name": "guarded", "url": server.url("/guarded"), "token": TOKEN},
        {"name": "closed", "url": server.url("/guarded"), "expect_status": [403]},
    ]
    run(tmp_path, endpoints, label="before", p95_max="5s")
    earlier = {"compare_with": str(tmp_path / "probes-before.json"), "p95_max": "5s"}
    unchanged = run(tmp_path, endpoints, **earlier)
    assert verdicts(unchanged)["http.no_new_403"] == "pass"
    server.denying = True
    denied = run(tmp_path, endpoints, **earlier)
    assert denied["failed"]
    assert "guarded: status 403, not 200" in denied["msg"]
    assert [item["new_403"] for item in denied["comparison"]["endpoints"]] == [5, 0]
    assert {item["phase"] for item in denied["evidence"]} == {"compare"}
    assert verdicts(denied)["http.no_new_403"] == "fail"


def test_a_dead_endpoint_is_given_up_and_the_others_are_not(server):
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        endpoints = [{"name": "dead", "url": dead}, {"name": "ok", "url": server.url("/ok")}]
        results = run(None, endpoints, requests=10, p95_max="5s", fail_on_error=False)
    assert "failed" not in results
    assert results["failed_criteria"] == ["http.status", "http.error_rate"]
    silent, fine = results["endpoints"]
    assert (silent["requests"], silent["gave_up"], silent["errors"]) == (GIVE_UP_AFTER, True, {"refused": 3})
    assert (fine["requests"], fine["gave_up"]) == (11, False)


def test_no_secret_is_in_results_files_or_messages(server, tmp_path):
    other = "0ther-Value-5512"
    endpoints = [
        {"url": server.url(f"/broken?token={TOKEN}")},
        {"url": server.url("/broken").replace("://", f"://ada:{other}@")},
        {"name": "header", "url": server.url("/login"), "secret_headers": {"Cookie": f"sid={other}"}, "token": TOKEN},
    ]
    results = run(tmp_path, endpoints, label="before", requests=1)
    assert results["failed"]
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    for secret in (TOKEN, other):
        assert secret in str(server.seen)  # it did arrive
        assert secret not in json.dumps(results) + files
    assert "?token=***" in files


def test_check_mode_asks_only_what_changes_nothing_and_writes_nothing(server, tmp_path):
    endpoints = [
        {"name": "read", "url": server.url("/ok")},
        {"name": "write", "url": server.url("/echo"), "method": "POST", "body": {}},
    ]
    results = run(tmp_path, endpoints, check_mode=True, p95_max="5s")
    assert results["skipped_endpoints"] == ["write"]
    assert {method for method, _path, _headers in server.seen} == {"GET"}
    assert results["path"] is None and list(tmp_path.iterdir()) == []


def test_stopping_ends_with_the_requests_under_way(server):
    probing = Probing([parse_endpoint({"url": server.url("/slow")})], requests=1000)
    threading.Timer(0.1, probing.stop).start()
    with pytest.raises(Interrupted):
        probing.run()
    assert len(server.seen) < 10
