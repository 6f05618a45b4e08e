/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which member takes a new connection: by turns, by load or by the client's address, past members that are full. */
#ifndef IPBACKEND_SCHEDULE_H
#define IPBACKEND_SCHEDULE_H

#define DRAWS 16		/* turns of the schedule to try before each member is looked at */
#define SPREAD 0xd6e8feb86659fd93ULL
#define NEXT_DRAW 0x9e3779b97f4a7c15ULL
#define TIE_BITS 16

/* A pool that is being chosen from. */
struct draw {
	void *pool;
	__u32 rows;		/* that members stand in, behind the first */
	__u32 turns;
	__u32 algorithm;
	__u64 by_source;	/* all bits, if the algorithm goes by the client's address */
	__u64 seed;		/* its hash, or any number */
};

/* The best of those with room that were looked at, and why the others took none. */
struct choice {
	__u32 endpoint;		/* 0: none yet */
	__u32 weight;
	__u64 load;		/* the lower for its weight the better, and of equals the one with the lower tie */
	__u64 tie;
	__u64 ceilings;		/* 0: none can be reached */
	__s64 over_ceiling;	/* negative: one has room, but maybe too many handshakes under way */
};

static __always_inline __u64 spread(__u64 number)
{
	number ^= number >> 32;
	number *= SPREAD;
	number ^= number >> 32;
	return number;
}

/*
 * What a client is known by: its address, or all that tells its connection from others. Without a secret, so that
 * each gateway behind a router that shares flows among them comes to the same.
 */
static __always_inline __u64 source_hash(const struct tuple *tuple, __u32 algorithm)
{
	__u64 all = -(__u64)(algorithm & algorithm >> 1 & 1);	/* bits, for ALGORITHM_SOURCE_IP_PORT */
	__u64 addresses = (__u64)tuple->daddr << 32, ports = (__u32)tuple->sport << 16 | tuple->dport;

	ports |= (__u64)tuple->protocol << 32;
	return spread(spread(tuple->saddr | (addresses & all)) ^ (ports & all));
}

/*
 * One member more that was looked at. By load: whoever has the lowest share of connections for its weight. By the
 * client's address: whoever's number, drawn from both, is lowest for its weight, so that it is the same each time.
 */
static __always_inline bool consider(const struct draw *draw, __u64 word, struct choice *best)
{
	__u32 endpoint = word & ENDPOINT_ID, weight = word >> 16;
	struct load *its_load = load.lookup(&endpoint);
	__u64 drawn = spread((draw->seed ^ endpoint) * NEXT_DRAW), counts, amount, better;
	__s64 by;

	if (!its_load)
		return false;	/* which cannot be; to go on would be one more way for the verifier */
	counts = counts_of(its_load);
	best->ceilings |= its_load->ceiling;
	best->over_ceiling |= over_ceiling(its_load, counts);
	amount = ((__u32)counts & ~draw->by_source) | (drawn >> 40 & draw->by_source);
	drawn &= (1 << TIE_BITS) - 1;
	by = ((amount * best->weight << TIE_BITS) + drawn) - ((best->load * weight << TIE_BITS) + best->tie);
	/* All bits or none, and no branch: there are two ways from each, which the verifier would have to go. */
	better = forgotten((by & over_ceiling(its_load, counts) & over_budget(its_load, counts)) >> 63, counts);
	best->endpoint ^= (best->endpoint ^ endpoint) & better;
	best->weight ^= (best->weight ^ weight) & better;
	best->load ^= (best->load ^ amount) & better;
	best->tie ^= (best->tie ^ drawn) & better;
	return true;
}

/* To the verifier, one choice is like another. */
static __always_inline void forget(struct choice *best, __u32 unknown)
{
	best->endpoint = forgotten(best->endpoint, unknown);
	best->weight = forgotten(best->weight, unknown);
	best->load = forgotten(best->load, unknown);
	best->tie = forgotten(best->tie, unknown);
	best->ceilings = forgotten(best->ceilings, unknown);
	best->over_ceiling = forgotten(best->over_ceiling, unknown);
}

