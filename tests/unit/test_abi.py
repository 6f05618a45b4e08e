"""What Python repeats of bpf/abi.h is what stands there."""

import re
from enum import IntEnum

import pytest

from ipbackend import abi, model, schedule, sizing
from ipbackend.datapath.source import bpf_directory

HEADER = re.sub(r"/\*.*?\*/", "", (bpf_directory() / "abi.h").read_text(), flags=re.DOTALL)
CONSTANTS = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)\s*$", HEADER, flags=re.MULTILINE)}


def enum_of(name: str) -> dict[str, int]:
    """An enum's names and numbers, counted as C counts."""
    (body,) = re.findall(rf"enum {name} {{(.*?)}};", HEADER, flags=re.DOTALL)
    numbers: dict[str, int] = {}
    following = 0
    for entry in filter(None, (part.strip() for part in body.split(","))):
        label, _, value = entry.partition("=")
        numbers[label.strip()] = following = int(value) if value else following
        following += 1
    return numbers


@pytest.mark.parametrize(
    ("mirror", "name", "prefix", "count"),
    [
        (abi.Verdict, "verdict", "", "VERDICTS"),
        (abi.Road, "road", "ROAD_", "ROADS"),
        (abi.Role, "role", "ROLE_", None),
        (abi.Phase, "phase", "SLOT_", None),
        (abi.SweepMode, "sweep_mode", "SWEEP_", None),
        (abi.EventKind, "event_kind", "EVENT_", None),
        (abi.Ending, "ending", "ENDING_", None),
        (abi.PoolWord, "pool_word", "POOL_", None),
        (abi.Algorithm, "algorithm", "ALGORITHM_", None),
        (abi.Access, "access", "ACCESS_", None),
    ],
)
def test_an_enum_is_the_same_on_both_sides(mirror: type[IntEnum], name: str, prefix: str, count: str | None) -> None:
    numbers = enum_of(name)
    if count:  # C's last entry says how many there are; Python has len()
        assert numbers.pop(count) == len(mirror)
    assert {f"{prefix}{one.name}": int(one) for one in mirror} == numbers


def test_constants_are_the_same_on_both_sides() -> None:
    assert CONSTANTS["TICK_SHIFT"] == abi.TICK_SHIFT
    assert CONSTANTS["SWEEP_SLICE"] == abi.SWEEP_SLICE
    assert CONSTANTS["MAX_POOLS"] == abi.MAX_LISTENERS
    for name in (
        "MAX_LISTENERS",
        "NUMBERS",
        "ROLE_SHIFT",
        "DIRECTORY_STEPS",
        "POOL_WORDS",
        "WORD_TURNS",
        "UNSWEPT",
        "RECLAIM_SLICE",
        "ACCESS_BITS",
        "EVENTS_SIZE",
        "REJECTION_INTERVAL",
    ):
        assert CONSTANTS[name] == getattr(abi, name)
    assert f"{abi.DIRECTORY_FACTOR:#x}ULL" in HEADER
    assert "RATE_SECOND (1000000000ULL << 8)" in HEADER
    assert abi.RATE_SECOND == 1_000_000_000 << 8
    assert [one.name for one in abi.Algorithm] == [one.name for one in model.Algorithm]
    assert [one.name for one in abi.Access] == ["ALL", *(one.name for one in model.Access)]
    assert CONSTANTS["MAX_MEMBERS"] >= model.MEMBERS_MAX
    assert CONSTANTS["MAX_SNAT_ADDRESSES"] == max(sizing.SNAT_COUNTS)
    assert CONSTANTS["FIRST_SNAT_PORT"] == sizing.FIRST_SNAT_PORT
    assert CONSTANTS["BUCKET_ENTRIES"] == sizing._BUCKET_ENTRIES == abi.BUCKET_ENTRIES


def test_hashes_are_the_same_on_both_sides() -> None:
    text = (bpf_directory() / "schedule.h").read_text()
    assert f"#define SPREAD {schedule._SPREAD:#x}ULL" in text
    assert f"#define GOLDEN {schedule._GOLDEN:#x}ULL" in text
    assert re.search(rf"#define DRAWS {schedule.DRAWS}\b", text)


def test_the_sweep_ends_connections_for_a_reason_for_each_mode() -> None:
    """The data plane counts them up side by side."""
    assert len(abi.Ending) - abi.Ending.EXPIRED == len(abi.SweepMode)


def test_the_largest_table_holds_every_port() -> None:
    assert CONSTANTS["MAX_SLOTS"] == max(sizing.SNAT_COUNTS) * sizing.PORTS_PER_SNAT
    assert sizing.FIRST_SNAT_PORT + sizing.PORTS_PER_SNAT == 1 << 16


def test_a_phase_is_open_between_syn_sent_and_closing() -> None:
    """As the comment of the enum says, and as the data plane counts."""
    assert [phase.name for phase in abi.Phase if phase.is_open] == [
        "SYN_SENT",
        "SYN_RECEIVED",
        "ESTABLISHED",
        "CLOSING",
    ]
