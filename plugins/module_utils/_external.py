# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Backups that another program takes of a database too large to dump: asked for, judged and put on record here.

The record is a directory with a ``manifest.json`` as a backup's, but without a dump: database, catalog and time, so
that a GO can be bound to it, and what the program said. What the backup holds is not known here, and no record says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import json
import os
import re
import secrets
import shutil
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    redact,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    EnvironmentProblem,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, utc_now, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    BackupOutcome,
    Manifest,
    Work,
    backup_age,
    backup_name,
    claim_name,
    database_facts,
    execute,
    first_cause,
    last_line,
    list_backups,
    locked_directory,
    open_reader,
    prepare_destination,
    release_name,
    same_database,
    schema_facts,
    sync_directory,
    write_manifest,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import parse_time
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, human_size

METHODS = ("external", "rds_snapshot")

_PHASE = "backup"
_MOST_OUTPUT = 16 * 1024 * 1024  # bytes in all; more is a program that runs wild
_LONGEST_LINE = 64 * 1024
_MOST_DETAILS = 16 * 1024
_LONGEST_ERROR = 300
_CLOCKS_DIFFER = 60.0  # seconds between this clock and that of the machine where the backup lies
_ANSWER = (
    'It prints, as its last line, a JSON object such as {"id": ..., "created": ..., "size": ..., "location": ...}.'
)
_REQUIRED = ("id", "created", "size", "location")
_OPTIONAL = ("verified", "details", "system_identifier", "timeline", "database", "address")
# What only a dump that was read back here, or restored, can show.
_NOT_PROVEN = ("backup.verified", "backup.contains_tables", "backup.stored_securely")


