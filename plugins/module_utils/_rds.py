# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A DB instance of Amazon RDS: what it is, what waits to happen to it, its maintenance window, and the hold of a run.

Nothing here ever sends ApplyImmediately: with it AWS applies everything that waits for the window, not only the change
at hand. Windows and automatic minor upgrades take effect at once without it.

A hold keeps maintenance away from a run: automatic minor upgrades off, the window at another time. The originals stand
in tags of the instance, written before anything is changed and removed after everything is restored, so that whatever
call is the last of a killed run, the next one knows them.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._aws import Api, AwsError
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._rds_window import (
    Window,
    clear_window,
    is_clear_of,
    minute_of_week,
    parse_window,
    refuse_overlap,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, parse_duration, to_plain

TAG_WINDOW = "surefoot:hold-window"
TAG_AUTO_MINOR = "surefoot:hold-auto-minor-version-upgrade"
TAG_SINCE = "surefoot:hold-since"
TAG_RUN = "surefoot:hold-run"
_ORIGINALS = (TAG_WINDOW, TAG_AUTO_MINOR)
TAGS = (*_ORIGINALS, TAG_SINCE, TAG_RUN)

# A window that begins within these minutes counts as one that includes now: clocks differ, and a change takes a while.
SKEW_MINUTES = 5
LONGEST_HORIZON = 5 * 86400.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_DATES = ("CurrentApplyDate", "AutoAppliedAfterDate", "ForcedApplyDate")
_IDENTIFIER = re.compile(r"[a-z](?:-?[a-z0-9])*", re.ASCII)
_NOT_IN_TAGS = re.compile(r"[^\w .:/=+@-]", re.ASCII)


class RdsRefused(SurefootError):
    """The instance is not in a state in which what was asked is safe, or did not come into the one waited for."""

    code = "rds"


def check_identifier(text: str, option: str, longest: int) -> str:
    """An identifier of RDS, in lower case as AWS keeps it.

    :raises PlanError: it cannot be one
    """
    name = text.strip().lower()
    if len(name) > longest or not _IDENTIFIER.fullmatch(name):
        raise PlanError(
            f"{option}: {text!r} cannot be an identifier of RDS",
            remedy=f"It begins with a letter, then up to {longest - 1} letters, digits and single hyphens.",
        )
    return name


@dataclasses.dataclass(frozen=True)
class Pending:
    """A pending maintenance action."""

    action: str
    description: str
    opt_in: str | None
    dates: t.Mapping[str, datetime.datetime]

    @classmethod
    def of(cls, given: t.Mapping[str, t.Any]) -> Pending:
        dates = {name: given[name] for name in _DATES if isinstance(given.get(name), datetime.datetime)}
        return cls(str(given.get("Action")), str(given.get("Description") or ""), given.get("OptInStatus"), dates)

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "action": self.action,
            "description": self.description,
            "opt_in_status": self.opt_in,
            "current_apply_date": self._text("CurrentApplyDate"),
            "auto_applied_after_date": self._text("AutoAppliedAfterDate"),
            "forced_apply_date": self._text("ForcedApplyDate"),
        }

    def _text(self, name: str) -> str | None:
        moment = self.dates.get(name)
        return moment.astimezone(datetime.timezone.utc).isoformat().replace("+00:00", "Z") if moment else None

    def falls_within(self, now: datetime.datetime, end: datetime.datetime) -> str | None:
        """Why it may run between two moments whatever the window is; None when it will not."""
        if self.opt_in == "immediate":
            return f"{self.action} was asked for at once"
        for name, moment in self.dates.items():
            # An automatic date that has passed waits for the window, which the hold moves. The other two do not.
            if moment <= end and (moment >= now or name != "AutoAppliedAfterDate"):
                return f"{self.action}: {name} {self._text(name)}"
        return None


