/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Makes the next frame of a row in the kernel and hands it to a target. It knows no target and no verdict. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#define MAX_CPUS 64
#define MAX_VISITS 32
#define MAX_LAPS 16384
#define MAX_TARGETS 4
#define HEADER 20		/* of IP; a TCP header is as long, and so is a datagram of UDP here */
#define MMAPABLE 1024

/* What differs from frame to frame. Network order, checksums too. */
struct shot {
	u32 saddr;
	u32 daddr;
	u32 sequence;		/* and acknowledgement */
	u16 sport;
	u16 dport;
	u16 ip_check;
	u16 check;
	u8 protocol;
	u8 flags;
	u8 ttl;
	u8 pad;
};

/*
 * `laps` times a lap of a row goes to a target and is measured; where there is an undo row, the same lap of that
 * follows each time, unmeasured.
 */
struct visit {
	u32 first;
	u32 undo_first;
	u32 span;		/* of either row; after the last shot comes the first */
	u32 start;		/* the first lap's first shot, from the row's first on */
	u32 lap;		/* packets */
	u32 laps;
	u32 target;
	u32 has_undo;
};

/* One CPU's way through its visits, round and round. The clock is read between laps only. */
struct orders {
	struct visit visit;	/* as it is now: `start` is the next shot, `laps` are those that follow this one */
	u32 undo_start;
	u32 visits;
	u32 next;		/* visit */
	u32 undoing;
	u32 left;		/* of this lap */
	u32 timed;		/* laps so far */
	u64 started;		/* ns; 0 while nothing is measured */
	u64 pad;		/* up to a cache line */
};

BPF_F_TABLE("array", u32, struct visit, visits, MAX_CPUS * MAX_VISITS, MMAPABLE);
BPF_F_TABLE("array", u32, struct orders, orders, MAX_CPUS, MMAPABLE);
BPF_F_TABLE("array", u32, u64, lap_times, MAX_CPUS * MAX_LAPS, MMAPABLE);	/* ns */
BPF_F_TABLE("array", u32, struct shot, shots, SHOTS, MMAPABLE);
BPF_F_TABLE("array", u32, struct shot, seen, SEEN, MMAPABLE);
BPF_PROG_ARRAY(targets, MAX_TARGETS);

struct frame {
	struct ethhdr *eth;
	struct iphdr *ip;
	union {
		struct tcphdr *tcp;
		struct udphdr *udp;
		void *transport;
	};
};

static __always_inline bool find(struct xdp_md *ctx, struct frame *frame)
{
	frame->eth = (void *)(long)ctx->data;
	frame->ip = (void *)(frame->eth + 1);
	frame->transport = frame->ip + 1;
	return frame->transport + HEADER <= (void *)(long)ctx->data_end;
}

/* Between two laps. */
static __always_inline void turn(struct orders *order, u32 cpu)
{
	u64 now = bpf_ktime_get_ns(), *time;
	struct visit *visit;
	u32 number;

	if (order->started) {
		number = cpu * MAX_LAPS + order->timed++;
		time = lap_times.lookup(&number);
		if (time)
			*time = now - order->started;
		order->undoing = order->visit.has_undo;
	} else {
		order->undoing = 0;
	}
	if (!order->undoing && !order->visit.laps--) {
		number = cpu * MAX_VISITS + order->next;
		order->next = order->next + 1 < order->visits ? order->next + 1 : 0;
		visit = visits.lookup(&number);
		if (visit) {
			order->visit = *visit;
			order->visit.laps--;
			order->undo_start = visit->start;
		}
	}
	order->started = order->undoing ? 0 : now;
	order->left = order->visit.lap;
}

static __always_inline u32 advance(u32 *next, u32 span)
{
	u32 current = *next;

	*next = current + 1 < span ? current + 1 : 0;
	return current;
}

static __always_inline struct shot *next_shot(struct orders *order, u32 cpu)
{
	u32 index;

	if (!order->left)
		turn(order, cpu);
	order->left--;
	if (order->undoing)
		index = order->visit.undo_first + advance(&order->undo_start, order->visit.span);
	else
		index = order->visit.first + advance(&order->visit.start, order->visit.span);
	return shots.lookup(&index);
}

