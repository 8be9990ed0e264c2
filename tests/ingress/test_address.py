"""Where the door listens."""

from __future__ import annotations

import socket

import pytest

from tinkergate.ingress.address import (
    Address,
    ListenError,
    check_free,
    is_loopback,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7700", Address("127.0.0.1", 7700)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_addresses_are_read_and_written_alike(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "7700", ":7700", "localhost", "localhost:", "h:port", "h:65536", "h:-1", "::1:7700"],
)
def test_what_is_no_address_is_refused_with_its_text(text):
    with pytest.raises(ListenError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("8.8.8.8", False),
    ],
)
def test_only_loopback_is_loopback(host, loopback):
    assert is_loopback(Address(host, 7700)) is loopback


def test_a_host_that_does_not_exist_is_named():
    with pytest.raises(ListenError, match=r"no host 'nowhere\.invalid'"):
        is_loopback(Address("nowhere.invalid", 7700))


def test_a_taken_port_is_told_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ListenError) as caught:
            check_free(address, "--grpc")
    assert str(caught.value) == (
        f"port {address.port} is in use; another gateway? try --grpc 127.0.0.1:0"
    )
    check_free(address, "--grpc")


def test_a_port_that_another_server_shares_is_taken_all_the_same():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ListenError, match="is in use"):
            check_free(Address("127.0.0.1", other.getsockname()[1]), "--grpc")


def test_an_address_of_another_machine_is_told():
    with pytest.raises(ListenError, match=r"this machine has no address 192\.0\.2\.1"):
        check_free(Address("192.0.2.1", 0), "--grpc")
