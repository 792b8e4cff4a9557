"""Addresses to listen on, and who may call."""

from __future__ import annotations

import pytest

from lorawatch.web.address import ListenError, host_allowed, is_loopback, parse_listen_address


@pytest.mark.parametrize(
    ("text", "host", "port", "written"),
    [
        ("127.0.0.1:10910", "127.0.0.1", 10910, "127.0.0.1:10910"),
        (":10910", "127.0.0.1", 10910, "127.0.0.1:10910"),
        ("[::1]:9", "::1", 9, "[::1]:9"),
        ("localhost:0", "localhost", 0, "localhost:0"),
        (" 0.0.0.0:80 ", "0.0.0.0", 80, "0.0.0.0:80"),  # noqa: S104
    ],
)
def test_an_address_is_parsed(text: str, host: str, port: int, written: str) -> None:
    address = parse_listen_address(text)
    assert (address.host, address.port, str(address)) == (host, port, written)


@pytest.mark.parametrize(
    "text", ["", "10910", "localhost", "::1:9", "[::1]", "[::1]9", "[nonsense]:9", "x:-1", "x:70000", "x:1.5", "x:²",
             "http://x:9", "a b:9", "x\n:9", "x:", "ü:9"]
)  # fmt: skip
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ListenError) as caught:
        parse_listen_address(text)
    assert "\n" not in str(caught.value)
    assert "[::1]:10910" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("LOCALHOST", True), ("0.0.0.0", False), ("::", False),  # noqa: S104
     ("10.0.0.1", False), ("example.org", False), ("localhost.evil.example", False)],
)  # fmt: skip
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("header", ["localhost", "LocalHost:10910", "127.0.0.1:1", "[::1]:10910", "[::1]", "127.0.0.5"])
def test_requests_for_this_machine_are_answered(header: str) -> None:
    assert host_allowed(header, "127.0.0.5")


@pytest.mark.parametrize(
    "header", ["", "evil.example", "evil.example:10910", "127.0.0.1.evil.example", "localhost.evil.example",
               "[::1].evil", "[::1", "10.0.0.1", "127.0.0.6"]
)  # fmt: skip
def test_requests_for_another_name_are_refused(header: str) -> None:
    assert not host_allowed(header, "127.0.0.5")
