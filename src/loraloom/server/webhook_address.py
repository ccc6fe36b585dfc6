"""Addresses that webhooks may have: parsed when a job is accepted, resolved and checked when it is called."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from loraloom.errors import InputError

_MAX_LENGTH = 2000
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_TARGET = re.compile(r"[!-~]*")
# Networks whose addresses carry one of the other kind, with the bits that it starts at (from the right).
_CARRIERS = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (ipaddress.IPv6Network("::/96"), 0),  # IPv4-compatible
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)
# Teredo hides its addresses; NAT64 within one network (RFC 8215) leads into that network.
_REFUSED = (ipaddress.IPv6Network("2001::/32"), ipaddress.IPv6Network("64:ff9b:1::/48"))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a webhook goes. target: path and query, as they stand in the request line."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"


def parse(url: str) -> Address:
    """The parts of an address; raises InputError that says what is wrong with it."""
    if len(url) > _MAX_LENGTH:
        raise InputError(f"a webhook's address has at most {_MAX_LENGTH} characters, this one {len(url)}")
    if not _TARGET.fullmatch(url):
        raise InputError("a webhook's address has only ASCII characters and no spaces; escape others as %XX")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"the webhook {url[:200]!r} is no address: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise InputError("webhook must be an http or https address")
    if "@" in parts.netloc:
        raise InputError("a webhook's address has no user name in it; calls are signed instead")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secure = parts.scheme == "https"
    if port == 0:
        raise InputError("the webhook's port is 0; expected 1 to 65535")
    return Address(secure, _host_of(parts), port or (443 if secure else 80), target)


def _host_of(parts: SplitResult) -> str:
    host = (parts.hostname or "").removesuffix(".")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError as error:
            raise InputError(f"the webhook's host [{host[:60]}] is no IPv6 address") from error
        return host
    if not host or len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise InputError(
            f"the webhook's host {host[:60]!r} is no host name; expected labels of 1 to 63 letters, digits "
            "and dashes between dots"
        )
    return host


async def resolve(address: Address, allowed_hosts: Collection[str]) -> str:
    """The IP address to call. Raises InputError when it is in a private network and its host not allowed, and
    OSError when the host is not found."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    ip = str(found[0][4][0])
    if not is_public(ip) and address.host.lower() not in allowed_hosts:
        raise InputError(
            f"{address.host} is in a private network; webhooks there need --allow-webhook {address.host}"
        )
    return ip


def is_public(ip: str) -> bool:
    """Whether an IP address is one of the public internet, and so is any that it carries inside."""
    parsed = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        for network, shift in _CARRIERS:
            if parsed in network and int(parsed) > 1:
                return is_public(str(ipaddress.IPv4Address(int(parsed) >> shift & 0xFFFFFFFF)))
        if any(parsed in network for network in _REFUSED):
            return False
    return parsed.is_global and not parsed.is_multicast
