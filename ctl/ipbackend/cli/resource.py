"""What all nouns have in common: found by name or id, created, listed, shown, set, deleted. It knows no fields.

Whatever is asked for here is asked of the daemon; a name that several things have is refused with their ids.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import click
from click.shell_completion import CompletionItem

from ipbackend.cli import output as out
from ipbackend.client import Client
from ipbackend.errors import IpbackendError, ServiceError, suggestion

Fields = Mapping[str, Any]


class Noun(NamedTuple):
    """A kind of resource: what people call it, where the API has it, its envelopes, and the way to delete it whole."""

    word: str
    path: str
    one: str
    many: str
    whole: str = ""


LOAD_BALANCER = Noun("load balancer", "/elb/loadbalancers", "loadbalancer", "loadbalancers", "/force-elb")
LISTENER = Noun("listener", "/elb/listeners", "listener", "listeners", "/force")
POOL = Noun("pool", "/elb/pools", "pool", "pools", "/delete-cascade")
HEALTH_MONITOR = Noun("health monitor", "/elb/healthmonitors", "healthmonitor", "healthmonitors")
IP_GROUP = Noun("ip group", "/elb/ipgroups", "ipgroup", "ipgroups")
MEMBER = Noun("member", "/members", "member", "members")  # under a pool
NETWORK = Noun("network", "/ipbackend/networks", "network", "networks")

# Fields that refer to others by id: for people they are shown by name.
REFERENCES = {
    "loadbalancers": LOAD_BALANCER,
    "listeners": LISTENER,
    "pools": POOL,
    "default_pool_id": POOL,
    "healthmonitor_id": HEALTH_MONITOR,
    "ip_groups": IP_GROUP,
}
# Fields that only ever have one value here.
CONSTANT = ("project_id", "admin_state_up", "provider", "guaranteed", "availability_zone_list", "ip_version", "type")


def rows(client: Client, noun: Noun, under: str = "", **filters: Any) -> list[dict[str, Any]]:
    """All there are, page by page; `under` is the path of what they belong to."""
    found: list[dict[str, Any]] = []
    query = dict(filters)
    while True:
        answer = client.request("GET", under + noun.path, **query)
        found += answer[noun.many]
        if "next_marker" not in answer.get("page_info", {}):
            return found
        query["marker"] = answer["page_info"]["next_marker"]


def find(client: Client, noun: Noun, given: str, under: str = "", **also: Any) -> dict[str, Any]:
    """The one with this id or name, or with the fields `also`. ServiceError: there is none, or several."""
    found = rows(client, noun, under, id=given) if _is_id(given) else []
    found = found or rows(client, noun, under, **(also or {"name": given}))
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(one["id"] for one in found)
        raise ServiceError(f"{noun.word} {given}: {len(found)} are called so (write the id of one: {ids})")
    known = [label(one) for one in rows(client, noun, under)]
    raise ServiceError(f"{noun.word} {given}: there is none ({suggestion(given, known)})")


def find_id(client: Client, noun: Noun, given: str | None) -> str | None:
    """The id of what is called so; of None, None."""
    return None if given is None else str(find(client, noun, given)["id"])


def label(one: Fields) -> str:
    """What people call it."""
    if "address" in one and "protocol_port" in one:
        return f"{one['address']}:{one['protocol_port']}"
    return str(one.get("name") or one["id"])


def create(client: Client, noun: Noun, fields: Fields, output: out.Format) -> None:
    """Make one of the `fields` that are given, and show it."""
    made = client.request("POST", noun.path, {noun.one: wanted(fields)})[noun.one]
    done(noun, made, "created", output)


def change(client: Client, noun: Noun, given: str, fields: Fields, output: out.Format) -> None:
    """Set the `fields` that are given."""
    number = find(client, noun, given)["id"]
    changed = client.request("PUT", f"{noun.path}/{number}", {noun.one: wanted(fields)})[noun.one]
    done(noun, changed, "changed", output)


def wanted(fields: Fields) -> dict[str, Any]:
    """The fields that are given; NONE stands for an explicit nothing."""
    chosen = {name: value for name, value in fields.items() if value is not None}
    if not chosen:
        raise click.UsageError("there is nothing to set (see --help for what can be)")
    return {name: None if value is NONE else value for name, value in chosen.items()}


NONE = object()


def without(fields: Fields, **nothing: bool) -> dict[str, Any]:
    """The fields, with an explicit nothing for those that are to be `nothing`, and so cannot be given as well."""
    for name, really in nothing.items():
        if really and fields.get(name) is not None:
            raise click.UsageError(f"{name}: it is both given and taken away (leave one of the options out)")
    return {**fields, **{name: NONE for name, really in nothing.items() if really}}


def done(noun: Noun, one: Fields, what: str, output: out.Format) -> None:
    """Say what was done to whom: a line, or the whole of it."""
    if output is out.Format.TABLE:
        name = label(one)
        click.echo(f"{noun.word} {name} {what}" + ("" if name == one["id"] else f": {one['id']}"))
    else:
        out.show_data(output, dict(one))


def show(
    client: Client, noun: Noun, given: str, output: out.Format, plain: Callable[[Fields], Fields] = dict[str, Any]
) -> None:
    """All of one: for people `plain`, with its references by name, and without what is the same everywhere."""
    one: Fields = find(client, noun, given)
    if output is out.Format.TABLE:
        one = {name: _named(client, name, value) for name, value in plain(one).items() if name not in CONSTANT}
    out.show_one(output, one)


def delete(client: Client, noun: Noun, given: str, whole: bool) -> None:
    """Delete one; `whole` with what belongs to it."""
    one = find(client, noun, given)
    client.request("DELETE", f"{noun.path}/{one['id']}{noun.whole if whole else ''}")
    click.echo(f"{noun.word} {label(one)} deleted")


def completing(noun: Noun) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """For a shell: the names that there are, if a daemon tells."""

    def complete(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        run_directory = ctx.find_root().params.get("run_dir")
        if not isinstance(run_directory, Path):
            return []
        with contextlib.suppress(IpbackendError), Client(run_directory) as client:
            names = [label(one) for one in rows(client, noun)]
            return [CompletionItem(name) for name in names if name.startswith(begun)]
        return []

    return complete


def only_listed(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """A repeated option as a list; not given, None."""
    return list(values) or None


def _named(client: Client, field: str, value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], dict) and "id" in value[0]:
        numbers = [one["id"] for one in value]
        if field not in REFERENCES:
            return len(numbers)
        return list(_names(client, REFERENCES[field], numbers))
    if field in REFERENCES and isinstance(value, str):
        return next(_names(client, REFERENCES[field], [value]))
    return value


def _names(client: Client, noun: Noun, numbers: list[str]) -> Iterator[str]:
    known = {one["id"]: label(one) for one in rows(client, noun, id=numbers)}
    return (known.get(number, number) for number in numbers)


def _is_id(given: str) -> bool:
    try:
        UUID(given)
    except ValueError:
        return False
    return True
