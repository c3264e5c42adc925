# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain of evidence shows every change, and names where; honest use never looks like one."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import stat
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _chain
from ansible_collections.surefoot.dbops.plugins.module_utils._chain import Outcome, anchor, head, seal, verify
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import (
    NO_PREVIOUS,
    Evidence,
    append_lines,
    record,
)
from ansible_collections.surefoot.dbops.tests.support.migrations import environment


def fact(number: int, text: str = "") -> Evidence:
    return Evidence(f"test.fact_{number}", "test", "pass", number, text, "a test")


def lines_of(run_dir: pathlib.Path) -> list[bytes]:
    return (run_dir / "evidence.jsonl").read_bytes().splitlines(keepends=True)


def write(run_dir: pathlib.Path, lines: t.Sequence[bytes]) -> None:
    (run_dir / "evidence.jsonl").write_bytes(b"".join(lines))


def check(run_dir: pathlib.Path, **options: t.Any) -> Outcome:
    return verify(str(run_dir), "r1", None, ledger_schema="surefoot", **options)


def problems(run_dir: pathlib.Path, **options: t.Any) -> list[tuple[str, int | None]]:
    return [(finding.file, finding.line) for finding in check(run_dir, **options).findings]


def rechained(lines: t.Sequence[bytes]) -> list[bytes]:
    """The same records, chained anew: what somebody with access to the file can do."""
    made: list[bytes] = []
    previous = NO_PREVIOUS
    for line in lines:
        made.append((json.dumps({**json.loads(line), "previous": previous}, sort_keys=True) + "\n").encode())
        previous = hashlib.sha256(made[-1]).hexdigest()
    return made


