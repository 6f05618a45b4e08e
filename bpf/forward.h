/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The road of a packet that belongs to a connection: whose it is, what it becomes, where it goes. */
#ifndef IPBACKEND_FORWARD_H
#define IPBACKEND_FORWARD_H

/* What a packet leaves as, and by which link. */
struct way_out {
	struct tuple tuple;
	__u8 destination[6];
	__u8 source[6];
	__u32 interface;
	__u32 mtu;
	__u16 vlan;		/* id, or 0 for none */
};

/* Towards the member, as the SNAT address and port that the flow's slot is. */
static __always_inline enum verdict to_member(const struct flow *flow, struct way_out *out)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	__u32 endpoint = flow->connection->endpoint, shift, slot;
	struct endpoint *member = endpoints.lookup(&endpoint);
	struct next_hop *next_hop;

	if (!settings || !member)
		return DROP_NO_CONNECTION;
	next_hop = next_hops.lookup(&member->next_hop);
	if (!next_hop || !next_hop->resolved)
		return DROP_NO_NEXT_HOP;

	slot = flow->at - member->first;
	shift = settings->snat_shift;
	out->tuple.saddr = member->snat[slot & ((1 << shift) - 1) & (MAX_SNAT_ADDRESSES - 1)];
	out->tuple.sport = bpf_htons(FIRST_SNAT_PORT + (slot >> shift));
	out->tuple.daddr = member->address;
	out->tuple.dport = member->port;
	__builtin_memcpy(out->destination, next_hop->destination, 6);
	__builtin_memcpy(out->source, next_hop->source, 6);
	out->interface = next_hop->interface;
	out->mtu = next_hop->mtu;
	out->vlan = next_hop->vlan;
	return FORWARD_REQUEST;
}

/* Towards the client, as the VIP, by the way its last packet came. */
static __always_inline enum verdict to_client(const struct flow *flow, struct way_out *out)
{
	struct connection *connection = flow->connection;
	struct link *link;

	out->tuple.saddr = connection->vip;
	out->tuple.sport = connection->vip_port;
	out->tuple.daddr = connection->client;
	out->tuple.dport = connection->client_port;
	__builtin_memcpy(out->destination, connection->client_mac, 6);
	__builtin_memcpy(out->source, connection->gateway_mac, 6);
	out->interface = connection->client_interface;
	out->vlan = connection->client_vlan;
	if ((state_of(connection) ^ flow->state) >= STATE_GENERATION)
		return DROP_NO_CONNECTION;	/* the slot changed hands while we read it */
	link = links.lookup(&out->interface);
	if (!link || !link->mtu)
		return DROP_NO_NEXT_HOP;
	out->mtu = link->mtu;
	return FORWARD_REPLY;
}

/* The flow of a member's packet to a SNAT address: member and slot tell it without any table of flows. */
static __always_inline bool find_by_slot(__u32 endpoint, __be16 snat_port, __u32 role, struct flow *flow)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	struct endpoint *member = endpoints.lookup(&endpoint);
	__u32 port = bpf_ntohs(snat_port), slot;

	if (!settings || !member || port < FIRST_SNAT_PORT)
		return false;
	slot = (port - FIRST_SNAT_PORT) << settings->snat_shift | (role & ((1 << ROLE_SHIFT) - 1));
	if (slot >= member->slots)
		return false;
	flow->at = member->first + slot;
	flow->connection = connection_at(flow->at);
	if (!flow->connection)
		return false;
	flow->state = state_of(flow->connection);
	return (flow->state & STATE_PHASE) >= SLOT_SYN_SENT;
}

/* A new connection; where the controller has not swept for long, what is over makes room for it first. */
static __always_inline enum verdict take_opening(struct packet *pkt)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });

	if (settings && settings->swept && (__s32)(now() - settings->swept) > (__s32)ticks_of(UNSWEPT))
		return take(pkt, ROAD_RECLAIM);
	return take(pkt, ROAD_OPEN);
}

/*
 * To a VIP: on through its connection, if there is one. A new connection on the tuple of one that has ended is
 * for the road that opens.
 */
