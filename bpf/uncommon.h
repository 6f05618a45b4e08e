/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The road of what is rare: VLAN tags, IP options, fragments, long frames, packets too big or too late. */
#ifndef IPBACKEND_UNCOMMON_H
#define IPBACKEND_UNCOMMON_H

/* Whether a packet goes through a link of this MTU: REJECT_ if its sender can do something about it. */
static __always_inline enum verdict fits(struct packet *pkt, __u32 mtu, enum verdict verdict)
{
	if (pkt->length <= mtu)
		return verdict;
	if (!(pkt->ip->frag_off & bpf_htons(IP_DONT_FRAGMENT)) || is_later_fragment(pkt))
		return DROP_TOO_BIG;
	if (has_false_sender(pkt))
		return DROP_TOO_BIG;
	pkt->mtu = mtu;
	return REJECT_TOO_BIG;
}

/* The connection has been ended, and who speaks is told by a RST, but none answers a RST or half a segment. */
static __always_inline enum verdict too_late(const struct packet *pkt, __u32 role, const struct flow *flow)
{
	__u64 told = role >> ROLE_SHIFT == ROLE_SNAT ? STATE_TOLD_MEMBER : STATE_TOLD_CLIENT;

	if (!pkt->ports)
		return DROP_NO_CONNECTION;
	change_state(flow->connection, flow->state, flow->state | told);
	return pkt->tcp_flags & TCP_RST ? DROP_NO_CONNECTION : REJECT_EXPIRED;
}

/*
 * The Ethernet header anew, with the tag that the way out wants: the frame grows or shrinks by it. The priority
 * of a tagged frame stays. Packet pointers are no longer valid behind this. False: there is no room before it.
 */
static __always_inline bool write_link(struct packet *pkt, const struct way_out *out)
{
	int had = pkt->link_header - sizeof(struct ethhdr), wants = out->vlan ? sizeof(struct vlan) : 0;
	struct xdp_md *ctx = pkt->ctx;
	struct ethhdr *eth;
	struct vlan *vlan;

	if (had != wants && bpf_xdp_adjust_head(ctx, had - wants))
		return false;
	eth = (void *)(long)ctx->data;
	vlan = (void *)(eth + 1);
	if ((void *)(vlan + 1) > (void *)(long)ctx->data_end)
		return false;
	write_macs((void *)eth, out->destination, out->source);
	eth->h_proto = bpf_htons(ETH_P_IP);
	if (wants) {
		eth->h_proto = bpf_htons(ETH_P_8021Q);
		vlan->tci = bpf_htons((pkt->tci & ~VLAN_ID) | out->vlan);
		vlan->protocol = bpf_htons(ETH_P_IP);
	}
	pkt->interface = out->interface;
	return true;
}

/* A packet of a connection, on its way; packet pointers are no longer valid behind this. */
static __always_inline enum verdict send(struct packet *pkt, const struct flow *flow, const struct way_out *out,
					 enum verdict verdict)
{
	if (pkt->fragment && !is_later_fragment(pkt))
		remember_fragment(pkt);
	rewrite(pkt, &out->tuple);
	if (!write_link(pkt, out))
		return DROP_MALFORMED;
	account(pkt, flow->connection, verdict);
	return verdict;
}

/* A later fragment becomes one of its datagram's connection; NEXT_STEP if so. */
static __always_inline enum verdict join(struct packet *pkt)
{
	if (!recall_fragment(pkt))
		return DROP_FRAGMENT;
	if ((pkt->fragment & IP_OFFSET) * 8 < pkt->header)
		return DROP_MALFORMED;	/* it would write over the header that was judged (RFC 1858) */
	if ((pkt->fragment & IP_OFFSET) * 8 + pkt->length > 65535)
		return DROP_MALFORMED;	/* no datagram is that long */
	return NEXT_STEP;
}

static __always_inline enum verdict forward_uncommon(struct packet *pkt)
{
	struct flow flow = {};
	struct way_out out;
	enum verdict verdict;
	__u32 role;

	verdict = parse(pkt, &role);
	if (verdict == NEXT_STEP)
		verdict = parse_options(pkt);
	if (verdict != NEXT_STEP)
		return verdict;
	if (is_icmp(pkt))
		return take(pkt, ROAD_ICMP);
	if (is_later_fragment(pkt))
		verdict = join(pkt);
	if (verdict != NEXT_STEP)
		return verdict;

	verdict = find_way(pkt, role, &flow, &out);
	if (verdict == NEXT_STEP && is_later_fragment(pkt))
		return DROP_FRAGMENT;
	if (verdict == DROP_NO_NEXT_HOP && (flow.state & STATE_PHASE) == SLOT_EXPIRED)
		return too_late(pkt, role, &flow);	/* its sender is told, whether or not there is a way on */
	if (verdict != FORWARD_REQUEST && verdict != FORWARD_REPLY)
		return verdict;
	if ((flow.state & STATE_PHASE) == SLOT_EXPIRED)
		return too_late(pkt, role, &flow);
	verdict = fits(pkt, out.mtu, verdict);
	if (verdict != FORWARD_REQUEST && verdict != FORWARD_REPLY)
		return verdict;
	leave_trace(pkt, &flow, verdict);
	return send(pkt, &flow, &out, verdict);
}

#endif
