"""`/ipbackend/apply` and `/ipbackend/revisions`: many changes at once, the audit log, and the way back."""

from typing import Annotated, Any

from fastapi import Path, Query, Request
from pydantic import Field

from ipbackend import config
from ipbackend.api.base import OURS, Author, Body, Flag, Serving, Text, answer, router
from ipbackend.changes import Change
from ipbackend.codec import to_plain

operations = router(OURS, "revisions")
Number = Annotated[int, Path(ge=0, le=2**53)]


class Document(Body):
    """A TOML file as it is written; `prune` removes what it does not name."""

    toml: Annotated[str, Field(strict=True, max_length=16_000_000)]
    source: Text = "the document"
    prune: Flag = False
    dry_run: Flag = False


class ApplyRequest(Body):
    """The envelope."""

    apply: Document


def shown(change: Change) -> dict[str, Any]:
    """One resource, before and after; the whole of it."""
    return {
        "section": change.section,
        "id": change.id,
        "parent": change.parent,
        "label": change.label,
        "change": str(change.verb),
        "text": str(change),
        "before": to_plain(change.before),
        "after": to_plain(change.after),
    }


@operations.post("/apply")
async def apply(
    request: Request, service: Serving, author: Author, project_id: str, body: ApplyRequest
) -> dict[str, Any]:
    """Bring everything to what a document says, in one change; with `dry_run` only tell what would change."""
    document = body.apply
    changes = await service.change(
        author,
        lambda have: config.parse(document.toml, document.source, have, document.prune),
        dry_run=document.dry_run,
    )
    result = {"revision": service.revision, "dry_run": document.dry_run, "changes": [shown(one) for one in changes]}
    return answer(request, apply=result)


@operations.get("/revisions")
async def index(
    request: Request, service: Serving, project_id: str, limit: Annotated[int, Query(ge=0, le=2000)] = 100
) -> dict[str, Any]:
    """The last changes, the newest first."""
    return answer(request, revisions=[one._asdict() for one in await service.history(limit)])


@operations.get("/revisions/{number}")
async def show(request: Request, service: Serving, project_id: str, number: Number) -> dict[str, Any]:
    """What a revision changed."""
    return answer(request, changes=[shown(one) for one in await service.changes(number)])


@operations.post("/revisions/{number}/rollback")
async def roll_back(
    request: Request, service: Serving, author: Author, project_id: str, number: Number
) -> dict[str, Any]:
    """Make the state of a revision a new revision."""
    changes = await service.roll_back(author, number)
    return answer(request, revision=service.revision, changes=[shown(one) for one in changes])
