# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Options to a client of AWS, its calls with bounded retries, and its errors without what they quote."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import os
import random
import re
import threading
import time
import typing as t
import warnings

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact, register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    EnvironmentProblem,
    Interrupted,
    PlanError,
    SurefootError,
)

try:
    import boto3
    import botocore.config
    import botocore.exceptions
    import botocore.parsers

    BOTO3_ERROR: ImportError | None = None
except ImportError as exc:
    BOTO3_ERROR = exc

# How long a call that AWS throttles is repeated, beyond the attempts that botocore makes by itself.
THROTTLE_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0
_ATTEMPTS = 4
_CONNECT_SECONDS, _READ_SECONDS = 10, 30

_THROTTLED = frozenset(
    {"Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException"}
    | {"RequestLimitExceeded", "TooManyRequestsException", "SlowDown", "PriorRequestNotComplete"}
)
_LOGIN = "Look whether access_key, secret_key, session_token or profile are right and not expired."
# Codes of which AWS's own text is shown: it speaks of what was asked for, and quotes nothing of the login. That of a
# signature that does not match quotes the session token.
_SHOWN = frozenset(
    {"DBInstanceNotFound", "DBClusterNotFoundFault", "DBSnapshotNotFound", "DBSnapshotAlreadyExists"}
    | {"InvalidDBInstanceState", "InvalidParameterValue", "InvalidParameterCombination", "InvalidParameter"}
    | {"SnapshotQuotaExceeded", "StorageQuotaExceeded", "DBLogFileNotFoundFault", "ResourceNotFoundFault"}
    | {"ValidationError", "TagQuotaExceeded"}
)
_REMEDIES = {
    "DBInstanceNotFound": "Look at db_instance_identifier, region and account.",
    "ResourceNotFoundFault": "Look at db_instance_identifier, region and account.",
    "DBSnapshotNotFound": "Look at db_snapshot_identifier, region and account.",
    "InvalidDBInstanceState": "Wait until the instance is available, then run again.",
    "SnapshotQuotaExceeded": "Delete manual snapshots that are not needed, or have the quota raised.",
    "AccessDenied": "Grant the action; docs/rds.md has the policy.",
    "AccessDeniedException": "Grant the action; docs/rds.md has the policy.",
    "UnauthorizedOperation": "Grant the action; docs/rds.md has the policy.",
    "InvalidClientTokenId": _LOGIN,
    "UnrecognizedClientException": _LOGIN,
    "InvalidAccessKeyId": _LOGIN,
    "AuthFailure": _LOGIN,
    "SignatureDoesNotMatch": "The secret key does not fit the access key, or this host's clock is wrong.",
    "InvalidSignatureException": "The secret key does not fit the access key, or this host's clock is wrong.",
    "RequestExpired": "Set this host's clock.",
    "ExpiredToken": "Get new temporary credentials.",
    "ExpiredTokenException": "Get new temporary credentials.",
    "OptInRequired": "The account has not signed up for the service in this region.",
}
_ACTION = re.compile(r"not authorized to perform: ([a-z-]+:[A-Za-z]+)")


class AwsError(SurefootError):
    """AWS could not be reached, refused the login, or refused a call."""

    code = "aws"

    def __init__(self, message: str, *, aws_code: str | None = None, **kwargs: t.Any) -> None:
        super().__init__(message, **kwargs)
        self.aws_code = aws_code
        self.details["aws_code"] = aws_code


