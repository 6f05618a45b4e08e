/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What an address, a port and a protocol are to us: the controller's tables, one cache line for nearly every look. */
#ifndef IPBACKEND_DIRECTORY_H
#define IPBACKEND_DIRECTORY_H

static __always_inline __u64 directory_key(__be32 address, __be16 port, __u32 protocol)
{
	return (__u64)address << 32 | (__u32)port << 16 | (protocol == IPPROTO_UDP ? NUMBERS : 0);
}

static __always_inline struct bucket *addresses_bucket(__u64 index)
{
	return addresses.lookup((__u32 *)&index);
}

static __always_inline struct bucket *listeners_bucket(__u64 index)
{
	return listeners_by_addr.lookup((__u32 *)&index);
}

static __always_inline struct bucket *endpoints_bucket(__u64 index)
{
	return endpoints_by_addr.lookup((__u32 *)&index);
}

/* The number of a key, 0 for none. An entry is in its key's own bucket, or the next ones if that is full. */
static __always_inline __u32 number_of(__u64 key, struct bucket *(*bucket_at)(__u64), __u32 buckets)
{
	__u32 home = ((key ^ key >> 32) * DIRECTORY_FACTOR) >> 40, number = 0, step;
	struct bucket *bucket;
	int i;

#pragma clang loop unroll(disable)
	for (step = 0; step < DIRECTORY_STEPS; step++) {
		bucket = bucket_at((home + step) & (buckets - 1));
		if (!bucket)
			break;
#pragma clang loop unroll(full)
		for (i = 0; i < BUCKET_ENTRIES; i++) {
			if ((bucket->entry[i] ^ key) < NUMBERS) {
				number = bucket->entry[i];
				goto found;
			}
		}
		if (!bucket->entry[BUCKET_ENTRIES - 1])
			break;
	}
found:
	return forgotten(number, key) & (NUMBERS - 1);
}

/* The role of an address of ours, and which of its kind it is; 0 if it is none of ours. */
static __always_inline __u32 role_of(__be32 address)
{
	return number_of((__u64)address << 32, addresses_bucket, ADDRESS_BUCKETS);
}

static __always_inline __u32 listener_of(__be32 vip, __be16 port, __u32 protocol)
{
	return number_of(directory_key(vip, port, protocol), listeners_bucket, LISTENER_BUCKETS);
}

static __always_inline __u32 endpoint_of(__be32 address, __be16 port, __u32 protocol)
{
	return number_of(directory_key(address, port, protocol), endpoints_bucket, ENDPOINT_BUCKETS);
}

#endif
