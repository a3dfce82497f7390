"""A preview of a change of roles or permissions is what the change then does, and is refused as the change is."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from app.kernel.actions.compose import operations
from app.kernel.callers import Caller
from app.kernel.config import load
from app.kernel.errors import Denied, Refusal
from app.kernel.identifiers import uuid7
from app.modules import modules
from app.modules.auth.actors import ActorRef
from app.modules.auth.domain.permissions import AccessPreview
from app.modules.auth.grants import ActorRolesWanted, GrantAdministration
from app.modules.auth.roles import PermissionsWanted, RoleAdministration, RoleRef
from app.processes import new_process, sections
from tests.kernel.queue.conftest import Bench, bench  # noqa: F401 - a fixture
from tests.modules.platform.conftest import Acting
from tests.support.project import ROOT

CATALOGUE = sorted({p for module in modules() for p in module.permissions} - {"auth:superuser"})[:8]
ROOT_USER = Caller(actor_id=uuid7(), is_superuser=True)
MANAGER = Caller(actor_id=uuid7(), permissions=frozenset({*CATALOGUE[:6], "auth:actors:read"}))
BLIND = Caller(actor_id=uuid7(), permissions=frozenset(CATALOGUE) - {"auth:actors:read"})
HELD = """
    SELECT permission FROM auth.actor_permissions WHERE actor_id = %(id)s
    UNION SELECT permission FROM auth.actor_roles JOIN auth.role_permissions USING (role_id) WHERE actor_id = %(id)s
