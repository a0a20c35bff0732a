"""The network interface over which gloo, the ranks' CPU group, talks between nodes."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Collection, Mapping

import psutil

logger = logging.getLogger(__name__)
_ANYWHERE = "192.0.2.1"  # an address of no one (RFC 5737): its route is the default one


def choose_interface(master: str) -> None:
    """Set GLOO_SOCKET_IFNAME, for ranks on several nodes, where it is unset. Left to itself, gloo listens where this
    host's name leads to, which on many machines is the loopback interface, and no other node finds it.

    master  name or address of the first node
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    addresses = {name: [a.address for a in found] for name, found in psutil.net_if_addrs().items()}
    named = interface_of_nccl(os.environ.get("NCCL_SOCKET_IFNAME", ""), addresses)
    chosen = named or next(filter(None, (interface_to(to, addresses) for to in (master, _ANYWHERE))), "")
    if chosen:
        why = "NCCL_SOCKET_IFNAME" if named else f"the route to {master}"
        logger.info("gloo talks over %s, as %s says; GLOO_SOCKET_IFNAME would choose another", chosen, why)
        os.environ["GLOO_SOCKET_IFNAME"] = chosen


def interface_of_nccl(said: str, interfaces: Collection[str]) -> str:
    """The first of this node's interfaces that NCCL_SOCKET_IFNAME names: by prefixes, or in full after a "=".

    "" where it names none, or (after a "^") only those that shall not be taken.
    """
    if said.startswith("^"):
        return ""
    for wanted in filter(None, said.removeprefix("=").split(",")):
        for name in sorted(interfaces):
            if name == wanted or (not said.startswith("=") and name.startswith(wanted)):
                return name
    return ""


def interface_to(host: str, interfaces: Mapping[str, Collection[str]]) -> str:
    """Which of the interfaces (their addresses by name) packets to `host` leave by; "" where that is the loopback, or
    there is no route. Nothing is sent."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            source = probe.getsockname()[0]
    except OSError:
        return ""
    if ipaddress.ip_address(source.partition("%")[0]).is_loopback:
        return ""
    return next((name for name, own in interfaces.items() if source in own), "")
