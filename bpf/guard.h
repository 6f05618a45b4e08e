/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What reaches the kernel past XDP: no service of the gateway's own ever answers at our addresses, nor the kernel by RST. */
#ifndef IPBACKEND_GUARD_H
#define IPBACKEND_GUARD_H

#define GUARD_GO_ON -1	/* TC_ACT_UNSPEC and TC_ACT_SHOT of linux/pkt_cls.h */
#define GUARD_DROP 2

static __always_inline int guard(struct __sk_buff *skb)
{
	struct iphdr ip;

	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &ip, sizeof(ip)))
		return GUARD_GO_ON;
	if (ip.protocol != IPPROTO_TCP && ip.protocol != IPPROTO_UDP)
		return GUARD_GO_ON;
	return role_of(ip.daddr) ? GUARD_DROP : GUARD_GO_ON;
}

#endif
