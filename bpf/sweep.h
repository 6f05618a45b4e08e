/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The end of connections that no packet ends: silence, a removed member or listener. One slice of slots a run. */
#ifndef IPBACKEND_SWEEP_H
#define IPBACKEND_SWEEP_H

/* How long a connection in this phase may be silent, in ticks. */
static __always_inline __u32 patience(const struct connection *connection, __u64 phase,
				      const struct gateway *settings)
{
	__u32 seconds = connection->idle_timeout;

	if (phase == SLOT_SYN_SENT)
		seconds = settings->syn_sent_timeout;
	else if (phase == SLOT_SYN_RECEIVED)
		seconds = settings->syn_received_timeout;
	else if (phase == SLOT_CLOSING)
		seconds = settings->closing_timeout;
	else if (phase == SLOT_CLOSED)
		seconds = settings->rest;
	return ((__u64)seconds * 1000000000ULL) >> TICK_SHIFT;
}

static __always_inline bool is_due(const struct connection *connection, __u64 phase, __u32 at,
				   const struct gateway *settings, const struct sweep *sweep)
{
	if (sweep->mode == SWEEP_ENDPOINT)
		return true;
	if (sweep->mode == SWEEP_LISTENER)
		return connection->listener == sweep->listener;
	return (__s32)(at - connection->last_seen) >= (__s32)patience(connection, phase, settings);
}

/* One slot: taken from its connection if that is due. */
static __always_inline void sweep_slot(struct sweep *sweep, __u32 at, const struct gateway *settings)
{
	__u32 endpoint = sweep->endpoint, slot = sweep->slot;
	struct connection *connection = connection_at(endpoint, slot);
	struct endpoint_count *count;
	__u64 have, phase;

	if (!connection)
		return;
	have = state_of(connection);
	phase = have & STATE_PHASE;
	if (phase < SLOT_SYN_SENT || !is_due(connection, phase, at, settings, sweep))
		return;
	if (!vacate(connection, have, place_of(endpoint, slot)))
		return;		/* a packet changed it meanwhile: the next round sees */
	if (phase == SLOT_CLOSED) {
		sweep->rested++;
		return;
	}
	release(endpoint, slot);
	sweep->ended++;
	count = endpoint_counts.lookup(&endpoint);
	if (!count)
		return;
	if (sweep->mode == SWEEP_EXPIRED)
		count->expired++;
	else
		count->removed++;
}

#endif
