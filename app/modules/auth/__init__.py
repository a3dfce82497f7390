"""Authentication and authorisation: actors, sessions, roles and permissions."""

from app.kernel.module import Feature, Module

MODULE = Module(
    package=__name__,
    summary="Manage actors, roles, sessions, passwords and keys.",
    permissions={
        "auth:superuser": "All permissions.",
        "auth:actors:read": "Read actors, their sessions, roles and permissions.",
        "auth:actors:write": "Create, update, disable and enable actors; end their sessions; manage API keys.",
        "auth:roles:read": "Read roles and the catalogue of permissions.",
        "auth:roles:write": "Create, update and delete roles; grant roles and permissions that the caller holds.",
        "auth:tokens:read": "Introspect the tokens of every actor at /oauth/introspect.",
    },
    features=(
        Feature("sign_in:SignIn"),
        Feature("browser:BrowserSignIn"),
        Feature("second_factor:SecondFactor"),
        Feature("oauth:OAuth"),
        Feature("sessions:SessionAdministration", "auth"),
        Feature("actors:ActorAdministration", "auth"),
        Feature("roles:RoleAdministration", "auth"),
        Feature("grants:GrantAdministration", "auth"),
        Feature("api_keys:ApiKeyAdministration", "auth"),
        Feature("recovery:Recovery", "auth"),
        Feature("keys:KeyAdministration", "auth"),
    ),
    settings="settings:AuthSettings",
    providers="providers:PROVIDERS",
    schedules="sessions:SCHEDULES",
    checks="checks:CHECKS",
    banner="cli:first_account",
    personal="personal:PERSONAL",
    commands={"auth": "Manage actors, roles, sessions, passwords and keys."},
    constraints={
        "auth.actors_username_key_key": "domain.actors:UsernameExists",
        "auth.roles_name_key": "domain.permissions:RoleNameExists",
        "auth.sessions_api_key_id_fkey": "domain.oauth:InvalidClient",  # a concurrent request revoked the key
    },
)
