/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map: key, value, size, who writes it. All are pinned, so they outlive the controller. */
#ifndef IPBACKEND_MAPS_H
#define IPBACKEND_MAPS_H

/* The loader defines PIN_DIRECTORY, a string, FLOW_INDEX_BUCKETS, a power of two, SLOTS, COUNTED_SLOTS, SOURCES, and HZ. */
#define PINNED(type, name) type ":" PIN_DIRECTORY "/" name
#define MMAPABLE BPF_F_MMAPABLE
#define INNER (BPF_F_INNER_MAP | BPF_F_MMAPABLE)

/* Written by the controller. */
BPF_F_TABLE(PINNED("array", "gateway"), __u32, struct gateway, gateway, 1, MMAPABLE);
BPF_F_TABLE(PINNED("array", "addresses"), __u32, struct bucket, addresses, ADDRESS_BUCKETS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "listeners_by_addr"), __u32, struct bucket, listeners_by_addr, LISTENER_BUCKETS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "endpoints_by_addr"), __u32, struct bucket, endpoints_by_addr, ENDPOINT_BUCKETS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "listeners"), __u32, struct listener, listeners, MAX_LISTENERS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "endpoints"), __u32, struct endpoint, endpoints, MAX_ENDPOINTS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "links"), __u32, struct link, links, MAX_LINKS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "next_hops"), __u32, struct next_hop, next_hops, MAX_NEXT_HOPS, MMAPABLE);

/* Written by the controller, swapped whole: pool id -> rows (enum pool_word). */
BPF_F_TABLE("array", __u32, struct pool_row, pool_rows, 1, INNER);
BPF_F_TABLE(PINNED("array_of_maps$pool_rows", "pools"), __u32, __u32, pools, MAX_POOLS, 0);

/* Written by the controller: the CIDRs of access lists. */
BPF_F_TABLE(PINNED("lpm_trie", "access"), struct access_key, __u32, access, MAX_ACCESS, BPF_F_NO_PREALLOC);

/*
 * Written by the data plane only. All endpoints' slots; each has those from `first` on, here as well as there.
 * A ring of the free ones. The planner hands out no slot 0.
 */
BPF_F_TABLE(PINNED("array", "conntrack"), __u32, struct connection, conntrack, SLOTS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "free_slots"), __u32, struct free_slot, free_slots, SLOTS, MMAPABLE);

/* Written by the data plane only: what has passed of each connection. As many as slots, or 1: nothing is counted. */
BPF_F_TABLE(PINNED("array", "connection_counts"), __u32, struct connection_count, connection_counts, COUNTED_SLOTS,
	    MMAPABLE);

/* Written by the data plane only, by atomics. */
BPF_F_TABLE(PINNED("array", "load"), __u32, struct load, load, MAX_ENDPOINTS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "listener_load"), __u32, struct listener_load, listener_load, MAX_LISTENERS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "cursors"), __u32, struct cursor, cursors, MAX_POOLS, MMAPABLE);
BPF_F_TABLE(PINNED("array", "flow_index"), __u32, struct bucket, flow_index, FLOW_INDEX_BUCKETS, MMAPABLE);

/* Written by the data plane only; the kernel forgets what was used longest ago. */
BPF_F_TABLE(PINNED("lru_hash", "fragments"), struct fragment_key, struct fragment, fragments, MAX_FRAGMENTS, 0);
BPF_F_TABLE(PINNED("lru_hash", "stays"), struct source_key, struct stay, stays, SOURCES, 0);	/* by pool */
BPF_F_TABLE(PINNED("lru_hash", "source_dues"), struct source_key, __u64, source_dues, SOURCES, 0);	/* by listener */

/* Written by the data plane only, per CPU. */
BPF_F_TABLE(PINNED("percpu_array", "verdicts"), __u32, __u64, verdicts, VERDICTS, 0);
BPF_F_TABLE(PINNED("percpu_array", "listener_counts"), __u32, struct listener_count, listener_counts, MAX_LISTENERS, 0);
BPF_F_TABLE(PINNED("percpu_array", "endpoint_counts"), __u32, struct endpoint_count, endpoint_counts, MAX_ENDPOINTS, 0);

BPF_F_TABLE(PINNED("percpu_array", "event_counts"), __u32, struct event_count, event_counts, 1, 0);

/* What has happened, for the controller to read. BCC has a macro for a ring buffer, but none for one that is pinned. */
struct events_table {
	int key;
	struct event leaf;	/* neither is a part of the map: BCC describes them */
	void *(*ringbuf_reserve)(__u64 size);
	void (*ringbuf_submit)(void *event, __u64 flags);
	__u64 (*peek)(__u64 flags);
	__u32 max_entries;
};
__attribute__((section("maps/" PINNED("ringbuf", "events")))) struct events_table events = { .max_entries = EVENTS_SIZE };

/* Written by the data plane only, per CPU: the answer that a packet gets on the next road. */
BPF_F_TABLE(PINNED("percpu_array", "answers"), __u32, struct answer, answers, 1, 0);

/* Written by the loader: the programs that the first one hands packets on to. */
BPF_F_TABLE(PINNED("prog", "roads"), __u32, __u32, roads, ROADS, 0);

#endif
