# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The bound GO: what exactly was decided on. The apply compares it with what it finds, under the runner lock.

``go.json`` carries an HMAC over itself. Its key lies in ``go.key`` beside it, or comes as an option where the two must
not lie together; it also keys the digest of the variables, so that no secret can be guessed from the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import hmac
import json
import os
import secrets as random_bytes
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import DATABASE_LEVEL, entry_hashes, fingerprint
from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import diff as catalog_diff
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import sql_error
from ansible_collections.surefoot.dbops.plugins.module_utils._context import timeline_of
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    EnvironmentProblem,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Ledger
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    DUMP_METHOD,
    Manifest,
    check_sizes,
    read_manifest,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, Plan
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import parse_time, policy_hash, window_at
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import raw_digest, step_digest
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, parse_duration

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

GO_FILE, KEY_FILE = "go.json", "go.key"
GO_FORMAT = 1
_KEY_BYTES = 32
_LONGEST = 10 * 365 * 86400.0  # seconds; a GO that is to last for ever
_AGAIN = "Let the gate decide again on what is there now."


class StaleGo(SurefootError):
    """The GO does not fit what is there; ``changed`` says what: go | database | timeline | catalog | ledger |
    files | variables | policy | age | backup | approval | window."""

    code = "stale_go"

    def __init__(self, changed: str, message: str, *, remedy: str = _AGAIN) -> None:
        super().__init__(f"the GO is stale: {message}", remedy=remedy, details={"changed": changed})
        self.changed = changed


# --- what there is ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """Which database this is, and what its catalog looks like. ``system_identifier`` names the address instead where
    the service hides it. ``last_change``: number of the ledger's latest attempt that changed something."""

    system_identifier: str
    database: str
    database_oid: int
    timeline: str
    catalog: str
    last_change: int


def read_target(connection: Connection, plan: Plan, ledger_schema: str) -> Target:
    """Identity and catalog fingerprint (without the ledger and the plan's ``drift_ignore``); nothing is written.

    :raises SqlError: the server refused
    """
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT oid::bigint, datname::text FROM pg_catalog.pg_database"
                " WHERE datname = pg_catalog.current_database()"
            )
            oid, name = cursor.fetchone() or (0, "")
        catalog = fingerprint(connection, ignore=plan.drift_ignore, exclude_schemas=(ledger_schema,))
        last_change = Ledger(ledger_schema, plan.name, "").last_change(connection)
        identifier = _system_identifier(connection)
        return Target(identifier, str(name), int(oid), timeline_of(connection), catalog, last_change)
    except psycopg2.Error as exc:
        raise sql_error(exc) from None


def _system_identifier(connection: Connection) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
        if (cursor.fetchone() or (False,))[0]:
            cursor.execute("SELECT system_identifier::text FROM pg_catalog.pg_control_system()")
            return str((cursor.fetchone() or ("",))[0])
    return f"at {connection.info.host}:{connection.info.port}"


def migration_hashes(plan: Plan, todo: t.Sequence[Migration]) -> dict[str, str]:
    """Migration -> SHA-256 over its deploy and rollback files, its checks and its lines in the plan's defaults.

    :raises EnvironmentProblem: a file cannot be read
    """
    found = {}
    for migration in todo:
        parts = [
            raw_digest(migration.steps),
            *[step_digest(step) for step in migration.rollback or ()],
            *[f"{check.name}\0{check.sql}" for check in migration.verify],
        ]
        found[migration.id] = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
    return found


def variables_hmac(key: bytes, plan: Plan, variables: t.Mapping[str, t.Any], secrets: t.Mapping[str, t.Any]) -> str:
    """HMAC-SHA256 of every value that can enter the SQL, the plan's defaults and the secrets included."""
    plain, secret = plan.values(variables, secrets, complete=False)
    return _mac(key, {"variables": plain, "secrets": secret})


# --- the backup ------------------------------------------------------------------------------------------------------


