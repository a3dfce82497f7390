"""OAuth 2: form bodies and error responses (RFC 6749, section 5)."""

import json

from app.kernel.errors import Invalid, Refusal, Unauthenticated
from app.kernel.http.codecs import Form, Response
from app.kernel.http.problems import HttpProblem


class InvalidClient(Unauthenticated):
    code = "invalid_client"
    title = "The client is unknown or its secret is wrong"


class InvalidGrant(Invalid):
    code = "invalid_grant"
    title = "The refresh token is not valid, has expired or was used before"


class InvalidRequest(Invalid):
    code = "invalid_request"
    title = "The request lacks a parameter"


class InvalidScope(Invalid):
    code = "invalid_scope"
    title = "The scope is more than the client may do"


class UnsupportedGrantType(Invalid):
    code = "unsupported_grant_type"
    title = "The grant type is not one of client_credentials and refresh_token"


class OAuthCodec(Form):
    """Ignores unknown parameters, omits absent members of results, and answers refusals as OAuth error responses."""

    ignores_unknown = omits_none = True
    error_schema = {  # noqa: RUF012 - never changed
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}},
    }

    def refuse(self, refusal: Refusal | HttpProblem) -> Response | None:
        if not isinstance(refusal, Invalid | Unauthenticated):
            return None
        code = "invalid_request" if refusal.code == Invalid.code else refusal.code
        body = json.dumps({"error": code, "error_description": str(refusal)}).encode()
        headers = [(b"cache-control", b"no-store")]
        if isinstance(refusal, Unauthenticated):
            headers.append((b"www-authenticate", b'Basic realm="oauth"'))
        return Response(self.status_of(type(refusal)), b"application/json", body, headers)

    def status_of(self, kind: type[Refusal]) -> int:
        return 400 if issubclass(kind, Invalid) else super().status_of(kind)


OAUTH = OAuthCodec()
