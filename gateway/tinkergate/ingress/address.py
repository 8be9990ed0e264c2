"""Where a door listens: reading the address, judging it, and finding out early why it fails."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import NamedTuple


class ListenError(Exception):
    """The door cannot listen as asked. The text is written for people, one line."""


class Address(NamedTuple):
    """A host and a port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read HOST:PORT, with an IPv6 host in brackets. Raises ListenError."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ListenError(f"{text!r} is no HOST:PORT: IPv6 hosts go in brackets, as in [::1]:7700")
    if not separator or not host:
        raise ListenError(f"{text!r} is no HOST:PORT, such as 127.0.0.1:7700")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ListenError(f"{text!r} has no port from 0 to 65535")
    return Address(host, int(port))


def is_loopback(address: Address) -> bool:
    """Whether only this machine can reach the address. Raises ListenError if there is no such
    host."""
    return all(ipaddress.ip_address(host).is_loopback for _, host in _resolve(address))


def check_exposure(address: Address, *, guarded: bool, insecure_allowed: bool) -> None:
    """Raise ListenError for a door that everybody could come in by: one beyond loopback, where
    nothing `guarded` it and the risk was not taken on purpose."""
    if guarded or insecure_allowed or is_loopback(address):
        return
    raise ListenError(
        f"{address} can be reached from other machines, so it needs TLS (--tls-cert, --tls-key) "
        "and a way to know the callers (TINKERGATE_API_KEY, or --tls-client-ca); listen on "
        "127.0.0.1, or take the risk with --allow-insecure-bind"
    )


def check_free(address: Address, flag: str) -> None:
    """Raise ListenError if the address cannot be listened on; `flag` is what sets it. gRPC would
    only say that binding failed, after writing its own lines to stderr."""
    for family, host in _resolve(address):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As gRPC does: ports of connections that just ended are free. A port that somebody
            # listens on is not, for all that.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, address.port))
            except OSError as error:
                raise ListenError(_explain(address, error, flag)) from None


def _resolve(address: Address) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ListenError(f"there is no host {address.host!r}: {error.strerror}") from None
    # The scope of a link-local address is no part of what ipaddress reads.
    return [(family, str(sockaddr[0]).partition("%")[0]) for family, _, _, _, sockaddr in found]


def _explain(address: Address, error: OSError, flag: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"port {address.port} is in use; another gateway? "
                f"try {flag} {Address(address.host, 0)}"
            )
        case errno.EACCES:
            return f"port {address.port} needs privileges; try one from 1024 on"
        case errno.EADDRNOTAVAIL:
            return f"this machine has no address {address.host}"
        case number:
            return f"cannot listen on {address}: {os.strerror(number or 0)}"
