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
};

/* Towards the member, as the SNAT address and port that the flow's slot is. */
static __always_inline enum verdict to_member(const struct flow *flow, struct way_out *out)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	__u32 endpoint = endpoint_of(flow->at), slot = slot_of(flow->at), shift;
	struct endpoint *member = endpoints.lookup(&endpoint);
	struct next_hop *next_hop;

	if (!settings || !member)
		return DROP_NO_CONNECTION;
	next_hop = next_hops.lookup(&member->next_hop);
	if (!next_hop || !next_hop->resolved)
		return DROP_NO_NEXT_HOP;

	shift = settings->snat_shift;
	out->tuple.saddr = member->snat[slot & ((1 << shift) - 1) & (MAX_SNAT_ADDRESSES - 1)];
	out->tuple.sport = bpf_htons(FIRST_SNAT_PORT + (slot >> shift));
	out->tuple.daddr = member->address;
	out->tuple.dport = member->port;
	__builtin_memcpy(out->destination, next_hop->destination, 6);
	__builtin_memcpy(out->source, next_hop->source, 6);
	out->interface = next_hop->interface;
	out->mtu = next_hop->mtu;
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
	if ((state_of(connection) ^ flow->state) >= STATE_GENERATION)
		return DROP_NO_CONNECTION;	/* the slot changed hands while we read it */
	link = links.lookup(&out->interface);
	if (!link || !link->mtu)
		return DROP_NO_NEXT_HOP;
	out->mtu = link->mtu;
	return FORWARD_REPLY;
}

/* The flow of a member's packet to a SNAT address: member and slot tell it without any table of flows. */
static __always_inline bool find_by_slot(struct endpoint_key *key, __be16 snat_port, __u32 snat_index,
					 struct flow *flow)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	__u32 *endpoint = endpoints_by_addr.lookup(key);
	__u32 port = bpf_ntohs(snat_port), slot;

	if (!settings || !endpoint || port < FIRST_SNAT_PORT)
		return false;
	slot = (port - FIRST_SNAT_PORT) << settings->snat_shift | snat_index;
	flow->connection = connection_at(*endpoint, slot);
	if (!flow->connection)
		return false;
	flow->at = place_of(*endpoint, slot);
	flow->state = state_of(flow->connection);
	return (flow->state & STATE_PHASE) >= SLOT_SYN_SENT;
}

/* The other end has been forgotten, and this one is told by a RST, but none answers a RST or half a segment. */
static __always_inline enum verdict too_late(const struct packet *pkt)
{
	return (pkt->tcp_flags & TCP_RST) || !pkt->ports ? DROP_NO_CONNECTION : REJECT_EXPIRED;
}

/* To a VIP: on through its connection, if there is one. */
static __always_inline enum verdict from_client(struct packet *pkt, struct flow *flow, struct way_out *out)
{
	if (!find_flow(hash_of(&pkt->tuple), &pkt->tuple, SLOT_EXPIRED, NOWHERE, flow))
		return NEXT_STEP;
	if ((flow->state & STATE_PHASE) >= SLOT_CLOSED && opens(pkt)) {
		vacate(flow->connection, flow->state, flow->at);	/* the tuple's next connection begins */
		return NEXT_STEP;
	}
	if ((flow->state & STATE_PHASE) == SLOT_EXPIRED)
		return too_late(pkt);
	learn_way_back(pkt, flow->connection);
	return to_member(flow, out);
}

static __always_inline enum verdict from_member(struct packet *pkt, const struct address *address,
						struct flow *flow, struct way_out *out)
{
	struct endpoint_key key = {
		.address = pkt->tuple.saddr,
		.port = pkt->tuple.sport,
		.protocol = pkt->tuple.protocol,
	};

	if (!find_by_slot(&key, pkt->tuple.dport, address->index, flow))
		return DROP_NO_CONNECTION;
	if ((flow->state & STATE_PHASE) == SLOT_EXPIRED)
		return too_late(pkt);
	return to_client(flow, out);
}

