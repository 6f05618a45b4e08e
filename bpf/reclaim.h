/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What takes the place of the sweep while nobody runs it: each opening looks at some slots of its pool's first. */
#ifndef IPBACKEND_RECLAIM_H
#define IPBACKEND_RECLAIM_H

/*
 * Of any member of the pool, from where the last look at it ended: so that for each connection opened, RECLAIM_SLICE
 * slots are looked at, and what is over holds no more than one in so many of them beyond its time.
 */
static __always_inline void reclaim(struct packet *pkt)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	struct sweep sweep = { .mode = SWEEP_EXPIRED };
	__u32 role, number, pool, turn, slot, at = now();
	struct listener *listener;
	struct endpoint *member;
	struct pool_row *row;
	struct load *its_load;
	void *rows;
	int i;

	if (!settings || parse(pkt, &role) != NEXT_STEP || !pkt->ports)
		return;
	number = listener_of(pkt->tuple.daddr, pkt->tuple.dport, pkt->tuple.protocol);
	listener = listeners.lookup(&number);
	if (!number || !listener)
		return;
	pool = listener->pool;
	rows = pools.lookup(&pool);
	row = rows ? row_of(rows, 0) : NULL;
	if (!row || !row->word[POOL_MEMBERS])
		return;
	turn = bpf_get_prandom_u32() % (__u32)row->word[POOL_MEMBERS];
	row = row_of(rows, 1 + turn / POOL_WORDS);
	if (!row)
		return;
	sweep.endpoint = row->word[turn & (POOL_WORDS - 1)] & ENDPOINT_ID;
	member = endpoints.lookup(&sweep.endpoint);
	its_load = load.lookup(&sweep.endpoint);
	if (!member || !its_load || !member->slots)
		return;
	slot = forgotten(__sync_fetch_and_add(&its_load->reclaimed, RECLAIM_SLICE), at);
	for (i = 0; i < RECLAIM_SLICE; i++)
		sweep_slot(&sweep, member->first + (slot + i) % member->slots, at, settings);
}

#endif
