"""URLs and IP addresses that downloads may use."""

from __future__ import annotations

import pytest

from hafvt.data.http_client import is_public, parse_url


def test_parse_url_special_characters_are_percent_encoded():
    assert parse_url("HTTPS://Bücher.example/ä b?q=ü&p=%20#part").target == "/%C3%A4%20b?q=%C3%BC&p=%20"
    assert parse_url("https://Bücher.example/").host_header == "xn--bcher-kva.example"
    assert parse_url("http://[2606:4700::1]:81/").host_header == "[2606:4700::1]:81"


@pytest.mark.parametrize(
    "ip", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]
)
def test_is_public_public_address_returns_true(ip):
    assert is_public(ip)


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff0e::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
        *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "::127.0.0.1"),
    ],
)
def test_is_public_other_address_returns_false(ip):
    assert not is_public(ip)
