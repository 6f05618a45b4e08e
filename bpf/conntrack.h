/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connections in their slots: find, publish, track, end. A slot's content belongs to whoever set it SLOT_BUSY. */
#ifndef IPBACKEND_CONNTRACK_H
#define IPBACKEND_CONNTRACK_H

#define TICKS_OF_A_SECOND 8
#define TRACK_TRIES 8

struct flow {
	struct connection *connection;
	place at;
	__u64 state;		/* as it was when the flow was found */
};

static __always_inline __u32 now(void)
{
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

static __always_inline __u64 state_of(struct connection *connection)
{
	return *(volatile __u64 *)&connection->state;
}

static __always_inline void set_state(struct connection *connection, __u64 state)
{
	*(volatile __u64 *)&connection->state = state;
}

static __always_inline bool change_state(struct connection *connection, __u64 have, __u64 want)
{
	return __sync_val_compare_and_swap(&connection->state, have, want) == have;
}

static __always_inline __u64 with_phase(__u64 state, enum phase phase)
{
	return (state & ~STATE_PHASE) | phase;
}

/* Everything but the phase starts anew: the next generation. */
static __always_inline __u64 next_generation(__u64 state, enum phase phase)
{
	return (state & ~(STATE_GENERATION - 1)) + STATE_GENERATION + phase;
}

static __always_inline struct connection *connection_at(__u32 endpoint, __u32 slot)
{
	void *connections = conntrack.lookup(&endpoint);

	return connections ? bpf_map_lookup_elem(connections, &slot) : NULL;
}

static __always_inline bool has_tuple(const struct connection *connection, const struct tuple *tuple)
{
	return connection->client == tuple->saddr && connection->vip == tuple->daddr &&
	       connection->client_port == tuple->sport && connection->vip_port == tuple->dport &&
	       connection->protocol == tuple->protocol;
}

static __always_inline __u64 hash_of_connection(const struct connection *connection)
{
	struct tuple tuple = {
		.saddr = connection->client,
		.daddr = connection->vip,
		.sport = connection->client_port,
		.dport = connection->vip_port,
		.protocol = connection->protocol,
	};

	return hash_of(&tuple);
}

static __always_inline bool find_in_bucket(__u32 number, __u64 hash, const struct tuple *tuple,
					   enum phase last, place not_at, struct flow *flow)
{
	struct bucket *bucket = flow_index.lookup(&number);
	struct connection *connection;
	__u64 entry, phase;
	int i;

	if (!bucket)
		return false;
	for (i = 0; i < BUCKET_ENTRIES; i++) {
		entry = bucket->entry[i];
		if (entry >> 32 != hash >> 32 || (place)entry == not_at)
			continue;
		connection = connection_at(endpoint_of(entry), slot_of(entry));
		if (!connection)
			continue;
		flow->state = state_of(connection);
		phase = flow->state & STATE_PHASE;
		if (phase < SLOT_PENDING || phase > last || !has_tuple(connection, tuple))
			continue;
		flow->connection = connection;
		flow->at = entry;
		return true;
	}
	return false;
}

/* The connection of a client's tuple, from pending up to phase `last`, other than the one at `not_at`. */
static __always_inline bool find_flow(__u64 hash, const struct tuple *tuple, enum phase last, place not_at,
				      struct flow *flow)
{
	return find_in_bucket(first_bucket(hash), hash, tuple, last, not_at, flow) ||
	       find_in_bucket(second_bucket(hash), hash, tuple, last, not_at, flow);
}

/* Out of the index and free; false: someone else changed the state meanwhile, and the slot is theirs. */
static __always_inline bool vacate(struct connection *connection, __u64 have, place at)
{
	if (!change_state(connection, have, with_phase(have, SLOT_BUSY)))
		return false;
	index_delete(hash_of_connection(connection), at);
	set_state(connection, next_generation(have, SLOT_FREE));
	return true;
}

/* The slot goes to the end of its queue first: whoever is admitted after us finds one there. */
static __always_inline void release(__u32 endpoint, __u32 slot)
{
	struct endpoint *member = endpoints.lookup(&endpoint);
	void *ring = free_slots.lookup(&endpoint);
	struct load *its_load = load.lookup(&endpoint);

	if (!member || !ring || !its_load)
		return;
	give_slot(ring, its_load, member->slots, slot);
	__sync_fetch_and_add(&its_load->active, -1);
}

/*
 * Where a packet's TCP flags lead from `state`; UDP stays where it is. A slot that someone fills, empties or
 * has not confirmed yet is theirs: closing it behind their back would release it twice.
 */
static __always_inline __u64 next_state(__u32 flags, __u64 state, __u64 fin)
{
	__u64 phase = state & STATE_PHASE;

	if (phase < SLOT_SYN_SENT || phase == SLOT_CLOSED)
		return state;
	if (flags & TCP_RST)
		return with_phase(state, SLOT_CLOSED);
	if (flags & TCP_FIN) {
		state |= fin;
		if ((state & STATE_FIN_CLIENT) && (state & STATE_FIN_MEMBER))
			return with_phase(state, SLOT_CLOSED);
		return with_phase(state, SLOT_CLOSING);
	}
	if (phase == SLOT_SYN_SENT && fin == STATE_FIN_MEMBER && flags == (TCP_SYN | TCP_ACK))
		return with_phase(state, SLOT_SYN_RECEIVED);
	if (phase == SLOT_SYN_RECEIVED && fin == STATE_FIN_CLIENT && flags == TCP_ACK)
		return with_phase(state, SLOT_ESTABLISHED);
	return state;
}

/* One packet more of a flow. `fin` says which side sent it. Whoever closes the connection releases it. */
static __always_inline void track(const struct packet *pkt, const struct flow *flow, __u64 fin)
{
	struct connection *connection = flow->connection;
	__u64 have = flow->state, want;
	__u32 at = now();
	int i;

	if (at - connection->last_seen >= TICKS_OF_A_SECOND && (have & STATE_PHASE) != SLOT_CLOSED)
		connection->last_seen = at;

	for (i = 0; i < TRACK_TRIES; i++) {
		want = next_state(pkt->tcp_flags, have, fin);
		if (want == have)
			return;
		if (change_state(connection, have, want))
			break;
		have = state_of(connection);
		if ((have ^ flow->state) >= STATE_GENERATION)
			return;		/* the slot is another connection's by now */
	}
	if (i < TRACK_TRIES && (want & STATE_PHASE) == SLOT_CLOSED) {
		__u32 endpoint = endpoint_of(flow->at);
		struct endpoint_count *count = endpoint_counts.lookup(&endpoint);

		connection->last_seen = at;
		if (count)
			count->closed++;
		release(endpoint, slot_of(flow->at));
	}
}

/* The client's side may change its way to us: replies follow it. */
static __always_inline void learn_way_back(const struct packet *pkt, struct connection *connection)
{
	const __u32 *seen = (const void *)pkt->eth;
	__u32 *kept = (void *)connection->gateway_mac;

	if (kept[0] == seen[0] && kept[1] == seen[1] && kept[2] == seen[2] &&
	    connection->client_interface == pkt->ctx->ingress_ifindex)
		return;
	kept[0] = seen[0];
	kept[1] = seen[1];
	kept[2] = seen[2];
	connection->client_interface = pkt->ctx->ingress_ifindex;
}

#endif
