"""`/ipbackend/live`, `plan` and `export`: what is carried now, what a document would do, and the document."""

import asyncio
from typing import Any

from fastapi import Request

from ipbackend import config, live
from ipbackend.api.base import OURS, Author, Serving, answer, router
from ipbackend.api.revisions import ApplyRequest, shown
from ipbackend.configuration import Configuration
from ipbackend.export import to_toml

operations = router(OURS, "revisions")


@operations.get("/live")
async def show(request: Request, service: Serving, project_id: str) -> dict[str, Any]:
    """What listeners, pools and members carry now; null where nothing forwards."""
    maps = service.maps
    return answer(request, live=maps and await asyncio.to_thread(live.status, maps, service.configuration))


@operations.post("/plan")
async def plan(
    request: Request, service: Serving, author: Author, project_id: str, body: ApplyRequest
) -> dict[str, Any]:
    """What `apply` would change, and by the id of what goes how many open connections would end."""
    document, have = body.apply, service.configuration
    wanted: list[Configuration] = []

    def edit(current: Configuration) -> Configuration:
        wanted.append(config.parse(document.toml, document.source, current, document.prune))
        return wanted[0]

    changes = await service.change(author, edit, dry_run=True)
    maps = service.maps
    ending = await asyncio.to_thread(live.ending, maps, have, wanted[0]) if maps else {}
    return answer(request, plan={"changes": [shown(one) for one in changes], "ending": ending})


@operations.get("/export")
async def export(request: Request, service: Serving, project_id: str) -> dict[str, Any]:
    """All that is wanted, as a document that `apply` takes back without changing anything."""
    return answer(request, export={"toml": to_toml(service.configuration), "revision": service.revision})
