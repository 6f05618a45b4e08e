/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Struct packet to bytes: addresses, ports, TTL, MACs and incremental checksums (RFC 1624, equation 3). */
#ifndef IPBACKEND_REWRITE_H
#define IPBACKEND_REWRITE_H

/* The one's complement sum of up to 2^32 words, folded to 16 bits. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The one's complement sum of `words` 16-bit words, `most` at most, as far as they end before `end`. */
static __always_inline __u64 sum_words(const void *start, const void *end, __u32 most, __u32 words)
{
	const __u16 *word = start;
	__u64 sum = 0;
	__u32 i;

	for (i = 0; i < most && !passed(i, words); i++) {
		asm volatile("" : "+r"(word));	/* else clang computes the bound ahead, beyond the verifier */
		if ((const void *)(word + 1) > end)
			break;
		sum += *word++;
	}
	return sum;
}

/* What replacing `have` by `want` adds to a one's complement sum. */
static __always_inline __u64 delta32(__u32 have, __u32 want)
{
	return (__u64)(__u32)~have + want;
}

static __always_inline __u64 delta16(__u16 have, __u16 want)
{
	return (__u64)(__u16)~have + want;
}

static __always_inline __u16 adjust(__u16 check, __u64 delta)
{
	return ~fold((__u16)~check + delta);
}

/* Full NAT: the packet leaves with `want` in place of its own addresses and ports, one hop older. */
static __always_inline void rewrite(struct packet *pkt, const struct tuple *want)
{
	__u64 addresses = delta32(pkt->tuple.saddr, want->saddr) + delta32(pkt->tuple.daddr, want->daddr);
	__u64 ports = delta16(pkt->tuple.sport, want->sport) + delta16(pkt->tuple.dport, want->dport);
	struct iphdr *ip = pkt->ip;

	/* The TTL is the first byte of its word: one less is 0x0100 less in network order. */
	ip->check = adjust(ip->check, addresses + delta16(ip->id, pkt->id) + (__u16)~bpf_htons(0x0100));
	ip->id = pkt->id;
	ip->ttl--;
	ip->saddr = want->saddr;
	ip->daddr = want->daddr;

	if (!pkt->ports)	/* a later fragment */
		return;
	pkt->ports->source = want->sport;
	pkt->ports->dest = want->dport;
	if (is_tcp(pkt))
		*pkt->check = adjust(*pkt->check, addresses + ports);
	else if (*pkt->check)	/* 0: the sender computed none (RFC 768) */
		*pkt->check = adjust(*pkt->check, addresses + ports) ?: 0xffff;
}

/* Ethernet headers are at even addresses: three words are cheaper than twelve bytes. */
static __always_inline void write_macs(__u16 *to, const __u8 *destination, const __u8 *source)
{
	const __u16 *d = (const void *)destination, *s = (const void *)source;

	to[0] = d[0];
	to[1] = d[1];
	to[2] = d[2];
	to[3] = s[0];
	to[4] = s[1];
	to[5] = s[2];
}

#endif