@pytest.fixture
def run_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run of five records and three files, sealed."""
    directory = tmp_path / "r1"
    (directory / "messages").mkdir(parents=True)
    (directory / "report.json").write_text('{"decision": "GO"}\n', encoding="utf-8")
    (directory / "rehearsal.json").write_text('{"statements": []}\n', encoding="utf-8")
    (directory / "messages" / "ciso.md").write_text("# Briefing\n", encoding="utf-8")
    for number in range(5):
        record(str(directory), [fact(number)])
    seal(str(directory))
    return directory


# --- writing


def test_each_line_carries_the_digest_of_the_bytes_before_it(tmp_path: pathlib.Path) -> None:
    plain = record(str(tmp_path), [fact(1), fact(2)]) + record(str(tmp_path), [fact(3, "π \u2028")])
    lines = lines_of(tmp_path)
    previous = [json.loads(line)["previous"] for line in lines]
    assert previous == ["0" * 64, *(hashlib.sha256(line).hexdigest() for line in lines[:2])]
    assert all("previous" not in item for item in plain)
    assert [{**item, "previous": value} for item, value in zip(plain, previous)] == [json.loads(line) for line in lines]
    assert stat.S_IMODE((tmp_path / "evidence.jsonl").stat().st_mode) == 0o600
    assert head(str(tmp_path)) == hashlib.sha256(lines[-1]).hexdigest()


def test_an_auditor_needs_only_tail_and_sha256sum(run_dir: pathlib.Path) -> None:
    done = subprocess.run(
        ["sh", "-c", "tail -n 1 evidence.jsonl | sha256sum"], cwd=run_dir, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == head(str(run_dir))


@pytest.mark.parametrize("size", [10, 65_535, 65_536, 65_537, 200_000])
def test_lines_of_any_length_are_chained(tmp_path: pathlib.Path, size: int) -> None:
    for number in range(3):
        record(str(tmp_path), [fact(number, "x" * size)])
    assert problems(tmp_path) == []
    assert len(lines_of(tmp_path)) == 3


def test_concurrent_writers_of_several_processes_and_threads_keep_one_chain(tmp_path: pathlib.Path) -> None:
    script = (
        "import os, sys, threading\n"
        "from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record\n"
        "def write():\n"
        "    for n in range(200):\n"
        "        record(sys.argv[1], [Evidence('test.child', 'test', 'pass', n, 'x' * 1000, 'a test')] * 2)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"  # so that all begin at the same moment
        "threads = [threading.Thread(target=write) for _ in 'ab']\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _child in range(4)
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=120)
    assert [child.returncode for child in children] == [0] * 4
    assert len(lines_of(tmp_path)) == 4 * 2 * 200 * 2
    assert problems(tmp_path) == []


def test_a_full_disk_leaves_the_chain_whole(tmp_path: pathlib.Path) -> None:
    record(str(tmp_path), [fact(1)])
    before = lines_of(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(EnvironmentProblem, match="cannot write .*evidence.jsonl"):
            record(str(tmp_path), [fact(2, "x" * 2000)])
        with pytest.raises(EnvironmentProblem, match="timeline"):
            append_lines(str(tmp_path / "timeline.jsonl"), [{"text": "x" * 2000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert lines_of(tmp_path) == before
    record(str(tmp_path), [fact(3)])
    assert problems(tmp_path) == []
    assert (tmp_path / "timeline.jsonl").read_bytes() == b""


def test_a_line_that_was_cut_off_is_said_and_the_chain_goes_on(tmp_path: pathlib.Path) -> None:
    record(str(tmp_path), [fact(1), fact(2)])
    lines = lines_of(tmp_path)
    write(tmp_path, [lines[0], lines[1][:20]])
    record(str(tmp_path), [fact(3)])
    record(str(tmp_path), [fact(4)])
    assert problems(tmp_path) == [("evidence.jsonl", 2)]
    assert "is not a record" in check(tmp_path).findings[0].problem


# --- what is noticed by the chain and the seal alone


def test_an_untouched_run_directory_is_unanchored_without_findings(run_dir: pathlib.Path) -> None:
    outcome = check(run_dir)
    assert (outcome.status, outcome.findings, outcome.examination.sealed) == ("unanchored", (), 3)
    assert outcome.results()["evidence"][0]["verdict"] == "not_measured"
    assert any("unanchored: no ledger was asked" in note for note in outcome.notes)


@pytest.mark.parametrize("line", range(1, 7))
def test_a_changed_byte_anywhere_in_a_line_is_found_in_that_line(run_dir: pathlib.Path, line: int) -> None:
    lines = lines_of(run_dir)
    assert len(lines) == 6
    anchored = head(str(run_dir))
    chain = _chain.read_chain(str(run_dir))
    assert chain.against(t.cast(str, anchored), "x") is None
    for place in range(len(lines[line - 1])):
        changed = bytearray(lines[line - 1])
        changed[place] ^= 1
        write(run_dir, [*lines[: line - 1], bytes(changed), *lines[line:]])
        altered = _chain.read_chain(str(run_dir))
        found = {item.line for item in altered.breaks(anchored)}
        wrong = altered.against(t.cast(str, anchored), "the ledger")
        found |= {wrong.line} if wrong else set()
        # A changed line end makes one line of two.
        assert found and (found == {line} or changed[-1:] != b"\n"), f"byte {place}: {found}"


@pytest.mark.parametrize("line", range(1, 6))
def test_every_line_but_the_last_is_protected_without_an_anchor(run_dir: pathlib.Path, line: int) -> None:
    lines = lines_of(run_dir)
    item = json.loads(lines[line - 1])
    changed = (json.dumps({**item, "verdict": "fail"}, sort_keys=True) + "\n").encode()
    write(run_dir, [*lines[: line - 1], changed, *lines[line:]])
    assert problems(run_dir) == [("evidence.jsonl", line)]
    with pytest.raises(VerificationFailed, match=rf"the evidence of run r1 was altered: evidence.jsonl line {line} "):
        check(run_dir).results()


def test_a_record_that_is_tied_to_nothing_is_found(run_dir: pathlib.Path) -> None:
    lines = lines_of(run_dir)
    loose = json.loads(lines[3])
    del loose["previous"]
    write(run_dir, [*lines[:3], (json.dumps(loose) + "\n").encode(), *lines[4:]])
    assert problems(run_dir) == [("evidence.jsonl", 4)]
    untied = [(json.dumps({"criterion": "a.b"}) + "\n").encode()] * 3
    write(run_dir, untied)
    assert ("evidence.jsonl", 1) in problems(run_dir)


def test_swapped_removed_and_inserted_lines_are_found(run_dir: pathlib.Path) -> None:
    a, b, c, d, e, f = lines_of(run_dir)
    for lines, near in (
        ([a, c, b, d, e, f], {1, 2, 3, 4}),
        ([a, b, d, e, f], {2, 3}),
        ([b, c, d, e, f], {1}),
        ([a, b, b, c, d, e, f], {2, 3, 4}),
        ([a, b, c, b"\n", d, e, f], {4}),
        ([a, b, c, b"[]\n", d, e, f], {4}),
    ):
        write(run_dir, lines)
        found = {item[1] for item in problems(run_dir)}
        assert found and found <= near, (found, near)


@pytest.mark.parametrize("name", ["report.json", "rehearsal.json", os.path.join("messages", "ciso.md")])
def test_a_file_that_was_edited_or_removed_after_the_seal_is_named(run_dir: pathlib.Path, name: str) -> None:
    path = run_dir / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"e", b"E", 1))
    assert problems(run_dir) == [(name, None)]
    path.write_bytes(content)
    assert problems(run_dir) == []
    path.unlink()
    assert [str(item) for item in check(run_dir).findings] == [f"{name} is missing"]
    target = run_dir.parent / "elsewhere"
    target.write_bytes(content)
    path.symlink_to(target)
    assert problems(run_dir) == [(name, None)]


def test_a_file_that_was_added_after_the_seal_is_told_and_is_no_finding(run_dir: pathlib.Path) -> None:
    (run_dir / "remarks.txt").write_text("looked at\n", encoding="utf-8")
    outcome = check(run_dir)
    assert (outcome.status, outcome.examination.unsealed) == ("unanchored", ("remarks.txt",))
    assert any("remarks.txt" in note for note in outcome.notes)


def test_evidence_that_is_gone_is_altered(run_dir: pathlib.Path) -> None:
    (run_dir / "evidence.jsonl").unlink()
    assert problems(run_dir) == [("evidence.jsonl", None)]
    with pytest.raises(EnvironmentProblem, match="is not a directory"):
        check(run_dir.parent / "absent")


# --- the seal


def test_sealing_again_records_only_what_changed(run_dir: pathlib.Path) -> None:
    first = head(str(run_dir))
    assert seal(str(run_dir)) == first
    (run_dir / "report.json").write_text('{"decision": "NO-GO"}\n', encoding="utf-8")
    second = seal(str(run_dir))
    assert second != first
    assert (problems(run_dir), len(lines_of(run_dir))) == ([], 7)
    record(str(run_dir), [fact(6)])
    assert seal(str(run_dir)) not in (first, second)


def test_a_broken_chain_is_not_anchored(run_dir: pathlib.Path) -> None:
    lines = lines_of(run_dir)
    write(run_dir, [lines[0], *lines[2:]])
    with pytest.raises(VerificationFailed):
        anchor(str(run_dir), "r1", None, ledger_schema="surefoot").results()
    assert not (run_dir / "evidence.head").exists()
    assert len(lines_of(run_dir)) == 5


def test_a_run_without_any_evidence_can_be_sealed(tmp_path: pathlib.Path) -> None:
    assert head(str(tmp_path)) is None
    assert seal(str(tmp_path)) == head(str(tmp_path))


# --- a head that was kept elsewhere


def test_a_head_of_a_sign_off_vouches_for_what_came_before_it(run_dir: pathlib.Path) -> None:
    signed_off = head(str(run_dir))
    record(str(run_dir), [fact(6)])
    outcome = check(run_dir, expected_head=f" {str(signed_off).upper()}\n")
    assert (outcome.status, outcome.anchors) == ("intact", ("expected_head",))
    write(run_dir, rechained(lines_of(run_dir)[1:]))
    assert check(run_dir).findings == ()
    assert problems(run_dir, expected_head=signed_off) == [("evidence.jsonl", None)]


# --- signatures


needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


class Keys(t.NamedTuple):
    private: str
    locked: str
    signers: str
    others: str


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    home = tmp_path_factory.mktemp("keys")
    for name, passphrase in (("key", ""), ("locked", "a passphrase"), ("other", "")):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(home / name)], check=True, timeout=60
        )
    for name, key in (("signers", "key"), ("others", "other")):
        public = (home / f"{key}.pub").read_text(encoding="utf-8")
        (home / name).write_text(f'oncall@example.com namespaces="surefoot" {public}', encoding="utf-8")
    return Keys(*(str(home / name) for name in ("key", "locked", "signers", "others")))


@needs_ssh_keygen
def test_a_signature_is_an_anchor_and_its_signer_is_named(run_dir: pathlib.Path, keys: Keys) -> None:
    anchored = anchor(str(run_dir), "r1", None, ledger_schema="surefoot", sign_key=keys.private)
    assert (anchored.status, anchored.anchors) == ("intact", ("signature",))
    assert stat.S_IMODE((run_dir / "evidence.head.sig").stat().st_mode) == 0o600
    outcome = check(run_dir, allowed_signers=keys.signers)
    assert (outcome.status, outcome.signed_by) == ("intact", "oncall@example.com")
    by_hand = subprocess.run(
        ["ssh-keygen", "-Y", "verify", "-f", keys.signers, "-I", "oncall@example.com", "-n", "surefoot"]
        + ["-s", "evidence.head.sig"],
        stdin=(run_dir / "evidence.head").open("rb"),
        cwd=run_dir,
        capture_output=True,
        check=False,
    )
    assert by_hand.returncode == 0


@needs_ssh_keygen
def test_a_signature_of_another_chain_run_or_signer_is_refused(run_dir: pathlib.Path, keys: Keys) -> None:
    assert problems(run_dir, allowed_signers=keys.signers) == [("evidence.head.sig", None)]
    anchor(str(run_dir), "r1", None, ledger_schema="surefoot", sign_key=keys.private)
    refused = check(run_dir, allowed_signers=keys.others)
    assert (refused.status, refused.signed_by) == ("altered", None)
    assert "was not made by a key of allowed_signers" in str(refused.findings[0])
    lines = lines_of(run_dir)
    write(run_dir, rechained([lines[0], *lines[2:]]))
    assert "is not of this chain's head" in str(check(run_dir, allowed_signers=keys.signers).findings[0])
    write(run_dir, lines)
    other_run = verify(str(run_dir), "r2", None, ledger_schema="surefoot", allowed_signers=keys.signers)
    assert other_run.status == "altered"
    assert check(run_dir, allowed_signers=keys.signers).status == "intact"


@needs_ssh_keygen
def test_anchoring_again_without_a_key_keeps_a_signature_only_of_the_same_head(
    run_dir: pathlib.Path, keys: Keys
) -> None:
    anchor(str(run_dir), "r1", None, ledger_schema="surefoot", sign_key=keys.private)
    anchor(str(run_dir), "r1", None, ledger_schema="surefoot")
    assert check(run_dir, allowed_signers=keys.signers).status == "intact"
    record(str(run_dir), [fact(6)])
    anchor(str(run_dir), "r1", None, ledger_schema="surefoot")
    assert not (run_dir / "evidence.head.sig").exists()


@needs_ssh_keygen
def test_a_key_that_asks_for_a_passphrase_or_is_missing_is_one_clear_error(run_dir: pathlib.Path, keys: Keys) -> None:
    for key in (keys.locked, keys.private + ".absent"):
        with pytest.raises(EnvironmentProblem, match="ssh-keygen cannot sign: .*ssh-agent"):
            anchor(str(run_dir), "r1", None, ledger_schema="surefoot", sign_key=key)
    with pytest.raises(EnvironmentProblem, match="cannot read .*Check allowed_signers"):
        check(run_dir, allowed_signers=keys.signers + ".absent")


def test_without_ssh_keygen_the_error_names_it(
    run_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="the program ssh-keygen is missing"):
        anchor(str(run_dir), "r1", None, ledger_schema="surefoot", sign_key="key")


# --- the run's identifier


def test_the_run_is_known_by_its_summary_or_its_directory(run_dir: pathlib.Path) -> None:
    assert _chain.run_id_of(f"{run_dir}/") == "r1"
    for text, expected in (('{"run_id": "r7"}', "r7"), ("{", "r1"), ("[]", "r1"), ("\xff", "r1")):
        (run_dir / "run.json").write_text(text, encoding="latin-1")
        assert _chain.run_id_of(str(run_dir)) == expected


def test_a_kept_head_does_not_vouch_for_what_was_sealed_anew(tmp_path: pathlib.Path) -> None:
    run_dir = tmp_path / "run"
    record(str(run_dir), [fact(1)])
    for name in ("report.json", "gate.json"):
        (run_dir / name).write_text("{}", encoding="utf-8")
    kept = seal(str(run_dir))
    assert not [note for note in check(run_dir, expected_head=kept).notes if "expected head" in note]
    (run_dir / "report.json").write_text('{"decision": "GO"}', encoding="utf-8")
    seal(str(run_dir))
    (note,) = [note for note in check(run_dir, expected_head=kept).notes if "expected head" in note]
    assert note.startswith("lines added after the expected head: 1;")
    assert note.endswith("not vouched for by it: report.json")


def test_evidence_is_not_written_through_a_link(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").write_text("", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evidence.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(EnvironmentProblem, match="evidence.jsonl"):
        record(str(tmp_path / "run"), [fact(1)])
    assert (tmp_path / "other").read_bytes() == b""
