/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What keeps the kernel's verifier from going through the same code again and again. It does nothing to a packet. */
#ifndef IPBACKEND_VERIFIER_H
#define IPBACKEND_VERIFIER_H

/*
 * The same number, of which the verifier knows nothing any more (two changes of byte order do not change it):
 * else it would go through what follows anew for each range that it can be in.
 */
static __always_inline __u32 forgotten(__u32 number)
{
	asm volatile("%0 = be16 %0\n%0 = be16 %0" : "+r"(number));
	return number;
}

static __always_inline __u64 forgotten64(__u64 number)
{
	asm volatile("%0 = be64 %0\n%0 = be64 %0" : "+r"(number));
	return number;
}

/*
 * Whether a loop has gone round often enough. The operation that changes nothing keeps the verifier from
 * learning `end`'s range anew in every round, which would make no two rounds alike to it.
 */
static __always_inline bool passed(__u32 i, __u32 end)
{
	asm volatile("%0 |= 0" : "+r"(end));
	return i >= end;
}

#endif
