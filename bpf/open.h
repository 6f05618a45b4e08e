/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A new connection: member, admission, slot, publication. Every way out gives back what it had taken. */
#ifndef IPBACKEND_OPEN_H
#define IPBACKEND_OPEN_H

#define SLOT_TRIES 4		/* slots to try: one that is being swept at this moment is put back */
#define RIVAL_TRIES 4

/* The slot for our own: what it held before leaves the index, and no one else touches it now. */
static __always_inline struct connection *seize(__u32 endpoint, __u32 slot, __u64 *state)
{
	struct connection *connection = connection_at(endpoint, slot);
	__u64 have;

	if (!connection)
		return NULL;
	have = state_of(connection);
	if ((have & STATE_PHASE) != SLOT_FREE && (have & STATE_PHASE) < SLOT_CLOSED)
		return NULL;
	*state = next_generation(have, SLOT_BUSY);
	if (!change_state(connection, have, *state))
		return NULL;
	if ((have & STATE_PHASE) >= SLOT_CLOSED)
		index_delete(hash_of_connection(connection), place_of(endpoint, slot));
	return connection;
}

static __always_inline void fill(struct connection *connection, const struct packet *pkt,
				 const struct listener *listener)
{
	connection->client = pkt->tuple.saddr;
	connection->vip = pkt->tuple.daddr;
	connection->client_port = pkt->tuple.sport;
	connection->vip_port = pkt->tuple.dport;
	connection->protocol = pkt->tuple.protocol;
	connection->idle_timeout = listener->idle_timeout;
	connection->listener = listener->id;
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
 * Two CPUs may publish the same tuple at once. Each looks for a rival after its own entry is in: an open rival
 * wins; of two pending ones the lower place wins and cancels the other. Our own change from pending to open
 * fails if a rival cancelled us before, so exactly one comes out open.
 */
static __always_inline bool confirm(struct flow *flow, __u64 hash, const struct tuple *tuple, enum phase phase,
				    struct flow *rival)
{
	__u64 have = flow->state;
	int i;

	for (i = 0; i < RIVAL_TRIES; i++) {
		if (!find_flow(hash, tuple, SLOT_CLOSING, flow->at, rival)) {
			flow->state = with_phase(have, phase);
			return change_state(flow->connection, have, flow->state);
		}
		if ((rival->state & STATE_PHASE) != SLOT_PENDING || rival->at < flow->at)
			return false;
		change_state(rival->connection, rival->state, with_phase(rival->state, SLOT_CANCELLED));
	}
	return false;		/* more rivals than that: better none than two */
}

static __always_inline enum verdict claim(const struct packet *pkt, __u64 hash, const struct listener *listener,
					  struct flow *flow)
{
	struct connection *connection = NULL;
	struct listener_count *listener_count;
	struct endpoint_count *endpoint_count;
	__u32 endpoint = 0, slot = 0;
	struct endpoint *member;
	struct load *its_load;
	struct flow rival = {};
	enum verdict verdict;
	__u64 counts;
	void *ring;
	int i;

	counts = ONE_ACTIVE + (is_tcp(pkt) ? ONE_HALF_OPEN : 0);
	verdict = schedule(listener->pool, is_tcp(pkt), &endpoint);
	if (verdict != NEXT_STEP)
		return verdict;

	member = endpoints.lookup(&endpoint);
	its_load = load.lookup(&endpoint);
	ring = free_slots.lookup(&endpoint);
	if (!member || !its_load)
		return DROP_NOT_OPENED;
	for (i = 0; ring && !connection && i < SLOT_TRIES; i++) {
		slot = take_slot(ring, its_load, member->slots);
		if (slot == NO_SLOT)
			break;
		connection = seize(endpoint, slot, &flow->state);
		if (!connection)
			give_slot(ring, its_load, member->slots, slot);
	}
	if (!connection) {
		count_less(its_load, counts);
		return DROP_NOT_OPENED;
	}

	fill(connection, pkt, listener);
	flow->connection = connection;
	flow->at = place_of(endpoint, slot);
	flow->state = with_phase(flow->state, SLOT_PENDING);
	set_state(connection, flow->state);

	verdict = FORWARD_OPENED;
	if (!index_insert(hash, flow->at)) {
		verdict = DROP_INDEX_FULL;
	} else if (!confirm(flow, hash, &pkt->tuple, is_tcp(pkt) ? SLOT_SYN_SENT : SLOT_ESTABLISHED, &rival)) {
		index_delete(hash, flow->at);
		verdict = DROP_NOT_OPENED;
	}
	if (verdict != FORWARD_OPENED) {
		set_state(connection, with_phase(flow->state, SLOT_FREE));
		release(endpoint, slot, counts);
		return verdict;
	}

	listener_count = listener_counts.lookup((__u32 *)&listener->id);
	endpoint_count = endpoint_counts.lookup(&endpoint);
	if (listener_count)
		listener_count->opened++;
	if (endpoint_count)
		endpoint_count->opened++;
	return FORWARD_OPENED;
}

/*
 * The connection of a tuple that may have one by now, or one that has ended; else a new one, if its packet may
 * open one. Where we get none, another CPU may have opened this very tuple, maybe with the last place there was.
 */
static __always_inline enum verdict find_or_open(const struct packet *pkt, struct flow *flow)
{
	struct listener_key key = {
		.vip = pkt->tuple.daddr,
		.port = pkt->tuple.dport,
		.protocol = pkt->tuple.protocol,
	};
	__u64 hash = hash_of(&pkt->tuple);
	struct listener_count *count;
	struct listener *listener;
	enum verdict verdict;

	if (find_flow(hash, &pkt->tuple, SLOT_EXPIRED, NOWHERE, flow)) {
		if ((flow->state & STATE_PHASE) < SLOT_CLOSED)
			return FORWARD_REQUEST;
		vacate(flow->connection, flow->state, flow->at);
	}
	if (pkt->tcp_flags & TCP_RST)
		return DROP_NO_CONNECTION;
	if (has_false_sender(pkt))
		return DROP_MALFORMED;
	listener = listeners.lookup(&key);
	if (!listener)
		return REJECT_NO_LISTENER;
	if (!opens(pkt))
		return REJECT_NO_CONNECTION;

	verdict = claim(pkt, hash, listener, flow);
	if (verdict == FORWARD_OPENED)
		return verdict;
	if (find_flow(hash, &pkt->tuple, SLOT_CLOSING, NOWHERE, flow))
		return FORWARD_REQUEST;
	count = listener_counts.lookup(&listener->id);
	if (count)
		count->refused++;
	return verdict;
}

/* The road of a client's packet that belonged to no connection. */
static __always_inline enum verdict open_or_refuse(struct packet *pkt)
{
	struct address *address;
	struct flow flow = {};
	struct way_out out;
	enum verdict verdict, way;

	verdict = parse(pkt, &address);
	if (verdict != NEXT_STEP)
		return verdict;
	if (!pkt->ports || address->role != ROLE_VIP)
		return DROP_NO_CONNECTION;
	verdict = find_or_open(pkt, &flow);
	if (verdict != FORWARD_OPENED && verdict != FORWARD_REQUEST)
		return verdict;
	way = to_member(&flow, &out);
	if (way == FORWARD_REQUEST)
		way = fits(pkt, out.mtu, FORWARD_REQUEST);
	if (way != FORWARD_REQUEST)
		return way;
	if (verdict == FORWARD_REQUEST)
		leave_trace(pkt, &flow, verdict);
	else
		account(pkt, flow.connection, verdict);
	return send(pkt, &out, verdict);
}

#endif
