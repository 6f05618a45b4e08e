"""What all families of the API share: bodies, answers, lists with filters and pages. It knows no resource."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ipbackend.api.service import Service
from ipbackend.errors import ConfigurationError

ELB = "/v3/{project_id}/elb"
OURS = "/v3/{project_id}/ipbackend"
LIMIT_MAX = 2000  # of a page, and its default

# Not part of a list's filters.
_PAGING = ("limit", "marker", "page_reverse")


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


Integer = Annotated[int, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, max_length=255)]
Address = Annotated[IPv4Address, BeforeValidator(_text)]
Cidr = Annotated[IPv4Network, BeforeValidator(_text)]


class Body(BaseModel):
    """What a client sends of a resource. `NAMES` are the fields that the model calls by another name."""

    model_config = ConfigDict(extra="forbid")
    NAMES: ClassVar[Mapping[str, str]] = {}
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()  # taken since clients send them; there is nothing to set

    def fields_given(self) -> dict[str, Any]:
        """What was sent, under the model's names; lists as tuples."""
        given = {name: getattr(self, name) for name in self.model_fields_set - self.WITHOUT_EFFECT}
        return {
            self.NAMES.get(name, name): tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }


def service_of(request: Request) -> Service:
    """Who serves."""
    service: Service = request.app.state.service
    return service


def author_of(request: Request) -> str:
    """Who asks: the user at the other end of the Unix socket."""
    return request.client.host if request.client else "unknown"


Serving = Annotated[Service, Depends(service_of)]
Author = Annotated[str, Depends(author_of)]


def router(prefix: str, family: str) -> APIRouter:
    """For the operations of one family."""
    return APIRouter(prefix=prefix, tags=[family])


def answer(request: Request, **body: Any) -> dict[str, Any]:
    """A body with the request's id."""
    return {**body, "request_id": request_id(request)}


def request_id(request: Request) -> str:
    """Drawn once for each request."""
    if not hasattr(request.state, "request_id"):
        request.state.request_id = str(uuid4())
    number: str = request.state.request_id
    return number


def listed(request: Request, name: str, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The rows that the query's filters let through, a page of them: `limit` rows after `marker`, or before it.

    Values of one filter are alternatives. ConfigurationError: a page or filter that cannot be.
    """
    query = request.query_params
    found = list(rows)
    for field in dict.fromkeys(key for key in query if key not in _PAGING):
        values = set(query.getlist(field))
        if found and field not in found[0]:
            raise ConfigurationError(f"{field}: not a field to filter by (there are {', '.join(found[0])})")
        found = [row for row in found if _plain(row[field]) in values]
    page, limit = _page(found, query)
    more = len(page) > limit
    page = page[:limit]
    if query.get("page_reverse") == "true":
        page = page[::-1]
    info: dict[str, Any] = {"current_count": len(page)}
    if page:
        info["previous_marker"] = page[0]["id"]
        if more:
            info["next_marker"] = page[-1]["id"]
    return answer(request, **{name: page, "page_info": info})


def _page(rows: list[dict[str, Any]], query: Mapping[str, str]) -> tuple[list[dict[str, Any]], int]:
    """What follows the marker in the direction asked for, and how much of it is wanted."""
    text, marker, reverse = query.get("limit", str(LIMIT_MAX)), query.get("marker"), query.get("page_reverse", "false")
    if not (text.isascii() and text.isdigit() and int(text) <= LIMIT_MAX):
        raise ConfigurationError(f"limit: {text!r} cannot be used (write 0 to {LIMIT_MAX})")
    if reverse not in ("true", "false"):
        raise ConfigurationError(f"page_reverse: {reverse!r} cannot be used (write true or false)")
    if reverse == "true":
        rows.reverse()
    if marker is None:
        return rows, int(text)
    places = [place for place, row in enumerate(rows) if row["id"] == marker]
    if not places:
        raise ConfigurationError(f"marker: there is no {marker!r} (take the id of the last one of the page before)")
    return rows[places[0] + 1 :], int(text)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def stamps(service: Service, number: str) -> dict[str, str]:
    """When a resource was made and last changed."""
    return service.stamps[number]._asdict()
