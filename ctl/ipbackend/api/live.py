"""`/ipbackend/live`, `plan` and `export`: what is carried now, what a document would do, and the document."""

from ipbackend import config, live
from ipbackend.api.base import OURS, Answer, Author, Id, RequestId, Serving, Shown, router
from ipbackend.api.revisions import ApplyBody, ChangeShown, shown
from ipbackend.configuration import Configuration
from ipbackend.errors import NotRunningError
from ipbackend.export import to_toml
from ipbackend.live import Ending, Load, MemberLoad

operations = router(OURS, "revisions")


class LiveAnswer(Answer):
    """The envelope; null where nothing forwards."""

    live: Load | None


class MembersAnswer(Answer):
    """The envelope; a row for each member, its fields in the order of `columns`."""

    columns: list[str]
    members: list[MemberLoad]


class Plan(Shown):
    """What would change, and by the id of what goes how many open connections would end: at once, after a delay."""

    changes: list[ChangeShown]
    ending: dict[str, int]
    draining: dict[str, int]


class PlanAnswer(Answer):
    """The envelope."""

    plan: Plan


class Export(Shown):
    """All that is wanted, as a document."""

    toml: str
    revision: int


class ExportAnswer(Answer):
    """The envelope."""

    export: Export


@operations.get("/live")
async def show_live(service: Serving, request_id: RequestId, project_id: Id) -> LiveAnswer:
    """What listeners, pools and members carry now."""
    try:
        return LiveAnswer(live=await service.look(live.load), request_id=request_id)
    except NotRunningError:
        return LiveAnswer(live=None, request_id=request_id)


@operations.get("/live/members")
async def list_live_members(service: Serving, request_id: RequestId, project_id: Id) -> MembersAnswer:
    """What every member carries now, in as few bytes as it takes: to be asked every second."""
    found = await service.look(live.members)
    return MembersAnswer(columns=list(MemberLoad._fields), members=found, request_id=request_id)


@operations.post("/plan")
async def plan(service: Serving, author: Author, request_id: RequestId, project_id: Id, body: ApplyBody) -> PlanAnswer:
    """What `apply` would do; nothing is changed."""
    document, wanted = body.apply, list[Configuration]()

    def edit(have: Configuration) -> Configuration:
        wanted.append(config.parse(document.toml, document.source, have, document.prune))
        return wanted[0]

    changes = await service.change(author, edit, dry_run=True)
    try:
        ending = await service.look(lambda view: live.ending(view, wanted[0]))
    except NotRunningError:
        ending = Ending({}, {})
    plan = Plan(changes=[shown(one) for one in changes], ending=ending.now, draining=ending.later)
    return PlanAnswer(plan=plan, request_id=request_id)


@operations.get("/export")
async def export(service: Serving, request_id: RequestId, project_id: Id) -> ExportAnswer:
    """All that is wanted, as a document that `apply` takes back without changing anything."""
    document = Export(toml=to_toml(service.configuration), revision=service.revision)
    return ExportAnswer(export=document, request_id=request_id)
