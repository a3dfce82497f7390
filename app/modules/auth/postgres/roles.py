"""Roles in `auth.roles`, and grants of roles and permissions."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from uuid import UUID

from app.kernel.db import Queries, Transaction
from app.modules.auth.domain.permissions import AccessChange, HeldPermission, Role, RoleNotFound


@dataclass(frozen=True, slots=True)
class Roles:
    """Roles in `auth.roles`, and grants of roles and permissions."""

    async def page(self, db: Queries, limit: int, after: UUID | None) -> list[Role]:
        """Return a page of roles, newest first."""
        sql = """
            SELECT id, name, created_at, updated_at FROM auth.roles
            WHERE %(after)s::uuid IS NULL OR id < %(after)s
            ORDER BY id DESC
            LIMIT %(limit)s
        """
        return [Role(*row) for row in await db.all(sql, {"after": after, "limit": limit})]

    async def add(self, db: Queries, role_id: UUID, name: str) -> Role | None:
        """Store a new role; return it, or None if the name is taken."""
        sql = """
            INSERT INTO auth.roles (id, name) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING
            RETURNING id, name, created_at, updated_at
        """
        row = await db.one(sql, (role_id, name))
        return None if row is None else Role(*row)

    async def get(self, db: Queries, role_id: UUID) -> Role:
        """Return a role. Raises RoleNotFound."""
        row = await db.one("SELECT id, name, created_at, updated_at FROM auth.roles WHERE id = %s", (role_id,))
        if row is None:
            raise RoleNotFound
        return Role(*row)

    async def named(self, db: Queries, role_ids: Collection[UUID]) -> frozenset[UUID]:
        """Return the ids of those roles that exist. Raises RoleNotFound for others."""
        sql = "SELECT id FROM auth.roles WHERE id = ANY(%s)"
        found = frozenset(role_id for (role_id,) in await db.all(sql, (list(role_ids),)))
        if len(found) != len(set(role_ids)):
            raise RoleNotFound
        return found

    async def lock(self, tx: Transaction, role_ids: Iterable[UUID]) -> list[Role]:
        """Lock roles and their permissions until the transaction ends; return the roles."""
        sql = """
            SELECT id, name, created_at, updated_at FROM auth.roles WHERE id = ANY(%s) ORDER BY id FOR UPDATE
        """
        return [Role(*row) for row in await tx.all(sql, (list(role_ids),))]

    async def rename(self, tx: Transaction, role_id: UUID, name: str) -> Role | None:
        """Rename a role; return it, or None if the name is taken."""
        sql = """
            UPDATE auth.roles SET name = %(name)s, updated_at = now()
            WHERE id = %(id)s AND NOT EXISTS (SELECT FROM auth.roles WHERE name = %(name)s AND id <> %(id)s)
            RETURNING id, name, created_at, updated_at
        """
        row = await tx.one(sql, {"id": role_id, "name": name})
        return None if row is None else Role(*row)

    async def delete(self, tx: Transaction, role_id: UUID) -> None:
        """Delete a role with its permissions and grants."""
        await tx.run("DELETE FROM auth.roles WHERE id = %s", (role_id,))

    async def permissions(self, db: Queries, role_ids: Iterable[UUID]) -> frozenset[str]:
        """Return the permissions of some roles."""
        sql = "SELECT DISTINCT permission FROM auth.role_permissions WHERE role_id = ANY(%s)"
        return frozenset(permission for (permission,) in await db.all(sql, (list(role_ids),)))

    async def replace_permissions(self, tx: Transaction, role_id: UUID, permissions: Iterable[str]) -> None:
        """Replace the permissions of a role."""
        sql = """
            WITH wanted AS (SELECT unnest(%(permissions)s::text[]) AS permission),
                 gone AS (
                     DELETE FROM auth.role_permissions
                     WHERE role_id = %(id)s AND permission NOT IN (SELECT permission FROM wanted)
                 ),
                 changed AS (UPDATE auth.roles SET updated_at = now() WHERE id = %(id)s)
            INSERT INTO auth.role_permissions (role_id, permission) SELECT %(id)s, permission FROM wanted
            ON CONFLICT DO NOTHING
        """
        await tx.run(sql, {"id": role_id, "permissions": list(permissions)})

    async def affected(
        self, db: Queries, role_id: UUID, added: Iterable[str], removed: Iterable[str], limit: int
    ) -> tuple[int, list[AccessChange]]:
        """Return how many actors gain or lose a permission if the role does, and the first of them by username.

        Superusers and actors that hold the permission in another way do not.
        """
        sql = """
            WITH given (permission, is_added) AS (
                SELECT unnest(%(added)s::text[]), true UNION ALL SELECT unnest(%(removed)s::text[]), false
            ), affected AS (
                SELECT a.id, a.username, a.type, a.is_active,
                       array_agg(g.permission ORDER BY g.permission) FILTER (WHERE g.is_added) AS gained,
                       array_agg(g.permission ORDER BY g.permission) FILTER (WHERE NOT g.is_added) AS lost
                FROM auth.actor_roles r JOIN auth.actors a ON a.id = r.actor_id CROSS JOIN given g
                WHERE r.role_id = %(id)s AND NOT a.is_superuser
                  AND NOT EXISTS (
                      SELECT FROM auth.actor_permissions d WHERE d.actor_id = a.id AND d.permission = g.permission
                  )
                  AND NOT EXISTS (
                      SELECT FROM auth.actor_roles o JOIN auth.role_permissions p USING (role_id)
                      WHERE o.actor_id = a.id AND o.role_id <> %(id)s AND p.permission = g.permission
                  )
                GROUP BY a.id
            )
            SELECT id, username, type, is_active, coalesce(gained, '{}'), coalesce(lost, '{}'), count(*) OVER ()
            FROM affected ORDER BY username, id LIMIT %(limit)s
        """
        given = {"id": role_id, "added": list(added), "removed": list(removed), "limit": limit}
        rows = await db.all(sql, given)
        return (rows[0][-1] if rows else 0), [AccessChange(*row[:-1]) for row in rows]

    async def of_actor(self, db: Queries, actor_id: UUID) -> list[Role]:
        """Return the roles of an actor."""
        sql = """
            SELECT r.id, r.name, r.created_at, r.updated_at
            FROM auth.actor_roles a JOIN auth.roles r ON r.id = a.role_id
            WHERE a.actor_id = %s
            ORDER BY r.name
        """
        return [Role(*row) for row in await db.all(sql, (actor_id,))]

    async def replace_of_actor(self, tx: Transaction, actor_id: UUID, role_ids: Iterable[UUID]) -> None:
        """Replace the roles of an actor."""
        sql = """
            WITH wanted AS (SELECT unnest(%(roles)s::uuid[]) AS role_id),
                 gone AS (
                     DELETE FROM auth.actor_roles
                     WHERE actor_id = %(id)s AND role_id NOT IN (SELECT role_id FROM wanted)
                 )
            INSERT INTO auth.actor_roles (actor_id, role_id) SELECT %(id)s, role_id FROM wanted
            ON CONFLICT DO NOTHING
        """
        await tx.run(sql, {"id": actor_id, "roles": list(role_ids)})

    async def held(self, db: Queries, actor_id: UUID) -> tuple[frozenset[str], frozenset[str]]:
        """Return the permissions of an actor: from its roles, and granted directly."""
        sql = """
            SELECT ARRAY(
                       SELECT p.permission
                       FROM auth.actor_roles r JOIN auth.role_permissions p USING (role_id)
                       WHERE r.actor_id = %(id)s
                   ),
                   ARRAY(SELECT permission FROM auth.actor_permissions WHERE actor_id = %(id)s)
        """
        [(of_roles, direct)] = await db.all(sql, {"id": actor_id})
        return frozenset(of_roles), frozenset(direct)

    async def held_through(self, db: Queries, actor_id: UUID) -> list[HeldPermission]:
        """Return the permissions of an actor, and how it holds them."""
        sql = """
            SELECT permission, bool_or(name IS NULL),
                   coalesce(array_agg(name ORDER BY name) FILTER (WHERE name IS NOT NULL), '{}')
            FROM (
                SELECT permission, NULL AS name FROM auth.actor_permissions WHERE actor_id = %(id)s
                UNION ALL
                SELECT p.permission, r.name
                FROM auth.actor_roles a JOIN auth.roles r ON r.id = a.role_id
                JOIN auth.role_permissions p ON p.role_id = r.id
                WHERE a.actor_id = %(id)s
            ) held
            GROUP BY permission ORDER BY permission
        """
        return [HeldPermission(*row) for row in await db.all(sql, {"id": actor_id})]

    async def replace_direct(self, tx: Transaction, actor_id: UUID, permissions: Iterable[str]) -> None:
        """Replace the direct permissions of an actor."""
        sql = """
            WITH wanted AS (SELECT unnest(%(permissions)s::text[]) AS permission),
                 gone AS (
                     DELETE FROM auth.actor_permissions
                     WHERE actor_id = %(id)s AND permission NOT IN (SELECT permission FROM wanted)
                 )
            INSERT INTO auth.actor_permissions (actor_id, permission) SELECT %(id)s, permission FROM wanted
            ON CONFLICT DO NOTHING
        """
        await tx.run(sql, {"id": actor_id, "permissions": list(permissions)})