/*
 * By constants, which become direct jumps. The empty assembly keeps the compiler from making one call with a
 * variable of the four, which would be a retpoline.
 */
static __always_inline int hand_on(struct xdp_md *ctx, u32 target)
{
	if (target == 0) {
		targets.call(ctx, 0);
		asm volatile("" : : "i"(0));
	} else if (target == 1) {
		targets.call(ctx, 1);
		asm volatile("" : : "i"(1));
	} else if (target == 2) {
		targets.call(ctx, 2);
		asm volatile("" : : "i"(2));
	} else {
		targets.call(ctx, 3);
		asm volatile("" : : "i"(3));
	}
	return XDP_ABORTED;
}

/* Written whole: the frame comes back as the target left it. */
static __always_inline void write(const struct frame *frame, const struct shot *shot)
{
	u16 *mac = (void *)frame->eth;
	u32 *word = (void *)frame->ip;

	mac[0] = bpf_htons(0x0200);
	mac[1] = 0;
	mac[2] = bpf_htons(0x0100);
	mac[3] = bpf_htons(0x0200);
	mac[4] = 0;
	mac[5] = bpf_htons(0x0007);
	mac[6] = bpf_htons(ETH_P_IP);
	word[0] = bpf_htonl(0x45000000 | 2 * HEADER);
	word[1] = 0;
	frame->ip->ttl = shot->ttl;
	frame->ip->protocol = shot->protocol;
	frame->ip->check = shot->ip_check;
	frame->ip->saddr = shot->saddr;
	frame->ip->daddr = shot->daddr;
	word = frame->transport;
	if (shot->protocol == IPPROTO_TCP) {
		frame->tcp->source = shot->sport;
		frame->tcp->dest = shot->dport;
		frame->tcp->seq = shot->sequence;
		frame->tcp->ack_seq = shot->sequence;
		word[3] = bpf_htonl(0x50002000 | (u32)shot->flags << 16);
		frame->tcp->check = shot->check;
		frame->tcp->urg_ptr = 0;
	} else {
		frame->udp->source = shot->sport;
		frame->udp->dest = shot->dport;
		frame->udp->len = bpf_htons(HEADER);
		frame->udp->check = shot->check;
		word[2] = 0;
		word[3] = 0;
		word[4] = 0;
	}
}

/* The measured one. */
int drive(struct xdp_md *ctx)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct orders *order = orders.lookup(&cpu);
	struct frame frame;
	struct shot *shot;

	if (!order || !find(ctx, &frame))
		return XDP_ABORTED;
	shot = next_shot(order, cpu);
	if (!shot)
		return XDP_ABORTED;
	write(&frame, shot);
	return hand_on(ctx, order->visit.target);
}

/* What the target has left of the frame before. */
static __always_inline void read(const struct frame *frame, struct shot *shot)
{
	shot->saddr = frame->ip->saddr;
	shot->daddr = frame->ip->daddr;
	shot->ip_check = frame->ip->check;
	shot->ttl = frame->ip->ttl;
	shot->protocol = frame->ip->protocol;
	shot->sport = frame->tcp->source;
	shot->dport = frame->tcp->dest;
	if (shot->protocol == IPPROTO_TCP) {
		shot->sequence = frame->tcp->seq;
		shot->flags = ((u8 *)frame->tcp)[13];
		shot->check = frame->tcp->check;
	} else {
		shot->sequence = 0;
		shot->flags = 0;
		shot->check = frame->udp->check;
	}
}

/* The same, not to be measured: notes how each frame leaves, the one of run N when run N + 1 begins. */
int observe(struct xdp_md *ctx)
{
	u32 cpu = bpf_get_smp_processor_id(), before;
	struct orders *order = orders.lookup(&cpu);
	struct frame frame;
	struct shot *shot, *left;

	if (!order || !find(ctx, &frame))
		return XDP_ABORTED;
	before = order->visit.start - 1;
	left = seen.lookup(&before);
	if (left)
		read(&frame, left);
	if (order->visit.start == order->visit.span)
		return XDP_ABORTED;
	before = order->visit.first + order->visit.start++;
	shot = shots.lookup(&before);
	if (!shot)
		return XDP_ABORTED;
	write(&frame, shot);
	return hand_on(ctx, order->visit.target);
}
