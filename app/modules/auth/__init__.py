"""Who may do what: actors, sessions, permissions."""

from app.kernel.module import Module

MODULE = Module(
    package=__name__,
    summary="Actors, passwords and keys.",
    permissions={
        "auth:superuser": "Everything.",
        "auth:actors:read": "See actors, their sessions, roles and permissions.",
        "auth:actors:write": "Create, change, disable and enable actors; end their sessions; manage API keys.",
        "auth:roles:read": "See roles and the catalogue of permissions.",
        "auth:roles:write": "Create, change and delete roles; grant roles and permissions that one holds.",
        "auth:tokens:read": "Learn at /oauth/introspect whose any token is, and what it may do.",
    },
    process="Serve the auth API.",
    settings="settings:AuthSettings",
    providers="providers:PROVIDERS",
    schedules="jobs:SCHEDULES",
    handlers="jobs:handlers",
    routes="http:routes",
    commands={"auth": "Actors, passwords and keys."},
)
