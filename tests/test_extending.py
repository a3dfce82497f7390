"""A new module: one folder, its migrations and one name. The module is that of docs/modules.md, `tests/extending/`."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import log_in
from tests.support.project import ROOT, Project, Running, eventually

_CHECKS_S = 300
SAMPLE = ROOT / "tests" / "extending"
GRANTED = ["orders:orders:read", "orders:orders:write"]
METHOD = '''
    @change("orders.rename_item", PUT="/orders/v1/orders/{id}/item", permission="orders:orders:write",
            raises=(OrderNotFound,), command="orders rename")
    async def rename(self, tx: Transaction, wanted: Renamed) -> Order:
        """Rename an item."""
        found = await self.orders.locked(tx, wanted.id)
        if found is None:
            raise OrderNotFound
        await tx.run("UPDATE orders.orders SET item = %s WHERE id = %s", (wanted.item, wanted.id))
        return replace(found, item=wanted.item)
'''
INPUT = '''
@dataclass(frozen=True, slots=True)
class Renamed:
    """Another item."""

    id: Annotated[UUID, Doc("Id of the order.")]
    item: Annotated[str, Len(1, 100), Doc("Name of the item.")]


'''


@dataclass
class Copy(Project):
    """A copy of the project, and the commands that succeeded in it."""

    ran: list[tuple[str, ...]] = field(default_factory=list)

    def app(self, *args: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        done = super().app(*args, **options)
        if done.returncode == 0:
            self.ran.append(args)
        return done


GUIDE = (ROOT / "docs/modules.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the samples of the guide in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def test_every_sample_of_the_guide_and_the_readme_is_part_of_the_module() -> None:
    files = [path.read_text() for path in SAMPLE.rglob("*") if path.suffix in {".py", ".sql"}]
    in_readme = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    samples = blocks("python") + blocks("sql") + in_readme
    assert (len(samples) > 15, len(in_readme)) == (True, 1)
    assert [sample for sample in samples if not any(sample in text for text in files)] == []
    assert len(samples) - 1 + len(blocks("sh")) == len(re.findall("^```[a-z]", GUIDE, re.MULTILINE))


def add_orders(copy: Copy) -> None:
    """Add the module to a copy of the project."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SAMPLE / "orders", copy.root / "app/modules/orders", ignore=skip)
    shutil.copytree(SAMPLE / "migrations", copy.root / "migrations", dirs_exist_ok=True)
    name_in_modules(copy, "MODULES = (", 'MODULES = ("orders", ')


def remove_orders(copy: Copy) -> None:
    """Remove the module again."""
    shutil.rmtree(copy.root / "app/modules/orders")
    for file in (SAMPLE / "migrations").iterdir():
        (copy.root / "migrations" / file.name).unlink()
    name_in_modules(copy, '"orders", ', "")


def name_in_modules(copy: Copy, old: str, new: str) -> None:
    path = copy.root / "app/modules/__init__.py"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.fixture
def copy(cli: Project, tmp_path: Path) -> Copy:
    """A copy of the project with the module, on an embedded database of its own."""
    made = cli.copy(tmp_path / "copy")
    copied = Copy(made.root, made.scratch, made.env, made.python, made.running, made.clients)
    add_orders(copied)
    return copied


