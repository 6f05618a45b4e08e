/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bytes to struct packet; all bounds checks are here. */
#ifndef IPBACKEND_PARSE_H
#define IPBACKEND_PARSE_H

#define IP_MORE_FRAGMENTS 0x2000
#define IP_DONT_FRAGMENT 0x4000
#define IP_OFFSET 0x1fff
#define MAX_IP_HEADER 60
#define MAX_OPTIONS (MAX_IP_HEADER - sizeof(struct iphdr))
#define PLAIN_IP 0x45		/* first byte: version 4, a header without options */

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

/* What stands between an Ethernet header whose protocol is 802.1Q and the IP header. */
struct vlan {
	__be16 tci;		/* priority:3 | drop eligible:1 | VLAN id:12 */
	__be16 protocol;
};

#define VLAN_ID 0x0fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_FLAGS (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)

struct packet {
	struct xdp_md *ctx;
	void *end;		/* of what can be read: the first buffer */
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
	__u16 tci;		/* of its 802.1Q tag, host order */
	__u32 link_header;	/* bytes before the IP header */
	__u32 length;		/* of the IP datagram, bytes */
	__u32 interface;	/* where a forwarded packet leaves */
	__u32 mtu;		/* of the link that it is too big for */
	enum road road;		/* with NEXT_STEP: where it goes on */
};

static __always_inline enum verdict take(struct packet *pkt, enum road road)
{
	pkt->road = road;
	return NEXT_STEP;
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

static __always_inline bool is_later_fragment(const struct packet *pkt)
{
	return pkt->fragment & IP_OFFSET;
}

/* Sent by no single host (RFC 1812, 5.3.7), or by one that uses an address of ours: no one to answer to. */
static __always_inline bool has_false_sender(const struct packet *pkt)
{
	__u8 first = *(const __u8 *)&pkt->tuple.saddr;

	return first == 0 || first == 127 || first >= 224 || role_of(pkt->tuple.saddr);
}

static __always_inline void note_ip(struct packet *pkt, struct iphdr *ip)
{
	pkt->ip = ip;
	pkt->tuple.saddr = ip->saddr;
	pkt->tuple.daddr = ip->daddr;
	pkt->tuple.protocol = ip->protocol;
	pkt->length = bounded(bpf_ntohs(ip->tot_len));
	pkt->id = ip->id;
}

/* A whole TCP or UDP header whose own lengths agree with the datagram's; NEXT_STEP if so. */
static __always_inline enum verdict parse_transport(struct packet *pkt, void *transport, __u32 room)
{
	room = unrelated(room);
	if (is_tcp(pkt)) {
		struct tcphdr *tcp = transport;

		if ((void *)(tcp + 1) > pkt->end || room < sizeof(*tcp))
			return DROP_MALFORMED;
		if (tcp->doff * 4 < sizeof(*tcp) || room < tcp->doff * 4)
			return DROP_MALFORMED;
		pkt->check = &tcp->check;
		pkt->tcp_flags = ((__u8 *)tcp)[13] & TCP_FLAGS;
		pkt->sequence = bpf_ntohl(tcp->seq);
		pkt->acknowledgement = bpf_ntohl(tcp->ack_seq);
		pkt->header = tcp->doff * 4;
	} else {
		struct udphdr *udp = transport;

		if ((void *)(udp + 1) > pkt->end || room < sizeof(*udp))
			return DROP_MALFORMED;
		if (bpf_ntohs(udp->len) < sizeof(*udp))
			return DROP_MALFORMED;
		/* A first fragment is shorter than its datagram: its flag is worth 64 kB here, and costs no branch. */
		if (room + (pkt->fragment << 3) < bpf_ntohs(udp->len))
			return DROP_MALFORMED;
		pkt->check = &udp->check;
		pkt->tcp_flags = 0;
		pkt->header = sizeof(*udp);
	}
	pkt->ports = transport;
	pkt->tuple.sport = pkt->ports->source;
	pkt->tuple.dport = pkt->ports->dest;
	return NEXT_STEP;
}

/* A frame as most are, Ethernet around IPv4: whether it is one is still to be seen, and whether it is ours. */
static __always_inline bool parse_plain_ip(struct packet *pkt)
{
	struct iphdr *ip;

	pkt->eth = (void *)(long)pkt->ctx->data;
	pkt->end = (void *)(long)pkt->ctx->data_end;
	ip = (void *)(pkt->eth + 1);
	if ((void *)(ip + 1) > pkt->end)
		return false;
	note_ip(pkt, ip);
	return true;
}

/* One that is ours: whether it is whole, without options, in one buffer, to live on, and TCP or UDP. */
static __always_inline bool is_common(const struct packet *pkt)
{
	const struct iphdr *ip = pkt->ip;

	return *(const __u8 *)ip == PLAIN_IP && !(ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_OFFSET)) &&
	       pkt->length >= sizeof(*ip) && (void *)ip + pkt->length <= pkt->end && ip->ttl > 1 &&
	       !(pkt->eth->h_dest[0] & 1) && (is_tcp(pkt) || pkt->tuple.protocol == IPPROTO_UDP);
}