/* Whether a packet goes through a link of this MTU: REJECT_ if its sender can do something about it. */
static __always_inline enum verdict fits(struct packet *pkt, __u32 mtu, enum verdict verdict)
{
	if (pkt->length <= mtu)
		return verdict;
	if (!(pkt->ip->frag_off & bpf_htons(IP_DONT_FRAGMENT)) || is_later_fragment(pkt))
		return DROP_TOO_BIG;	/* an error about a later fragment tells no one whose it is (RFC 1122, 3.2.2) */
	pkt->mtu = mtu;
	return REJECT_TOO_BIG;
}

static __always_inline void account(const struct packet *pkt, struct connection *connection, enum verdict verdict)
{
	struct listener_count *count = listener_counts.lookup(&connection->listener);

	if (!count)
		return;
	if (verdict == FORWARD_REPLY) {
		count->reply_packets++;
		count->reply_bytes += pkt->length;
	} else {
		count->request_packets++;
		count->request_bytes += pkt->length;
	}
}

static __always_inline void send(struct packet *pkt, const struct way_out *out)
{
	rewrite(pkt, &out->tuple);
	write_macs(pkt, out->destination, out->source);
	pkt->interface = out->interface;
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
static __always_inline enum verdict forward_parsed(struct packet *pkt, const struct address *address)
{
	struct flow flow = {};
	struct way_out out;
	enum verdict verdict;

	if (address->role == ROLE_SNAT)
		verdict = from_member(pkt, address, &flow, &out);
	else
		verdict = from_client(pkt, &flow, &out);
	if (verdict != FORWARD_REQUEST && verdict != FORWARD_REPLY)
		return verdict;
	verdict = fits(pkt, out.mtu, verdict);
	if (verdict != FORWARD_REQUEST && verdict != FORWARD_REPLY)
		return verdict;

	track(pkt, &flow, verdict == FORWARD_REQUEST ? STATE_FIN_CLIENT : STATE_FIN_MEMBER);
	account(pkt, flow.connection, verdict);
	if (pkt->fragment && !is_later_fragment(pkt))
		remember_fragment(pkt);
	send(pkt, &out);
	return verdict;
}

/* NEXT_STEP: a fragment, an ICMP error, or to a VIP and of no connection. */
static __always_inline enum verdict forward(struct packet *pkt)
{
	struct address *address;
	enum verdict verdict = parse(pkt, &address);

	if (verdict != NEXT_STEP || pkt->fragment || is_icmp(pkt))
		return verdict;
	return forward_parsed(pkt, address);
}

static __always_inline enum verdict forward_fragment(struct packet *pkt)
{
	struct address *address;
	enum verdict verdict = parse(pkt, &address);

	if (verdict != NEXT_STEP)
		return verdict;
	if (is_later_fragment(pkt)) {
		if (!recall_fragment(pkt))
			return DROP_FRAGMENT;
		if ((pkt->fragment & IP_OFFSET) * 8 < pkt->header)
			return DROP_MALFORMED;	/* it would write over the header that was judged (RFC 1858) */
		if ((pkt->fragment & IP_OFFSET) * 8 + pkt->length > 65535)
			return DROP_MALFORMED;	/* no datagram is that long */
	}
	verdict = forward_parsed(pkt, address);
	return verdict == NEXT_STEP && is_later_fragment(pkt) ? DROP_FRAGMENT : verdict;
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
	if (verdict != NEXT_STEP || !pkt->ports)
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
	way = to_member(&flow, &out);
	if (way == FORWARD_REQUEST)
		way = fits(pkt, out.mtu, FORWARD_REQUEST);
	if (way != FORWARD_REQUEST)
		return way;
	account(pkt, flow.connection, verdict);
	if (pkt->fragment && !is_later_fragment(pkt))
		remember_fragment(pkt);
	send(pkt, &out);
	return verdict;
}

#endif
