# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's page in a real browser: it asks for nothing, complains of nothing, fits, prints, and has two themes.

Leaves what the browser saw in ``tests/output/report/``.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import struct
import subprocess
import typing as t
import zlib

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._report_html import PALETTE, write_report
from ansible_collections.surefoot.dbops.tests.support import rundirs
from ansible_collections.surefoot.dbops.tests.support.rundirs import RunDirectory

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "tests" / "output" / "report"
PLAN = str(ROOT / "playbooks" / "migrations" / "lancio_platform")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")

KINDS: dict[str, t.Callable[[pathlib.Path], RunDirectory]] = {
    "succeeded": rundirs.succeeded,
    "no_go": rundirs.no_go,
    "rescued": rundirs.rescued,
}


class Browser:
    """A headless Chromium with a profile of its own."""

    def __init__(self, profile: pathlib.Path) -> None:
        self._profile = profile
        self.log = ""

    def run(self, page: pathlib.Path, *words: str, width: int = 1200, height: int = 1600) -> str:
        """Open the page; what the browser prints, its log in :attr:`log`."""
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",  # it refuses to start for root with one
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={self._profile}",
            f"--window-size={width},{height}",
            *words,
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        self.log = done.stderr
        return done.stdout


@pytest.fixture
def browser(tmp_path: pathlib.Path) -> Browser:
    return Browser(tmp_path / "profile")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> t.Callable[[str], pathlib.Path]:
    """The page of a kind of run; made once."""
    base = tmp_path_factory.mktemp("runs")
    OUTPUT.mkdir(parents=True, exist_ok=True)

    def made(kind: str) -> pathlib.Path:
        if not (base / kind).exists():
            run = KINDS[kind](base / kind)
            write_report(run.path, plan_path=PLAN, notice=rundirs.NOTICE, rollback_command=rundirs.ROLLBACK)
        return base / kind / "report.html"

    return made


def picture(path: pathlib.Path) -> tuple[int, int, str]:
    """Width, height, and the colour of the first pixel of a PNG of 8 bits a channel."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, colours = struct.unpack(">IIBB", content[16:26])
    assert depth == 8 and colours in (2, 6)
    at, packed = 8, b""
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        if content[at + 4 : at + 8] == b"IDAT":
            packed += content[at + 8 : at + 8 + length]
        at += 12 + length
    # The first byte of a row is its filter; of the first pixel of the first row every filter leaves the value.
    red, green, blue = zlib.decompress(packed)[1:4]
    return width, height, f"#{red:02x}{green:02x}{blue:02x}"


def measured(page: pathlib.Path, browser: Browser, directory: pathlib.Path, width: int) -> dict[str, t.Any]:
    """What a script sees of the laid-out page: run in a copy, because the page itself allows none."""
    content = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text(encoding="utf-8"))
    script = """<script>
      const wide = [...document.querySelectorAll("body *")].filter(one => !one.closest(".scroll,svg")
        && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80));
      const small = [...document.querySelectorAll("svg text")].filter(one => {
        const box = one.getBoundingClientRect(), frame = one.closest("svg").getBoundingClientRect();
        return box.left < frame.left - 2 || box.right > frame.right + 2; }).map(one => one.textContent);
      document.body.innerHTML = ""; document.title = JSON.stringify({scroll: document.documentElement.scrollWidth,
        inner: innerWidth, wide, small});
    </script>"""
    copy = directory / f"measured-{width}.html"
    copy.write_text(content.replace("</body>", f"{script}</body>"), encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browser.run(copy, "--dump-dom", width=width), re.S)
    assert title
    return t.cast(
        "dict[str, t.Any]", json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_asks_for_nothing_and_the_browser_has_nothing_to_say(
    kind: str, report: t.Callable[[str], pathlib.Path], browser: Browser, tmp_path: pathlib.Path
) -> None:
    page, netlog = report(kind), tmp_path / "net.json"
    dom = browser.run(page, "--dump-dom", f"--log-net-log={netlog}")
    assert 'id="criteria"' in dom
    assert "CONSOLE" not in browser.log
    log = json.loads(netlog.read_text(encoding="utf-8"))
    urls = {str(event.get("params", {}).get("url")) for event in log["events"] if event.get("params", {}).get("url")}
    # The browser looks for its own updates whatever it shows; nothing else may leave, and nothing for the page.
    foreign = {url for url in urls if not re.match(r"https?://[a-z0-9.-]*(google|gvt1|googleapis)\.com/", url)}
    assert {url for url in foreign if not url.startswith("file:")} == set()
    assert "http" not in page.read_text(encoding="utf-8").replace("http-equiv", "").replace("http.", "")


def test_the_page_would_be_caught_asking_for_something(browser: Browser, tmp_path: pathlib.Path) -> None:
    page, netlog = tmp_path / "page.html", tmp_path / "net.json"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("heard")</script>', encoding="utf-8")
    browser.run(page, "--dump-dom", f"--log-net-log={netlog}")
    assert "CONSOLE" in browser.log and "heard" in browser.log
    assert "http://127.0.0.1:9/x.png" in netlog.read_text(encoding="utf-8")


@pytest.mark.parametrize(("theme", "setting"), [("light", "1"), ("dark", "0")])
def test_the_page_follows_the_theme(
    theme: str, setting: str, report: t.Callable[[str], pathlib.Path], browser: Browser
) -> None:
    for kind in KINDS:
        shot = OUTPUT / f"{kind}-{theme}.png"
        browser.run(
            report(kind), f"--blink-settings=preferredColorScheme={setting}", f"--screenshot={shot}", height=5200
        )
        assert picture(shot) == (1200, 5200, PALETTE["ground"][("light", "dark").index(theme)])


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_fits_whatever_the_width(
    width: int, report: t.Callable[[str], pathlib.Path], browser: Browser, tmp_path: pathlib.Path
) -> None:
    for kind in KINDS:
        seen = measured(report(kind), browser, tmp_path, width)
        assert seen["wide"] == []
        assert seen["small"] == []
    browser.run(report("succeeded"), f"--screenshot={OUTPUT / f'succeeded-{width}.png'}", width=width, height=3000)


def test_what_is_too_long_for_a_line_does_not_widen_the_page(browser: Browser, tmp_path: pathlib.Path) -> None:
    run = rundirs.no_go(tmp_path / "run")
    long = "x" * 4000
    run.evidence(f"long.{long}", "verify", long, {long: long}, verdict="fail", source=long, name=long)
    run.note("issue", long, by=long)
    run.run(host=long, error=long, outcome="failed", applied=[], pending=[long], migrations=[])
    page = pathlib.Path(write_report(run.path, rollback_command=long)["html"])
    seen = measured(page, browser, tmp_path, 1200)
    assert seen["wide"] == []
    assert seen["small"] == []


def test_the_page_prints(report: t.Callable[[str], pathlib.Path], browser: Browser) -> None:
    paper = OUTPUT / "succeeded.pdf"
    browser.run(report("succeeded"), f"--print-to-pdf={paper}")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 3 <= pages <= 15