/* The member whose turn it is, as it stands in the pool; 0 if that cannot be. */
static __always_inline __u64 member_at(const struct draw *draw, __u64 turn)
{
	__u32 index = turn % draw->turns, word = index / WORD_TURNS;
	struct pool_row *row = row_of(draw->pool, 1 + draw->rows + word / POOL_WORDS);

	if (!row)
		return 0;
	index = row->word[word & (POOL_WORDS - 1)] >> index % WORD_TURNS * 16 & (MAX_MEMBERS - 1);
	row = row_of(draw->pool, 1 + index / POOL_WORDS);
	return row ? row->word[index & (POOL_WORDS - 1)] : 0;
}

/*
 * A passed-over member's turn is used up by drawing again, so the others share it by their weights. When that
 * finds no one, or the least is sought, each member is looked at: refused only if none has room. Of equal ones, the
 * one whose turn it is comes first.
 */
static __always_inline void choose(struct draw *draw, struct cursor *cursor, struct choice *best)
{
	__u32 draws = forgotten(draw->algorithm == ALGORITHM_LEAST_CONNECTIONS ? 1 : DRAWS, draw->seed);
	struct pool_row *row;
	__u64 turn = draw->seed;
	int i, j;

	for (i = 0; i < DRAWS && !passed(i, draws) && !best->endpoint; i++) {
		if (draw->by_source)
			turn = spread(turn + NEXT_DRAW);
		else
			turn = __sync_fetch_and_add(&cursor->position, 1);
		if (!consider(draw, member_at(draw, turn), best))
			return;
	}
	if (best->endpoint && draws > 1)
		return;
	best->tie = 0;
	forget(best, draw->seed);
	if (!draw->by_source)
		draw->seed = turn * SPREAD;
	for (i = 0; i < MEMBER_ROWS && !passed(i, draw->rows); i++) {
		row = row_of(draw->pool, 1 + i);
		if (!row)
			return;
#pragma clang loop unroll(disable)
		for (j = 0; j < POOL_WORDS; j++)
			if (!consider(draw, row->word[j], best))
				return;
	}
}

/* The endpoint, if it has room; else 0. */
static __always_inline __u32 with_room(__u32 endpoint)
{
	struct load *its_load = load.lookup(&endpoint);

	return its_load && has_room(its_load, counts_of(its_load)) ? endpoint : 0;
}

/*
 * NEXT_STEP: `endpoint` has admitted one connection more, unless it is 0: then others took the last place of the one
 * that was chosen, and there may be one elsewhere.
 */
static __always_inline enum verdict schedule(const struct tuple *tuple, __u32 number, __u64 more, __u32 *endpoint)
{
	struct choice best = { .load = 1, .weight = 0 };	/* worse than any */
	struct source_key key = { number, tuple->saddr };
	struct cursor *cursor = cursors.lookup(&number);
	struct draw draw = { .pool = pools.lookup(&number) };
	struct pool_row *header;
	struct load *its_load;
	__u32 seconds, home = 0;

	if (!draw.pool || !cursor)
		return REJECT_NO_MEMBER;
	header = row_of(draw.pool, 0);
	if (!header || !header->word[POOL_MEMBERS] || !header->word[POOL_TURNS])
		return REJECT_NO_MEMBER;
	draw.rows = (header->word[POOL_MEMBERS] + POOL_WORDS - 1) / POOL_WORDS;
	draw.turns = header->word[POOL_TURNS];
	draw.algorithm = header->word[POOL_ALGORITHM];
	draw.by_source = -(__u64)(draw.algorithm >> 1 & 1);
	draw.seed = source_hash(tuple, draw.algorithm);
	seconds = header->word[POOL_PERSISTENCE];

	if (seconds)
		home = home_of(&key, draw.pool, draw.rows, seconds);
	if (home)
		best.endpoint = with_room(home);
	seconds = forgotten(seconds, tuple->saddr);
	home = forgotten(home, tuple->saddr);
	best.endpoint = forgotten(best.endpoint, tuple->saddr);
	if (!best.endpoint)
		choose(&draw, cursor, &best);
	if (!best.endpoint && !best.ceilings)
		return REJECT_NO_MEMBER;
	if (!best.endpoint)
		return best.over_ceiling < 0 ? DROP_HALF_OPEN : REJECT_ALL_FULL;
	its_load = load.lookup(&best.endpoint);
	if (!its_load || !admit(its_load, more))
		return NEXT_STEP;
	*endpoint = best.endpoint;
	if (seconds && (!home || home == best.endpoint))
		settle(&key, best.endpoint);
	return NEXT_STEP;
}

#endif
