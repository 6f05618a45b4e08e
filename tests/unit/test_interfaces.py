"""Interfaces by the names that the settings have for them, whatever becomes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipbackend.errors import NetworkError
from ipbackend.interfaces import Interfaces
from ipbackend.network import Interface

NAMES = ("eth0", "eth1")


class Kernel:
    """As much of `Network` as is asked."""

    def __init__(self) -> None:
        self.links = [Interface(1 + at, name, bytes(6), 1500, True) for at, name in enumerate(NAMES)]

    def interfaces(self) -> dict[str, Interface]:
        return {link.name: link for link in self.links}

    def change(self, at: int, **what: Any) -> None:
        self.links[at] = replace(self.links[at], **what)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def interfaces(kernel: Kernel) -> Interfaces:
    made = Interfaces(kernel)  # type: ignore[arg-type]
    made.look(NAMES)
    return made


def test_one_that_was_never_there_is_refused(interfaces: Interfaces) -> None:
    with pytest.raises(NetworkError, match=r"there is no interface eth9 \(there are eth0, eth1\)"):
        interfaces.look(("eth0", "eth9"))


def test_nothing_is_said_of_what_is_well(interfaces: Interfaces) -> None:
    interfaces.look(NAMES)
    assert (interfaces.problems(NAMES), interfaces.unheard(), interfaces.replaced()) == ([], set(), [])


def test_a_renamed_one_is_known_by_its_number(kernel: Kernel, interfaces: Interfaces) -> None:
    kernel.change(1, name="lan0")
    links = interfaces.look(NAMES)
    assert (links["eth1"].index, links["eth1"].up, links["eth1"].there) == (2, True, True)
    assert "interface eth1 is called lan0 now" in interfaces.problems(NAMES)[0]


def test_one_that_is_gone_is_as_it_was_and_down(kernel: Kernel, interfaces: Interfaces) -> None:
    del kernel.links[1]
    links = interfaces.look(NAMES)
    assert (links["eth1"].index, links["eth1"].up, links["eth1"].there) == (2, False, False)
    assert interfaces.problems(NAMES)[0].startswith("interface eth1 is gone")
    kernel.links.append(Interface(7, "eth1", bytes(6), 1500, True))
    assert interfaces.look(NAMES)["eth1"].index == 7
    assert interfaces.replaced() == [(2, 7)]
    assert interfaces.replaced() == []
    assert interfaces.unheard() == {"eth1"}
    assert interfaces.problems(NAMES) == []


@pytest.mark.parametrize(
    ("what", "unheard"), [({"up": False}, set()), ({"mac": b"\2\0\0\0\0\1"}, {"eth0"}), ({"mtu": 1400}, set())]
)
def test_neighbours_hear_of_what_concerns_them(
    kernel: Kernel, interfaces: Interfaces, what: dict[str, Any], unheard: set[str]
) -> None:
    kernel.change(0, **what)
    interfaces.look(NAMES)
    assert interfaces.unheard() == unheard
    kernel.change(0, up=True)
    interfaces.look(NAMES)
    assert interfaces.unheard() == ({"eth0"} if "up" in what else set())
