/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How far each side of a TCP connection has come, and so whose RST and FIN are believed. */
#ifndef IPBACKEND_SEQUENCE_H
#define IPBACKEND_SEQUENCE_H

/*
 * How far a side's sequence numbers have come is written down only every SEQUENCE_STEP bytes, so that most
 * packets write nothing. A RST or FIN from near there ends the connection: who guesses has one chance in 52,000.
 * One from farther off is passed on, since the end that it reaches can tell exactly (RFC 5961), but changes
 * nothing here, whatever follows it: an end that is alive may be as silent as one that is not.
 */
#define SEQUENCE_STEP 16384
#define SEQUENCE_BEHIND 16384
#define SEQUENCE_AHEAD 65536
#define SEQUENCE_LOST (1 << 30)

static __always_inline bool is_near(__u32 number, __u32 sequence)
{
	return number - sequence + SEQUENCE_BEHIND < SEQUENCE_BEHIND + SEQUENCE_AHEAD;
}

/*
 * Whether a packet's numbers are those of one who sees the connection. Of a client whose handshake is under way
 * his own tell nothing, since anyone may have begun it: it counts that he has seen the member's answer, or else
 * a flood of SYNs would leave the budget of handshakes by a flood of ACKs or FINs. Only by his RST, with the one
 * number that the member takes from him (RFC 5961, 3.2): then it has as much room again as we. A member that has
 * not told its own number yet says by its RST which SYN it means (RFC 9293, 3.10.7.3).
 */
static __always_inline bool is_believed(const struct packet *pkt, const struct connection *connection, __u64 state,
					__u64 fin)
{
	bool resets = pkt->tcp_flags & TCP_RST;

	if (fin == STATE_FIN_MEMBER && resets && (state & STATE_PHASE) == SLOT_SYN_SENT)
		return (pkt->tcp_flags & TCP_ACK) && is_near(pkt->acknowledgement, connection->client_sequence);
	if (fin == STATE_FIN_MEMBER)
		return is_near(pkt->sequence, connection->member_sequence);
	if (is_half_open(state) && resets)
		return pkt->sequence - connection->client_sequence <= 1;	/* of its SYN, or next to it */
	if (is_half_open(state))
		return (pkt->tcp_flags & TCP_ACK) && is_near(pkt->acknowledgement, connection->member_sequence);
	return is_near(pkt->sequence, connection->client_sequence);
}

/*
 * A client's own packets lead its sequence on from near only, or else anyone could lead it to where his RST is.
 * Where that has been outrun, the member's acknowledgements tell: its side of the gateway is not open to anyone.
 */
static __always_inline void lead_on(const struct packet *pkt, struct connection *connection, __u64 state, __u64 fin)
{
	__u32 moved;

	if (!is_tcp(pkt) || !pkt->ports || (pkt->tcp_flags & TCP_RST))
		return;
	if (is_half_open(state)) {	/* only a SYN of the member's tells anything yet */
		if (fin == STATE_FIN_CLIENT || !(pkt->tcp_flags & TCP_SYN))
			return;
		connection->member_sequence = pkt->sequence;
		if (pkt->tcp_flags & TCP_ACK)	/* of several SYNs of the client, the one that was taken */
			connection->client_sequence = pkt->acknowledgement;
		return;
	}
	if (fin == STATE_FIN_CLIENT) {
		moved = pkt->sequence - connection->client_sequence;
		if (moved >= SEQUENCE_STEP && moved < SEQUENCE_AHEAD)
			connection->client_sequence = pkt->sequence;
		return;
	}
	moved = pkt->sequence - connection->member_sequence;
	if (moved >= SEQUENCE_STEP && moved < SEQUENCE_LOST)
		connection->member_sequence = pkt->sequence;
	moved = pkt->acknowledgement - connection->client_sequence;
	if ((pkt->tcp_flags & TCP_ACK) && moved >= SEQUENCE_AHEAD && moved < SEQUENCE_LOST)
		connection->client_sequence = pkt->acknowledgement;
}

#endif
