"""Which addresses a request of ours may reach. Whoever names a URL must not reach our network.

The name is resolved once, every address it has must be allowed, and the connection goes to
an address that was checked: a name that answers differently the next time changes nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from service.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
URL_LENGTH_MAX = 2000
PORTS = {"https": 443, "http": 80}


class TargetRefused(Exception):
    """The URL or the address behind it is not one to send to. `code` is of a closed list."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the operator allows beyond https to public addresses."""

    is_http_allowed: bool = False
    networks_allowed: Sequence[Network] = ()


def rules_of(settings: Settings) -> Rules:
    """Those of the operator's settings for webhooks."""
    return Rules(
        is_http_allowed=settings.webhook_http_allowed,
        networks_allowed=networks_of(settings.webhook_networks_allowed),
    )


def networks_of(text: str) -> tuple[Network, ...]:
    """Networks with commas between, such as `10.1.0.0/16,fd00::/8`."""
    return tuple(ipaddress.ip_network(part.strip()) for part in filter(None, text.split(",")))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A URL taken apart."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def target_of(url: str, rules: Rules) -> Target:
    """Takes a URL apart, and refuses what needs no look-up to be refused.

    Raises:
        TargetRefused: not https, with a password or fragment, malformed, or an address that
            is not allowed.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:
        raise TargetRefused("url_invalid", "This is no URL.") from None
    _check_form(url, parts, rules)
    host = (parts.hostname or "").rstrip(".")
    try:
        host = host if ":" in host else host.encode("idna").decode()
    except UnicodeError:
        raise TargetRefused("url_invalid", "The URL's host is no name.") from None
    literal = _literal(host)
    if literal is not None:
        require_allowed([literal], rules)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme=parts.scheme, host=host, port=port, path=path)


def _check_form(url: str, parts: SplitResult, rules: Rules) -> None:
    if parts.scheme != "https" and not (parts.scheme == "http" and rules.is_http_allowed):
        raise TargetRefused("scheme_refused", "The URL must begin with https://.")
    if len(url) > URL_LENGTH_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise TargetRefused("url_invalid", "The URL is too long, or not plain ASCII.")
    if parts.username is not None or parts.password is not None or "#" in url or "\\" in url:
        raise TargetRefused("url_invalid", "The URL may hold no user, password or fragment.")
    if not parts.hostname or "%" in parts.hostname:
        raise TargetRefused("url_invalid", "The URL names no host.")


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def resolve(target: Target, rules: Rules) -> Address:
    """One address of the target's host, after all of them were found allowed.

    Raises:
        TargetRefused: the name has no address, or one that is not allowed.
    """
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise TargetRefused("name_unknown", "The host has no address.") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses:
        raise TargetRefused("name_unknown", "The host has no address.")
    require_allowed(addresses, rules)
    return addresses[0]


def require_allowed(addresses: Sequence[Address], rules: Rules) -> None:
    """Raises TargetRefused unless each is public, or in a network that the operator allows."""
    for address in addresses:
        if not _is_public(address) and not _is_listed(address, rules):
            raise TargetRefused("address_refused", "The host has an address that is not public.")


def _is_listed(address: Address, rules: Rules) -> bool:
    return any(
        address.version == network.version and address in network
        for network in rules.networks_allowed
    )


def _is_public(address: Address) -> bool:
    """Also looks through IPv6 forms that carry an IPv4 address to somewhere else."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return _is_public(inner)
        if address.teredo is not None or address in _NAT64:
            return False
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