@dataclasses.dataclass(frozen=True)
class ExternalRequest:
    """Which program, and what of its answer will do. Sizes in bytes, durations in seconds."""

    dest: str
    method: str = "external"
    command: t.Sequence[str] = ()
    reported: t.Mapping[str, t.Any] | None = None
    verify_command: t.Sequence[str] = ()
    timeout: float = 4 * 3600.0
    lock_timeout: float = 30.0
    minimum_size: int = 100 * 1024
    max_age: float | None = None
    since: str | None = None
    run_id: str | None = None
    run_dir: str | None = None

    def validate(self) -> None:
        """:raises PlanError: an option makes no sense"""
        if bool(self.command) == (self.reported is not None):
            raise PlanError(
                "nothing takes the backup" if not self.command else "both command and reported are given",
                remedy="Give command, or in reported what a task before this one said of the backup it took.",
            )
        for name, words in (("command", self.command), ("verify_command", self.verify_command)):
            if words and not str(words[0]).strip():
                raise PlanError(f"{name} names no program", remedy="Give the program and its arguments as a list.")
        if self.timeout <= 0:
            raise PlanError("timeout is 0", remedy="Say how long the program may take, such as 4h.")
        if self.since is not None:
            parse_time(self.since, "since")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the program said of its backup, every part of it checked."""

    id: str
    created: datetime.datetime
    size: int
    location: str
    verified: bool | None = None
    details: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    system_identifier: str | None = None
    timeline: int | None = None
    database: str | None = None
    address: str | None = None

    def to_dict(self) -> dict[str, t.Any]:
        created = self.created.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {**dataclasses.asdict(self), "details": dict(self.details), "created": created}


# --- the program's answer --------------------------------------------------------------------------------------------


def parse_answer(value: t.Any, *, now: datetime.datetime, name: str = "the answer of command") -> Answer:
    """The object that the program printed. Whatever is wrong with it is said without quoting it.

    :raises BackupError: a part is missing, unknown, or not what it has to be
    """
    if not isinstance(value, t.Mapping):
        raise BackupError(f"{name} is no JSON object", remedy=_ANSWER)
    known = (*_REQUIRED, *_OPTIONAL)
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise BackupError(
                f"{name} has a key that is not known", remedy=f"{hint}Known: {', '.join(known)}; the rest into details."
            )
    for key in _REQUIRED:
        if value.get(key) in (None, ""):
            raise BackupError(f"{name} has no {key}", remedy=_ANSWER)

    def text(key: str, longest: int, pattern: str, what: str) -> str:
        found = value[key]
        if not isinstance(found, str) or len(found) > longest or not re.fullmatch(pattern, found):
            raise BackupError(f"the {key} in {name} is not {what}", remedy=_ANSWER)
        return found

    def whole(key: str, least: int) -> int:
        found = value[key]
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found < 2**63:
            raise BackupError(f"the {key} in {name} is not a whole number from {least} on", remedy=_ANSWER)
        return found

    # It becomes an argument of verify_command: it must not look like an option.
    identifier = text("id", 200, r"[A-Za-z0-9][A-Za-z0-9_.:/@+=-]*", "a word of letters, digits and _.:/@+=-")
    location = text("location", 1000, r"[^\s\x00-\x1f\x7f-][^\x00-\x1f\x7f]*", "one line of text")
    stamp = text("created", 40, r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)", "a time with its zone")
    try:
        created = parse_time(re.sub(r"([+-]\d\d)(\d\d)?$", _zone, stamp), "created").astimezone(datetime.timezone.utc)
    except (PlanError, OverflowError):
        raise BackupError(f"the created in {name} is not a time with its zone", remedy=_ANSWER) from None
    if created > now + datetime.timedelta(seconds=_CLOCKS_DIFFER):
        raise BackupError(
            f"{name} says that the backup is from the future ({created.isoformat(timespec='seconds')})",
            remedy="Set the clocks; created is the moment whose state the backup brings back.",
        )
    verified = value.get("verified")
    if verified is not None and not isinstance(verified, bool):
        raise BackupError(f"the verified in {name} is neither true nor false", remedy=_ANSWER)
    details = value.get("details")
    if details is not None and not isinstance(details, t.Mapping):
        raise BackupError(f"the details in {name} are no JSON object", remedy=_ANSWER)
    try:
        length = len(json.dumps(details or {}, allow_nan=False))
    except (TypeError, ValueError):
        raise BackupError(f"the details in {name} are no JSON object", remedy=_ANSWER) from None
    if length > _MOST_DETAILS:
        raise BackupError(
            f"the details in {name} have more than {human_size(_MOST_DETAILS)}",
            remedy="Say less; a log belongs in a file.",
        )
    system = value.get("system_identifier")
    if system is not None:
        system = str(system) if not isinstance(system, (bool, float)) else ""
        if not re.fullmatch(r"[0-9]{1,20}", system):
            raise BackupError(f"the system_identifier in {name} is not a number", remedy=_ANSWER)
    return Answer(
        id=identifier,
        created=created,
        size=whole("size", 1),
        location=redact(location),
        verified=verified,
        details=_redacted(details or {}),
        system_identifier=system,
        timeline=whole("timeline", 1) if value.get("timeline") is not None else None,
        database=text("database", 63, r"[^\x00-\x1f\x7f]+", "a name") if value.get("database") is not None else None,
        address=text("address", 253, r"[A-Za-z0-9._:-]+", "a host") if value.get("address") is not None else None,
    )


def _zone(match: re.Match[str]) -> str:
    return f"{match[1]}:{match[2] or '00'}"


def _redacted(value: t.Any) -> t.Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, t.Mapping):
        return {str(key): _redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item) for item in value]
    return value


def _no_constant(_text: str) -> t.Any:
    raise ValueError("no number that JSON has")


def _pairs(pairs: t.Sequence[tuple[str, t.Any]]) -> dict[str, t.Any]:
    if len({key for key, _value in pairs}) < len(pairs):
        raise ValueError("a key that stands there twice")
    return dict(pairs)


class _Output:
    """Reads a program's standard output to its end and keeps the end of it."""

    def __init__(self, work: Work, program: str) -> None:
        self._work = work
        self._program = program
        self._kept = bytearray()
        self._total = 0

    def consume(self, stream: t.IO[bytes]) -> None:
        for chunk in iter(lambda: os.read(stream.fileno(), 65536), b""):
            self._total += len(chunk)
            self._kept.extend(chunk)
            del self._kept[: -(_LONGEST_LINE + 1)]
            if self._total > _MOST_OUTPUT:
                self._work.fail(
                    BackupError(
                        f"{self._program} printed more than {human_size(_MOST_OUTPUT)} and was stopped", remedy=_ANSWER
                    )
                )

    def answer(self) -> t.Any:
        """The JSON value in the last line that is not blank.

        :raises BackupError: there is none, or it is too long, or no JSON
        """
        lines = bytes(self._kept).rstrip()
        last = lines.rpartition(b"\n")[2]
        if not last:
            raise BackupError(f"{self._program} ended well but printed nothing", remedy=_ANSWER)
        if len(last) == len(lines) and self._total > _LONGEST_LINE:
            raise BackupError(
                f"the last line that {self._program} printed is longer than {human_size(_LONGEST_LINE)}", remedy=_ANSWER
            )
        try:
            return json.loads(last.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_pairs)
        except (ValueError, RecursionError):  # what stands there may be anything, a secret too
            raise BackupError(f"the last line that {self._program} printed is no JSON", remedy=_ANSWER) from None


