"""`/ipbackend/capture`: packets as they come and as they leave, as a pcapng file that grows while it is read."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ipbackend import capture
from ipbackend.api.base import OURS, AnyOf, Author, Id, Serving, router
from ipbackend.api.service import Service
from ipbackend.capturing import Capturing

operations: APIRouter = router(OURS, "traffic")
MEDIA_TYPE = "application/x-pcapng"
RATE, RATE_MAX = 1000, 100_000  # packets a second
SNAPLEN = 2048
PORTS = 65_535


class Recorded(StreamingResponse):
    """A capture that ends with its answer, however that ends."""

    def __init__(self, service: Service, capturing: Capturing, count: int, seconds: float) -> None:
        super().__init__(capturing.chunks(count, seconds), media_type=MEDIA_TYPE)
        self._service = service
        self._capturing = capturing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._service.end_capture(self._capturing)


@operations.get(
    "/capture", response_class=StreamingResponse, responses={200: {"content": {MEDIA_TYPE: {}}, "description": "OK"}}
)
async def capture_packets(
    service: Serving,
    author: Author,
    project_id: Id,
    verdict: AnyOf,
    client: str = "",
    vip: str = "",
    port: Annotated[int | None, Query(ge=1, le=PORTS)] = None,
    member: str = "",
    count: Annotated[int, Query(ge=0)] = 0,
    seconds: Annotated[float, Query(ge=0)] = 0,
    rate: Annotated[int, Query(ge=1, le=RATE_MAX)] = RATE,
    snaplen: Annotated[int, Query(ge=capture.LEAST, le=capture.MOST)] = SNAPLEN,
) -> Recorded:
    """Capture packets until the client goes, or `count` of them are there, or `seconds` are over.

    Of a client or a network of clients, a VIP, its port, a member (`ADDRESS` or `ADDRESS:PORT`), and of these verdicts;
    at most `rate` a second, and `snaplen` bytes of each. One capture runs at a time.
    """
    order = capture.order(client, vip, port, member, verdict, rate, snaplen)
    return Recorded(service, await service.capture(author, order), count, seconds)


@operations.delete("/capture", status_code=204)
async def end_capture(service: Serving, project_id: Id) -> None:
    """End the capture that runs, if one does: whoever reads it gets its end."""
    if service.capturing:
        service.capturing.stop()
