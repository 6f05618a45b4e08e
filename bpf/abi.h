/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every struct, enum and constant that Python knows too. Network order where a field is __be. */
#ifndef IPBACKEND_ABI_H
#define IPBACKEND_ABI_H

#define MAX_ADDRESSES 8192
#define MAX_LISTENERS 16384
#define MAX_POOLS 16384
#define MAX_ENDPOINTS 32768	/* id 0 means none */
#define MAX_NEXT_HOPS 32768	/* id 0 means none */
#define MAX_FRAGMENTS 65536	/* datagrams under way in fragments */
#define FRAGMENT_LIFE 30	/* seconds: as long as a receiver waits for the rest of a datagram */
#define MAX_LINKS 65536		/* interface indexes */
#define MAX_SLOTS 131072	/* of one endpoint */
#define MAX_SNAT_ADDRESSES 4
#define MAX_MEMBERS 512		/* of one pool */

#define FIRST_SNAT_PORT 32768	/* slot = (port - FIRST_SNAT_PORT) << log2(SNAT addresses) | SNAT index */
#define BUCKET_ENTRIES 8
#define NUMBERS 32768		/* what a directory's entries may say: 15 bits, 0 for none */
#define ADDRESS_BUCKETS 2048
#define LISTENER_BUCKETS 8192
#define ENDPOINT_BUCKETS 16384
#define DIRECTORY_STEPS 4 	/* buckets that an entry may be found in, from its own on */
#define DIRECTORY_FACTOR 0x9e3779b97f4a7c15ULL
#define TICK_SHIFT 4		/* a tick is 16 of the kernel's timer interrupts: 64 ms if there are 250 a second */
#define SWEEP_SLICE 64		/* slots that one run of the sweep looks at */

/* How a packet's journey ended. The first word is the action taken. */
enum verdict {
	NEXT_STEP,		/* not a verdict: the journey goes on. What is counted under it are all journeys begun */

	PASS_NOT_OURS,		/* to no address of ours: the kernel's */
	PASS_ECHO,		/* ICMP echo request to an address of ours: the kernel answers */

	FORWARD_OPENED,		/* opened a connection, on to the member */
	FORWARD_REQUEST,	/* of a connection, on to the member */
	FORWARD_REPLY,		/* of a connection, back to the client */
	FORWARD_ICMP_ERROR,	/* an ICMP error about a connection, on to the end that it concerns */

	REJECT_NO_LISTENER,	/* nothing listens on this port of the VIP */
	REJECT_NO_CONNECTION,	/* TCP, no SYN, and of no connection */
	REJECT_NO_MEMBER,	/* the listener's pool has no member that can be reached */
	REJECT_ALL_FULL,	/* every member is at its ceiling */
	REJECT_TOO_BIG,		/* longer than the next link's MTU, and not to be fragmented: its sender is told */
	REJECT_TTL,		/* its time to live ends here: its sender is told */
	REJECT_EXPIRED,		/* of a connection that was silent for too long: its sender is told by a RST */

	DROP_MALFORMED,		/* lengths that lie or do not suffice, or a sender that is none */
	DROP_FRAGMENT,		/* a later fragment whose first one did not come before it */
	DROP_ICMP,		/* ICMP that is neither an echo request nor an error */
	DROP_ICMP_UNRELATED,	/* an ICMP error about no connection of ours */
	DROP_PROTOCOL,		/* neither TCP, UDP nor ICMP */
	DROP_SOURCE_ROUTE,	/* its sender would choose the way that it takes from the member on (RFC 7126, 4.3) */
	DROP_TTL,		/* its time to live ends here, and there is no one to tell */
	DROP_TOO_BIG,		/* longer than the next link's MTU, and we do not fragment */
	DROP_NO_CONNECTION,	/* to a SNAT address or a RST, and of no connection */
	DROP_NO_NEXT_HOP,	/* the way to the member is not known at the moment */
	DROP_NOT_OPENED,	/* no free slot, or another CPU in the way: a retransmission opens it */
	DROP_HALF_OPEN,		/* every member with room has too many handshakes under way */
	DROP_INDEX_FULL,	/* both buckets of the flow index are full */
	DROP_ERROR_RATE,	/* its sender would be told by an ICMP error, but enough have been sent at the moment */
	DROP_NO_ROAD,		/* a program is not in its place: the controller is at work */

