# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How AWS is reached: options and environment, errors without what they quote, pages, throttling, the clock."""

from __future__ import annotations

import datetime
import email.utils
import inspect
import typing as t

import botocore.exceptions
import botocore.parsers
import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.surefoot.dbops.plugins.module_utils import _aws
from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import aws_argument_spec
from ansible_collections.surefoot.dbops.plugins.module_utils._aws import Api, AwsError, AwsOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    EnvironmentProblem,
    Interrupted,
    PlanError,
    SurefootError,
)

SECRET = "s3cret/Of+A-Test/That+Is-Long-Enough0000"


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_URL"):
        monkeypatch.delenv(name, raising=False)


KEYS = {"access_key": "AKIA", "secret_key": SECRET}


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ({}, True),
        ({"profile": "x"}, True),
        (KEYS, True),
        ({**KEYS, "session_token": "t"}, True),
        ({"profile": "x", **KEYS}, False),
        ({"profile": "x", "session_token": "t", "access_key": "AKIA", "secret_key": SECRET}, False),
        ({"access_key": "AKIA"}, False),
        ({"secret_key": SECRET}, False),
        ({"session_token": "t"}, False),
    ],
)
def test_a_profile_or_keys_and_both_halves_of_them(given: dict[str, str], right: bool) -> None:
    spec = aws_argument_spec().to_kwargs()
    names = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
    found = ArgumentSpecValidator(spec["argument_spec"], **{name: spec[name] for name in names}).validate(given)
    assert bool(found.error_messages) is not right
    if "profile" in given and not right:
        with pytest.raises(PlanError, match="given both"):
            AwsOptions.from_params(given)


def test_the_environment_fills_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert AwsOptions.from_params({}).region == "us-east-1"
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_PROFILE", "of-the-environment")
    monkeypatch.setenv("AWS_URL", "http://localhost:1")
    found = AwsOptions.from_params({})
    assert (found.region, found.profile, found.endpoint_url) == (
        "eu-central-1",
        "of-the-environment",
        "http://localhost:1",
    )
    given = AwsOptions.from_params({"region": "us-west-2", "profile": "mine", "endpoint_url": "http://localhost:2"})
    assert (given.region, given.profile, given.endpoint_url) == ("us-west-2", "mine", "http://localhost:2")
    # A profile of the environment is not meant when a task has keys.
    assert AwsOptions.from_params(KEYS).profile is None


def test_secrets_are_not_in_the_text_of_the_options() -> None:
    assert SECRET not in repr(AwsOptions.from_params({**KEYS, "session_token": SECRET}))


def test_without_boto3_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aws, "BOTO3_ERROR", ImportError("no"))
    with pytest.raises(EnvironmentProblem, match="boto3 is not installed"):
        AwsOptions.from_params({})


EXCEPTIONS = [
    kind
    for _name, kind in inspect.getmembers(botocore.exceptions, inspect.isclass)
    if issubclass(kind, botocore.exceptions.BotoCoreError)
] + [botocore.parsers.ResponseParserError]


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_an_error_of_botocore_is_told_without_its_text(kind: type[Exception]) -> None:
    exc = kind.__new__(kind)
    exc.args = (f"it quotes {SECRET}",)
    told = _aws._of_botocore(exc, "rds:DescribeDBInstances")
    assert SECRET not in str(told) and "quotes" not in str(told)
    assert told.remedy and str(told).startswith("rds:DescribeDBInstances: ") and "\n" not in str(told)


class Client:
    """A client whose answers are given; an exception is raised."""

    def __init__(self, *answers: t.Any) -> None:
        self.answers = list(answers)
        self.calls: list[dict[str, t.Any]] = []

    def describe_events(self, **arguments: t.Any) -> t.Any:
        self.calls.append(arguments)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def refused(code: str, text: str = "") -> t.Any:
    return botocore.exceptions.ClientError({"Error": {"Code": code, "Message": text}}, "DescribeEvents")


def test_all_pages_are_read() -> None:
    client = Client({"Events": [1], "Marker": "a"}, {"Events": [], "Marker": "b"}, {"Events": [2]})
    assert list(Api(client, "rds").pages("describe_events", "Events", MaxRecords=20)) == [1, 2]
    assert [call.get("Marker") for call in client.calls] == [None, "a", "b"]


def test_a_marker_that_does_not_move_ends_it() -> None:
    client = Client({"Events": [1], "Marker": "a"}, {"Events": [2], "Marker": "a"})
    assert list(Api(client, "rds").pages("describe_events", "Events")) == [1, 2]


@pytest.mark.parametrize("code", sorted(_aws._THROTTLED))
def test_what_is_throttled_is_asked_again(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aws, "_FIRST_PAUSE", 0.0)
    api = Api(Client(refused(code), refused(code), {"Events": []}), "rds")
    assert api.call("describe_events") == {"Events": []} and api.throttled == 2


def test_a_wait_ends_when_the_task_must_stop() -> None:
    api = Api(Client(refused("Throttling")), "rds")
    api.stop("signal SIGTERM received")
    with pytest.raises(Interrupted, match="SIGTERM"):
        api.call("describe_events")


@pytest.mark.parametrize("code", [*_aws._REMEDIES, "SomethingNew"])
def test_a_refusal_says_action_code_and_remedy_and_nothing_of_the_login(code: str) -> None:
    text = f"x-amz-security-token:{SECRET}" if code not in _aws._SHOWN else "no such thing\nhere"
    with pytest.raises(AwsError) as caught:
        Api(Client(refused(code, text)), "rds").call("describe_events")
    assert f"AWS refused rds:DescribeEvents ({code})" in str(caught.value)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value) and caught.value.aws_code == code
    assert code in _aws._SHOWN or caught.value.remedy


def test_a_right_that_is_missing_is_named_and_not_who_lacks_it() -> None:
    text = "User: arn:aws:iam::1:user/x is not authorized to perform: kms:DescribeKey on resource: y"
    with pytest.raises(AwsError, match="not authorized to perform kms:DescribeKey") as caught:
        Api(Client(refused("AccessDenied", text)), "rds").call("describe_events")
    assert "user/x" not in str(caught.value)


def test_a_call_that_this_boto3_does_not_know_is_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="does not know rds:DescribeTheFuture"):
        Api(Client(), "rds").call("describe_the_future")


def test_the_clock_is_that_of_the_service() -> None:
    there = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=3)
    date = email.utils.format_datetime(there, usegmt=True)
    api = Api(Client({"ResponseMetadata": {"HTTPHeaders": {"date": date}}}, {}), "rds")
    api.call("describe_events")
    assert abs((api.now() - there).total_seconds()) < 60
    api.call("describe_events")  # an answer without a date changes nothing
    assert abs((api.now() - there).total_seconds()) < 60


@pytest.mark.parametrize("config", [{"no_such_key": 1}, {"retries": {"total_max_attempts": -1}}, {"retries": "many"}])
def test_a_configuration_that_is_none_is_told_by_its_keys(config: dict[str, t.Any]) -> None:
    options = AwsOptions.from_params({**KEYS, "region": "eu-central-1", "aws_config": config})
    with pytest.raises(SurefootError) as caught:
        options.client("rds")
    assert next(iter(config)) in str(caught.value) and "many" not in str(caught.value)
