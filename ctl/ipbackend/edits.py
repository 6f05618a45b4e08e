"""Changes of what is wanted: each takes a configuration and returns another. It knows no requests and no store.

ConfigurationError where a change is refused; what becomes of it in the kernel is the reconciler's.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from ipbackend.configuration import SECTIONS, Configuration, forbidden, references, where_is
from ipbackend.errors import ConfigurationError, Kind, Problem
from ipbackend.model import LoadBalancer, Member, Pool, Resource

Edit = Callable[[Configuration], Configuration]


def missing(section: str, number: str) -> ConfigurationError:
    """The refusal for what is not there."""
    thing = section.removesuffix("s").replace("_", " ")
    return ConfigurationError(Problem(f"{thing} {number} could not be found (list them to see the ids)", Kind.MISSING))


def find(have: Configuration, section: str, number: str) -> Any:
    """The resource with this id."""
    try:
        return getattr(have, section)[number]
    except KeyError:
        raise missing(section, number) from None


def find_member(pool: Pool, number: str) -> Member:
    """The member of a pool with this id."""
    for member in pool.members:
        if member.id == number:
            return member
    raise missing("members", number)


def put(have: Configuration, section: str, *resources: Resource) -> Configuration:
    """With these added, or in place of those with their ids."""
    there: Mapping[str, Resource] = getattr(have, section)
    return replace(have, **cast(Any, {section: {**there, **{one.id: one for one in resources}}}))


def change(have: Configuration, section: str, number: str, fields: Mapping[str, Any]) -> Configuration:
    """With some fields of a resource changed."""
    before: Resource = find(have, section, number)
    after = replace(before, **fields)
    if problems := list(forbidden(where_is(before), before, after)):  # said before what it would do to others
        raise ConfigurationError(*problems)
    return put(have, section, after)


def delete(
    have: Configuration, section: str, number: str, cascade: bool = False, keep_pools: bool = False
) -> Configuration:
    """Without a resource.

    What refers to it stands in the way, and so do a pool's members and protection from deletion. `cascade`
    takes along what belongs to it: a load balancer's listeners, a listener's pool, a pool's members and health
    monitor. A pool that something else uses stays; with `keep_pools` so does every other.
    """
    doomed = find(have, section, number)
    gone = _belonging(have, section, doomed, keep_pools) if cascade else {section: {number}}
    problems = [*_protected(have, gone, cascade), *_users(have, gone, cascade)]
    if not cascade and isinstance(doomed, Pool) and doomed.members:
        what = f"{where_is(doomed)}: it has {len(doomed.members)} members (remove them first, or cascade)"
        problems.append(Problem(what, Kind.IN_USE))
    if problems:
        raise ConfigurationError(*problems)
    kept = {
        name: {key: one for key, one in getattr(have, name).items() if key not in numbers}
        for name, numbers in gone.items()
    }
    loose = {  # a pool outlives the listener, and the load balancer, that it was made for
        number: replace(pool, load_balancer=None)
        for number, pool in kept.get("pools", have.pools).items()
        if pool.load_balancer in gone.get("load_balancers", ())
    }
    kept_pools = {**kept.get("pools", have.pools), **loose}
    return replace(have, **cast(Any, {**kept, "pools": kept_pools}))


def _belonging(have: Configuration, section: str, doomed: Any, keep_pools: bool) -> dict[str, set[str]]:
    """What goes along, by section: nothing that others still use."""
    gone: dict[str, set[str]] = {section: {doomed.id}}
    listeners, pools = gone.setdefault("listeners", set()), gone.setdefault("pools", set())
    if section == "load_balancers":
        listeners |= {one.id for one in have.listeners.values() if one.load_balancer == doomed.id}
        pools |= {one.id for one in have.pools.values() if one.load_balancer == doomed.id}
    pools |= {one.pool for one in have.listeners.values() if one.id in listeners and one.pool}
    if section != "pools":
        pools -= pools if keep_pools else {one.pool for one in have.listeners.values() if one.id not in listeners}
    gone["health_monitors"] = {one.id for one in have.health_monitors.values() if one.pool in pools}
    return gone


def _protected(have: Configuration, gone: Mapping[str, set[str]], cascade: bool) -> Iterable[str]:
    for number in gone.get("load_balancers", ()):
        balancer: LoadBalancer = have.load_balancers[number]
        if balancer.deletion_protection_enable:
            what = f"{where_is(balancer)}: deletion_protection_enable is true (set it to false first)"
            yield Problem(what, Kind.PROTECTED)
    for number in gone.get("pools", ()) if cascade else ():
        pool = have.pools[number]
        if pool.members:
            yield from _members_protected(pool)


def _members_protected(pool: Pool) -> Iterable[str]:
    if pool.member_deletion_protection_enable:
        what = f"{where_is(pool)}: member_deletion_protection_enable is true (set it to false first)"
        yield Problem(what, Kind.PROTECTED)


def _users(have: Configuration, gone: Mapping[str, set[str]], cascade: bool) -> Iterable[str]:
    """What refers to something that is to go, and stays itself."""
    for section, resources in have.sections():
        for field, reference in references(SECTIONS[section]).items():
            if field == "load_balancer" and section == "pools" and cascade:
                continue
            remedy = "take it out there first" if field == "ip_groups" else "delete that first, or cascade"
            for user in resources.values():
                doomed = () if user.id in gone.get(section, ()) else gone.get(reference.section, ())
                for number in reference.ids(getattr(user, field)):
                    if number in doomed:
                        what = where_is(getattr(have, reference.section)[number])
                        yield Problem(f"{what}: {where_is(user)}.{field} refers to it ({remedy})", Kind.IN_USE)


def add_members(have: Configuration, pool: str, members: Iterable[Member]) -> Configuration:
    """With more members in a pool."""
    there = find(have, "pools", pool)
    return put(have, "pools", replace(there, members=(*there.members, *members)))


def change_members(have: Configuration, pool: str, fields: Mapping[str, Mapping[str, Any]]) -> Configuration:
    """With some fields of some members, by id, changed."""
    there = find(have, "pools", pool)
    unknown = fields.keys() - {member.id for member in there.members}
    if unknown:
        raise missing("members", min(unknown))
    changed = (replace(one, **fields[one.id]) if one.id in fields else one for one in there.members)
    return put(have, "pools", replace(there, members=tuple(changed)))


def remove_members(have: Configuration, pool: str, numbers: Collection[str]) -> Configuration:
    """Without some members, by id; their connections end."""
    there = find(have, "pools", pool)
    if problems := list(_members_protected(there)):
        raise ConfigurationError(*problems)
    for number in numbers:
        find_member(there, number)
    kept = tuple(member for member in there.members if member.id not in numbers)
    return put(have, "pools", replace(there, members=kept))
