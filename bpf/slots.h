/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Admission to an endpoint, exact to one connection, and its FIFO of free slots. */
#ifndef IPBACKEND_SLOTS_H
#define IPBACKEND_SLOTS_H

#define ADMIT_TRIES 64		/* each failure is another CPU's success */
#define RING_TRIES 8		/* each but the first is due to another CPU that was held up */

/* The two counts of a load as the one word that they change as: half-open ones in its upper half. */
#define ONE_ACTIVE 1ULL
#define ONE_HALF_OPEN (1ULL << 32)

static __always_inline bool is_half_open(__u64 state)
{
	__u64 phase = state & STATE_PHASE;

	return phase == SLOT_SYN_SENT || phase == SLOT_SYN_RECEIVED;
}

/* What a connection in this state counts for. */
static __always_inline __u64 counts_for(__u64 state)
{
	return ONE_ACTIVE + (is_half_open(state) ? ONE_HALF_OPEN : 0);
}

static __always_inline __u64 counts_of(const struct load *load)
{
	return *(volatile const __u64 *)&load->active;
}

/* Negative: how many connections, and how many handshakes, there is room for. UDP has none: its budget is whole. */
static __always_inline __s64 over_ceiling(const struct load *load, __u64 counts)
{
	return (__s64)(__u32)counts - (__s64)load->ceiling;
}

static __always_inline __s64 over_budget(const struct load *load, __u64 counts)
{
	return (__s64)(counts >> 32) - (__s64)load->half_open_limit;
}

static __always_inline bool has_room(const struct load *load, __u64 counts)
{
	return (over_ceiling(load, counts) & over_budget(load, counts)) < 0;
}

/* One connection more, which counts for `more`, if that keeps the endpoint within its ceiling and its budget. */
static __always_inline bool admit(struct load *load, __u64 more)
{
	__u64 counts;
	int i;

	for (i = 0; i < ADMIT_TRIES; i++) {
		counts = counts_of(load);
		if (!has_room(load, counts))
			return false;
		if (__sync_val_compare_and_swap((__u64 *)&load->active, counts, counts + more) == counts)
			return true;
	}
	return false;
}

static __always_inline void count_less(struct load *load, __u64 less)
{
	__sync_fetch_and_add((__u64 *)&load->active, -less);
}

/*
 * The ring has as many entries as the endpoint has slots. A position is drawn by fetch-and-add, and its entry goes
 * from round to round: it is put, taken, put in the next round, each by a compare and swap that knows the round. So
 * whoever is held up between the two finds that others went past: a taker who meets an entry that is not put yet
 * passes it over, and its giver draws anew; a giver who meets one that is not taken yet puts his own there, and
 * goes on with the other in his hand. No slot is seen twice, none is left without a place, and none has to be sought.
 */
static __always_inline __u64 *entry_at(const struct endpoint *endpoint, __u64 position, __u64 round)
{
	__u64 at = endpoint->first + (position - round * endpoint->slots);

	return (__u64 *)free_slots.lookup((__u32 *)&at);
}

/* Whether an entry became `want`; `have` is what it was before that, or what it is now. */
static __always_inline bool change_entry(__u64 *entry, __u64 *have, __u64 want)
{
	__u64 seen = __sync_val_compare_and_swap(entry, *have, want);
	bool changed = seen == *have;

	*have = seen;
	return changed;
}

static __always_inline bool is_of(__u64 entry, __u64 round)
{
	return entry >> ROUND_SHIFT == (__u32)round;
}

/* To put there in this round: empty, or a slot that should have been taken in the last one. */
static __always_inline bool may_be_put(__u64 entry, __u64 round)
{
	return is_of(entry, (place)entry == NOWHERE ? round : round - 1);
}

/* Whether there is a position with a slot, or with one that is about to be put: who draws others makes givers seek. */
static __always_inline bool is_left(const struct load *load)
{
	return (__s64)(*(volatile const __u64 *)&load->tail - *(volatile const __u64 *)&load->head) > 0;
}

static __always_inline place take_slot(const struct endpoint *endpoint, struct load *load)
{
	__u64 position, round, next, have, *entry;
	int i;

	for (i = 0; i < RING_TRIES && is_left(load); i++) {
		position = __sync_fetch_and_add(&load->head, 1);
		round = position / endpoint->slots;
		next = (round + 1) << ROUND_SHIFT;
		entry = entry_at(endpoint, position, round);
		if (!entry)
			return NOWHERE;
		have = *(volatile __u64 *)entry;
		if (is_of(have, round) &&
		    (change_entry(entry, &have, next) || (is_of(have, round) && change_entry(entry, &have, next))) &&
		    (place)have != NOWHERE)
			return have;
	}
	return NOWHERE;
}

static __always_inline void give_slot(const struct endpoint *endpoint, struct load *load, place at)
{
	__u64 position, round, mine, have, *entry;
	int i;

	for (i = 0; i < RING_TRIES; i++) {
		position = __sync_fetch_and_add(&load->tail, 1);
		round = position / endpoint->slots;
		mine = round << ROUND_SHIFT | at;
		entry = entry_at(endpoint, position, round);
		if (!entry)
			return;
		have = *(volatile __u64 *)entry;
		if (may_be_put(have, round) &&
		    (change_entry(entry, &have, mine) || (may_be_put(have, round) && change_entry(entry, &have, mine)))) {
			at = have;
			if (at == NOWHERE)
				return;
		}
	}
}

#endif
