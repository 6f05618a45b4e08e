/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* In place of quiet.h while packets are captured: each as it came and as it leaves, filtered here, to a ring. */
#ifndef IPBACKEND_CAPTURE_H
#define IPBACKEND_CAPTURE_H

#define CAPTURE_MOST 9216	/* bytes of a frame at most */
#define CAPTURE_LOOK 96		/* bytes of the leaving frame that are looked at for its addresses */
#define PAGE_SIZE 4096		/* as BCC counts the ring */
#define RING_PAGES 2048
#define RATE_TRIES 8

/* What is to be captured; 0 stands for any. The controller's. */
struct capture_order {
	__u64 verdicts;		/* a bit for each */
	__u64 interval;		/* nanoseconds between two packets at the highest rate */
	__u64 burst;		/* nanoseconds' worth of packets that may come at once */
	__be32 client;
	__be32 client_mask;
	__be32 vip;
	__be32 member;
	__be16 vip_port;
	__be16 member_port;
	__u32 most;		/* bytes of each frame */
};

/* Changed by atomics. */
struct capture_tally {
	__u64 next;		/* nanoseconds: when the next packet would be due if all came evenly */
	__u64 over_rate;	/* packets that came too fast */
	__u64 lost;		/* that the ring had no room for */
};

/* One packet in the ring: this, then the bytes of both frames. What does not leave has no second one. */
struct captured {
	__u64 at;		/* nanoseconds of CLOCK_MONOTONIC */
	__u32 verdict;
	__u32 action;		/* enum xdp_action */
	__u32 came_by;		/* interface */
	__u32 leaves_by;
	__u32 came_length;	/* bytes of the frame, and how many of them follow */
	__u32 came_kept;
	__u32 left_length;
	__u32 left_kept;
};

/* A packet on its way through the programs, on this CPU; came_kept is 0 where there is none. */
struct sight {
	struct captured captured;
	__u8 bytes[2 * CAPTURE_MOST];
};

/* Not pinned: they come and go with the capture. */
BPF_F_TABLE("array", __u32, struct capture_order, capture_orders, 1, MMAPABLE);
BPF_F_TABLE("array", __u32, struct capture_tally, capture_tallies, 1, MMAPABLE);
BPF_F_TABLE("percpu_array", __u32, struct sight, sights, 1, 0);
BPF_TABLE("prog", __u32, __u32, capture_road, 1);
BPF_RINGBUF_OUTPUT(capture_ring, RING_PAGES);

/* The two ends of a frame, as far as it names them. */
struct ends {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
};

/* The first bytes of a frame of this length, at most `most`: how many, 0 if there is none. */
static __always_inline __u64 copy_frame(struct xdp_md *ctx, __u8 *to, __u64 length, __u64 most)
{
	if (length > most)
		length = most;
	asm volatile("" : "+r"(length));	/* else clang makes one comparison of two, which the verifier cannot follow */
	if (length > CAPTURE_MOST)
		return 0;
	asm volatile("" : "+r"(length));
	if (!length || bpf_xdp_load_bytes(ctx, 0, to, length))
		return 0;
	return length;
}

/* Of an ICMP error those of the datagram that it quotes, turned round: it travels against it. */
static __always_inline bool ends_of(const __u8 *frame, __u32 kept, struct ends *ends)
{
	__u32 at = sizeof(struct ethhdr), protocol = *(const __be16 *)(frame + at - 2);
	const struct iphdr *ip;
	const struct icmphdr *icmp;
	const struct ports *ports;
	bool turned = false;

	if (protocol == bpf_htons(ETH_P_8021Q)) {
		at += sizeof(struct vlan);
		protocol = *(const __be16 *)(frame + at - 2);
	}
	if (protocol != bpf_htons(ETH_P_IP) || kept < at + sizeof(*ip))
		return false;
	ip = (const void *)(frame + at);
	at += ip->ihl * 4;
	icmp = (const void *)(frame + at);
	if (ip->protocol == IPPROTO_ICMP && kept >= at + sizeof(*icmp) + sizeof(*ip) &&
	    (icmp->type == ICMP_DEST_UNREACH || icmp->type == ICMP_TIME_EXCEEDED || icmp->type == ICMP_PARAMETERPROB)) {
		ip = (const void *)(icmp + 1);
		at += sizeof(*icmp) + ip->ihl * 4;
		turned = true;
	}
	ends->saddr = turned ? ip->daddr : ip->saddr;
	ends->daddr = turned ? ip->saddr : ip->daddr;
	if (ip->frag_off & bpf_htons(IP_OFFSET) || kept < at + sizeof(*ports))
		return true;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return true;
	ports = (const void *)(frame + at);
	ends->sport = turned ? ports->dest : ports->source;
	ends->dport = turned ? ports->source : ports->dest;
	return true;
}

