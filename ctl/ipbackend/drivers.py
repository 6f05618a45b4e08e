"""What is known of network drivers and native XDP: which have it, in what MTU, with how many queues. No I/O.

From the drivers' sources, cited in docs/drivers.md. Where the kernel tells what a driver has (6.3 on), that counts.
"""

ONE_BUFFER = 3_506  # bytes of IP in a page beside its headroom and what the kernel keeps of it (veth, virtio_net)
# Drivers whose buffers hold less than that.
_SMALLER = {"ena": 3_498, "gve": 2_032, "nicvf": 1_508, "vmxnet3": 3_494}
# Drivers that set a sending queue aside for XDP beside each one in use, and refuse it where there is none to take.
_DOUBLED = frozenset(["ena", "gve"])
# Drivers with native XDP up to Linux 6.3, where the kernel began to say so itself.
NATIVE = frozenset(
    [
        *("atlantic", "bnxt_en", "cpsw", "dpaa2-eth", "ena", "fec", "fsl_dpa", "gve", "hv_netvsc", "i40e", "ice"),
        *("igb", "igc", "ixgbe", "ixgbevf", "lan966x", "mana", "mlx4_en", "mlx5_core", "mtk_soc_eth", "mvneta"),
        *("mvpp2", "nfp", "nicvf", "qede", "sfc", "stmmac", "thunder-nicvf", "tsnep", "tun", "veth", "virtio_net"),
        *("vmxnet3", "xen-netfront"),
    ]
)


def largest_mtu(driver: str) -> int:
    """Bytes of IP that native XDP of this driver takes in one buffer."""
    return _SMALLER.get(driver, ONE_BUFFER)


def knows_largest_mtu(driver: str) -> bool:
    """Whether that is the driver's own figure: more is refused for certain."""
    return driver in _SMALLER


def most_queues(driver: str, there: int) -> int:
    """How many of its queues may be in use, that native XDP is not refused."""
    return there // 2 if driver in _DOUBLED else there
