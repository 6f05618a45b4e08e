/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One packet from top to bottom, the one exit; and the sweep. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/in.h>

#include "abi.h"
#include "maps.h"
#include "verifier.h"
#include "clock.h"
#include "directory.h"
#include "parse.h"
#include "flow_index.h"
#include "slots.h"
#include "sequence.h"
#include "events.h"
#include "conntrack.h"
#include "rewrite.h"
#include "forward.h"
#include "fragment.h"
#include "uncommon.h"
#include "limits.h"
#include "persistence.h"
#include "schedule.h"
#include "open.h"
#include "icmp.h"
#include "reject.h"
#include "sweep.h"
#include "guard.h"
#include "reclaim.h"
#include "quiet.h"

static __always_inline int action_of(enum verdict verdict, struct packet *pkt)
{
	if (verdict <= PASS_ECHO)
		return XDP_PASS;
	if (verdict <= FORWARD_ICMP_ERROR) {
		if (pkt->interface == pkt->ctx->ingress_ifindex)
			return XDP_TX;
		return bpf_redirect(pkt->interface, 0);
	}
	return verdict <= REJECT_EXPIRED ? XDP_TX : XDP_DROP;
}

/* One packet more. Those under NEXT_STEP are all that entered: what left is counted under the other verdicts. */
static __always_inline void count(enum verdict verdict)
{
	__u32 row = verdict;
	__u64 *count = verdicts.lookup(&row);

	if (count)
		(*count)++;
}

/* The one exit: every packet is counted under the verdict it left with. */
static __always_inline int leave(struct packet *pkt, enum verdict verdict)
{
	int action;

	count(verdict);
	action = action_of(verdict, pkt);
	left(pkt, verdict, action);
	return action;
}

/* Left by one of the roads behind the first: to be answered on another one. */
static __always_inline int leave_or_answer(struct packet *pkt, enum verdict verdict)
{
	struct answer *answer = answers.lookup(&(__u32){ 0 });

	if (verdict >= REJECT_NO_LISTENER && verdict <= REJECT_EXPIRED && answer) {
		answer->verdict = verdict;
		answer->mtu = pkt->mtu;
		roads.call(pkt->ctx, ROAD_REJECT);
		verdict = DROP_NO_ROAD;
	}
	return leave(pkt, verdict);
}

/* Every packet enters here. What is rare takes a road of its own, so that the common one stays short. */
int ipbackend(struct xdp_md *ctx)
{
	struct packet pkt = { .ctx = ctx };
	enum verdict verdict;

	arrived(ctx);
	count(NEXT_STEP);
	verdict = forward(&pkt);
	if (verdict == NEXT_STEP) {
		if (pkt.road == ROAD_OPEN)
			roads.call(ctx, ROAD_OPEN);
		else if (pkt.road == ROAD_RECLAIM)
			roads.call(ctx, ROAD_RECLAIM);
		else if (pkt.road == ROAD_ICMP)
			roads.call(ctx, ROAD_ICMP);
		else
			roads.call(ctx, ROAD_UNCOMMON);
		verdict = DROP_NO_ROAD;
	}
	return leave(&pkt, verdict);
}

/* The common road once more, with all that may be uncommon on it. */
int ipbackend_uncommon(struct xdp_md *ctx)
{
	struct packet pkt = { .ctx = ctx };
	enum verdict verdict = forward_uncommon(&pkt);

	if (verdict == NEXT_STEP) {
		if (pkt.road == ROAD_ICMP)
			roads.call(ctx, ROAD_ICMP);
		else if (pkt.road == ROAD_RECLAIM)
			roads.call(ctx, ROAD_RECLAIM);
		else
			roads.call(ctx, ROAD_OPEN);
		verdict = DROP_NO_ROAD;
	}
	return leave_or_answer(&pkt, verdict);
}

/* The road of a client's packet that belongs to no connection. */
int ipbackend_open(struct xdp_md *ctx)
{
	struct packet pkt = { .ctx = ctx };
	enum verdict verdict = open_or_refuse(&pkt);

	if (verdict == NEXT_STEP) {
		roads.call(ctx, ROAD_OPEN);	/* again, some thirty times at most */
		verdict = DROP_NOT_OPENED;
	}
	return leave_or_answer(&pkt, verdict);
}

/* The road of ICMP. */
int ipbackend_icmp(struct xdp_md *ctx)
{
	struct packet pkt = { .ctx = ctx };

	return leave(&pkt, forward_icmp(&pkt));
}

/* The road of what is answered. */
int ipbackend_reject(struct xdp_md *ctx)
{
	struct packet pkt = { .ctx = ctx };

	return leave(&pkt, reject(&pkt));
}

/* The same road, while nobody sweeps. */
int ipbackend_reclaim(struct xdp_md *ctx)
{
	struct packet pkt = { .ctx = ctx };

	reclaim(&pkt);
	roads.call(ctx, ROAD_OPEN);
	return leave(&pkt, DROP_NO_ROAD);
}

/* Stands behind XDP, where packets enter the kernel: while XDP is away, connections wait instead of being reset. */
int ipbackend_guard(struct __sk_buff *skb)
{
	return guard(skb);
}

/* Run by the controller on a frame that is a struct sweep; looks at SWEEP_SLICE slots from its cursor on. */
int ipbackend_sweep(struct __sk_buff *skb)
{
	struct sweep *sweep = (void *)(long)skb->data;
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	struct endpoint *endpoint;
	__u32 at = now(), i;

	if ((void *)(sweep + 1) > (void *)(long)skb->data_end || !settings)
		return 0;
	sweep->at = at;
	endpoint = endpoints.lookup(&sweep->endpoint);
	for (i = 0; endpoint && i < SWEEP_SLICE && sweep->slot < endpoint->slots; i++) {
		sweep_slot(sweep, endpoint->first + sweep->slot, at, settings);
		sweep->slot++;
		if (sweep->mode == SWEEP_KILLED)
			break;
	}
	return 0;
}
