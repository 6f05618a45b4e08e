/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors about our connections, translated outside and inside for the end that they concern (RFC 5508). */
#ifndef IPBACKEND_ICMP_H
#define IPBACKEND_ICMP_H

#define CHECKED_ICMP 576	/* bytes: what an error, with its IP header, is to stay within (RFC 1812, 4.3.2.3) */

static __always_inline bool is_icmp_error(const struct icmphdr *icmp)
{
	return icmp->type == ICMP_DEST_UNREACH || icmp->type == ICMP_TIME_EXCEEDED ||
	       icmp->type == ICMP_PARAMETERPROB;
}

/* The datagram that an error quotes: one that we sent, as its receiver saw it. */
struct quote {
	struct icmphdr *icmp;
	struct iphdr *ip;
	struct ports *ports;
	__sum16 *check;		/* of UDP; of TCP if quoted so far, which only 8 bytes must be: else NULL */
	struct tuple tuple;
};

/*
 * The checksum of a message (RFC 5508, REQ-3). One longer than that is left to its receiver: what is wrong
 * stays wrong, since ours are adjusted, not computed anew.
 */
static __always_inline bool is_intact(const struct packet *pkt)
{
	__u32 header = pkt->ip->ihl * 4, length = pkt->length - header;
	const __u8 *icmp = (const __u8 *)pkt->ip + (forgotten(header) & 63);
	const __u8 *last = icmp + ((length - 1) & 1023);
	__u64 sum;

	if (length > CHECKED_ICMP)
		return true;
	if (last + 1 > (const __u8 *)pkt->end)
		return false;
	sum = sum_words(icmp, pkt->end, CHECKED_ICMP / 2, length / 2);
	if (length & 1)
		sum += *last;
	return fold(sum) == 0xffff;
}

/* The checksum of a quoted IP header (RFC 5508, REQ-3a). */
static __always_inline bool is_quote_intact(const struct packet *pkt, const struct quote *quote)
{
	__u32 header = pkt->ip->ihl * 4 + sizeof(struct icmphdr);
	const void *quoted = (const void *)pkt->ip + (forgotten(header) & 127);

	return fold(sum_words(quoted, pkt->end, MAX_IP_HEADER / 2, quote->ip->ihl * 2)) == 0xffff;
}

/* False: it quotes nothing that could be ours. */
static __always_inline bool parse_quote(const struct packet *pkt, struct quote *quote)
{
	struct icmphdr *icmp = (void *)pkt->ip + pkt->ip->ihl * 4;
	struct iphdr *ip = (void *)(icmp + 1);
	void *end = (void *)pkt->ip + pkt->length;
	struct udphdr *transport;
	__sum16 *check;

	if ((void *)(ip + 1) > pkt->end)
		return false;
	if (ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(IP_OFFSET))
		return false;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return false;
	transport = (void *)ip + ip->ihl * 4;
	if ((void *)(transport + 1) > pkt->end || (void *)(transport + 1) > end)
		return false;
	check = &transport->check;
	if (ip->protocol == IPPROTO_TCP) {
		check = &((struct tcphdr *)transport)->check;
		if ((void *)(check + 1) > pkt->end || (void *)(check + 1) > end)
			check = NULL;
	}
	asm volatile("" : "+r"(check));	/* else clang tells NULL by the protocol, which the verifier cannot */

	quote->icmp = icmp;
	quote->ip = ip;
	quote->ports = (void *)transport;
	quote->check = check;
	quote->tuple.saddr = ip->saddr;
	quote->tuple.daddr = ip->daddr;
	quote->tuple.sport = transport->source;
	quote->tuple.dport = transport->dest;
	quote->tuple.protocol = ip->protocol;
	return true;
}

/* The connection that the quoted datagram belongs to, and the way to the end that sent it. */
static __always_inline enum verdict find_quoted(const struct packet *pkt, __u32 role, const struct quote *quote,
						struct way_out *out)
{
	__u32 endpoint;
	struct tuple client = {
		.saddr = quote->tuple.daddr,
		.daddr = quote->tuple.saddr,
		.sport = quote->tuple.dport,
		.dport = quote->tuple.sport,
		.protocol = quote->tuple.protocol,
	};
	struct flow flow = {};

