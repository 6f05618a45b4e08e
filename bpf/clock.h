/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packets' time: ticks of the kernel's timer; and what time rations. */
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

#define BURST 1000000000ULL	/* nanoseconds' worth of what is rationed that may come at once */

/*
 * Whether one more may come now of what comes every `interval` ns at most, on average: a bucket that fills with
 * time. `next` is when the next one would be due if all came evenly.
 */
static __always_inline bool may_come(__u64 *next, __u64 interval)
{
	__u64 at = bpf_ktime_get_coarse_ns();

	if ((__s64)(*next - at) < 0)
		*next = at;
	if (*next - at >= BURST)
		return false;
	*next += interval;
	return true;
}

#endif