def backup_evidence(
    connection: Connection,
    plan: Plan,
    target: Target,
    manifest: Manifest,
    records: t.Sequence[t.Mapping[str, t.Any]],
    policy: t.Mapping[str, t.Any],
    *,
    ledger_schema: str,
    run_id: str | None,
    now: datetime.datetime,
) -> list[Evidence]:
    """Whether the backup is young enough, of this very database, the one that was verified, and of today's catalog."""
    facts = _backup_facts(manifest)
    problem = backup_age_problem(facts, policy, run_id, now) or _left_lying(facts, policy, now)
    age = human_duration(max(0.0, (now - parse_time(manifest.data["created"], "created")).total_seconds()))
    demand = "taken by this run" if parse_duration(policy["backup_max_age"]) == 0 else f"at most {_max_age(policy)} old"
    database = manifest.data["database"]
    mine = (target.system_identifier, target.database_oid)
    # A service that hides its identity hid it from the backup too.
    theirs = (str(database["system_identifier"] or target.system_identifier), int(database["oid"]))
    verified = [
        (item.get("details") or {}).get("manifest_sha256")
        for item in records
        if item.get("criterion") == "backup.verified" and item.get("verdict") == "pass"
    ]
    known = not verified or verified[-1] == manifest.sha256
    same = "the database it is of" if mine == theirs else f"database {theirs[1]} of system {theirs[0]}"
    # What another program backed up is of this server only when it says so.
    told = manifest.method == DUMP_METHOD or manifest.data["external"]["of_this_server"]
    untold = f"recorded for this database, but {manifest.method} did not say of which server its backup is"
    return [
        Evidence("gate.backup_age", "gate", verdict(problem is None), f"{age}, {same}", demand, "manifest"),
        Evidence(
            "gate.backup_identity",
            "gate",
            verdict(mine == theirs and known) if told or mine != theirs else "not_measured",
            (same if told or mine != theirs else untold)
            if known
            else f"another backup than the one verified ({verified[-1]})",
            f"database {mine[1]} of system {mine[0]}, and the backup that was verified",
            "manifest, pg_control_system(), pg_database",
            details={"manifest_sha256": manifest.sha256, "backup_id": manifest.data["backup_id"]},
        ),
        _catalog_evidence(connection, plan, target, manifest, ledger_schema),
    ]


def _catalog_evidence(
    connection: Connection, plan: Plan, target: Target, manifest: Manifest, ledger_schema: str
) -> Evidence:
    recorded = manifest.data.get("catalog")
    required = "the catalog as the backup has it"
    source = "catalog fingerprint"
    if not recorded:
        return Evidence("gate.catalog", "gate", "not_measured", _NO_CATALOG, required, source)
    # Where nothing is ignored, the target's fingerprint is of the same entries as the backup's.
    if recorded["fingerprint"] == target.catalog:
        return Evidence("gate.catalog", "gate", "pass", required, required, source)
    ledger = (f"* {ledger_schema}", f"{ledger_schema}.*")
    before, now = (
        catalog.filter((*DATABASE_LEVEL, *plan.drift_ignore, *ledger))
        for catalog in (manifest.catalog, entry_hashes(connection, exclude_schemas=(ledger_schema,)))
    )
    difference = catalog_diff(before, now)
    measured = f"changed since the backup: {difference.summary()}" if difference else required
    return Evidence("gate.catalog", "gate", verdict(not difference), measured, required, source)


_NO_CATALOG = "the backup records no catalog: it was taken before anybody looked"


def _max_age(policy: t.Mapping[str, t.Any]) -> str:
    return str(policy["backup_max_age"])


def _backup_facts(manifest: Manifest) -> dict[str, t.Any]:
    return {
        "id": manifest.data["backup_id"],
        "path": manifest.directory,
        "manifest_sha256": manifest.sha256,
        "created": manifest.data["created"],
        # A program may name a backup that is older than the run which asked it.
        "run_id": None if manifest.data.get("external", {}).get("earlier") else manifest.data["run_id"],
    }


def _left_lying(backup: t.Mapping[str, t.Any], policy: t.Mapping[str, t.Any], now: datetime.datetime) -> str | None:
    """A policy that wants a new backup for every run means no run that was stopped for a week after taking it."""
    age = (now - parse_time(backup["created"], "created")).total_seconds()
    if parse_duration(policy["backup_max_age"]) > 0 or age <= parse_duration(policy["go_max_age"]):
        return None
    return (
        f"the backup of this run is {human_duration(age)} old, and the decision may come go_max_age"
        f" ({policy['go_max_age']}) after it where backup_max_age is 0s"
    )


def backup_age_problem(
    backup: t.Mapping[str, t.Any], policy: t.Mapping[str, t.Any], run_id: str | None, now: datetime.datetime
) -> str | None:
    """Why the backup is too old for the policy; None when it is not.

    A ``backup_max_age`` of 0 demands that the run took it itself; how long that holds, ``go_max_age`` says.
    """
    limit = parse_duration(policy["backup_max_age"])
    age = (now - parse_time(backup["created"], "created")).total_seconds()
    if limit == 0:
        if backup["run_id"] is None:
            return f"the backup was taken before this run ({backup['created']})"
        return None if backup["run_id"] == run_id else f"the backup is of the earlier run {backup['run_id']}"
    if age < -300:  # clocks differ
        return f"the backup is from the future ({backup['created']})"
    if age > limit:
        return f"the backup is {human_duration(age)} old, the policy allows {_max_age(policy)}"
    return None