@dataclasses.dataclass(frozen=True)
class AwsOptions:
    """How to reach AWS. What is None, botocore finds by its own rules: environment, files, the role of the host."""

    region: str | None
    profile: str | None
    access_key: str | None
    secret_key: str | None = dataclasses.field(repr=False)
    session_token: str | None = dataclasses.field(repr=False)
    endpoint_url: str | None
    verify: bool | str | None
    config: t.Mapping[str, t.Any]

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> AwsOptions:
        """From module options, with the environment variables of the amazon.aws collection for those not given.

        :raises EnvironmentProblem: boto3 is not installed
        :raises PlanError: a profile together with keys
        """
        if BOTO3_ERROR is not None:
            raise EnvironmentProblem(
                "boto3 is not installed for the Python that runs this module",
                remedy="Install it: pip install boto3; or set ansible_python_interpreter to a Python that has it.",
            )
        keys = [name for name in ("access_key", "secret_key", "session_token") if params.get(name)]
        if params.get("profile") and keys:
            raise PlanError(
                f"profile and {', '.join(keys)} are given both", remedy="Give a profile, or access_key and secret_key."
            )
        for name in ("secret_key", "session_token"):
            register_secret(params.get(name))
        bundle = params.get("aws_ca_bundle")
        if bundle and not os.path.exists(bundle):
            raise PlanError(f"aws_ca_bundle: {bundle} does not exist", remedy="Give a file of CA certificates.")
        return cls(
            region=params.get("region") or _environment("AWS_REGION", "AWS_DEFAULT_REGION"),
            # With keys, a profile of the environment is not meant.
            profile=params.get("profile") or (None if keys else _environment("AWS_PROFILE", "AWS_DEFAULT_PROFILE")),
            access_key=params.get("access_key"),
            secret_key=params.get("secret_key"),
            session_token=params.get("session_token"),
            endpoint_url=params.get("endpoint_url") or _environment("AWS_URL"),
            verify=(bundle or None) if params.get("validate_certs", True) else False,
            config=params.get("aws_config") or {},
        )

    def client(self, service: str) -> Api:
        """A client of a service. Nothing is sent yet.

        :raises PlanError: no region, an unknown profile, an option that botocore does not take
        """
        try:
            settings = botocore.config.Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                user_agent_extra="surefoot.dbops",
            ).merge(botocore.config.Config(**{str(name): value for name, value in self.config.items()}))
        except (TypeError, ValueError, AttributeError, botocore.exceptions.BotoCoreError):
            raise PlanError(
                f"aws_config is not understood (keys: {', '.join(sorted(map(str, self.config)))})",
                remedy="Its keys are the arguments of botocore.config.Config.",
            ) from None
        try:
            session = boto3.session.Session(
                profile_name=self.profile,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret_key,
                aws_session_token=self.session_token,
                region_name=self.region,
            )
            return Api(
                session.client(service, endpoint_url=self.endpoint_url, verify=self.verify, config=settings), service
            )
        except botocore.exceptions.BotoCoreError as exc:
            raise _of_botocore(exc, f"making a client of {service}") from None
        except ValueError:
            raise PlanError(
                f"endpoint_url is no URL: {redact(str(self.endpoint_url))}", remedy="Write it as https://host:port."
            ) from None


