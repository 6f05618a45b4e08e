"""What lies between a look and the atomic that acts on it, drawn out: two CPUs are in it together nearly always.

The program is compiled once more with a pause of some microseconds there: what it does is the same, and a race that
takes luck at full speed is the rule. What is checked is what must hold at any speed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipbackend.abi import Road, SweepMode, Verdict
from ipbackend.datapath import syscall
from ipbackend.datapath.audit import audit
from ipbackend.datapath.loader import ENTRY, ROADS
from ipbackend.datapath.source import bpf_directory
from tests.packet.conftest import Dataplane
from tests.packet.driver import RST, SYN, Burst, Driver
from tests.packet.test_limits import interval_at
from tests.packet.test_races import limited, sent, start

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU runs no races")

# Behind what (regular expressions); each is there as often as it is said here.
WINDOWS = {
    "limits.h": [
        (r"active = \*\(volatile __u64 \*\)&its_load->active;", 1),
        (r"have = \*\(volatile __u64 \*\)due;", 1),
    ],
    "slots.h": [
        (r"counts = counts_of\(load\);", 1),
        (r"entry = entry_at\(endpoint, position, round\);", 2),
        (r"have = \*\(volatile __u64 \*\)entry;", 2),
    ],
    "flow_index.h": [(r"if \(bucket->entry\[i\]\)\s+continue;", 1)],
    "open.h": [
        (r"\S+ = next_generation\(have, SLOT_BUSY\);", 1),
        (r"if \(!find_flow\(hash, tuple, SLOT_EXPIRED, flow->at, &?rival\)\) {", 1),
    ],
}
PAUSE = """
struct pause { __u8 bytes[1 << 15]; };
BPF_TABLE("array", __u32, struct pause, pauses, 2);
/* Some microseconds. */
static __always_inline void pause(void)
{
	struct pause *from = pauses.lookup(&(__u32){ 0 });
	__u32 to = 1;

	if (from)
		pauses.update(&to, from);
}
"""


def drawn_out(folder: Path) -> dict[str, str]:
    """The files with their windows drawn out, by which ones they stand in for."""
    made = {}
    for name, lines in {"clock.h": [], **WINDOWS}.items():
        text = (bpf_directory() / name).read_text()
        for line, count in lines:
            text, found = re.subn(line, r"\g<0> pause();", text)
            assert found == count, f"{name}: {line}: the test must follow what was changed here"
        text = re.sub(r"_TRIES 64\b", "_TRIES 8", text)  # the verifier has more to go through as it is
        (folder / name).write_text(text + PAUSE * (name == "clock.h"))
        made[name] = str(folder / name)
    return made


@pytest.fixture(scope="module")
def slow(loaded: Dataplane, driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Sends packets through the program that is drawn out, on the same maps."""
    kinds = dict.fromkeys((ENTRY, ROADS[Road.OPEN]), syscall.XDP)
    programs = loaded.program.variant(drawn_out(tmp_path_factory.mktemp("bpf")), kinds).programs
    loaded.maps["roads"].set(int(Road.OPEN), programs[ROADS[Road.OPEN]])
    driver.aim(programs[ENTRY])
    yield driver
    driver.aim(loaded.program.entry)
    loaded.program.join(loaded.maps)
    for fd in programs.values():
        os.close(fd)


EACH, ROUNDS = 200, 20


def test_exactly_the_ceiling(unconfigured, slow):
    """From all CPUs at once, again and again: as many as there are places, and all are given back."""
    load = start(unconfigured, 3)
    for _ in range(ROUNDS):
        opened = sent(unconfigured, slow, Burst(EACH, SYN), Burst(EACH, SYN, first=EACH))
        assert opened == {Verdict.FORWARD_OPENED: 3, Verdict.REJECT_ALL_FULL: 2 * EACH - 3}
        assert load.active == load.half_open == 3
        sent(unconfigured, slow, Burst(2 * EACH, RST), Burst(2 * EACH, RST))
        assert load.active == load.half_open == 0
        assert audit(unconfigured.maps) == []


