"""`/metrics`: all that Prometheus reads. It writes none of it."""

from fastapi.responses import PlainTextResponse

from ipbackend.api.base import Serving, router
from ipbackend.exposition import CONTENT_TYPE

operations = router("", "metrics")


class Scrape(PlainTextResponse):
    """The exposition format."""

    media_type = CONTENT_TYPE


@operations.get("/metrics", response_class=Scrape)
async def show_metrics(service: Serving) -> Scrape:
    """Tell everything that is counted, for Prometheus."""
    return Scrape(await service.metrics())
