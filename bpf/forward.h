/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The road of a packet that belongs to a connection: whose it is, what it becomes, where it goes. */
#ifndef IPBACKEND_FORWARD_H
#define IPBACKEND_FORWARD_H

/* What a packet leaves as. */
struct way_out {
	struct tuple tuple;
	__u8 destination[6];
	__u8 source[6];
	__u32 interface;
};

static __always_inline void send(struct packet *pkt, const struct way_out *out)
{
	rewrite(pkt, &out->tuple);
	write_macs(pkt, out->destination, out->source);
	pkt->interface = out->interface;
}

/* Towards the member, as the SNAT address and port that its slot is. */
static __always_inline enum verdict to_member(struct packet *pkt, const struct flow *flow, struct way_out *out)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	__u32 endpoint = endpoint_of(flow->at), slot = slot_of(flow->at), shift;
	struct endpoint *member = endpoints.lookup(&endpoint);
	struct listener_count *count;
	struct next_hop *next_hop;

	if (!settings || !member)
		return DROP_NO_CONNECTION;
	next_hop = next_hops.lookup(&member->next_hop);
	if (!next_hop || !next_hop->resolved)
		return DROP_NO_NEXT_HOP;
	if (pkt->length > next_hop->mtu)
		return DROP_TOO_BIG;

	shift = settings->snat_shift;
	out->tuple.saddr = member->snat[slot & ((1 << shift) - 1) & (MAX_SNAT_ADDRESSES - 1)];
	out->tuple.sport = bpf_htons(FIRST_SNAT_PORT + (slot >> shift));
	out->tuple.daddr = member->address;
	out->tuple.dport = member->port;
	__builtin_memcpy(out->destination, next_hop->destination, 6);
	__builtin_memcpy(out->source, next_hop->source, 6);
	out->interface = next_hop->interface;

	learn_way_back(pkt, flow->connection);
	count = listener_counts.lookup(&flow->connection->listener);
	if (count) {
		count->request_packets++;
		count->request_bytes += pkt->length;
	}
	return FORWARD_REQUEST;
}

/* To a VIP: on through its connection, if there is one. */
static __always_inline enum verdict from_client(struct packet *pkt, struct flow *flow, struct way_out *out)
{
	if (!find_flow(hash_of(&pkt->tuple), &pkt->tuple, SLOT_CLOSED, NOWHERE, flow))
		return NEXT_STEP;
	if ((flow->state & STATE_PHASE) == SLOT_CLOSED && opens(pkt)) {
		vacate(flow->connection, flow->state, flow->at);	/* the tuple's next connection begins */
		return NEXT_STEP;
	}
	return to_member(pkt, flow, out);
}

/* To a SNAT address: member and slot tell the connection without any table of flows. */
static __always_inline enum verdict from_member(struct packet *pkt, const struct address *address,
						struct flow *flow, struct way_out *out)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	struct endpoint_key key = {
		.address = pkt->tuple.saddr,
		.port = pkt->tuple.sport,
		.protocol = pkt->tuple.protocol,
	};
	__u32 port = bpf_ntohs(pkt->tuple.dport), slot;
	__u32 *endpoint = endpoints_by_addr.lookup(&key);
	struct connection *connection;
	struct listener_count *count;

	if (!settings || !endpoint || port < FIRST_SNAT_PORT)
		return DROP_NO_CONNECTION;
	slot = (port - FIRST_SNAT_PORT) << settings->snat_shift | address->index;
	connection = connection_at(*endpoint, slot);
	if (!connection)
		return DROP_NO_CONNECTION;
	flow->connection = connection;
	flow->at = place_of(*endpoint, slot);
	flow->state = state_of(connection);
	if ((flow->state & STATE_PHASE) < SLOT_SYN_SENT)
		return DROP_NO_CONNECTION;

	out->tuple.saddr = connection->vip;
	out->tuple.sport = connection->vip_port;
	out->tuple.daddr = connection->client;
	out->tuple.dport = connection->client_port;
	__builtin_memcpy(out->destination, connection->client_mac, 6);
	__builtin_memcpy(out->source, connection->gateway_mac, 6);
	out->interface = connection->client_interface;
	count = listener_counts.lookup(&connection->listener);
	if ((state_of(connection) ^ flow->state) >= STATE_GENERATION)
		return DROP_NO_CONNECTION;	/* the slot changed hands while we read it */

	if (count) {
		count->reply_packets++;
		count->reply_bytes += pkt->length;
	}
	return FORWARD_REPLY;
}

/* The first steps of every packet to one of our addresses. */
static __always_inline enum verdict parse(struct packet *pkt, struct address **address)
{
	enum verdict verdict = parse_ip(pkt);

	if (verdict != NEXT_STEP)
		return verdict;
	*address = addresses.lookup(&pkt->tuple.daddr);
	if (!*address)
		return PASS_NOT_OURS;
	return parse_transport(pkt);
}

/* NEXT_STEP: to a VIP, and of no connection. */
static __always_inline enum verdict forward(struct packet *pkt)
{
	struct flow flow = {};
	struct way_out out;
	struct address *address;
	enum verdict verdict;

	verdict = parse(pkt, &address);
	if (verdict != NEXT_STEP)
		return verdict;
	if (address->role == ROLE_SNAT)
		verdict = from_member(pkt, address, &flow, &out);
	else
		verdict = from_client(pkt, &flow, &out);
	if (verdict != FORWARD_REQUEST && verdict != FORWARD_REPLY)
		return verdict;

	track(pkt, &flow, verdict == FORWARD_REQUEST ? STATE_FIN_CLIENT : STATE_FIN_MEMBER);
	send(pkt, &out);
	return verdict;
}

/* A client's packet that belongs to no connection: it opens one if listener and pool allow. */
static __always_inline enum verdict open_or_refuse(struct packet *pkt)
{
	struct listener_count *count;
	struct listener_key key = {};
	struct listener *listener;
	struct flow flow = {};
	struct way_out out;
	struct address *address;
	enum verdict verdict, way;

	verdict = parse(pkt, &address);
	if (verdict != NEXT_STEP)
		return verdict;
	if (pkt->tcp_flags & TCP_RST)
		return DROP_NO_CONNECTION;
	if (has_false_sender(pkt))
		return DROP_MALFORMED;
	key.vip = pkt->tuple.daddr;
	key.port = pkt->tuple.dport;
	key.protocol = pkt->tuple.protocol;
	listener = listeners.lookup(&key);
	if (!listener)
		return REJECT_NO_LISTENER;
	if (!opens(pkt))
		return REJECT_NO_CONNECTION;

	verdict = open(pkt, listener, &flow);
	if (verdict != FORWARD_OPENED && verdict != FORWARD_REQUEST) {
		count = listener_counts.lookup(&listener->id);
		if (count)
			count->refused++;
		return verdict;
	}
	way = to_member(pkt, &flow, &out);
	if (way != FORWARD_REQUEST)
		return way;
	send(pkt, &out);
	return verdict;
}

#endif