def rehearsed_details(
    plan: Plan,
    todo: t.Sequence[Migration],
    *,
    backup_id: str | None,
    key: bytes | None,
    variables: t.Mapping[str, t.Any],
    secrets: t.Mapping[str, t.Any],
) -> dict[str, t.Any]:
    """What a rehearsal was of, for the details of ``rehearsal.deploy``.

    :param backup_id: the backup that the shadow was restored from
    :param key: of the run directory; without one the variables leave no trace
    :raises EnvironmentProblem: a file cannot be read
    """
    return {
        "migrations": {migration.id: raw_digest(migration.steps) for migration in todo},
        "rollbacks": {migration.id: raw_digest(migration.rollback) for migration in todo if migration.rollback},
        "plan_sha256": plan.digest(),
        "backup_id": backup_id,
        "variables_hmac": variables_hmac(key, plan, variables, secrets) if key else None,
    }


def rehearsed_evidence(
    todo: t.Sequence[Migration], expected: t.Mapping[str, t.Any], records: t.Sequence[t.Mapping[str, t.Any]]
) -> list[Evidence]:
    """Whether the latest rehearsal was of what is to be applied, and of nothing else; nothing where none was recorded.

    A rehearsal on a shadow that had the migrations already had nothing to do, and says so: that is no rehearsal.

    :param expected: :func:`rehearsed_details` of what is to be applied; what is None there is not compared
    """
    rehearsed = [item for item in records if item.get("criterion") == "rehearsal.deploy"]
    if not rehearsed or not todo:
        return []
    details = rehearsed[-1].get("details") or {}
    other: list[str] = []
    for kind in ("migrations", "rollbacks"):
        mine, theirs = expected[kind], details.get(kind)
        theirs = theirs if isinstance(theirs, dict) else {}
        other += [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    for name, what in _REHEARSED.items():
        if expected[name] is not None and expected[name] != details.get(name):
            other.append(what)
    required = "what is to be applied was rehearsed, and nothing else"
    measured = f"not rehearsed as they are: {', '.join(dict.fromkeys(other))}" if other else required
    source = "sha256 of plan and files, HMAC of the variables, the shadow's backup"
    return [Evidence("gate.rehearsed_files", "gate", verdict(not other), measured, required, source)]


_REHEARSED = {"plan_sha256": "the plan", "backup_id": "the backup", "variables_hmac": "the variables"}


# --- the GO ----------------------------------------------------------------------------------------------------------


def bind_go(
    target: Target,
    plan: Plan,
    todo: t.Sequence[Migration],
    *,
    key: bytes,
    variables: t.Mapping[str, t.Any],
    secrets: t.Mapping[str, t.Any],
    policy: t.Mapping[str, t.Any],
    manifest: Manifest | None,
    approvals: t.Mapping[str, t.Any],
    run_id: str,
    now: datetime.datetime,
    holds_until: datetime.datetime | None = None,
) -> dict[str, t.Any]:
    """The GO as an object, sealed with the key.

    :param holds_until: when the first attestation or waiver it rests on ends; the GO does not outlive it
    """
    lasts = min(parse_duration(policy["go_max_age"]), _LONGEST)
    expires = now + datetime.timedelta(seconds=lasts)
    expires = min(expires, holds_until or expires)
    go: dict[str, t.Any] = {
        "format": GO_FORMAT,
        "run_id": run_id,
        **dataclasses.asdict(target),
        "plan": {"name": plan.name, "sha256": plan.digest()},
        "migrations": migration_hashes(plan, todo),
        "variables_hmac": variables_hmac(key, plan, variables, secrets),
        "policy_sha256": policy_hash(policy),
        "backup": _backup_facts(manifest) if manifest else None,
        "approvals": {str(role): str(name) for role, name in approvals.items() if name},
        "created": _iso(now),
        "expires": _iso(expires),
    }
    return {**go, "hmac": _mac(key, go)}


def write_go(run_dir: str, go: t.Mapping[str, t.Any]) -> str:
    """Write ``go.json``; returns its path.

    :raises EnvironmentProblem: it cannot be written
    """
    return write_json(run_dir, GO_FILE, go)


def withdraw_go(run_dir: str) -> None:
    """Take an earlier GO of the run away: the gate says NO-GO now.

    :raises EnvironmentProblem: it cannot be removed
    """
    path = os.path.join(run_dir, GO_FILE)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as exc:
        raise EnvironmentProblem(f"cannot remove {path}: {exc.strerror}", remedy="Remove it: it is void.") from exc


def make_key(run_dir: str, given: str | None) -> bytes:
    """The key: the one given, else that of the run directory's ``go.key``, made at the first use with mode 0600.

    :raises EnvironmentProblem: it cannot be written, or is too short to be one
    """
    if given is not None:
        return _key(given, "go_key")
    path = os.path.join(run_dir, KEY_FILE)
    try:
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return read_key(run_dir, None)
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot write {path}: {exc.strerror}", remedy="Make the run directory writable."
        ) from exc
    text = random_bytes.token_hex(_KEY_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(text + "\n")
    return _key(text, path)


def read_key(directory: str, given: str | None) -> bytes:
    """The key given, else the one in ``go.key`` of the directory.

    :raises StaleGo: there is none, or others than its owner could have read or written it
    """
    if given is not None:
        return _key(given, "go_key")
    path = os.path.join(directory, KEY_FILE)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, encoding="ascii") as stream:
            status = os.fstat(descriptor)
            if status.st_mode & 0o077:
                raise StaleGo("go", f"others can read its key {path}")
            if status.st_uid != os.geteuid():
                raise StaleGo("go", f"its key {path} belongs to another user (uid {status.st_uid})")
            return _key(stream.read().strip(), path)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no key"
        raise StaleGo("go", f"cannot read {path}: {reason}", remedy="Give go_key, or the path of the GO.") from exc


