/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How far each side of a TCP connection has come, and so whose RST and FIN are believed. */
#ifndef IPBACKEND_SEQUENCE_H
#define IPBACKEND_SEQUENCE_H

/*
 * How far a side's sequence numbers have come is written down only every SEQUENCE_STEP bytes, so that most
 * packets write nothing. A RST or FIN from near there ends the connection: who guesses has one chance in 52,000.
 * One from farther off is passed on, since the end that it reaches can tell exactly (RFC 5961), but changes
 * nothing here; only a member's RST is believed later, if silence follows it, since its side is not open to all.
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
 * a flood of SYNs would leave the budget of handshakes by a flood of ACKs or FINs.
 */
static __always_inline bool is_believed(const struct packet *pkt, const struct connection *connection, __u64 state,
					__u64 fin)
{
	if (fin == STATE_FIN_MEMBER)
		return is_near(pkt->sequence, connection->member_sequence);
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
	if (fin == STATE_FIN_CLIENT) {
		moved = pkt->sequence - connection->client_sequence;
		if (moved >= SEQUENCE_STEP && moved < SEQUENCE_AHEAD)
			connection->client_sequence = pkt->sequence;
		return;
	}
	if (is_half_open(state) && (pkt->tcp_flags & TCP_SYN)) {
		connection->member_sequence = pkt->sequence;
		if (pkt->tcp_flags & TCP_ACK)	/* of several SYNs of the client, the one that was taken */
			connection->client_sequence = pkt->acknowledgement;
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
