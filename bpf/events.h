/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is told of connections: each one opened, closed or refused, and what has passed of it. It decides nothing. */
#ifndef IPBACKEND_EVENTS_H
#define IPBACKEND_EVENTS_H

#define TICK_NS ((1000000000ULL << TICK_SHIFT) / HZ)

/* BCC writes the map into the calls that it knows, of which a query of a ring buffer is none: it is called a peek. */
#define bpf_map_peek_elem bpf_ringbuf_query

/* What has passed of the connection in a slot; NULL where nothing is counted, and then no code is left of it. */
static __always_inline struct connection_count *count_of(place at)
{
	return COUNTED_SLOTS > 1 ? connection_counts.lookup(&at) : NULL;
}

/* The counts of a slot that a connection has just taken, with the packet that opens it. */
static __always_inline void count_anew(place at, __u32 length)
{
	struct connection_count *count = count_of(at);

	if (!count)
		return;
	count->opened = bpf_ktime_get_ns();
	count->request_packets = 1;
	count->request_bytes = length;
	count->reply_packets = 0;
	count->reply_bytes = 0;
}

static __always_inline void count_packet(place at, __u32 length, bool is_reply)
{
	struct connection_count *count = count_of(at);

	if (count && is_reply) {
		count->reply_packets++;
		count->reply_bytes += length;
	} else if (count) {
		count->request_packets++;
		count->request_bytes += length;
	}
}

/* The settings, if anyone wants to be told. */
static __always_inline struct gateway *watched(void)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });

	return settings && settings->events ? settings : NULL;
}

/* Room for an event; NULL, and counted, where there is none. */
static __always_inline struct event *new_event(enum event_kind kind, __u32 reason)
{
	struct event *event = events.ringbuf_reserve(sizeof(*event));
	struct event_count *count;

	if (!event) {
		count = event_counts.lookup(&(__u32){ 0 });
		if (count)
			count->lost++;
		return NULL;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->at = bpf_ktime_get_ns();
	event->kind = kind;
	event->reason = reason;
	return event;
}

/* Of a connection, whose slot must not be free yet. `state` is that from before. */
static __always_inline void tell(const struct connection *connection, place at, __u64 state, enum event_kind kind,
				   __u32 reason)
{
	struct gateway *settings = watched();
	__u32 endpoint = connection->endpoint;
	struct endpoint *member = endpoints.lookup(&endpoint);
	struct connection_count *count = count_of(at);
	struct event *event;

	if (!settings || !member)
		return;
	event = new_event(kind, reason);
	if (!event)
		return;
	event->opened = event->at - (__u64)(now() - connection->opened) * TICK_NS;
	if (count) {
		event->opened = count->opened;
		event->request_packets = count->request_packets;
		event->request_bytes = count->request_bytes;
		event->reply_packets = count->reply_packets;
		event->reply_bytes = count->reply_bytes;
	}
	event->state = state;
	event->client = connection->client;
	event->client_port = connection->client_port;
	event->vip = connection->vip;
	event->vip_port = connection->vip_port;
	event->slot = at - member->first;
	event->snat = member->snat[event->slot & ((1 << settings->snat_shift) - 1) & (MAX_SNAT_ADDRESSES - 1)];
	event->snat_port = bpf_htons(FIRST_SNAT_PORT + (event->slot >> settings->snat_shift));
	event->member = member->address;
	event->member_port = member->port;
	event->endpoint = endpoint;
	event->listener = connection->listener;
	event->protocol = connection->protocol;
	events.ringbuf_submit(event, 0);
}

/* The same, out of the way: the common road must not be slower for what it hardly ever does. */
static __always_inline void report(const struct connection *connection, place at, __u64 state, enum event_kind kind,
				   __u32 reason)
{
	if (__builtin_expect(!!watched(), 0))
		tell(connection, at, state, kind, reason);
}

/* Who ended a connection by this packet of `fin`'s side: of two FINs the first. */
static __always_inline __u32 ending_of(const struct packet *pkt, __u64 have, __u64 fin)
{
	if (pkt->tcp_flags & TCP_RST)
		return fin == STATE_FIN_CLIENT ? ENDING_CLIENT_RST : ENDING_MEMBER_RST;
	return have & STATE_FIN_CLIENT ? ENDING_CLIENT_FIN : ENDING_MEMBER_FIN;
}

/*
 * Whether one more rejection is told of: some of each CPU's, and none while half of the buffer is full, so
 * that those who are turned away cannot take the room of those who are let in.
 */
static __always_inline bool is_due_rejection(void)
{
	struct event_count *count = event_counts.lookup(&(__u32){ 0 });

	if (!count)
		return false;
	if (events.peek(BPF_RB_AVAIL_DATA) < EVENTS_SIZE / 2 && may_come(&count->next_rejection, REJECTION_INTERVAL))
		return true;
	count->withheld++;
	return false;
}

/* Reports what a client's packet was turned away for, if it would have opened a connection. */
static __always_inline enum verdict refused(const struct packet *pkt, enum verdict verdict)
{
	struct event *event;

	if (!watched() || !opens(pkt) || !is_due_rejection())
		return verdict;
	event = new_event(EVENT_REJECTED, verdict);
	if (!event)
		return verdict;
	event->opened = event->at;
	event->client = pkt->tuple.saddr;
	event->client_port = pkt->tuple.sport;
	event->vip = pkt->tuple.daddr;
	event->vip_port = pkt->tuple.dport;
	event->protocol = pkt->tuple.protocol;
	events.ringbuf_submit(event, 0);
	return verdict;
}

#endif
