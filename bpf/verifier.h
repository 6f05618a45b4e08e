/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What keeps the kernel's verifier from going through the same code again and again. It does nothing to a packet.
 *
 * Two more habits do the same. Keys of arrays on the paths that fork most are eight bytes of which the kernel reads
 * four: after a shorter store old verifiers hold that what the rest of the eight was before is still used, and two
 * ways that differ in it never become one again. And a loop has one way from one round to the next: of several, the
 * verifier goes through all those behind each round anew, since it soon forgets which of so many states it has seen.
 */
#ifndef IPBACKEND_VERIFIER_H
#define IPBACKEND_VERIFIER_H

/*
 * The same number, of which the verifier knows nothing any more: else it would go through what follows anew for
 * each value that it can have. `unknown` is any number of which it knows nothing, such as an address; and as many
 * bits are forgotten as it has, so a whole word takes one such as a hash.
 */
static __always_inline __u64 forgotten(__u64 number, __u64 unknown)
{
	asm volatile("%0 ^= %1\n%0 ^= %1" : "+r"(number) : "r"(unknown));
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

/*
 * The same length, of at most sixteen bits. Not every kernel's verifier knows that no more are left of a number
 * whose bytes were swapped, and the compiler, which knows it, would leave the mask out.
 */
static __always_inline __u32 bounded(__u32 length)
{
	asm volatile("%0 &= 0xffff" : "+r"(length));
	return length;
}

/*
 * The same number, of which the compiler knows nothing any more. From LLVM 17 on it leaves out a check against the
 * packet's end that follows from an earlier one and this number; the verifier does not see that it follows.
 */
static __always_inline __u32 unrelated(__u32 number)
{
	asm volatile("" : "+r"(number));
	return number;
}

#endif
