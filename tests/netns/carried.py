"""What a gateway's kernel carries, told without ids, so that two ways to the same end can be compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ipbackend.datapath import syscall
from ipbackend.datapath.audit import audit
from ipbackend.datapath.loader import KINDS, ROADS, pinned_program
from ipbackend.datapath.maps import PINS, Maps
from ipbackend.datapath.pins import ENTRY, PROGRAMS
from ipbackend.datapath.tables import Tables
from ipbackend.store import Store
from tests.netns.gateway import Gateway
from tests.netns.lab import Lab


def wanted(gateway: Gateway) -> Any:
    """What the store says, by names."""
    with Store(gateway.store, read_only=True) as kept:
        have = kept.configuration
    return {
        "gateway": str(have.gateway),
        "networks": sorted((one.name, str(one.cidrs)) for one in have.networks.values()),
        "balancers": sorted((one.name, str(one.vip)) for one in have.load_balancers.values()),
        "pools": sorted((one.name, sorted((str(m), m.weight) for m in one.members)) for one in have.pools.values()),
        "listeners": sorted(
            (one.name, one.port, have.pools[one.pool].name if one.pool else "") for one in have.listeners.values()
        ),
    }


def carried(lab: Lab, gateway: Gateway) -> Mapping[str, Any]:
    """Maps, programs, pins, addresses and routes."""
    pins = gateway.run_directory / PINS
    with lab["gateway"].netlink() as netlink:
        links = netlink.get_links()
        attached = {
            link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_XDP").get_attr("IFLA_XDP_PROG_ID") for link in links
        }
        addresses = sorted((a.get_attr("IFA_LOCAL"), a["prefixlen"], a["index"]) for a in netlink.get_addr())
        routes = sorted((r.get_attr("RTA_DST"), r["dst_len"]) for r in netlink.get_routes() if r["proto"] == 173)
    ours = program_id(gateway.run_directory, ENTRY)
    seen: dict[str, Any] = {
        "pins": sorted(path.name for path in pins.rglob("*") if path.parent.name != PROGRAMS) if pins.is_dir() else [],
        "files": sorted(path.name for path in gateway.run_directory.iterdir() if path.name.startswith("layout")),
        "attached": sorted(name for name, number in attached.items() if number and name != "lo"),
        "addresses": addresses,
        "routes": routes,
    }
    if ours is None:
        return seen
    with Maps(gateway.run_directory) as maps:
        roads = {name: maps["roads"].get(int(road)) for road, name in ROADS.items()}
        pinned = {name: program_id(gateway.run_directory, name) for name in KINDS}
        there = Tables(maps, -1).read()
        return seen | {
            "ours": {name: attached[name] == ours for name in seen["attached"]},
            "roads": {name: number == pinned[name] for name, number in roads.items()},
            "endpoints": {
                str(one.key): str(replace(one, next_hop=0, first=0)) + str(there.next_hops[one.next_hop])
                for one in there.endpoints.values()
            },
            "endpoint ids": all(there.endpoints[number].key == key for key, number in there.endpoint_ids.items())
            and len(there.endpoint_ids) == len(there.endpoints),
            "listeners": {
                str(key): str(replace(one, id=0, pool=0, list=0)) + _pool(there, one.pool)
                for key, one in there.listeners.items()
            },
            "VIPs": sorted(map(str, there.addresses.items())),
            "timing": [
                getattr(maps["gateway"].memory()[0], name) for name in ("rest", "closing_timeout", "snat_shift")
            ],
        }


def program_id(run_directory: Path, name: str) -> int | None:
    """The id of a pinned program."""
    fd = pinned_program(run_directory, name)
    if fd is None:
        return None
    try:
        return syscall.program_id(fd)
    finally:
        os.close(fd)


def program_tag(run_directory: Path, name: str) -> str:
    """The kernel's hash of a pinned program's instructions."""
    fd = pinned_program(run_directory, name)
    assert fd is not None, name
    try:
        fields = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
    finally:
        os.close(fd)
    return fields[fields.index("prog_tag:") + 1]


def _pool(there: Any, number: int) -> str:
    pool = there.pools.get(number)
    if pool is None:
        return "none"
    keys = [str(there.endpoints[member].key) for member in pool.members]
    return str(sorted(zip(keys, pool.weights, strict=True))) + str(pool.algorithm)


def problems(gateway: Gateway) -> list[str]:
    """Where the books do not balance."""
    with Maps(gateway.run_directory) as maps:
        return audit(maps)
