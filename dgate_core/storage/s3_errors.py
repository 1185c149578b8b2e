"""What an S3 server's refusals mean, in words that hold no secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import botocore.exceptions as aws
from boto3.exceptions import Boto3Error
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import HTTPError

from dgate_core.errors import ObjectNotFoundError, StorageError


class BodyCutError(Exception):
    """A connection that broke while the body of an answer was read."""


BODY_ERRORS = (
    aws.HTTPClientError,
    aws.IncompleteReadError,
    aws.FlexibleChecksumError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)
"""What a streaming body raises when the connection breaks; botocore does not send the request again."""

S3_ERRORS = (
    aws.BotoCoreError,
    aws.ClientError,
    Boto3Error,
    ResponseParserError,
    RetriesExceededError,
    BodyCutError,
    *BODY_ERRORS,
)
"""Everything that boto3 and the transfers raise for a request that did not work."""

MISSING_CODES = frozenset({"404", "NoSuchKey", "NotFound"})
EXISTING_CODES = frozenset({"412", "PreconditionFailed"})
CONFLICT_CODES = frozenset({"409", "ConditionalRequestConflict", "OperationAborted"})

_SIGN_IN = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, that this server knows"
_CHECK_KEYS = "check the credentials (aws sts get-caller-identity shows who they are)"
_ASK_RIGHTS = "ask for s3:GetObject, PutObject, DeleteObject, ListBucket and AbortMultipartUpload on it"
_REGION = ("the bucket lives in another region", "its own region", "set AWS_REGION to the bucket's region")
_EXPIRED = ("the credentials have expired", "valid credentials", "sign in again, then give the same command again")
_BUSY = ("the server is overloaded (retried)", "a server that answers", "wait a little or use fewer lanes, then resume")
_ANSWER = "a server that answers"
CHECK_SERVER = "check AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL and the network, then give the same command again"

_CODES: dict[str, tuple[str, str, str]] = {
    "NoSuchBucket": ("there is no such bucket", "an existing bucket", "check the address, or make the bucket"),
    "AccessDenied": ("access denied", "the right to use this bucket", _ASK_RIGHTS),
    "403": ("access denied, or the credentials are wrong", _SIGN_IN, _CHECK_KEYS),
    "Forbidden": ("access denied, or the credentials are wrong", _SIGN_IN, _CHECK_KEYS),
    "SignatureDoesNotMatch": ("the secret key is wrong", _SIGN_IN, _CHECK_KEYS),
    "InvalidAccessKeyId": ("the access key is not known to the server", _SIGN_IN, _CHECK_KEYS),
    "InvalidToken": ("the session token is wrong", _SIGN_IN, _CHECK_KEYS),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "the right time", "set the clock (NTP)"),
    "301": _REGION,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "503": _BUSY,
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "412": ("the object was replaced while it was read", "an object that stays", "read it again"),
    "PreconditionFailed": ("the object was replaced while it was read", "an object that stays", "read it again"),
}

_CREDENTIALS_MISSING = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.TokenRetrievalError, aws.SSOError)
_NO_CONNECTION = (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ProxyConnectionError)


@contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises in the block into a StorageError that names uri."""
    try:
        yield
    except S3_ERRORS as error:
        # Not `from error`: its text may hold the endpoint's password, and a traceback would show it.
        raise s3_error_to_storage_error(error, uri) from None


def error_code(error: Exception) -> str:
    """Return the code that the server gave, such as NoSuchKey or 404; empty when it gave none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, aws.ClientError) else ""


def missing_object(uri: str) -> ObjectNotFoundError:
    """Say that there is no object at uri."""
    return ObjectNotFoundError(f"there is no object {uri}", "an existing object", "check the address")


def may_have_happened(error: Exception) -> bool:
    """Say whether a write that failed so may have been carried out all the same."""
    if isinstance(error, aws.ClientError):
        # Precondition failed: a request sent twice finds what it stored the first time.
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        return status >= 500 or error_code(error) in EXISTING_CODES
    return isinstance(error, BODY_ERRORS)


def s3_error_to_storage_error(error: Exception, uri: str) -> StorageError:
    """Say in words what went wrong with the object or prefix at uri."""
    code = error_code(error)
    if code in MISSING_CODES:
        return missing_object(uri)
    got, expected, next_step = _CODES.get(code) or _explain(error)
    return StorageError(f"{uri}: {got}", expected, next_step)


def _explain(error: Exception) -> tuple[str, str, str]:
    if isinstance(error, aws.ClientError):
        message = error.response.get("Error", {}).get("Message", "")
        return f"the server answered {error_code(error)}: {message}", "", "look the code up in the server's manual"
    if isinstance(error, _CREDENTIALS_MISSING):
        return "there are no usable credentials", _SIGN_IN, "set them, or sign in with: aws configure"
    if isinstance(error, aws.ProfileNotFound):
        return str(error), "a profile of ~/.aws/config", "check AWS_PROFILE"
    if isinstance(error, _NO_CONNECTION):
        return f"no connection to {_server_of(error)}", _ANSWER, CHECK_SERVER
    if isinstance(error, aws.SSLError):
        return f"no trusted connection to {_server_of(error)}", "a valid certificate", "set AWS_CA_BUNDLE"
    if isinstance(error, (BodyCutError, RetriesExceededError, *BODY_ERRORS)):
        return "the connection broke off again and again", _ANSWER, CHECK_SERVER
    return f"{type(error).__name__}: {error}", "", "check the AWS settings"


def _server_of(error: aws.BotoCoreError) -> str:
    """Return the server's scheme, host and port; an endpoint may carry a password or a signed query."""
    parts = urlsplit(str(error.kwargs.get("endpoint_url") or ""))
    return f"{parts.scheme}://{parts.hostname}:{parts.port or ''}".rstrip(":") if parts.hostname else "the S3 server"
