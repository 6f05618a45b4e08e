/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Datagrams in pieces: the first one has the ports, and leaves them for the others. */
#ifndef IPBACKEND_FRAGMENT_H
#define IPBACKEND_FRAGMENT_H

static __always_inline struct fragment_key fragment_key_of(const struct packet *pkt)
{
	struct fragment_key key = {
		.saddr = pkt->tuple.saddr,
		.daddr = pkt->tuple.daddr,
		.id = pkt->ip->id,
		.protocol = pkt->tuple.protocol,
	};

	return key;
}

/* Not from an earlier datagram, whose id has come round again. */
static __always_inline bool is_recent(const struct fragment *known)
{
	return known && (__s32)(now() - known->seen) <= (__s32)ticks_of(FRAGMENT_LIFE);
}

/*
 * Before a first fragment leaves: the ports, and an id that all leave with. The datagrams of many clients come
 * to a member from few addresses, where their own ids would meet and pieces of different ones be put together.
 */
static __always_inline void remember_fragment(struct packet *pkt)
{
	struct fragment_key key = fragment_key_of(pkt);
	struct fragment *known = fragments.lookup(&key);
	struct fragment fresh = {
		.sport = pkt->tuple.sport,
		.dport = pkt->tuple.dport,
		.id = is_recent(known) ? known->id : (__be16)bpf_get_prandom_u32(),
		.header = pkt->header,
		.seen = now(),
	};

	fragments.update(&key, &fresh);
	pkt->id = fresh.id;
}

/* A later fragment becomes one of the first one's flow; false: that did not come before it. */
static __always_inline bool recall_fragment(struct packet *pkt)
{
	struct fragment_key key = fragment_key_of(pkt);
	struct fragment *known = fragments.lookup(&key);

	if (!is_recent(known))
		return false;
	pkt->tuple.sport = known->sport;
	pkt->tuple.dport = known->dport;
	pkt->id = known->id;
	pkt->header = known->header;
	return true;
}

#endif
