"""`/ipbackend/apply` and `/ipbackend/revisions`: many changes at once, the audit log, and the way back."""

from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import Field

from ipbackend import config
from ipbackend.api.base import OURS, Answer, Author, Body, Flag, Id, RequestId, Serving, Shown, Text, router
from ipbackend.changes import Change, Verb
from ipbackend.codec import to_plain

operations = router(OURS, "revisions")
Number = Annotated[int, Path(ge=0, le=2**53)]


class Document(Body):
    """A TOML file as it is written; `prune` removes what it does not name."""

    toml: Annotated[str, Field(strict=True, max_length=16_000_000)]
    source: Text = "the document"
    prune: Flag = False
    dry_run: Flag = False


class ApplyBody(Body):
    """The envelope."""

    apply: Document


class ChangeShown(Shown):
    """One resource, before and after; the whole of it. `parent` is the pool of a member."""

    section: str
    id: str
    parent: str | None
    label: str
    change: Verb
    text: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Applied(Shown):
    """What was changed, or with `dry_run` would be."""

    revision: int
    dry_run: bool
    changes: list[ChangeShown]


class AppliedAnswer(Answer):
    """The envelope."""

    apply: Applied


class RevisionShown(Shown):
    """One change of what is wanted."""

    number: int
    time: str
    author: str
    summary: str


class RevisionsAnswer(Answer):
    """The envelope of many."""

    revisions: list[RevisionShown]


class ChangesAnswer(Answer):
    """What a revision changed."""

    changes: list[ChangeShown]


class RolledBackAnswer(ChangesAnswer):
    """What the way back changed, and the revision that it is."""

    revision: int


def shown(change: Change) -> ChangeShown:
    """One resource, before and after; the whole of it."""
    return ChangeShown(
        section=change.section,
        id=change.id,
        parent=change.parent,
        label=change.label,
        change=change.verb,
        text=str(change),
        before=to_plain(change.before),
        after=to_plain(change.after),
    )


@operations.post("/apply")
async def apply(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: ApplyBody
) -> AppliedAnswer:
    """Bring everything to what a document says, in one change; with `dry_run` only tell what would change."""
    document = body.apply
    changes = await service.change(
        author,
        lambda have: config.parse(document.toml, document.source, have, document.prune),
        dry_run=document.dry_run,
    )
    told = [shown(one) for one in changes]
    applied = Applied(revision=service.revision, dry_run=document.dry_run, changes=told)
    return AppliedAnswer(apply=applied, request_id=request_id)


@operations.get("/revisions")
async def list_revisions(
    service: Serving, request_id: RequestId, project_id: Id, limit: Annotated[int, Query(ge=0, le=2000)] = 100
) -> RevisionsAnswer:
    """The last changes, the newest first."""
    rows = [RevisionShown(**one._asdict()) for one in await service.history(limit)]
    return RevisionsAnswer(revisions=rows, request_id=request_id)


@operations.get("/revisions/{number}")
async def show_revision(service: Serving, request_id: RequestId, project_id: Id, number: Number) -> ChangesAnswer:
    """What a revision changed."""
    return ChangesAnswer(changes=[shown(one) for one in await service.changes(number)], request_id=request_id)


@operations.post("/revisions/{number}/rollback")
async def roll_back(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Number
) -> RolledBackAnswer:
    """Make the state of a revision a new revision."""
    changes = [shown(one) for one in await service.roll_back(author, number)]
    return RolledBackAnswer(revision=service.revision, changes=changes, request_id=request_id)