def test_the_module_passes_every_check_and_its_own_tests(copy: Copy) -> None:
    for name in (".importlinter", "pyproject.toml", ".squawk.toml"):
        shutil.copy(ROOT / name, copy.root)
    skip = shutil.ignore_patterns("__pycache__", "test_*.py", "npm", "chaos")
    shutil.copytree(ROOT / "tests", copy.root / "tests", ignore=skip)
    shutil.copytree(SAMPLE / "tests", copy.root / "tests/modules/orders", dirs_exist_ok=True)
    shutil.copy(ROOT / "tests/test_manifests.py", copy.root / "tests")
    programs = Path(sys.executable).parent
    checks = [
        [programs / "ruff", "check", "app", "tests/modules"],
        [programs / "ruff", "format", "--check", "app", "tests/modules"],
        [programs / "basedpyright", "--pythonpath", sys.executable, "app/modules/orders"],
        [programs / "lint-imports"],
        [programs / "squawk", *copy.root.glob("migrations/*_orders_*.sql")],
        [sys.executable, "-m", "pytest", "-qp", "no:cacheprovider", "tests/test_manifests.py", "tests/modules/orders"],
    ]  # fmt: skip
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(command, cwd=copy.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
            for command in checks
        ]
        for process in started:
            stack.callback(process.kill)
        said = [process.communicate(timeout=_CHECKS_S)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(checks), "\n".join(said)
    assert re.search(r"\b1\d passed", said[-1]), said[-1]


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("domain.py", "from app.modules.orders.postgres import PostgresOrders", "layers"),
        ("postgres.py", "import app.modules.orders.orders", "layers"),
        ("orders.py", "from app.modules.auth.domain.actors import Actor", "portals"),
        ("orders.py", "import starlette", "features"),
        ("orders.py", "import app.processes", "features"),
        ("portal.py", "import psycopg", "pure"),
    ],
)
def test_a_module_that_breaks_a_contract_is_told(copy: Copy, file: str, line: str, contract: str) -> None:
    shutil.copy(ROOT / ".importlinter", copy.root)
    (copy.root / "tests/support").mkdir(parents=True)
    shutil.copy(ROOT / "tests/support/contracts.py", copy.root / "tests/support")
    path = copy.root / "app/modules/orders" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=copy.root, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    name = re.search(rf"contract:{contract}\]\nname = (.+)", (ROOT / ".importlinter").read_text())
    assert name
    assert f"{name[1]} BROKEN" in " ".join(done.stdout.split())


