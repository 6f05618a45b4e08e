"""The controller's side of bpf/flow_index.h: where a client's tuple stands in the index. It knows no kernel."""

from collections.abc import Sequence

_WORD = (1 << 64) - 1
_FINALISER, _SECOND = 0xD6E8FEB86659FD93, 0x9E3779B1


def hash_of(key: Sequence[int], client: int, vip: int, client_port: int, vip_port: int, protocol: int) -> int:
    """64 bits, the upper 32 of them the tag; addresses and ports as a C struct has them in network order."""
    words = (1, client, vip, client_port << 16 | vip_port, protocol)
    number = sum(secret * word for secret, word in zip(key, words, strict=True)) & _WORD
    number ^= number >> 32
    number = number * _FINALISER & _WORD
    return number ^ number >> 32


def buckets_of(number: int, buckets: int) -> tuple[int, int]:
    """The first and the second bucket of a hash; there are `buckets`, a power of two."""
    other = number ^ ((number >> 32) * _SECOND & _WORD | 1)
    return number & buckets - 1, other & buckets - 1
