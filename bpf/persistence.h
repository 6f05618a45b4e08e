/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The member that a client's address stays with, as long as it opens a connection now and then. */
#ifndef IPBACKEND_PERSISTENCE_H
#define IPBACKEND_PERSISTENCE_H

#define MEMBER_ROWS 64
#define ENDPOINT_ID (MAX_ENDPOINTS - 1)	/* of a member's word, the bits that are it */

static __always_inline struct pool_row *row_of(void *pool, __u64 index)
{
	return bpf_map_lookup_elem(pool, &index);
}

/* Whether an endpoint is a member of the pool, in whose `rows` members stand by their ids. */
static __always_inline bool is_member(void *pool, __u32 rows, __u32 endpoint)
{
	struct pool_row *row;
	__u32 step, at = 0, found = 0;
	int i;

	for (step = MEMBER_ROWS / 2; step; step >>= 1) {
		if (passed(at + step, rows))
			continue;
		row = row_of(pool, 1 + at + step);
		if (row && (row->word[0] & ENDPOINT_ID) <= endpoint)
			at = forgotten(at + step, endpoint);
	}
	row = row_of(pool, 1 + at);
	if (!row)
		return false;
#pragma clang loop unroll(full)
	for (i = 0; i < POOL_WORDS; i++)
		found |= (row->word[i] & ENDPOINT_ID) == endpoint;
	return found;
}

/* Where the client's address stays, if it was heard of within `seconds` and the member is still the same; else 0. */
static __always_inline __u32 home_of(struct source_key *key, void *pool, __u32 rows, __u32 seconds)
{
	struct stay *stay = stays.lookup(key);
	struct endpoint *member;
	__u32 endpoint;

	if (!stay || now() - stay->seen > ticks_of(seconds))
		return 0;
	endpoint = stay->endpoint;
	member = endpoints.lookup(&endpoint);
	if (!member || member->making != stay->making || !is_member(pool, rows, endpoint))
		return 0;
	return endpoint;
}

/* It stays with this member, from now on or still. */
static __always_inline void settle(struct source_key *key, __u32 endpoint)
{
	struct endpoint *member = endpoints.lookup(&endpoint);
	struct stay *there = stays.lookup(key), stay = { .endpoint = endpoint, .seen = now() };

	if (!member)
		return;
	stay.making = member->making;
	if (there && there->endpoint == endpoint && there->making == stay.making)
		there->seen = stay.seen;
	else
		stays.update(key, &stay);
}

#endif
