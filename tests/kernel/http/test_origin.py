"""Where a request comes from, as far as it can be believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.addresses import networks
from app.kernel.http.middleware.meta_inject import client_address, origin, scheme

PROXIES = networks(["10.0.0.0/8", "2001:db8:1::/48"])
CLIENT, FORGED = "198.51.100.7", "203.0.113.9"


def came_from(peer: str | None, *lines: str, trusted: bool = True, name: bytes = b"x-forwarded-for") -> str:
    headers = [(b"host", b"x"), *((name, line.encode("latin-1")) for line in lines)]
    scope = {"client": (peer, 40000) if peer is not None else None, "headers": headers}
    return client_address(scope, PROXIES if trusted else ())


@pytest.mark.parametrize(
    ("peer", "lines", "address"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [CLIENT], CLIENT),
        ("10.0.0.1", ["198.51.100.7:40000"], CLIENT),
        ("10.0.0.1", ["::ffff:198.51.100.7"], CLIENT),
        ("10.0.0.1", ['"[2001:DB8::0:1]:443"'], "2001:db8::1"),
        ("10.0.0.1", ["fe80::1%eth0"], "fe80::1"),
        ("::ffff:10.0.0.1", [CLIENT], CLIENT),
        ("2001:db8:1::1%eth0", [CLIENT], CLIENT),
        ("10.0.0.1", [f"{FORGED}, {CLIENT}"], CLIENT),
        ("10.0.0.1", [FORGED, CLIENT], CLIENT),
        ("10.0.0.1", [f"{FORGED}, {CLIENT}, 10.0.0.2", "10.0.0.3:80, ::ffff:10.0.0.4"], CLIENT),
        ("10.0.0.1", ["10.0.0.3", "10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [f"{CLIENT}, ,\t,", "", " , 10.0.0.2,"], CLIENT),
        ("10.0.0.1", [f"{CLIENT}, unknown"], "10.0.0.1"),
        ("10.0.0.1", [f"{CLIENT}, _hidden, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [f"for={CLIENT}"], "10.0.0.1"),
        ("10.0.0.1", ["\xff\xfe"], "10.0.0.1"),
        (FORGED, [CLIENT], FORGED),
        ("::ffff:203.0.113.9", [CLIENT], FORGED),
        (None, [CLIENT], ""),
    ],
)
def test_the_address_is_the_last_that_no_trusted_proxy_has(peer: str | None, lines: list[str], address: str) -> None:
    assert came_from(peer, *lines) == address


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8:1::1"])
def test_nothing_is_believed_where_no_proxy_is_trusted(peer: str) -> None:
    assert came_from(peer, CLIENT, trusted=False) == came_from(peer, trusted=False)


@pytest.mark.parametrize("name", [b"forwarded", b"x-real-ip", b"x_forwarded_for", b"x-client-ip", b"true-client-ip"])
def test_no_other_header_says_where_a_request_comes_from(name: bytes) -> None:
    assert came_from("10.0.0.1", CLIENT, f"for={CLIENT}", name=name) == "10.0.0.1"


@given(st.lists(st.text(st.characters(max_codepoint=255, exclude_characters="\n\r"), max_size=40), max_size=6))
def test_what_a_client_writes_before_its_proxy_never_matters(forged: list[str]) -> None:
    assert came_from("10.0.0.1", *forged, CLIENT) == CLIENT
    assert came_from("10.0.0.1", ",".join([*forged, CLIENT]), "10.0.0.2") == CLIENT


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1", b"https", "https"),
        ("10.0.0.1", b"gopher", "http"),
        ("10.0.0.1", None, "http"),
        (FORGED, b"https", "http"),
        (None, b"https", "http"),
    ],
)
def test_the_scheme_is_that_of_the_connection_or_what_a_trusted_proxy_says(
    peer: str | None, forwarded: bytes | None, expected: str
) -> None:
    headers = [] if forwarded is None else [(b"x-forwarded-proto", forwarded)]
    scope = {"client": (peer, 1) if peer else None, "scheme": "http", "headers": headers}
    assert scheme(scope, PROXIES) == expected


def test_a_chain_of_thousands_is_not_walked_to_its_end() -> None:
    assert came_from("10.0.0.1", ",".join([CLIENT, *["10.0.0.2"] * 5000])) == "10.0.0.2"


def test_a_user_agent_is_printable_and_short() -> None:
    scope = {"client": ("10.0.0.1", 1), "headers": [(b"user-agent", b"a\x1b[31m\xe9" + b"x" * 1000)]}
    found = origin(scope, ())
    assert found.user_agent.startswith("a?[31m\xe9x")
    assert len(found.user_agent) == 256
