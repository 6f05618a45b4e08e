/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The end of connections that no packet ends: silence, a removed member or listener. One slice of slots a run. */
#ifndef IPBACKEND_SWEEP_H
#define IPBACKEND_SWEEP_H

/* How long a connection in this phase may be silent, in ticks. */
static __always_inline __u32 patience(const struct connection *connection, __u64 state,
				      const struct gateway *settings)
{
	__u64 phase = state & STATE_PHASE;
	__u32 seconds = connection->idle_timeout;

	if (phase >= SLOT_CLOSED)
		seconds = settings->rest;
	else if (phase == SLOT_SYN_SENT)
		seconds = settings->syn_sent_timeout;
	else if (phase == SLOT_SYN_RECEIVED)
		seconds = settings->syn_received_timeout;
	else if (phase == SLOT_CLOSING)
		seconds = settings->closing_timeout;
	return ticks_of(seconds);
}

static __always_inline bool is_orphan(const struct connection *connection)
{
	__u32 number = connection->listener;
	struct listener *listener = listeners.lookup(&number);

	return !listener || !listener->idle_timeout;
}

/* Whether an order that is not about time concerns this connection. */
static __always_inline bool is_meant(const struct connection *connection, __u64 state, const struct sweep *sweep)
{
	if (sweep->mode == SWEEP_KILLED)
		return (__u32)(state / STATE_GENERATION) == sweep->only;
	return !sweep->only || connection->listener == sweep->only;
}

static __always_inline bool is_due(const struct connection *connection, __u64 state, __u32 at,
				   const struct gateway *settings, const struct sweep *sweep)
{
	__u64 phase = state & STATE_PHASE;

	if (sweep->mode == SWEEP_EXPIRED)
		return (__s32)(at - connection->last_seen) >= (__s32)patience(connection, state, settings);
	if (sweep->mode == SWEEP_ENDPOINT)
		return true;
	if (sweep->mode == SWEEP_ORPHANS)	/* a late packet would be counted for another listener of that id */
		return phase != SLOT_EXPIRED && is_orphan(connection);
	return phase < SLOT_CLOSED && is_meant(connection, state, sweep);
}

/* Either end of a TCP connection may not know that it is over: the slot stays to tell whoever speaks next. */
static __always_inline bool retire(struct connection *connection, __u64 have, __u32 at)
{
	connection->last_seen = at;
	return change_state(connection, have, with_phase(have, SLOT_EXPIRED));
}

static __always_inline void count_end(__u32 endpoint, __u32 mode)
{
	struct endpoint_count *count = endpoint_counts.lookup(&endpoint);

	if (!count)
		return;
	if (mode == SWEEP_EXPIRED)
		count->expired++;
	else if (mode == SWEEP_DRAINED)
		count->drained++;
	else if (mode == SWEEP_KILLED)
		count->killed++;
	else
		count->removed++;
}

/* One slot: taken from its connection if that is due. */
static __always_inline void sweep_slot(struct sweep *sweep, place at_place, __u32 at, const struct gateway *settings)
{
	__u32 listener;
	struct connection *connection = connection_at(at_place);
	__u64 have, phase;
	bool ended;

	if (!connection)
		return;
	have = state_of(connection);
	listener = connection->listener;
	phase = have & STATE_PHASE;
	if (phase < SLOT_SYN_SENT || !is_due(connection, have, at, settings, sweep))
		return;
	if (sweep->mode != SWEEP_ENDPOINT && connection->protocol == IPPROTO_TCP && phase < SLOT_CLOSED)
		ended = retire(connection, have, at);
	else
		ended = vacate(connection, have, at_place);
	if (!ended)
		return;		/* a packet changed it meanwhile: the next round sees */
	if (phase >= SLOT_CLOSED) {
		sweep->rested++;
		return;
	}
	tell(connection, at_place, have, EVENT_CLOSED, ENDING_EXPIRED + sweep->mode);
	sweep->ended++;
	count_end(sweep->endpoint, sweep->mode);
	count_change(connection, have, true);
	release(sweep->endpoint, listener, at_place, counts_for(have));
}

#endif
