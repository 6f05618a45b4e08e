"""A program in the kernel that makes the next packet and hands it to the data plane: races happen at full speed.

It knows the shape of a bare TCP segment and nothing of what becomes of it: the verdicts' counters tell.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from ipbackend.abi import NUMBERS
from ipbackend.datapath import syscall
from ipbackend.datapath.compiler import build
from ipbackend.datapath.layout import type_of
from ipbackend.datapath.maps import PINS, Map
from ipbackend.datapath.tables import ip_to_map
from tests.packet import cast

FRAME = 54  # Ethernet, IPv4 and TCP without options
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
TUPLES_PER_CLIENT = 1 << 15
CHOSEN = 1 << 16  # tuples that can be chosen at a time

_TEXT = """
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>

struct orders {
	u32 first;		/* tuple of the first packet */
	u32 span;		/* that many tuples, round and round */
	u32 next;		/* which of them is next */
	u32 destination;
	u16 port;
	u8 flags;
	u8 then;		/* flags of a second packet of each tuple, or 0 */
	u32 second;		/* whether that one is next */
	u32 chosen;		/* whether tuples are numbers of rows of `chosen` */
	u32 watched;		/* an endpoint, or 0 */
	u32 highest;		/* what its active connections were seen to be, at most */
};

struct chosen {
	u32 client;
	u32 port;
};

struct load {
	u32 active;
	u32 others[15];
};

struct frame {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

BPF_TABLE("array", u32, struct orders, orders, 64);	/* by CPU */
BPF_TABLE("array", u32, struct chosen, chosen, CHOSEN);
BPF_PROG_ARRAY(entry, 1);
BPF_TABLE_PINNED("array", u32, struct load, load, MAX_ENDPOINTS, LOAD_PIN);

/* Written whole each time: the packet comes back as the data plane left it. */
int drive(struct xdp_md *ctx)
{
	struct frame *frame = (void *)(long)ctx->data;
	u32 cpu = bpf_get_smp_processor_id(), tuple, client, port, watched;
	struct orders *order = orders.lookup(&cpu);
	struct chosen *row;
	struct load *seen;
	u8 flags;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end || !order)
		return XDP_ABORTED;
	watched = order->watched;
	seen = load.lookup(&watched);
	if (watched && seen && seen->active > order->highest)
		order->highest = seen->active;
	tuple = order->first + order->next;
	flags = order->second ? order->then : order->flags;
	order->second = order->then && !order->second;
	if (!order->second)
		order->next = order->next + 1 < order->span ? order->next + 1 : 0;
	client = 0x64400000 + (tuple >> 15);
	port = 1024 + (tuple & 0x7fff);
	if (order->chosen) {
		row = chosen.lookup(&tuple);
		if (!row)
			return XDP_ABORTED;
		client = row->client;
		port = row->port;
	}
	__builtin_memset(frame, 0, sizeof(*frame));
	frame->eth.h_dest[0] = 2;
	frame->eth.h_source[0] = 2;
	frame->eth.h_proto = bpf_htons(ETH_P_IP);
	frame->ip.version = 4;
	frame->ip.ihl = 5;
	frame->ip.tot_len = bpf_htons(sizeof(frame->ip) + sizeof(frame->tcp));
	frame->ip.ttl = 64;
	frame->ip.protocol = IPPROTO_TCP;
	frame->ip.saddr = bpf_htonl(client);
	frame->ip.daddr = order->destination;
	frame->tcp.source = bpf_htons(port);
	frame->tcp.dest = order->port;
	frame->tcp.doff = 5;
	((u8 *)&frame->tcp)[13] = flags;
	entry.call(ctx, 0);
	return XDP_ABORTED;
}
"""


@dataclass(frozen=True)
class Burst:
    """Packets that one CPU sends: `packets` with these TCP flags, of tuples `first` up to `first + span` in turn."""

    packets: int
    flags: int
    first: int = 0
    span: int = 0  # 0: as many tuples as packets
    then: int = 0  # flags of a second packet of each tuple, right behind the first; it counts among `packets`
    chosen: bool = False  # tuples are those that were told to `choose`


class Driver:
    """Sends bursts through a data plane's entry program."""

    def __init__(self, entry_program: int, run_directory: Path) -> None:
        macros = {
            "__LINUX_BPF_H__": "",
            "CHOSEN": CHOSEN,
            "MAX_ENDPOINTS": NUMBERS,
            "LOAD_PIN": f'"{run_directory / PINS / "load"}"',
        }
        names = ("entry", "orders", "chosen")
        built = build(_TEXT, macros, {"drive": syscall.XDP}, names)
        self._program = built.programs["drive"]
        self._entry, self._orders, self._chosen = (
            Map(name, built.maps[name], *map(type_of, built.layouts[name].values())) for name in names
        )
        self.aim(entry_program)
        self.cpus = sorted(os.sched_getaffinity(0))

    def aim(self, entry_program: int) -> None:
        """Hand packets to this one from here on."""
        self._entry.set(0, entry_program)

    def choose(self, tuples: Iterable[tuple[int, int]]) -> None:
        """What bursts of chosen tuples send: clients (their addresses as numbers) and their ports, by row."""
        for row, (client, port) in enumerate(tuples):
            self._chosen.set(row, self._chosen.leaf(client=client, port=port))

    def send(self, *bursts: Burst, vip: str = cast.VIP, port: int = 80, watched: int = 0) -> int:
        """One burst for each CPU, all at the same time; returns when all are sent.

        Every CPU looks at the active connections of the endpoint `watched` before each of its packets; the highest
        number that any of them saw is returned.
        """
        assert len(bursts) <= len(self.cpus), "a burst needs a CPU of its own"
        start = threading.Barrier(len(bursts))
        threads = [
            threading.Thread(target=self._send, args=(start, cpu, burst, vip, port, watched))
            for cpu, burst in zip(self.cpus, bursts, strict=False)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return max(self._orders.get(cpu).highest for cpu in self.cpus[: len(bursts)])

    def _send(self, start: threading.Barrier, cpu: int, burst: Burst, vip: str, port: int, watched: int) -> None:
        os.sched_setaffinity(0, {cpu})
        orders = self._orders.leaf(
            first=burst.first,
            span=burst.span or burst.packets,
            destination=ip_to_map(IPv4Address(vip)),
            port=int.from_bytes(port.to_bytes(2, "big"), "little"),
            flags=burst.flags,
            then=burst.then,
            chosen=burst.chosen,
            watched=watched,
        )
        self._orders.set(cpu, orders)
        start.wait()
        syscall.run(self._program, bytes(FRAME), burst.packets)

    def close(self) -> None:
        for fd in (self._program, self._entry.fd, self._orders.fd, self._chosen.fd):
            os.close(fd)
