/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What keeps the kernel's verifier from going through the same code again and again. It does nothing to a packet. */
#ifndef IPBACKEND_VERIFIER_H
#define IPBACKEND_VERIFIER_H

/*
 * The same number, of which the verifier knows nothing any more: else it would go through what follows anew for
 * each value that it can have. `unknown` is any number of which it knows nothing, such as an address.
 */
static __always_inline __u64 forgotten(__u64 number, __u32 unknown)
{
	asm volatile("%0 ^= %1\n%0 ^= %1" : "+r"(number) : "r"((__u64)unknown));
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
