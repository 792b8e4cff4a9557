"""Where the web server listens: parsing an address, and who may call it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

_LOOPBACK = "127.0.0.1"
_EXAMPLES = "use HOST:PORT, for example 127.0.0.1:10910 or [::1]:10910"


class ListenError(Exception):
    """The server cannot listen: says in one line where, why and what to do."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A host and a port; port 0 lets the system choose one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen_address(text: str) -> ListenAddress:
    """The address that ``text`` names: ``127.0.0.1:10910``, ``[::1]:10910``, ``localhost:0``; ``:10910`` is loopback.

    Raises:
        ListenError: ``text`` is no address.
    """
    host, colon, port_text = text.strip().rpartition(":")
    if not colon or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
        raise ListenError(f"{text!r} is not an address to listen on: {_EXAMPLES}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ListenError(f"{text!r} is not an address to listen on: {_EXAMPLES}")
    elif ":" in host:
        raise ListenError(f"{text!r} is not an address to listen on: write an IPv6 address in brackets, [::1]:10910")
    elif not (host.isascii() and host.isprintable()) or any(char in host for char in " /\\@?#"):
        raise ListenError(f"{text!r} is not an address to listen on: {_EXAMPLES}")
    # An empty host means every interface elsewhere; here nothing beyond loopback is opened unless it is spelled out.
    return ListenAddress(host or _LOOPBACK, int(port_text))


def is_loopback(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or a loopback address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_allowed(header: str, bound: str) -> bool:
    """Whether a request whose ``Host`` header is ``header`` may be answered by a server bound to ``bound``.

    A web page can point its own name at 127.0.0.1 and so read what is served there (DNS rebinding); its name then
    stands in the header. The port is not compared: a forwarded port differs.
    """
    if header.startswith("["):
        host, bracket, rest = header[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return False
    else:
        host = header.partition(":")[0]
    host = host.lower().rstrip(".")
    return host in ("localhost", _LOOPBACK, "::1", bound.lower())


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