class Api:
    """One service: calls, pages, and the clock of its answers."""

    def __init__(self, client: t.Any, service: str) -> None:
        self._client = client
        self._service = service
        self._offset = datetime.timedelta(0)
        self._stopped = threading.Event()
        self._reason = ""
        self.throttled = 0

    def stop(self, reason: str) -> None:
        """End every wait; for :func:`_process.run_interruptible`."""
        self._reason = reason
        self._stopped.set()

    def pause(self, seconds: float) -> None:
        """Wait.

        :raises Interrupted: told to stop
        """
        if self._stopped.wait(seconds):
            raise Interrupted(self._reason)

    def now(self) -> datetime.datetime:
        """The time by the clock of the service, as far as an answer told it."""
        return datetime.datetime.now(datetime.timezone.utc) + self._offset

    def call(self, operation: str, /, **arguments: t.Any) -> dict[str, t.Any]:
        """One call. What AWS throttles is repeated with growing pauses, for a minute.

        :raises AwsError: refused, or not reached
        :raises PlanError: no credentials, no region
        """
        method = getattr(self._client, operation, None)
        if method is None:
            raise EnvironmentProblem(
                f"the boto3 of this host does not know {self._action(operation)}", remedy="pip install --upgrade boto3"
            )
        deadline = time.monotonic() + THROTTLE_SECONDS
        pause = _FIRST_PAUSE
        while True:
            try:
                with warnings.catch_warnings():  # of certificates not verified, which the user asked for
                    warnings.simplefilter("ignore")
                    answer: dict[str, t.Any] = method(**arguments)
                self._note_clock(answer)
                return answer
            except botocore.exceptions.ClientError as exc:
                code = str(exc.response.get("Error", {}).get("Code"))
                if code not in _THROTTLED:
                    raise self._of_client(exc, code) from None
                self.throttled += 1
                if time.monotonic() + pause > deadline:
                    raise AwsError(
                        f"AWS throttles {self._action(operation)} for more than {THROTTLE_SECONDS:.0f} s ({code})",
                        remedy="Run again later, or look what else calls the API of this account.",
                        aws_code=code,
                    ) from None
            except (botocore.exceptions.BotoCoreError, botocore.parsers.ResponseParserError) as exc:
                raise _of_botocore(exc, self._action(operation)) from None
            self.pause(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def pages(self, operation: str, key: str, /, **arguments: t.Any) -> t.Iterator[dict[str, t.Any]]:
        """The items of all pages of an operation that pages by ``Marker``."""
        marker: str | None = None
        while True:
            more = {"Marker": marker} if marker else {}
            answer = self.call(operation, **arguments, **more)
            yield from answer.get(key) or ()
            following = answer.get("Marker")
            if not following or following == marker:
                return
            marker = str(following)

    def _note_clock(self, answer: t.Mapping[str, t.Any]) -> None:
        text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        try:
            moment = email.utils.parsedate_to_datetime(str(text))
        except (TypeError, ValueError):
            return
        if moment.tzinfo is not None:
            self._offset = moment - datetime.datetime.now(datetime.timezone.utc)

    def _action(self, operation: str) -> str:
        return f"{self._service}:{''.join(_word(part) for part in operation.split('_'))}"

    def _of_client(self, exc: t.Any, code: str) -> AwsError:
        text = str(exc.response.get("Error", {}).get("Message") or "")
        action = f"{self._service}:{exc.operation_name}"
        message = f"AWS refused {action} ({code})"
        denied = _ACTION.search(text)
        if code in _SHOWN and text:
            message += f": {redact(' '.join(text.split()))[:300]}"
        elif denied:
            message += f": not authorized to perform {denied[1]}"
        remedy = _REMEDIES.get(code)
        if remedy is None and code not in _SHOWN:
            remedy = "AWS documents the code with the operation."
        return AwsError(message, remedy=remedy, aws_code=code)


def _word(part: str) -> str:
    return "DB" if part == "db" else part.capitalize()


def _environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _of_botocore(exc: Exception, doing: str) -> SurefootError:
    """An error of botocore itself. Its text is not passed on: it quotes URLs, headers and values."""
    known = botocore.exceptions
    kinds: list[tuple[tuple[str, ...], type[SurefootError], str, str]] = [
        (
            ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),
            PlanError,
            "no usable credentials for AWS were found",
            "Give profile, or access_key and secret_key; or set AWS_PROFILE, or the role of this host.",
        ),
        (("ProfileNotFound",), PlanError, "the profile does not exist", "Look at profile, AWS_PROFILE and ~/.aws."),
        (("NoRegionError",), PlanError, "no region is given", "Give region, or set AWS_REGION."),
        (("InvalidRegionError",), PlanError, "the region is no region", "Give region as eu-central-1."),
        (
            ("ConfigParseError", "ConfigNotFound", "InvalidConfigError", "InvalidDefaultsMode"),
            PlanError,
            "the configuration of AWS on this host cannot be read",
            "Look at ~/.aws/config, ~/.aws/credentials and aws_config.",
        ),
        (
            ("UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError", "SSOError"),
            PlanError,
            "the login of the profile has ended",
            "Run aws sso login.",
        ),
        (
            ("SSLError",),
            AwsError,
            "the certificate of the endpoint is not trusted",
            "Give aws_ca_bundle, or look at endpoint_url.",
        ),
        (
            ("ProxyConnectionError",),
            AwsError,
            "the proxy cannot be reached",
            "Look at HTTPS_PROXY and aws_config.",
        ),
        (
            ("ConnectTimeoutError", "ReadTimeoutError"),
            AwsError,
            "AWS did not answer in time",
            "Look at the network, at endpoint_url and at the timeouts in aws_config; run again.",
        ),
        (
            ("EndpointConnectionError", "ConnectionClosedError", "HTTPClientError"),
            AwsError,
            "AWS cannot be reached",
            "Look at the network, region and endpoint_url; run again.",
        ),
        (
            ("ResponseParserError",),
            AwsError,
            "the answer is not one of this API",
            "Look whether endpoint_url leads to AWS, and whether it knows this call.",
        ),
        (
            ("ParamValidationError",),
            PlanError,
            "a value is not one that this API takes",
            "Look at the options of the task.",
        ),
    ]
    for names, kind, message, remedy in kinds:
        if any(isinstance(exc, getattr(known, name, ())) for name in names) or type(exc).__name__ in names:
            return kind(f"{doing}: {message}", remedy=remedy)
    return AwsError(f"{doing}: {type(exc).__name__}", remedy="It came from botocore; look at the options for AWS.")
