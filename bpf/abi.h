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
#define MAX_ACCESS 1048576	/* CIDRs of all access lists */

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
#define UNSWEPT 10		/* seconds without a sweep until openings look for what is over themselves */
#define RECLAIM_SLICE 32	/* slots that each looks at then */
#define EVENTS_SIZE 16777216	/* bytes of the ring buffer of events: some 161,000 of them */
#define REJECTION_INTERVAL 1000000	/* nanoseconds between two rejections that one CPU reports, on average */

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
	REJECT_LISTENER_FULL,	/* the listener has as many connections as it may have */
	REJECT_TOO_BIG,		/* longer than the next link's MTU, and not to be fragmented: its sender is told */
	REJECT_TTL,		/* its time to live ends here: its sender is told */
	REJECT_EXPIRED,		/* of a connection that silence, a RST or an order has ended: its sender is told by a RST */

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
	DROP_ACCESS,		/* the listener is not for this client */
	DROP_SOURCE_RATE,	/* this client opens more connections a second than the listener lets one open */
	DROP_LISTENER_RATE,	/* all clients together do */
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
	ROAD_RECLAIM,		/* of no connection yet, while nobody sweeps */
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
	SLOT_EXPIRED,		/* ended by the sweep or a RST: the same, but answers with a RST */
};

/* A connection's state word, always changed whole by compare and swap: generation | flags | phase. */
#define STATE_PHASE 0xffULL
#define STATE_FIN_CLIENT 0x100ULL
#define STATE_FIN_MEMBER 0x200ULL
#define STATE_TOLD_CLIENT 0x800ULL	/* of an expired connection: this end has spoken, and got its RST */
#define STATE_TOLD_MEMBER 0x1000ULL
#define STATE_GENERATION 0x10000ULL	/* one more each time the slot is taken */

/* Which connections a sweep ends. Either end of a TCP connection is told, but by SWEEP_ENDPOINT. */
enum sweep_mode {
	SWEEP_EXPIRED,		/* what has been silent for too long */
	SWEEP_ENDPOINT,		/* every slot is made free: the endpoint goes */
	SWEEP_ORPHANS,		/* those whose listener is gone */
	SWEEP_REMOVED,		/* those to a member that is gone: of listener `only`, or all if that is 0 */
	SWEEP_DRAINED,		/* the same, whose delay has run out */
	SWEEP_KILLED,		/* the one in this slot, if its generation is `only` */
};

/* What is reported of connections. */
enum event_kind {
	EVENT_OPENED,
	EVENT_CLOSED,		/* for a reason of enum ending */
	EVENT_REJECTED,		/* for a reason of enum verdict */
	EVENT_LOST,		/* the reader's own, as the next: so many events that found no room */
	EVENT_WITHHELD,		/* so many rejections beyond what is reported */
};

/* Why a connection is over. From ENDING_EXPIRED on: by the sweep, in the order of its modes. */
enum ending {
	ENDING_CLIENT_FIN,	/* both sides closed, the client first */
	ENDING_MEMBER_FIN,
	ENDING_CLIENT_RST,
	ENDING_MEMBER_RST,
	ENDING_EXPIRED,		/* silent for too long */
	ENDING_ENDPOINT_REMOVED,	/* untold: nothing was left of the member */
	ENDING_LISTENER_REMOVED,
	ENDING_MEMBER_REMOVED,
	ENDING_DRAINED,
	ENDING_KILLED,
};

/*
 * The words of a pool's header, which is the first row of its inner array. Behind it stand the members, in the
 * order of their endpoints' ids, each as weight:16 | endpoint:16, and 0 up to the end of their last row; then the
 * schedule, 16 bits a turn: an index of a member.
 */
enum pool_word {
	POOL_MEMBERS,		/* how many */
	POOL_TURNS,		/* how many the schedule has */
	POOL_ALGORITHM,		/* enum algorithm */
	POOL_PERSISTENCE,	/* seconds that a client's address stays with its member; 0 is not at all */
};

#define POOL_WORDS 8		/* of a row */
#define WORD_TURNS 4		/* turns in a word */

/* How a pool's members are chosen among. */
enum algorithm {
	ALGORITHM_ROUND_ROBIN,		/* by turns */
	ALGORITHM_LEAST_CONNECTIONS,	/* the fewest open connections for its weight */
	ALGORITHM_SOURCE_IP,		/* by the client's address */
	ALGORITHM_SOURCE_IP_PORT,	/* by both addresses and ports */
};

#define ACCESS_BITS 2