def test_it_works_in_its_own_process_gains_an_action_and_is_removed_without_a_trace(copy: Copy) -> None:
    copy.env["ORDERS_MAX_OPEN"] = "3"
    everything = copy.start("run-all-in-one")
    root = log_in(copy, everything)
    orders = copy.start("run-orders-http")
    client = customer(copy, root, orders)
    check_http_and_jobs(copy, client)
    check_commands(copy, root, client)
    assert {p["name"] for p in root.get("/platform/v1/processes").json()["items"]} == {
        "run-all-in-one",
        "run-orders-http",
    }

    assert orders.stop() == 0
    path = copy.root / "app/modules/orders/orders.py"
    text = path.read_text()
    path.write_text(text.replace("PACK = Task(", INPUT + "PACK = Task(") + METHOD)
    orders = copy.start("run-orders-http")
    again = copy.client(orders.ready())
    again.headers = client.headers
    renamed = again.put(f"/orders/v1/orders/{order_ids(again)[0]}/item", json={"item": "green tea"})
    assert (renamed.status_code, renamed.json()["item"]) == (200, "green tea")
    assert (
        again.get("/openapi.json").json()["paths"]["/orders/v1/orders/{id}/item"]["put"]["summary"] == "Rename an item."
    )
    done = copy.app("orders", "rename", order_ids(again)[1], "--item", "black tea", "--json")
    assert json_of(done)["item"] == "black tea"
    audited = root.get("/platform/v1/audit", params={"action": "orders.rename_item"}).json()["items"]
    assert [entry["target"] for entry in audited] == order_ids(again)[1::-1]

    assert copy.app("queues", "pause", "default").returncode == 0
    assert copy.app("schedules", "trigger", "orders.prune").returncode == 0  # a job that nobody will run
    assert [orders.stop(), everything.stop()] == [0, 0]
    check_removal(copy)
    wanted = {line.removeprefix("app ") for block in blocks("sh") for line in block.splitlines()}
    assert wanted <= {re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", " ".join(args)) for args in copy.ran}


def customer(copy: Copy, root: httpx.Client, orders: Running) -> httpx.Client:
    """Return a client of the module's process, signed in as a user who was granted its permissions."""
    user = {"username": "customer", "password": "a password that is long enough"}
    actor = root.post("/auth/v1/actors", json={"type": "user", **user}).json()
    session = root.post("/auth/v1/login", json=user).json()["session"]
    client = copy.client(orders.ready())
    client.headers["Authorization"] = f"Bearer {session['access_token']}"
    assert client.get("/orders/v1/orders").status_code == 403
    granted = root.put(f"/auth/v1/actors/{actor['id']}/permissions", json={"permissions": GRANTED})
    assert granted.status_code == 200, granted.text
    return client


def check_http_and_jobs(copy: Copy, client: httpx.Client) -> None:
    """Place orders while no job runs, list them in pages, then let the subscriber and the task run."""
    assert copy.app("queues", "pause", "default").returncode == 0
    answers = [client.post("/orders/v1/orders", json={"item": f"tea {number}"}) for number in range(4)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 409]
    assert answers[3].json()["code"] == "TOO_MANY_ORDERS"
    assert client.post("/orders/v1/orders", json={"item": "", "quantity": 0}).json()["code"] == "INVALID_INPUT"
    first = client.get("/orders/v1/orders", params={"limit": 2}).json()
    rest = client.get("/orders/v1/orders", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [order["item"] for order in first["items"] + rest["items"]] == ["tea 2", "tea 1", "tea 0"]
    assert rest["next_cursor"] is None
    assert copy.app("queues", "resume", "default").returncode == 0
    packed = {"state": "packed"}
    eventually(lambda: len(client.get("/orders/v1/orders", params=packed).json()["items"]) == 3)
    refused = client.post(f"/orders/v1/orders/{answers[0].json()['id']}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "ORDER_PACKED")


def check_commands(copy: Copy, root: httpx.Client, client: httpx.Client) -> None:
    """The commands of the module, and those that show what it has."""
    assert copy.app("queues", "pause", "default").returncode == 0
    placed = json_of(copy.app("orders", "place", "--item", "coffee", "--json"))
    assert (placed["item"], placed["quantity"], placed["state"]) == ("coffee", 1, "placed")
    assert copy.app("orders", "cancel", placed["id"], "--no-input").returncode == 2
    for part in (placed["id"], placed["id"][-8:]):
        assert copy.app("orders", "cancel", part, "--yes").returncode == 0
    assert copy.app("queues", "resume", "default").returncode == 0
    packed = json_of(copy.app("orders", "list", "--state", "packed", "--json"))["items"]
    assert [order["item"] for order in packed] == ["tea 2", "tea 1", "tea 0"]
    assert placed["id"] == order_ids(client)[0]
    assert "run-orders-http" in copy.app("--help").stdout
    scheduled = json_of(copy.app("schedules", "list", "--json"))["items"]
    assert "orders.prune" in [schedule["name"] for schedule in scheduled]
    assert copy.app("schedules", "trigger", "orders.prune").returncode == 0
    prunes = {"task": "orders.prune", "state": "done"}
    eventually(lambda: root.get("/platform/v1/jobs", params=prunes).json()["items"])
    examined = json_of(copy.app("doctor", "--only", "orders", "--json"))
    assert [check["status"] for check in examined["checks"]] == ["ok"]
    explained = json_of(copy.app("config", "explain", "orders.max_open", "--json"))
    assert (explained["value"], explained["source"]) == (3, "ORDERS_MAX_OPEN")


def check_removal(copy: Copy) -> None:
    """Remove the module as docs/modules.md says; nothing of it is left but history."""
    assert copy.app("migrate", "down", "--module", "orders", "--yes").returncode == 0
    remove_orders(copy)
    listed = json_of(copy.app("orphans", "list", "--json"))["items"]
    assert [(orphan["kind"], orphan["name"]) for orphan in listed] == [
        ("job", "orders.prune"),
        ("schedule", "orders.prune"),
        ("subscription", "orders.pack_placed_orders"),
    ]
    removed = copy.app("orphans", "remove", "--yes")
    assert removed.stdout == "removed 1 schedules, 1 subscriptions, 1 jobs and 0 dead letters\n", removed.stderr
    assert json_of(copy.app("orphans", "list", "--json"))["items"] == []
    assert "orders" not in copy.app("--help").stdout
    assert copy.app("config", "validate").returncode == 0
    everything = copy.start("run-all-in-one")
    tables = log_in(copy, everything).get("/platform/v1/schedules").json()["items"]
    assert [row["name"] for row in tables if row["name"].startswith("orders.")] == []
    assert everything.stop() == 0


def json_of(done: "subprocess.CompletedProcess[str]") -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def order_ids(client: httpx.Client) -> list[str]:
    return [order["id"] for order in client.get("/orders/v1/orders").json()["items"]]
