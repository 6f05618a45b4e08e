// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A flood of datagrams written one by one, and the ends that count what arrives. It knows no gateway.
 *
 * Everything runs on one core, one after the other: hence no per-CPU map and no atomic counter.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/udp.h>

#define HEADERS 42		/* size of struct headers; BCC cannot describe an array of sizeof */
#define PAYLOAD 22

struct headers {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

struct datagram {
	struct headers headers;
	u8 payload[PAYLOAD];
} __attribute__((packed));

enum mode { COUNT, VERIFY, ANSWER };
enum side { AT_CLIENT, AT_MEMBER };

struct order {
	u32 interface;		/* out of which the flood goes */
	u32 flows;
	u32 next;		/* number of the next datagram */
	u32 random;		/* flows in random order instead of one after the other */
	u32 udp_sum;		/* of everything but the source port, not folded */
	u32 first_port;		/* source port of flow 0 */
	u8 headers[HEADERS];	/* source port and UDP checksum are filled in */
	u8 pad[6];
};

struct end {
	u32 destination;	/* what arrives here should look so: addresses in network order, */
	u32 first_source;	/* this one in host order */
	u32 sources;		/* that many, one after the other */
	u16 destination_port;	/* in network order, 0: any */
	u16 source_port;	/* the same */
	u32 mode;		/* COUNT, or VERIFY checksums too, or ANSWER what is right */
	u32 right;
	u32 wrong;
	u32 pad;
};

BPF_ARRAY(orders, struct order, 1);
BPF_ARRAY(ends, struct end, 2);		/* by side */

static __always_inline u32 scrambled(u32 number)
{
	number *= 0x9e3779b1;
	number ^= number >> 15;
	number *= 0x85ebca77;
	number ^= number >> 13;
	return number;
}

static __always_inline u16 folded(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Headers are written whole each time: the frame comes back as the path left it. */
int flood(struct xdp_md *ctx)
{
	struct datagram *frame = (void *)(long)ctx->data;
	u32 zero = 0, flow = 0;
	struct order *order = orders.lookup(&zero);
	u16 port;

	if (!order || (void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (order->random) {
		flow = ((u64)scrambled(order->next++) * order->flows) >> 32;
	} else {
		flow = order->next++;
		if (order->next >= order->flows)
			order->next = 0;
	}
	port = bpf_htons((u16)(order->first_port + flow));
	__builtin_memcpy(&frame->headers, order->headers, sizeof(frame->headers));
	frame->headers.udp.source = port;
	frame->headers.udp.check = (u16)~folded(order->udp_sum + port) ?: 0xffff;
	return bpf_redirect(order->interface, 0);
}

static __always_inline bool sums_right(struct datagram *frame)
{
	u16 *ip = (u16 *)&frame->headers.ip, *udp = (u16 *)&frame->headers.udp;
	u32 sum = 0;

#pragma unroll
	for (int i = 0; i < sizeof(struct iphdr) / 2; i++)
		sum += ip[i];
	if (folded(sum) != 0xffff)
		return false;
	sum = ip[6] + ip[7] + ip[8] + ip[9] + bpf_htons(IPPROTO_UDP) + frame->headers.udp.len;
#pragma unroll
	for (int i = 0; i < (sizeof(struct udphdr) + PAYLOAD) / 2; i++)
		sum += udp[i];
	return frame->headers.udp.check && folded(sum) == 0xffff;
}

static __always_inline int send_back(struct xdp_md *ctx, struct headers *headers)
{
	u32 address = headers->ip.saddr;
	u16 port = headers->udp.source;
	u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, headers->eth.h_dest, ETH_ALEN);
	__builtin_memcpy(headers->eth.h_dest, headers->eth.h_source, ETH_ALEN);
	__builtin_memcpy(headers->eth.h_source, mac, ETH_ALEN);
	headers->ip.saddr = headers->ip.daddr;
	headers->ip.daddr = address;
	headers->udp.source = headers->udp.dest;
	headers->udp.dest = port;
	/* Not XDP_TX: a peer without an XDP program of its own does not take that. */
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

static __always_inline int arrive(struct xdp_md *ctx, u32 side)
{
	struct datagram *frame = (void *)(long)ctx->data;
	struct headers *headers = &frame->headers;
	struct end *end = ends.lookup(&side);
	bool right;

	if (!end || (void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	if (headers->eth.h_proto != bpf_htons(ETH_P_IP) || headers->ip.protocol != IPPROTO_UDP)
		return XDP_PASS;
	right = headers->ip.daddr == end->destination &&
		(!end->destination_port || headers->udp.dest == end->destination_port) &&
		bpf_ntohl(headers->ip.saddr) - end->first_source < end->sources &&
		(!end->source_port || headers->udp.source == end->source_port);
	if (end->mode != COUNT)
		right = right && sums_right(frame);
	if (!right) {
		end->wrong++;
		return XDP_DROP;
	}
	end->right++;
	return end->mode == ANSWER ? send_back(ctx, headers) : XDP_DROP;
}

int client_end(struct xdp_md *ctx)
{
	return arrive(ctx, AT_CLIENT);
}

int member_end(struct xdp_md *ctx)
{
	return arrive(ctx, AT_MEMBER);
}

/* A patch cable: what comes in on one side goes out on the other, untouched. */
int patch(struct xdp_md *ctx)
{
	return bpf_redirect(ctx->ingress_ifindex == CLIENT_SIDE ? MEMBER_SIDE : CLIENT_SIDE, 0);
}
