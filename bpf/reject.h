/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The answer to a packet that goes no further: a RST (RFC 9293, 3.10.7.1) or an ICMP error (RFC 792, 1191, 1812). */
#ifndef IPBACKEND_REJECT_H
#define IPBACKEND_REJECT_H

#define REPLY_TTL 64
#define ICMP_LENGTH 576		/* bytes of an error's datagram at most (RFC 1812, 4.3.2.3) */
#define ICMP_HEADERS (sizeof(struct iphdr) + sizeof(struct icmphdr))
#define INTERNETWORK_CONTROL 0xc0	/* precedence of errors (RFC 1812, 4.3.2.5) */
#define TOS_WITHOUT_PRECEDENCE 0x1e

/* Cut the frame to `want` bytes. */
static __always_inline bool cut(struct xdp_md *ctx, int want)
{
	return !bpf_xdp_adjust_tail(ctx, want - (int)bpf_xdp_get_buff_len(ctx));
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 source[6];

	__builtin_memcpy(source, eth->h_source, 6);
	__builtin_memcpy(eth->h_source, eth->h_dest, 6);
	__builtin_memcpy(eth->h_dest, source, 6);
}

static __always_inline void write_ip(struct iphdr *ip, const struct tuple *asked, __u8 protocol, __u8 tos, __u16 length)
{
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = tos;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = bpf_htons(IP_DONT_FRAGMENT);
	ip->ttl = REPLY_TTL;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = asked->daddr;
	ip->daddr = asked->saddr;
	ip->check = ~fold(sum_words(ip, ip + 1, sizeof(*ip) / 2, sizeof(*ip) / 2));
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
	if (!cut(ctx, pkt->link_header + length))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)eth + (pkt->link_header & 31);
	tcp = (void *)(ip + 1);
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end || (void *)(tcp + 1) > (void *)(long)ctx->data_end)
		return false;

	swap_macs(eth);
	write_ip(ip, &pkt->tuple, IPPROTO_TCP, 0, length);
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
	tcp->check = ~fold(sum_words(&ip->saddr, tcp + 1, 4 + sizeof(*tcp) / 2, 4 + sizeof(*tcp) / 2) +
			   bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(*tcp)));
	return true;
}

/* Whether one more ICMP error may be sent now (RFC 1812, 4.3.2.8), by this CPU. */
static __always_inline bool is_due_error(struct answer *answer)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });

	return settings && may_come(&answer->next_error, settings->error_interval);
}

/* An ICMP error around as much of the sender's own datagram as it may hold. */
static __always_inline bool icmp_error(struct packet *pkt, __u8 type, __u8 code, __u16 mtu)
{
	__u32 quoted = (void *)(long)pkt->ctx->data_end - (void *)pkt->ip, header = pkt->link_header;
	__u8 tos = INTERNETWORK_CONTROL | (pkt->ip->tos & TOS_WITHOUT_PRECEDENCE);
	struct { struct ethhdr eth; struct vlan vlan; } link, *front;
	struct xdp_md *ctx = pkt->ctx;
	struct iphdr *ip;
	struct icmphdr *icmp;

	front = (void *)pkt->eth;
	if ((void *)(front + 1) > pkt->end)
		return false;
	link = *front;
	if (quoted > pkt->length)
		quoted = pkt->length;
	if (quoted > ICMP_LENGTH - ICMP_HEADERS)
		quoted = ICMP_LENGTH - ICMP_HEADERS;
	quoted &= ~1;		/* whole words, to be summed */
	if (!cut(ctx, header + quoted))
		return false;
	if (bpf_xdp_adjust_head(ctx, -(int)ICMP_HEADERS))
		return false;
	front = (void *)(long)ctx->data;
	ip = (void *)front + (header & 31);
	icmp = (void *)(ip + 1);
	if ((void *)(front + 1) > (void *)(long)ctx->data_end || (void *)(icmp + 1) > (void *)(long)ctx->data_end)
		return false;

	*front = link;		/* the tag's room is the IP header's where there is no tag */
	swap_macs(&front->eth);
	write_ip(ip, &pkt->tuple, IPPROTO_ICMP, tos, ICMP_HEADERS + quoted);
	__builtin_memset(icmp, 0, sizeof(*icmp));
	icmp->type = type;
	icmp->code = code;
	icmp->un.frag.mtu = bpf_htons(mtu);
	icmp->checksum = ~fold(sum_words(icmp, (void *)(long)ctx->data_end,
					 (ICMP_LENGTH - sizeof(*ip)) / 2, (sizeof(*icmp) + quoted) / 2));
	return true;
}

/* The road of a packet that is answered: it becomes its own answer. */
static __always_inline enum verdict reject(struct packet *pkt)
{
	struct answer *answer = answers.lookup(&(__u32){ 0 });
	__u8 type = ICMP_DEST_UNREACH, code = ICMP_PORT_UNREACH;
	enum verdict verdict;
	__u32 role;

	if (!answer)
		return DROP_NO_ROAD;
	verdict = parse(pkt, &role);
	if (verdict != NEXT_STEP && verdict != REJECT_TTL)
		return verdict;
	verdict = answer->verdict;
	if (verdict == REJECT_TTL) {
		type = ICMP_TIME_EXCEEDED;
		code = ICMP_EXC_TTL;
	} else if (verdict == REJECT_TOO_BIG) {
		code = ICMP_FRAG_NEEDED;
	} else if (is_tcp(pkt)) {
		return reset(pkt) ? verdict : DROP_MALFORMED;
	}
	if (!is_due_error(answer))
		return DROP_ERROR_RATE;
	return icmp_error(pkt, type, code, answer->mtu) ? verdict : DROP_MALFORMED;
}

#endif