	if (quote->tuple.saddr != pkt->tuple.daddr)
		return DROP_ICMP_UNRELATED;
	if (role >> ROLE_SHIFT == ROLE_SNAT) {
		endpoint = endpoint_of(quote->tuple.daddr, quote->tuple.dport, quote->tuple.protocol);
		if (!endpoint || !find_by_slot(endpoint, quote->tuple.sport, role, &flow))
			return DROP_ICMP_UNRELATED;
		if ((flow.state & STATE_PHASE) == SLOT_EXPIRED)
			return DROP_ICMP_UNRELATED;
		return to_client(&flow, out);
	}
	if (!find_quickly(hash_of(&client), &client, &flow) || (flow.state & STATE_PHASE) == SLOT_EXPIRED)
		return DROP_ICMP_UNRELATED;
	return to_member(&flow, out);
}

/* A quoted checksum as it was before our rewrite; what that adds to the sum of the error. */
static __always_inline __u64 revert(__sum16 *check, __u64 delta, __u16 zero)
{
	__sum16 have = *check;

	*check = adjust(have, delta) ?: zero;
	return delta16(have, *check);
}

/*
 * Outside, the error goes from our address on that side to the end; inside, the datagram becomes what the end
 * had sent. The router's own address stays behind: no one beyond us could reach it, or should know it.
 */
static __always_inline void rewrite_icmp(struct packet *pkt, struct quote *quote, const struct way_out *out)
{
	const struct tuple *want = &out->tuple;
	struct iphdr *ip = pkt->ip, *inner = quote->ip;
	bool udp = quote->tuple.protocol == IPPROTO_UDP;
	__u64 addresses, ports, delta;

	/* The quoted datagram went the other way: its source is where the error goes now. */
	addresses = delta32(inner->saddr, want->daddr) + delta32(inner->daddr, want->saddr);
	ports = delta16(quote->ports->source, want->dport) + delta16(quote->ports->dest, want->sport);
	delta = addresses + ports;

	delta += revert(&inner->check, addresses, 0);
	inner->saddr = want->daddr;
	inner->daddr = want->saddr;
	quote->ports->source = want->dport;
	quote->ports->dest = want->sport;
	if (quote->check && (*quote->check || !udp))
		delta += revert(quote->check, addresses + ports, udp ? 0xffff : 0);
	quote->icmp->checksum = adjust(quote->icmp->checksum, delta);

	addresses = delta32(ip->saddr, want->saddr) + delta32(ip->daddr, want->daddr);
	ip->check = adjust(ip->check, addresses + (__u16)~bpf_htons(0x0100));
	ip->ttl--;
	ip->saddr = want->saddr;
	ip->daddr = want->daddr;
}

/* NEXT_STEP: an error. Anything else ends here. */
static __always_inline enum verdict judge_icmp(const struct packet *pkt)
{
	__u32 length = pkt->length - pkt->ip->ihl * 4;
	struct icmphdr *icmp = (void *)pkt->ip + pkt->ip->ihl * 4;

	asm volatile("" : "+r"(icmp));
	if (is_later_fragment(pkt))
		return PASS_ECHO;	/* an error is never that long */
	if ((void *)(icmp + 1) > pkt->end || length < sizeof(*icmp))
		return DROP_MALFORMED;
	if (icmp->type == ICMP_ECHO)
		return PASS_ECHO;	/* whatever its TTL: it goes no further than here */
	if (!is_icmp_error(icmp) || pkt->fragment)
		return DROP_ICMP;
	if (pkt->ip->ttl <= 1)
		return DROP_TTL;
	return has_false_sender(pkt) ? DROP_MALFORMED : NEXT_STEP;
}

static __always_inline enum verdict forward_icmp(struct packet *pkt)
{
	struct quote quote;
	struct way_out out;
	enum verdict verdict;
	__u32 role;

	verdict = parse(pkt, &role);
	if (verdict == NEXT_STEP)
		verdict = parse_options(pkt);
	if (verdict == NEXT_STEP)
		verdict = judge_icmp(pkt);
	if (verdict != NEXT_STEP)
		return verdict;
	if (!parse_quote(pkt, &quote))
		return DROP_ICMP_UNRELATED;
	verdict = find_quoted(pkt, role, &quote, &out);
	if (verdict != FORWARD_REQUEST && verdict != FORWARD_REPLY)
		return verdict;
	if (pkt->length > out.mtu)
		return DROP_TOO_BIG;
	if (!is_quote_intact(pkt, &quote) || !is_intact(pkt))
		return DROP_MALFORMED;

	rewrite_icmp(pkt, &quote, &out);
	return write_link(pkt, &out) ? FORWARD_ICMP_ERROR : DROP_MALFORMED;
}

#endif
