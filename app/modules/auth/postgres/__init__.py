"""Repositories of auth: SQL beside its method. Here is what it means to lose a race for a constraint."""

from app.kernel.db.refusals import constraints
from app.modules.auth.domain.actors import UsernameExists
from app.modules.auth.domain.oauth import InvalidClient
from app.modules.auth.domain.permissions import RoleNameExists

constraints(
    {
        "auth.actors_username_key_key": UsernameExists,
        "auth.roles_name_key": RoleNameExists,
        "auth.sessions_api_key_id_fkey": InvalidClient,  # the key was revoked meanwhile
    }
)