@dataclasses.dataclass(frozen=True)
class Instance:
    """What describe_db_instances says of one instance, as far as it matters here."""

    identifier: str
    arn: str
    resource_id: str
    status: str
    window: str
    backup_window: str | None
    auto_minor: bool
    pending_modifications: t.Mapping[str, t.Any]
    tags: t.Mapping[str, str]
    facts: t.Mapping[str, t.Any]

    @classmethod
    def of(cls, given: t.Mapping[str, t.Any]) -> Instance:
        return cls(
            identifier=str(given["DBInstanceIdentifier"]),
            arn=str(given.get("DBInstanceArn") or ""),
            resource_id=str(given.get("DbiResourceId") or ""),
            status=str(given.get("DBInstanceStatus") or ""),
            window=str(given.get("PreferredMaintenanceWindow") or "").lower(),
            backup_window=given.get("PreferredBackupWindow") or None,
            auto_minor=bool(given.get("AutoMinorVersionUpgrade")),
            pending_modifications=_modifications(given.get("PendingModifiedValues") or {}),
            tags={str(item["Key"]): str(item.get("Value") or "") for item in given.get("TagList") or ()},
            facts=given,
        )

    @property
    def is_held(self) -> bool:
        return any(name in self.tags for name in _ORIGINALS)

    def originals(self) -> tuple[Window, bool]:
        """What the hold recorded.

        :raises RdsRefused: a part of it is missing or unreadable
        """
        try:
            window = parse_window(self.tags[TAG_WINDOW])
            return window, {"true": True, "false": False}[self.tags[TAG_AUTO_MINOR]]
        except (KeyError, PlanError):
            raise RdsRefused(
                f"the tags of {self.identifier} do not say what was there before the hold: {TAG_WINDOW} or"
                f" {TAG_AUTO_MINOR} is missing or was changed",
                remedy="Set window and automatic minor upgrades as they should be; remove the tags surefoot:hold-...",
            ) from None

    def state(self) -> dict[str, t.Any]:
        """What this module changes, for the diff."""
        shown = {"preferred_maintenance_window": self.window, "auto_minor_version_upgrade": self.auto_minor}
        return {**shown, "tags": {name: self.tags[name] for name in TAGS if name in self.tags}}