	VERDICTS
};

/* The programs beside the first: indexes of the map of programs. */
enum road {
	ROAD_UNCOMMON,		/* of a connection perhaps, but tagged, in pieces, with options, at its end ... */
	ROAD_OPEN,		/* of no connection yet */
	ROAD_ICMP,
	ROAD_REJECT,		/* to be answered */
	ROADS
};

enum role {
	ROLE_VIP = 1,
	ROLE_SNAT,
};

/* The phase of a slot; SLOT_SYN_SENT to SLOT_CLOSING are the open connections. */
enum phase {
	SLOT_FREE,		/* in the queue, never used or rested */
	SLOT_BUSY,		/* being filled or emptied by one owner */
	SLOT_CANCELLED,		/* lost against another CPU's opening of the same tuple */
	SLOT_PENDING,		/* published, but the same tuple may win elsewhere */
	SLOT_SYN_SENT,
	SLOT_SYN_RECEIVED,
	SLOT_ESTABLISHED,	/* TCP after its handshake; UDP at once */
	SLOT_CLOSING,		/* one side's FIN seen */
	SLOT_CLOSED,		/* in the queue, but answers late packets until reused or rested */
	SLOT_EXPIRED,		/* the same, but answers with a RST */
};

/* A connection's state word, always changed whole by compare and swap: generation | flags | phase. */
#define STATE_PHASE 0xffULL
#define STATE_FIN_CLIENT 0x100ULL
#define STATE_FIN_MEMBER 0x200ULL
#define STATE_RESET 0x400ULL		/* a RST of the member's did not fit: believed if silence follows */
#define STATE_GENERATION 0x10000ULL	/* one more each time the slot is taken */

enum sweep_mode {
	SWEEP_EXPIRED,		/* what has been silent for too long */
	SWEEP_ENDPOINT,		/* every connection of the endpoint */
	SWEEP_ORPHANS,		/* every connection whose listener is gone */
};

/* The words of a pool's inner array: a header, the members' endpoint ids, the schedule. */
enum pool_word {
	POOL_MEMBERS,		/* how many endpoint ids follow the header */
	POOL_SCHEDULE,		/* how many entries of the schedule follow them: indexes of members */
	POOL_HEADER = 4,	/* first word after the header */
};

/* Set at load and never changed while connections live. */
struct gateway {
	__u64 hash_key[5];	/* the flow index's secret */
	__u32 fingerprint;	/* of the maps' layout: a controller that knows another one keeps off */
	__u32 snat_shift;	/* log2 of the number of SNAT addresses */
	__u32 syn_sent_timeout;	/* seconds, as the others */
	__u32 syn_received_timeout;
	__u32 closing_timeout;
	__u32 rest;		/* how long a closed slot answers late packets */
	__u64 error_interval;	/* nanoseconds between two ICMP errors of one CPU, on average */
	__s64 epoch;		/* nanoseconds of CLOCK_MONOTONIC at which ticks were at 0: the loader's, for readers */
	__u32 hz;		/* timer interrupts a second: the same */
	__u32 pad;
};

/* What a program leaves for the one that answers a packet, on the same CPU. */
struct answer {
	__u32 verdict;
	__u32 mtu;		/* of the link that the packet is too big for */
	__u64 next_error;	/* nanoseconds: when the next ICMP error would be due if all came evenly */
};

/*
 * One cache line of a directory or of the flow index; 0 is empty.
 * Of a directory: address:32 | port:16 | UDP:1 | number:15, the first two in network order. The number is a
 * listener's or an endpoint's id; of our own addresses, which have no port, it is role << ROLE_SHIFT | index.
 * Of the flow index: tag:32 | slot:32.
 */
struct bucket {
	__u64 entry[BUCKET_ENTRIES];
};

#define ROLE_SHIFT 3		/* below it: which SNAT address */

