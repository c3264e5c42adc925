# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The chain of a run's evidence: its seal over the run directory, its head, and what is wrong with it.

The chain alone shows accidents. Against somebody who writes all of it anew, its head must be kept elsewhere: in the
ledger, in the sign-off, or under a signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import subprocess
import tempfile
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, connect
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import (
    EVIDENCE_FILE,
    NO_PREVIOUS,
    Evidence,
    line_digest,
    record,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Ledger

SEAL_CRITERION = "report.sealed"
HEAD_FILE = "evidence.head"
SIGNATURE_FILE = "evidence.head.sig"
NAMESPACE = "surefoot"

_CHUNK = 1024 * 1024
# Written by the seal itself or after it.
_NOT_SEALED = (EVIDENCE_FILE, HEAD_FILE, SIGNATURE_FILE)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written: a file of the run directory, of the chain with its line from 1."""

    file: str
    line: int | None
    problem: str

    def __str__(self) -> str:
        return f"{self.file}{f' line {self.line}' if self.line else ''} {self.problem}"

    def to_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Chain:
    """What ``evidence.jsonl`` holds. ``digests`` are those of the lines; the last one is the head."""

    digests: tuple[str, ...]
    records: tuple[t.Mapping[str, t.Any] | None, ...]  # None where a line is no record

    @property
    def head(self) -> str | None:
        return self.digests[-1] if self.digests else None

    def seal(self, head: str | None = None) -> t.Mapping[str, t.Any] | None:
        """The last seal: name of a file to its ``sha256`` and ``size``.

        :param head: digest of a line; the last seal up to it
        """
        end = len(self.records) if head is None else self.digests.index(head) + 1
        for item in reversed(self.records[:end]):
            if item is not None and item.get("criterion") == SEAL_CRITERION:
                files = (item.get("details") or {}).get("files")
                return files if isinstance(files, dict) else {}
        return None

    def breaks(self, head: str | None = None) -> list[Finding]:
        """One finding for each line that is no record, or that its neighbours do not confirm.

        :param head: what somebody else knows as the digest of the last line
        """
        return list(_breaks(self.digests, self.records, head))

    def against(self, head: str, keeper: str) -> Finding | None:
        """What is wrong when ``keeper`` says that this is the digest of the last line; None when it is."""
        if head == self.head:
            return None
        last = len(self.digests)
        if head in self.digests:
            added = self.digests.index(head) + 2
            return Finding(EVIDENCE_FILE, added, f"was added after the head was given to {keeper}")
        problem = f"is not the last line that {keeper} knows: it was changed, lines after it are missing, or the whole"
        return Finding(EVIDENCE_FILE, last or None, f"{problem} chain was written anew")


@dataclasses.dataclass(frozen=True)
class Examination:
    """A run directory compared with its chain and its seal."""

    chain: Chain
    sealed: int | None  # number of files under the last seal; None when there is none
    findings: tuple[Finding, ...]  # of the files; those of the chain are its breaks
    unsealed: tuple[str, ...]  # files the seal does not know


def head(run_dir: str) -> str | None:
    """sha256 of the last line of ``evidence.jsonl``, line end included; None without evidence.

    :raises EnvironmentProblem: it cannot be read
    """
    return read_chain(run_dir).head


def seal(run_dir: str) -> str:
    """Record the sha256 of every other file of the run directory in the chain, and return the chain's head.

    Nothing is recorded when the last record is a seal already and no file has changed since.

    :raises EnvironmentProblem: the run directory cannot be read or written
    """
    files = _files(run_dir)
    chain = read_chain(run_dir)
    last = (chain.records[-1] if chain.records else None) or {}
    if chain.head is not None and last.get("criterion") == SEAL_CRITERION and chain.seal() == files:
        return chain.head
    sealed = Evidence(
        criterion=SEAL_CRITERION,
        phase="report",
        verdict="pass",
        measured={"files": len(files), "records": len(chain.records)},
        required="the sha256 of every file of the run directory",
        source="sha256",
        details={"files": files},
    )
    record(run_dir, [sealed])
    return t.cast(str, head(run_dir))


def read_chain(run_dir: str) -> Chain:
    """Every line of ``evidence.jsonl``, and where one does not follow the one before it.

    :raises EnvironmentProblem: the run directory cannot be read
    """
    path = os.path.join(run_dir, EVIDENCE_FILE)
    digests: list[str] = []
    records: list[t.Mapping[str, t.Any] | None] = []
    try:
        if not os.path.isdir(run_dir):
            raise EnvironmentProblem(f"{run_dir} is not a directory", remedy="Name the run directory.")
        if os.path.lexists(path):
            with open(path, "rb") as stream:
                for line in stream:
                    digests.append(line_digest(line))
                    records.append(_parse(line))
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    return Chain(tuple(digests), tuple(records))


def examine(run_dir: str) -> Examination:
    """Compare a run directory with its own chain and seal.

    :raises EnvironmentProblem: it cannot be read
    """
    chain = read_chain(run_dir)
    sealed = chain.seal()
    present = _files(run_dir)
    findings = []
    if not chain.digests:
        findings.append(Finding(EVIDENCE_FILE, None, "is missing or empty"))
    for name, entry in sorted((sealed or {}).items()):
        if name not in present:
            findings.append(Finding(name, None, "is missing"))
        elif present[name] != entry:
            findings.append(Finding(name, None, "is not what it was when sealed"))
    unsealed = tuple(sorted(set(present) - set(sealed or {}))) if sealed is not None else ()
    return Examination(chain, None if sealed is None else len(sealed), tuple(findings), unsealed)


def _parse(line: bytes) -> t.Mapping[str, t.Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _breaks(
    digests: t.Sequence[str], records: t.Sequence[t.Mapping[str, t.Any] | None], head: str | None
) -> t.Iterator[Finding]:
    blamed: set[int] = set()
    for index, item in enumerate(records):
        if item is None:
            blamed.add(index)
            yield Finding(EVIDENCE_FILE, index + 1, "is not a record of evidence")
    follows = [
        item is None or item.get("previous") == (digests[index - 1] if index else NO_PREVIOUS)
        for index, item in enumerate(records)
    ]
    for index, right in enumerate(follows):
        if right or index in blamed or index - 1 in blamed:
            continue
        # Of the two lines that do not fit, the one that the line after it does not confirm either was changed.
        is_last = index + 1 == len(follows)
        unconfirmed = head is not None and head != digests[index] if is_last else not follows[index + 1]
        guilty = index if unconfirmed or not index else index - 1
        if guilty not in blamed:
            blamed.add(guilty)
            place = f"line {index} and line {index + 1} do" if index else "it does"
            yield Finding(
                EVIDENCE_FILE,
                guilty + 1,
                f"was changed, or lines beside it were changed, removed, added or moved: {place} not fit together",
            )


def _files(run_dir: str) -> dict[str, dict[str, t.Any]]:
    """Relative name -> size and sha256 of every regular file but those of the chain."""
    found: dict[str, dict[str, t.Any]] = {}

    def failed(exc: OSError) -> None:
        raise exc

    try:
        for directory, _names, names in os.walk(run_dir, onerror=failed):
            for name in names:
                path = os.path.join(directory, name)
                relative = os.path.relpath(path, run_dir)
                if relative not in _NOT_SEALED and stat.S_ISREG(os.lstat(path).st_mode):
                    found[relative] = _entry(path)
    except OSError as exc:
        raise _unreadable(exc.filename or run_dir, exc) from exc
    return found


def _entry(path: str) -> dict[str, t.Any]:
    digest, size = hashlib.sha256(), 0
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "size": size}


def _unreadable(path: str, exc: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(f"cannot read {path}: {exc.strerror}", remedy="Read it as the user who made it.")


# --- anchoring and verifying -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is known of a run's evidence after anchoring or verifying it."""

    run_id: str
    examination: Examination
    anchors: tuple[str, ...]
    findings: tuple[Finding, ...]
    signed_by: str | None = None
    changed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """altered | unanchored | intact"""
        return "altered" if self.findings else "intact" if self.anchors else "unanchored"

    def evidence(self) -> Evidence:
        return Evidence(
            criterion="report.chain",
            phase="report",
            verdict={"altered": "fail", "unanchored": "not_measured", "intact": "pass"}[self.status],
            measured=self.status,
            required="intact",
            source=", ".join(("sha256", *self.anchors)),
            details={"head": self.examination.chain.head, "findings": [str(item) for item in self.findings]},
        )

    def results(self) -> dict[str, t.Any]:
        """Return values of the module.

        :raises VerificationFailed: it was altered; the return values are attached
        """
        values = {
            "changed": self.changed,
            "status": self.status,
            "run_id": self.run_id,
            "head": self.examination.chain.head,
            "records": len(self.examination.chain.digests),
            "files": self.examination.sealed,
            "anchors": list(self.anchors),
            "signed_by": self.signed_by,
            "findings": [item.to_dict() for item in self.findings],
            "unsealed": list(self.examination.unsealed),
            "evidence": [self.evidence().to_dict()],
            "notes": list(self.notes),
        }
        if self.findings:
            more = f" (and {len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
            failure = VerificationFailed(
                f"the evidence of run {self.run_id} was altered: {self.findings[0]}{more}",
                remedy="Do not rely on it. Look for a copy whose head is that of the ledger or of the sign-off.",
            )
            failure.results = values
            raise failure
        return values


def anchor(
    run_dir: str,
    run_id: str,
    options: ConnectionOptions | None,
    *,
    ledger_schema: str,
    sign_key: str | None = None,
    check_mode: bool = False,
) -> Outcome:
    """Seal the run directory and keep the head of its chain in the ledger, when this run is in it.

    A run that wrote nothing to the database (a NO-GO, or nothing to do) is not in the ledger and stays unanchored.

    :raises VerificationFailed: by ``results()``, when the chain is broken already; nothing is sealed then
    """
    before = examine(run_dir)
    # Files change until they are sealed; lines of the chain never do.
    broken = tuple(before.chain.breaks())
    if broken or check_mode:
        return Outcome(run_id, before, (), broken)
    seal(run_dir)
    head = t.cast(str, write_head(run_dir, run_id, sign_key))
    after = examine(run_dir)
    anchors, changed = (["signature"] if sign_key else []), False
    if options is not None:
        ledger = Ledger(ledger_schema, "", run_id)
        with contextlib.closing(connect(options, purpose="evidence", settings=_SETTINGS)) as connection:
            if ledger.knows_run(connection):
                changed = ledger.keep_evidence_head(connection, head)
                anchors.append("ledger")
    findings = (*after.chain.breaks(), *after.findings)
    return Outcome(run_id, after, tuple(anchors), findings, changed=changed)


def verify(
    run_dir: str,
    run_id: str,
    options: ConnectionOptions | None,
    *,
    ledger_schema: str,
    allowed_signers: str | None = None,
    expected_head: str | None = None,
) -> Outcome:
    """Compare a run directory with its chain, its seal, and whatever else keeps the head; writes nothing."""
    found = examine(run_dir)
    findings: list[Finding] = []
    anchors: list[str] = []
    notes: list[str] = []
    signed_by = kept = None
    if options is not None:
        ledger = Ledger(ledger_schema, "", run_id)
        settings = {**_SETTINGS, "default_transaction_read_only": "on"}
        with contextlib.closing(connect(options, purpose="evidence", settings=settings)) as connection:
            kept = ledger.evidence_head(connection)
    findings += found.chain.breaks(kept)
    if kept is not None:
        wrong = found.chain.against(kept, "the ledger")
        findings += [wrong] if wrong else []
        anchors += [] if wrong else ["ledger"]
    findings += found.findings
    if allowed_signers is not None:
        signed_by, wrong = verify_signature(run_dir, run_id, found.chain, allowed_signers)
        findings += [wrong] if wrong else []
        anchors += ["signature"] if wrong is None else []
    if expected_head is not None:
        wanted = expected_head.strip().lower()
        if wanted in found.chain.digests:
            anchors.append("expected_head")
            notes += _after_head(found.chain, wanted)
        else:
            findings.append(Finding(EVIDENCE_FILE, None, f"has no line with the digest {wanted}"))
    if found.sealed is None:
        notes.append("there is no seal: of the run directory, only evidence.jsonl is covered")
    if found.unsealed:
        notes.append(f"not there when it was sealed, and no evidence: {', '.join(found.unsealed)}")
    if not anchors:
        notes.append(_unanchored(run_id, options))
    # A break of the chain is found by the line; that the head differs as well says nothing new.
    unique = {(item.file, item.line): item for item in reversed(findings)}
    ordered = tuple(item for item in findings if unique[(item.file, item.line)] is item)
    return Outcome(run_id, found, tuple(anchors), ordered, signed_by, notes=tuple(notes))


def _after_head(chain: Chain, kept: str) -> list[str]:
    """What a head that somebody kept says nothing of: all that was recorded, and sealed anew, after it."""
    if kept == chain.head:
        return []
    then, now = chain.seal(kept) or {}, chain.seal() or {}
    changed = sorted(name for name, entry in now.items() if then.get(name) != entry)
    files = f"; sealed after it, and not vouched for by it: {', '.join(changed)}" if changed else ""
    added = len(chain.digests) - chain.digests.index(kept) - 1
    return [f"lines added after the expected head: {added}{files}"]


_SETTINGS = {"statement_timeout": "60s", "lock_timeout": "10s"}


def _unanchored(run_id: str, options: ConnectionOptions | None) -> str:
    where = f"the ledger keeps no head of run {run_id}" if options is not None else "no ledger was asked"
    return f"unanchored: {where}; a chain that was written anew as a whole would not be noticed"


# --- the head as a file, and its signature ---------------------------------------------------------------------------


def write_head(run_dir: str, run_id: str, key: str | None = None) -> str | None:
    """Write the head to ``evidence.head`` and, with a key, its signature to ``evidence.head.sig``; returns the head.

    :param key: a private key's file, or a public key's whose private half an agent holds
    :raises EnvironmentProblem: it cannot be written, or ssh-keygen cannot sign
    """
    chain = read_chain(run_dir)
    if chain.head is None:
        return None
    text = _head_text(run_id, chain)
    signature = _ssh_keygen(["-Y", "sign", "-f", key, "-n", NAMESPACE], text, _SIGN_REMEDY) if key else None
    if signature is not None:
        _write(run_dir, SIGNATURE_FILE, signature)
    elif _read(os.path.join(run_dir, HEAD_FILE)) != text:
        # The signature of an earlier head would only look like tampering.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(run_dir, SIGNATURE_FILE))
    _write(run_dir, HEAD_FILE, text)
    return chain.head


def verify_signature(
    run_dir: str, run_id: str, chain: Chain, allowed_signers: str
) -> tuple[str | None, Finding | None]:
    """The principal who signed this chain's head, or what is wrong with the signature.

    :param allowed_signers: file as described in ssh-keygen(1), ALLOWED SIGNERS
    :raises EnvironmentProblem: ssh-keygen or the file of signers is missing
    """
    if not os.access(allowed_signers, os.R_OK):
        raise EnvironmentProblem(f"cannot read {allowed_signers}", remedy="Check allowed_signers.")
    signature = os.path.join(run_dir, SIGNATURE_FILE)
    if not os.path.exists(signature):
        return None, Finding(SIGNATURE_FILE, None, "is missing")
    arguments = ["-s", signature, "-f", allowed_signers]
    found = _run_ssh_keygen(["-Y", "find-principals", *arguments], b"")
    principal = next(iter(found.stdout.decode("utf-8", "replace").splitlines()), "") if not found.returncode else ""
    if not principal:
        return None, Finding(SIGNATURE_FILE, None, "was not made by a key of allowed_signers")
    words = ["-Y", "verify", *arguments, "-n", NAMESPACE, "-I", principal]
    # What is verified is the head as it is now, not the head file, which anybody could have put back.
    if _run_ssh_keygen(words, _head_text(run_id, chain)).returncode:
        return None, Finding(SIGNATURE_FILE, None, f"of {principal} is not of this chain's head and run {run_id}")
    return principal, None


def _head_text(run_id: str, chain: Chain) -> bytes:
    return f"surefoot evidence\nrun {run_id}\nrecords {len(chain.digests)}\nsha256 {chain.head}\n".encode()


_SIGN_REMEDY = "Give a key without a passphrase, or the public key of one that ssh-agent holds."


def _ssh_keygen(arguments: t.Sequence[t.Any], text: bytes, remedy: str) -> bytes:
    done = _run_ssh_keygen([str(item) for item in arguments], text)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EnvironmentProblem(f"ssh-keygen cannot sign: {lines[-1] if lines else 'no reason given'}", remedy=remedy)
    return done.stdout


def _run_ssh_keygen(arguments: t.Sequence[str], text: bytes) -> subprocess.CompletedProcess[bytes]:
    # No terminal and no askpass program: a passphrase cannot be asked for in the middle of a run.
    environment = {**os.environ, "LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"}
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=text,
            capture_output=True,
            check=False,
            timeout=60,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise EnvironmentProblem(
            "the program ssh-keygen is missing", remedy="Install OpenSSH 8.2 or newer (Debian: openssh-client)."
        ) from None
    except (OSError, subprocess.SubprocessError) as exc:
        raise EnvironmentProblem(f"ssh-keygen cannot be run: {type(exc).__name__}", remedy="Check it.") from None


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return None


def _write(run_dir: str, name: str, content: bytes) -> None:
    path = os.path.join(run_dir, name)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=run_dir, prefix=f".{name}-")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(temporary, path)
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot write {path}: {exc.strerror}", remedy="Make the run directory writable."
        ) from exc


def run_id_of(run_dir: str) -> str:
    """The run's identifier: what ``run.json`` says, else the directory's name, which is the same."""
    found = None
    with contextlib.suppress(ValueError, AttributeError):  # an altered file is the seal's finding
        found = json.loads(_read(os.path.join(run_dir, "run.json")) or b"{}").get("run_id")
    return str(found or os.path.basename(os.path.realpath(run_dir)))
