"""What the errors of S3 mean, and what to do about each: one line."""

from typing import Any, Final, cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from urllib3.exceptions import HTTPError

_CREDENTIALS: Final = "the credentials are refused: check backup.s3_access_key and backup.s3_secret_key"
_REGION: Final = "the bucket {bucket} is in another region: set backup.s3_region{region}"
_FULL: Final = "it is full, or over its quota: free space, or raise the quota"
_ALLOW: Final = "allow the access key to read, write, list and delete objects of {bucket}, and to abort uploads"
_DENIED: Final = f"access denied to {{operation}}: {_ALLOW}"
_MEANING: Final = {
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": f"access denied to {{operation}}: check the credentials, and {_ALLOW}",
    "NoSuchBucket": "there is no bucket {bucket}: create it, or correct backup.target or backup.s3_endpoint",
    "InvalidBucketName": "{bucket} cannot be the name of a bucket: correct backup.target",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": "the credentials have expired: renew them",
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "400": "it refuses {operation}: check backup.s3_region and backup.s3_endpoint",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: synchronise it",
    "InsufficientStorage": _FULL,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "507": _FULL,
    "PreconditionFailed": "{operation}: the object was replaced meanwhile: try again",
}


def code_of(error: ClientError) -> str:
    """Return the code of an answer; that of HTTP if the answer has no other."""
    answer = cast("dict[str, Any]", cast("Any", error).response)
    code = answer.get("Error", {}).get("Code")
    return str(code or answer.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


def is_outage(error: Exception) -> bool:
    """Return whether it may work later, unchanged: there was no answer, or one of a server in trouble."""
    cause = error.__cause__ or error
    if isinstance(cause, ClientError):
        answer = cast("dict[str, Any]", cast("Any", cause).response)
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status in (408, 429) or code_of(cause) in ("RequestTimeout", "SlowDown")
    return isinstance(cause, (BotoCoreError, HTTPError, OSError))


def explained(error: Exception, bucket: str) -> str:
    """Return what has failed and what to do, in one line. It never says a secret."""
    if isinstance(error, ClientError):
        return _answered(error, bucket)
    match error:
        case NoCredentialsError() | PartialCredentialsError():
            text = "there are no credentials: set backup.s3_access_key and backup.s3_secret_key, or give it a role"
        case SSLError():
            text = "its certificate is not trusted: set AWS_CA_BUNDLE, or correct backup.s3_endpoint"
        case EndpointConnectionError() | ConnectTimeoutError():
            text = "it cannot be reached: check backup.s3_endpoint, backup.s3_region and the network"
        case IncompleteReadError() | ResponseStreamingError() | ConnectionClosedError():
            text = "it closed the connection: check the network, and proxies"
        case ReadTimeoutError():
            text = "it does not answer in time: try again later"
        case _:
            text = " ".join(str(error).split()) or type(error).__name__
    return text


def meaning(code: str, operation: str, bucket: str, region: str = "", message: str = "") -> str:
    """Return what the code of an answer means."""
    hint = f" to {region}" if region else ""
    if code in _MEANING:
        return f"{_MEANING[code].format(bucket=bucket, operation=operation, region=hint)} ({code})"
    elsewhere = "; check backup.s3_endpoint" if code in ("404", "405", "501") else ""
    return f"it answers {operation} with {code or 'an error'}{f': {message}' if message else ''}{elsewhere}"


def _answered(error: ClientError, bucket: str) -> str:
    answer = cast("dict[str, Any]", cast("Any", error).response)
    details, headers = answer.get("Error", {}), answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = str(details.get("Region") or headers.get("x-amz-bucket-region") or "")
    message = " ".join(str(details.get("Message", "")).split())[:200]
    return meaning(code_of(error), str(cast("Any", error).operation_name), bucket, region, message)
