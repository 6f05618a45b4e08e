/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packets' time: ticks of the kernel's timer. */
#ifndef IPBACKEND_CLOCK_H
#define IPBACKEND_CLOCK_H

static __always_inline __u32 now(void)
{
	return bpf_jiffies64() >> TICK_SHIFT;	/* one load, where a clock is a call */
}

static __always_inline __u32 ticks_of(__u32 seconds)
{
	return (__u64)seconds * HZ >> TICK_SHIFT;
}

#endif
