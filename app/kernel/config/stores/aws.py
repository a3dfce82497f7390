"""AWS Secrets Manager: JSON objects and plain secrets. boto3 finds region and credentials as AWS's own tools do."""

import json
from collections.abc import Mapping
from typing import Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from botocore.exceptions import (
    ConnectionError as ConnectionFailed,
)

from app.kernel.config.stores import CannotFetch

_DENIED = ("AccessDeniedException", "AccessDenied")
_NOT_KNOWN = (
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "ExpiredTokenException",
    "ExpiredToken",
    "IncompleteSignature",
    "MissingAuthenticationTokenException",
)
_WRONG = {
    "ResourceNotFoundException": ("AWS has no secret {}", "check the name, AWS_REGION and the account"),
    "InvalidRequestException": (
        "the secret {} is marked for deletion",
        "restore the secret",
    ),
    "DecryptionFailure": ("the KMS key of the secret {} cannot be used", "allow kms:Decrypt"),
    "ValidationException": ("AWS refuses the name {}", "check the name"),
    "InvalidParameterException": ("AWS refuses the name {}", "check the name"),
}


def read(name: str, environ: Mapping[str, str], seconds: float) -> Mapping[str, object] | str:  # noqa: ARG001
    """Return the fields of a JSON secret, or the text of another one. Raises CannotFetch."""
    try:
        config = Config(
            connect_timeout=seconds, read_timeout=seconds, retries={"mode": "standard", "total_max_attempts": 2}
        )
        client: Any = cast("Any", boto3).session.Session().client("secretsmanager", config=config)
        answer: dict[str, Any] = client.get_secret_value(SecretId=name)
        text = answer["SecretString"] if "SecretString" in answer else answer["SecretBinary"].decode()
    except ClientError as error:
        raise _refused(name, error) from None
    except NoRegionError:
        raise CannotFetch("no AWS region is set", "set AWS_REGION") from None
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound):
        raise CannotFetch(
            "there are no credentials of AWS",
            "give the process a role, or set AWS_ACCESS_KEY_ID",
        ) from None
    except SSLError:
        raise CannotFetch("the certificate of AWS is not trusted", "set AWS_CA_BUNDLE") from None
    except (ConnectionFailed, HTTPClientError) as error:
        slow = "Timeout" in type(error).__name__
        what = "does not answer" if slow else "cannot be reached"
        raise CannotFetch(f"AWS Secrets Manager {what}", "check AWS_REGION and the network", is_final=False) from None
    except (BotoCoreError, KeyError, UnicodeDecodeError, ValueError) as error:
        kind = type(error).__name__
        raise CannotFetch(
            f"AWS Secrets Manager cannot be used ({kind})", "check AWS_REGION and AWS_ENDPOINT_URL", is_final=False
        ) from None
    try:
        found = json.loads(text)
    except ValueError:
        return str(text)
    return cast("dict[str, object]", found) if isinstance(found, dict) else str(text)


def _refused(name: str, error: ClientError) -> CannotFetch:
    answer = cast("dict[str, Any]", cast("Any", error).response)
    code = str(answer.get("Error", {}).get("Code", ""))
    if code in _DENIED:
        return CannotFetch(f"AWS denies reading {name} (403)", "allow secretsmanager:GetSecretValue to the role")
    if code in _NOT_KNOWN:
        return CannotFetch(f"AWS refuses the credentials ({code})", "renew them")
    if code in _WRONG:
        message, hint = _WRONG[code]
        return CannotFetch(message.format(name), hint)
    return CannotFetch(f"AWS Secrets Manager failed ({code or 'no code'})", "try again later", is_final=False)
