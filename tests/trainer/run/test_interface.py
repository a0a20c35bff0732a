"""Gloo talks over the interface that NCCL was told, or over the one that leads to the first node."""

from __future__ import annotations

import os
import socket

import psutil
import pytest

from trainer.run import interface
from trainer.run.interface import choose_interface, interface_of_nccl, interface_to

HERE = ("lo", "docker0", "eth0", "eth1", "ib0")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("eth1", "eth1"),
        ("eth", "eth0"),
        ("=eth1", "eth1"),
        ("=eth", ""),
        ("=bond0,ib0", "ib0"),
        ("bond,ib", "ib0"),
        ("^docker", ""),
        ("^=docker0,lo", ""),
        ("", ""),
    ],
)
def test_what_nccl_was_told(said: str, expected: str) -> None:
    assert interface_of_nccl(said, HERE) == expected


def test_a_route_leads_over_an_interface_that_others_can_reach() -> None:
    addresses = {name: [a.address for a in found] for name, found in psutil.net_if_addrs().items()}
    outward = [(name, own) for name, found in addresses.items() for own in found if own.startswith(("10.", "172."))]
    for name, own in outward:
        assert interface_to(own, addresses) == name
    assert interface_to("localhost", addresses) == ""
    assert interface_to("no-such-host.invalid", addresses) == ""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
    routes = {"node0": "eth0", "192.0.2.1": "ib0"}
    monkeypatch.setattr(interface, "interface_to", lambda host, _: routes.get(host, ""))
    found = {name: [] for name in HERE}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    return monkeypatch


def test_the_choice(environment: pytest.MonkeyPatch) -> None:
    choose_interface("node0")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"
    choose_interface("itself")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0", "what is set stays"
    environment.setenv("GLOO_SOCKET_IFNAME", "")
    choose_interface("itself")  # the first node, whose own name leads to the loopback
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    environment.setenv("GLOO_SOCKET_IFNAME", "")
    environment.setenv("NCCL_SOCKET_IFNAME", "=eth1")
    choose_interface("node0")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth1"


def test_without_a_route_the_choice_is_gloos(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(interface, "interface_to", lambda *_: "")
    choose_interface(socket.gethostname())
    assert os.environ["GLOO_SOCKET_IFNAME"] == ""
