/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Client tuple to slot: buckets of one cache line, two candidates each, changed by one compare and swap. */
#ifndef IPBACKEND_FLOW_INDEX_H
#define IPBACKEND_FLOW_INDEX_H

/* Where a connection lives: its slot among all. */
typedef __u32 place;

#define NOWHERE 0

/*
 * Multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast"): without the key no one
 * can choose tuples that meet. The finaliser spreads neighbours over the buckets.
 */
static __always_inline __u64 hash_of(const struct tuple *tuple)
{
	struct gateway *settings = gateway.lookup(&(__u32){ 0 });
	__u64 hash;

	if (!settings)
		return 0;
	hash = settings->hash_key[0];
	hash += settings->hash_key[1] * tuple->saddr;
	hash += settings->hash_key[2] * tuple->daddr;
	hash += settings->hash_key[3] * ((__u32)tuple->sport << 16 | tuple->dport);
	hash += settings->hash_key[4] * tuple->protocol;
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93ULL;
	hash ^= hash >> 32;
	return hash;
}

static __always_inline __u32 first_bucket(__u64 hash)
{
	return hash & (FLOW_INDEX_BUCKETS - 1);
}

/* Its own inverse, so that it can be told from either bucket and the tag. */
static __always_inline __u32 second_bucket(__u64 hash)
{
	return first_bucket(hash ^ ((hash >> 32) * 0x9e3779b1 | 1));
}

static __always_inline __u64 entry_of(__u64 hash, place at)
{
	return hash >> 32 << 32 | at;
}

static __always_inline bool insert_in_bucket(__u64 number, __u64 entry)
{
	struct bucket *bucket = flow_index.lookup((__u32 *)&number);
	int i;

	if (!bucket)
		return false;
	for (i = 0; i < BUCKET_ENTRIES; i++) {
		if (bucket->entry[i])
			continue;
		if (!__sync_val_compare_and_swap(&bucket->entry[i], 0, entry))
			return true;
	}
	return false;
}

/* False: both buckets are full. */
static __always_inline bool index_insert(__u64 hash, place at)
{
	__u64 entry = entry_of(hash, at);

	return insert_in_bucket(first_bucket(hash), entry) || insert_in_bucket(second_bucket(hash), entry);
}

static __always_inline bool delete_from_bucket(__u64 number, __u64 entry)
{
	struct bucket *bucket = flow_index.lookup((__u32 *)&number);
	int i;

	if (!bucket)
		return false;
	for (i = 0; i < BUCKET_ENTRIES; i++) {
		if (bucket->entry[i] == entry)
			return __sync_val_compare_and_swap(&bucket->entry[i], entry, 0) == entry;
	}
	return false;
}

/* Nothing happens if the entry is not there (any more). */
static __always_inline void index_delete(__u64 hash, place at)
{
	__u64 entry = entry_of(hash, at);

	if (!delete_from_bucket(first_bucket(hash), entry))
		delete_from_bucket(second_bucket(hash), entry);
}

#endif
