"""Where the endpoints are (RFC 8414)."""

from dataclasses import dataclass

from app.kernel.operations import Kind, operation

_METHODS = ["client_secret_basic", "client_secret_post"]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Authorization server metadata (RFC 8414, section 2)."""

    issuer: str
    token_endpoint: str
    introspection_endpoint: str
    revocation_endpoint: str
    jwks_uri: str
    grant_types_supported: list[str]
    response_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]


@operation("auth.oauth_metadata", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class OAuthMetadata:
    """Describe the OAuth 2 endpoints."""

    issuer: str

    async def __call__(self) -> ServerMetadata:
        """Return the metadata. Safe to repeat."""
        at = self.issuer.rstrip("/")
        return ServerMetadata(
            issuer=self.issuer,
            token_endpoint=f"{at}/oauth/token",
            introspection_endpoint=f"{at}/oauth/introspect",
            revocation_endpoint=f"{at}/oauth/revoke",
            jwks_uri=f"{at}/.well-known/jwks.json",
            grant_types_supported=["client_credentials", "refresh_token"],
            response_types_supported=[],
            token_endpoint_auth_methods_supported=_METHODS,
            introspection_endpoint_auth_methods_supported=_METHODS,
            revocation_endpoint_auth_methods_supported=["none", *_METHODS],
        )
