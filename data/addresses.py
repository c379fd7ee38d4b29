"""Which addresses are public: reachable on the internet, and not on this machine or in its own network.

is_public("93.184.215.14")           # True
is_public("169.254.169.254")         # False: the metadata service of a cloud machine
is_public("::ffff:127.0.0.1")        # False: this machine, as an IPv6 address
"""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Translates to IPv4 in networks without IPv4 (RFC 6052).
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# IPv4 networks that some versions of Python count as global: relays (RFC 7526), protocols (RFC 6890).
NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.88.99.0/24", "192.0.0.0/24")))


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address is a public unicast address. Raises ValueError for anything else."""
    return all(map(is_public_unicast, embedded(ipaddress.ip_address(address))))


def is_loopback(address: str) -> bool:
    """Whether packets to this address stay on this machine. Raises ValueError if it is no address."""
    return all(part.is_loopback for part in embedded(ipaddress.ip_address(address)))


def embedded(address: Address) -> tuple[Address, ...]:
    """The addresses that a packet to `address` may reach: those that it contains, or itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return (address.ipv4_mapped,)
        if address in NAT64:
            return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
        if address.sixtofour:
            return (address, address.sixtofour)
        if address.teredo:
            return (address, *address.teredo)
    return (address,)


def is_public_unicast(address: Address) -> bool:
    """Whether an address that contains no other one is public."""
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False
    special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not special and not any(address in network for network in NOT_PUBLIC)
