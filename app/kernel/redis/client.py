"""The clients of redis-py. Only processes whose settings name a URL import it."""

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from app.kernel.config import Misconfigured
from app.kernel.product import NAME
from app.kernel.redis.address import Address
from app.kernel.redis.connections import MOST_CONNECTIONS, Client

_CONNECT_S = 0.5
_SPARE = 4  # connections above those in use, for probes


def client(where: Address, root_cert: str, timeout_s: float) -> tuple[Client, Callable[[], Awaitable[None]]]:
    """Return a client, and what closes its connections so that it opens others. Raises Misconfigured."""
    tls: dict[str, Any] = {"ssl": True, **_trusted(root_cert)} if where.tls else {}
    shared: dict[str, Any] = {
        # the caller has a timeout; these also end what it no longer waits for
        "socket_timeout": max(1.0, 2 * timeout_s),
        "socket_connect_timeout": max(_CONNECT_S, timeout_s),
        "protocol": 2,  # and no driver_info: a connection is open after AUTH and SELECT
        "driver_info": None,
        **tls,
    }
    # no retry: what fails opens the circuit
    given: dict[str, Any] = {
        **shared,
        "username": where.user,
        "password": where.password,
        "max_connections": MOST_CONNECTIONS + _SPARE,
        "retry": Retry(NoBackoff(), 0),
    }
    if where.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in where.hosts]
        cluster: Any = RedisCluster(startup_nodes=nodes, **given)
        return cluster, cluster.aclose
    if where.kind == "sentinel":
        login = {"username": where.sentinel_user, "password": where.sentinel_password}
        sentinel: Any = Sentinel(list(where.hosts), sentinel_kwargs={**shared, **login, "retry": Retry(NoBackoff(), 0)})
        primary: Any = sentinel.master_for(where.service, db=where.db, **given)
        return _Closing(primary, sentinel), primary.connection_pool.disconnect
    host, port = where.hosts[0]
    single: Any = Redis(host=host, port=port, db=where.db, **given)
    return single, single.connection_pool.disconnect


class _Closing:
    """The primary behind Sentinel; closes the connections to the Sentinels too."""

    def __init__(self, primary: Any, sentinel: Any) -> None:
        self.execute_command = primary.execute_command
        self._parts = (primary, sentinel)

    async def aclose(self) -> None:
        for part in self._parts:
            await part.aclose()


def _trusted(root_cert: str) -> dict[str, str]:
    """Return the option for trusted certificates. Raises Misconfigured for a file that has none."""
    if root_cert == "system":
        return {}
    try:
        ssl.create_default_context(cafile=root_cert)
    except OSError as error:
        reason = f"redis.ssl_root_cert: {root_cert}: {error.strerror or 'no certificate (PEM)'}"
        raise Misconfigured(reason, hint=f"{NAME} config explain redis.ssl_root_cert") from error
    return {"ssl_ca_certs": root_cert}
