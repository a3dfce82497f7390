"""Addresses: one spelling, one limit, whatever their family or form."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.kernel.addresses import canonical, endpoints, limited, network, parsed

V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = (
    st.integers(2**64, 2**128 - 1)  # below are the addresses that embed one of IPv4
    .map(IPv6Address)
    .filter(lambda a: a not in network("64:ff9b::/96"))
)
PORTS = st.integers(0, 65535)


def spellings(address: IPv4Address | IPv6Address, port: int) -> list[str]:
    """Return every way in which proxies and sockets write an address."""
    if isinstance(address, IPv4Address):
        number = int(address)
        hexadecimal = f"{number >> 16:x}:{number & 0xFFFF:x}"
        mapped = [f"::ffff:{address}", f"::FFFF:{hexadecimal}", f"0:0:0:0:0:ffff:{address}", f"64:ff9b::{address}"]
        mapped += [f"::ffff:0:{address}", *([f"::{address}"] if number > 0xFFFF else [])]
        plain = [str(address), f"{address}:{port}", *mapped, *(f"[{text}]:{port}" for text in mapped)]
    else:
        short, long = str(address), address.exploded
        forms = [
            short,
            long,
            short.upper(),
            long.upper(),
            ":".join(part.lstrip("0") or "0" for part in long.split(":")),
        ]
        plain = [*forms, *(f"{text}%eth0" for text in forms)]
        plain += [f"[{text}]" for text in plain] + [f"[{text}]:{port}" for text in plain]
    return [form for text in plain for form in (text, f" {text}\t", f'"{text}"')]


@given(V4 | V6, PORTS)
def test_every_form_of_an_address_has_one_spelling_and_one_limit(address: IPv4Address | IPv6Address, port: int) -> None:
    forms = spellings(address, port)
    assert {canonical(form) for form in forms} == {str(address)}
    assert len({limited(form) for form in forms}) == 1


@given(V6, st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1))
def test_an_ipv6_client_is_limited_by_its_64_and_its_neighbours_are_not(
    address: IPv6Address, host: int, other: int
) -> None:
    prefix = int(address) >> 64
    sibling, stranger = IPv6Address(prefix << 64 | host), IPv6Address((prefix ^ other) << 64 | host)
    assume(all(isinstance(parsed(str(each)), IPv6Address) for each in (address, sibling, stranger)))
    assert limited(str(sibling)) == limited(str(address))
    assert limited(str(stranger)) != limited(str(address))


@given(V4, V4)
def test_an_ipv4_client_is_limited_alone(one: IPv4Address, other: IPv4Address) -> None:
    assert (limited(f"::ffff:{one}") == limited(str(other))) == (one == other)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", '""', "unknown", "_hidden", "_SEVKISEK", "for=192.0.2.60", "localhost", "1.2.3", "1.2.3.4.5"),
        *("256.1.1.1", "010.0.0.1", "0x7f.1", "2130706433", "1.2.3.4/8", "1.2.3.4%eth0", "1.2.3.4:", "1.2.3.4:x"),
        *("1.2.3.4:65536", "1.2.3.4:123456", "1.2.3.4 5", "1.2.3.4;5", "[1.2.3.4", "::1]", "[::1]x", "[]", "[::1]:"),
        *("2001:db8::1::2", "12345::", ":::", "2001:db8::g", '"1.2.3.4', "\u0661.2.3.4", "1.2.3.4\0", "a" * 10_000),
    ],
)
def test_what_is_no_address_has_no_spelling(text: str) -> None:
    assert canonical(text) == ""


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.9.9.9", "11.0.0.0"),
        ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.0"),
        ("::ffff:10.0.0.5", "10.0.0.5", "10.0.0.6"),
        ("2001:DB8::/32", "2001:db8:ffff::1", "2001:db9::"),
    ],
)
def test_a_network_holds_its_addresses_whatever_its_form(text: str, inside: str, outside: str) -> None:
    assert ip_address(inside) in network(text)
    assert ip_address(outside) not in network(text)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("db", [("db", 5432)]),
        ("db1,db2:5433", [("db1", 5432), ("db2", 5433)]),
        (
            "10.0.0.1:1,::1,[::1]:65535,fe80::1%eth0",
            [("10.0.0.1", 1), ("::1", 5432), ("::1", 65535), ("fe80::1%eth0", 5432)],
        ),
        ("/run/a:b,@abstract", [("/run/a:b", 5432), ("@abstract", 5432)]),
    ],
)
def test_hosts_have_their_own_port_or_the_common_one(hosts: str, expected: list[tuple[str, int]]) -> None:
    assert endpoints(hosts, 5432) == expected


@pytest.mark.parametrize("hosts", ["", "a,", "a:", ":1", "a:0", "a:65536", "a:x", "[::1", "[a]b", "[]:1"])
def test_what_is_no_host_with_a_port_is_refused(hosts: str) -> None:
    with pytest.raises(ValueError, match="expected a host"):
        endpoints(hosts, 5432)