def _run(work: Work, option: str, command: t.Sequence[str], values: t.Mapping[str, str], timeout: float) -> t.Any:
    """Run a program without a shell and return what it answered.

    :param values: for the placeholders in its arguments
    :raises BackupError: it failed, took too long, or did not answer
    """
    argv = [re.sub(r"\{([a-z_]+)\}", lambda match: values.get(match[1], match[0]), str(word)) for word in command]
    # It has a login of its own, or none: ours is not for it.
    environment = {name: value for name, value in os.environ.items() if name not in ("PGPASSWORD", "PGPASSFILE")}
    program = f"{option} ({os.path.basename(argv[0])})"
    late = BackupError(
        f"{program} did not end within {human_duration(timeout)} and was stopped",
        remedy="See what it waits for, or raise timeout. It may have left half a backup where it puts them.",
    )
    timer = threading.Timer(timeout, work.fail, [late])
    timer.daemon = True
    output = _Output(work, program)
    timer.start()
    try:
        code, errors = work.run(argv, environment, consume=output.consume)
    except EnvironmentProblem as exc:
        raise BackupError(f"{program} cannot be run: {exc.message}", remedy="Check its path.") from None
    finally:
        timer.cancel()
    work.check()
    if code != 0:
        said = re.sub(r"[\x00-\x1f\x7f]", " ", last_line(errors))[:_LONGEST_ERROR]
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise BackupError(
            f"{program} {ended}" + (f": {said}" if said else ""),
            remedy="No backup was recorded; nothing in the database was touched.",
        )
    return output.answer()


# --- the record ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    """The database at one moment."""

    database: dict[str, t.Any]
    catalog: dict[str, t.Any]

    @property
    def identity(self) -> tuple[t.Any, ...]:
        return tuple(self.database[key] for key in ("system_identifier", "timeline", "oid", "name"))