/* Any frame, up to the IPv4 header's fixed part: with one 802.1Q tag or without. */
static __always_inline enum verdict parse_ip(struct packet *pkt)
{
	struct ethhdr *eth = (void *)(long)pkt->ctx->data;
	struct vlan *vlan = (void *)(eth + 1);
	__u32 header = sizeof(*eth);
	struct iphdr *ip;

	pkt->end = (void *)(long)pkt->ctx->data_end;
	if ((void *)(vlan + 1) > pkt->end)
		return PASS_NOT_OURS;
	if (eth->h_proto == bpf_htons(ETH_P_8021Q) && vlan->protocol == bpf_htons(ETH_P_IP)) {
		header += sizeof(*vlan);
		pkt->tci = bpf_ntohs(vlan->tci);
	} else if (eth->h_proto != bpf_htons(ETH_P_IP)) {
		return PASS_NOT_OURS;
	}
	header = forgotten(header, *(const __u32 *)eth->h_dest);
	ip = (void *)eth + (header & 31);
	if ((void *)(ip + 1) > pkt->end)
		return PASS_NOT_OURS;
	pkt->eth = eth;
	pkt->link_header = header;
	note_ip(pkt, ip);
	return NEXT_STEP;
}

static __always_inline enum verdict lives_on(const struct packet *pkt)
{
	if (pkt->ip->ttl > 1)
		return NEXT_STEP;
	return has_false_sender(pkt) ? DROP_TTL : REJECT_TTL;
}

/*
 * From here on TCP and UDP are one to the verifier, which else would go through all that follows once for each:
 * it forgets what it knows of the one or the other, and sees the pointers anew. NEXT_STEP always, but for it.
 */
static __always_inline enum verdict merge(struct packet *pkt, __u32 header)
{
	__u32 check = is_tcp(pkt) ? __builtin_offsetof(struct tcphdr, check) : __builtin_offsetof(struct udphdr, check);
	__u32 unknown = pkt->ip->daddr;
	struct udphdr *transport = (void *)pkt->ip + (forgotten(header, unknown) & 63);

	pkt->ports = (void *)transport;
	pkt->check = (void *)transport + (forgotten(check, unknown) & 31);
	if ((void *)(transport + 1) > pkt->end || (void *)(pkt->check + 1) > pkt->end)
		return DROP_MALFORMED;
	pkt->tuple.protocol = forgotten(pkt->tuple.protocol, unknown);
	pkt->tcp_flags = forgotten(pkt->tcp_flags, unknown);
	pkt->sequence = forgotten(pkt->sequence, unknown);
	pkt->acknowledgement = forgotten(pkt->acknowledgement, unknown);
	pkt->header = forgotten(pkt->header, unknown);
	pkt->fragment = forgotten(pkt->fragment, unknown);
	return NEXT_STEP;
}

/* The rest of any packet that is ours: lengths that agree, and a transport header. ICMP is judged on its road. */
static __always_inline enum verdict parse_rest(struct packet *pkt)
{
	struct iphdr *ip = pkt->ip;
	__u32 header = ip->ihl * 4;
	void *transport = (void *)ip + header;
	enum verdict verdict;

	asm volatile("" : "+r"(transport));	/* else clang adds anew, which the verifier takes for another place */
	if (pkt->eth->h_dest[0] & 1)
		return DROP_MALFORMED;	/* a broadcast frame around a unicast datagram (RFC 1122, 3.3.6) */
	if (ip->version != 4 || header < sizeof(*ip) || pkt->length < header)
		return DROP_MALFORMED;
	if (pkt->link_header + pkt->length > bpf_xdp_get_buff_len(pkt->ctx))
		return DROP_MALFORMED;
	pkt->fragment = bpf_ntohs(ip->frag_off) & (IP_MORE_FRAGMENTS | IP_OFFSET);
	if (is_icmp(pkt))
		return NEXT_STEP;
	if (!is_tcp(pkt) && pkt->tuple.protocol != IPPROTO_UDP)
		return DROP_PROTOCOL;
	if (is_later_fragment(pkt))
		return ip->ttl > 1 ? NEXT_STEP : DROP_TTL;
	verdict = parse_transport(pkt, transport, pkt->length - header);
	if (verdict == NEXT_STEP)
		verdict = lives_on(pkt);
	return verdict == NEXT_STEP ? merge(pkt, header) : verdict;
}

/* NEXT_STEP: each option is whole, and none is a source route, by which a careless member would send it on. */
static __always_inline enum verdict parse_options(const struct packet *pkt)
{
	__u32 offset = sizeof(struct iphdr), header = pkt->ip->ihl * 4, i;

	for (i = 0; i < MAX_OPTIONS && offset < header; i++) {
		const __u8 *option = (const __u8 *)pkt->ip + (offset & 63);

		if (option + 2 > (const __u8 *)pkt->end)
			return DROP_MALFORMED;
		if (*option == IPOPT_END)
			return NEXT_STEP;
		if (*option == IPOPT_LSRR || *option == IPOPT_SSRR)
			return DROP_SOURCE_ROUTE;
		if (*option != IPOPT_NOOP && option[1] < 2)
			return DROP_MALFORMED;
		offset = forgotten(offset + (*option == IPOPT_NOOP ? 1 : option[1]), pkt->ip->daddr);
	}
	return offset > header ? DROP_MALFORMED : NEXT_STEP;
}

/* The first steps of any packet, on any road but the common one. */
static __always_inline enum verdict parse(struct packet *pkt, __u32 *role)
{
	enum verdict verdict = parse_ip(pkt);

	if (verdict != NEXT_STEP)
		return verdict;
	*role = role_of(pkt->tuple.daddr);
	if (!*role)
		return PASS_NOT_OURS;
	return parse_rest(pkt);
}

#endif
