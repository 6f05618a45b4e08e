/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Admission to an endpoint, exact to one connection, and its FIFO of free slots. */
#ifndef IPBACKEND_SLOTS_H
#define IPBACKEND_SLOTS_H

#define ADMIT_TRIES 64		/* each failure is another CPU's success */
#define RING_TRIES 64

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
 * The ring has as many entries as the endpoint has slots, so it has room for all. A position is drawn by
 * fetch-and-add, the entry there is taken by exchange and put by compare and swap: none is ever seen twice.
 * A taker that outruns a giver finds nothing and draws the next position; what the giver then puts behind its
 * back stays there for the next time round, and a giver that meets it draws the next position as well.
 */
static __always_inline place take_slot(const struct endpoint *endpoint, struct load *load)
{
	__u64 position;
	__u64 *entry;
	place taken;
	int i;

	for (i = 0; i < RING_TRIES; i++) {
		position = endpoint->first + __sync_fetch_and_add(&load->head, 1) % endpoint->slots;
		entry = free_slots.lookup((__u32 *)&position);
		if (!entry)
			return NOWHERE;
		taken = __sync_lock_test_and_set(entry, 0);
		if (taken)
			return taken;
	}
	return NOWHERE;
}

static __always_inline void give_slot(const struct endpoint *endpoint, struct load *load, place at)
{
	__u64 position;
	__u64 *entry;
	int i;

	for (i = 0; i < RING_TRIES; i++) {
		position = endpoint->first + __sync_fetch_and_add(&load->tail, 1) % endpoint->slots;
		entry = free_slots.lookup((__u32 *)&position);
		if (!entry)
			return;
		if (!__sync_val_compare_and_swap(entry, 0, (__u64)at))
			return;
	}
}

#endif