"""


@dataclass
class Access:
    """The actions on roles and grants, and what the database says."""

    roles: Acting
    grants: Acting
    bench: Bench

    async def power(self) -> dict[str, set[str]]:
        """Return what each actor may do, by username."""
        actors = await self.bench.rows("SELECT id, username, is_superuser FROM auth.actors")
        found = {}
        for actor_id, name, is_superuser in actors:
            rows = await self.bench.db.all(HELD, {"id": actor_id})
            found[name] = set(CATALOGUE) if is_superuser else {permission for (permission,) in rows}
        return found

    async def add_actor(self, name: str, *, is_superuser: bool = False, is_active: bool = True) -> UUID:
        actor_id = uuid7()
        await self.bench.db.run(
            "INSERT INTO auth.actors (id, type, username, username_key, is_superuser, is_active)"
            " VALUES (%s, 'user', %s, %s, %s, %s)",
            (actor_id, name, name, is_superuser, is_active),
        )
        return actor_id


@pytest.fixture
async def access(bench: Bench) -> AsyncIterator[Access]:  # noqa: F811
    settings = load(ROOT, sections(), {"APP_ENV": "test", **bench.test.env})
    async with new_process("test", settings).opened() as p:
        roles, grants = [Acting(await operations(p, [kind])) for kind in (RoleAdministration, GrantAdministration)]
        yield Access(roles, grants, bench)


async def outcome(act: Any, caller: Caller, given: Any) -> Any:
    try:
        return await act(caller, given)
    except Refusal as refusal:
        return type(refusal), str(refusal)


async def test_a_preview_is_what_the_change_then_does_on_random_roles_and_actors(access: Access) -> None:
    chance = random.Random(1411)

    def some(most: int = len(CATALOGUE)) -> list[str]:
        return chance.sample(CATALOGUE, chance.randint(0, most))

    actors = {f"a{n}": await access.add_actor(f"a{n}", is_superuser=n == 0, is_active=n != 1) for n in range(7)}
    names, roles = {actor_id: name for name, actor_id in actors.items()}, [uuid7() for _ in range(4)]
    for role in roles:
        await access.bench.db.run("INSERT INTO auth.roles (id, name) VALUES (%s, %s)", (role, str(role)))
    seen: set[str] = set()
    for _ in range(120):
        caller = chance.choice([ROOT_USER, ROOT_USER, MANAGER])
        actor_id, role = chance.choice([*actors.values(), uuid7()]), chance.choice([*roles, *roles, uuid7()])
        preview, change, given = chance.choice([
            (access.roles.preview_permissions_of_role, access.roles.set_permissions_of_role,
             PermissionsWanted(role, some(4) + chance.choices([[], ["no:such:thing"]], [9, 1])[0])),
            (access.grants.preview_of_actor, access.grants.set_of_actor,
             ActorRolesWanted(actor_id, chance.sample(roles, chance.randint(0, 4)))),
            (access.grants.preview_permissions_of_actor, access.grants.set_permissions_of_actor,
             PermissionsWanted(actor_id, some(3))),
        ])  # fmt: skip
        before = await access.power()
        previewed = await outcome(preview, caller, given)
        assert await access.power() == before, "a preview changes nothing"
        changed = await outcome(change, caller, given)
        after = await access.power()
        if not isinstance(previewed, AccessPreview):
            assert previewed == changed
            assert after == before
            seen.add(previewed[0].__name__)
            continue
        said = {each.username: (set(each.gained), set(each.lost)) for each in previewed.affected}
        done = {name: (after[name] - before[name], before[name] - after[name]) for name in after}
        assert said == {name: difference for name, difference in done.items() if any(difference)}, given
        assert previewed.affected_count == len(said)
        assert {names[each.actor_id] for each in previewed.affected} == set(said)
        seen |= {"gained"} if any(gained for gained, _ in said.values()) else set()
        seen |= {"lost"} if any(lost for _, lost in said.values()) else set()
    assert {"gained", "lost", "Denied", "InvalidPermission", "RoleNotFound", "ActorNotFound"} <= seen

    role = roles[0]
    await access.grants.set_of_actor(ROOT_USER, ActorRolesWanted(actors["a2"], [role]))
    await access.roles.set_permissions_of_role(ROOT_USER, PermissionsWanted(role, CATALOGUE))
    before, previewed = await access.power(), await access.roles.preview_delete(ROOT_USER, RoleRef(role))
    await access.roles.delete(ROOT_USER, RoleRef(role))
    after = await access.power()
    assert {each.username: set(each.lost) for each in previewed.affected} == {
        name: before[name] - after[name] for name in before if before[name] != after[name]
    }


async def test_a_preview_lists_a_hundred_and_counts_all(access: Access) -> None:
    role = uuid7()
    await access.bench.db.run("INSERT INTO auth.roles (id, name) VALUES (%s, 'many')", (role,))
    await access.bench.db.run(
        "INSERT INTO auth.actors (id, type, username, username_key)"
        " SELECT kernel.uuid7(), 'user', 'u' || n, 'u' || n FROM generate_series(1, 2500) n"
    )
    await access.bench.db.run("INSERT INTO auth.actor_roles SELECT id, %s FROM auth.actors", (role,))
    wanted = PermissionsWanted(role, ["auth:roles:read"])
    previewed = await access.roles.preview_permissions_of_role(ROOT_USER, wanted)
    assert (previewed.affected_count, len(previewed.affected)) == (2500, 100)
    assert (previewed.added, previewed.removed) == (["auth:roles:read"], [])
    assert previewed.affected[0].gained == ["auth:roles:read"]
    blind = await access.roles.preview_permissions_of_role(BLIND, wanted)
    assert (blind.affected_count, blind.affected) == (2500, []), "who may not read actors sees their number"
    without = Caller(actor_id=uuid7(), permissions=frozenset({"auth:roles:read"}))
    with pytest.raises(Denied, match="you lack platform"):
        await access.roles.preview_permissions_of_role(without, PermissionsWanted(role, ["platform:audit:read"]))


async def test_what_an_actor_holds_is_shown_with_the_roles_that_it_comes_from(access: Access) -> None:
    ann, root = await access.add_actor("ann"), await access.add_actor("root", is_superuser=True)
    for name, permissions in (("a", CATALOGUE[:2]), ("b", CATALOGUE[1:3])):
        role = uuid7()
        await access.bench.db.run("INSERT INTO auth.roles (id, name) VALUES (%s, %s)", (role, name))
        await access.roles.set_permissions_of_role(ROOT_USER, PermissionsWanted(role, permissions))
        await access.bench.db.run("INSERT INTO auth.actor_roles VALUES (%s, %s)", (ann, role))
    await access.grants.set_permissions_of_actor(ROOT_USER, PermissionsWanted(ann, [CATALOGUE[1], CATALOGUE[3]]))
    shown = await access.grants.permissions_of_actor(ROOT_USER, ActorRef(ann))
    assert [(each.permission, each.is_direct, each.roles) for each in shown.held] == [
        (CATALOGUE[0], False, ["a"]),
        (CATALOGUE[1], True, ["a", "b"]),
        (CATALOGUE[2], False, ["b"]),
        (CATALOGUE[3], True, []),
    ]
    assert (shown.from_roles, shown.direct) == (CATALOGUE[:3], [CATALOGUE[1], CATALOGUE[3]])
    assert shown.effective == CATALOGUE[:4]
    of_root = await access.grants.permissions_of_actor(ROOT_USER, ActorRef(root))
    assert (of_root.from_roles, of_root.direct, of_root.effective) == ([], [], ["auth:superuser"])
    assert [(each.permission, each.is_direct) for each in of_root.held] == [("auth:superuser", True)]
