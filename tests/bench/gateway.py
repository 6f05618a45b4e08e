"""`make bench-gateway`: what a packet, a connection and a request cost through ipbackend, and through others."""

from __future__ import annotations

import argparse
import sys

from tests.bench import gateway_report as report
from tests.bench.gateway_cases import Scale, run
from tests.bench.gateway_figures import Record, Target, judge, records
from tests.bench.gateway_systems import EXCHANGES, FLOODS
from tests.netns.lab import private_mounts
from tests.netns.members import REPOSITORY

OUTPUT = REPOSITORY / "build" / "bench"
DOCUMENTATION = REPOSITORY / "docs"

QUICK = Scale(rounds=15, fresh_rounds=7)
TARGETS = (
    Target("UDP, 1 flow, to plain XDP redirect", "udp-64", 1, "xdp-redirect", 1.3),
    Target("UDP, 1 flow, to nftables", "udp-64", 1, "nftables", 1 / 5),
    Target("UDP, 50,000 flows, to nftables", "udp-64", 50_000, "nftables", 1 / 3.5),
    Target("new flow, to nftables", "new-flow", Scale().fresh_flows, "nftables", 1 / 9),
    Target("TCP, added per connection, to nftables", "tcp-connections", 1, "nftables", 1 / 2.5, net=True),
    Target("TCP, added per connection, to HAProxy", "tcp-connections", 1, "haproxy", 1 / 5, net=True),
)

METHOD = """\
Everything runs in turn on one core: generator, gateway and member, in network namespaces joined by veth. Each system
has links of its own, all alike; in each round every one has its turn, and another begins. The figures are CPU time
(thread clock, the core's softirqs, the proxies' processes), not wall time: medians over the rounds, with the smallest
and the largest. "Added" is what is left when the same round's baseline is subtracted: for UDP a gateway that drops
everything at once in XDP, for TCP a cable without a gateway. Ratios are medians of each round's ratio.

* `udp-64`: datagrams of 64 bytes of flows opened before, in random order, made by an XDP program that writes every
  header, and counted at the member if they arrive as they should. `lost` are those that did not arrive.
* `new-flow`: each datagram is the first of its flow, on top of the flows that are open by then: 50,000, and those
  of the rounds before.
* `tcp-connections`: connect, ask, answer, reset; 32 side by side. Client and member are one thread, so none of their
  wake-ups is in the figures, while a proxy's are.
* `http-keepalive`: requests over one connection; the latency is wall time, of a core that others may use too.
* `bulk-tcp`: over one connection, in frames of 1500 bytes. Between namespaces the kernel can move segments of 64 kB
  from end to end without ever cutting them, which no wire does (`nftables-segments`); everywhere else all that is
  forwarded began as frames, which the kernel joins before it forwards (GRO) and XDP does not.
* An XDP program on veth pays for copying each TCP frame out of its sender's buffer, which a network card's driver
  does not do; what `xdp-redirect` adds shows how much that is.

`nftables` is DNAT and masquerade, without checking checksums, which a network card would have done;
`nftables-ct-count` is the same with a ceiling of connections for the member. HAProxy (TCP mode) and nginx (stream) run
with one thread, as packaged. What ipbackend's daemon and its sweeps take on another core is not counted.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-gateway ARGS=…", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a minute, and rougher")
    parser.add_argument(
        "--case", action="append", choices=sorted(FLOODS | EXCHANGES), help="only this; may be repeated"
    )
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks-gateway.md too")
    arguments = parser.parse_args()
    private_mounts()
    made: list[Record] = []
    for result in run(arguments.case or FLOODS | EXCHANGES, QUICK if arguments.quick else Scale()):
        print(f"measured: {result.name}, {result.flows:,}", file=sys.stderr, flush=True)
        made += records(result)
        report.write_jsonl(OUTPUT / "gateway.jsonl", made)
    shown = report.tables(made, judge(TARGETS, made))
    print(shown)
    report.picture(OUTPUT / "gateway.png", made)
    if arguments.docs:
        (DOCUMENTATION / "benchmarks-gateway.md").write_text(report.page(METHOD, shown))
        (DOCUMENTATION / "benchmarks-gateway.png").write_bytes((OUTPUT / "gateway.png").read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
