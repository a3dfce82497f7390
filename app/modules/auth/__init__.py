"""Who may do what: actors, sessions, permissions."""

from app.kernel.module import Feature, Module

MODULE = Module(
    package=__name__,
    summary="Actors, passwords and keys.",
    permissions={
        "auth:superuser": "Everything.",
        "auth:actors:read": "See actors, their sessions, roles and permissions.",
        "auth:actors:write": "Create, change, disable and enable actors; end their sessions; manage API keys.",
        "auth:roles:read": "See roles and the catalogue of permissions.",
        "auth:roles:write": "Create, change and delete roles; grant roles and permissions that the caller holds.",
        "auth:tokens:read": "Introspect any token at /oauth/introspect: whose it is, and what it may do.",
    },
    features=(
        Feature("sign_in:SignIn"),
        Feature("second_factor:SecondFactor"),
        Feature("oauth:OAuth"),
        Feature("sessions:SessionAdministration"),
        Feature("actors:ActorAdministration"),
        Feature("roles:RoleAdministration"),
        Feature("api_keys:ApiKeyAdministration"),
        Feature("recovery:Recovery", "auth"),
        Feature("keys:KeyAdministration", "auth"),
    ),
    settings="settings:AuthSettings",
    providers="providers:PROVIDERS",
    schedules="sessions:SCHEDULES",
    commands={"auth": "Actors, passwords and keys."},
    constraints={
        "auth.actors_username_key_key": "domain.actors:UsernameExists",
        "auth.roles_name_key": "domain.permissions:RoleNameExists",
        "auth.sessions_api_key_id_fkey": "domain.oauth:InvalidClient",  # the key was revoked meanwhile
    },
)
