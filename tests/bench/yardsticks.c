/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a packet costs at the least: nothing at all, and a full NAT of TCP that knows nothing but its one lookup. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>

#define IP_FRAGMENT 0x3fff	/* more fragments, and the offset */

struct key {
	u32 saddr;
	u32 daddr;
	u16 sport;
	u16 dport;
	u32 protocol;
};

/* What a packet leaves with. */
struct translation {
	u32 saddr;
	u32 daddr;
	u16 sport;
	u16 dport;
	u16 macs[6];
};

BPF_F_TABLE("array", u32, struct translation, by_index, FLOWS, 1024);
BPF_F_TABLE("hash", struct key, struct translation, by_tuple, FLOWS, 0);

struct packet {
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;
};

static __always_inline bool parse(struct xdp_md *ctx, struct packet *pkt)
{
	void *end = (void *)(long)ctx->data_end;
	u32 header;

	pkt->eth = (void *)(long)ctx->data;
	pkt->ip = (void *)(pkt->eth + 1);
	if ((void *)(pkt->ip + 1) > end || pkt->eth->h_proto != bpf_htons(ETH_P_IP))
		return false;
	header = pkt->ip->ihl * 4;
	if (header < sizeof(*pkt->ip) || pkt->ip->protocol != IPPROTO_TCP)
		return false;
	if ((pkt->ip->frag_off & bpf_htons(IP_FRAGMENT)) || pkt->ip->ttl <= 1)
		return false;
	pkt->tcp = (void *)pkt->ip + header;
	return (void *)(pkt->tcp + 1) <= end;
}

static __always_inline struct key key_of(const struct packet *pkt)
{
	struct key key = {
		.saddr = pkt->ip->saddr,
		.daddr = pkt->ip->daddr,
		.sport = pkt->tcp->source,
		.dport = pkt->tcp->dest,
		.protocol = IPPROTO_TCP,
	};

	return key;
}

static __always_inline u16 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* RFC 1624, equation 3. */
static __always_inline u16 adjust(u16 check, u64 delta)
{
	return ~fold((u16)~check + delta);
}

static __always_inline int translate(struct packet *pkt, const struct translation *want)
{
	struct iphdr *ip = pkt->ip;
	struct tcphdr *tcp = pkt->tcp;
	u16 *macs = (void *)pkt->eth;
	u64 delta;

	delta = (u64)(u32)~ip->saddr + want->saddr + (u32)~ip->daddr + want->daddr;
	ip->check = adjust(ip->check, delta + (u16)~bpf_htons(0x0100));
	ip->ttl--;
	ip->saddr = want->saddr;
	ip->daddr = want->daddr;
	delta += (u64)(u16)~tcp->source + want->sport + (u16)~tcp->dest + want->dport;
	tcp->check = adjust(tcp->check, delta);
	tcp->source = want->sport;
	tcp->dest = want->dport;
	macs[0] = want->macs[0];
	macs[1] = want->macs[1];
	macs[2] = want->macs[2];
	macs[3] = want->macs[3];
	macs[4] = want->macs[4];
	macs[5] = want->macs[5];
	return XDP_TX;
}

int empty(struct xdp_md *ctx)
{
	return XDP_TX;
}

/* The flow's number comes in its sequence number, where a cheaper index could hardly be. */
int array_nat(struct xdp_md *ctx)
{
	struct packet pkt;
	struct translation *want;
	u32 index;

	if (!parse(ctx, &pkt))
		return XDP_PASS;
	index = bpf_ntohl(pkt.tcp->seq) - 1;
	want = by_index.lookup(&index);
	return want ? translate(&pkt, want) : XDP_PASS;
}

int reference_nat(struct xdp_md *ctx)
{
	struct packet pkt;
	struct translation *want;
	struct key key;

	if (!parse(ctx, &pkt))
		return XDP_PASS;
	key = key_of(&pkt);
	want = by_tuple.lookup(&key);
	return want ? translate(&pkt, want) : XDP_PASS;
}

/* Not measured: puts the flow of the array into the hash as well. */
int fill(struct xdp_md *ctx)
{
	struct packet pkt;
	struct translation *want;
	struct key key;
	u32 index;

	if (!parse(ctx, &pkt))
		return XDP_ABORTED;
	index = bpf_ntohl(pkt.tcp->seq) - 1;
	want = by_index.lookup(&index);
	key = key_of(&pkt);
	if (want)
		by_tuple.update(&key, want);
	return XDP_DROP;
}