/* Whom a listener serves. */
enum access {
	ACCESS_ALL,
	ACCESS_ALLOW,		/* only those on its list */
	ACCESS_DENY,		/* all but those */
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
	__u32 events;		/* whether anything is to be reported */
	__u32 swept;		/* tick: when the controller last swept; 0 before it ever did */
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
	__u32 limit;		/* connections at the same time; 0 is any number */
	__u32 access;		/* the id of a list of CIDRs << ACCESS_BITS | enum access */
	__u32 rate;		/* new connections a second; 0 is any number */
	__u32 source_rate;	/* the same of one client address */
	__u32 pad[2];
};

/* What is open at a listener, apart from what every packet reads. */
struct listener_load {
	__u64 active;		/* open connections */
	__u64 due;		/* when the next one would come if all came evenly, in RATE_SECOND ths */
	__u64 pad[6];
};

#define RATE_SECOND (1000000000ULL << 8)	/* one second, to measure rates by: fine enough for a million in it */

/* An entry of an access list, or a client's address to be looked for in it; `prefix` counts the list's bits too. */
struct access_key {
	__u32 prefix;
	__u32 list;
	__be32 address;
};

/* A client's address, to a listener or a pool. */
struct source_key {
	__u32 number;		/* the listener's or the pool's id */
	__be32 client;
};

/* The member that a client's address stays with. */
struct stay {
	__u32 endpoint;
	__u32 making;		/* the endpoint's: one of the same id that was made later is another */
	__u32 seen;		/* tick: when it last opened a connection */
	__u32 pad;
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
	__u32 making;		/* another number each time that an endpoint of this id is made */
	__u32 reserved[6];	/* up to a cache line */
};

/* What opening and closing write, apart from what every packet reads. */
struct load {
	__u32 active;		/* open connections, and of them */
	__u32 half_open;	/* those whose handshake is under way; both change by one atomic */
	__u64 ceiling;		/* how many there may be; the controller's: 0 while the member cannot be reached */
	__u64 head;		/* of the ring of free slots: the next one out */
	__u64 tail;		/* the next one in */
	__u64 half_open_limit;	/* the controller's */
	__u64 reclaimed;	/* while nobody sweeps: how many slots openings have looked at */
	__u64 pad[2];
};

/* An entry of a ring of free slots; both change by one atomic. */
struct free_slot {
	__u32 slot;		/* among all; 0 where it was taken */
	__u32 round;		/* of the ring: how often it was taken there */
};

#define ROUND_SHIFT 32

/* Words of a pool (enum pool_word). */
struct pool_row {
	__u64 word[POOL_WORDS];
};

struct cursor {
	__u64 position;		/* of a pool's schedule; never taken back */
	__u64 there;		/* the controller's note that the pool is */
	__u64 pad[6];
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

/*
 * What has passed of a connection, apart from it: a cache line of its own, so that no two connections write to
 * the same. Each direction is written without atomics by the CPU that forwards it.
 */
struct connection_count {
	__u64 opened;		/* ns of CLOCK_MONOTONIC */
	__u64 request_packets;
	__u64 request_bytes;	/* of IP */
	__u64 reply_packets;
	__u64 reply_bytes;
	__u64 pad[3];
};

/* One event, whole by itself: whoever reads it later may find the maps changed. */
struct event {
	__u64 at;		/* ns of CLOCK_MONOTONIC */
	__u64 opened;		/* the same; to within a tick where connections are not counted */
	__u64 request_packets;	/* 0 where they are not */
	__u64 request_bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
	__u64 state;		/* the connection's, before this event */
	__be32 client;
	__be32 vip;
	__be32 snat;		/* 0 of a rejection, as all that follows the ports */
	__be32 member;
	__be16 client_port;
	__be16 vip_port;
	__be16 snat_port;
	__be16 member_port;
	__u32 slot;		/* of the endpoint */
	__u16 endpoint;
	__u16 listener;
	__u8 kind;		/* enum event_kind */
	__u8 reason;
	__u8 protocol;
	__u8 pad[5];
};

/* Events that nobody will see, by one CPU. */
struct event_count {
	__u64 lost;		/* the ring buffer was full */
	__u64 withheld;		/* rejections beyond what is reported of them */
	__u64 next_rejection;	/* ns: when the next one would be due if all came evenly */
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
	__u64 refused;		/* of it, by verdict: */
	__u64 reject_no_member;
	__u64 reject_all_full;
	__u64 reject_listener_full;
	__u64 drop_not_opened;
	__u64 drop_half_open;
	__u64 drop_access;
	__u64 drop_source_rate;
	__u64 drop_listener_rate;
	__u64 drop_index_full;
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
	__u64 drained;		/* by the end of its member's deregistration delay */
	__u64 killed;		/* one by one */
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
	__u32 only;
	__u32 ended;		/* connections ended so far */
	__u32 rested;		/* closed slots whose rest is over */
	__u32 at;		/* tick of this run */
};

#endif
