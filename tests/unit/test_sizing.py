import pytest

from ipbackend import sizing
from ipbackend.errors import ConfigurationError
from ipbackend.sizing import Required, addresses_required, slots_for, snat_addresses_for


@pytest.mark.parametrize(
    ("max_connections", "snat"),
    [(1, 1), (25_000, 1), (25_001, 2), (50_000, 2), (50_001, 4), (75_001, 4), (100_000, 4)],
)
def test_snat_addresses_are_the_smallest_number_that_carries_the_ceiling(max_connections: int, snat: int) -> None:
    assert snat_addresses_for(max_connections) == snat


@pytest.mark.parametrize("max_connections", [-1, 0, 100_001])
def test_a_ceiling_no_number_of_addresses_carries_is_refused(max_connections: int) -> None:
    with pytest.raises(ConfigurationError) as refused:
        snat_addresses_for(max_connections)

    assert str(refused.value) == (
        f"max_connections: {max_connections} is not within 1 to 100000 "
        "(one endpoint holds at most 100000: lower it, or add members)"
    )


@pytest.mark.parametrize(
    ("gateways", "load_balancers", "max_connections", "ip_backend", "total", "parts"),
    [
        (1, 1, 100_000, True, 6, [1, 1, 4]),
        (2, 1, 100_000, True, 11, [1, 2, 8]),
        (3, 1, 100_000, True, 16, [1, 3, 12]),
        (1, 1, 100_000, False, 2, [1, 1, 0]),
        (2, 1, 100_000, False, 3, [1, 2, 0]),
        (3, 1, 100_000, False, 4, [1, 3, 0]),
        (2, 5, 100_000, True, 15, [5, 2, 8]),
        (2, 1, 25_000, True, 5, [1, 2, 2]),
    ],
)
def test_addresses_required_are_vips_health_checks_and_snat(
    gateways: int, load_balancers: int, max_connections: int, ip_backend: bool, total: int, parts: list[int]
) -> None:
    required = addresses_required(gateways, load_balancers, max_connections, ip_backend)

    assert required == Required(total, dict(zip(["vip", "health_check", "snat"], parts, strict=True)))
    assert list(required.parts) == ["vip", "health_check", "snat"]


def test_every_impossible_argument_is_named() -> None:
    with pytest.raises(ConfigurationError) as refused:
        addresses_required(0, -1, 100_001, ip_backend=True)

    gateways, load_balancers, max_connections = refused.value.problems
    assert gateways == "gateways: 0 is too few (at least 1)"
    assert load_balancers == "load_balancers: -1 is too few (at least 1)"
    assert max_connections.startswith("max_connections: 100001 is not within 1 to 100000")


@pytest.mark.parametrize(
    ("ceiling", "snat_count", "slots"),
    [
        (1, 1, 128),
        (97, 1, 128),  # 127.1
        (98, 1, 192),  # 128.5
        (500, 1, 704),  # 655.4
        (25_000, 1, 32_768),
        (25_000, 4, 32_768),
        (50_000, 2, 65_536),
        (100_000, 4, 131_072),
    ],
)
def test_slots(ceiling: int, snat_count: int, slots: int) -> None:
    assert slots_for(ceiling, snat_count) == slots


@pytest.mark.parametrize("snat_count", sizing.SNAT_COUNTS)
def test_every_table_has_rest_and_is_within_its_ports(snat_count: int) -> None:
    for ceiling in range(1, snat_count * sizing.CEILING_PER_SNAT + 1):
        slots = slots_for(ceiling, snat_count)

        assert slots % 64 == 0
        assert slots == 128 or slots - 64 < ceiling * 32_768 / 25_000 <= slots
        assert 128 <= slots <= snat_count * sizing.PORTS_PER_SNAT


@pytest.mark.parametrize(("ceiling", "snat_count", "remedy"), [(25_001, 1, 2), (100_000, 2, 4), (50, 3, 1), (50, 0, 1)])
def test_slots_of_addresses_that_do_not_carry_the_ceiling_are_refused(
    ceiling: int, snat_count: int, remedy: int
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        slots_for(ceiling, snat_count)

    assert str(refused.value) == (f"snat_addresses: {snat_count} cannot carry {ceiling} connections (take {remedy})")


@pytest.mark.parametrize("connections", [1_000, 5_000, 1_000_000, 10_000_000])
def test_a_gateway_has_slots_for_all_its_members_however_they_share_its_connections(connections: int) -> None:
    for ceiling in (97, 500, 1_000, 50_001, 100_000):
        members = min(512, connections // ceiling)
        assert sizing.FIRST_SLOT + members * slots_for(ceiling, 4) <= sizing.gateway_slots(connections)


def test_the_ports_of_an_address_end_where_ports_end() -> None:
    assert sizing.FIRST_SNAT_PORT + sizing.PORTS_PER_SNAT == 65_536


@pytest.mark.parametrize(
    ("ceiling", "percent", "limit"),
    [
        (1, 10, 1),
        (63, 1, 63),
        (64, 10, 64),
        (640, 10, 64),
        (650, 10, 65),
        (100_000, 10, 10_000),
        (100_000, 100, 100_000),
    ],
)
def test_handshakes_have_a_share_of_the_ceiling(ceiling: int, percent: int, limit: int) -> None:
    """No fewer than a burst takes, and no more than the ceiling."""
    assert sizing.half_open_limit(ceiling, percent) == limit