def _key(text: str, name: str) -> bytes:
    if len(text) < _KEY_BYTES:
        raise EnvironmentProblem(f"{name} is too short", remedy=f"Use at least {_KEY_BYTES} random characters.")
    return text.encode("utf-8")


def read_go(path: str, key: bytes) -> dict[str, t.Any]:
    """The GO, when it is as the gate wrote it.

    :raises StaleGo: missing, damaged or altered
    """
    try:
        with open(path, encoding="utf-8") as stream:
            go = json.load(stream)
    except OSError as exc:
        raise StaleGo("go", f"cannot read {path}: {exc.strerror}", remedy="Let the gate decide first.") from exc
    except ValueError:
        go = None
    if not isinstance(go, dict) or not hmac.compare_digest(str(go.pop("hmac", "")), _mac(key, go)):
        raise StaleGo("go", f"{path} is not what the gate wrote")
    if go.get("format") != GO_FORMAT:
        raise StaleGo("go", f"{path} has format {go.get('format')!r}")
    return go


def check_go(
    go: t.Mapping[str, t.Any],
    connection: Connection,
    plan: Plan,
    todo: t.Sequence[Migration],
    *,
    key: bytes,
    variables: t.Mapping[str, t.Any],
    secrets: t.Mapping[str, t.Any],
    policy: t.Mapping[str, t.Any],
    ledger_schema: str,
    approved_by: str | None = None,
    now: datetime.datetime,
) -> None:
    """Compare a GO of :func:`read_go` with what is there. What costs nothing comes first.

    :param approved_by: the approver that the apply is told, when it is
    :raises StaleGo: naming the first thing that changed
    """
    _check_time(go, policy, now)
    _check_approvals(go, policy, approved_by, now)
    _check_files(go, plan, todo)
    if go["variables_hmac"] != variables_hmac(key, plan, variables, secrets):
        raise StaleGo("variables", "the variables or secret variables are not those it was given for")
    target = read_target(connection, plan, ledger_schema)
    mine, theirs = dataclasses.asdict(target), {name: go[name] for name in dataclasses.asdict(target)}
    for name in ("system_identifier", "database_oid", "database"):
        if mine[name] != theirs[name]:
            was, is_ = (f"{side['database']} ({side['database_oid']} of {side['system_identifier']})"
                        for side in (theirs, mine))  # fmt: skip
            raise StaleGo("database", f"it is for the database {was}, this is {is_}")
    if mine["timeline"] != theirs["timeline"]:
        problem = f"the server is on timeline {mine['timeline']}, it was given on {theirs['timeline']}"
        raise StaleGo("timeline", f"{problem}: there was a failover or a recovery, commits may be lost")
    if mine["last_change"] != theirs["last_change"]:
        raise StaleGo("ledger", "migrations were applied or rolled back since: a GO is for one apply")
    if mine["catalog"] != theirs["catalog"]:
        raise StaleGo("catalog", "the database's catalog changed since")


