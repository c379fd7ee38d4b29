"""data/addresses.py against the registries of special addresses, compared bit by bit."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.addresses import is_loopback, is_public

# IANA's registry of special IPv4 addresses (RFC 6890 and its updates), multicast and reserved space included.
SPECIAL = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
)


def bits(address):
    """An IPv4 address as 32 binary digits."""
    return "".join(f"{int(part):08b}" for part in address.split("."))


PREFIXES = tuple(bits(network.split("/")[0])[: int(network.split("/")[1])] for network in SPECIAL)


def near(prefix):
    """Addresses inside a network, and outside but close to it."""
    n_free = 32 - len(prefix)
    inside = st.integers(0, 2**n_free - 1).map(lambda rest: (int(prefix, 2) << n_free) + rest)
    return inside | inside.map(lambda address: address ^ (1 << n_free))


ADDRESSES = (st.integers(0, 2**32 - 1) | st.sampled_from(PREFIXES).flatmap(near)).map(
    lambda number: str(ipaddress.IPv4Address(number))
)


@given(ADDRESSES)
@example("169.254.169.254")
@example("8.8.8.8")
def test_ipv4_addresses_and_the_ipv6_addresses_that_contain_them(address):
    expected = not bits(address).startswith(PREFIXES)
    number = int(bits(address), 2)
    sixtofour = f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1"
    for form in (address, f"::ffff:{address}", f"64:ff9b::{address}", sixtofour):
        assert is_public(form) == expected
    assert is_loopback(address) == is_loopback(f"::ffff:{address}") == address.startswith("127.")


SPECIAL_IPV6 = (
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fdff::1", "fec0::1", "ff02::1", "ff0e::1"),
    *("100::1", "2001:db8::1", "64:ff9b:1::1", "::127.0.0.1", "4000::1", "e000::1"),
    # Teredo, where the relay or (inverted) the client has the address 127.0.0.1.
    *("2001:0:7f00:1::f7f7:f7f7", "2001:0:808:808::80ff:fffe"),
)


@pytest.mark.parametrize("address", SPECIAL_IPV6)
def test_special_ipv6_addresses(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["2606:4700:4700::1111", "2a00:1450:4001:830::200e", "2400:cb00::1"])
def test_public_ipv6_addresses(address):
    assert is_public(address) and not is_loopback(address)


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "1.2.3", "::g"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError):  # noqa: PT011, the message is Python's
        is_public(text)
