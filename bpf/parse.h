/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bytes to struct packet; all bounds checks are here. */
#ifndef IPBACKEND_PARSE_H
#define IPBACKEND_PARSE_H

#define IP_MORE_FRAGMENTS 0x2000
#define IP_DONT_FRAGMENT 0x4000
#define IP_OFFSET 0x1fff
#define MAX_IP_HEADER 60

struct tuple {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u32 protocol;
};

/* What TCP and UDP headers both begin with. */
struct ports {
	__be16 source;
	__be16 dest;
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_FLAGS (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)

struct packet {
	struct xdp_md *ctx;
	void *end;
	struct ethhdr *eth;
	struct iphdr *ip;
	struct ports *ports;	/* of TCP or UDP */
	__sum16 *check;		/* of TCP or UDP */
	struct tuple tuple;
	__u32 tcp_flags;	/* FIN, SYN, RST, ACK; none for UDP */
	__u32 sequence;		/* TCP, host order */
	__u32 acknowledgement;
	__u32 header;		/* bytes of the transport header */
	__u32 fragment;		/* IP_MORE_FRAGMENTS and IP_OFFSET, host order; 0 is a whole datagram */
	__be16 id;		/* IP id that it leaves with */
	__u32 length;		/* of the IP datagram, bytes */
	__u32 interface;	/* where a forwarded packet leaves */
	__u32 mtu;		/* of the link that it is too big for */
};

/* Up to the IPv4 header's fixed part, enough to see whether the packet is ours. */
static __always_inline enum verdict parse_ip(struct packet *pkt)
{
	struct ethhdr *eth = (void *)(long)pkt->ctx->data;
	struct iphdr *ip = (void *)(eth + 1);

	pkt->end = (void *)(long)pkt->ctx->data_end;
	if ((void *)(ip + 1) > pkt->end)
		return PASS_NOT_OURS;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return PASS_NOT_OURS;

	pkt->eth = eth;
	pkt->ip = ip;
	pkt->tuple.saddr = ip->saddr;
	pkt->tuple.daddr = ip->daddr;
	pkt->tuple.protocol = ip->protocol;
	return NEXT_STEP;
}

/* Sent by no single host (RFC 1812, 5.3.7), or by one that uses an address of ours: no one to answer to. */
static __always_inline bool has_false_sender(const struct packet *pkt)
{
	__u8 first = *(const __u8 *)&pkt->tuple.saddr;

	return first == 0 || first == 127 || first >= 224 || addresses.lookup((__be32 *)&pkt->tuple.saddr);
}

static __always_inline bool is_later_fragment(const struct packet *pkt)
{
	return pkt->fragment & IP_OFFSET;
}

static __always_inline enum verdict lives_on(const struct packet *pkt)
{
	if (pkt->ip->ttl > 1)
		return NEXT_STEP;
	return has_false_sender(pkt) ? DROP_TTL : REJECT_TTL;
}

static __always_inline bool is_icmp_error(const struct icmphdr *icmp)
{
	return icmp->type == ICMP_DEST_UNREACH || icmp->type == ICMP_TIME_EXCEEDED ||
	       icmp->type == ICMP_PARAMETERPROB;
}

/* The rest of a packet that is ours: lengths that agree, and a transport header. */
static __always_inline enum verdict parse_transport(struct packet *pkt)
{
	struct iphdr *ip = pkt->ip;
	__u32 header = ip->ihl * 4;
	__u32 length = bpf_ntohs(ip->tot_len);
	void *transport = (void *)ip + header;

	if (pkt->eth->h_dest[0] & 1)
		return DROP_MALFORMED;	/* a broadcast frame around a unicast datagram (RFC 1122, 3.3.6) */
	if (ip->version != 4 || header < sizeof(*ip) || length < header)
		return DROP_MALFORMED;
	if ((void *)ip + length > pkt->end)
		return DROP_MALFORMED;
	pkt->length = length;
	pkt->id = ip->id;
	pkt->fragment = bpf_ntohs(ip->frag_off) & (IP_MORE_FRAGMENTS | IP_OFFSET);

	if (ip->protocol == IPPROTO_ICMP) {
		struct icmphdr *icmp = transport;

		if (is_later_fragment(pkt))
			return PASS_ECHO;	/* an error is never that long */
		if ((void *)(icmp + 1) > pkt->end || length < header + sizeof(*icmp))
			return DROP_MALFORMED;
		if (icmp->type == ICMP_ECHO)
			return PASS_ECHO;	/* whatever its TTL: it goes no further than here */
		if (!is_icmp_error(icmp) || pkt->fragment)
			return DROP_ICMP;
		return ip->ttl > 1 ? NEXT_STEP : DROP_TTL;
	}
	if (is_later_fragment(pkt)) {
		if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
			return DROP_PROTOCOL;
		return ip->ttl > 1 ? NEXT_STEP : DROP_TTL;
	}
	if (ip->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = transport;

		if ((void *)(tcp + 1) > pkt->end || length < header + sizeof(*tcp))
			return DROP_MALFORMED;
		if (tcp->doff * 4 < sizeof(*tcp) || length < header + tcp->doff * 4)
			return DROP_MALFORMED;
		pkt->ports = (void *)tcp;
		pkt->check = &tcp->check;
		pkt->tcp_flags = ((__u8 *)tcp)[13] & TCP_FLAGS;
		pkt->sequence = bpf_ntohl(tcp->seq);
		pkt->acknowledgement = bpf_ntohl(tcp->ack_seq);
		pkt->header = tcp->doff * 4;
		pkt->tuple.sport = tcp->source;
		pkt->tuple.dport = tcp->dest;
		return lives_on(pkt);
	}
	if (ip->protocol == IPPROTO_UDP) {
		struct udphdr *udp = transport;

		if ((void *)(udp + 1) > pkt->end || length < header + sizeof(*udp))
			return DROP_MALFORMED;
		if (bpf_ntohs(udp->len) < sizeof(*udp))
			return DROP_MALFORMED;
		/* A first fragment is shorter than its datagram: its flag is worth 64 kB here, and costs no branch. */
		if (length + (pkt->fragment << 3) < header + bpf_ntohs(udp->len))
			return DROP_MALFORMED;
		pkt->ports = (void *)udp;
		pkt->check = &udp->check;
		pkt->tcp_flags = 0;
		pkt->header = sizeof(*udp);
		pkt->tuple.sport = udp->source;
		pkt->tuple.dport = udp->dest;
		return lives_on(pkt);
	}
	return DROP_PROTOCOL;
}

static __always_inline bool is_tcp(const struct packet *pkt)
{
	return pkt->tuple.protocol == IPPROTO_TCP;
}

static __always_inline bool is_icmp(const struct packet *pkt)
{
	return pkt->tuple.protocol == IPPROTO_ICMP;
}

/* A packet that may open a connection: UDP, or a SYN alone. */
static __always_inline bool opens(const struct packet *pkt)
{
	return !is_tcp(pkt) || pkt->tcp_flags == TCP_SYN;
}

#endif