static __always_inline enum verdict from_client(struct packet *pkt, struct flow *flow, struct way_out *out)
{
	if (!find_quickly(hash_of(&pkt->tuple), &pkt->tuple, flow))
		return take_opening(pkt);
	if ((flow->state & STATE_PHASE) >= SLOT_CLOSED && opens(pkt))
		return take_opening(pkt);
	return to_member(flow, out);
}

static __always_inline enum verdict from_member(struct packet *pkt, __u32 role, struct flow *flow,
						struct way_out *out)
{
	__u32 endpoint = endpoint_of(pkt->tuple.saddr, pkt->tuple.sport, pkt->tuple.protocol);

	if (!endpoint || !find_by_slot(endpoint, pkt->tuple.dport, role, flow))
		return DROP_NO_CONNECTION;
	return to_client(flow, out);
}

/* FORWARD_ and where to, or why not. */
static __always_inline enum verdict find_way(struct packet *pkt, __u32 role, struct flow *flow,
					     struct way_out *out)
{
	if (role >> ROLE_SHIFT == ROLE_SNAT)
		return from_member(pkt, role, flow, out);
	return from_client(pkt, flow, out);
}

/* One packet more of its listener and of its endpoint; FORWARD_OPENED is a request's as well. */
static __always_inline void account(const struct packet *pkt, const struct connection *connection,
				    enum verdict verdict)
{
	__u32 listener = connection->listener, endpoint = connection->endpoint;
	struct listener_count *by_listener = listener_counts.lookup(&listener);
	struct endpoint_count *by_endpoint = endpoint_counts.lookup(&endpoint);

	if (!by_listener || !by_endpoint)
		return;
	if (verdict == FORWARD_REPLY) {
		by_listener->reply_packets++;
		by_listener->reply_bytes += pkt->length;
		by_endpoint->reply_packets++;
		by_endpoint->reply_bytes += pkt->length;
	} else {
		by_listener->request_packets++;
		by_listener->request_bytes += pkt->length;
		by_endpoint->request_packets++;
		by_endpoint->request_bytes += pkt->length;
	}
}

/* What a packet leaves behind in its connection. */
static __always_inline void leave_trace(const struct packet *pkt, const struct flow *flow, enum verdict verdict)
{
	if (verdict == FORWARD_REQUEST)
		learn_way_back(pkt, flow->connection);
	count_packet(flow->at, pkt->length, verdict == FORWARD_REPLY);	/* first: it may be the connection's last */
	track(pkt, flow, verdict == FORWARD_REQUEST ? STATE_FIN_CLIENT : STATE_FIN_MEMBER);
}

/* The common road, which most packets take from end to end. What is not plain goes on by a road of its own. */
static __always_inline enum verdict forward(struct packet *pkt)
{
	struct flow flow = {};
	struct way_out out;
	enum verdict verdict;
	__u32 role;

	if (!parse_plain_ip(pkt))
		return PASS_NOT_OURS;
	if (pkt->eth->h_proto == bpf_htons(ETH_P_8021Q))
		return take(pkt, ROAD_UNCOMMON);
	if (pkt->eth->h_proto != bpf_htons(ETH_P_IP))
		return PASS_NOT_OURS;
	role = role_of(pkt->tuple.daddr);
	if (!role)
		return PASS_NOT_OURS;
	if (!is_common(pkt))
		return take(pkt, is_icmp(pkt) ? ROAD_ICMP : ROAD_UNCOMMON);
	verdict = parse_transport(pkt, pkt->ip + 1, pkt->length - sizeof(*pkt->ip));
	if (verdict != NEXT_STEP)
		return verdict;
	verdict = find_way(pkt, role, &flow, &out);
	if (verdict == DROP_NO_NEXT_HOP && (flow.state & STATE_PHASE) == SLOT_EXPIRED)
		return take(pkt, ROAD_UNCOMMON);
	if (verdict != FORWARD_REQUEST && verdict != FORWARD_REPLY)
		return verdict;
	if (pkt->length > out.mtu || out.vlan || (flow.state & STATE_PHASE) == SLOT_EXPIRED)
		return take(pkt, ROAD_UNCOMMON);

	leave_trace(pkt, &flow, verdict);
	account(pkt, flow.connection, verdict);
	rewrite(pkt, &out.tuple);
	write_macs((void *)pkt->eth, out.destination, out.source);
	pkt->interface = out.interface;
	return verdict;
}

#endif
