/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The answer to a packet that goes no further: a RST (RFC 9293, 3.10.7.1) or an ICMP error (RFC 792, 1191). */
#ifndef IPBACKEND_REJECT_H
#define IPBACKEND_REJECT_H

#define REPLY_TTL 64
#define ICMP_QUOTED 8		/* bytes of the datagram's payload that an ICMP error quotes (RFC 792) */

/* The one's complement sum of `words` 16-bit words, in network order. */
static __always_inline __u64 sum_words(const void *start, const void *end, int words)
{
	const __u16 *word = start;
	__u64 sum = 0;
	int i;

	for (i = 0; i < words; i++) {
		asm volatile("" : "+r"(word));	/* else clang computes the bound ahead, beyond the verifier */
		if ((const void *)(word + 1) > end)
			break;
		sum += *word++;
	}
	return sum;
}

/* Cut the frame to `want` bytes. The verifier allows end - start only as one step: the barrier keeps it one. */
static __always_inline bool cut(struct xdp_md *ctx, int want)
{
	long have = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	asm volatile("" : "+r"(have));
	return !bpf_xdp_adjust_tail(ctx, want - (int)have);
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 source[6];

	__builtin_memcpy(source, eth->h_source, 6);
	__builtin_memcpy(eth->h_source, eth->h_dest, 6);
	__builtin_memcpy(eth->h_dest, source, 6);
}

static __always_inline void write_ip(struct iphdr *ip, const struct tuple *asked, __u8 protocol, __u16 length)
{
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = 0;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = bpf_htons(IP_DONT_FRAGMENT);
	ip->ttl = REPLY_TTL;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = asked->daddr;
	ip->daddr = asked->saddr;
	ip->check = ~fold(sum_words(ip, ip + 1, sizeof(*ip) / 2));
}

/* The packet becomes its own answer: headers swapped, cut to a bare RST. */
static __always_inline bool reset(struct packet *pkt)
{
	const int length = sizeof(struct iphdr) + sizeof(struct tcphdr);
	struct tcphdr asked;
	__u32 header = pkt->ip->ihl * 4;
	__u32 sequence;
	struct xdp_md *ctx = pkt->ctx;
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;

	if (!pkt->ports || (void *)pkt->ports + sizeof(asked) > pkt->end)
		return false;
	asked = *(struct tcphdr *)pkt->ports;
	if (!cut(ctx, sizeof(*eth) + length))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > (void *)(long)ctx->data_end)
		return false;

	swap_macs(eth);
	write_ip(ip, &pkt->tuple, IPPROTO_TCP, length);
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = asked.dest;
	tcp->dest = asked.source;
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	if (asked.ack) {
		tcp->seq = asked.ack_seq;
	} else {
		sequence = bpf_ntohl(asked.seq) + pkt->length - header - asked.doff * 4 + asked.syn + asked.fin;
		tcp->ack = 1;
		tcp->ack_seq = bpf_htonl(sequence);
	}
	tcp->check = ~fold(sum_words(&ip->saddr, tcp + 1, 4 + sizeof(*tcp) / 2) +
			   bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(*tcp)));
	return true;
}

/* An ICMP error around the sender's own IP header, its options and 8 bytes more. */
static __always_inline bool icmp_error(struct packet *pkt, __u8 type, __u8 code, __u16 mtu)
{
	const int grown = sizeof(struct iphdr) + sizeof(struct icmphdr);
	__u32 quoted = (pkt->ip->ihl * 4 & 0x3c) + ICMP_QUOTED;
	struct ethhdr link = *pkt->eth;
	struct xdp_md *ctx = pkt->ctx;
	struct ethhdr *eth;
	struct iphdr *ip;
	struct icmphdr *icmp;

	if (!cut(ctx, sizeof(*eth) + quoted))
		return false;
	if (bpf_xdp_adjust_head(ctx, -grown))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	if ((void *)(icmp + 1) > (void *)(long)ctx->data_end)
		return false;

	*eth = link;
	swap_macs(eth);
	write_ip(ip, &pkt->tuple, IPPROTO_ICMP, grown + quoted);
	__builtin_memset(icmp, 0, sizeof(*icmp));
	icmp->type = type;
	icmp->code = code;
	icmp->un.frag.mtu = bpf_htons(mtu);
	icmp->checksum = ~fold(sum_words(icmp, (void *)(long)ctx->data_end,
					 (sizeof(*icmp) + MAX_IP_HEADER + ICMP_QUOTED) / 2));
	return true;
}

static __always_inline bool reject(struct packet *pkt, enum verdict verdict)
{
	__u8 type = ICMP_DEST_UNREACH, code = ICMP_PORT_UNREACH;

	if (verdict == REJECT_TTL) {
		type = ICMP_TIME_EXCEEDED;
		code = ICMP_EXC_TTL;
	} else if (verdict == REJECT_TOO_BIG) {
		code = ICMP_FRAG_NEEDED;
	} else if (is_tcp(pkt)) {
		return reset(pkt);
	}
	return icmp_error(pkt, type, code, pkt->mtu);
}

#endif