def test_exactly_the_budget_of_handshakes(unconfigured, slow):
    load = start(unconfigured, 3)
    load.half_open_limit = 2
    for _ in range(ROUNDS):
        opened = sent(unconfigured, slow, Burst(EACH, SYN), Burst(EACH, SYN, first=EACH))
        assert opened == {Verdict.FORWARD_OPENED: 2, Verdict.DROP_HALF_OPEN: 2 * EACH - 2}
        assert load.active == load.half_open == 2
        sent(unconfigured, slow, Burst(2 * EACH, RST), Burst(2 * EACH, RST))
        assert load.active == load.half_open == 0


def test_exactly_the_listeners_limit(unconfigured, slow):
    load = limited(unconfigured, max_connections=3)
    for _ in range(ROUNDS):
        opened = sent(unconfigured, slow, Burst(EACH, SYN), Burst(EACH, SYN, first=EACH))
        assert opened == {Verdict.FORWARD_OPENED: 3, Verdict.REJECT_LISTENER_FULL: 2 * EACH - 3}
        assert load.active == 3
        sent(unconfigured, slow, Burst(2 * EACH, RST), Burst(2 * EACH, RST))
        assert load.active == 0


def test_each_token_is_taken_once(unconfigured, slow):
    """Whatever the time: each connection brings the next one's time on by one interval, and none of these is lost."""
    load = limited(unconfigured, cps=200)
    interval = interval_at(unconfigured)
    for _ in range(ROUNDS):
        load.due = 0
        sent(unconfigured, slow, Burst(1, SYN))
        before = load.due
        verdicts = sent(unconfigured, slow, Burst(EACH, SYN, first=1), Burst(EACH, SYN, first=1 + EACH))
        assert load.due >= before + verdicts[Verdict.FORWARD_OPENED] * interval
        assert verdicts[Verdict.FORWARD_OPENED] >= 199
        sent(unconfigured, slow, Burst(1 + 2 * EACH, RST))


def test_one_tuple_is_one_connection(unconfigured, slow):
    """Both CPUs publish the same tuple, each before it sees the other's."""
    load = start(unconfigured, 20_000)
    for number in range(ROUNDS):
        burst = Burst(EACH, SYN, first=number * EACH)
        verdicts = sent(unconfigured, slow, burst, burst)
        assert verdicts[Verdict.FORWARD_OPENED] == EACH
        assert set(verdicts) <= {Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST, Verdict.DROP_NOT_OPENED}
        assert load.active == (number + 1) * EACH
        assert audit(unconfigured.maps) == []


@pytest.mark.parametrize("span", [1, 16, 200])
def test_opened_here_and_closed_there(unconfigured, slow, span):
    """Slots come back while others are taken; each is in the queue once, and in the index while it should be."""
    load = start(unconfigured, 60)
    for then in ((SYN, RST), (SYN, SYN), (RST, RST)):
        sent(unconfigured, slow, Burst(4000, SYN, span=span, then=then[0]), Burst(4000, RST, span=span, then=then[1]))
        assert load.active <= 60
        assert audit(unconfigured.maps) == []
    sent(unconfigured, slow, Burst(span, RST))
    assert load.active == 0


def test_swept_while_it_is_taken(unconfigured, slow):
    """A slot whose rest is over is emptied by the sweep at the moment that an opening takes it."""
    load = start(unconfigured, 60)
    unconfigured.settings.rest = 0
    for _ in range(ROUNDS):
        sent(unconfigured, slow, Burst(EACH, SYN, then=RST), Burst(EACH, SYN, first=EACH, then=RST))
        unconfigured.tables.sweep(min(unconfigured.entries.endpoints), SweepMode.EXPIRED)
        assert audit(unconfigured.maps) == []
    assert load.active == 0
