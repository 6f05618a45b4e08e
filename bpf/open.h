/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A new connection: member, admission, slot, publication. Every way out gives back what it had taken. */
#ifndef IPBACKEND_OPEN_H
#define IPBACKEND_OPEN_H

#define RIVAL_TRIES 4

static __always_inline bool find_in_bucket(__u64 number, __u64 hash, const struct tuple *tuple,
					   enum phase last, place not_at, struct flow *flow)
{
	struct bucket *bucket = flow_index.lookup((__u32 *)&number);
	struct connection *connection;
	__u64 entry, phase;
	int i;

	if (!bucket)
		return false;
#pragma clang loop unroll(disable)
	for (i = 0; i < BUCKET_ENTRIES; i++) {
		entry = bucket->entry[i];
		if (entry >> 32 != hash >> 32 || (place)entry == not_at)
			continue;
		connection = connection_at((place)entry);
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

/* Whether the slot is our own: what it held before leaves the index, and no one else touches it from now on. */
static __always_inline bool seize(struct flow *flow)
{
	__u64 have;

	flow->connection = connection_at(flow->at);
	if (!flow->connection)
		return false;
	have = state_of(flow->connection);
	if ((have & STATE_PHASE) != SLOT_FREE && (have & STATE_PHASE) < SLOT_CLOSED)
		return false;
	flow->state = next_generation(have, SLOT_BUSY);
	if (!change_state(flow->connection, have, flow->state))
		return false;
	if ((have & STATE_PHASE) >= SLOT_CLOSED)
		index_delete(hash_of_connection(flow->connection), flow->at);
	return true;
}

static __always_inline void fill(struct connection *connection, const struct packet *pkt, __u32 number,
				 const struct listener *listener, __u32 endpoint)
{
	connection->client = pkt->tuple.saddr;
	connection->vip = pkt->tuple.daddr;
	connection->client_port = pkt->tuple.sport;
	connection->vip_port = pkt->tuple.dport;
	connection->protocol = pkt->tuple.protocol;
	connection->idle_timeout = listener->idle_timeout;
	connection->listener = number;
	connection->endpoint = endpoint;
	connection->opened = now();
	connection->last_seen = connection->opened;
	connection->client_sequence = pkt->sequence;
	connection->member_sequence = 0;
	connection->client_interface = pkt->ctx->ingress_ifindex;
	__builtin_memcpy(connection->gateway_mac, pkt->eth->h_dest, 6);
	__builtin_memcpy(connection->client_mac, pkt->eth->h_source, 6);
	connection->client_vlan = pkt->tci & VLAN_ID;
}

/*
 * Two CPUs may publish the same tuple at once. Each looks for a rival after its own entry is in: one that is open,
 * or was so meanwhile, wins; of two pending ones the lower place wins and cancels the other. Our own change from
 * pending to open fails if a rival cancelled us before, so exactly one comes out open, and packets find no other.
 */
static __always_inline bool confirm(struct flow *flow, __u64 hash, const struct tuple *tuple, enum phase phase)
{
	__u64 have = flow->state;
	struct flow rival = {};
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < RIVAL_TRIES; i++) {
		if (!find_flow(hash, tuple, SLOT_EXPIRED, flow->at, &rival)) {
			flow->state = with_phase(have, phase);
			return change_state(flow->connection, have, flow->state);
		}
		if ((rival.state & STATE_PHASE) != SLOT_PENDING || rival.at < flow->at)
			return false;
		change_state(rival.connection, rival.state, with_phase(rival.state, SLOT_CANCELLED));
	}
	return false;		/* more rivals than that: better none than two */
}

/* Into the index, and open; free again if it cannot be. */
static __always_inline enum verdict publish(__u64 hash, const struct tuple *tuple, enum phase phase, struct flow *flow)
{
	enum verdict verdict = DROP_INDEX_FULL;

	flow->state = with_phase(flow->state, SLOT_PENDING);
	set_state(flow->connection, flow->state);
	if (index_insert(hash, flow->at)) {
		if (confirm(flow, hash, tuple, phase))
			return FORWARD_OPENED;
		index_delete(hash, flow->at);
		verdict = DROP_NOT_OPENED;
	}
	set_state(flow->connection, with_phase(flow->state, SLOT_FREE));
	return verdict;
}

/* A member, one of its slots, and the index. NEXT_STEP: another try may find a member with room. */
static __always_inline enum verdict claim(const struct packet *pkt, __u64 hash, __u32 number,
					  const struct listener *listener, struct flow *flow)
{
	struct listener_count *listener_count;
	struct endpoint_count *endpoint_count;
	__u32 endpoint = 0;
	struct endpoint *member;
	struct load *its_load;
	enum verdict verdict;
	enum phase phase;
	__u64 counts;

	phase = forgotten(is_tcp(pkt) ? SLOT_SYN_SENT : SLOT_ESTABLISHED, hash);
	counts = forgotten(counts_for(phase), hash);
	verdict = schedule(&pkt->tuple, listener->pool, counts, &endpoint);
	if (verdict != NEXT_STEP || !endpoint)
		return verdict;

	member = endpoints.lookup(&endpoint);
	its_load = load.lookup(&endpoint);
	if (!member || !its_load)
		return DROP_NOT_OPENED;
	flow->at = take_slot(member, its_load);
	if (flow->at == NOWHERE) {
		count_less(its_load, counts);
		return DROP_NOT_OPENED;
	}
	verdict = NEXT_STEP;	/* unless it can be had: one that is being swept at this moment cannot */
	if (seize(flow)) {
		fill(flow->connection, pkt, number, listener, endpoint);
		count_anew(flow->at, pkt->length);
		verdict = publish(hash, &pkt->tuple, phase, flow);
	}
	if (verdict != FORWARD_OPENED) {
		give_slot(member, its_load, flow->at);
		count_less(its_load, counts);
		return verdict;
	}

	listener_count = listener_counts.lookup(&number);
	endpoint_count = endpoint_counts.lookup(&endpoint);
	if (listener_count)
		listener_count->opened++;
	if (endpoint_count)
		endpoint_count->opened++;
	return FORWARD_OPENED;
}

/* One connection more that a listener did not get, and why. */
static __always_inline void count_refusal(__u32 number, enum verdict verdict)
{
	struct listener_count *count = listener_counts.lookup(&number);

	if (!count)
		return;
	count->refused++;
	count->reject_no_member += verdict == REJECT_NO_MEMBER;
	count->reject_all_full += verdict == REJECT_ALL_FULL;
	count->reject_listener_full += verdict == REJECT_LISTENER_FULL;
	count->drop_not_opened += verdict == DROP_NOT_OPENED;
	count->drop_half_open += verdict == DROP_HALF_OPEN;
	count->drop_access += verdict == DROP_ACCESS;
	count->drop_source_rate += verdict == DROP_SOURCE_RATE;
	count->drop_listener_rate += verdict == DROP_LISTENER_RATE;
	count->drop_index_full += verdict == DROP_INDEX_FULL;
}

/*
 * The connection of a tuple that may have one by now, or one that has ended; else a new one, if its packet may
 * open one. Where we get none, another CPU may have opened this very tuple, maybe with the last place there was.
 */
static __always_inline enum verdict find_or_open(struct packet *pkt, struct flow *flow)
{
	__u64 hash = hash_of(&pkt->tuple);
	__u32 number;
	struct listener *there, listener;
	enum verdict verdict;

	if (find_flow(hash, &pkt->tuple, SLOT_EXPIRED, NOWHERE, flow)) {
		if ((flow->state & STATE_PHASE) < SLOT_CLOSED)
			return FORWARD_REQUEST;
		if (opens(pkt))
			vacate(flow->connection, flow->state, flow->at);
		flow->connection = NULL;
		if (!opens(pkt))	/* it has ended between two roads: the next packet is told */
			return DROP_NO_CONNECTION;
	}
	if (pkt->tcp_flags & TCP_RST)
		return DROP_NO_CONNECTION;
	if (has_false_sender(pkt))
		return DROP_MALFORMED;
	number = listener_of(pkt->tuple.daddr, pkt->tuple.dport, pkt->tuple.protocol);
	there = listeners.lookup(&number);
	if (!number || !there)
		return REJECT_NO_LISTENER;
	if (!opens(pkt))
		return REJECT_NO_CONNECTION;
	pkt->tuple.protocol = forgotten(pkt->tuple.protocol, hash);
	pkt->tcp_flags = forgotten(pkt->tcp_flags, hash);

	listener = *(volatile struct listener *)there;	/* as it is now, for what is taken and given back */
	verdict = enter(pkt, number, &listener);
	if (verdict == NEXT_STEP) {
		listener.limit = forgotten(listener.limit, hash);	/* what has been judged by */
		listener.rate = forgotten(listener.rate, hash);
		listener.source_rate = forgotten(listener.source_rate, hash);
		verdict = claim(pkt, hash, number, &listener, flow);
		if (verdict == FORWARD_OPENED)
			return verdict;
		take_back(pkt, number, &listener);
	}
	verdict = forgotten(verdict, hash);
	if (find_flow(hash, &pkt->tuple, SLOT_CLOSING, NOWHERE, flow))
		return FORWARD_REQUEST;
	flow->connection = NULL;
	if (verdict == NEXT_STEP)
		return take(pkt, ROAD_OPEN);
	count_refusal(number, verdict);
	return verdict;
}

/* The road of a client's packet that belonged to no connection. */
static __always_inline enum verdict open_or_refuse(struct packet *pkt)
{
	struct flow flow = {};
	struct way_out out;
	enum verdict verdict, way;
	__u32 role;

	verdict = parse(pkt, &role);
	if (verdict != NEXT_STEP)
		return verdict;
	if (!pkt->ports || role >> ROLE_SHIFT != ROLE_VIP)
		return DROP_NO_CONNECTION;
	verdict = find_or_open(pkt, &flow);
	if (!flow.connection)
		return verdict == NEXT_STEP ? verdict : refused(pkt, verdict);
	if (verdict == FORWARD_OPENED)
		report(flow.connection, flow.at, flow.state, EVENT_OPENED, 0);
	way = to_member(&flow, &out);
	if (way == FORWARD_REQUEST)
		way = fits(pkt, out.mtu, FORWARD_REQUEST);
	if (way != FORWARD_REQUEST)
		return way;
	if (verdict == FORWARD_REQUEST)
		leave_trace(pkt, &flow, verdict);
	return send(pkt, &flow, &out, verdict);
}

#endif