struct listener {
	__u32 pool;
	__u32 idle_timeout;	/* seconds; 0 where there is no listener of this id */
};

struct endpoint {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 pad;
	__u32 next_hop;
	__u32 first;		/* of its slots: those that follow each other from there on are its own */
	__u32 slots;		/* how many */
	__be32 snat[MAX_SNAT_ADDRESSES];
	__u32 reserved[7];	/* up to a cache line */
};

/* What opening and closing write, apart from what every packet reads. */
struct load {
	__u32 active;		/* open connections, and of them */
	__u32 half_open;	/* those whose handshake is under way; both change by one atomic */
	__u64 ceiling;		/* how many there may be; the controller's: 0 while the member cannot be reached */
	__u64 head;		/* of the ring of free slots: the next one out */
	__u64 tail;		/* the next one in */
	__u64 half_open_limit;	/* the controller's */
	__u64 pad[3];
};

struct cursor {
	__u64 position;		/* of a pool's schedule; never taken back */
	__u64 pad[7];
};

struct connection {
	__u64 state;
	__be32 client;
	__be32 vip;
	__be16 client_port;
	__be16 vip_port;
	__u8 protocol;
	__u8 pad;
	__u16 idle_timeout;	/* seconds, the listener's when it was opened */
	__u16 listener;		/* its id */
	__u16 endpoint;		/* its id */
	__u32 opened;		/* tick */
	__u32 last_seen;	/* tick; written at most once a second */
	__u32 client_interface;
	__u8 gateway_mac[6];	/* as in the client's last packet: destination, source */
	__u8 client_mac[6];
	__u32 client_sequence;	/* TCP, host order: how far each side had come, to within SEQUENCE_STEP */
	__u32 member_sequence;
	__u16 client_vlan;	/* id of the VLAN that the client's last packet was tagged with, or 0 */
	__u16 reserved;
};

struct next_hop {
	__u32 interface;
	__be32 address;		/* whose MAC the destination is */
	__u8 destination[6];
	__u8 source[6];
	__u32 mtu;
	__u16 resolved;		/* 0: drop rather than send to a stale MAC */
	__u16 vlan;		/* id of the VLAN to tag frames with, or 0 */
};

struct fragment_key {
	__be32 saddr;
	__be32 daddr;
	__be16 id;
	__u8 protocol;
	__u8 pad;
};

/* What a datagram's first fragment tells of the others. */
struct fragment {
	__be16 sport;
	__be16 dport;
	__be16 id;		/* that they leave with: those of many clients may meet at one member */
	__u16 header;		/* bytes of the transport header: no later one may begin within */
	__u32 seen;		/* tick */
};

/* One of the gateway's own interfaces, by its index. */
struct link {
	__u32 mtu;
	__u32 pad;
};

/* Row 0 of these two is no one's: what those that are gone have counted, so that sums stay whole. */
struct listener_count {
	__u64 opened;
	__u64 refused;
	__u64 settled;		/* of TCP: handshakes that are over, whether they succeeded or not */
	__u64 ended;
	__u64 request_packets;
	__u64 request_bytes;	/* of IP */
	__u64 reply_packets;
	__u64 reply_bytes;
};

struct endpoint_count {
	__u64 opened;
	__u64 closed;		/* by FIN or RST */
	__u64 expired;		/* by silence */
	__u64 removed;		/* with its member or listener */
	__u64 request_packets;
	__u64 request_bytes;	/* of IP */
	__u64 reply_packets;
	__u64 reply_bytes;
};

/*
 * The frame that the sweep is run on: its orders, its cursor and its result. The sweep is no XDP program, since
 * each series of runs of one would have the kernel patch its own code (15 ms); any other takes Ethernet.
 */
struct sweep {
	__u8 ethernet[16];	/* of no protocol */
	__u32 endpoint;
	__u32 slot;		/* of the endpoint, from 0 on: the next one to look at; moves on */
	__u32 mode;		/* enum sweep_mode */
	__u32 ended;		/* connections ended so far */
	__u32 rested;		/* closed slots whose rest is over */
	__u32 at;		/* tick of this run */
};

#endif
