/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether a listener takes one connection more: whom it is for, how often one may come, how many there may be. */
#ifndef IPBACKEND_LIMITS_H
#define IPBACKEND_LIMITS_H

#define TAKE_TRIES 64		/* each failure is another CPU's success */
#define LIST_BITS 32		/* of struct access_key, before the address */

/* Time to measure rates by, in RATE_SECOND ths: it goes on by jumps, as the kernel's timer does. */
static __always_inline __u64 rate_now(void)
{
	return bpf_jiffies64() * (RATE_SECOND / HZ);
}

static __always_inline bool is_served(const struct packet *pkt, const struct listener *listener)
{
	struct access_key key = { LIST_BITS + 32, listener->access >> ACCESS_BITS, pkt->tuple.saddr };
	__u32 mode = listener->access & ((1 << ACCESS_BITS) - 1);

	if (mode == ACCESS_ALL)
		return true;
	return !access.lookup(&key) == (mode == ACCESS_DENY);
}

/* Between two tokens, rounded up: at no rate does one come too many. */
static __always_inline __u64 interval_of(__u32 rate)
{
	return (RATE_SECOND + rate - 1) / rate;
}

/*
 * A token out of a bucket that holds a second's worth and fills with time (the generic cell rate algorithm, ITU-T
 * I.371): `due` is when the next one would be taken if all were taken evenly.
 */
static __always_inline bool take_token(__u64 *due, __u32 rate, __u64 at)
{
	__u64 interval = interval_of(rate), have, want;
	int i;

	for (i = 0; i < TAKE_TRIES; i++) {
		have = *(volatile __u64 *)due;
		want = (__s64)(have - at) < 0 ? at : have;
		if (want - at > (rate - 1) * interval)
			return false;
		if (__sync_val_compare_and_swap(due, have, want + interval) == have)
			return true;
	}
	return false;
}

static __always_inline void give_token(__u64 *due, __u32 rate)
{
	__sync_fetch_and_add(due, -interval_of(rate));
}

/* One place of the listener's own, exact to one connection. */
static __always_inline bool take_place(struct listener_load *its_load, __u32 limit)
{
	__u64 active;
	int i;

	if (!limit) {
		__sync_fetch_and_add(&its_load->active, 1);
		return true;
	}
	for (i = 0; i < TAKE_TRIES; i++) {
		active = *(volatile __u64 *)&its_load->active;
		if (active >= limit)
			return false;
		if (__sync_val_compare_and_swap(&its_load->active, active, active + 1) == active)
			return true;
	}
	return false;
}

/* A client that is not known, or could not be kept in mind, has opened nothing yet. */
static __always_inline bool take_source_token(const struct packet *pkt, __u32 number, __u32 rate, __u64 at)
{
	struct source_key key = { number, pkt->tuple.saddr };
	__u64 *due = source_dues.lookup(&key);

	if (!due) {
		source_dues.insert(&key, &at);
		due = source_dues.lookup(&key);
	}
	return !due || take_token(due, rate, at);
}

static __always_inline void give_source_token(const struct packet *pkt, __u32 number, __u32 rate)
{
	struct source_key key = { number, pkt->tuple.saddr };
	__u64 *due = source_dues.lookup(&key);

	if (due)
		give_token(due, rate);
}

/* NEXT_STEP: the connection is one of the listener's, unless it is taken back. Nothing is kept of a refused one. */
static __always_inline enum verdict enter(const struct packet *pkt, __u32 number, const struct listener *listener)
{
	struct listener_load *its_load = listener_load.lookup(&number);
	enum verdict verdict = NEXT_STEP;
	__u64 at = rate_now();

	if (!its_load)
		return REJECT_NO_LISTENER;
	if (!is_served(pkt, listener))
		return DROP_ACCESS;
	if (listener->source_rate && !take_source_token(pkt, number, listener->source_rate, at))
		return DROP_SOURCE_RATE;
	if (!take_place(its_load, listener->limit)) {
		verdict = REJECT_LISTENER_FULL;
	} else if (listener->rate && !take_token(&its_load->due, listener->rate, at)) {
		__sync_fetch_and_add(&its_load->active, -1);
		verdict = DROP_LISTENER_RATE;
	}
	if (verdict != NEXT_STEP && listener->source_rate)
		give_source_token(pkt, number, listener->source_rate);
	return verdict;
}

/* All of it given back: the connection did not come to be. */
static __always_inline void take_back(const struct packet *pkt, __u32 number, const struct listener *listener)
{
	struct listener_load *its_load = listener_load.lookup(&number);

	if (!its_load)
		return;
	__sync_fetch_and_add(&its_load->active, -1);
	if (listener->rate)
		give_token(&its_load->due, listener->rate);
	if (listener->source_rate)
		give_source_token(pkt, number, listener->source_rate);
}

#endif
