/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connections in their slots: find, publish, track, end. A slot's content belongs to whoever set it SLOT_BUSY. */
#ifndef IPBACKEND_CONNTRACK_H
#define IPBACKEND_CONNTRACK_H

#define TRACK_TRIES 4

struct flow {
	struct connection *connection;
	place at;
	__u64 state;		/* as it was when the flow was found */
};

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

static __always_inline struct connection *connection_at(__u64 at)
{
	return conntrack.lookup((__u32 *)&at);
}

static __always_inline bool has_tuple(const struct connection *connection, const struct tuple *tuple)
{
	return !((connection->client ^ tuple->saddr) | (connection->vip ^ tuple->daddr) |
		 (connection->client_port ^ tuple->sport) | (connection->vip_port ^ tuple->dport) |
		 (connection->protocol ^ tuple->protocol));
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

/* The first entry of a bucket that may be the one sought: one of 2^32 that are not is taken for it as well. */
static __always_inline place candidate_in(__u64 number, __u64 hash)
{
	struct bucket *bucket = flow_index.lookup((__u32 *)&number);
	int i;

	if (!bucket)
		return NOWHERE;
#pragma clang loop unroll(full)
	for (i = 0; i < BUCKET_ENTRIES; i++) {
		if (bucket->entry[i] >> 32 == hash >> 32)
			return bucket->entry[i];
	}
	return NOWHERE;
}

/*
 * The connection of a client's tuple, pending up to expired. It is not found where another's entry with the same
 * tag stands before its own: then the road that opens finds it (find_flow).
 */
static __always_inline bool find_quickly(__u64 hash, const struct tuple *tuple, struct flow *flow)
{
	__u64 phase;

	flow->at = candidate_in(first_bucket(hash), hash);
	if (flow->at == NOWHERE)
		flow->at = candidate_in(second_bucket(hash), hash);
	if (flow->at == NOWHERE)
		return false;
	flow->connection = connection_at(flow->at);
	if (!flow->connection)
		return false;
	flow->state = state_of(flow->connection);
	phase = flow->state & STATE_PHASE;
	return phase >= SLOT_PENDING && has_tuple(flow->connection, tuple);
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
static __always_inline void release(__u32 endpoint, __u32 listener, place at, __u64 counts)
{
	struct endpoint *member = endpoints.lookup(&endpoint);
	struct load *its_load = load.lookup(&endpoint);
	struct listener_load *listeners_load = listener_load.lookup(&listener);

	if (!member || !its_load || !listeners_load)
		return;
	counts = forgotten(counts, member->address);
	give_slot(member, its_load, at);
	count_less(its_load, counts);
	__sync_fetch_and_add(&listeners_load->active, -1);
}

/* A connection of its listener's has ended, or its handshake has succeeded; before its slot can be another's. */
static __always_inline void count_change(const struct connection *connection, __u64 have, bool ended)
{
	__u32 listener = connection->listener;
	struct listener_count *count = listener_counts.lookup(&listener);

	if (!count)
		return;
	count->settled += is_half_open(have);
	count->ended += ended;
}

/*
 * Where a packet's TCP flags lead from `state`; UDP stays where it is. A slot that someone fills, empties or
 * has not confirmed yet is theirs: closing it behind their back would release it twice.
 */
static __always_inline __u64 next_state(__u32 flags, bool believed, __u64 state, __u64 fin)
{
	__u64 phase = state & STATE_PHASE;

	if (phase < SLOT_SYN_SENT || phase >= SLOT_CLOSED)
		return state;
	if (flags & TCP_RST)	/* no one counts what still passes of it, so nothing may */
		return believed ? with_phase(state, SLOT_EXPIRED) | STATE_TOLD_CLIENT | STATE_TOLD_MEMBER : state;
	if ((flags & TCP_FIN) && believed && phase != SLOT_SYN_SENT) {
		state |= fin;
		if ((state & STATE_FIN_CLIENT) && (state & STATE_FIN_MEMBER))
			return with_phase(state, SLOT_CLOSED);
		return with_phase(state, SLOT_CLOSING);
	}
	if (phase == SLOT_SYN_SENT && fin == STATE_FIN_MEMBER && (flags & TCP_SYN))
		return with_phase(state, SLOT_SYN_RECEIVED);	/* with its ACK, or both opened at once */
	if (phase == SLOT_SYN_RECEIVED && fin == STATE_FIN_CLIENT && (flags & TCP_ACK) && believed)
		return with_phase(state, SLOT_ESTABLISHED);
	return state;
}

/* Where a packet changes a connection's state. Whoever closes it releases it. */
static __always_inline void change(const struct packet *pkt, const struct flow *flow, __u64 fin, bool believed,
				   __u32 at)
{
	struct connection *connection = flow->connection;
	__u64 have = flow->state, want;
	__u32 endpoint = connection->endpoint, listener = connection->listener, vip = connection->vip;
	struct endpoint_count *count;
	struct load *its_load;
	int i;

	for (i = 0; i < TRACK_TRIES; i++) {
		want = next_state(forgotten(pkt->tcp_flags, vip), forgotten(believed, vip), forgotten(have, vip),
				  forgotten(fin, vip));
		want = forgotten(want, vip);
		if (want == have)
			return;
		if (change_state(connection, have, want))
			break;
		have = state_of(connection);
		if ((have ^ flow->state) >= STATE_GENERATION)
			return;		/* the slot is another connection's by now */
	}
	if (i == TRACK_TRIES)
		return;
	if ((want & STATE_PHASE) >= SLOT_CLOSED) {
		connection->last_seen = at;
		count = endpoint_counts.lookup(&endpoint);
		if (count)
			count->closed++;
		report(connection, flow->at, have, EVENT_CLOSED, ending_of(pkt, have, fin));
		count_change(connection, have, true);
		release(endpoint, listener, flow->at, counts_for(have));
	} else if (is_half_open(have) && !is_half_open(want)) {
		count_change(connection, have, false);
		its_load = load.lookup(&endpoint);
		if (its_load)
			count_less(its_load, ONE_HALF_OPEN);
	}
}

/* Whether a packet leaves an established connection just that, which nearly all packets do. */
static __always_inline bool is_settled(const struct packet *pkt, __u64 state)
{
	return (state & STATE_PHASE) == SLOT_ESTABLISHED &&
	       !(pkt->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
}

/* One packet more of a flow. `fin` says which side sent it. */
static __always_inline void track(const struct packet *pkt, const struct flow *flow, __u64 fin)
{
	struct connection *connection = flow->connection;
	bool settled = is_settled(pkt, flow->state);
	bool believed = !settled && is_believed(pkt, connection, flow->state, fin);
	__u32 at = now();

	lead_on(pkt, connection, flow->state, fin);
	if (at - connection->last_seen >= ticks_of(1) && (flow->state & STATE_PHASE) < SLOT_CLOSED &&
	    !(pkt->tcp_flags & TCP_RST))
		connection->last_seen = at;
	if (!settled)
		change(pkt, flow, fin, believed, at);
}

/*
 * The client's side may change its way to us: replies follow it. But not where a segment calls them whose number
 * is far from the connection's, or else anyone near us could call them who knows no more than its ends.
 */
static __always_inline void learn_way_back(const struct packet *pkt, struct connection *connection)
{
	const __u32 *seen = (const void *)pkt->eth;
	__u32 *kept = (void *)connection->gateway_mac;

	if (kept[0] == seen[0] && kept[1] == seen[1] && kept[2] == seen[2] &&
	    connection->client_interface == pkt->ctx->ingress_ifindex &&
	    connection->client_vlan == (pkt->tci & VLAN_ID))
		return;
	if (is_tcp(pkt) && !is_near(pkt->sequence, connection->client_sequence))
		return;
	kept[0] = seen[0];
	kept[1] = seen[1];
	kept[2] = seen[2];
	connection->client_interface = pkt->ctx->ingress_ifindex;
	connection->client_vlan = pkt->tci & VLAN_ID;
}

#endif