/* Whether the ends that are known of a packet's connection are the wanted ones. */
static __always_inline bool is_wanted(const struct capture_order *order, const struct ends *came,
				      const struct ends *leaving, bool from_member)
{
	const struct ends *client_side = from_member ? leaving : came, *member_side = from_member ? came : leaving;
	__be32 client = from_member ? client_side->daddr : client_side->saddr;
	__be32 vip = from_member ? client_side->saddr : client_side->daddr;
	__be16 vip_port = from_member ? client_side->sport : client_side->dport;
	__be32 member = from_member ? member_side->saddr : member_side->daddr;
	__be16 member_port = from_member ? member_side->sport : member_side->dport;

	if ((client & order->client_mask) != order->client)
		return false;
	if ((order->vip && vip != order->vip) || (order->vip_port && vip_port != order->vip_port))
		return false;
	if ((order->member && member != order->member) || (order->member_port && member_port != order->member_port))
		return false;
	return true;
}

/* Whether one packet more may be captured now: all CPUs together, evenly but for bursts. */
static __always_inline bool is_within_rate(const struct capture_order *order, struct capture_tally *tally, __u64 at)
{
	__u64 have, next;
	int i;

	for (i = 0; i < RATE_TRIES; i++) {
		have = *(volatile __u64 *)&tally->next;
		next = (__s64)(have - at + order->burst) < 0 ? at - order->burst : have;
		if ((__s64)(next - at) >= 0)
			return false;
		if (__sync_val_compare_and_swap(&tally->next, have, next + order->interval) == have)
			return true;
	}
	return false;
}

/* A packet as it came. */
static __always_inline void arrived(struct xdp_md *ctx)
{
	struct capture_order *order = capture_orders.lookup(&(__u32){ 0 });
	struct sight *sight = sights.lookup(&(__u32){ 0 });

	if (!order || !sight)
		return;
	sight->captured.came_by = ctx->ingress_ifindex;
	sight->captured.came_length = bpf_xdp_get_buff_len(ctx);
	sight->captured.came_kept = copy_frame(ctx, sight->bytes, sight->captured.came_length, order->most);
}

/* A packet as it leaves, on its way to this action: by the road below, if its verdict is a wanted one. */
static __always_inline void left(struct packet *pkt, enum verdict verdict, int action)
{
	struct capture_order *order = capture_orders.lookup(&(__u32){ 0 });
	struct sight *sight = sights.lookup(&(__u32){ 0 });

	if (!order || !sight || !sight->captured.came_kept)
		return;
	if (order->verdicts & 1ULL << verdict) {
		sight->captured.verdict = verdict;
		sight->captured.action = action;
		sight->captured.leaves_by = action == XDP_REDIRECT ? pkt->interface : pkt->ctx->ingress_ifindex;
		capture_road.call(pkt->ctx, 0);
	}
	sight->captured.came_kept = 0;
}

static __always_inline void record(struct xdp_md *ctx, struct sight *sight)
{
	struct capture_order *order = capture_orders.lookup(&(__u32){ 0 });
	struct capture_tally *tally = capture_tallies.lookup(&(__u32){ 0 });
	struct captured *captured = &sight->captured;
	struct ends came = {}, leaving = {};
	__u64 kept = captured->came_kept, more = 0;
	__u8 *behind;
	bool leaves = captured->action == XDP_TX || captured->action == XDP_REDIRECT;

	if (!order || !tally || kept > CAPTURE_MOST)
		return;
	behind = sight->bytes + kept;
	captured->left_length = 0;
	captured->left_kept = 0;
	ends_of(sight->bytes, kept, &came);
	if (leaves) {
		captured->left_length = bpf_xdp_get_buff_len(ctx);
		if (captured->verdict <= FORWARD_ICMP_ERROR)	/* an answer names the same end again */
			ends_of(behind, copy_frame(ctx, behind, captured->left_length, CAPTURE_LOOK), &leaving);
	}
	if (!is_wanted(order, &came, &leaving, role_of(came.daddr) >> ROLE_SHIFT == ROLE_SNAT))
		return;
	captured->at = bpf_ktime_get_ns();
	if (!is_within_rate(order, tally, captured->at)) {
		__sync_fetch_and_add(&tally->over_rate, 1);
		return;
	}
	if (leaves)
		more = copy_frame(ctx, behind, captured->left_length, order->most);
	captured->left_kept = more;
	if (capture_ring.ringbuf_output(sight, sizeof(*captured) + kept + more, 0))
		__sync_fetch_and_add(&tally->lost, 1);
}

/* The road of what may be captured; it leaves as it would have left. */
int ipbackend_capture(struct xdp_md *ctx)
{
	struct sight *sight = sights.lookup(&(__u32){ 0 });

	if (!sight)
		return XDP_ABORTED;
	record(ctx, sight);
	sight->captured.came_kept = 0;
	return sight->captured.action;
}

#endif
