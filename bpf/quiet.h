/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Nobody looks at packets. While some are captured, capture.h stands in place of this file. */
#ifndef IPBACKEND_QUIET_H
#define IPBACKEND_QUIET_H

/* A packet as it came. */
static __always_inline void arrived(struct xdp_md *ctx)
{
}

/* A packet as it leaves, on its way to this action. */
static __always_inline void left(struct packet *pkt, enum verdict verdict, int action)
{
}

#endif