def _excused(policy: t.Mapping[str, t.Any], criterion: str, now: datetime.datetime) -> bool:
    """Whether the policy lets the gate pass without this, which then must not stop the apply either."""
    return policy["criteria"].get(criterion) == "optional" or any(
        item["criterion"] == criterion and now < parse_time(item["expires"], "expires", end_of_day=True)
        for item in policy["waivers"]
    )


def _check_time(go: t.Mapping[str, t.Any], policy: t.Mapping[str, t.Any], now: datetime.datetime) -> None:
    if go["policy_sha256"] != policy_hash(policy):
        raise StaleGo("policy", "the policy is not the one it was decided by")
    if now >= parse_time(go["expires"], "expires"):
        raise StaleGo("age", f"it expired at {go['expires']}")
    if now < parse_time(go["created"], "created") - datetime.timedelta(minutes=5):  # clocks differ
        raise StaleGo("age", f"it is from the future ({go['created']})", remedy="Set the controller's clock.")
    window = window_at(policy["window"], now)
    if not window.open and not _excused(policy, "gate.window", now):
        raise StaleGo(
            "window",
            f"it is {_iso(now)}, the window is {window.text}" if policy["window"] else window.text,
            remedy=f"Wait: it opens in {human_duration(window.opens_in)}." if policy["window"] else _AGAIN,
        )
    backup = go["backup"]
    if backup is None:
        if policy["backup"] == "required" and not _excused(policy, "backup.created", now):
            raise StaleGo("backup", "it names no backup, and the policy requires one")
        return
    problem = backup_age_problem(backup, policy, go["run_id"], now)
    if problem and not _excused(policy, "gate.backup_age", now):
        raise StaleGo("backup", problem)
    try:
        check_sizes(read_manifest(backup["path"], backup["manifest_sha256"]))
    except BackupError as exc:
        raise StaleGo("backup", f"its backup is gone or altered: {exc.message}") from None


def _check_approvals(
    go: t.Mapping[str, t.Any], policy: t.Mapping[str, t.Any], approved_by: str | None, now: datetime.datetime
) -> None:
    approvals = go["approvals"]
    for role in policy["approvals"]:
        if not approvals.get(role) and not _excused(policy, "gate.approvals", now):
            raise StaleGo("approval", f"nobody is recorded as {role}", remedy="Have it approved, then the gate decide.")
    if approved_by and approvals.get("approved") and approved_by != approvals["approved"]:
        raise StaleGo("approval", f"{approvals['approved']} approved it, the run says {approved_by}")


def _check_files(go: t.Mapping[str, t.Any], plan: Plan, todo: t.Sequence[Migration]) -> None:
    bound: dict[str, str] = go["migrations"]
    ids = [migration.id for migration in todo]
    if set(bound) != set(ids):
        extra = [name for name in ids if name not in bound]
        what = f"{', '.join(extra)} would be applied too" if extra else "fewer migrations are pending"
        raise StaleGo("files", f"it is for {', '.join(bound)}; {what}")
    changed = [name for name, value in migration_hashes(plan, todo).items() if bound[name] != value]
    if changed:
        raise StaleGo("files", f"the files of {', '.join(changed)} changed since")
    if go["plan"]["sha256"] != plan.digest():
        raise StaleGo("files", f"the plan {plan.location} changed since")


def before_apply(
    path: str,
    plan: Plan,
    *,
    go_key: str | None,
    variables: t.Mapping[str, t.Any],
    secrets: t.Mapping[str, t.Any],
    policy: t.Mapping[str, t.Any],
    ledger_schema: str,
    approved_by: str | None = None,
) -> t.Callable[[Connection, t.Sequence[Migration]], None]:
    """For ``RunOptions.before_apply``: refuses what the GO in ``path`` (``go.json``, or its directory) is not for.

    :raises StaleGo: at once, when the file is missing or altered
    """
    file = os.path.join(path, GO_FILE) if os.path.isdir(path) else path
    key = read_key(os.path.dirname(file), go_key)
    go = read_go(file, key)

    def check(connection: Connection, todo: t.Sequence[Migration]) -> None:
        check_go(
            go,
            connection,
            plan,
            todo,
            key=key,
            variables=variables,
            secrets=secrets,
            policy=policy,
            ledger_schema=ledger_schema,
            approved_by=approved_by,
            now=datetime.datetime.now(datetime.timezone.utc),
        )

    return check


def _mac(key: bytes, value: t.Mapping[str, t.Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
