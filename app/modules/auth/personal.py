"""What a scrubbed export has of the tables of this module. Names become pseudonyms, and secrets stay out."""

from app.kernel.db.export import Constant, Personal, Pseudonym

DEVELOPMENT_PASSWORD = "development only password"  # noqa: S105 - of exports for development, known to everybody
_HASH = "$argon2id$v=19$m=65536,t=3,p=4$X9AFz0gLw61hs24is2dTHA$KX5ufw/WuRl/9j5GUh4TZtHnqgaWyBjfRm9H/grdPxI"
_NAME = Pseudonym("actor-", of="username_key")

PERSONAL: Personal = {
    "actors": {
        "type": "kept",
        "username": _NAME,
        "username_key": _NAME,
        "password_hash": Constant(_HASH),
    },
    "actor_permissions": {"permission": "kept"},
    "roles": {"name": "kept"},
    "role_permissions": {"permission": "kept"},
    "actor_roles": {},
    "totp": "dropped",
    "recovery_codes": "dropped",
    "api_keys": "dropped",
    "sessions": "dropped",
    "signing_keys": "dropped",
    "limits": "dropped",
}
