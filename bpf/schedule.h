/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which member takes a new connection: by turns, by load or by the client's address, past members that are full. */
#ifndef IPBACKEND_SCHEDULE_H
#define IPBACKEND_SCHEDULE_H

#define DRAWS 16		/* turns of the schedule to try before each member is looked at */
#define SPREAD 0xd6e8feb86659fd93ULL
#define GOLDEN 0x9e3779b97f4a7c15ULL
#define TIE_BITS 10

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
	__u64 word;		/* it, as it stands in the pool: 0 for none yet */
	__u64 score;		/* the lower for its weight the better */
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
 * What is drawn for equal ones stands below what can make a difference: a weight has no more bits than TIE_BITS.
 * A branch would give the verifier two ways to go on from each member: so the best is chosen by a mask.
 */
static __always_inline bool consider(const struct draw *draw, __u64 word, struct choice *best)
{
	__u64 endpoint = word & ENDPOINT_ID;
	struct load *its_load = load.lookup((__u32 *)&endpoint);
	__u64 drawn = (draw->seed ^ endpoint) * GOLDEN, counts, score, better;
	__s64 over, by;

	if (!its_load)
		return false;	/* which cannot be */
	drawn = (drawn ^ drawn >> 32) * SPREAD;
	counts = counts_of(its_load);
	over = over_ceiling(its_load, counts);
	best->ceilings |= its_load->ceiling;
	best->over_ceiling |= over;
	score = ((__u32)counts & ~draw->by_source) | (drawn >> 40 & draw->by_source);
	score = score << 2 * TIE_BITS | (drawn >> 16 & ((1 << TIE_BITS) - 1));
	by = score * (best->word >> 16) - best->score * (word >> 16);
	better = forgotten((by & over & over_budget(its_load, counts)) >> 63, counts);
	best->word ^= (best->word ^ word) & better;
	best->score ^= (best->score ^ score) & better;
	return true;
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
	__u32 least = forgotten(draw->algorithm == ALGORITHM_LEAST_CONNECTIONS, draw->seed);
	__u32 draws = forgotten(least ? 1 : draw->turns, draw->seed);
	struct pool_row *row;
	__u64 turn = draw->seed;
	int i, j;

	for (i = 0; i < DRAWS && !passed(i, draws) && !best->word; i++) {
		if (draw->by_source)
			turn = spread(turn + GOLDEN);
		else
			turn = __sync_fetch_and_add(&cursor->position, 1);
		if (!consider(draw, member_at(draw, turn), best))
			return;
	}
	if (best->word && !least)
		return;
	best->word = forgotten(best->word, draw->seed);
	best->score = forgotten(best->score >> TIE_BITS << TIE_BITS, draw->seed);
	best->ceilings = forgotten(best->ceilings, draw->seed);
	best->over_ceiling = forgotten(best->over_ceiling, draw->seed);
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
static __always_inline __u32 with_room(__u64 endpoint)
{
	struct load *its_load = load.lookup((__u32 *)&endpoint);

	return its_load && has_room(its_load, counts_of(its_load)) ? endpoint : 0;
}

/*
 * NEXT_STEP: `endpoint` has admitted one connection more, unless it is 0: then others took the last place of the one
 * that was chosen, and there may be one elsewhere.
 */
static __always_inline enum verdict schedule(const struct tuple *tuple, __u32 number, __u64 more, __u32 *endpoint)
{
	struct choice best = { .score = 1 << TIE_BITS };	/* without any weight: worse than any */
	struct source_key key = { number, tuple->saddr };
	struct cursor *cursor = cursors.lookup(&number);
	struct draw draw = { .pool = pools.lookup(&number) };
	struct pool_row *header;
	struct load *its_load;
	__u32 seconds, home = 0, chosen;

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
	draw.by_source = forgotten(draw.by_source, draw.seed);
	seconds = header->word[POOL_PERSISTENCE];

	if (seconds)
		home = home_of(&key, draw.pool, draw.rows, seconds);
	if (home)
		best.word = with_room(home);
	seconds = forgotten(seconds, tuple->saddr);
	home = forgotten(home, tuple->saddr);
	best.word = forgotten(best.word, tuple->saddr);
	if (!best.word)
		choose(&draw, cursor, &best);
	if (!best.word && !best.ceilings)
		return REJECT_NO_MEMBER;
	if (!best.word)
		return best.over_ceiling < 0 ? DROP_HALF_OPEN : REJECT_ALL_FULL;
	chosen = best.word & ENDPOINT_ID;
	its_load = load.lookup(&chosen);
	if (!its_load || !admit(its_load, more))
		return NEXT_STEP;
	*endpoint = chosen;
	if (seconds && (!home || home == chosen))
		settle(&key, chosen);
	return NEXT_STEP;
}

#endif