def _look(work: Work, options: ConnectionOptions, lock_timeout: float) -> _Source:
    with contextlib.ExitStack() as stack:
        connection = open_reader(work, stack, options, lock_timeout, "backup-check")
        execute(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return _Source(database_facts(connection), schema_facts(connection))


def take_external_backup(
    options: ConnectionOptions, request: ExternalRequest, *, check_mode: bool = False
) -> BackupOutcome:
    """Have the program take its backup and record it, or, with ``max_age``, use an earlier record that is young enough.

    :raises SurefootError: there is no record of it; ``results`` holds the evidence
    """
    request.validate()
    work = Work()
    outcome = BackupOutcome(changed=False)

    def backup() -> BackupOutcome:
        try:
            _take(work, options, request, outcome, check_mode)
        except SurefootError as exc:
            cause = first_cause(work, exc)
            if not any(item.verdict == "fail" for item in outcome.evidence):
                outcome.evidence.append(_created("fail", redact(str(cause)), request))
            cause.results = {**outcome.results(None if check_mode else request.run_dir), **cause.results}
            raise cause from None
        return outcome

    return run_interruptible(backup, work.interrupt)


def _take(
    work: Work, options: ConnectionOptions, request: ExternalRequest, outcome: BackupOutcome, check_mode: bool
) -> None:
    dest = prepare_destination(request.dest, create=not check_mode)
    before = _look(work, options, request.lock_timeout)
    for option, words in (("command", request.command), ("verify_command", request.verify_command)):
        if words and shutil.which(str(words[0])) is None:
            raise EnvironmentProblem(
                f"{option} names {words[0]}, which is not there or cannot be executed", remedy="Check its path."
            )
    if request.max_age is not None and _reuse(work, dest, before, request, outcome):
        return
    outcome.changed = check_mode
    if check_mode:
        return
    started, clock = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    run_id = request.run_id or f"{utc_now()[:19].replace('-', '').replace(':', '')}-{secrets.token_hex(4)}"
    name = str(before.database["name"])
    if request.reported is not None:
        said: t.Any = request.reported
    else:
        values = {"database": name, "run_id": run_id, "method": request.method}
        said = _run(work, "command", request.command, values, request.timeout)
    label = "reported" if request.reported is not None else "the answer of command"
    answer = parse_answer(said, now=datetime.datetime.now(datetime.timezone.utc), name=label)
    after = _look(work, options, request.lock_timeout)
    _refuse_another(answer, before, after)
    # Nobody knows the catalog of a moment before this look at it.
    since = parse_time(request.since, "since") if request.since else started
    earlier = answer.created < since - datetime.timedelta(seconds=_CLOCKS_DIFFER)
    confirmed = _confirm(work, answer, name, request)
    data: dict[str, t.Any] = {
        "format": MANIFEST_FORMAT,
        "method": request.method,
        "backup_id": secrets.token_hex(16),
        "run_id": run_id,
        "created": answer.to_dict()["created"],
        "database": {key: value for key, value in after.database.items() if key not in ("lsn", "taken_as")},
        "lsn": before.database["lsn"],
        "taken_as": after.database["taken_as"],
        "catalog": None if earlier else after.catalog,
        "files": {},
        "external": {
            **answer.to_dict(),
            "earlier": earlier,
            "confirmed": confirmed,
            # Without it nothing ties what the program backed up to the database that this is the record of.
            "of_this_server": _of_this_server(answer, after, options),
            "recorded": utc_now(),
        },
        "seconds": round(time.monotonic() - clock, 3),
    }
    manifest = _record(dest, data, outcome)
    outcome.changed = True
    if earlier:
        outcome.warnings.append(
            f"the backup {answer.id} was taken before this run ({data['created']}): the catalog of then is unknown"
        )
    outcome.evidence += _evidence(manifest, request)
    outcome.backup = _describe(manifest, reused=False)


def _refuse_another(answer: Answer, before: _Source, after: _Source) -> None:
    """:raises BackupError: it is of another database, or of one that changed while it was taken"""
    if before.identity != after.identity:
        raise BackupError(
            "while the backup was taken the address began to lead to another server or timeline",
            remedy="There was a failover: take the backup again.",
        )
    if before.catalog["fingerprint"] != after.catalog["fingerprint"]:
        raise BackupError(
            "the schema changed while the backup was taken", remedy="Take the backup again while no DDL runs."
        )
    for key, here in (("system_identifier", "system_identifier"), ("timeline", "timeline"), ("database", "name")):
        said, mine = getattr(answer, key), after.database[here]
        if said is not None and mine is not None and str(said) != str(mine):
            raise BackupError(
                f"the backup {answer.id} is of the {key.replace('_', ' ')} {said}, this database's is {mine}",
                remedy="Have command back up this database, or name the other one's address.",
            )


def _of_this_server(answer: Answer, source: _Source, options: ConnectionOptions) -> bool:
    """Whether the program said of which server its backup is, by system identifier or by address; that it is this one
    was compared, or is here."""
    if answer.system_identifier is not None and source.database["system_identifier"] is not None:
        return True
    return answer.address is not None and answer.address.lower() == str(options.keywords.get("host", "")).lower()


def _confirm(work: Work, answer: Answer, database: str, request: ExternalRequest) -> bool:
    """Whether the second program confirmed the backup; False where there is none.

    :raises BackupError: it did not
    """
    if not request.verify_command:
        return False
    values = {"id": answer.id, "location": answer.location, "database": database, "method": request.method}
    said = _run(work, "verify_command", request.verify_command, values, request.timeout)
    if not isinstance(said, t.Mapping) or said.get("id") != answer.id or said.get("verified") is not True:
        raise BackupError(
            f"verify_command did not confirm the backup {answer.id}",
            remedy='It ends with exit code 0 and prints, as its last line, {"id": the same id, "verified": true}.',
        )
    return True


def _record(dest: str, data: dict[str, t.Any], outcome: BackupOutcome) -> Manifest:
    name = backup_name(str(data["database"]["name"]), str(data["external"]["recorded"]), str(data["run_id"]))
    data["name"] = name
    partial, final = os.path.join(dest, f".{name}.partial"), os.path.join(dest, name)
    lock = claim_name(dest, name, outcome)
    try:
        manifest = write_manifest(partial, data)
        sync_directory(partial)
        with locked_directory(dest):
            os.rename(partial, final)
            sync_directory(dest)
    except OSError as exc:
        raise BackupError(f"cannot write the record {final}: {exc.strerror}", remedy="Free room there.") from exc
    finally:
        release_name(dest, name, lock)
    return dataclasses.replace(manifest, path=os.path.join(final, MANIFEST_NAME))


def _reuse(work: Work, dest: str, source: _Source, request: ExternalRequest, outcome: BackupOutcome) -> bool:
    """Take an earlier record instead: of this database with this catalog, by the same method, young enough, and
    confirmed again where a program can confirm it."""
    backups, problems = list_backups(dest)
    outcome.warnings += problems
    for manifest in backups:
        recorded = manifest.data.get("catalog") or {}
        if (
            manifest.method != request.method
            or not same_database(manifest, source.database)
            or recorded.get("fingerprint") != source.catalog["fingerprint"]
            or not -_CLOCKS_DIFFER <= backup_age(manifest) <= t.cast(float, request.max_age)
        ):
            continue
        if request.verify_command:
            said = manifest.data["external"]
            answer = Answer(said["id"], parse_time(said["created"], "created"), said["size"], said["location"])
            try:
                _confirm(work, answer, str(source.database["name"]), request)
            except BackupError as exc:
                work.check()
                outcome.warnings.append(f"not used again: {exc.message}")
                continue
        outcome.evidence += _evidence(manifest, request)
        outcome.backup = _describe(manifest, reused=True)
        return True
    return False


# --- what is said of it ----------------------------------------------------------------------------------------------


def not_proven(manifest: Manifest) -> str:
    """One line: what took the backup, and that nobody here knows what it holds."""
    said = manifest.data["external"]
    confirmed = "verify_command confirmed it, but it" if said["confirmed"] else "it"
    return (
        f"the backup {said['id']} in {said['location']} was taken by {manifest.method}: {confirmed} was neither read"
        " back nor restored here"
    )


def _created(result: str, measured: t.Any, request: ExternalRequest, **details: t.Any) -> Evidence:
    source = "what took the backup said so" if request.reported is not None else "exit code and answer of command"
    required = "a complete backup of this database"
    return Evidence("backup.created", _PHASE, result, measured, required, source, details=details)


def _evidence(manifest: Manifest, request: ExternalRequest) -> list[Evidence]:
    data, said = manifest.data, manifest.data["external"]
    anchor = {"backup_id": data["backup_id"], "path": manifest.directory, "manifest_sha256": manifest.sha256}
    found = [
        _created(
            "pass", {"id": said["id"], "location": said["location"]}, request,
            **anchor, created=data["created"], database=data["database"]["name"], method=manifest.method,
            external_id=said["id"], said=said["details"],
        ),
        Evidence(
            "backup.minimum_size", _PHASE, verdict(said["size"] >= request.minimum_size), said["size"],
            request.minimum_size, f"bytes, as {manifest.method} says",
        ),
    ]  # fmt: skip
    confirmation: tuple[str, t.Any] = ("not_applicable", "no verify_command is given")
    if said["confirmed"]:
        confirmation = ("pass", {"id": said["id"], "verified": True})
    source = "exit code and answer of verify_command"
    required = "a second program confirms the backup"
    found.append(Evidence("backup.confirmed", _PHASE, *confirmation, required, source))
    word = {True: "; it says verified: true", False: "; it says verified: false", None: ""}[said["verified"]]
    why = not_proven(manifest) + word
    for criterion in _NOT_PROVEN:
        details = anchor if criterion == "backup.verified" else {}
        found.append(
            Evidence(criterion, _PHASE, "not_measured", why, "a dump that was read back", "none", details=details)
        )
    return found


def _describe(manifest: Manifest, *, reused: bool) -> dict[str, t.Any]:
    data, said = manifest.data, manifest.data["external"]
    return {
        "method": manifest.method,
        "path": manifest.directory,
        "name": data["name"],
        "id": data["backup_id"],
        "run_id": data["run_id"],
        "manifest": manifest.path,
        "manifest_sha256": manifest.sha256,
        "created": data["created"],
        "seconds": data["seconds"],
        "size": said["size"],
        "external_id": said["id"],
        "location": said["location"],
        "confirmed": said["confirmed"],
        "earlier": said["earlier"],
        "database": data["database"]["name"],
        "database_oid": data["database"]["oid"],
        "database_size": data["database"]["bytes"],
        "system_identifier": data["database"]["system_identifier"],
        "timeline": data["database"]["timeline"],
        "server_version": data["database"]["server_version"],
        "catalog_fingerprint": (data["catalog"] or {}).get("fingerprint"),
        "reused": reused,
    }
