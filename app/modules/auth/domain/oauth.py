"""OAuth 2: refusals as the standards name them (RFC 6749, section 5.2)."""

from app.kernel.errors import Invalid, Unauthenticated


class InvalidClient(Unauthenticated):
    """The client is unknown or its secret is wrong."""

    code = "invalid_client"


class InvalidGrant(Invalid):
    """The refresh token is not valid, has expired or was used before."""

    code = "invalid_grant"


class InvalidRequest(Invalid):
    """The request lacks a parameter."""

    code = "invalid_request"


class InvalidScope(Invalid):
    """The scope is more than the client may do."""

    code = "invalid_scope"


class UnsupportedGrantType(Invalid):
    """The grant type is not one of client_credentials and refresh_token."""

    code = "unsupported_grant_type"
