"""`/elb/ipgroups`: addresses under one name, for listeners to let in or to keep out."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from fastapi import Request
from pydantic import Field

from ipbackend import edits
from ipbackend.api.base import (
    ELB,
    Answer,
    Author,
    Body,
    Changes,
    Cidr,
    Id,
    Ref,
    RequestId,
    Serving,
    Shown,
    Stamped,
    Text,
    refs,
    router,
    stamps,
)
from ipbackend.api.lists import Listing, Rows
from ipbackend.api.relations import Relations
from ipbackend.api.service import Service
from ipbackend.configuration import Configuration
from ipbackend.errors import ConfigurationError
from ipbackend.model import GROUP_MAX, Entry, IpGroup

operations = router(f"{ELB}/ipgroups", "ip groups")
SECTION = "ip_groups"


class IpEntry(Body):
    """An IPv4 address or CIDR, and what it is. Ranges and IPv6 are not kept."""

    ip: Cidr
    description: Text = ""


class IpOnly(Body):
    """An IPv4 address or CIDR."""

    ip: Cidr


Entries = Annotated[list[IpEntry], Field(max_length=GROUP_MAX)]


class NewIpGroup(Body):
    """What an ip group is made of."""

    WITHOUT_EFFECT: ClassVar = frozenset(("project_id", "ip_list"))

    name: Text = ""
    description: Text = ""
    ip_list: Entries
    project_id: Text | None = None


class IpGroupChanges(Changes):
    """What may change later; a list takes the place of the one before."""

    WITHOUT_EFFECT: ClassVar = frozenset(("ip_list",))

    name: Text = ""
    description: Text = ""
    ip_list: Entries = Field(default_factory=list)


class IpListChanges(IpGroupChanges):
    """The same, but entries are added, or get another description."""

    ip_list: Entries


class IpListRemoval(Body):
    """Entries to take out, which must be there."""

    ip_list: Annotated[list[IpOnly], Field(max_length=GROUP_MAX)]


class IpShown(Shown):
    """As published: one address stands without a length."""

    ip: str
    description: str


class IpGroupShown(Stamped):
    """As published: `listeners` are those that use it."""

    name: str
    description: str
    project_id: str
    ip_list: list[IpShown]
    listeners: list[Ref]


class NewIpGroupBody(Body):
    """The envelope."""

    ipgroup: NewIpGroup


class IpGroupChangesBody(Body):
    """The envelope."""

    ipgroup: IpGroupChanges


class IpListChangesBody(Body):
    """The envelope."""

    ipgroup: IpListChanges


class IpListRemovalBody(Body):
    """The envelope."""

    ipgroup: IpListRemoval


class IpGroupAnswer(Answer):
    """The envelope."""

    ipgroup: IpGroupShown


class IpGroupsAnswer(Listing):
    """The envelope of many."""

    ipgroups: list[IpGroupShown]


class RelatedListenersAnswer(Answer):
    """The envelope."""

    listeners: list[Ref]


ROWS = Rows(IpGroupShown)


def shown(service: Service, relations: Relations, one: IpGroup, project_id: str) -> IpGroupShown:
    """As published."""
    return IpGroupShown(
        id=one.id,
        name=one.name,
        description=one.description,
        project_id=project_id,
        ip_list=[IpShown(ip=_text(entry.cidr), description=entry.description) for entry in one.entries],
        listeners=_users(relations, one.id),
        **stamps(service, one.id),
    )


def _text(cidr: IPv4Network) -> str:
    return str(cidr).removesuffix("/32")


def _users(relations: Relations, number: str) -> list[Ref]:
    return refs(one.id for one in relations.listeners_of_group.get(number, ()))


def _entries(given: Iterable[IpEntry]) -> tuple[Entry, ...]:
    return tuple(Entry(one.ip, one.description) for one in given)


def _answer(service: Service, request_id: str, project_id: str, number: str) -> IpGroupAnswer:
    have = service.configuration
    one = shown(service, Relations(have), edits.find(have, SECTION, number), project_id)
    return IpGroupAnswer(ipgroup=one, request_id=request_id)


@operations.post("", status_code=201)
async def create_ip_group(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: NewIpGroupBody
) -> IpGroupAnswer:
    """Create an ip group."""
    given: dict[str, Any] = {"name": "", **body.ipgroup.fields_given()}
    one = IpGroup(**given, entries=_entries(body.ipgroup.ip_list), id=str(uuid4()))
    await service.change(author, lambda have: edits.put(have, SECTION, one))
    return _answer(service, request_id, project_id, one.id)


@operations.get("", openapi_extra=ROWS.openapi)
async def list_ip_groups(request: Request, service: Serving, request_id: RequestId, project_id: Id) -> IpGroupsAnswer:
    """List ip groups."""
    have = service.configuration
    relations = Relations(have)
    rows = (shown(service, relations, one, project_id) for one in have.ip_groups.values())
    page, info = ROWS.page(request, rows)
    return IpGroupsAnswer(ipgroups=page, page_info=info, request_id=request_id)


@operations.get("/{number}")
async def show_ip_group(service: Serving, request_id: RequestId, project_id: Id, number: Id) -> IpGroupAnswer:
    """Show an ip group."""
    return _answer(service, request_id, project_id, number)


@operations.put("/{number}")
async def update_ip_group(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Id, body: IpGroupChangesBody
) -> IpGroupAnswer:
    """Change an ip group."""
    fields = body.ipgroup.fields_given()
    if "ip_list" in body.ipgroup.model_fields_set:
        fields["entries"] = _entries(body.ipgroup.ip_list)
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(service, request_id, project_id, number)


@operations.delete("/{number}", status_code=204)
async def delete_ip_group(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete an ip group that no listener uses."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))


@operations.post("/{number}/iplist/create-or-update")
async def update_ip_list(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Id, body: IpListChangesBody
) -> IpGroupAnswer:
    """Add entries, or describe those that are there anew."""
    fields, wanted = body.ipgroup.fields_given(), _entries(body.ipgroup.ip_list)

    def edit(have: Configuration) -> Configuration:
        anew = {entry.cidr for entry in wanted}
        kept = (entry for entry in edits.find(have, SECTION, number).entries if entry.cidr not in anew)
        return edits.change(have, SECTION, number, {**fields, "entries": (*kept, *wanted)})

    await service.change(author, edit)
    return _answer(service, request_id, project_id, number)


@operations.post("/{number}/iplist/batch-delete")
async def batch_delete_ip_list(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Id, body: IpListRemovalBody
) -> IpGroupAnswer:
    """Take entries out."""
    doomed = {one.ip for one in body.ipgroup.ip_list}

    def edit(have: Configuration) -> Configuration:
        one: IpGroup = edits.find(have, SECTION, number)
        if missing := doomed - {entry.cidr for entry in one.entries}:
            raise ConfigurationError(f"ipgroup.ip_list: {_text(min(missing))} is not in it (list it to see what is)")
        kept = tuple(entry for entry in one.entries if entry.cidr not in doomed)
        return edits.put(have, SECTION, replace(one, entries=kept))

    await service.change(author, edit)
    return _answer(service, request_id, project_id, number)


@operations.get("/{number}/related-listeners")
async def show_ip_group_related_listeners(
    service: Serving, request_id: RequestId, project_id: Id, number: Id
) -> RelatedListenersAnswer:
    """List the listeners that use an ip group."""
    have = service.configuration
    edits.find(have, SECTION, number)
    return RelatedListenersAnswer(listeners=_users(Relations(have), number), request_id=request_id)