def _modifications(given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    # The one value of it that is a secret comes masked from AWS; it is not passed on all the same.
    shown = {name: value for name, value in given.items() if value not in (None, {})}
    return {name: "***" if name == "MasterUserPassword" else value for name, value in shown.items()}


def find_instance(api: Api, identifier: str) -> Instance:
    """The instance of this identifier.

    :raises AwsError: there is none
    :raises RdsRefused: it is a cluster, or a member of one
    """
    try:
        found = api.call("describe_db_instances", DBInstanceIdentifier=identifier).get("DBInstances") or []
    except AwsError as exc:
        if exc.aws_code == "DBInstanceNotFound" and _is_cluster(api, identifier):
            raise _cluster(f"{identifier} is a DB cluster, not an instance") from None
        raise
    if len(found) != 1:
        raise AwsError(f"AWS named {len(found)} instances {identifier}", remedy="Look at endpoint_url.")
    instance = Instance.of(found[0])
    if found[0].get("DBClusterIdentifier"):
        raise _cluster(f"{identifier} is a member of the DB cluster {found[0]['DBClusterIdentifier']}")
    return instance


def _is_cluster(api: Api, identifier: str) -> bool:
    try:
        return bool(api.call("describe_db_clusters", DBClusterIdentifier=identifier).get("DBClusters"))
    except SurefootError:  # no right to ask, or none there: what was found out first is the answer
        return False


def _cluster(message: str) -> RdsRefused:
    return RdsRefused(
        message,
        remedy="Only DB instances are supported, Multi-AZ ones too; clusters (Aurora, Multi-AZ DB cluster) keep windows"
        " for themselves and for each member, and are backed up as a whole.",
    )


def pending_actions(api: Api, instance: Instance) -> list[Pending]:
    """The maintenance actions that wait. An answer that cannot be understood is an error, never "none".

    :raises AwsError: AWS did not say
    """
    found: list[Pending] = []
    items = api.pages(
        "describe_pending_maintenance_actions", "PendingMaintenanceActions", ResourceIdentifier=instance.arn
    )
    for item in items:
        if item.get("ResourceIdentifier") in (None, instance.arn):
            found += [Pending.of(action) for action in item.get("PendingMaintenanceActionDetails") or ()]
    return found


@dataclasses.dataclass(frozen=True)
class WindowRequest:
    """What the module was asked. ``horizon``: seconds from now during which nothing must happen."""

    state: str
    window: Window | None = None
    auto_minor: bool | None = None
    horizon: float = 0.0
    run_id: str | None = None
    allow_immediate: bool = False
    allow_pending_modifications: bool = False
    timeout: float = 300.0
    check_mode: bool = False


def window_request(params: t.Mapping[str, t.Any], *, check_mode: bool) -> WindowRequest:
    """The request of module options; what can be wrong with them is found before anything is asked of AWS.

    :raises PlanError: a window or a duration that is none
    """
    given = params["preferred_maintenance_window"]
    horizon = parse_duration(params["horizon"])
    state = params["state"]
    if state == "held" and not 0 < horizon <= LONGEST_HORIZON:
        raise PlanError(
            f"horizon: {params['horizon']} is not between now and five days",
            remedy="Give the time that the run may take, such as 4h.",
        )
    if state != "present" and params["auto_minor_version_upgrade"] is not None:
        raise PlanError(
            f"auto_minor_version_upgrade is given with state: {state}",
            remedy="held turns it off and released restores it; leave it out.",
        )
    if state == "released" and given is not None:
        raise PlanError(
            "preferred_maintenance_window is given with state: released",
            remedy="Leave it out: what was there before the hold is restored.",
        )
    return WindowRequest(
        state=state,
        window=None if given is None else parse_window(given),
        auto_minor=params["auto_minor_version_upgrade"],
        horizon=horizon,
        run_id=params["run_id"] or None,
        allow_immediate=params["allow_immediate_maintenance"],
        allow_pending_modifications=params["allow_pending_modifications"],
        timeout=parse_duration(params["wait_timeout"]),
        check_mode=check_mode,
    )


def finished(work: t.Callable[[], dict[str, t.Any]], run_dir: str | None) -> dict[str, t.Any]:
    """What a piece of work returns, or raises with it, as plain values; its evidence recorded."""

    def plain(results: dict[str, t.Any]) -> dict[str, t.Any]:
        evidence = results.pop("evidence", [])
        return {**{name: to_plain(value) for name, value in results.items()}, "evidence": record(run_dir, evidence)}

    try:
        return plain(work())
    except SurefootError as exc:
        if exc.results:
            exc.results = plain(exc.results)
        raise


class MaintenanceWindow:
    """Brings the window of one instance into a state."""

    def __init__(self, api: Api, identifier: str, request: WindowRequest) -> None:
        self._api = api
        self._identifier = identifier
        self._request = request
        self._notes: list[str] = []
        self._pending: list[Pending] | None = None
        self._horizon: dict[str, str] | None = None
        self._sent = False  # whether anything was changed, as far as it came

    def run(self) -> dict[str, t.Any]:
        """The task's results, ``evidence`` as :class:`Evidence`.

        :raises RdsRefused: it would not be safe
        """
        instance = find_instance(self._api, self._identifier)
        if instance.is_held and not self._request.check_mode:
            instance = self._settled(instance)
        try:
            if self._request.state == "held":
                after = self._hold(instance)
            elif self._request.state == "released":
                after = self._release(instance)
            else:
                after = self._present(instance)
        except SurefootError as exc:
            exc.results.update({"changed": self._sent, **self._facts(instance)})
            judged = self._request.state == "held" and isinstance(exc, RdsRefused)
            exc.results["evidence"] = [self._evidence("fail", exc.message)] if judged else []
            raise
        before, now = instance.state(), after.state()
        held = self._request.state == "held"
        return {
            "changed": before != now,
            "diff": {"before": before, "after": now},
            **self._facts(after),
            "notes": self._notes,
            "evidence": [self._evidence("pass", "nothing")] if held and not self._request.check_mode else [],
        }

    # --- the three states

    def _present(self, instance: Instance) -> Instance:
        request = self._request
        wanted = self._wanted(
            instance,
            window=request.window or parse_window(instance.window),
            auto_minor=instance.auto_minor if request.auto_minor is None else request.auto_minor,
        )
        if request.window is not None:
            refuse_overlap(request.window, instance.backup_window)
        if wanted.state() == instance.state():
            return instance
        if instance.is_held:
            raise RdsRefused(
                f"{instance.identifier} is held{_holder(instance)}",
                remedy="Release it first (state: released), which restores what was there before.",
            )
        self._refuse_maintenance_now(instance, wanted)
        self._modify(instance, wanted)
        return wanted if request.check_mode else self._confirm(instance, wanted)

    def _hold(self, instance: Instance) -> Instance:
        request = self._request
        now = self._api.now()
        end = now + datetime.timedelta(seconds=request.horizon)
        self._horizon = {"from": _iso(now), "to": _iso(end)}
        window, auto_minor = (parse_window(instance.window), instance.auto_minor)
        if instance.is_held:
            window, auto_minor = instance.originals()
        self._refuse_busy(instance)
        self._refuse_pending(instance, now, end)
        wanted = self._wanted(instance, window=self._held_window(instance, now), auto_minor=False)
        tags = {TAG_WINDOW: str(window), TAG_AUTO_MINOR: str(auto_minor).lower()}
        tags[TAG_SINCE] = instance.tags.get(TAG_SINCE) or now.strftime("%Y-%m-%dT%H:%M:%SZ")
        if request.run_id:
            tags[TAG_RUN] = _NOT_IN_TAGS.sub("_", request.run_id)[:256]
        if instance.is_held and instance.tags.get(TAG_RUN, "") != tags.get(TAG_RUN, instance.tags.get(TAG_RUN, "")):
            self._notes.append(f"{instance.identifier} was held{_holder(instance)}; the hold is taken over")
        new = {name: value for name, value in tags.items() if instance.tags.get(name) != value}
        wanted = dataclasses.replace(wanted, tags={**instance.tags, **tags})
        if new and not request.check_mode:
            # Before anything is changed: from here on the originals cannot be lost.
            self._sent = True
            self._api.call(
                "add_tags_to_resource",
                ResourceName=instance.arn,
                Tags=[{"Key": name, "Value": value} for name, value in new.items()],
            )
        self._modify(instance, wanted)
        return wanted if request.check_mode else self._confirm(instance, wanted)

    def _release(self, instance: Instance) -> Instance:
        request = self._request
        if not instance.is_held:
            return self._forget(instance)
        holder = instance.tags.get(TAG_RUN)
        if request.run_id and holder and holder != _NOT_IN_TAGS.sub("_", request.run_id)[:256]:
            self._notes.append(
                f"{instance.identifier} is held{_holder(instance)} and stays so; release it without run_id"
                " if that run is over"
            )
            return instance
        window, auto_minor = instance.originals()
        wanted = self._wanted(instance, window=window, auto_minor=auto_minor)
        self._refuse_maintenance_now(instance, wanted)
        self._modify(instance, wanted)
        if request.check_mode:
            return dataclasses.replace(wanted, tags=_without_hold(wanted.tags))
        # The tags go last, and only once AWS shows that everything is as it was.
        return self._forget(self._confirm(instance, wanted))

    # --- parts

    def _wanted(self, instance: Instance, *, window: Window, auto_minor: bool) -> Instance:
        return dataclasses.replace(instance, window=str(window), auto_minor=auto_minor)

    def _held_window(self, instance: Instance, now: datetime.datetime) -> Window:
        """A window clear of the horizon: the one that is there, or the same time of another day."""
        request = self._request
        current = parse_window(instance.window)
        start = minute_of_week(now) - SKEW_MINUTES
        minutes = request.horizon / 60 + 2 * SKEW_MINUTES
        if request.window is not None:
            refuse_overlap(request.window, instance.backup_window)
            if not is_clear_of(request.window, start, minutes):
                raise PlanError(
                    f"the window {request.window} lies within the next {human_duration(request.horizon)}",
                    remedy="Choose one that begins later, or leave the choice to the module.",
                )
            return request.window
        found = clear_window(current, start, minutes, instance.backup_window)
        if found is None:
            raise PlanError(
                f"no time of the week is clear of the next {human_duration(request.horizon)} for the window {current}",
                remedy="Give a shorter horizon, or preferred_maintenance_window.",
            )
        return found

    def _refuse_busy(self, instance: Instance) -> None:
        if instance.status != "available":
            raise RdsRefused(
                f"{instance.identifier} is {instance.status or 'in no state'}, not available",
                remedy="Wait until what is going on there is over, then run again.",
            )
        if instance.pending_modifications and not self._request.allow_pending_modifications:
            raise RdsRefused(
                f"{instance.identifier} has modifications that wait:"
                f" {', '.join(sorted(instance.pending_modifications))}",
                remedy="Have them applied or withdrawn first, or set allow_pending_modifications: true.",
            )

    def _refuse_pending(self, instance: Instance, now: datetime.datetime, end: datetime.datetime) -> None:
        self._pending = pending_actions(self._api, instance)
        for action in self._pending:
            why = action.falls_within(now, end)
            if why:
                raise RdsRefused(
                    f"maintenance of {instance.identifier} falls into the next"
                    f" {human_duration(self._request.horizon)}: {why}",
                    remedy="A hold does not stop that. Have it applied before the run, withdraw it"
                    " (apply-pending-maintenance-action with undo-opt-in) where AWS lets you, or run at another time.",
                )
        if self._pending and parse_window(instance.window).includes(minute_of_week(now)):
            raise RdsRefused(
                f"{instance.identifier} is in its maintenance window {instance.window}, and maintenance waits"
                f" ({_names(self._pending)}): it may begin any moment",
                remedy="Wait until the window is over, then run again.",
            )

    def _refuse_maintenance_now(self, instance: Instance, wanted: Instance) -> None:
        """AWS begins what waits when the window is moved onto the present."""
        if wanted.window == instance.window or self._request.allow_immediate:
            return
        window = parse_window(wanted.window)
        minute = minute_of_week(self._api.now())
        if not (window.includes(minute) or window.begins_in(minute) <= SKEW_MINUTES):
            return
        self._pending = pending_actions(self._api, instance)
        waiting = [*sorted(instance.pending_modifications), *(item.action for item in self._pending)]
        if waiting:
            raise RdsRefused(
                f"the window {window} includes now ({self._api.now():%a %H:%M} UTC), and {', '.join(waiting)} of"
                f" {instance.identifier} would begin at once",
                remedy="Run again when the window is over, or set allow_immediate_maintenance: true.",
            )

    def _settled(self, instance: Instance) -> Instance:
        """The instance once a change is over: a run that was killed may have begun one a moment ago."""
        deadline = time.monotonic() + self._request.timeout
        pause = _FIRST_PAUSE
        while instance.status == "modifying" and time.monotonic() + pause <= deadline:
            self._api.pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            instance = find_instance(self._api, instance.identifier)
        return instance

    def _modify(self, instance: Instance, wanted: Instance) -> None:
        changes: dict[str, t.Any] = {}
        if wanted.window != instance.window:
            changes["PreferredMaintenanceWindow"] = wanted.window
        if wanted.auto_minor != instance.auto_minor:
            changes["AutoMinorVersionUpgrade"] = wanted.auto_minor
        if changes and not self._request.check_mode:
            # One call for both, and nothing else in it.
            self._sent = True
            self._api.call("modify_db_instance", DBInstanceIdentifier=instance.identifier, **changes)

    def _confirm(self, before: Instance, wanted: Instance) -> Instance:
        """Wait until AWS shows what was asked for, because it is applied some time after the call.

        :raises RdsRefused: it does not within the time
        """
        deadline = time.monotonic() + self._request.timeout
        pause = _FIRST_PAUSE
        while True:
            if before.state() == wanted.state() and before.status == "available":
                return before
            now = find_instance(self._api, wanted.identifier)
            # An instance that was no better before is not waited for.
            settled = now.status == "available" or now.status == before.status
            if now.state() == wanted.state() and settled:
                return now
            if time.monotonic() + pause > deadline:
                raise RdsRefused(
                    f"{wanted.identifier} does not show what was asked for after"
                    f" {human_duration(self._request.timeout)}: window {now.window},"
                    f" automatic minor upgrades {'on' if now.auto_minor else 'off'},"
                    f" status {now.status}",
                    remedy="Run again; the originals of a hold are in its tags.",
                )
            self._api.pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _forget(self, instance: Instance) -> Instance:
        names = [name for name in TAGS if name in instance.tags]
        if names and not self._request.check_mode:
            self._sent = True
            self._api.call("remove_tags_from_resource", ResourceName=instance.arn, TagKeys=names)
        return dataclasses.replace(instance, tags=_without_hold(instance.tags))

    def _facts(self, instance: Instance) -> dict[str, t.Any]:
        pending = None if self._pending is None else [item.to_dict() for item in self._pending]
        originals: dict[str, t.Any] = {
            name: instance.tags[tag] for name, tag in _ORIGINAL_KEYS.items() if tag in instance.tags
        }
        if "auto_minor_version_upgrade" in originals:
            originals["auto_minor_version_upgrade"] = originals["auto_minor_version_upgrade"] == "true"
        return {
            "db_instance_identifier": instance.identifier,
            "db_instance_arn": instance.arn,
            "db_instance_status": instance.status,
            "preferred_maintenance_window": instance.window,
            "preferred_backup_window": instance.backup_window,
            "auto_minor_version_upgrade": instance.auto_minor,
            "held": instance.is_held,
            "originals": originals or None,
            "horizon": self._horizon,
            "pending_maintenance": pending,
            "pending_modifications": dict(instance.pending_modifications),
        }

    def _evidence(self, outcome: str, measured: str) -> Evidence:
        return Evidence(
            "rds.maintenance_held",
            "apply",
            outcome,
            measured,
            "nothing of AWS's own begins within the horizon",
            "rds_maintenance_window: window, pending maintenance and modifications of the instance",
            details={"db_instance_identifier": self._identifier, "horizon": self._horizon},
        )


_ORIGINAL_KEYS = {"preferred_maintenance_window": TAG_WINDOW, "auto_minor_version_upgrade": TAG_AUTO_MINOR}


def _without_hold(tags: t.Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name not in TAGS}


def _holder(instance: Instance) -> str:
    run, since = instance.tags.get(TAG_RUN), instance.tags.get(TAG_SINCE)
    return (f" by the run {run}" if run else "") + (f" since {since}" if since else "")


def _names(pending: t.Iterable[Pending]) -> str:
    return ", ".join(item.action for item in pending)


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
