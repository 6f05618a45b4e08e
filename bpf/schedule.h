/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which member takes a new connection: weighted round robin, passing over members that are full. */
#ifndef IPBACKEND_SCHEDULE_H
#define IPBACKEND_SCHEDULE_H

#define DRAWS 16		/* turns of the schedule to try before looking at each member once */
#define CHOICES 2		/* members to be admitted to, where others fill the first at the last moment */

/* Why no member took a connection, gathered from all that were looked at. */
struct refusal {
	__u64 ceilings;		/* 0: none can be reached */
	__s64 over_ceiling;	/* negative: one has room, but too many handshakes under way */
};

/* The endpoint that is the pool's member number `index`, if it has room; else 0. */
static __always_inline __u32 with_room(void *pool, __u32 index, struct refusal *refusal)
{
	__u32 *endpoint;
	struct load *its_load;
	__u64 counts;

	index += POOL_HEADER;
	endpoint = bpf_map_lookup_elem(pool, &index);
	if (!endpoint)
		return 0;
	its_load = load.lookup(endpoint);
	if (!its_load)
		return 0;
	counts = counts_of(its_load);
	refusal->ceilings |= its_load->ceiling;
	refusal->over_ceiling |= over_ceiling(its_load, counts);
	return has_room(its_load, counts) ? *endpoint : 0;
}

/* The smallest that is not less than `number`, up to MAX_MEMBERS. */
static __always_inline __u32 power_of_two(__u32 number)
{
	number--;
	number |= number >> 1;
	number |= number >> 2;
	number |= number >> 4;
	number |= number >> 8;
	return number + 1;
}

static __always_inline __u32 pool_word(void *pool, __u32 index)
{
	__u32 *word = bpf_map_lookup_elem(pool, &index);

	return word ? *word : 0;
}

/*
 * A passed-over member's turn is used up by drawing again, so the others share it by their weights.
 * When that finds no one, each member is looked at once: refused only if none has room. The order is another
 * one each time (i * odd + offset goes through all residues of a power of two once), or else the first one
 * behind a row of full members would take all of their turns.
 */
static __always_inline __u32 choose(void *pool, struct cursor *cursor, __u32 members, __u32 length,
				    struct refusal *refusal)
{
	__u32 endpoint, index, *member, places, random;
	__u64 turn;
	int i;

	for (i = 0; i < DRAWS && !passed(i, length); i++) {
		turn = __sync_fetch_and_add(&cursor->position, 1);
		index = POOL_HEADER + members + turn % length;
		member = bpf_map_lookup_elem(pool, &index);
		if (!member)
			return 0;
		endpoint = with_room(pool, *member, refusal);
		if (endpoint)
			return endpoint;
	}
	places = power_of_two(members);
	random = bpf_get_prandom_u32();
	for (i = 0; i < MAX_MEMBERS && !passed(i, places); i++) {
		index = (i * (random | 1) + (random >> 16)) & (places - 1);
		if (index >= members)
			continue;
		endpoint = with_room(pool, index, refusal);
		if (endpoint)
			return endpoint;
	}
	return 0;
}

/* NEXT_STEP: `endpoint` has admitted one connection more. */
static __always_inline enum verdict schedule(__u32 number, bool tcp, __u32 *endpoint)
{
	void *pool = pools.lookup(&number);
	struct cursor *cursor = cursors.lookup(&number);
	__u32 members, length;
	struct load *its_load;
	int i;

	if (!pool || !cursor)
		return REJECT_NO_MEMBER;
	members = pool_word(pool, POOL_MEMBERS);
	length = pool_word(pool, POOL_SCHEDULE);
	if (!members || !length)
		return REJECT_NO_MEMBER;

	for (i = 0; i < CHOICES; i++) {
		struct refusal refusal = {};	/* what a lost choice has seen may be over */

		*endpoint = choose(pool, cursor, members, length, &refusal);
		if (!*endpoint && !refusal.ceilings)
			return REJECT_NO_MEMBER;
		if (!*endpoint)
			return refusal.over_ceiling < 0 ? DROP_HALF_OPEN : REJECT_ALL_FULL;
		its_load = load.lookup(endpoint);
		if (its_load && admit(its_load, tcp))
			return NEXT_STEP;
	}
	return DROP_NOT_OPENED;
}

#endif
